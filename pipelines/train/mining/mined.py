"""The table of mined negatives: its schema, its record of where it comes from, reading and replacing it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from encoders.protocol import EncoderCard
from pipelines.rows.contract import ROW_ID
from pipelines.store.storage import TableRef
from pipelines.tables.opening import open_at, open_dataset, translate
from pipelines.tables.provenance import EncoderMismatchError, library_versions

if TYPE_CHECKING:
    pass

MINING_KEY = b"isthmus.mining"
MINED_SCHEMA = pa.schema(
    [
        pa.field(ROW_ID, pa.string()),
        pa.field("direction", pa.string()),
        pa.field("negative_row_id", pa.string()),
        pa.field("negative_item_id", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("positive_score", pa.float32()),
        pa.field("rank", pa.int32()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Mined:
    """Mined negatives and what they were mined with.

    Attributes:
        encoder: that made the vectors.
        table: URI of the table that was mined.
        table_version: its version.
        settings: of the mining run.
        negatives: rows of `MINED_SCHEMA`; `row_id` is the anchor, `rank` counts from 0 in the list of all
            candidates, positives included.
    """

    encoder: EncoderCard
    table: str
    table_version: int
    settings: dict[str, Any]
    negatives: pa.Table

    def check_encoder(self, card: EncoderCard, where: str) -> None:
        """Refuse an encoder whose vectors these negatives were not mined with.

        Args:
            card: the encoder.
            where: who asks, for the message.

        Raises:
            EncoderMismatchError: the fingerprints differ.
        """
        if card.fingerprint != self.encoder.fingerprint:
            raise EncoderMismatchError(
                f"{where}: the negatives were mined with {self.encoder.name!r} (fingerprint "
                f"{self.encoder.fingerprint}), not with {card.name!r} ({card.fingerprint}); mine a table that was "
                f"embedded with {card.spec}, or use {self.encoder.spec}"
            )


def mined_schema(table: TableRef, version: int, encoder: EncoderCard, settings: dict[str, Any]) -> pa.Schema:
    """The schema of a mined table, with its record in the metadata."""
    record = {
        "table": str(table),
        "table_version": version,
        "encoder": encoder.to_dict(),
        "settings": settings,
        "libraries": library_versions(),
    }
    return MINED_SCHEMA.with_metadata({MINING_KEY: json.dumps(record, sort_keys=True).encode()})


def read_mined(ref: TableRef, version: int | None = None) -> Mined:
    """The negatives that `isthmus mine` wrote.

    Args:
        ref: the mined table.
        version: of the mined table, None for the latest.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it holds no mined negatives, or has no such version.
    """
    dataset = open_at(ref, version)
    record = _record(dataset.schema)
    if record is None:
        raise ValueError(f"table {ref}: holds no mined negatives; make them with `isthmus mine TABLE --out {ref}`")
    return Mined(
        encoder=EncoderCard.from_dict(record["encoder"]),
        table=record["table"],
        table_version=record["table_version"],
        settings=record["settings"],
        negatives=dataset.to_table().replace_schema_metadata(None),
    )


def check_replaceable(out: TableRef) -> int:
    """The version of the mined table at `out`, 0 where nothing is.

    Raises:
        ValueError: another kind of table is there.
    """
    there = open_dataset(out, missing_ok=True)
    if there is None:
        return 0
    if _record(there.schema) is None:
        raise ValueError(f"out {out}: is a table of something else and is not replaced; give another name")
    return int(there.version)


def stage(out: TableRef, rows: pa.Table) -> tuple[str, ...]:
    """Write rows as fragments that no version names yet; their metadata as JSON.

    Raises:
        OSError: the store cannot be written.
    """
    from lance.fragment import write_fragments

    if rows.num_rows == 0:
        return ()
    try:
        written = write_fragments(
            rows.cast(MINED_SCHEMA), out.uri, schema=MINED_SCHEMA, mode="overwrite", storage_options=out.options
        )
    except OSError as error:
        raise translate(error, out.uri) from error
    if (n := sum(fragment.physical_rows for fragment in written)) != rows.num_rows:
        raise RuntimeError(f"table {out}: staged {n} rows of {rows.num_rows}; nothing was committed")
    return tuple(json.dumps(fragment.to_json()) for fragment in written)


def publish(out: TableRef, schema: pa.Schema, fragments: Sequence[str]) -> int:
    """Make staged fragments the one content of the table, as a new version; the version's number.

    Raises:
        ValueError: another kind of table has come to stand there.
        OSError: the store cannot be written; the table is as it was.
    """
    import lance
    from lance.fragment import FragmentMetadata

    read_version = check_replaceable(out)
    operation = lance.LanceOperation.Overwrite(schema, [FragmentMetadata.from_json(text) for text in fragments])
    try:
        landed = lance.LanceDataset.commit(out.uri, operation, read_version=read_version, storage_options=out.options)
    except OSError as error:
        raise translate(error, out.uri) from error
    return int(landed.version)


def _record(schema: pa.Schema) -> dict[str, Any] | None:
    raw = (schema.metadata or {}).get(MINING_KEY)
    return json.loads(raw) if raw is not None else None
