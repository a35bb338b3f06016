"""The command line is a contract: what it refuses, what it prints on which stream, and how a job ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import isthmus
from corpora import pairs, write_parquet

ENCODER = ["--encoder", "fake"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(tmp_path_factory.mktemp("corpus") / "c.parquet", pairs(60))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    made = tmp_path_factory.mktemp("tables") / "db" / "t"
    done = isthmus("embed", corpus, "--table", made, *ENCODER, "--columns.key", "id", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["rows_in"], report["written"], report["rejected"]) == (60, 60, {})
    return made


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.argv=['isthmus','--help']\n"
        "from jobs.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch','ray','lance','lancedb','transformers','pyarrow','numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("embed", "finetune", "mine", "evaluate", "promote", "corpus", "index", "search", "serve", "info"):
        assert command in done.stdout


def test_a_search_prints_one_json_object(table: Path, tmp_path: Path) -> None:
    done = isthmus(
        "search", table, "red cat", "-k", 3, "--where", "year >= 2000", "--html", tmp_path / "p.html", "--json"
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["hits"]) == 3
    assert all({"row_id", "score", "caption", "year"} <= set(hit) and hit["year"] >= 2000 for hit in found["hits"])
    assert (tmp_path / "p.html").stat().st_size > 3_000


@pytest.mark.parametrize("query", [["--full-text", "red cat"], ["--like", "00007"]], ids=["full text", "row"])
def test_a_search_without_a_model_imports_no_torch(query: list[str], table: Path) -> None:
    """Torch alone would double the time of a search from the command line, and Ray would double it again."""
    assert isthmus("index", table).returncode == 0
    code = (
        f"import sys; sys.argv = ['isthmus', 'search', {str(table)!r}, *{query!r}, '--json']\n"
        "from jobs.cli import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'lancedb', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["hits"]


def test_a_row_finds_its_neighbours_without_a_model(table: Path) -> None:
    done = isthmus("search", table, "--like", "00007", "--columns", "caption,year", "--json")
    hits = json.loads(done.stdout)["hits"]
    assert len(hits) == 10
    assert "00007" not in [hit["row_id"] for hit in hits]
    assert list(hits[0]) == ["row_id", "score", "caption", "year"]


def test_info_and_rejects_are_json_too(table: Path) -> None:
    info = json.loads(isthmus("info", table, "--json").stdout)
    assert (info["rows"], info["encoder"]["name"]) == (60, "fake")
    assert json.loads(isthmus("rejects", table, "--json").stdout) == {"by_reason": {}, "rows": [], "page": None}


def test_a_config_file_gives_the_options_and_flags_win(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("encoder: fake\ntable: db/a\ncolumns: {key: id}\n")
    done = isthmus("embed", corpus, "--config", "job.yaml", "--table", "db/b", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["table"].endswith("db/b")


REFUSED = {
    "an unknown flag": (["embed", "C", "--table", "db/x", *ENCODER, "--bach-size", "3"], 2, "--bach-size"),
    "a value out of range": (["embed", "C", "--table", "db/x", *ENCODER, "--batch-size", "0"], 2, "batch_size"),
    "a GPU on the CPU": (
        ["embed", "C", "--table", "db/x", *ENCODER, "--device", "cpu", "--num-gpus", "1"],
        2,
        "drop one",
    ),
    "GPUs that are not there": (["embed", "C", "--table", "db/x", *ENCODER, "--num-gpus", "2"], 1, "has 0 GPUs"),
    "no query": (["search", "db/x", "--not-words", "red"], 2, "asks for nothing"),
    "no variety": (["search", "db/x", "words", "--diversity", "2"], 2, "diversity"),
    "no table": (["search", "db/x", "words"], 1, "not found"),
    "no table name": (["embed", "C", "--table", "s3://bucket", *ENCODER], 1, "FOLDER/NAME"),
    "no corpus": (["embed", "nosuch", "--table", "db/x", *ENCODER], 1, "nothing is there"),
    "no such column": (
        ["embed", "C", "--table", "db/x", *ENCODER, "--columns.key", "nope"],
        1,
        "columns are id, image",
    ),
    "no such role": (["embed", "C", "--table", "db/x", *ENCODER, "--columns.pixel", "a"], 1, "unknown role 'pixel'"),
    "no such encoder": (["embed", "C", "--table", "db/x", "--encoder", "nope"], 1, "neither a registered name"),
    "an unknown key in the YAML": (["embed", "C", "--config", "bad.yaml"], 2, "encodr"),
    "no YAML": (["embed", "C", "--config", "nosuch.yaml"], 1, "nosuch.yaml"),
    "a corrupt footer": (
        ["embed", "bad.parquet", "--table", "db/x", *ENCODER],
        1,
        "bad.parquet is not a whole Parquet",
    ),
    "an empty corpus": (["embed", "empty.parquet", "--table", "db/x", *ENCODER], 1, "holds no rows"),
    "no safetensors": (["embed", "C", "--table", "db/x", "--encoder", "./model"], 1, "safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_before_anything_is_made(case: str, corpus: Path, tmp_path: Path) -> None:
    arguments, code, words = REFUSED[case]
    (tmp_path / "bad.yaml").write_text("encodr: fake\n")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    write_parquet(tmp_path / "empty.parquet", [])
    done = isthmus(*[corpus if a == "C" else a for a in arguments], cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    said = " ".join(done.stderr.split())
    assert words in said, said
    assert "Traceback" not in said
    assert not (tmp_path / "db").exists(), "nothing is made before the job is known to be possible"


@pytest.mark.parametrize(
    "where", ["caption = 'it's'", "year > 2000; DROP TABLE t", "nosuch = 1", "year > 1 -- x", "year", "sleep(1)", ""]
)
def test_a_filter_that_is_none_is_refused(where: str, table: Path) -> None:
    before = json.loads(isthmus("info", table, "--json").stdout)["version"]
    done = isthmus("search", table, "--like", "00001", "--where", where)
    assert done.returncode == 1
    assert "where" in done.stderr
    assert "columns are row_id" in done.stderr
    assert json.loads(isthmus("info", table, "--json").stdout)["version"] == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_leaves_the_table_as_it_was_and_says_so(corpus: Path, small_disk: Path, tmp_path: Path) -> None:
    table = small_disk / "db" / "t"
    first = isthmus("embed", corpus, "--table", table, *ENCODER, "--columns.key", "id")
    assert first.returncode == 0, first.stderr
    more = write_parquet(tmp_path / "more.parquet", pairs(3_000, seed=2))
    full = isthmus("embed", more, "--table", table, *ENCODER, "--commit-rows", 256, "--fragment-rows", 128)
    assert full.returncode == 1
    assert "no space left on the device" in full.stderr
    assert "Traceback" not in full.stderr
    info = json.loads(isthmus("info", table, "--json").stdout)
    assert info["rows"] >= 60, "what was committed stays"
