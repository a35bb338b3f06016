"""`isthmus demo`: every step on real pictures: embed, train, mine, train again, evaluate, promote, search."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig
from jobs.finetune import FinetuneConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

_TOWERS = "efficientnet-lite0-stages+use-multilingual"
_PICTURES = 3_000
_HELD_OUT = "split = 'test'"
_SMALLEST = 60
_WORDS = ("a happy face", "something to eat", "wild animal", "a vehicle", "一只动物", "水果", "下雨", "运动")
_HITS = 6
_TRAINING = "split = 'train'"
_VALIDATION = "split = 'validation'"
_BATCH = 512


@Parameter(name="*")
class DemoConfig(JobConfig):
    """Config of `isthmus demo`."""

    folder: Path = Field(
        default=Path("demo"), description="Folder for the corpus, the tables, the models and the pages."
    )
    pictures: int = Field(
        default=_PICTURES, ge=_SMALLEST, description="Number of pictures to render and embed; ignored with --full."
    )
    epochs: int = Field(default=30, ge=1, description="Passes over the training rows, in each of the two trainings.")
    full: bool = Field(
        default=False, description="Use all pictures, and also train the image tower's last 2 blocks. Takes hours."
    )


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """The results of the demo, step by step."""

    corpus: dict[str, Any]
    embed: dict[str, Any]
    trained: list[dict[str, Any]]
    mined: dict[str, Any]
    evaluation: dict[str, Any]
    promotion: dict[str, Any]
    searches: list[dict[str, Any]] = field(default_factory=list)
    pages: list[str]
    table: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        found = Table("query", "hits among unseen pictures (score)", box=None, header_style="bold", pad_edge=False)
        for search in self.searches:
            hits = " · ".join(f"{hit['caption']} ({hit['score']:.2f})" for hit in search["hits"])
            found.add_row(search["query"], hits)
        embed, promotion = self.embed, self.promotion
        lines = (
            f"{embed['rows_in']:,} rows in = {embed['written']:,} written + {sum(embed['rejected'].values())} rejected"
            + (f" ({embed['skipped']:,} embedded by earlier runs)" if embed["skipped"] else ""),
            f"words → pictures of {self.evaluation['gallery']} concepts never trained on: {_recalls(self)}",
            f"{'promoted' if promotion['promoted'] else 'kept'}: {promotion['why']}",
            *(f"page: {page}" for page in self.pages),
            f"ask more: isthmus search {self.table} 'your words' --html page.html",
            f"{self.seconds:.0f} s",
        )
        return Group(found, Text(""), *(Text(line) for line in lines))


def _recalls(report: DemoReport) -> str:
    chance = report.evaluation["chance_R@10"]
    stages = ("heads", "with mined negatives and memory bank")
    shown = (
        f"{name} R@10 {report.evaluation[name]:.3f} ({report.evaluation[name] / chance:.0f} × chance)"
        for name in stages
    )
    return "; ".join(shown) + f"; chance {chance:.3f}"


def run(config: DemoConfig) -> DemoReport:
    """Run all steps once. A second run in the same folder skips most of the work.

    Raises:
        ModuleNotFoundError: the packages of the extra `demo` are not installed.
    """
    started = time.perf_counter()
    config.folder.mkdir(parents=True, exist_ok=True)
    loop = Loop(config, _TOWERS, _HELD_OUT)
    corpus = loop.render()
    embedded = loop.embed(corpus)
    first = loop.train_heads()
    mined = loop.mine()
    second = loop.train_again()
    evaluation, promotion, page = loop.evaluate_and_promote()
    searches, gallery = loop.search()
    return DemoReport(
        corpus=corpus,
        embed=embedded,
        trained=[first, second],
        mined=mined,
        evaluation=evaluation,
        promotion=promotion,
        searches=searches,
        pages=[gallery, page, *second["pages"][1:]],
        table=loop.table,
        seconds=round(time.perf_counter() - started, 1),
    )


class Loop:
    """The steps of the demo, in one folder.

    Args:
        config: the job.
        towers: spec of the two frozen towers, IMAGE+TEXT.
        held_out: SQL filter of the rows that no training reads.
    """

    def __init__(self, config: DemoConfig, towers: str, held_out: str) -> None:
        self._config = config
        self._towers = towers
        self._held_out = held_out
        size = "all" if config.full else str(config.pictures)
        self._corpus = config.folder / f"corpus_{size}"
        database = config.folder / "db"
        self.table = str(database / f"openmoji_{size}")
        self._features, self._second, self._mined = (f"{self.table}_{name}" for name in ("features", "second", "mined"))
        self._models = config.folder / f"models_{size}"

    def render(self) -> dict[str, Any]:
        """Render the drawings into a Parquet corpus. Return its report."""
        from jobs.display import row_progress, say
        from pipelines.samples.openmoji import build

        say("rendering OpenMoji drawings into a Parquet corpus")
        pictures = None if self._config.full else self._config.pictures
        with row_progress("rendering") as progress:
            return build(self._corpus, pictures=pictures, captions="label+tags", progress=progress).to_dict()

    def embed(self, corpus: dict[str, Any]) -> dict[str, Any]:
        """Run the frozen towers once over the corpus and keep their vectors as features. Return the embed report."""
        import jobs.embed
        from jobs.display import row_progress, say

        say(f"embedding {corpus['pictures']:,} pictures of {corpus['concepts']:,} concepts by frozen towers")
        config = jobs.embed.EmbedConfig(
            corpus=str(self._corpus / "openmoji.parquet"),
            table=self._features,
            encoder=self._towers,
            columns={"key": "key", "item": "item"},
            thumbnails=256 if self._config.full else 128,
            commit_interval_s=15.0,
        )
        with row_progress("embedding") as progress:
            return jobs.embed.run(config, progress).to_dict()

    def train_heads(self) -> dict[str, Any]:
        """Train two projections into a joint space on the features, and make the table of their vectors."""
        from jobs.display import say

        say("training heads contrastively; a third of the concepts is held out")
        report = self._finetune("first", encoder=self._towers, dim=256, dropout=0.2, start="cca", learning_rate=1e-4)
        self._project("first", self.table)
        return report

    def mine(self) -> dict[str, Any]:
        """Mine hard negatives from the table of the first heads, among training rows only."""
        from jobs.display import say
        from pipelines.train.mining.mine import mine
        from pipelines.train.mining.mining_settings import MiningSettings

        kept = self._mined_before()
        if kept is not None:
            return {"out_rows": kept}
        say("mining hard negatives")
        return mine(self._ref(self.table), self._ref(self._mined), MiningSettings(where=_TRAINING)).to_dict()

    def _mined_before(self) -> int | None:
        """Rows of the negatives that an earlier demo mined with the same heads; None if there are none.

        Negatives mined anew would make the second training a new run, which could not resume.
        """
        from pipelines.tables.opening import open_dataset
        from pipelines.tables.provenance import Provenance
        from pipelines.train.mining.mined import read_mined

        if open_dataset(self._ref(self._mined), missing_ok=True) is None:
            return None
        found = read_mined(self._ref(self._mined))
        encoder = Provenance.from_schema(open_dataset(self._ref(self.table)).schema).encoder
        return found.negatives.num_rows if found.encoder.fingerprint == encoder.fingerprint else None

    def train_again(self) -> dict[str, Any]:
        """Train on from the first heads with mined negatives and a memory bank; with --full, the image tower too."""
        from jobs.display import say

        say("training again, against mined negatives and a memory bank")
        options: dict[str, Any] = {"learning_rate": 1e-4, "negatives": self._mined}
        options["loss"] = ["memory_bank:size=4096,warmup_steps=20"]
        if self._config.full:
            options |= {"train_image": "last:2", "augment": "light", "learning_rate": 1e-4, "epochs": 2}
        report = self._finetune("second", encoder=str(self._models / "first"), **options)
        if self._config.full:
            self._embed_again()
        else:
            self._project("second", self._second)
        return report

    def evaluate_and_promote(self) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Evaluate both models on held-out concepts; promote the second if the 95 % interval of its gain is above 0.

        Returns:
            The metrics, the promotion's report, and the path of the evaluation page.
        """
        import jobs.evaluate
        import jobs.promote
        from jobs.display import say

        say("evaluating both models on held-out concepts; the better one is promoted")
        page = self._config.folder / "evaluation.html"
        report = jobs.evaluate.run(
            jobs.evaluate.EvaluateConfig(target=self.table, compare=self._second, where=self._held_out, html=page)
        )
        assert report.other is not None
        first, second = (e.directions["text_to_image"] for e in (report.evaluation, report.other))
        promotion = jobs.promote.run(
            jobs.promote.PromoteConfig(table=self.table, candidate=self._second, where=self._held_out)
        )
        figures = {
            "queries": first.queries,
            "gallery": first.gallery,
            "chance_R@10": first.chance,
            "heads": first.metrics["R@10"],
            "with mined negatives and memory bank": second.metrics["R@10"],
            "details": report.to_dict(),
        }
        return figures, promotion.to_dict(), str(page)

    def search(self) -> tuple[list[dict[str, Any]], str]:
        """Search pictures of held-out concepts by words. Return the hits of each query and the path of a page."""
        import jobs.index
        from jobs.display import say
        from pipelines.pages.cards import Section, write_page
        from pipelines.rows.contract import CAPTION
        from pipelines.samples.openmoji import ATTRIBUTION
        from pipelines.search.retrieval.queries import Query
        from pipelines.search.retrieval.search import search
        from pipelines.store.storage import Storage

        say("searching")
        jobs.index.run(jobs.index.IndexConfig(table=self.table))
        sections = []
        for words in _WORDS:
            query = Query(
                words=words,
                k=_HITS,
                distinct=True,
                where=self._held_out,
                columns=(CAPTION, "keywords"),
                vector_column="image_vector",
            )
            sections.append(Section(title=words, hits=search(self._ref(self.table), query)))
        page = self._config.folder / "demo.html"
        write_page(page, "isthmus demo: words to unseen pictures", sections, Storage.from_options(), ATTRIBUTION)
        return [{"query": s.title, "hits": s.hits.to_list()} for s in sections], str(page)

    def _finetune(self, name: str, **options: Any) -> dict[str, Any]:
        import jobs.finetune
        from jobs.display import training_table

        given = {
            "corpus": self._features,
            "out": str(self._models / name),
            "where": f"{_TRAINING} OR {_VALIDATION}",
            "validation_where": _VALIDATION,
            "epochs": self._config.epochs,
            "batch_size": _BATCH,
            "evaluate_every": 5,
            "warmup_steps": 20,
            "metric": "MRR",
        }
        config = FinetuneConfig(**{**given, **options})
        self._forget_other_runs(config)
        with training_table() as on_row:
            return jobs.finetune.run(config, on_row).to_dict()

    def _forget_other_runs(self, config: FinetuneConfig) -> None:
        """Delete the files of an earlier run with another config: the demo then trains anew."""
        stamp = self._models / f"{Path(config.out).name}.config.json"
        text = config.model_dump_json()
        if stamp.is_file() and stamp.read_text() != text:
            shutil.rmtree(f"{config.out}.run", ignore_errors=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(text)

    def _project(self, model: str, table: str) -> None:
        from pipelines.train.finetuning.projecting import project_table

        project_table(self._ref(self._features), str(self._models / model), self._ref(table))

    def _embed_again(self) -> None:
        import jobs.embed
        from jobs.display import row_progress

        config = jobs.embed.EmbedConfig(
            corpus=str(self._corpus / "openmoji.parquet"),
            table=self._second,
            encoder=str(self._models / "second"),
            columns={"key": "key", "item": "item"},
            thumbnails=128,
        )
        with row_progress("embedding") as progress:
            jobs.embed.run(config, progress)

    def _ref(self, uri: str) -> Any:
        from pipelines.store.storage import TableRef

        return TableRef.parse(uri)
