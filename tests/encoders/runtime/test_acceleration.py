"""OpenVINO is faster, but must give the same vectors as torch, or a table would hold two kinds of vectors."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest
import tiny_models
import torch
from corpora import pairs, picture, write_parquet

import encoders.runtime.acceleration
from encoders.dual import DualTower
from encoders.images import prepare
from encoders.protocol import Encoder, EncoderOptions
from encoders.registry import describe, load
from encoders.runtime.acceleration import ChosenForward
from jobs.embed import EmbedConfig, run
from pipelines.tables.provenance import Provenance

TINY: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_models.tiny_clip,
    "siglip": tiny_models.tiny_siglip,
    "chinese_clip": tiny_models.tiny_chinese_clip,
    "altclip": tiny_models.tiny_altclip,
    "metaclip2": tiny_models.tiny_metaclip2,
    "bert": tiny_models.tiny_bert,
    "modernbert": tiny_models.tiny_modernbert,
    "vit": tiny_models.tiny_vit,
    "resnet": tiny_models.tiny_resnet,
    "dinov2": tiny_models.tiny_dinov2,
}
TEXTS = [
    "a dog",
    "",
    "一只狗 红色",
    "a",
    *("the quick brown fox jumps on a boat with a red car".rpartition(" ")[0][:n] for n in range(3, 40)),
    "red " * 60,
]


def pixels_for(spec: str, n: int) -> list[Any]:
    transform = describe(spec).image_transform
    assert transform is not None
    return [prepare(picture(i, size=(48 + i, 36)), transform) for i in range(n)]


def least_cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    assert a.shape == b.shape
    return float(np.einsum("nd,nd->n", a, b).min())


def assert_same_vectors(spec: str, wanted: Encoder, found: Encoder, least: float = 0.9999) -> None:
    """Batches of several sizes, single items included, with captions of any length, in any order."""
    if "image" in wanted.card.modalities:
        pixels = pixels_for(spec, 11)
        for part in (pixels, pixels[:1], pixels[3:5], pixels[4:9]):
            assert least_cosine(found.encode_images(part), wanted.encode_images(part)) >= least
    if "text" in wanted.card.modalities:
        for texts in (TEXTS, TEXTS[:1], TEXTS[-1:], TEXTS[1:3], TEXTS[::-1]):
            assert least_cosine(found.encode_texts(texts).vectors, wanted.encode_texts(texts).vectors) >= least


def openvino_towers(caplog: pytest.LogCaptureFixture, precision: str = "fp32") -> int:
    """How many towers switched to OpenVINO since the log was cleared."""
    return sum(record.getMessage().startswith(f"OpenVINO, {precision}:") for record in caplog.records)


@pytest.fixture(autouse=True)
def _hear(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "encoders")


@pytest.mark.parametrize("name", TINY)
def test_each_family_has_the_same_vectors_by_either_backend(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = str(TINY[name](tmp_path / name))
    wanted = load(spec, EncoderOptions(backend="torch", batch_size=4))
    assert openvino_towers(caplog) == 0
    found = load(spec, EncoderOptions(backend="openvino", batch_size=4))
    assert openvino_towers(caplog) == len(wanted.card.towers)
    assert_same_vectors(spec, wanted, found)


@pytest.mark.parametrize(
    "spec", ["efficientnet-lite0", pytest.param("efficientnet-lite0-stages+minilm", marks=pytest.mark.slow)]
)
def test_pretrained_towers_and_pairs_have_the_same_vectors(spec: str, caplog: pytest.LogCaptureFixture) -> None:
    found = load(spec, EncoderOptions(backend="openvino"))
    assert openvino_towers(caplog) == len(found.card.towers)
    assert_same_vectors(spec, load(spec, EncoderOptions(backend="torch")), found)


@pytest.mark.parametrize("text", [pytest.param("use-multilingual", marks=pytest.mark.slow), "bert"])
def test_a_dual_tower_has_the_same_vectors(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backbone = text if text == "use-multilingual" else str(tiny_models.tiny_bert(tmp_path / "bert"))
    model = DualTower.from_backbones("efficientnet-lite0-stages", backbone, dim=16, head="mlp", normalise=True)
    spec = str(model.save(tmp_path / "dual"))
    found = load(spec, EncoderOptions(backend="openvino"))
    assert openvino_towers(caplog) == (1 if text == "use-multilingual" else 2)
    assert_same_vectors(spec, load(spec, EncoderOptions(backend="torch")), found)


def test_pictures_of_varying_size_stay_with_torch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = str(tiny_models.tiny_siglip2(tmp_path / "naflex"))
    found = load(spec, EncoderOptions(backend="openvino"))
    assert "pictures of varying size" in caplog.text
    assert openvino_towers(caplog) == 1
    assert_same_vectors(spec, load(spec, EncoderOptions(backend="torch")), found)


@pytest.mark.parametrize("spec", ["minilm", "vit", "clip"])
def test_int8_keeps_a_cosine_of_99_hundredths(spec: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = str(TINY[spec](tmp_path / spec)) if spec in TINY else spec
    wanted, found = load(spec, EncoderOptions(backend="torch")), load(spec, EncoderOptions(precision="int8"))
    assert openvino_towers(caplog, "int8") == len(found.card.towers)
    assert_same_vectors(spec, wanted, found, 0.99)
    texts = "text" in wanted.card.modalities
    pair = [e.encode_texts(TEXTS).vectors if texts else e.encode_images(pixels_for(spec, 3)) for e in (wanted, found)]
    assert not np.allclose(*pair, atol=1e-6)  # it really is rounded


def test_int8_of_a_tower_without_linear_layers_is_fp32(caplog: pytest.LogCaptureFixture) -> None:
    found = load("efficientnet-lite0", EncoderOptions(precision="int8"))
    assert "no linear layers" in caplog.text
    assert openvino_towers(caplog) == 1
    assert_same_vectors("efficientnet-lite0", load("efficientnet-lite0", EncoderOptions(backend="torch")), found)


def test_auto_goes_over_in_the_middle_of_its_work_and_the_vectors_stay(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders.runtime.acceleration, "_WORTH_S", 0.0)
    wanted, found = load("minilm", EncoderOptions(backend="torch")), load("minilm", EncoderOptions(batch_size=8))
    for text in TEXTS[:4]:  # single queries come one at a time, and start no trial
        found.encode_texts([text])
    assert not caplog.records
    vectors = found.encode_texts(TEXTS * 2).vectors
    assert len(caplog.records) == 1  # one trial, whichever backend won
    assert least_cosine(vectors, wanted.encode_texts(TEXTS * 2).vectors) >= 0.9999


def test_a_short_run_pays_for_no_trial(caplog: pytest.LogCaptureFixture) -> None:
    load("minilm").encode_texts(TEXTS[:8])
    assert not caplog.records


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda batch: batch["x"] + float(batch["x"].abs().sum()), "strays from torch"),
        (lambda batch: batch["x"] * torch.linalg.eigvalsh(batch["x"] @ batch["x"].T).sum(), "does not take this tower"),
    ],
    ids=["a constant that depends on the batch", "an operation that OpenVINO does not know"],
)
def test_what_does_not_convert_stays_with_torch(forward: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    chosen = ChosenForward(forward, forward, precision="fp32", threads=1, asked=True)
    inputs = {"x": torch.randn(6, 5, generator=torch.Generator().manual_seed(0))}
    for _ in range(2):
        torch.testing.assert_close(chosen(inputs), forward(inputs))
    assert len(caplog.records) == 1
    assert said in caplog.text
    assert "\n" not in caplog.records[0].getMessage()


def test_without_openvino_torch_computes_unless_openvino_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else there(name, *a))
    assert load("minilm").encode_texts(["a dog"]).vectors.shape == (1, 384)
    assert "isthmus[cpu]" in caplog.text
    for options in (EncoderOptions(backend="openvino"), EncoderOptions(precision="int8")):
        for step in (describe, load):
            with pytest.raises(ModuleNotFoundError, match=r"isthmus\[cpu\]"):
                step("minilm", options)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "int8", "backend": "torch"},
        {"precision": "int8", "device": "cuda"},
        {"backend": "openvino", "device": "cuda"},
    ],
)
def test_contradictions_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="drop one of the two"):
        EncoderOptions(**options)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.slow
def test_a_job_writes_the_same_table_by_either_backend(tmp_path: Path) -> None:
    spec = str(tiny_models.tiny_clip(tmp_path / "clip"))
    corpus = write_parquet(tmp_path / "c.parquet", pairs(60), row_group_rows=30)

    def embedded(name: str, **more: Any) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
        table = tmp_path / "db" / name
        job = {"corpus": str(corpus), "table": str(table), "encoder": spec, "columns": {"key": "id"}, "block_rows": 30}
        assert run(EmbedConfig(**{**job, "engine": "process", **more})).written == 60
        rows = lance.dataset(f"{table}.lance").to_table().sort_by("row_id")
        vectors = {c: np.stack(rows[c].to_numpy(zero_copy_only=False)) for c in ("image_vector", "text_vector")}
        return vectors, Provenance.from_schema(rows.schema).settings

    wanted, _ = embedded("torch", backend="torch")
    found, settings = embedded("openvino", backend="openvino")
    on_ray, _ = embedded("actors", backend="openvino", engine="ray", actors=2)
    rounded, how = embedded("int8", precision="int8")
    assert settings["backend"] == "openvino"
    assert "openvino" in settings["libraries"]
    assert how["precision"] == "int8"
    for column, vectors in wanted.items():
        assert least_cosine(found[column], vectors) >= 0.9999
        assert least_cosine(on_ray[column], vectors) >= 0.9999
        assert least_cosine(rounded[column], vectors) >= 0.99
        assert not np.array_equal(rounded[column], vectors)
