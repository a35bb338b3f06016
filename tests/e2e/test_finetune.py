"""Fine-tuning end to end: the same model for any number of processes; refusals; divergence; losses by flags."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_models
import torch
from training_tools import (
    assert_same_weights,
    heads_config,
    latent_table,
    latest_step,
    losses,
    shapes_corpus,
    vit_and_bert,
    weights,
)
from transformers import CLIPModel

from encoders.registry import describe, load
from jobs.finetune import FinetuneConfig, run, run_settings
from pipelines.store.storage import TableRef
from pipelines.train.finetuning.finetune import TrainingDivergedError, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vit_and_bert(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def table(towers: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(latent_table(tmp_path_factory.mktemp("db") / "latent", towers, 120))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def pictures(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table with pictures, embedded by the tiny CLIP: 48 pairs."""
    import jobs.embed

    folder = tmp_path_factory.mktemp("pictures")
    corpus = shapes_corpus(folder / "corpus")
    uri = str(folder / "db" / "pictures")
    jobs.embed.run(
        jobs.embed.EmbedConfig(
            corpus=str(corpus), table=uri, encoder=str(clip), columns={"key": "id"}, thumbnails=40, actors=1
        )
    )
    return uri


def whole_config(table: str, clip: Path, out: Path, **changes: Any) -> FinetuneConfig:
    """Towers that run in each step, on pictures that Ray Data decodes and augments."""
    given = {
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "train_image": "full",
        "train_text": "full",
        "augment": "light",
    }
    return heads_config(table, str(clip), out, **{**given, **changes})


def test_heads_learn_what_the_features_hide(table: str, towers: str, tmp_path: Path) -> None:
    report = run(heads_config(table, towers, tmp_path / "out", epochs=8))
    assert report.features == ["image", "text"]
    assert report.best["R@1"] > report.start["R@1"] + 0.3
    assert load(str(tmp_path / "out")).encode_texts(["a word"]).vectors.shape == (1, 8)


# The same model for any number of processes and chunks


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(["infonce"], marks=pytest.mark.heavy),
        pytest.param(["siglip"], marks=pytest.mark.heavy),
        ["memory_bank:size=48,warmup_steps=2"],
    ],
)
def test_workers_and_chunks_change_nothing(table: str, towers: str, tmp_path: Path, loss: list[str]) -> None:
    """Missing negatives of other processes, or a gradient that is wrong by a factor, would change the loss curve."""
    for name, changes in {"one": {}, "two": {"workers": 2}, "chunks": {"chunk_size": 5}}.items():
        run(heads_config(table, towers, tmp_path / name, loss=loss, **changes))
    curve = losses(tmp_path / "one")
    assert len(curve) == 12, "3 steps an epoch: each is logged"
    for other in ("two", "chunks"):
        assert losses(tmp_path / other) == pytest.approx(curve, rel=1e-4)
        assert_same_weights(tmp_path / "one", tmp_path / other, 1e-5)


