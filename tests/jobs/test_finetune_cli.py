"""`isthmus finetune` as scripts call it: one JSON object, or one line and an exit code; stores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_models
from commands import isthmus
from corpora import pairs, write_parquet
from stores import BUCKET, SECRET, client, moto, options, upload
from training_tools import heads_config, latent_table, shapes_corpus, vit_and_bert

from jobs.finetune import run

pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vit_and_bert(tmp_path_factory.mktemp("towers"))


@pytest.fixture(scope="module")
def table(towers: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(latent_table(tmp_path_factory.mktemp("db") / "latent", towers, 60))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with moto() as endpoint:
        yield endpoint


def test_help_names_every_option_and_loads_nothing_heavy() -> None:
    done = isthmus("finetune", "--help")
    assert done.returncode == 0
    from jobs.finetune import FinetuneConfig

    for name in FinetuneConfig.model_fields:
        if name != "corpus":
            assert f"--{name.replace('_', '-')}" in done.stdout
    probe = (
        "import sys; from jobs.cli import app; app(['finetune', '--help'], exit_on_error=False, "
        "result_action='return_value'); sys.exit(bool({'torch', 'ray', 'lance'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_a_corpus_trains_and_only_json_is_on_standard_output(towers: str, tmp_path: Path) -> None:
    """From pictures to an encoder in one command, with losses and a short last batch."""
    corpus = write_parquet(tmp_path / "c.parquet", pairs(40))
    given = ("finetune", corpus, "--encoder", towers, "--out", tmp_path / "m", "--columns.key", "id", "--json")
    losses = ("--loss", "infonce", "--loss", "memory_bank:size=64,warmup_steps=2")
    done = isthmus(*given, *losses, "--dim", 8, "--epochs", 2, "--batch-size", 16, "--workers", 2)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert report["features"] == ["image", "text"], "frozen backbones run once"
    assert report["train_rows"] + report["validation_rows"] == 40
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loss", "nce"], "loss 'nce': unknown; give one of infonce"),
        (["--encoder", "/no/such/model"], "/no/such/model"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], words: str, table: str, towers: str, tmp_path: Path
) -> None:
    import re

    encoder = [] if "--encoder" in arguments else ["--encoder", towers]
    done = isthmus("finetune", table, *encoder, "--out", tmp_path / "m", *arguments)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if line.startswith("isthmus: ")]
    assert len(said) == 1, done.stderr
    assert re.search(words, said[0])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.run").exists(), "what is refused leaves nothing"


@pytest.mark.heavy
def test_a_corpus_of_one_row_is_refused_in_one_line(towers: str, tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", pairs(1))
    given = ("finetune", corpus, "--encoder", towers, "--out", tmp_path / "m", "--columns.key", "id")
    done = isthmus(*given, "--validation-fraction", 0)
    assert done.returncode == 1
    assert "a contrastive loss needs 2 or more" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(200)
@pytest.mark.slow
def test_corpus_run_and_model_on_a_store(s3: str, towers: str, tmp_path: Path) -> None:
    """Only the given options say how to reach the store, and the secret is written nowhere."""
    corpus = upload(s3, shapes_corpus(tmp_path / "corpus", 24), "shapes")
    shared = {"storage_options": options(s3), "corpus_storage_options": options(s3), "columns": {"key": "id"}}
    config = heads_config(
        corpus, towers, tmp_path, **shared, epochs=2, batch_size=8, checkpoint_every=1, workers=2
    ).model_copy(update={"out": f"s3://{BUCKET}/models/heads"})
    report = run(config)
    assert report.model == config.out
    store = client(s3)
    keys = {entry["Key"] for entry in store.list_objects_v2(Bucket=BUCKET, Prefix="models/")["Contents"]}
    assert {"models/heads/model.safetensors", "models/heads.run/latest.pt"} <= keys
    for key in keys:
        data = store.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        assert SECRET.encode() not in data, key
        if key.startswith("models/heads/"):
            target = tmp_path / key
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    from encoders.registry import load

    assert load(str(tmp_path / "models" / "heads")).encode_texts(["red"]).vectors.shape == (1, 8)
    again = run(config)
    assert again.resumed_at == again.steps == report.steps


@pytest.mark.usefixtures("ray_session")
def test_a_store_that_is_not_there_is_named(towers: str, table: str, tmp_path: Path) -> None:
    nowhere = options("http://127.0.0.1:9")
    config = heads_config(table, towers, tmp_path, storage_options=nowhere).model_copy(update={"out": "s3://no/m"})
    with pytest.raises((OSError, ValueError)) as caught:
        run(config)
    assert SECRET not in str(caught.value)


@pytest.mark.heavy
def test_a_tiny_clip_takes_the_pixel_path_from_the_command_line(tmp_path: Path) -> None:
    clip = tiny_models.tiny_clip(tmp_path / "clip")
    corpus = shapes_corpus(tmp_path / "corpus", 24)
    given = ("finetune", corpus, "--encoder", clip, "--out", tmp_path / "m", "--columns.key", "id", "--json")
    done = isthmus(*given, "--train-image", "last:1", "--augment", "light", "--epochs", 1, "--batch-size", 8)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["features"] == []
