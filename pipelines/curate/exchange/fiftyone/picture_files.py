"""The file in which FiftyOne finds the picture of a row: the picture's own file, or a copy within the dataset."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from encoders.images.kinds import container
from pipelines.curate.exchange.folder import OutputFolder
from pipelines.sources.locate import file_of, read_images
from pipelines.store.storage import Storage, absolute, is_remote

# FiftyOne has no sample without a file: this file replaces missing pictures.
PLACEHOLDER = "data/no_picture.png"
_HEAD_BYTES = 64
_AT_ONCE = 32
_THREADS = 8
_SUFFIXES = {
    "JPEG": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "TIFF": "tif",
    "JPEG 2000": "jp2",
    "WebP": "webp",
    "AVIF": "avif",
}


def own_files(uris: Sequence[str | None]) -> list[str | None]:
    """The file of each picture; None if a row has none, or if the file is not a picture.

    Args:
        uris: the `image_uri` of the rows.

    Raises:
        ValueError: a picture is in a store or inside another file, where FiftyOne cannot open it.
    """
    return [_own_file(uri) if uri else None for uri in uris]


def _own_file(uri: str) -> str | None:
    if is_remote(uri) or file_of(uri) != uri:
        raise ValueError(f"picture {uri}: is not a separate file on this machine; copy the pictures with --pictures")
    if "://" in uri:
        return None
    path = absolute(uri)
    try:
        with Path(path).open("rb") as handle:
            return path if container(handle.read(_HEAD_BYTES)) else None
    except OSError:
        return None


def copies(uris: Sequence[str | None], folder: OutputFolder, storage: Storage) -> tuple[list[str | None], int]:
    """Copy pictures into the dataset; returns the path of each within it, and the number of files.

    Rows that share a picture share its file. The path is None if a row has no picture or it could not be read.

    Args:
        uris: the `image_uri` of the rows.
        folder: the dataset.
        storage: how to reach the corpus.
    """
    wanted = list(dict.fromkeys(uri for uri in uris if uri))
    paths: dict[str, str] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            # Copy only pictures: a table's rows may name any file of this machine.
            read = {
                _copy_name(uri, kind): (uri, data)
                for uri, data in zip(some, read_images(some, storage), strict=True)
                if isinstance(data, bytes) and (kind := container(data))
            }
            list(pool.map(lambda item: folder.write(item[0], item[1][1]), read.items()))
            paths |= {uri: name for name, (uri, _) in read.items()}
    return [paths.get(uri) if uri else None for uri in uris], len(paths)


def _copy_name(uri: str, kind: str) -> str:
    """The path of a copy within the dataset; the copies are spread over 256 folders."""
    digest = hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()
    return f"data/{digest[:2]}/{digest}.{_SUFFIXES[kind]}"


def placeholder() -> bytes:
    """A small grey picture, as PNG."""
    data = io.BytesIO()
    Image.new("L", (64, 64), 128).save(data, "PNG")
    return data.getvalue()
