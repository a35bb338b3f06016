"""Karpathy's splits of Flickr8k, Flickr30k and COCO: several sentences per picture, and the split of each picture.

A picture is one record. Its `id`, which is also its item, is the `cocoid`, else the `imgid`. `split` and the other
fields pass through.
"""

from __future__ import annotations

import posixpath
from typing import Any

from pipelines.rows.contract import Columns
from pipelines.sources.base import Source
from pipelines.sources.json_list import CAPTIONS, URI, open_json_list
from pipelines.sources.listing import FileInfo
from pipelines.store.storage import Storage

_TAKEN = {"filename", "filepath", "sentences"}


def open_karpathy(corpus: str, info: FileInfo, columns: Columns, storage: Storage) -> Source:
    """The source of a Karpathy split; roles as in `open_json_list`.

    Raises:
        ValueError: the file is not a Karpathy split, or a named field is missing.
    """
    here = posixpath.dirname(info.uri)
    folders = (here, posixpath.join(here, "images"), posixpath.dirname(here), f"{posixpath.dirname(here)}/images")
    return open_json_list(corpus, info, karpathy_records, folders, columns, storage)


def karpathy_records(data: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per picture.

    Raises:
        KeyError: a field of the format is missing.
    """
    return [
        {
            "id": image.get("cocoid", image.get("imgid")),
            **{name: value for name, value in image.items() if name not in _TAKEN},
            URI: posixpath.join(image.get("filepath") or "", image["filename"]),
            CAPTIONS: [sentence["raw"].strip() for sentence in image["sentences"]],
        }
        for image in data["images"]
    ]
