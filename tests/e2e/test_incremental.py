"""A corpus that changes: after each run the table equals that of a clean run over the corpus of that day."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from corpora import Pair, pairs, picture, write_folder, write_parquet
from engines import on_engine
from stored import stored_rejects

from jobs.embed import EmbedConfig
from jobs.embed import run as embed
from jobs.rejects import RetryConfig, retry
from jobs.sync import SyncConfig
from jobs.sync import run as sync
from pipelines.ingest.embed_report import EmbedReport
from pipelines.ingest.identity import picture_digest_of
from pipelines.ingest.sink.committing import TooManyRejectsError
from pipelines.store.faults import ONCE_VARIABLE, VARIABLE, InjectedFaultError
from pipelines.tables.provenance import METADATA_KEY

pytestmark = pytest.mark.usefixtures("engine")
_HEAVY = pytest.mark.heavy
_SMALL = {"block_rows": 16, "commit_rows": 48, "fragment_rows": 32, "columns": {"key": "id"}}


def embed_into(table: Path, corpus: Path, **options: object) -> EmbedReport:
    return embed(
        EmbedConfig(
            **{"corpus": str(corpus), "table": str(table), "encoder": "fake", **_SMALL, **on_engine(), **options}
        )
    )  # type: ignore[arg-type]


def sync_into(table: Path, corpus: Path, **options: object) -> EmbedReport:
    given = {
        "corpus": str(corpus),
        "table": str(table),
        "encoder": "fake",
        "max_delete_rate": 1,
        **_SMALL,
        **on_engine(),
        **options,
    }
    return sync(SyncConfig(**given))  # type: ignore[arg-type]


def rows_of(table: Path, version: int | None = None) -> pa.Table:
    return lance.dataset(f"{table}.lance", version=version).to_table().sort_by("row_id")


def rejects_of(table: Path) -> pa.Table | None:
    path = Path(f"{table}_rejects.lance")
    found = stored_rejects(str(table)) if path.exists() else None
    return found if found is not None and found.num_rows else None


def assert_mirrors(table: Path, corpus: Path, clean: Path, **options: object) -> None:
    """Assert that the table equals that of a clean run: rows, vectors, shards, rejects."""
    embed_into(clean, corpus, **options)
    found, wanted = rows_of(table), rows_of(clean)
    assert found["row_id"].equals(wanted["row_id"])
    for name in wanted.column_names:
        if name.endswith("_vector"):
            # Sums of floats depend on the rest of the batch.
            np.testing.assert_allclose(found[name].to_pylist(), wanted[name].to_pylist(), atol=1e-6)
        else:
            assert found[name].equals(wanted[name]), name
    assert (rejects_of(table) or wanted[:0]).to_pylist() == (rejects_of(clean) or wanted[:0]).to_pylist()
    shutil.rmtree(clean.parent)


def with_caption(items: Sequence[Pair], n: int, caption: str) -> list[Pair]:
    return [Pair(p.key, p.image, caption if i == n else p.caption, p.year) for i, p in enumerate(items)]


def test_a_changed_file_replaces_its_rows_and_no_version_holds_a_row_twice_or_lacks_it(tmp_path: Path) -> None:
    items, table, corpus = pairs(150), tmp_path / "db" / "t", tmp_path / "c"
    write_parquet(corpus / "a.parquet", items[:100])
    write_parquet(corpus / "b.parquet", items[100:])
    before = embed_into(table, corpus)
    write_parquet(corpus / "a.parquet", with_caption(items[:90], 3, "another caption"))
    report = embed_into(table, corpus)

    assert (report.rows_in, report.skipped, report.replaced, report.removed, report.files_changed) == (
        90,
        50,
        90,
        10,
        1,
    )
    kept = {p.key for p in items if p not in items[90:100]}
    for version in range(before.version, report.version + 1):
        ids = rows_of(table, version)["row_id"].to_pylist()
        assert len(ids) == len(set(ids))
        assert kept <= set(ids)
    assert rows_of(table)["caption"].to_pylist()[3] == "another caption"
    assert_mirrors(table, corpus, tmp_path / "clean" / "t")
    again = embed_into(table, corpus)
    assert (again.rows_in, again.skipped, again.commits) == (0, 140, 0)


def test_a_file_that_is_gone_stays_until_sync_and_leaves_a_tombstone(tmp_path: Path) -> None:
    items, table, corpus = pairs(60), tmp_path / "db" / "t", tmp_path / "c"
    items[2] = Pair(items[2].key, b"not a picture", items[2].caption, items[2].year)
    write_parquet(corpus / "a.parquet", items[:20])
    write_parquet(corpus / "b.parquet", items[20:])
    write_parquet(tmp_path / "other" / "o.parquet", [Pair("o1", picture(7), "other", 1)])
    embed_into(table, corpus)
    embed_into(table, tmp_path / "other")
    (corpus / "a.parquet").unlink()

    assert embed_into(table, corpus).removed == 0
    assert sync_into(table, corpus, keep_deleted=True).removed == 0
    with pytest.raises(ValueError, match=r"max_delete_rate 0\.1: 1 files are gone that gave 20 of the 61 rows"):
        sync_into(table, corpus, max_delete_rate=0.1)
    report = sync_into(table, corpus)
    assert (report.removed, report.files_gone, report.rows_in) == (19, 1, 0)
    assert rows_of(table)["row_id"].to_pylist() == [p.key for p in items[20:]] + ["o1"], "another corpus' rows stay"
    assert rejects_of(table) is None
    ledger = lance.dataset(f"{table}_ledger.lance").to_table().to_pylist()
    assert {row["uri"] for row in ledger if row["kind"] == "removed"} == {str(corpus / "a.parquet")}
    assert sync_into(table, corpus).commits == 0
    write_parquet(corpus / "a.parquet", items[:20])
    assert sync_into(table, corpus).rows_in == 20, "what left may come again"


def test_a_corpus_that_is_not_there_empties_nothing(tmp_path: Path) -> None:
    table, corpus = tmp_path / "db" / "t", tmp_path / "c"
    write_parquet(corpus / "a.parquet", pairs(20))
    embed_into(table, corpus)
    shutil.rmtree(corpus)
    with pytest.raises(FileNotFoundError):
        sync_into(table, corpus)
    assert rows_of(table).num_rows == 20


def test_a_folder_of_pictures_grows_shrinks_and_changes(tmp_path: Path) -> None:
    items, table = pairs(40), tmp_path / "db" / "t"
    corpus = write_folder(tmp_path / "c", items[:30])
    options = {"columns": {"key": "stem"}}
    sync_into(table, corpus, **options)
    files = sorted(path for path in corpus.rglob("*") if path.suffix == ".jpg")
    for path in files[:3]:
        path.unlink()
        path.with_suffix(".txt").unlink()
    files[5].write_bytes(picture(99_999))
    files[6].with_suffix(".txt").write_text("new words")
    write_folder(corpus, items[30:])
    report = sync_into(table, corpus, **options)
    assert (report.rows_in, report.replaced, report.removed) == (12, 2, 3)
    assert_mirrors(table, corpus, tmp_path / "clean" / "t", **options)


@pytest.mark.parametrize("thumbnails", [pytest.param(0, marks=_HEAVY), 24])
def test_what_was_encoded_once_is_not_encoded_again(thumbnails: int, tmp_path: Path) -> None:
    """In a new or changed file, or in another format; the vectors are those of a clean run."""
    items, table, corpus = pairs(120), tmp_path / "db" / "t", tmp_path / "c"
    options = {"thumbnails": thumbnails}
    write_parquet(corpus / "a.parquet", items)
    assert embed_into(table, corpus, **options).reused_vectors == 0

    write_parquet(corpus / "a.parquet", with_caption(items, 7, "new words"))
    recaptioned = embed_into(table, corpus, **options)
    assert (recaptioned.rows_in, recaptioned.reused_vectors) == (120, 239), "one caption, and no picture, was encoded"
    again = [Pair(f"again-{p.key}", p.image, p.caption, p.year) for p in items[:50]]
    write_parquet(corpus / "b.parquet", again)
    assert embed_into(table, corpus, **options).reused_vectors >= 99
    assert_mirrors(table, corpus, tmp_path / "clean" / "t", **options)
    other = embed_into(table, corpus, **options, preprocessing="exact", text_policy="window")
    assert other.rows_in == 0
    write_parquet(corpus / "c.parquet", [Pair("c", items[0].image, items[0].caption, 1)])
    assert embed_into(table, corpus, **options, preprocessing="exact", text_policy="window").reused_vectors == 0


def test_a_table_from_before_digests_is_carried_on(tmp_path: Path) -> None:
    items, table, corpus = pairs(40), tmp_path / "db" / "t", tmp_path / "c"
    write_parquet(corpus / "a.parquet", items[:20])
    embed_into(table, corpus)
    lance.dataset(f"{table}.lance").drop_columns(["isthmus_picture", "isthmus_text"])
    write_parquet(corpus / "b.parquet", items[20:])
    report = embed_into(table, corpus)
    assert (report.rows_in, report.reused_vectors) == (20, 0)
    assert rows_of(table)["row_id"].to_pylist() == [p.key for p in items]


def test_a_table_goes_on_with_the_digests_that_it_began_with(tmp_path: Path) -> None:
    """Row ids are derived from these digests, and vectors are found by them. The first digest was BLAKE2b."""
    items, table, corpus = pairs(40), tmp_path / "db" / "t", tmp_path / "c"
    keyless = {"columns": {}}
    write_parquet(corpus / "a.parquet", items[:20])
    assert embed_into(table, corpus, **keyless).written == 20
    picture_of = {pair.key: pair.image for pair in items}
    for key, digest in zip(*(rows_of(table)[name].to_pylist() for name in ("id", "isthmus_picture")), strict=True):
        assert digest == blake3(picture_of[key]).hexdigest(length=16)

    old = tmp_path / "db" / "old"
    metadata = json.loads(lance.dataset(f"{table}.lance").schema.metadata[METADATA_KEY])
    del metadata["settings"]["picture_digest"]
    schema = lance.dataset(f"{table}.lance").schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    lance.write_dataset(schema.empty_table(), f"{old}.lance", schema=schema)
    assert embed_into(old, corpus, **keyless).written == 20
    before = rows_of(old)
    for key, digest in zip(before["id"].to_pylist(), before["isthmus_picture"].to_pylist(), strict=True):
        data = picture_of[key]
        assert digest == hashlib.blake2b(len(data).to_bytes(8, "little") + data, digest_size=16).hexdigest()
    write_parquet(corpus / "a.parquet", items)
    report = embed_into(old, corpus, **keyless)
    assert (report.rows_in, report.reused_vectors) == (40, 40), "both vectors of each row that was there"
    assert set(before["row_id"].to_pylist()) < set(rows_of(old)["row_id"].to_pylist())

    metadata["settings"]["picture_digest"] = "blake4"
    with pytest.raises(ValueError, match=r"identifies pictures by the digest 'blake4', .*: use a newer version"):
        picture_digest_of(schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()}))


def test_a_key_that_moves_to_another_file_stays_one_row(tmp_path: Path) -> None:
    items, table, corpus = pairs(60), tmp_path / "db" / "t", tmp_path / "c"
    write_parquet(corpus / "a.parquet", items[:40])
    write_parquet(corpus / "b.parquet", items[40:])
    embed_into(table, corpus)
    write_parquet(corpus / "a.parquet", items[:20])
    write_parquet(corpus / "c.parquet", items[20:40])
    embed_into(table, corpus)
    assert_mirrors(table, corpus, tmp_path / "clean" / "t")


def change(corpus: Path, rng: random.Random, day: int) -> None:
    """A day of a corpus: a file is added, another changes, grows, shrinks or breaks, sometimes one is removed."""
    names = sorted(path.name for path in corpus.glob("*.parquet"))
    if len(names) > 2:
        (corpus / names.pop(rng.randrange(len(names)))).unlink()
    for name in (f"{day}.parquet", *rng.sample(names, min(1, len(names)))):
        made = []
        for p in pairs(rng.randrange(1, 80), seed=rng.randrange(3)):
            image = b"broken" if rng.random() < 0.1 else p.image
            made.append(Pair(f"{name}-{p.key}", image, f"{p.caption} {rng.randrange(2)}", p.year))
        write_parquet(corpus / name, made, row_group_rows=16)


@pytest.mark.parametrize(
    "point",
    [
        "after_commit",
        *(pytest.param(p, marks=_HEAVY) for p in ("after_lease", "after_rejects", "before_commit", "after_record")),
        *(pytest.param(p, marks=_HEAVY) for p in ("before_sweep", "before_release")),
    ],
)
def test_a_driver_that_fails_anywhere_in_a_changing_corpus_loses_and_doubles_nothing(
    point: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(point)
    table, corpus = tmp_path / "db" / "t", tmp_path / "c"
    for day in range(2):
        change(corpus, rng, day)
    sync_into(table, corpus)
    for day in range(2, 4):
        change(corpus, rng, day)
        monkeypatch.setenv(VARIABLE, f"{point}:1")
        monkeypatch.setenv(ONCE_VARIABLE, str(tmp_path / f"fired{day}"))
        _forget_passes()
        with pytest.raises(InjectedFaultError):
            sync_into(table, corpus)
        ids = rows_of(table)["row_id"].to_pylist()
        assert len(ids) == len(set(ids))
        change(corpus, rng, day + 10)  # the corpus changes while the job runs
        sync_into(table, corpus)
        monkeypatch.delenv(VARIABLE)
        assert_mirrors(table, corpus, tmp_path / f"clean{day}" / "t")


def _forget_passes() -> None:
    import pipelines.store.faults

    pipelines.store.faults._passes.clear()


def test_a_job_that_goes_wrong_is_stopped_as_of_its_last_commit(tmp_path: Path) -> None:
    table, corpus = tmp_path / "db" / "t", tmp_path / "c"
    good = pairs(300)
    bad = [Pair(f"x{p.key}", b"no picture", p.caption, p.year) for p in good]
    write_parquet(corpus / "a.parquet", good)
    embed_into(table, corpus)
    write_parquet(corpus / "b.parquet", bad)
    version = lance.dataset(f"{table}.lance").version
    with pytest.raises(TooManyRejectsError, match=r"max_reject_rate 0\.2: .* \('?\d+ as 'not_an_image'\)"):
        embed_into(table, corpus, max_reject_rate=0.2, commit_rows=200)
    assert rows_of(table).num_rows == 300
    assert rejects_of(table) is None
    assert lance.dataset(f"{table}.lance").version >= version
    assert embed_into(table, corpus).rejected == {"not_an_image": 300}


def test_rejects_are_tried_again_and_only_they(tmp_path: Path) -> None:
    items, table, corpus = pairs(90), tmp_path / "db" / "t", tmp_path / "c"
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for p in items:
        (pictures / f"{p.key}.jpg").write_bytes(p.image)
    gone = [pictures / f"{items[i].key}.jpg" for i in (3, 40, 41)]
    for path in gone:
        path.rename(path.with_suffix(".away"))
    (pictures / f"{items[60].key}.jpg").write_bytes(b"no picture")
    lines = [
        {"id": p.key, "uri": str(pictures / f"{p.key}.jpg"), "caption": [p.caption, f"second {p.key}"]} for p in items
    ]
    corpus.mkdir()
    pq.write_table(pa.Table.from_pylist(lines), corpus / "a.parquet", row_group_size=20)
    assert embed_into(table, corpus).rejected == {"image_not_found": 6, "not_an_image": 2}

    for path in gone[:2]:
        path.with_suffix(".away").rename(path)
    report = retry(RetryConfig(table=str(table), reason=["image_not_found"]))
    assert (report.rows_in, report.written, report.rejected) == (6, 4, {"image_not_found": 2})
    assert report.by_reason == {"image_not_found": 2, "not_an_image": 2}
    left = rejects_of(table)
    assert left is not None
    assert sorted(zip(left["reason"].to_pylist(), left["attempt"].to_pylist(), strict=True)) == [
        ("image_not_found", 2), ("image_not_found", 2), ("not_an_image", 1), ("not_an_image", 1),
    ]  # fmt: skip
    assert rows_of(table).num_rows == 2 * (90 - 2)
    assert embed_into(table, corpus).rows_in == 0
    with pytest.raises(ValueError, match="reason 'bad luck': not known; the reasons are"):
        retry(RetryConfig(table=str(table), reason=["bad luck"]))
