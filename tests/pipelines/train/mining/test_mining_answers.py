"""A mined table follows the definition, pair by pair; a planted false negative in it would teach a model a lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mining_tools import plain_answer, write_table

from pipelines.store.storage import TableRef
from pipelines.train.mining import mine as driver
from pipelines.train.mining.mine import mine
from pipelines.train.mining.mined import read_mined
from pipelines.train.mining.mining_settings import DIRECTIONS, MiningSettings

DIM = 8
# Four values of ±1/2: unit vectors whose products are multiples of 1/4, exact in any order of summing, often equal.
UNIT = st.lists(st.sampled_from([-0.5, 0.5]), min_size=4, max_size=4).flatmap(
    lambda values: st.permutations(range(DIM)).map(lambda order: vector(order[:4], values))
)


def vector(places: list[int], values: list[float]) -> np.ndarray:
    found = np.zeros(DIM, np.float32)
    found[places] = values
    return found


@st.composite
def tables(draw: st.DrawFn) -> tuple[list, list, list, list]:
    """Pictures with one or several captions, items with one or several pictures; some without a vector or an item."""
    images, texts, items, captions = [], [], [], []
    for _ in range(draw(st.integers(1, 10))):
        picture = draw(st.none() | UNIT) if draw(st.integers(0, 5)) == 0 else draw(UNIT)
        item = draw(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", None]))
        for _ in range(draw(st.integers(1, 3))):
            images.append(picture)
            texts.append(None if draw(st.integers(0, 5)) == 0 else draw(UNIT))
            items.append(item)
            captions.append(draw(st.sampled_from(["dog", " Dog.", "cat", "boat", "a tree", "", None, "sky", "sun"])))
    return images, texts, items, captions


SETTINGS = st.builds(
    MiningSettings,
    negatives=st.integers(1, 4),
    skip=st.integers(0, 3),
    candidates=st.integers(1, 12),
    margin=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    directions=st.sampled_from([DIRECTIONS, DIRECTIONS[:1], DIRECTIONS[1:]]),
    method=st.sampled_from(["exact", "ann"]),
    probes=st.just(1_000),
    near_duplicate_image=st.sampled_from([0.5, 0.95, 2.0]),
    near_duplicate_text=st.sampled_from([0.5, 0.95, 2.0]),
    rows_per_task=st.integers(3, 40),
)


@pytest.mark.usefixtures("ray_session")
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=tables(), asked=SETTINGS)
def test_the_result_is_that_of_the_definition(
    data: tuple[list, list, list, list], asked: MiningSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    images, texts, items, captions = data
    folder = tmp_path_factory.mktemp("db")
    table = write_table(folder / "t", images, texts, items=items, captions=captions, dim=DIM)
    expected, dropped = plain_answer(images, texts, items, captions, asked)
    out = TableRef.parse(str(folder / "hard"))
    if not expected:
        with pytest.raises(ValueError, match=r"no negative is left|has both vectors"):
            mine(table, out, asked)
        return
    report = mine(table, out, asked)
    rows = read_mined(out).negatives.to_pylist()
    found = [(r["row_id"], r["direction"], r["negative_row_id"], r["score"], r["rank"]) for r in rows]
    assert found == expected, "the same negatives, in the order of anchors and ranks"
    assert {d.direction: d.dropped for d in report.directions} == dropped
    assert all(r["negative_item_id"] == items[int(r["negative_row_id"][1:])] for r in rows)
    assert all(r["positive_score"] == images[int(r["row_id"][1:])] @ texts[int(r["row_id"][1:])] for r in rows)


def tilted(base: np.ndarray, cosine: float, axis: int) -> np.ndarray:
    """A unit vector at a given cosine to `base`, tilted towards an axis that is orthogonal to `base`."""
    other = np.zeros_like(base)
    other[axis] = 1.0
    return (cosine * base + np.sqrt(1 - cosine**2) * other).astype(np.float32)


class Planted:
    """Anchors in planes of their own, each with one hard negative and one false negative of each kind.

    Rows of anchor k: the anchor itself (cosine .8 to its picture), a hard negative (.7), and rows too good to be
    negatives: its own second row, a picture that is its picture, a caption that is its caption (by vector and by
    words), and one that scores above the margin. `direction` names the modality of these rows that scores; the other
    lies far away.
    """

    def __init__(self, direction: str, anchors: int = 6) -> None:
        self.images, self.texts, self.items, self.captions, self.hard = [], [], [], [], set()
        width = 20
        dim = anchors * width
        for k in range(anchors):
            query = np.zeros(dim, np.float32)
            query[k * width] = 1.0
            axes = iter(range(k * width + 1, (k + 1) * width))
            positive = tilted(query, 0.8, next(axes))
            name = f"anchor {k}"
            start = len(self.items)

            def add(
                own: np.ndarray,
                other: np.ndarray,
                item: str,
                caption: str,
                *,
                to_image: bool = direction == "text_to_image",
            ) -> None:
                self.images.append(own if to_image else other)
                self.texts.append(other if to_image else own)
                self.items.append(item)
                self.captions.append(caption)

            def far(axes: object = axes, dim: int = dim) -> np.ndarray:
                found = np.zeros(dim, np.float32)
                found[next(axes)] = 1.0  # type: ignore[call-overload]
                return found

            add(positive, query, name, f"the words of {k}")
            add(tilted(query, 0.7, next(axes)), far(), f"hard {k}", f"other words {k}")
            self.hard.add((f"r{start}", f"r{start + 1}"))
            add(tilted(query, 0.6, next(axes)), far(), name, f"said again {k}")
            add(tilted(positive, 0.99, next(axes)), far(), f"same target {k}", f"unlike {k}")
            add(tilted(query, 0.72, next(axes)), tilted(query, 0.97, next(axes)), f"same query {k}", f"alike {k}")
            add(tilted(query, 0.71, next(axes)), far(), f"same words {k}", f" The WORDS of  {k}. ")
            add(tilted(query, 0.79, next(axes)), far(), f"too good {k}", f"a true one, not labelled {k}")


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("method", ["exact", "ann"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_planted_hard_negative_is_found_and_no_planted_false_one(
    direction: str, method: str, tmp_path: Path
) -> None:
    planted = Planted(direction)
    table = write_table(tmp_path / "t", planted.images, planted.texts, items=planted.items, captions=planted.captions)
    asked = MiningSettings(
        directions=(direction,), method=method, probes=7, min_recall=0.2, negatives=1, where="n % 7 < 7"
    )
    report = mine(table, TableRef.parse(str(tmp_path / "hard")), asked)
    rows = read_mined(TableRef.parse(str(tmp_path / "hard"))).negatives.to_pylist()
    queries = {anchor for anchor, _ in planted.hard}
    assert {(r["row_id"], r["negative_row_id"]) for r in rows if r["row_id"] in queries} == planted.hard
    dropped = report.directions[0].dropped
    assert all(dropped[reason] >= 6 for reason in dropped if reason != "skipped_ranks"), dropped


def test_auto_leaves_exact_search_where_it_would_take_hours() -> None:
    asked = MiningSettings()
    assert driver.plan_method(asked, 100_000, 100_000) == "exact"
    assert driver.plan_method(asked, 1_000_000, 1_000_000) == "ann"
    assert driver.plan_method(asked, 10_000, 1_000_000) == "exact", "few anchors are worth the exact answer"
