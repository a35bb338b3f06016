"""The results table of a bulk search. Each part of the queries lands once, in a commit of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import create_dataset, is_conflict, open_dataset, translate

QUERY_ID, QUERY, RANK, SCORE, PART = "query_id", "query", "rank", "score", "part"
RUN_KEY = b"isthmus.bulk"
_ATTEMPTS = 30


def begin_results(out: TableRef, schema: pa.Schema) -> set[int]:
    """Create or check the results table; return the parts that an earlier attempt of the same run has landed.

    If the table holds the results of another run, it is emptied.

    Raises:
        ValueError: `out` is another kind of table.
    """
    import lance

    there = open_dataset(out, missing_ok=True)
    if there is None:
        create_dataset(out, schema)
        return set()
    metadata = there.schema.metadata or {}
    if RUN_KEY not in metadata:
        raise ValueError(f"out {out}: holds something else than results and is not replaced; give another name")
    if metadata[RUN_KEY] == (schema.metadata or {})[RUN_KEY]:
        return set(there.to_table(columns=[PART])[PART].unique().to_pylist())
    try:
        empty = schema.empty_table()
        lance.write_dataset(empty, out.uri, schema=schema, mode="overwrite", storage_options=out.options)
    except OSError as error:
        raise translate(error, out.uri) from error
    return set()


def stage_results(out: TableRef, rows: pa.Table) -> list[str]:
    """Write rows as fragments that no version names yet; return their metadata as JSON.

    Raises:
        OSError: the store cannot be written.
    """
    from lance.fragment import write_fragments

    if rows.num_rows == 0:
        return []
    try:
        written = retry(lambda: write_fragments(rows, out.uri, mode="append", storage_options=out.options), out.uri)
    except OSError as error:
        raise translate(error, out.uri) from error
    return [json.dumps(fragment.to_json()) for fragment in written]


def land_results(out: TableRef, part: int, fragments: Sequence[str]) -> None:
    """Append a part's fragments in one commit, unless they landed before: a store may lose the response to a commit."""
    import lance
    from lance.fragment import FragmentMetadata

    if not fragments:
        return
    new = [FragmentMetadata.from_json(text) for text in fragments]

    def land() -> None:
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(out)
            if dataset.count_rows(f"{PART} = {part}"):
                return
            merged = [f.metadata for f in dataset.get_fragments()] + new
            try:
                # A `Merge` without retries lands on the version that was read, or not at all.
                operation = lance.LanceOperation.Merge(merged, dataset.lance_schema)
                transaction = lance.Transaction(read_version=dataset.version, operation=operation)
                lance.LanceDataset.commit(out.uri, transaction, storage_options=out.options, max_retries=0)
                return
            except OSError as error:
                if not is_conflict(error):
                    raise
        raise OSError(f"table {out}: {_ATTEMPTS} commits in a row lost to another writer; try again later")

    try:
        retry(land, out.uri)
    except OSError as error:
        raise translate(error, out.uri) from error
