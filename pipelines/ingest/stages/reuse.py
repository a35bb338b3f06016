"""Reuses vectors that the table already holds: a picture or caption is encoded only once, across files and runs.

The table keeps a digest of each row's picture and caption. The read stage looks up a block's digests, by an index, in
the table as it was when the run began. Vectors that are found travel with the block, and their pictures are neither
decoded nor encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.stages.recent import DIGESTS
from pipelines.rows.blocks import KNOWN_PREFIX, REASON, set_column
from pipelines.rows.contract import IMAGE, IMAGE_VECTOR, TEXT_VECTOR, THUMBNAIL
from pipelines.store.retries import retried, retry
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset
from pipelines.tables.provenance import Provenance

if TYPE_CHECKING:
    import lance
    from lance.dataset import Index
    from lance.lance import IndexSegment

# The run setting that a modality's vectors depend on, besides the encoder.
_DEPENDS_ON = {IMAGE_VECTOR: "preprocessing", TEXT_VECTOR: "text_policy"}
_OFFSET = "_rowoffset"
_REMEMBERED = 16_384
_FEW_ROWS = 4_096
_UNINDEXED_SHARE = 0.1
# Sorting this many rows takes some 100 MiB; sorting 5,000,000 at once took 350.
_ROWS_OF_A_PART = 131_072
# Each part adds up to a millisecond to a lookup.
_MOST_PARTS = 256
# Digests are as good as random, so each lookup reads another page of the index. Without a limit, a process would cache
# pages until it holds the whole index or reaches Lance's 6 GiB. These sizes hold the digests of some two million rows.
_INDEX_CACHE_BYTES, _METADATA_CACHE_BYTES = 256 << 20, 128 << 20


@dataclass
class KnownVectors:
    """Looks vectors up in one version of a table. Pickles as plain data; each process opens the table itself.

    Attributes:
        table: the table.
        version: the version to look in.
        columns: vector column that may be reused → the columns to read with it.
    """

    table: TableRef
    version: int
    columns: dict[str, tuple[str, ...]]
    _found: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False)
    _dataset: Any = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_found": {}, "_dataset": None}

    def attach(self, block: pa.Table) -> pa.Table:
        """A read block with `_known_…` columns, and without the pictures whose vectors are known."""
        for vector, columns in self.columns.items():
            name = DIGESTS[vector]
            digests = pc.if_else(pc.is_valid(block[REASON]), None, block[name]).to_pylist()
            found = self._look_up(name, sorted({d for d in digests if d}), columns)
            for column in columns:
                kind = self._open().schema.field(column).type
                values = pa.array([found[d][column] if d in found else None for d in digests], kind)
                block = block.append_column(KNOWN_PREFIX + column, values)
            if vector == IMAGE_VECTOR and found:
                is_known = block[KNOWN_PREFIX + IMAGE_VECTOR].is_valid()
                block = set_column(block, IMAGE, pc.if_else(is_known, None, block[IMAGE]).combine_chunks())
        return block

    def _look_up(self, name: str, digests: Sequence[str], columns: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Digest → values of `columns`, for the digests that the table holds."""
        seen = self._found.setdefault(name, {})
        if len(seen) > _REMEMBERED:
            seen.clear()
        unseen = [digest for digest in digests if digest not in seen]
        if unseen:
            seen.update({digest: {} for digest in unseen})
            # Offsets first: a picture that is in a million rows has a million equal vectors.
            where = f"{name} IN ({', '.join(repr(digest) for digest in unseen)})"
            for row in retry(lambda: self._rows(name, where, columns), self.table.uri):
                if all(row[column] is not None for column in columns):
                    seen[row[name]] = row
        return {digest: seen[digest] for digest in digests if seen[digest]}

    def _rows(self, name: str, where: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
        hits = self._open().scanner(columns=[name, _OFFSET], filter=where).to_table()
        one_each = sorted(dict(zip(hits[name].to_pylist(), hits[_OFFSET].to_pylist(), strict=True)).values())
        return list(self._open().take(one_each, columns=[name, *columns]).to_pylist())

    def _open(self) -> lance.LanceDataset:
        if self._dataset is None:
            self._dataset = open_at(
                self.table,
                self.version,
                index_cache_bytes=_INDEX_CACHE_BYTES,
                metadata_cache_bytes=_METADATA_CACHE_BYTES,
            )
        return self._dataset


def known_vectors(table: TableRef, settings: EmbedSettings) -> KnownVectors | None:
    """The vectors of a table that a run may reuse; None if there are none: no rows, no digests, or other settings.

    `check_schema` ensures that the encoder is the same. This function compares the settings that change single vectors.
    """
    dataset = open_dataset(table)
    made_with = Provenance.from_schema(dataset.schema, str(table)).settings
    columns: dict[str, tuple[str, ...]] = {}
    for modality, vector in (("image", IMAGE_VECTOR), ("text", TEXT_VECTOR)):
        setting = _DEPENDS_ON[vector]
        fits = modality in settings.modalities and made_with.get(setting) == getattr(settings.options, setting)
        if fits and {vector, DIGESTS[vector]} <= set(dataset.schema.names):
            columns[vector] = (vector,)
    if settings.thumbnail_px and IMAGE_VECTOR in columns and THUMBNAIL in dataset.schema.names:
        columns[IMAGE_VECTOR] += (THUMBNAIL,)
    if not columns or not retry(dataset.count_rows, table.uri):
        return None
    return KnownVectors(table=table, version=int(dataset.version), columns=columns)


@retried
def index_digests(table: TableRef) -> None:
    """Maintain the indexes for looking up digests: created once the table has 4,096 rows, updated as it grows.

    An index is updated when over a tenth of the rows are missing from it. It consists of parts, each of so few rows
    that sorting them takes little memory: 131,072, or a 256th of the table if that is more. A lookup goes through all
    parts.
    """
    dataset = open_dataset(table)
    names = [name for name in DIGESTS.values() if name in dataset.schema.names]
    rows = dataset.count_rows()
    if rows < _FEW_ROWS or not names:
        return
    held = {
        index.name: {fragment for segment in index.segments for fragment in segment.fragment_ids}
        for index in dataset.describe_indices()
    }
    sizes = {fragment.fragment_id: fragment.physical_rows for fragment in dataset.get_fragments()}
    for name in names:
        index = f"{name}_idx"
        lacking = {fragment: size for fragment, size in sizes.items() if fragment not in held.get(index, ())}
        if index in held and sum(lacking.values()) <= _UNINDEXED_SHARE * rows:
            continue
        segments: list[Index | IndexSegment] = [
            dataset.create_index_uncommitted(name, "BTREE", name=index, fragment_ids=part, replace=True)
            for part in _parts(lacking, max(_ROWS_OF_A_PART, rows // _MOST_PARTS))
        ]
        dataset.commit_existing_index_segments(index, name, segments)


def _parts(sizes: Mapping[int, int], rows: int) -> list[list[int]]:
    """Fragments (id → rows) in order, in parts of at most `rows` rows. A larger fragment is a part of its own."""
    parts: list[list[int]] = []
    room = 0
    for fragment, size in sizes.items():
        if not parts or size > room:
            parts.append([])
            room = rows
        parts[-1].append(fragment)
        room -= size
    return parts