@pytest.mark.heavy
def test_workers_and_chunks_change_nothing_of_whole_towers(pictures: str, clip: Path, tmp_path: Path) -> None:
    for name, changes in {"one": {}, "two": {"workers": 2}, "chunks": {"chunk_size": 5}}.items():
        report = run(whole_config(pictures, clip, tmp_path / name, **changes))
        assert report.features == []
    for other in ("two", "chunks"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    # Adam divides by the root of squares: a gradient that is 0 up to rounding moves a weight by up to the learning
    # rate.
    assert_close_but_for_noise(tmp_path / "one", tmp_path / "chunks")
    assert_close_but_for_noise(tmp_path / "one", tmp_path / "two")


@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_sharded_workers_change_nothing_and_go_on_with_copies(pictures: str, clip: Path, tmp_path: Path) -> None:
    """Each worker holds a part of the model; then a run started this way goes on with a full copy in each worker."""
    changes = {"epochs": 2, "chunk_size": 3}
    run(whole_config(pictures, clip, tmp_path / "one", **changes))
    sharded = {**changes, "workers": 2, "sharding": "fsdp"}
    run(whole_config(pictures, clip, tmp_path / "parts", **sharded))
    half = whole_config(pictures, clip, tmp_path / "half", **sharded)
    train(stopped_after(3, half, pictures))
    assert latest_step(tmp_path / "half.run") == 3
    report = run(half.model_copy(update={"sharding": "ddp"}))
    assert report.resumed_at == 3 < report.steps
    for other in ("parts", "half"):
        assert losses(tmp_path / other) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        assert_close_but_for_noise(tmp_path / "one", tmp_path / other)


def stopped_after(steps: int, config: FinetuneConfig, table: str) -> Any:
    """The settings of a run that stops after some steps with a checkpoint, as if it had been killed."""
    settings = run_settings(config, TableRef.parse(table), None)
    return replace(settings, train=replace(settings.train, stop_after_steps=steps))


def assert_close_but_for_noise(a: Path, b: Path) -> None:
    """Weights must agree to 1e-5, except where the gradient is 0 up to rounding: the key biases of attention."""
    first, second = weights(a), weights(b)
    for name, tensor in first.items():
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("rows", "batch", "workers"),
    [(34, 32, 3), (107, 32, 2), (33, 32, 2)],
)
def test_unequal_shares_and_a_short_last_batch_end(
    towers: str, tmp_path: Path, rows: int, batch: int, workers: int
) -> None:
    """107 = 3 · 32 + 11. Of 34 rows, two remain for three processes; a single remaining row is left out."""
    uneven = str(latent_table(tmp_path / "db" / "uneven", towers, rows))
    shared = {"epochs": 2, "batch_size": batch, "validation_fraction": 0.0}
    alone = run(heads_config(uneven, towers, tmp_path / "alone", **shared))
    many = run(heads_config(uneven, towers, tmp_path / "many", workers=workers, **shared))
    assert many.steps == alone.steps == 2 * (rows // batch + (rows % batch > 1))
    # A batch of two has a loss near 5e-4, from logits that differ by about 14: one float32 rounding there is 1e-6.
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "alone"), rel=1e-4, abs=1e-6)


@pytest.mark.heavy
def test_one_validating_row_and_two_workers_end(table: str, towers: str, tmp_path: Path) -> None:
    """The second process has nothing to validate."""
    report = run(heads_config(table, towers, tmp_path / "out", epochs=1, workers=2, validation_where="n = 5"))
    assert report.validation_rows == 1
    assert report.best["R@1"] == 1.0


# Resumed runs


