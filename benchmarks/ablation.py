"""The gain of each ingredient of fine-tuning, on unseen concepts and from one source of pictures to another.

    python benchmarks/ablation.py --folder FOLDER [--only NAME,NAME] [--epochs N]

Builds the union of four corpora (OpenMoji, Google's and Twitter's emoji, openclipart), embeds it with frozen towers,
splits it by concept, removes look-alikes of training pictures from the test side, trains each recipe, and writes
`ablation.json` and `ablation.md` with paired differences between each recipe and its base recipe.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from encoders.digest import digest_bytes
from encoders.losses.weighted import parse_term
from pipelines.store.storage import Storage, TableRef
from pipelines.tables.filters import quote
from pipelines.tables.opening import open_dataset
from pipelines.tables.splitting import Split
from pipelines.train.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate_table
from pipelines.train.evaluation.paired import compare
from pipelines.train.finetuning.checkpoints import BEST, RunFolder
from pipelines.train.finetuning.export import save_model
from pipelines.train.finetuning.loop import Trainer
from pipelines.train.finetuning.planning import plan_work
from pipelines.train.finetuning.train_settings import ModelSettings, RunSettings, TrainSettings

TOWERS = {"union": "efficientnet-lite0", "union_stages": "efficientnet-lite0-stages"}
TEXT = "use-multilingual"
CORPORA = ("openmoji", "emoji-google", "emoji-twitter", "openclipart")
COLUMNS = ("key", "concept", "source", "image", "caption")
LOOK_ALIKE = 0.95
SERIES = 20
GALLERY = 1_000
EMOJI_SHARE, CLIPART_SHARE = 0.25, 0.30
ONE_RENDERING = "(source != 'openmoji' OR item_id LIKE '%-320')"
LABELS, ALL = "said IN ('label', 'label_zh')", "true"
EMOJI, CLIPART = "source != 'openclipart'", "source = 'openclipart'"
TESTS = ("emoji", "openclipart")


def main() -> None:
    """Prepare the tables, run the recipes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in TOWERS:
        prepare(arguments.folder, name)
    wanted = set(filter(None, arguments.only.split(",")))
    results: dict[str, Any] = {}
    for name, recipe in recipes().items():
        if wanted and name not in wanted:
            continue
        results[name] = run_recipe(name, {**recipe, "seed": arguments.seed}, arguments.folder)
        say(name, results)
        write(results, arguments.folder)


def recipes() -> dict[str, dict[str, Any]]:
    """The recipes by name. Each adds one ingredient to its base recipe; None is the base of the first."""
    heads = {
        "table": "union",
        "rows": LABELS,
        "pictures": ONE_RENDERING,
        "start": "random",
        "losses": ["infonce"],
        "dropout": 0.0,
        "decay": 0.0,
        "learning_rate": 1e-3,
        "epochs": 8,
        "base": None,
    }
    tags = {**heads, "rows": ALL, "base": "heads"}
    stages = {**tags, "table": "union_stages", "base": "+ tags as captions"}
    closed = {
        **stages,
        "start": "cca",
        "learning_rate": 1e-4,
        "epochs": 4,
        "base": "+ earlier stages of the image tower",
    }
    full = {**closed, "dropout": 0.3, "base": "+ start in closed form"}
    on_top = {**full, "base": "+ dropout"}
    whole = {**on_top, "pictures": ALL}
    text_teacher = ["infonce", "distill_kl:weight=1,relation=text,temperature=0.1"]
    return {
        "heads": heads,
        "+ tags as captions": tags,
        "+ earlier stages of the image tower": stages,
        "+ start in closed form": closed,
        "+ dropout": full,
        "with a memory bank": {**on_top, "losses": ["memory_bank:size=8192,warmup_steps=20"]},
        "with weighted hard negatives": {**on_top, "losses": ["hardness:beta=2"]},
        "with soft labels of a text teacher": {**on_top, "losses": text_teacher, "teacher": "union"},
        "with weight decay": {**on_top, "decay": 1.0},
        "with mined negatives": {**on_top, "mine": True},
        "+ renderings on other backgrounds": whole,
        "+ renderings and weighted hard negatives": {
            **whole,
            "losses": ["hardness:beta=2"],
            "base": "+ renderings on other backgrounds",
        },
    }


def prepare(folder: Path, name: str) -> TableRef:
    """The table of all corpora, embedded by one pair of towers, with its split. It is made once."""
    import jobs.embed
    from pipelines.samples.catalog import build

    table = TableRef.parse(str(folder / "db" / name))
    existing = open_dataset(table, missing_ok=True)
    if existing is not None and "split" in existing.schema.names:
        return table
    (folder / "union").mkdir(parents=True, exist_ok=True)
    for corpus in CORPORA:
        if not (folder / "union" / f"{corpus}.parquet").is_file():
            info = build(corpus, folder / corpus, cache=folder / ".cache", captions="label+tags")
            chosen = pq.read_table(info.path).select(COLUMNS)
            pq.write_table(chosen, folder / "union" / f"{corpus}.parquet", row_group_size=256)
    config = jobs.embed.EmbedConfig(
        corpus=str(folder / "union"),
        table=str(table),
        encoder=f"{TOWERS[name]}+{TEXT}",
        columns={"key": "key", "item": "key"},
    )
    jobs.embed.run(config)
    if name == "union":
        add_split(table)
    else:
        split = open_dataset(TableRef.parse(str(folder / "db" / "union"))).to_table(columns=["row_id", "split", "said"])
        open_dataset(table).merge(split, "row_id")
    return table


