"""A decoder that hangs or crashes costs its own picture and no other row."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import lance
import pytest
from commands import isthmus_process as isthmus
from corpora import Pair, pairs, picture, write_parquet

from encoders.images import ImageError, ImageTransform
from pipelines.ingest.identity import picture_digest
from pipelines.ingest.stages.decoding import DecodeSettings, decode_picture
from pipelines.ingest.stages.guarding import Journal, decode_apart, decode_guarded
from pipelines.store.faults import VARIABLE

SETTINGS = DecodeSettings(
    transform=ImageTransform(size=(32, 32)), mode="fast", max_pixels=10**6, thumbnail_px=16, timeout_s=5.0
)


def test_a_child_process_decodes_the_same_and_refuses_the_same() -> None:
    data = picture(1)
    apart, here = decode_apart(data, "p", SETTINGS), decode_picture(data, "p", SETTINGS)
    assert (apart.pixels == here.pixels).all()
    assert apart.thumbnail == here.thumbnail
    with pytest.raises(ImageError) as caught:
        decode_apart(b"no picture", "p", SETTINGS)
    assert caught.value.reason == "not_an_image"


@pytest.mark.parametrize(("action", "reason"), [("kill", "decoder_crashed"), ("hang", "timeout")])
def test_a_child_that_does_not_come_back_is_a_reason(action: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"picture:abc:{action}")
    quick = DecodeSettings(transform=SETTINGS.transform, mode="fast", max_pixels=10**6, timeout_s=0.3)
    with pytest.raises(ImageError) as caught:
        decode_apart(picture(1), "abcdef", quick)
    assert caught.value.reason == reason


def _decode_in_process(folder: Path, name: str, variable: str) -> None:
    os.environ[VARIABLE] = variable
    quick = DecodeSettings(transform=SETTINGS.transform, mode="fast", max_pixels=10**6, timeout_s=0.3)
    decode_guarded(picture(1), name, quick, Journal(folder))


def _end_of(folder: Path, name: str, variable: str) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=_decode_in_process, args=(folder, name, variable))
    process.start()
    process.join(60)
    return process.exitcode


def test_what_a_process_died_at_is_suspect_and_what_it_lived_through_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    assert _end_of(tmp_path / "journal", "harmless", "picture:other:kill") == 0
    assert _end_of(tmp_path / "journal", "crashes", "picture:crashes:kill") == -signal.SIGKILL
    assert _end_of(tmp_path / "journal", "hangs", "picture:hangs:hang") == -signal.SIGALRM
    with journal.at("now"):
        other = Journal(tmp_path / "journal")
        assert other.suspects() == journal.suspects() == {"crashes", "hangs"}


@pytest.mark.timeout(200)
@pytest.mark.parametrize("engine", [pytest.param("ray", marks=pytest.mark.slow), "process"])
@pytest.mark.parametrize(("action", "reason"), [("kill", "decoder_crashed"), ("hang", "timeout")])
def test_a_job_rejects_the_picture_and_keeps_its_neighbours(
    action: str, reason: str, engine: str, tmp_path: Path
) -> None:
    items = pairs(40)
    items[17] = Pair(items[17].key, picture(987_654), items[17].caption, items[17].year)
    corpus = write_parquet(tmp_path / "c.parquet", items)
    bad = picture_digest(picture(987_654))
    done = isthmus(
        "embed", corpus, "--table", tmp_path / "db" / "t", "--encoder", "fake", "--columns.key", "id",
        "--engine", engine, "--decode-timeout-s", 1, "--json", environment={VARIABLE: f"picture:{bad}:{action}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["written"], report["rejected"]) == (39, {reason: 1})
    rejects = lance.dataset(str(tmp_path / "db" / "t_rejects.lance")).to_table().to_pylist()
    assert [(row["row_id"], row["reason"]) for row in rejects] == [(items[17].key, reason)]