def test_another_config_is_refused_and_the_same_does_nothing(table: str, towers: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(heads_config(table, towers, out, epochs=2))
    before = (Path(f"{out}.run") / "latest.pt").stat().st_mtime_ns
    seen: list[dict[str, Any]] = []
    again = run(heads_config(table, towers, out, epochs=2), seen.append)
    assert seen == [], "no step was done"
    assert (Path(f"{out}.run") / "latest.pt").stat().st_mtime_ns == before
    aside = {"resumed_at", "seconds"}
    assert {k: v for k, v in again.to_dict().items() if k not in aside} == {
        k: v for k, v in first.to_dict().items() if k not in aside
    }
    with pytest.raises(ValueError) as caught:
        run(heads_config(table, towers, out, epochs=3, batch_size=16, seed=1))
    for entry in ("epochs: was 2, now 3", "batch_size: was 32, now 16", "train.model.seed: was 0, now 1"):
        assert entry in str(caught.value)
    assert "learning_rate" not in str(caught.value)


@pytest.mark.heavy
def test_how_a_run_is_written_down_is_no_other_run(table: str, towers: str, tmp_path: Path) -> None:
    first = run(heads_config(table, towers, tmp_path / "out", epochs=2))
    again = run(heads_config(table, towers, tmp_path / "out", epochs=2, checkpoint_every=1, log_every=5, workers=2))
    assert again.steps == first.steps


# Failures


@pytest.mark.heavy
def test_an_infinite_vector_is_named_again_and_again(towers: str, tmp_path: Path) -> None:
    """A run that hides the row, damages its checkpoint, or restarts from the beginning for ever would cost days."""
    bad = latent_table(tmp_path / "db" / "bad", towers, 60, bad_row=7)
    config = heads_config(str(bad), towers, tmp_path / "out", batch_size=8, validation_fraction=0.0, checkpoint_every=1)
    said = []
    for _ in range(2):
        with pytest.raises(TrainingDivergedError) as caught:
            run(config)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "r7" in json.loads(Path(f"{tmp_path}/out.run/diverged.json").read_text())["row_ids"]
    assert "r7" in said[0]
    state = torch.load(tmp_path / "out.run" / "latest.pt", weights_only=True)
    assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e18},
        {"learning_rate": 1e30, "checkpoint_every": 1},
    ],
)
@pytest.mark.heavy
def test_steps_that_are_too_long_leave_no_spoilt_checkpoint(
    table: str, towers: str, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """NaN weights rank every row first: they must become neither the best weights nor the last ones."""
    config = heads_config(table, towers, tmp_path / "out", warmup_steps=0, **changes)
    said = []
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match=r"rows of the batch: .*r\d+") as caught:
            run(config)
        said.append(str(caught.value))
    assert said[0] == said[1]
    for name in ("latest.pt", "best.pt"):
        state = torch.load(tmp_path / "out.run" / name, weights_only=True)
        model = state.get("model", state)
        assert all(bool(tensor.isfinite().all()) for tensor in model.values()), name
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": ["nce"]}, "loss 'nce': unknown; give one of infonce"),
        ({"loss": ["memory_bank"]}, "needs size"),
        ({"loss": ["top_k:k=many"]}, "not a int"),
        ({"train_image": "half"}, "give frozen, head"),
        ({"train_image": "frozen", "train_text": "frozen"}, "nothing trains|both towers are frozen"),
        ({"train_image": "last:99"}, "last:99, but it has"),
        ({"train_image": "last:1"}, "none of the 120 rows has .*image_uri"),
        ({"where": "n = 3", "validation_fraction": 0.0}, "1 rows; a contrastive loss needs 2"),
        ({"where": "n <"}, "where"),
        ({"where": "n > 500"}, "where 'n > 500': no row"),
        ({"group": "colour"}, "no such column"),
        ({"negatives": "/no/such/mined"}, "/no/such/mined"),
        ({"loss": ["distill_l2"], "teacher": "/no/such/teacher"}, "/no/such/teacher"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(
    table: str, towers: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Exception, match=said) as caught:
        run(heads_config(table, towers, tmp_path / "out", **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.run").exists(), "what is refused leaves nothing"


# Losses, teachers, negatives


@pytest.mark.heavy
def test_losses_by_flags_with_a_teacher_of_another_dimension(table: str, towers: str, tmp_path: Path) -> None:
    loss = ["infonce", "memory_bank:size=64,warmup_steps=2", "distill_l2:weight=0.5"]
    run(heads_config(table, towers, tmp_path / "plain", epochs=2))
    report = run(heads_config(table, towers, tmp_path / "out", epochs=2, loss=loss, teacher=table))
    assert report.table_versions.keys() == {"samples", "teacher"}
    state = torch.load(tmp_path / "out.run" / "latest.pt", weights_only=True)
    assert {name for name in state["model"] if "teacher" in name or "project" in name}, "8 dimensions meet 32"
    assert state["loss"]["banks.1.filled"] == 64
    assert losses(tmp_path / "out") != losses(tmp_path / "plain")
    assert weights(tmp_path / "out").keys() == weights(tmp_path / "plain").keys(), "the projection is not kept"


@pytest.mark.heavy
def test_a_teacher_that_is_an_encoder_embeds_the_corpus(clip: Path, tmp_path: Path) -> None:
    corpus = shapes_corpus(tmp_path / "corpus", 24)
    teacher = tiny_models.tiny_siglip(tmp_path / "siglip")
    changes = {"loss": ["infonce", "distill_l2"], "teacher": str(teacher), "columns": {"key": "id"}}
    config = heads_config(str(corpus), str(clip), tmp_path / "out", epochs=1, batch_size=8, **changes)
    assert run(config).steps > 0
    assert (tmp_path / "out.run" / "teacher.lance").is_dir()
    again = run(config)
    assert again.resumed_at == again.steps


def test_a_teacher_without_some_rows_and_an_encoder_for_a_table_are_refused(
    table: str, towers: str, clip: Path, tmp_path: Path
) -> None:
    short = str(latent_table(tmp_path / "db" / "short", towers, 50))
    with pytest.raises(ValueError, match=r"has no row for \d+ of \d+ rows .*'r\d+'"):
        run(heads_config(table, towers, tmp_path / "a", loss=["distill_l2"], teacher=short))
    with pytest.raises(ValueError, match="an encoder needs the corpus"):
        run(heads_config(table, towers, tmp_path / "b", loss=["distill_l2"], teacher=str(clip)))


def mined_table(path: Path, spec: str, pairs: list[tuple[str, str]]) -> str:
    """A table as `isthmus mine` writes it, with given anchors and negatives."""
    from pipelines.train.mining.mined import MINED_SCHEMA, mined_schema, publish, stage

    ref = TableRef.parse(str(path))
    n = len(pairs)
    rows = pa.table(
        [
            [a for a, _ in pairs],
            ["image_to_text"] * n,
            [b for _, b in pairs],
            ["i" + b[1:] for _, b in pairs],
            np.zeros(n, np.float32),
            np.ones(n, np.float32),
            np.zeros(n, np.int32),
        ],
        schema=MINED_SCHEMA,
    )
    publish(ref, mined_schema(ref, 1, describe(spec).card, {}), stage(ref, rows))
    return str(ref)


def test_mined_negatives_stand_beside_their_anchors(table: str, towers: str, tmp_path: Path) -> None:
    from pipelines.train.finetuning.planning import plan_work

    partner = {i: (i * 7 + 3) % 120 for i in range(120)}
    mined = mined_table(tmp_path / "db" / "mined", towers, [(f"r{a}", f"r{b}") for a, b in partner.items()])
    config = heads_config(table, towers, tmp_path / "out", epochs=2, negatives=mined)
    work = plan_work(run_settings(config, TableRef.parse(table), None))
    training = set(work.train.tolist())
    for step in range(work.plan.steps):
        batch = work.train[work.plan.batch(step)].tolist()
        assert len(batch) == len(set(batch)) <= 32
        for anchor in batch[: work.plan.anchors]:
            assert partner[anchor] in batch or partner[anchor] not in training
    plain = heads_config(table, towers, tmp_path / "plain", epochs=2)
    without = plan_work(run_settings(plain, TableRef.parse(table), None))
    assert work.plan.steps > without.plan.steps, "half a batch is anchors"


@pytest.mark.heavy
def test_a_model_goes_on_with_what_itself_mined_and_a_teacher_of_another_dimension(
    table: str, towers: str, tmp_path: Path
) -> None:
    from pipelines.train.finetuning.projecting import project_table
    from pipelines.train.mining.mine import mine
    from pipelines.train.mining.mining_settings import MiningSettings

    first = run(heads_config(table, towers, tmp_path / "first", epochs=3))
    ref = TableRef.parse(str(tmp_path / "db" / "projected"))
    project_table(TableRef.parse(table), str(tmp_path / "first"), ref)
    mined = TableRef.parse(str(tmp_path / "db" / "mined"))
    mine(ref, mined, MiningSettings(margin=0.0))
    changes = {"loss": ["infonce", "distill_l2:weight=0.5", "distill_kl:weight=0.2,relation=text"], "teacher": table}
    start = str(tmp_path / "first")
    second = run(heads_config(table, start, tmp_path / "second", negatives=str(mined), **changes))
    assert second.best["R@10"] >= first.best["R@10"]
    assert second.table_versions.keys() == {"samples", "teacher", "negatives"}


def test_negatives_of_another_encoder_are_refused(table: str, towers: str, clip: Path, tmp_path: Path) -> None:
    from pipelines.tables.provenance import EncoderMismatchError

    mined = mined_table(tmp_path / "db" / "mined", str(clip), [("r1", "r2")])
    with pytest.raises(EncoderMismatchError, match="mined with"):
        run(heads_config(table, towers, tmp_path / "out", negatives=mined))
    elsewhere = mined_table(tmp_path / "db" / "elsewhere", towers, [("x1", "x2")])
    with pytest.raises(ValueError, match="none of its rows trains"):
        run(heads_config(table, towers, tmp_path / "out", negatives=elsewhere))


@pytest.mark.heavy
def test_mining_anew_resumes_as_a_whole(towers: str, tmp_path: Path) -> None:
    """Two stages. The finished command, rerun, trains no step and reports the same; another run has its own tables."""
    table = str(latent_table(tmp_path / "db" / "t", towers, 120))
    shared = {"epochs": 2, "remine_every": 1}
    first = run(heads_config(table, towers, tmp_path / "one", **shared))
    assert first.table_versions.keys() == {"samples", "negatives"}
    before = weights(tmp_path / "one")
    seen: list[dict[str, Any]] = []
    again = run(heads_config(table, towers, tmp_path / "one", **shared), seen.append)
    assert seen == []
    assert again.best == first.best
    run(heads_config(table, towers, tmp_path / "two", seed=5, **shared))
    run(heads_config(table, towers, tmp_path / "one", **shared), seen.append)
    assert seen == []
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(tmp_path / "one").items())


# Ways to train


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"loss": ["siglip"]}, marks=pytest.mark.heavy),
        {"train_image": "lora:2", "train_text": "lora:2"},
        pytest.param({"train_image": "last:1", "train_text": "last:1"}, marks=pytest.mark.heavy),
        pytest.param({"gradient_checkpointing": True}, marks=pytest.mark.heavy),
        pytest.param({"precision": "bf16"}, marks=pytest.mark.heavy),
        pytest.param({"precision": "bf16", "chunk_size": 5, "loss": ["memory_bank:size=32"]}, marks=pytest.mark.heavy),
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_each_way_trains_and_what_it_writes_is_an_encoder(
    pictures: str, clip: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    # Without validation the last weights are kept, not the best; a tiny model's best weights may be its first.
    report = run(whole_config(pictures, clip, out, batch_size=20, validation_fraction=0.0, **changes))
    assert report.steps == 2 or report.steps == math.ceil(report.train_rows / 20)
    assert report.loss is not None
    assert math.isfinite(report.loss)
    before, after = weights(clip), weights(out)
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert any(name.startswith("vision_model") for name in changed)
    assert any(name.startswith("text_model") for name in changed)
    assert not any("lora" in name for name in after)
    assert CLIPModel.from_pretrained(out)
    vectors = load(str(out)).encode_texts(["red circle"]).vectors
    assert np.isfinite(vectors).all()
    assert describe(str(out)).card.fingerprint != describe(str(clip)).card.fingerprint


@pytest.mark.heavy
def test_isthmus_embed_takes_what_training_made(pictures: str, clip: Path, tmp_path: Path) -> None:
    import jobs.embed

    run(whole_config(pictures, clip, tmp_path / "out"))
    corpus = shapes_corpus(tmp_path / "corpus", 12)
    given = {"corpus": str(corpus), "table": str(tmp_path / "db" / "t"), "columns": {"key": "id"}}
    assert jobs.embed.run(jobs.embed.EmbedConfig(encoder=str(tmp_path / "out"), **given)).written == 12


@pytest.mark.heavy
def test_it_learns_what_pictures_show(clip: Path, tmp_path: Path) -> None:
    """Captions name colour and shape; the held-out pictures have other sizes."""
    corpus = shapes_corpus(tmp_path / "corpus", 120)
    report = run(
        whole_config(
            str(corpus), clip, tmp_path / "out", epochs=12, batch_size=24, metric="R@1", columns={"key": "id"},
            augment="none", learning_rate=3e-3, warmup_steps=5, validation_fraction=0.25, evaluate_every=3,
        )
    )  # fmt: skip
    assert latest_step(tmp_path / "out.run") == report.steps
    assert report.best["R@1"] > report.start["R@1"] + 0.3