def add_split(table: TableRef) -> None:
    """Add the columns `split` (train, emoji, openclipart, unused) and `said` (the kind of the row's caption)."""
    dataset = open_dataset(table)
    rows = dataset.to_table(columns=["row_id", "item_id", "concept", "source", "caption", "image_vector"])
    concept, source = (np.array(rows[name].to_pylist()) for name in ("concept", "source"))
    item = np.array(rows["item_id"].to_pylist())
    flat = rows["image_vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(item), -1).astype(np.float32)
    _, first = np.unique(item, return_index=True)
    share = np.array([int(digest_bytes(str(c).encode()), 16) / 2.0**64 for c in concept])
    emoji = source != "openclipart"
    held = np.where(emoji, share < EMOJI_SHARE, share < CLIPART_SHARE)
    alike = nearest(vectors[first], held[first])
    too_near = dict(zip(item[first].tolist(), (alike > LOOK_ALIKE).tolist(), strict=True))
    split = np.where(held, "unused", "train").astype(object)
    clean = held & ~np.array([too_near[i] for i in item.tolist()])
    split[clean & (source == "openmoji") & np.char.endswith(item.astype(str), "-320")] = "emoji"
    drawn = draw(item[clean & ~emoji], concept[clean & ~emoji])
    split[np.isin(item, drawn) & ~emoji] = "openclipart"
    said = pa.array(said_of(rows["row_id"].to_pylist(), rows["caption"].to_pylist(), emoji))
    added = pa.table({"row_id": rows["row_id"], "split": pa.array(split.tolist()), "said": said})
    dataset.merge(added, "row_id")


def draw(item: Any, concept: Any) -> Any:
    """Draw at most `SERIES` pictures of each title and `GALLERY` in total, at random."""
    order = np.random.default_rng(0).permutation(np.unique(item, return_index=True)[1])
    taken: dict[str, int] = {}
    chosen = []
    for place in order.tolist():
        title = str(concept[place])
        if taken.get(title, 0) < SERIES and len(chosen) < GALLERY:
            taken[title] = taken.get(title, 0) + 1
            chosen.append(item[place])
    return np.array(chosen)


def said_of(row_ids: list[str], captions: list[str], emoji: Any) -> list[str]:
    """The kind of each row's caption. A record's first caption is its label, an emoji's second its Chinese label."""
    kinds = []
    for row_id, _, is_emoji in zip(row_ids, captions, emoji.tolist(), strict=True):
        n = int(row_id.rpartition("#")[2]) if "#" in row_id else 0
        kinds.append("label" if n == 0 else "label_zh" if n == 1 and is_emoji else "tags")
    return kinds


def nearest(vectors: Any, held: Any) -> Any:
    """The cosine of each held-out picture to its nearest training picture; −1 for training pictures."""
    best = np.full(len(vectors), -1.0, np.float32)
    training = vectors[~held]
    places = np.flatnonzero(held)
    for start in range(0, len(places), 512):
        part = places[start : start + 512]
        best[part] = (vectors[part] @ training.T).max(axis=1)
    return best


def run_recipe(name: str, recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train on both sources and on each alone. Evaluate on both tests."""
    started = time.perf_counter()
    parts = {"both": (ALL, TESTS), "emoji": (EMOJI, ("openclipart",)), "clipart": (CLIPART, ("emoji",))}
    trained = {}
    for part, (where, tests) in parts.items():
        model = train(name, part, where, recipe, folder)
        if recipe.get("mine"):
            model = train_on_mined(name, part, where, recipe, folder, model)
        trained[part] = evaluate(model, recipe["table"], folder, tests)
    found = {
        "emoji": trained["both"]["emoji"],
        "openclipart": trained["both"]["openclipart"],
        "emoji → openclipart": trained["emoji"]["openclipart"],
        "openclipart → emoji": trained["clipart"]["emoji"],
    }
    return {"tests": found, "seconds": time.perf_counter() - started, "recipe": recipe}


def train_on_mined(name: str, part: str, where: str, recipe: dict[str, Any], folder: Path, first: str) -> str:
    """Continue training a model with hard negatives that it mines. Return the directory of the new model."""
    from pipelines.train.finetuning.projecting import project_table
    from pipelines.train.mining.mine import mine
    from pipelines.train.mining.mining_settings import MiningSettings

    features = TableRef.parse(str(folder / "db" / recipe["table"]))
    projected, mined = features.sibling(f"to_mine_{part}"), features.sibling(f"mined_{part}")
    project_table(features, first, projected)
    mine(projected, mined, MiningSettings(where=f"split = 'train' AND {where}", skip=2))
    again = {**recipe, "start": "random", "spec": first, "negatives": mined}
    return train(f"{name} again", part, where, again, folder)


def train(name: str, part: str, where: str, recipe: dict[str, Any], folder: Path) -> str:
    """Train in this process. Return the directory of the model."""
    table = TableRef.parse(str(folder / "db" / recipe["table"]))
    label = "".join(c if c.isalnum() else "_" for c in f"{name} {part}")
    out, run = folder / "models" / label, RunFolder(uri=str(folder / "runs" / label), storage=Storage())
    (folder / "runs" / label / "latest.pt").unlink(missing_ok=True)
    model = ModelSettings(
        spec=recipe.get("spec", f"{TOWERS[recipe['table']]}+{TEXT}"),
        seed=recipe["seed"],
        image_tuning="head",
        text_tuning="head",
        dim=256,
        start=recipe["start"],
        dropout=recipe["dropout"],
    )
    settings = RunSettings(
        train=TrainSettings(
            model=model,
            losses=tuple(parse_term(text) for text in recipe["losses"]),
            learning_rate=recipe["learning_rate"],
            weight_decay=recipe["decay"],
            warmup_steps=20,
            metric="MRR",
            resident_bytes=4 << 30,
        ),
        samples=table,
        out=str(out),
        folder=run,
        split=Split(
            where=f"split = 'train' AND {where} AND {recipe['rows']} AND {recipe['pictures']}",
            group="concept",
            fraction=0.05,
        ),
        batch_size=1024,
        epochs=recipe["epochs"],
        teacher=TableRef.parse(str(folder / "db" / recipe["teacher"])) if "teacher" in recipe else None,
        negatives=recipe.get("negatives"),
    )
    import torch

    work = plan_work(settings)
    process = Trainer(work, 0, 1, torch.device("cpu"))
    process.run()
    best = run.load(BEST)
    assert best is not None
    return save_model(work.settings.model, best, str(out), {})


def evaluate(model: str, table: str, folder: Path, tests: tuple[str, ...]) -> dict[str, Evaluation]:
    """Evaluate the search of held-out pictures by their labels: test → evaluation."""
    from pipelines.train.finetuning.projecting import project_table

    projected = TableRef.parse(str(folder / "db" / Path(model).name))
    project_table(TableRef.parse(str(folder / "db" / table)), model, projected)
    return {
        test: evaluate_table(projected, EvaluationSettings(where=f"split = {quote(test)} AND said = 'label'"))
        for test in tests
    }


def say(name: str, results: dict[str, Any]) -> None:
    """Print R@10 of a recipe to standard error."""
    tests = results[name]["tests"]
    shown = "  ".join(f"{t} {e.directions['text_to_image'].metrics['R@10']:.3f}" for t, e in tests.items())
    sys.stderr.write(f"{name:36s} {shown}  ({results[name]['seconds']:.0f} s)\n")


def write(results: dict[str, Any], folder: Path) -> None:
    """Write `ablation.json` and `ablation.md`."""
    names = list(results)
    lines = ["| recipe | " + " | ".join(results[names[0]]["tests"]) + " |", "|---" * 5 + "|"]
    data = []
    for name in names:
        cells = []
        base = results[name]["recipe"]["base"]
        for test, evaluation in results[name]["tests"].items():
            result = evaluation.directions["text_to_image"]
            entry = {"recipe": name, "test": test, **result.to_dict()}
            cell = f"{result.metrics['R@10']:.3f}"
            for label, other in (("gain", base), ("over_heads", "heads" if base else None)):
                if other in results:
                    gain = compare(results[other]["tests"][test], evaluation, "R@10", "text_to_image")
                    entry[label] = gain.to_dict()
                    if label == "gain":
                        cell += f" ({gain.mean:+.3f}, {gain.low:+.3f} to {gain.high:+.3f})"
            cells.append(cell)
            data.append(entry)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", *against_heads(data)]
    (folder / "ablation.json").write_text(json.dumps(data, indent=1))
    (folder / "ablation.md").write_text("\n".join(lines) + "\n")


def against_heads(data: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of each recipe's gain over the plain heads, with its 95 % interval and p-value."""
    lines = ["| recipe against the plain heads | test | gain in R@10 | 95 % interval | p |", "|---" * 5 + "|"]
    for entry in data:
        if gain := entry.get("over_heads"):
            bounds = f"{gain['low']:+.3f} to {gain['high']:+.3f}"
            lines.append(
                f"| {entry['recipe']} | {entry['test']} | {gain['mean']:+.3f} | {bounds} | {gain['p_value']:.4f} |"
            )
    return lines


if __name__ == "__main__":
    main()
