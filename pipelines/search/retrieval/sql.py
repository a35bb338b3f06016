"""SQL over tables, run by DuckDB, with functions for similarity to words, pictures and rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.search.retrieval.composing import query_vector
from pipelines.search.retrieval.queries import Term
from pipelines.search.retrieval.search import OpenTable

if TYPE_CHECKING:
    import duckdb

_ERROR_LINES = 3


def run_sql(tables: Mapping[str, OpenTable], statement: str) -> pa.Table:
    """The rows that a statement selects.

    Three functions give the cosine between a vector column and a query: `similar_to_words(image_vector, 'shoes')`,
    `similar_to_picture(image_vector, 'photo.jpg')` and `similar_to_row(image_vector, 'SKU-123')`. They use the encoder
    and the rows of the first table. Filters and columns are pushed into the scan. Similarity is computed for each
    remaining row, so a statement that ranks a whole table reads all of its vectors (`search` uses the index).

    Args:
        tables: name in the statement → table.
        statement: one SQL statement.

    Raises:
        ModuleNotFoundError: the extra `sql` is not installed.
        ValueError: the statement is invalid, or compares what cannot be compared.
    """
    try:
        import duckdb
    except ModuleNotFoundError:
        raise ModuleNotFoundError("isthmus sql needs one more package: pip install 'isthmus[sql]'") from None
    problems: list[Exception] = []
    connection = duckdb.connect()
    try:
        for name, opened in tables.items():
            connection.register(name, _readable(opened))
        _add_functions(connection, next(iter(tables.values())), problems)
        return connection.sql(_one_statement(duckdb, statement)).to_arrow_table()
    except duckdb.Error as error:
        if problems:
            raise problems[0] from None
        lines = [line for line in str(error).splitlines() if line.strip()][:_ERROR_LINES]
        raise ValueError(f"sql: {' '.join(line.strip() for line in lines)}") from None
    finally:
        connection.close()


def _one_statement(duckdb: Any, statement: str) -> str:
    found = duckdb.extract_statements(statement)
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise ValueError("sql: give one statement that selects (WITH … SELECT, FROM …)")
    return statement


def _readable(opened: OpenTable) -> Any:
    """The dataset. Half-precision vectors are left out, because DuckDB has no such type."""
    halves = [f.name for f in opened.dataset.schema if pa.types.is_fixed_size_list(f.type) and _is_half(f.type)]
    if not halves:
        return opened.dataset
    return opened.dataset.to_table(columns=[name for name in opened.dataset.schema.names if name not in halves])


def _is_half(kind: pa.DataType) -> bool:
    return bool(pa.types.is_float16(kind.value_type))


def _add_functions(connection: duckdb.DuckDBPyConnection, opened: OpenTable, problems: list[Exception]) -> None:
    name = str(opened.table)

    def vector(term: Term, column: str) -> list[float]:
        encoded = opened.encoder.encode([term], opened.provenance, name)
        return [
            float(value) for value in query_vector(opened.dataset, column, [term], encoded, name, opened.known.gallery)
        ]

    def of_words(words: str) -> list[float]:
        return vector(Term(words=words), "")

    def of_picture(path: str) -> list[float]:
        return vector(Term(image=Path(path).read_bytes()), "")

    def of_row(row_id: str) -> list[float]:
        return vector(Term(like=row_id), next(iter(opened.provenance.vector_columns())))

    sizes = {
        "words": (of_words, opened.provenance.encoder.tower("text")),
        "picture": (of_picture, opened.provenance.encoder.tower("image")),
        "row": (of_row, next(iter(opened.provenance.vector_columns().values()))),
    }
    for kind, (function, tower) in sizes.items():
        if tower is None:
            continue
        connection.create_function(f"vector_of_{kind}", _reporting(cache(function), problems), ["VARCHAR"], "FLOAT[]")
        connection.execute(
            f"CREATE MACRO similar_to_{kind}(vector, given) AS "
            f"array_cosine_similarity(vector, vector_of_{kind}(given)::FLOAT[{tower.dim}])"
        )


def _reporting(function: Callable[[str], list[float]], problems: list[Exception]) -> Callable[[str], list[float]]:
    """The function, with its exceptions recorded in `problems`: DuckDB would turn them into text."""

    def call(given: str) -> list[float]:
        try:
            return function(given)
        except Exception as error:
            problems.append(error)
            raise

    return call
