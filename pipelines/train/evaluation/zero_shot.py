"""Zero-shot classification: a picture gets the class with the nearest prompts (CLIP, arXiv:2103.00020, 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.rows.contract import IMAGE_VECTOR, ITEM_ID
from pipelines.tables.filters import check_filter
from pipelines.tables.joins import hashed
from pipelines.tables.provenance import Provenance
from pipelines.tables.splitting import OFFSET
from pipelines.train.evaluation.selection import check_comparable, first_of, read_vectors

if TYPE_CHECKING:
    import lance

TOP = (1, 5)


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """Accuracy without training on the classes.

    Attributes:
        classes: number of classes.
        pictures: number of pictures that were classified.
        accuracy: share of pictures whose class is within the first 1 and 5, by `top-1` and `top-5`.
        by_class: top-1 accuracy of each class.
    """

    classes: int
    pictures: int
    accuracy: dict[str, float]
    by_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready data."""
        return asdict(self)


def class_vectors(names: Sequence[str], templates: Sequence[str], encoder: Any) -> NDArray[np.float32]:
    """Vectors of the classes (classes, dim): the normalised mean of the vectors of each class's prompts.

    Raises:
        ValueError: a template has no `{}` for the name.
    """
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"template {template!r}: has no {{}}; put it in the place of the class's name")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    vectors = encoder.encode_texts(prompts).vectors.reshape(len(names), len(templates), -1).mean(axis=1)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12), np.float32)


def classify(
    dataset: lance.LanceDataset,
    *,
    where: str | None,
    column: str,
    names: Sequence[str],
    templates: Sequence[str],
    table: str,
) -> ZeroShot:
    """Classify the pictures of a table with the encoder that made its vectors.

    Args:
        dataset: the table.
        where: SQL filter of the rows; None takes all.
        column: column with each picture's class.
        names: the classes.
        templates: prompts, with `{}` in place of the class's name.
        table: name of the table, for messages.

    Raises:
        ValueError: the column does not exist, no picture is of these classes, or the vectors cannot be compared.
    """
    from encoders.registry import load

    check_comparable(dataset, table)
    if column not in dataset.schema.names:
        raise ValueError(f"table {table}: has no column {column!r}; columns are {', '.join(dataset.schema.names)}")
    if where is not None:
        check_filter(where, dataset)
    condition = f"{IMAGE_VECTOR} IS NOT NULL" + (f" AND ({where})" if where else "")
    found = dataset.scanner(columns=[ITEM_ID, column, OFFSET], filter=condition).to_table()
    kept, _ = first_of(hashed(found[ITEM_ID])) if found.num_rows else (np.zeros(0, np.int64), None)
    place = {name: i for i, name in enumerate(names)}
    labels = np.array([place.get(str(value), -1) for value in found[column].take(kept).to_pylist()], np.int64)
    if not (labels >= 0).any():
        raise ValueError(
            f"classes: no picture's {column} is among {', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        )
    encoder = load(Provenance.from_schema(dataset.schema, table).encoder.spec)
    prompts = class_vectors(names, templates, encoder)
    offsets = found[OFFSET].to_numpy().astype(np.int64)[kept][labels >= 0]
    labels = labels[labels >= 0]
    scores = read_vectors(dataset, offsets, IMAGE_VECTOR) @ prompts.T
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(len(names))[None, :] < labels[:, None]
    ranks = ((scores > own) | ((scores == own) & earlier)).sum(axis=1) + 1
    return ZeroShot(
        classes=len(names),
        pictures=len(labels),
        accuracy={f"top-{k}": float((ranks <= k).mean()) for k in TOP},
        by_class={name: float((ranks[labels == i] == 1).mean()) for name, i in place.items() if (labels == i).any()},
    )
