"""The demo is the first thing that anybody runs. It may not fail, not the second time either."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.demo import DemoConfig, run


@pytest.mark.usefixtures("ray_session")
def test_the_demo_finds_pictures_and_may_be_run_again(tmp_path: Path) -> None:
    report = run(DemoConfig(folder=tmp_path, pictures=45))
    assert report.embed["rows_in"] == report.embed["written"] == 90
    assert all(search["hits"] for search in report.searches)
    page = Path(report.page).read_text()
    assert page.count("data:image/jpeg;base64,") >= 6 * len(report.searches)
    assert "CC BY-SA 4.0" in page

    again = run(DemoConfig(folder=tmp_path, pictures=45))
    assert (again.embed["rows_in"], again.embed["skipped"]) == (0, 90)
    assert again.searches == report.searches
