"""Which rows train, when, and whether it helped: against naive answers."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.store.storage import Storage
from pipelines.tables.joins import RowIndex, places_of
from pipelines.tables.splitting import Split, select
from pipelines.train.finetuning.batches import BatchPlan, SequentialPlan
from pipelines.train.finetuning.building import cca
from pipelines.train.finetuning.checkpoints import RunFolder, claim_run
from pipelines.train.finetuning.planning import padded_lists
from pipelines.train.finetuning.shuffle import permuted
from pipelines.train.finetuning.validation import retrieval_metrics


@given(count=st.integers(1, 3000), seed=st.integers(0, 2**31))
@settings(max_examples=80, deadline=None)
def test_the_order_is_a_permutation_however_it_is_cut(count: int, seed: int) -> None:
    """A row that comes twice in an epoch means one that does not come at all."""
    whole = permuted(np.arange(count), count, seed)
    assert sorted(whole.tolist()) == list(range(count))
    cut = np.concatenate([permuted(part, count, seed) for part in np.array_split(np.arange(count), 3)])
    assert cut.tolist() == whole.tolist()


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_an_epoch_holds_each_row_once_and_shares_make_the_batch(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(2, 200)), data.draw(st.integers(2, 64))
    world = data.draw(st.integers(1, 5))
    plan = BatchPlan(rows=rows, batch_size=size, epochs=2, seed=data.draw(st.integers(0, 99)))
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.batch(step) for step in steps])
        assert len(set(seen.tolist())) == len(seen)
        # A last batch of one row has no negative and is left out.
        assert len(seen) == rows - (rows % size == 1 and rows > size)
    for step in range(plan.steps):
        shares = [plan.share(step, rank, world) for rank in range(world)]
        assert np.concatenate(shares).tolist() == plan.batch(step).tolist()
    held_out = SequentialPlan(rows=rows, batch_size=size)
    found = [held_out.share(step, rank, world) for step in range(held_out.steps) for rank in range(world)]
    assert np.concatenate(found).tolist() == list(range(rows))


def test_mined_negatives_join_their_rows() -> None:
    negatives = np.full((40, 3), -1)
    negatives[:20] = np.arange(20)[:, None] + np.array([20, 5, 1])
    plan = BatchPlan(rows=40, batch_size=12, epochs=3, seed=0, negatives=negatives, negatives_per_row=2)
    assert plan.anchors == 4
    drawn = set()
    for step in range(plan.steps):
        batch = plan.batch(step).tolist()
        assert len(set(batch)) == len(batch) <= 12
        anchors = batch[:4] if len(batch) >= 4 else batch
        allowed = {n for a in anchors for n in negatives[a].tolist() if n >= 0}
        assert set(batch[4:]) <= allowed
        drawn |= {(a, n) for a in anchors for n in batch[4:] if n in negatives[a]}
    assert len(drawn) > 40, "over the epochs other negatives of a row take their turn"


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rows": 1}, "1 rows"), ({"batch_size": 1}, "at least 2"), ({"epochs": 0}, "at least 1")],
)
def test_plans_that_cannot_train(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BatchPlan(**{"rows": 9, "batch_size": 4, "epochs": 1, "seed": 0, **changes})


def table(path: Path, n: int = 90) -> lance.LanceDataset:
    rows = pa.table(
        {
            "row_id": [f"r{i}" for i in range(n)],
            "item_id": [f"i{i // 3}" for i in range(n)],
            "caption": [None if i % 10 == 0 else f"c{i}" for i in range(n)],
            "n": list(range(n)),
        }
    )
    return lance.write_dataset(rows, str(path), max_rows_per_file=25)


def test_a_group_stands_on_one_side_and_deleted_rows_shift_nothing(tmp_path: Path) -> None:
    """If a picture trains while its other caption validates, every metric is too good."""
    dataset = table(tmp_path / "t.lance")
    dataset.delete("n % 7 = 3")
    dataset = lance.dataset(str(tmp_path / "t.lance"))
    found = select(dataset, Split(where="n < 80", fraction=0.3))
    sides = [dataset.take(o.tolist(), columns=["item_id", "caption", "n"]) for o in (found.train, found.validation)]
    groups = [set(side["item_id"].to_pylist()) for side in sides]
    assert groups[0]
    assert groups[1]
    assert not groups[0] & groups[1]
    numbers = sorted(n for side in sides for n in side["n"].to_pylist())
    assert numbers == [n for n in range(80) if n % 7 != 3 and n % 10]
    by_filter = select(dataset, Split(validation_where="n >= 60"))
    assert dataset.take(by_filter.validation.tolist(), columns=["n"])["n"].to_pylist() == [
        n for n in range(60, 90) if n % 7 != 3 and n % 10
    ]
    with pytest.raises(ValueError, match="no such column"):
        select(dataset, Split(group="concept"))


def test_rows_are_found_by_their_ids(tmp_path: Path) -> None:
    dataset = table(tmp_path / "t.lance")
    index = RowIndex(dataset)
    assert index.find(["r5", "nobody", "r89"]).tolist() == [5, -1, 89]
    assert places_of(np.array([4, 9, 2]), np.array([2, 4, 8])).tolist() == [1, -1, 0]
    assert padded_lists(np.array([2, 0, 2]), np.array([7, 8, 9]), 3).tolist() == [[8, -1], [-1, -1], [7, 9]]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_validation_equals_a_loop(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    items, texts = rng.integers(0, 6, n), rng.integers(0, 6, n)
    pool = rng.normal(size=(3, 4))
    image = pool[items % 3].astype(np.float32)
    text = pool[rng.integers(0, 3, n)].astype(np.float32)
    found = retrieval_metrics(*(torch.from_numpy(a) for a in (image, text, items, texts)))
    gallery = [i for i in range(n) if items[i] not in items[:i]]
    said = {(t, i) for t, i in zip(texts.tolist(), items.tolist(), strict=True)}
    hits = []
    for q in range(n):
        scores = np.round(image[gallery].astype(np.float64) @ text[q].astype(np.float64), 9).tolist()
        order = sorted(range(len(gallery)), key=lambda g: (-scores[g], g))
        hits.append(next(r for r, g in enumerate(order, 1) if (texts[q], items[gallery[g]]) in said))
    for k in (1, 5, 10):
        assert found[f"text_to_image R@{k}"] == pytest.approx(np.mean([h <= k for h in hits]))
    assert found["MRR"] == pytest.approx(np.mean([1 / h for h in hits]), rel=1e-5)


def test_the_closed_form_finds_what_two_views_share() -> None:
    rng = np.random.default_rng(0)
    cause = rng.normal(size=(3000, 2))
    x = np.concatenate([cause @ rng.normal(size=(2, 6)), rng.normal(size=(3000, 6))], axis=1)
    y = np.concatenate([rng.normal(size=(3000, 5)), cause @ rng.normal(size=(2, 5))], axis=1)
    left, right = cca(x, y, 3, regularisation=1e-6)
    correlations = [abs(np.corrcoef(x @ left[:, i], y @ right[:, i])[0, 1]) for i in range(3)]
    assert min(correlations[:2]) > 0.99
    assert correlations[2] < 0.2


def test_a_checkpoint_that_cannot_be_written_leaves_the_former_one(tmp_path: Path) -> None:
    import resource
    import subprocess
    import sys

    folder = RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    folder.save("latest.pt", {"step": 1})
    script = (
        "import resource, sys, torch, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "from pipelines.train.finetuning.checkpoints import RunFolder\n"
        "from pipelines.store.storage import Storage\n"
        f"folder = RunFolder(uri={str(tmp_path / 'run')!r}, storage=Storage())\n"
        "folder.save('latest.pt', {'big': torch.zeros(100_000)})\n"
    )
    root = str(Path(__file__).resolve().parents[4])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=root)
    assert "the previous checkpoint is still valid" in done.stderr
    assert folder.load("latest.pt") == {"step": 1}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["latest.pt"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_another_config_under_an_old_name_is_refused_by_its_entries(tmp_path: Path) -> None:
    folder = RunFolder(uri=str(tmp_path / "run"), storage=Storage())
    assert not claim_run(folder, {"train": {"rate": 1, "seed": 0}})
    assert not claim_run(folder, {"train": {"rate": 1, "seed": 0}})
    folder.save("latest.pt", {})
    assert claim_run(folder, {"train": {"rate": 1, "seed": 0}})
    with pytest.raises(ValueError, match=r"train.rate: was 1, now 2") as caught:
        claim_run(folder, {"train": {"rate": 2, "seed": 0}})
    assert "seed" not in str(caught.value)
