"""The demo is the first thing that anybody runs. It must not fail, not even the second time."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo import DemoConfig, run

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_session")
def test_the_demo_goes_round_the_loop_and_may_be_run_again(tmp_path: Path) -> None:
    report = run(DemoConfig(folder=tmp_path, pictures=150, epochs=6))
    assert report.embed["rows_in"] == report.embed["written"] >= 300
    assert [trained["features"] for trained in report.trained] == [["image", "text"]] * 2
    assert report.mined["out_rows"] > 0
    assert report.evaluation["gallery"] >= 3
    assert all(search["hits"] for search in report.searches)
    gallery, evaluation, training = (Path(page).read_text() for page in report.pages)
    assert gallery.count("data:image/jpeg;base64,") >= 3 * len(report.searches)
    assert "CC BY-SA 4.0" in gallery
    assert "data:image/png;base64," in evaluation
    assert "data:image/png;base64," in training

    again = run(DemoConfig(folder=tmp_path, pictures=150, epochs=6))
    assert (again.embed["rows_in"], again.embed["skipped"]) == (0, report.embed["rows_in"])
    assert [trained["resumed_at"] for trained in again.trained] == [trained["steps"] for trained in report.trained]
    assert again.searches == report.searches
