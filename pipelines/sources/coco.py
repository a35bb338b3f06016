"""COCO captions: `images` with ids and file names, `annotations` with their captions.

A picture is one record with all of its captions. Its item is its `id`. Pictures are looked for beside the file, in
`images/`, and in the folder of the split that the file is named for (`captions_val2017.json` → `val2017/`), both there
and one folder up.
"""

from __future__ import annotations

import posixpath
from typing import Any

from pipelines.rows.contract import Columns
from pipelines.sources.base import Source
from pipelines.sources.json_list import CAPTIONS, URI, open_json_list
from pipelines.sources.listing import FileInfo
from pipelines.store.storage import Storage


def open_coco(corpus: str, info: FileInfo, columns: Columns, storage: Storage) -> Source:
    """The source of a COCO captions file; roles as in `open_json_list`.

    Raises:
        ValueError: the file is not COCO captions, or a named field is missing.
    """
    split = posixpath.splitext(info.name)[0].rpartition("_")[2]
    here = posixpath.dirname(info.uri)
    below = ("", "images", split, posixpath.join("images", split))
    folders = [posixpath.join(base, name).rstrip("/") for base in (here, posixpath.dirname(here)) for name in below]
    return open_json_list(corpus, info, coco_records, tuple(folders), columns, storage)


def coco_records(data: dict[str, Any]) -> list[dict[str, Any]]:
    """One record per picture, with its fields except for the file name. Captions of unknown pictures come last.

    Raises:
        KeyError: a field of the format is missing.
    """
    captions: dict[Any, list[str]] = {}
    for annotation in data["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]).strip())
    records = []
    for image in data["images"]:
        fields = {name: value for name, value in image.items() if name != "file_name"}
        records.append({**fields, URI: image["file_name"], CAPTIONS: captions.pop(image["id"], None)})
    return records + [{"id": image_id, CAPTIONS: texts} for image_id, texts in captions.items()]
