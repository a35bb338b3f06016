"""Decisions before a run starts: which rows, which features, and what may differ when it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pytest
import tiny_models
from training_tools import latent_table

from pipelines.store.storage import Storage, TableRef
from pipelines.tables.splitting import Split
from pipelines.train.finetuning.checkpoints import RunFolder
from pipelines.train.finetuning.planning import _thinned, describe_run, plan_work
from pipelines.train.finetuning.train_settings import ModelSettings, RunSettings, TrainSettings


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("towers")
    return f"{tiny_models.tiny_vit(folder / 'v')}+{tiny_models.tiny_bert(folder / 'b')}"


@pytest.fixture(scope="module")
def table(towers: str, tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    return latent_table(tmp_path_factory.mktemp("db") / "t", towers, 120)


def run_settings(table: TableRef, spec: str, folder: Path, **changes: object) -> RunSettings:
    tuning = {"image_tuning": "head", "text_tuning": "head", **{k: v for k, v in changes.items() if "tuning" in k}}
    train = TrainSettings(model=ModelSettings(spec=spec, dim=8, **tuning))  # type: ignore[arg-type]
    values: dict[str, object] = {
        "train": train,
        "samples": table,
        "out": str(folder / "out"),
        "folder": RunFolder(uri=str(folder / "run"), storage=Storage()),
        "split": Split(fraction=0.2),
        "batch_size": 16,
        "epochs": 2,
        **{k: v for k, v in changes.items() if "tuning" not in k},
    }
    return RunSettings(**values)  # type: ignore[arg-type]


def test_a_table_stands_in_for_exactly_the_towers_that_it_holds(table: TableRef, towers: str, tmp_path: Path) -> None:
    """Features of another model than the trained one are noise with the right shape."""
    plan = plan_work(run_settings(table, towers, tmp_path))
    assert (plan.needs.image_features, plan.needs.text_features, plan.needs.transform) == (True, True, None)
    assert set(plan.train) & set(plan.validation) == set()
    assert len(plan.train) + len(plan.validation) == 120
    other = f"{tiny_models.tiny_vit(tmp_path / 'v')}+{tiny_models.tiny_modernbert(tmp_path / 'm')}"
    text_too = latent_table(tmp_path / "other", other, 30)
    mixed = plan_work(run_settings(text_too, towers, tmp_path))
    assert not mixed.needs.text_features


def test_rows_whose_picture_is_needed_and_not_there_are_left_out(table: TableRef, towers: str, tmp_path: Path) -> None:
    """`--embed any` keeps captions without pictures; one of them would end the run at its first batch."""
    dataset = lance.dataset(table.uri).to_table()
    uris = [None if i % 3 == 0 else f"/p/{i}.png" for i in range(len(dataset))]
    at = dataset.column_names.index("image_uri")
    ref = TableRef.parse(str(tmp_path / "t"))
    lance.write_dataset(dataset.set_column(at, "image_uri", [uris]), ref.uri)
    plan = plan_work(run_settings(ref, towers, tmp_path, image_tuning="full"))
    rows = np.concatenate([plan.train, plan.validation])
    assert sorted(rows.tolist()) == [i for i in range(120) if i % 3]
    assert plan.needs.text_features
    assert not plan.needs.image_features
    assert plan.needs.transform is not None
    assert len(plan_work(run_settings(ref, towers, tmp_path)).train) > len(plan.train)


def test_what_a_machine_holds_may_differ_and_what_is_learned_may_not(
    table: TableRef, towers: str, tmp_path: Path
) -> None:
    settings = run_settings(table, towers, tmp_path)
    first = describe_run(settings, plan_work(settings))

    def other(**changes: object) -> dict[str, object]:
        changed = replace(settings, train=replace(settings.train, **changes))  # type: ignore[arg-type]
        return describe_run(changed, plan_work(changed))

    assert other(stop_after_steps=3, log_every=2, checkpoint_every=1, tasks_per_worker=4, resident_bytes=1) == first
    elsewhere = replace(settings, workers=4, sharding="fsdp")
    assert describe_run(elsewhere, plan_work(elsewhere)) == first
    for changes in ({"learning_rate": 0.5}, {"weight_decay": 0.0}, {"chunk_size": 4}, {"precision": "bf16"}):
        assert other(**changes) != first, changes
    dataset = lance.dataset(table.uri)
    dataset.delete("n = 5")
    assert describe_run(settings, plan_work(settings)) != first, "other rows are another run"


def test_thinned_rows_are_spread_and_distinct() -> None:
    """The first thousand rows of a table are its first shard."""
    offsets = np.arange(1000) * 3
    found = _thinned(offsets, 300)
    assert len(set(found.tolist())) == 300
    assert (found[0], found[-1]) == (0, 2997)
    assert np.diff(found).max() <= 12
    assert _thinned(offsets, 1000) is offsets
