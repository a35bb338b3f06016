"""The commands of training and evaluation as scripts call them: one JSON object, or one line and an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
from commands import isthmus
from training_tools import latent_table

from jobs.evaluate import EvaluateConfig, run
from jobs.finetune import FinetuneConfig

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("towers")
    return f"{tiny_models.tiny_vit(folder / 'vit')}+{tiny_models.tiny_bert(folder / 'bert')}"


def test_train_project_evaluate_promote(towers: str, tmp_path: Path) -> None:
    table = str(latent_table(tmp_path / "db" / "features", towers, 120))
    options = ("--encoder", towers, "--out", tmp_path / "m", "--dim", 8, "--epochs", 30, "--batch-size", 32, "--json")
    done = isthmus("finetune", table, *options, "--learning-rate", 0.02, "--metric", "MRR")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] > 0

    refused = isthmus("evaluate", table)
    assert refused.returncode == 1
    assert "different spaces" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1

    from pipelines.store.storage import TableRef
    from pipelines.train.finetuning.projecting import project_table

    shown = TableRef.parse(str(tmp_path / "db" / "shown"))
    version = project_table(TableRef.parse(table), str(tmp_path / "m"), shown)
    assert project_table(TableRef.parse(table), str(tmp_path / "m"), shown) == version
    with pytest.raises(ValueError, match="not the features"):
        project_table(shown, str(tmp_path / "m"), TableRef.parse(str(tmp_path / "db" / "third")))

    page = tmp_path / "report.html"
    report = run(EvaluateConfig(target=str(shown), where="n >= 60", slice=["n"], html=page, markdown=tmp_path / "r.md"))
    found = report.to_dict()
    assert found["text_to_image"]["queries"] == found["image_to_text"]["gallery"] == 60
    assert found["text_to_image"]["R@10"] > 2 * found["text_to_image"]["chance_R@10"]
    low, high = found["text_to_image"]["intervals"]["R@10"]
    assert low <= found["text_to_image"]["R@10"] <= high
    assert len(found["text_to_image"]["slices"]["n"]) == 60
    assert "data:image/png" in page.read_text()
    done = isthmus("promote", shown, "--encoder", tmp_path / "m", "--features", table, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["promoted"] is False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loss": ["distill_l2"]}, "needs --teacher"),
        ({"teacher": "t"}, "no loss uses it"),
        ({"remine_every": 1, "negatives": "n"}, "give one of the two"),
        ({"sharding": "fsdp"}, "needs two workers or more; raise --workers"),
    ],
)
def test_options_that_contradict_each_other(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FinetuneConfig(corpus="c", encoder="e", out="o", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 1, "tag": "t"}, "give one of the two"),
        ({"classes": "a,b"}, "give both"),
        ({"exclude_leaked": True}, "needs --train"),
        ({"split": "test", "where": "n = 1"}, "give one of the two"),
    ],
)
def test_evaluations_that_make_no_sense(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluateConfig(target="t", **changes)  # type: ignore[arg-type]
