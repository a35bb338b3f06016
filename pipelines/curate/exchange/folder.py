"""The folder of an export, local or remote."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipelines.store.retries import retry
from pipelines.store.storage import Storage, absolute, is_remote


class OutputFolder:
    """A folder to write to.

    Args:
        uri: path or `s3://` URI of the folder.
        storage: how to reach it.
    """

    def __init__(self, uri: str, storage: Storage) -> None:
        self.uri = absolute(uri)
        self._files = storage.filesystem(self.uri)

    def check_empty(self) -> None:
        """Refuse a folder that is not empty.

        Raises:
            ValueError: the folder holds files.
            OSError: the store cannot be read.
        """
        found = retry(lambda: self._files.find(self.uri, maxdepth=2), self.uri)
        if found:
            raise ValueError(f"out {self.uri}: holds files already ({found[0]}); give an empty folder")

    def write(self, name: str, data: bytes) -> None:
        """Write a file.

        Raises:
            OSError: the store cannot be written.
        """
        path = f"{self.uri}/{name}"
        if not is_remote(self.uri):
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        retry(lambda: self._files.pipe_file(path, data), self.uri)

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """A file to write piece by piece. It gets its name when the block ends; after an error it is removed.

        Raises:
            OSError: the store cannot be written.
        """
        remote = is_remote(self.uri)
        with ExitStack() as stack:
            # Write the whole file to a disk first, because half an upload cannot be retried.
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()) if remote else self.uri)
            place.mkdir(parents=True, exist_ok=True)
            held = place / f"{name}.part"
            stack.callback(held.unlink, missing_ok=True)
            with held.open("wb") as handle:
                yield handle
            if remote:
                retry(lambda: self._files.put_file(str(held), f"{self.uri}/{name}"), self.uri)
            else:
                held.replace(place / name)
