"""The table of mined negatives: its schema, the record of its origin, and how it is read and replaced."""

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
    """Mined negatives and their origin.

    Attributes:
        encoder: the encoder that made the vectors.
        table: URI of the table that was mined.
        table_version: version of that table.
        settings: settings of the mining run.
        negatives: rows of `MINED_SCHEMA`; `row_id` is the anchor, and `rank` counts from 0 in the list of all
            candidates, positives included.
    """

    encoder: EncoderCard
    table: str
    table_version: int
    settings: dict[str, Any]
    negatives: pa.Table

    def check_encoder(self, card: EncoderCard, where: str) -> None:
        """Refuse an encoder other than the one that these negatives were mined with.

        Args:
            card: the encoder to check.
            where: the caller's context, the start of the message.

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
    """The schema of a mined table, with the record of its origin in the metadata."""
    record = {
        "table": str(table),
        "table_version": version,
        "encoder": encoder.to_dict(),
        "settings": settings,
        "libraries": library_versions(),
    }
    return MINED_SCHEMA.with_metadata({MINING_KEY: json.dumps(record, sort_keys=True).encode()})


def read_mined(ref: TableRef, version: int | None = None) -> Mined:
    """Read the negatives that `isthmus mine` wrote.

    Args:
        ref: the mined table.
        version: version of the mined table; None for the latest.

    Raises:
        FileNotFoundError: the table does not exist.
        ValueError: the table holds no mined negatives, or has no such version.
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
    """The version of the mined table at `out`; 0 if there is no table.

    Raises:
        ValueError: `out` is another kind of table.
    """
    there = open_dataset(out, missing_ok=True)
    if there is None:
        return 0
    if _record(there.schema) is None:
        raise ValueError(f"out {out}: is another kind of table and is not replaced; give another name")
    return int(there.version)


def stage(out: TableRef, rows: pa.Table) -> tuple[str, ...]:
    """Write rows as fragments that no version contains yet; returns the fragments' metadata as JSON.

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
    """Commit staged fragments as the whole content of the table, in a new version; returns its number.

    Raises:
        ValueError: another kind of table has appeared at `out`.
        OSError: the store cannot be written; the table is unchanged.
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
