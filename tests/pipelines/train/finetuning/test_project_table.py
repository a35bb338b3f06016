"""A projected table equals the table that embedding the corpus would have given."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest
import tiny_models
import torch
from corpora import picture

from encoders.dual import DualTower
from encoders.images import prepare
from encoders.protocol import EncoderOptions
from encoders.registry import describe, load
from encoders.training.models import open_model
from encoders.training.tuning import Tuning, apply_tuning
from pipelines.store.storage import TableRef
from pipelines.tables.provenance import Provenance
from pipelines.train.finetuning.projecting import project_table

N = 40
WORDS = [f"a {w} thing {'x' * (i % 5)}" for i, w in enumerate(["red", "blue", "wet", "old"] * 10)]


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    return str(tiny_models.tiny_vit(folder / "v")), str(tiny_models.tiny_bert(folder / "b"))


def pixels(spec: str) -> list[np.ndarray]:
    transform = describe(spec).image_transform
    assert transform is not None
    return [prepare(picture(i), transform, "exact") for i in range(N)]


def features(towers: tuple[str, str], path: Path) -> TableRef:
    """Every seventh row has no caption, every ninth no picture."""
    spec = "+".join(towers)
    image = load(towers[0], EncoderOptions()).encode_images(pixels(towers[0]))
    text = load(towers[1], EncoderOptions()).encode_texts(WORDS).vectors
    rows = pa.table(
        {
            "row_id": [f"r{i}" for i in range(N)],
            "caption": [None if i % 7 == 0 else WORDS[i] for i in range(N)],
            "year": pa.array(range(N), pa.int16()),
            "image_vector": pa.array(
                [None if i % 9 == 0 else v for i, v in enumerate(image)], pa.list_(pa.float32(), 32)
            ),
            "text_vector": pa.array(
                [None if i % 7 == 0 else v for i, v in enumerate(text)], pa.list_(pa.float32(), 32)
            ),
        }
    )
    provenance = Provenance(encoder=describe(spec).card, modalities=("image", "text"), settings={"corpus": "c"})
    ref = TableRef.parse(str(path))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri, max_rows_per_file=11)
    return ref


def dual(towers: tuple[str, str], path: Path, seed: int = 0, **options: object) -> str:
    torch.manual_seed(seed)
    return str(DualTower.from_backbones(*towers, dim=6, **{"normalise": True, **options}).save(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_it_equals_embedding_the_corpus(towers: tuple[str, str], head: str, tmp_path: Path) -> None:
    """A promoted table with vectors slightly unlike its encoder's own answers every query slightly wrong."""
    ref, out = features(towers, tmp_path / "f"), TableRef.parse(str(tmp_path / "o"))
    lance.dataset(ref.uri).delete("year = 12")
    encoder = dual(towers, tmp_path / "dual", head=head, dropout=0.3)
    project_table(ref, encoder, out)
    found = lance.dataset(out.uri).to_table()
    kept = [i for i in range(N) if i != 12]
    assert found["row_id"].to_pylist() == [f"r{i}" for i in kept]
    assert found["year"].to_pylist() == kept
    assert found.schema.field("year").type == pa.int16()
    own = load(encoder, EncoderOptions(preprocessing="exact"))
    expected = {"image_vector": own.encode_images(pixels(encoder)), "text_vector": own.encode_texts(WORDS).vectors}
    for (name, vectors), missing in zip(expected.items(), (9, 7), strict=True):
        for i, vector in zip(kept, found[name].to_pylist(), strict=True):
            assert (vector is None) == (i % missing == 0)
            if vector is not None:
                np.testing.assert_allclose(vector, vectors[i], atol=1e-4)
    Provenance.from_schema(lance.dataset(out.uri).schema).check_same_encoder(own.card, "out")


def test_an_equal_table_is_kept_and_another_is_made_anew(towers: tuple[str, str], tmp_path: Path) -> None:
    ref, out = features(towers, tmp_path / "f"), TableRef.parse(str(tmp_path / "o"))
    first = dual(towers, tmp_path / "one")
    version = project_table(ref, first, out)
    assert project_table(ref, first, out) == version
    assert project_table(ref, dual(towers, tmp_path / "two", seed=1), out) > version
    version = project_table(ref, first, out)
    lance.dataset(ref.uri).delete("year = 3")
    assert project_table(ref, first, out) > version
    assert lance.dataset(out.uri).count_rows() == N - 1


def test_features_that_the_heads_do_not_take(towers: tuple[str, str], tmp_path: Path) -> None:
    """Vectors of the right length from the wrong model pass through any head without an error."""
    ref, out = features(towers, tmp_path / "f"), TableRef.parse(str(tmp_path / "o"))
    stranger = str(tiny_models.tiny_dinov2(tmp_path / "d"))
    with pytest.raises(ValueError, match=r"its image vectors are not the features that .*embed the corpus itself"):
        project_table(ref, dual((stranger, towers[1]), tmp_path / "dual"), out)
    tuned = open_model(dual(towers, tmp_path / "tuned"))
    apply_tuning(tuned, "text", Tuning.parse("last:1"))
    with pytest.raises(ValueError, match=r"its text vectors are not .*; its backbone was tuned"):
        project_table(ref, str(tuned.save(tmp_path / "tuned")), out)
    clip = str(tiny_models.tiny_clip(tmp_path / "clip"))
    with pytest.raises(ValueError, match="are not the features"):
        project_table(ref, clip, out)
    with pytest.raises(ValueError, match="was not made from features"):
        project_table(ref, dual(towers, tmp_path / "dual"), ref)
    assert not Path(out.uri).exists()
