"""A table over a corpus of picture files, for tests of the server; some rows point outside the corpus."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path

import lance
import pyarrow as pa
from corpora import picture

from encoders.images import prepare
from encoders.registry import describe, load
from pipelines.rows.contract import CAPTION, IMAGE_URI, ITEM_ID, ROW_ID, THUMBNAIL
from pipelines.search.indexing.build import build_text_index
from pipelines.store.storage import TableRef
from pipelines.tables.jobs import remember_job
from pipelines.tables.provenance import Provenance

N = 60
SECRET = b"the content of a file that is nobody's business"


def make_table(folder: Path) -> TableRef:
    """The table; rows 1 to 4 name a file outside the corpus, a remote host, a link and a path that leads out."""
    corpus = folder / "corpus"
    corpus.mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    (folder / "outside.jpg").write_bytes(picture(1))
    (corpus / "link.jpg").symlink_to(folder / "outside.jpg")
    for i in range(N):
        (corpus / f"{i}.jpg").write_bytes(picture(i))
    uris = [str(corpus / f"{i}.jpg") for i in range(N)]
    uris[1], uris[2], uris[3] = str(folder / "secret.txt"), "http://169.254.169.254/latest", str(corpus / "link.jpg")
    uris[4] = f"{corpus}/../outside.jpg"
    encoder, description = load("fake"), describe("fake")
    assert description.image_transform is not None
    pixels = [prepare(picture(i), description.image_transform) for i in range(N)]
    captions = [f"{colour} thing {i}" for i, colour in enumerate(["red", "green", "蓝色"] * (N // 3))]
    rows = pa.table(
        {
            ROW_ID: [f"r'{i}" for i in range(N)],
            ITEM_ID: [f"item{i // 2}" for i in range(N)],
            CAPTION: captions,
            IMAGE_URI: uris,
            THUMBNAIL: pa.array([picture(9) if i == 5 else None for i in range(N)], pa.binary()),
            "price": [float(i) for i in range(N)],
            "shop": ["it's", "b`c", "plain"] * (N // 3),
            "new": [i % 2 == 0 for i in range(N)],
            "day": [date(2026, 1, 1 + i % 20) for i in range(N)],
            "at": [datetime(2026, 1, 1 + i % 20, 12) for i in range(N)],
            "note": [f"note {i}" for i in range(N)],
            "image_vector": pa.array(list(encoder.encode_images(pixels)), pa.list_(pa.float32(), 64)),
            "text_vector": pa.array(list(encoder.encode_texts(captions).vectors), pa.list_(pa.float32(), 64)),
        }
    )
    ref = TableRef.parse(str(folder / "db" / "t"))
    provenance = Provenance(encoder=description.card, modalities=("image", "text"))
    lance.write_dataset(rows.replace_schema_metadata(provenance.to_metadata()), ref.uri)
    remember_job(ref, str(corpus), {})
    build_text_index(ref)
    return ref
