"""A cached graph must give the vectors of the model that it was made from, or not be used."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from corpora import picture
from numpy.typing import NDArray

import encoders.runtime.acceleration
from encoders.images import prepare
from encoders.protocol import Encoder, EncoderOptions
from encoders.registry import describe, load
from encoders.runtime import kept_graphs

TINY: dict[str, Callable[[Path], Path]] = {
    "clip": tiny_models.tiny_clip,
    "siglip": tiny_models.tiny_siglip,
    "vit": tiny_models.tiny_vit,
    "bert": tiny_models.tiny_bert,
}
TEXTS = ["a dog", "a small red boat", "一只狗"]
OPENVINO = EncoderOptions(backend="openvino")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(kept_graphs.VARIABLE, str(folder))
    return folder / "graphs"


def vectors(encoder: Encoder, spec: str) -> list[NDArray[np.float32]]:
    found = []
    if "image" in encoder.card.modalities:
        transform = describe(spec).image_transform
        assert transform is not None
        found.append(encoder.encode_images([prepare(picture(i), transform) for i in range(5)]))
    if "text" in encoder.card.modalities:
        found.append(encoder.encode_texts(TEXTS).vectors)
    return found


@pytest.mark.parametrize("name", TINY)
def test_the_next_run_begins_with_the_graph_and_gives_the_same_vectors(name: str, tmp_path: Path, cache: Path) -> None:
    spec = str(TINY[name](tmp_path / name))
    wanted = vectors(load(spec, EncoderOptions(backend="torch")), spec)
    assert not cache.exists()
    first = vectors(load(spec, OPENVINO), spec)
    assert len(list(cache.iterdir())) == len(wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders.runtime.acceleration, "converted", lambda *a: pytest.fail("it was kept"))
        second = vectors(load(spec, OPENVINO), spec)
    for a, b, c in zip(wanted, first, second, strict=True):
        np.testing.assert_allclose(b, c, atol=1e-6)
        assert float(np.einsum("nd,nd->n", a, c).min()) > 0.9999


def test_pictures_then_need_nothing_of_transformers(tmp_path: Path, cache: Path) -> None:
    spec = str(tiny_models.tiny_clip(tmp_path / "clip"))
    load(spec, OPENVINO)
    code = (
        "import sys; import numpy as np; from encoders.registry import load, preload; "
        "from encoders.protocol import EncoderOptions; "
        f"preload({spec!r}); encoder = load({spec!r}, EncoderOptions(backend='openvino')); "
        f"size = {describe(spec).image_transform.fixed_size}; "  # type: ignore[union-attr]
        "encoder.encode_images([np.zeros((*size, 3), np.uint8)] * 3); "
        "pictures = 'transformers' in sys.modules; encoder.encode_texts(['a dog']); print(pictures)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_other_weights_and_other_precisions_have_graphs_of_their_own(tmp_path: Path, cache: Path) -> None:
    one, other = (str(tiny_models.tiny_vit(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "other")))
    for spec in (one, other):
        load(spec, OPENVINO)
    assert len(list(cache.iterdir())) == 2
    wanted = vectors(load(other, EncoderOptions(backend="torch")), other)
    np.testing.assert_allclose(vectors(load(other, OPENVINO), other)[0], wanted[0], atol=1e-4)
    load(one, EncoderOptions(precision="int8"))
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", ["cut", "other weights", "rubbish", "no weights", "no about"])
def test_a_damaged_graph_is_made_anew(damage: str, tmp_path: Path, cache: Path) -> None:
    spec = str(tiny_models.tiny_vit(tmp_path / "vit"))
    wanted = vectors(load(spec, OPENVINO), spec)
    (folder,) = cache.iterdir()
    weights, graph = folder / "graph.bin", folder / "graph.xml"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "other weights":
        weights.write_bytes(bytes(weights.stat().st_size))
    elif damage == "rubbish":
        graph.write_bytes(b"x" * graph.stat().st_size)
    else:
        (weights if damage == "no weights" else folder / "about.json").unlink()
    np.testing.assert_allclose(vectors(load(spec, OPENVINO), spec)[0], wanted[0], atol=1e-6)
    (again,) = cache.iterdir()
    assert kept_graphs.KeptGraph(again).is_there(faster=False)


def test_auto_takes_no_graph_that_was_slower_than_torch(tmp_path: Path, cache: Path) -> None:
    spec = str(tiny_models.tiny_vit(tmp_path / "vit"))
    load(spec, OPENVINO)
    (folder,) = cache.iterdir()
    about = folder / "about.json"
    for faster in (True, False):
        text = about.read_text()
        about.write_text(text.replace('"faster": true', '"faster": @').replace('"faster": false', '"faster": @'))
        about.write_text(about.read_text().replace("@", str(faster).lower()))
        tower = load(spec)._image  # type: ignore[attr-defined]
        assert encoders.runtime.acceleration.is_settled(tower._chosen) is faster


@pytest.mark.parametrize("where", ["", "a file"])
def test_where_nothing_can_be_kept_all_goes_on(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "encoders")
    (tmp_path / "a file").touch()
    monkeypatch.setenv(kept_graphs.VARIABLE, str(tmp_path / where) if where else "")
    spec = str(tiny_models.tiny_vit(tmp_path / "vit"))
    assert vectors(load(spec, OPENVINO), spec)[0].shape[0] == 5
    assert ("is not kept" in caplog.text) is bool(where)


def test_what_was_not_used_for_long_makes_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [str(tiny_models.tiny_vit(tmp_path / str(seed), seed=seed)) for seed in range(3)]
    for spec in specs:
        load(spec, OPENVINO)
        if spec == specs[1]:
            vectors(load(specs[0], OPENVINO), specs[0])
            size = sum(f.stat().st_size for f in next(cache.iterdir()).iterdir())
            monkeypatch.setattr(kept_graphs, "_MOST_BYTES", int(1.5 * size))
    towers = [describe(spec).card.towers[0] for spec in specs]
    assert [kept_graphs.any_of(tower) for tower in towers] == [True, False, True]
