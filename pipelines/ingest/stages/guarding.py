"""Pictures that hang or crash their decoder cost only themselves.

Decoders are C code that reads hostile bytes. One may run for hours or crash its process, and Python cannot stop it. So
each process notes the picture that it is decoding in a file that it holds a lock on, and sets the kernel's timer, which
ends the process if the picture takes too long. Ray then runs the block again. The process that does so finds the dead
process' file, whose lock is gone, and decodes that picture in a child process with limits on time and memory. If the
child dies too, the picture is rejected. All other pictures are decoded in place: the guard costs two system calls per
picture.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from encoders.images import ImageError
from pipelines.ingest.stages.decoding import Decoded, DecodeSettings, decode_picture

_FOLDER = "isthmus-decoding"
_FORGET_S = 24 * 3600.0
_SPARE_BYTES = 2 << 30
_BYTES_PER_PIXEL = 24


class Journal:
    """Notes which picture this process is decoding; finds those that dead processes on this machine were decoding.

    Args:
        folder: shared by all processes that decode.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)

    @contextmanager
    def at(self, picture: str) -> Iterator[None]:
        """Note the picture while it is being decoded. A process that dies in between leaves the note behind."""
        os.pwrite(self._file, picture.encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(self._file, 0)

    def suspects(self) -> frozenset[str]:
        """Pictures that processes died on within the last day."""
        found = set()
        for entry in os.scandir(self._folder):
            if entry.name != self._path.name and (picture := _left_behind(Path(entry.path))):
                found.add(picture)
        return frozenset(found)


def _left_behind(path: Path) -> str | None:
    """The picture that the file's owner died on; None if the owner lives, or died elsewhere."""
    try:
        with path.open("rb") as file:
            age = time.time() - os.fstat(file.fileno()).st_mtime
            # A shared lock, so that processes that look at the same time do not take each other for the owner.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            picture = file.read().decode()
            if age > _FORGET_S or (not picture and age > 60.0):
                path.unlink()
                return None
            return picture or None
    except OSError:
        return None


@cache
def process_journal() -> Journal:
    """The journal of this process."""
    return Journal(Path(tempfile.gettempdir()) / f"{_FOLDER}-{os.getuid()}")


def decode_guarded(data: bytes, picture: str, settings: DecodeSettings, journal: Journal) -> Decoded:
    """`decode_picture`; the process ends if it takes longer than `settings.timeout_s`.

    Args:
        data: the picture's bytes.
        picture: their digest.
        settings: the encoder's image transform and the limits.
        journal: notes that the picture is being decoded.
    """
    with journal.at(picture):
        # The kernel ends the process by SIGALRM's default action, even if C code holds the interpreter's lock.
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)
        try:
            return decode_picture(data, picture, settings)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def decode_apart(data: bytes, picture: str, settings: DecodeSettings) -> Decoded:
    """`decode_picture` in a child process.

    Raises:
        ImageError: as for `decode_picture`, or with the reason `timeout` or `decoder_crashed`.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", __name__]
    given = pickle.dumps((data, picture, settings))
    try:
        # The time limit is for the picture; 30 more seconds allow for the child's start.
        done = subprocess.run(
            command, input=given, capture_output=True, env=environment, timeout=settings.timeout_s + 30, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _too_slow(settings) from error
    if done.returncode == -signal.SIGALRM:
        raise _too_slow(settings)
    if done.returncode != 0:
        end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ImageError("decoder_crashed", f"its decoder crashed the process with {end}")
    head, _, rest = done.stdout.partition(b"\n")
    said = json.loads(head)
    if "reason" in said:
        raise ImageError(said["reason"], said["message"])
    height, width = said["size"]
    pixels = np.frombuffer(rest, np.uint8, height * width * 3).reshape(height, width, 3)
    return Decoded(pixels=pixels, thumbnail=rest[pixels.size :] if said["thumbnail"] else None)


def _too_slow(settings: DecodeSettings) -> ImageError:
    return ImageError("timeout", f"not decoded within {settings.timeout_s:g} seconds")


def _child() -> None:
    """Decode the picture on standard input; print a line of JSON, then the bytes of the pixels and the thumbnail."""
    data, picture, settings = pickle.loads(sys.stdin.buffer.read())
    _limit_memory(_SPARE_BYTES + _BYTES_PER_PIXEL * settings.max_pixels)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout_s)
    try:
        decoded = decode_picture(data, picture, settings)
    except ImageError as error:
        sys.stdout.buffer.write(json.dumps({"reason": error.reason, "message": str(error)}).encode() + b"\n")
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    head = {"size": decoded.pixels.shape[:2], "thumbnail": decoded.thumbnail is not None}
    sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + decoded.pixels.tobytes() + (decoded.thumbnail or b""))


def _limit_memory(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    _child()
