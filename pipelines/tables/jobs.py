"""The jobs that filled a table, recorded in its config, so that `retry` can repeat a part of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from encoders.digest import digest_json
from pipelines.store.retries import retried
from pipelines.store.storage import TableRef, absolute
from pipelines.tables.corpora import read_corpora
from pipelines.tables.opening import open_dataset

if TYPE_CHECKING:
    import lance

_PREFIX = "isthmus.job."


@retried
def remember_job(table: TableRef, corpus: str, options: Mapping[str, Any]) -> None:
    """Record a job's options, one job per corpus. This makes a new version of the table if the options are new.

    Args:
        table: the table that the job fills.
        corpus: the corpus, as the user named it.
        options: the job's options: JSON-ready, without secrets.
    """
    dataset = open_dataset(table)
    where = absolute(corpus)
    key, value = _PREFIX + digest_json(where), json.dumps({**options, "corpus": where}, sort_keys=True)
    if dataset.config().get(key) != value:
        dataset.update_config({key: value})


def remembered_jobs(table: TableRef) -> list[dict[str, Any]]:
    """The options of the jobs that filled the table, ordered by corpus. Moved corpora are named where they are now."""
    dataset = open_dataset(table)
    corpora = read_corpora(dataset)
    found: dict[str, dict[str, Any]] = {}
    for job in jobs_of(dataset):
        now = corpora.locate(str(job["corpus"]))
        if now == job["corpus"] or now not in found:
            found[now] = {**job, "corpus": now}
    return [found[corpus] for corpus in sorted(found)]


def jobs_of(dataset: lance.LanceDataset) -> list[dict[str, Any]]:
    """The options of the jobs that filled a table, as they were recorded."""
    return [json.loads(value) for key, value in dataset.config().items() if key.startswith(_PREFIX)]
