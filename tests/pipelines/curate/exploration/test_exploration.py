"""Exploration finds what was planted: clusters and their names, an outlier, twins, pairs that do not match."""

from __future__ import annotations

import json
from pathlib import Path

import lance
import numpy as np
import pyarrow.parquet as pq
import pytest
from browsers import browser_page
from commands import isthmus
from mining_tools import card, write_table
from serving_tools import make_table

from pipelines.curate.exploration.explore import Explored, ExploreSettings, explore
from pipelines.curate.exploration.map_page import write_map
from pipelines.curate.exploration.mapping import describe_clusters, find_clusters, project
from pipelines.store.storage import Storage, TableRef

DIM, TOPICS, EACH = 32, 4, 60
N = TOPICS * EACH
NAMES = ("red shoes", "小狗", "steam engines", "maps of Spain")
OUTLIER, TWIN, MISMATCHED = 7, 100, 150


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def planted() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures and captions of four topics; one row of no topic, one duplicate, one with the wrong caption."""
    rng = np.random.default_rng(0)
    middles = unit(rng.standard_normal((TOPICS, DIM)))
    topic = np.arange(N) // EACH
    images = unit(middles[topic] + 0.6 * unit(rng.standard_normal((N, DIM))))
    texts = unit(images + 0.3 * unit(rng.standard_normal((N, DIM))))
    images[OUTLIER] = texts[OUTLIER] = unit(-middles.sum(axis=0))
    images[TWIN + 1] = unit(images[TWIN] + 0.01 * unit(rng.standard_normal(DIM)))
    texts[MISMATCHED] = unit(-images[MISMATCHED])
    captions = [f"{NAMES[t]} {i}" for i, t in enumerate(topic)]
    return images, texts, captions


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> TableRef:
    images, texts, captions = planted()
    path = tmp_path_factory.mktemp("explored") / "db" / "t"
    return write_table(path, list(images), list(texts), items=[None] * N, captions=captions)


@pytest.fixture(scope="module")
def explored(table: TableRef) -> Explored:
    return explore(table, lance.dataset(table.uri), ExploreSettings())


@pytest.mark.slow
def test_clusters_are_the_topics_and_bear_their_names(explored: Explored) -> None:
    topic = np.arange(N) // EACH
    assert TOPICS <= len(explored.clusters) <= 2 * TOPICS
    assert {int(topic[cluster.members[0]]) for cluster in explored.clusters} == set(range(TOPICS))
    for cluster in explored.clusters:
        members = list(cluster.members)
        found = np.bincount(topic[members], minlength=TOPICS)
        assert found.max() >= cluster.size - 1  # the outlier is in some cluster
        assert all(caption.startswith(NAMES[int(found.argmax())]) for caption in cluster.captions)
        assert len(set(cluster.captions)) == 3
    assert [c.size for c in explored.clusters] == sorted((c.size for c in explored.clusters), reverse=True)


@pytest.mark.slow
def test_the_odd_ones_are_found(explored: Explored) -> None:
    assert explored.outliers(1) == [OUTLIER]
    assert explored.groups() == [[TWIN, TWIN + 1]]
    assert explored.mismatched is not None
    worst = explored.mismatched.rows
    assert worst["row_id"][0].as_py() == f"r{MISMATCHED}"
    assert worst["score"][0].as_py() == pytest.approx(-1, abs=1e-5)
    images, texts, _ = planted()
    assert explored.mismatched.mean == pytest.approx(float((images * texts).sum(axis=1).mean()), abs=1e-5)
    assert explored.mismatched.pairs == N


@pytest.mark.slow
def test_outlierness_is_the_mean_distance_to_ten_others(explored: Explored) -> None:
    images, _, _ = planted()
    cosines = images @ images.T
    np.fill_diagonal(cosines, -np.inf)
    nearest = -np.sort(-cosines, axis=1)[:, :10]
    np.testing.assert_allclose(explored.outlierness, 1 - nearest.mean(axis=1), atol=1e-5)


@pytest.mark.slow
def test_a_draw_is_compared_with_the_whole_table_and_repeats(table: TableRef, explored: Explored) -> None:
    dataset = lance.dataset(table.uri)
    some = explore(table, dataset, ExploreSettings(rows=80, where="n >= 4", seed=3))
    again = explore(table, dataset, ExploreSettings(rows=80, where="n >= 4", seed=3))
    assert len(some.sample) == 80
    assert some.sample.total == N - 4
    np.testing.assert_array_equal(some.points, again.points)
    number = np.array([int(row.removeprefix("r")) for row in some.sample.rows["row_id"].to_pylist()])
    assert (np.diff(number) > 0).all()
    images, _, _ = planted()
    cosines = images[number] @ images[4:].T
    cosines[np.arange(80), number - 4] = -np.inf
    expected = 1 - (-np.sort(-cosines, axis=1)[:, :10]).mean(axis=1)
    np.testing.assert_allclose(some.outlierness, expected, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 15])
def test_a_few_rows_have_a_map_too(tmp_path: Path, n: int) -> None:
    images, texts, captions = planted()
    few = write_table(tmp_path / "t", list(images[:n]), list(texts[:n]), items=[None] * n, captions=captions[:n])
    seen = explore(few, lance.dataset(few.uri), ExploreSettings())
    assert seen.points.shape == (n, 2)
    assert np.isfinite(seen.points).all()
    assert seen.clusters == []
    page = write_map(tmp_path / "page.html", seen, 5, Storage())
    assert "Outliers" in page.read_text()


def test_no_clusters_in_nothing() -> None:
    empty = np.zeros((0, 2), np.float32)
    assert find_clusters(empty).tolist() == []
    assert describe_clusters(np.zeros((0, 4), np.float32), find_clusters(empty), []) == []
    assert project(np.zeros((0, 4), np.float32), 0).shape == (0, 2)


def test_two_spaces_have_no_mismatched_pairs_and_rubbish_is_refused(tmp_path: Path, table: TableRef) -> None:
    images, texts, _ = planted()
    two = card(DIM, spaces=("one", "two"))
    ref = write_table(tmp_path / "t", list(images[:9]), list(texts[:9]), items=[None] * 9, encoder=two)
    assert explore(ref, lance.dataset(ref.uri), ExploreSettings()).mismatched is None
    dataset = lance.dataset(table.uri)
    with pytest.raises(ValueError, match="no row has a vector where n > 1000"):
        explore(table, dataset, ExploreSettings(where="n > 1000"))
    with pytest.raises(ValueError, match="nonsense"):
        explore(table, dataset, ExploreSettings(where="nonsense > 1"))


HOSTILE = '</script><script>window.broken=1</script><img src=x onerror="window.broken=2">"\'&{{ 1 }}'


@pytest.mark.slow
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    ref = make_table(tmp_path)
    lance.dataset(ref.uri).update({"caption": f"'{HOSTILE.replace(chr(39), chr(39) * 2)}'"}, where="price < 30")
    out = tmp_path / "seen"
    done = isthmus("explore", ref.uri.removesuffix(".lance"), "--html", tmp_path / "p.html", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["by"], report["shown"]) == ("image", 60)
    assert pq.read_table(out / "rows.parquet").num_rows == 60
    assert pq.read_table(out / "mismatched.parquet").num_rows == 24
    assert sum(pq.read_table(out / "clusters.parquet")["size"].to_pylist()) <= 60
    with browser_page() as page:
        page.goto(f"file://{tmp_path / 'p.html'}")
        page.wait_for_selector(".map canvas, .map .bk-Figure")
        page.wait_for_function("() => Bokeh.documents.length === 1")
        # The points' positions on the screen; the pointer visits them until a picture is shown.
        places = page.evaluate(
            """() => {
                const view = Object.values(Bokeh.index.roots ?? Bokeh.index)[0];
                const box = view.canvas_view.el.getBoundingClientRect(), frame = view.frame;
                const renderer = view.model.renderers[0], data = renderer.data_source.data;
                return Array.from(data.x, (x, i) => [
                    box.left + frame.x_scale.compute(x), box.top + frame.y_scale.compute(data.y[i]), data.row_id[i],
                ]);
            }"""
        )
        x, y, _ = places[10]
        page.mouse.move(x, y)
        shown = page.locator("img[src^='data:image/jpeg']:visible >> nth=0")
        shown.wait_for()
        assert shown.evaluate("image => image.naturalWidth") > 0
        assert page.evaluate("() => window.broken") is None
        assert page.locator("text=Mismatched pairs").count() == 1
        assert page.locator(".card, li").count() >= 24
