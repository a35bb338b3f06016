"""The fused column of a table: created, recreated with other weights, or filled in for rows that lack it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.rows.contract import FUSED_VECTOR, IMAGE_VECTOR, TEXT_VECTOR
from pipelines.search.indexing.parameters import forget_parameters
from pipelines.search.indexing.recall import sample_vectors
from pipelines.store.retries import retry
from pipelines.store.storage import TableRef
from pipelines.tables.columns import Rewritten, add_columns, rewrite_columns
from pipelines.tables.fusion_recipe import FusionRecipe
from pipelines.tables.lease import Lease
from pipelines.tables.opening import open_dataset, translate
from pipelines.tables.provenance import Provenance
from pipelines.vectors.fused import fused_column, levels
from pipelines.vectors.scan import normalise

if TYPE_CHECKING:
    import lance
    from lance.fragment import FragmentMetadata
    from lance.schema import LanceSchema

Outcome = Literal["made", "made anew", "filled in", "complete"]
_SOURCES = (IMAGE_VECTOR, TEXT_VECTOR)
_EVEN = 0.5
_BATCH_ROWS = 8_192
# Enough for a spread that is accurate to one per cent.
_SAMPLED_ROWS = 2_048


@dataclass(frozen=True, kw_only=True)
class Fused:
    """The outcome of `fuse_table`.

    Attributes:
        table: the table, with its folder.
        version: the version that holds the column.
        outcome: what was done; `complete` if there was nothing to do.
        recipe: weights, spreads and sources of the vectors.
        written: number of rows that got a fused vector in this run.
        image_only: those of them that have only a picture; its vector was used unchanged.
        text_only: those of them that have only a caption; its vector was used unchanged.
        fused: number of rows that have a fused vector now.
        rows: number of rows of the table.
    """

    table: str
    version: int
    outcome: Outcome
    recipe: FusionRecipe
    written: int
    image_only: int
    text_only: int
    fused: int
    rows: int


@dataclass(frozen=True)
class _FusedCounts:
    """Numbers of rows that got a fused vector: all, with only a picture, with only a caption."""

    written: int = 0
    image_only: int = 0
    text_only: int = 0

    @classmethod
    def of(cls, rows: pa.Table, column: pa.Array) -> _FusedCounts:
        """The counts for some rows and their fused column."""
        done = column.is_valid().to_numpy(zero_copy_only=False)
        image, text = (normalise(rows[name])[1] for name in _SOURCES)
        return cls(int(done.sum()), int((image & ~text).sum()), int((text & ~image).sum()))

    def __add__(self, other: _FusedCounts) -> _FusedCounts:
        return _FusedCounts(
            self.written + other.written, self.image_only + other.image_only, self.text_only + other.text_only
        )


def fuse_table(table: TableRef, *, image_weight: float | None = None, anew: bool = False) -> Fused:
    """Create a table's column of fused vectors, or fill it in for rows that lack one.

    An existing column keeps its weights and spreads unless others are requested. In that case it is dropped with its
    index and created again. For a moment the table has no such column, but at no time does the column differ from its
    recipe. Runs under the table's lease.

    Args:
        table: the table to change.
        image_weight: weight of the picture, above 0 and below 1; None keeps the column's weight, or uses 0.5.
        anew: measure the spreads again, because the table may have changed since.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the vectors cannot be fused, or the corpus has a column with that name.
        LeaseHeldError: a job writes to the table.
        TableMovedError: the table changed meanwhile. The column is unchanged, or gone if it was to be recreated.
        OSError: the store fails, with the same effect on the column.
    """
    if image_weight is not None and not 0 < image_weight < 1:
        raise ValueError(f"image_weight {image_weight}: give a number above 0 and below 1, or search one column alone")
    check_fusable(open_dataset(table), table)
    lease = Lease.acquire(table)
    try:
        outcome, recipe, counts = _bring_about(table, image_weight, anew, lease)
        done = open_dataset(table)
        fused = done.count_rows(f"{FUSED_VECTOR} IS NOT NULL")
    except OSError as error:
        raise translate(error, table.uri) from error
    finally:
        lease.release()
    return Fused(
        table=str(table),
        version=int(open_dataset(table).version),
        outcome=outcome,
        recipe=recipe,
        written=counts.written,
        image_only=counts.image_only,
        text_only=counts.text_only,
        fused=fused,
        rows=done.count_rows(),
    )


def _bring_about(
    table: TableRef, image_weight: float | None, anew: bool, lease: Lease
) -> tuple[Outcome, FusionRecipe, _FusedCounts]:
    dataset = open_dataset(table)
    provenance = check_fusable(dataset, table)
    there = provenance.fused
    if there is not None and not anew and _is_as_asked(there, image_weight, provenance):
        counts = _fill_in(table, dataset, there, lease)
        return ("filled in" if counts.written else "complete"), there, counts
    if image_weight is None:
        image_weight = there.image_weight if there is not None else _EVEN
    recipe = _measure(dataset, table, image_weight)
    if there is not None:
        _take_away(table)
    return ("made anew" if there is not None else "made"), recipe, _add(table, recipe, lease)


def check_fusable(dataset: lance.LanceDataset, table: TableRef) -> Provenance:
    """The provenance of a table whose image and text vectors share an embedding space.

    Raises:
        ValueError: they do not, one kind is missing, or a column of the corpus has the fused column's name.
    """
    provenance = Provenance.from_schema(dataset.schema, str(table))
    towers = provenance.vector_columns()
    if lacking := [name for name in _SOURCES if name not in towers]:
        raise ValueError(
            f"table {table}: has no {lacking[0]} to fuse; it has {', '.join(towers) or 'no vectors'}. Embed pictures "
            "and captions with an encoder that has both towers"
        )
    image, text = (towers[name] for name in _SOURCES)
    if image.space != text.space or image.dim != text.dim:
        raise ValueError(
            f"table {table}: the image vectors ({image.dim}-d) and the text vectors ({text.dim}-d) of encoder "
            f"{provenance.encoder.name!r} lie in different spaces and cannot be added; fuse rankings instead "
            f"(isthmus search --vector {IMAGE_VECTOR},{TEXT_VECTOR}), or fine-tune the towers into one space"
        )
    if FUSED_VECTOR in dataset.schema.names and provenance.fused is None:
        raise ValueError(
            f"table {table}: has a column {FUSED_VECTOR!r} of its own, which the fused vectors would overwrite; rename "
            "it in the corpus and embed into a new table"
        )
    return provenance


def _is_as_asked(there: FusionRecipe, image_weight: float | None, provenance: Provenance) -> bool:
    made_of = [tower.fingerprint for tower in provenance.vector_columns().values()]
    return made_of == [there.image_fingerprint, there.text_fingerprint] and image_weight in (None, there.image_weight)


def _measure(dataset: lance.LanceDataset, table: TableRef, image_weight: float) -> FusionRecipe:
    """A recipe with the spreads of this table.

    Raises:
        ValueError: the table holds no vectors.
    """
    sampled = [_sample(dataset, name, table) for name in _SOURCES]
    if not any(len(vectors) for vectors in sampled):
        raise ValueError(f"table {table}: holds no vectors yet; embed a corpus first")
    image_spread, text_spread = levels(*sampled)
    image, text = (Provenance.from_schema(dataset.schema).vector_columns()[name] for name in _SOURCES)
    return FusionRecipe(
        image_weight=image_weight,
        image_spread=image_spread,
        text_spread=text_spread,
        image_fingerprint=image.fingerprint,
        text_fingerprint=text.fingerprint,
        space=image.space,
    )


def _sample(dataset: lance.LanceDataset, column: str, table: TableRef) -> NDArray[np.float64]:
    found = retry(lambda: sample_vectors(dataset, column, _SAMPLED_ROWS), table.uri)
    length = dataset.schema.field(column).type.list_size
    vectors = np.array([vector for _, vector in found], np.float64).reshape(-1, length)
    norms = np.linalg.norm(vectors, axis=1)
    return np.asarray(vectors[norms > 0] / norms[norms > 0, None])


def _take_away(table: TableRef) -> None:
    """Drop the column and its index. Its query parameters go first, so that searches are exact from then on."""
    forget_parameters(open_dataset(table), FUSED_VECTOR)
    open_dataset(table).drop_columns([FUSED_VECTOR])


def _add(table: TableRef, recipe: FusionRecipe, lease: Lease) -> _FusedCounts:
    """Write the column for every fragment, and land all of them in one commit."""
    dataset = open_dataset(table)
    field = recipe.field(dataset.schema.field(IMAGE_VECTOR).type)
    fragments, counts = [], _FusedCounts()
    for fragment in dataset.get_fragments():
        lease.renew()
        metadata, schema, more = retry(partial(_with_column, fragment, recipe, field), table.uri)
        fragments.append(metadata)
        counts += more
    add_columns(table, dataset, fragments, schema)
    return counts


def _with_column(
    fragment: lance.LanceFragment, recipe: FusionRecipe, field: pa.Field
) -> tuple[FragmentMetadata, LanceSchema, _FusedCounts]:
    from lance.udf import batch_udf

    counts = _FusedCounts()

    # The schema is given because Lance would otherwise call the function on a first row twice to infer it.
    @batch_udf(output_schema=pa.schema([field]))
    def fused(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal counts
        rows = pa.Table.from_batches([batch])
        column = fused_column(rows, recipe, field.type)
        counts += _FusedCounts.of(rows, column)
        return pa.RecordBatch.from_arrays([column], schema=pa.schema([field]))

    metadata, schema = fragment.merge_columns(fused, columns=list(_SOURCES), batch_size=_BATCH_ROWS)
    return metadata, schema, counts


def _fill_in(table: TableRef, dataset: lance.LanceDataset, recipe: FusionRecipe, lease: Lease) -> _FusedCounts:
    """Write the missing fused vectors of rows that have an image or text vector, and land them in one commit."""
    rewritten: list[Rewritten] = []
    counts = _FusedCounts()
    lacking = f"{FUSED_VECTOR} IS NULL AND ({' OR '.join(f'{name} IS NOT NULL' for name in _SOURCES)})"
    for fragment in dataset.get_fragments():
        lease.renew()
        scanner = fragment.scanner(columns=list(_SOURCES), filter=lacking, with_row_id=True)
        rows = retry(scanner.to_table, table.uri)
        column = fused_column(rows, recipe, dataset.schema.field(FUSED_VECTOR).type)
        if column.null_count == len(column):
            continue
        counts += _FusedCounts.of(rows, column)
        values = pa.table({FUSED_VECTOR: column, "_rowid": rows["_rowid"]})
        rewritten.append(retry(partial(fragment.update_columns, values), table.uri))
    if rewritten:
        rewrite_columns(table, dataset, rewritten)
    return counts
