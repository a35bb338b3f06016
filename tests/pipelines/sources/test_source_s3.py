"""The same corpus must give the same records from every format, from disk and from S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from corpora import pairs, write_folder, write_parquet, write_webdataset
from moto.server import ThreadedMotoServer
from source_tools import column, opened, rows_of

from pipelines.sources.locate import read_image, read_images
from pipelines.store.storage import Storage

BUCKET = "corpora"
KEYS = {"parquet": "id", "tars": "key", "folder": "stem", "captions": "id", "karpathy": "name"}


@pytest.fixture(scope="session")
def corpora_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    items = pairs(30)
    write_parquet(root / "parquet" / "year=2020" / "c.parquet", items, row_group_rows=4)
    write_webdataset(root / "tars", items, per_tar=11)
    write_folder(root / "folder", items)
    for name in ("captions", "karpathy"):
        write_folder(root / name / "images", items)
        for text in (root / name / "images").glob("*.txt"):
            text.unlink()
    lines = [json.dumps({"id": p.key, "image": f"{p.key}.jpg", "caption": p.caption}) for p in items]
    (root / "captions" / "metadata.jsonl").write_text("\n".join(lines))
    images = [{"filename": f"{p.key}.jpg", "sentences": [{"raw": p.caption}], "name": p.key} for p in items]
    (root / "karpathy" / "dataset.json").write_text(json.dumps({"images": images}))
    return root


@pytest.fixture(scope="session")
def s3(corpora_folder: Path) -> Iterator[Storage]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    secrets = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **secrets)
    client.create_bucket(Bucket=BUCKET)
    for path in corpora_folder.rglob("*"):
        if path.is_file():
            client.put_object(Bucket=BUCKET, Key=str(path.relative_to(corpora_folder)), Body=path.read_bytes())
    client.put_object(Bucket=BUCKET, Key="folder/", Body=b"")
    yield Storage.from_options({**secrets, "aws_endpoint": endpoint, "aws_region": "us-east-1"})
    server.stop()


def corpus_of(root: str, name: str) -> str:
    return f"{root}/{name}/dataset.json" if name == "karpathy" else f"{root}/{name}"


def pictures_of(rows: list[dict[str, Any]], storage: Storage) -> list[Any]:
    fetched = read_images([row["@image_uri"] for row in rows], storage)
    assert all(row["@image"] in (None, data) for row, data in zip(rows, fetched, strict=True))
    return fetched


@pytest.mark.parametrize("name", KEYS)
def test_every_format_gives_the_same_records(corpora_folder: Path, name: str) -> None:
    rows = rows_of(opened(corpus_of(str(corpora_folder), name), key=KEYS[name]))
    items = pairs(30)
    assert column(rows, "@key") == [p.key for p in items]
    assert column(rows, "@captions") == [[p.caption] for p in items]
    assert pictures_of(rows, Storage()) == [p.image for p in items]


@pytest.mark.parametrize("name", KEYS)
def test_s3_gives_what_the_disk_gives(corpora_folder: Path, s3: Storage, name: str) -> None:
    remote = opened(corpus_of(f"s3://{BUCKET}", name), storage=s3, key=KEYS[name])
    local = opened(corpus_of(str(corpora_folder), name), key=KEYS[name])
    assert [(shard.start, shard.stop, shard.rows) for shard in remote.shards()] == [
        (shard.start, shard.stop, shard.rows) for shard in local.shards()
    ]
    rows = rows_of(remote)
    without_uri = [
        [{name: value for name, value in row.items() if name != "@image_uri"} for row in every]
        for every in (rows, rows_of(local))
    ]
    assert without_uri[0] == without_uri[1]
    assert all(uri.startswith(f"s3://{BUCKET}/") for uri in column(rows, "@image_uri"))
    assert pictures_of(rows, s3) == [p.image for p in pairs(30)]


def test_globs_and_partitions_on_s3(s3: Storage) -> None:
    source = opened(f"s3://{BUCKET}/parquet/**/*.parquet", storage=s3)
    assert set(column(rows_of(source), "year")) == {p.year for p in pairs(30)}, "a file's own column wins"
    assert len(opened(f"s3://{BUCKET}/tars/0000[01].tar", storage=s3).shards()) == 2


def test_what_is_not_on_s3_says_so(s3: Storage) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        opened(f"s3://{BUCKET}/nowhere", storage=s3)
    with pytest.raises(FileNotFoundError):
        opened("s3://no-such-bucket/x", storage=s3)
    with pytest.raises(FileNotFoundError):
        read_image(f"s3://{BUCKET}/folder/nope.jpg", s3)


def test_secrets_are_not_shown(s3: Storage) -> None:
    source = opened(f"s3://{BUCKET}/tars", storage=Storage((*s3.options, ("aws_session_token", "hush"))))
    assert "hush" not in repr(source)
