"""The table of commands: name, config, one line of help, and the progress display.

Nothing heavy is imported here: a job's module imports its pipeline when it runs.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs.calibrate import CalibrateConfig
from jobs.config import JobConfig, Report
from jobs.corpus import CorpusConfig
from jobs.dedup import DedupConfig
from jobs.demo import DemoConfig
from jobs.embed import EmbedConfig
from jobs.encoders import EncodersConfig
from jobs.evaluate import EvaluateConfig
from jobs.exchange import ExportConfig, ImportConfig
from jobs.explore import ExploreConfig
from jobs.finetune import FinetuneConfig
from jobs.finetune_reranker import FinetuneRerankerConfig
from jobs.fuse import FuseConfig
from jobs.index import IndexConfig
from jobs.info import InfoConfig
from jobs.maintain import MaintainConfig
from jobs.mine import MineConfig
from jobs.plan import PlanConfig
from jobs.promote import PromoteConfig
from jobs.rejects import RejectsConfig, RetryConfig
from jobs.search import SearchConfig
from jobs.search_many import SearchManyConfig
from jobs.serve import ServeConfig
from jobs.sql import SqlConfig
from jobs.sync import SyncConfig


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `isthmus`.

    Attributes:
        name: what users type; two words for a subcommand of a command.
        config: the class of the job's config. Its module defines the function that runs the job.
        help: the command's description in `--help`, in one line.
        function: name of that function. It takes the config and returns a report.
        rows: label of the progress line that counts rows; None shows no line. If set, the function also takes a
            progress callback.
        log: whether the function also takes a callback for the rows of a training log, which are shown as a table.
    """

    name: str
    config: type[JobConfig]
    help: str
    function: str = "run"
    rows: str | None = None
    log: bool = False

    def __call__(self, config: JobConfig) -> Report:
        """Import the job and run it."""
        run = getattr(importlib.import_module(self.config.__module__), self.function)
        if self.rows is not None:
            from jobs.display import row_progress

            with row_progress(self.rows) as progress:
                return run(config, progress)
        if self.log:
            from jobs.display import training_table

            with training_table() as on_row:
                return run(config, on_row)
        return run(config)

    def as_function(self) -> Callable[..., Report]:
        """A function whose signature and docstring cyclopts reads. The config is optional if no field is required."""
        required = any(field.is_required() for field in self.config.model_fields.values())
        default: Any = inspect.Parameter.empty if required else self.config()
        parameter = inspect.Parameter(
            "config", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=self.config, default=default
        )

        def call(config: JobConfig = default) -> Report:
            return self(config)

        call.__name__ = self.name.replace("-", "_").replace(" ", "_")
        call.__doc__ = self.help
        call.__annotations__ = {"config": self.config, "return": Report}
        call.__signature__ = inspect.Signature([parameter], return_annotation=Report)  # type: ignore[attr-defined]
        return call


COMMANDS = (
    Command(
        name="embed",
        config=EmbedConfig,
        rows="embedding",
        help="Embed a corpus into a LanceDB table. An interrupted run continues where it stopped.",
    ),
    Command(
        name="sync",
        config=SyncConfig,
        rows="embedding",
        help="Make a table mirror its corpus: embed new files, "
        "replace rows of changed files, remove rows of deleted ones.",
    ),
    Command(
        name="plan",
        config=PlanConfig,
        help="Estimate the work, time, memory and cost of `embed` with the same options. Writes nothing.",
    ),
    Command(
        name="rejects",
        config=RejectsConfig,
        help="Show the rows of a table's corpus that could not be embedded, and the reasons.",
    ),
    Command(
        name="rejects retry",
        config=RetryConfig,
        function="retry",
        rows="retrying",
        help="Retry rows that were rejected for a reason that may no longer apply.",
    ),
    Command(name="info", config=InfoConfig, help="Show a table: rows, columns, provenance, indexes, versions."),
    Command(
        name="maintain",
        config=MaintainConfig,
        help="Merge a table's small files, refresh its indexes, "
        "remove old versions and orphaned files. Safe to run in cron.",
    ),
    Command(
        name="dedup",
        config=DedupConfig,
        help="Mark the rows that duplicate an earlier row, by content and by vectors. Deletes no row.",
    ),
    Command(name="index", config=IndexConfig, help="Build the vector, full-text and scalar indexes of a table."),
    Command(
        name="search",
        config=SearchConfig,
        help="Search a table by words, pictures, rows, a vector, or any combination of these.",
    ),
    Command(
        name="search-many",
        config=SearchManyConfig,
        rows="searching",
        help="Search a table with many queries: a corpus or another table. An interrupted run continues.",
    ),
    Command(
        name="sql",
        config=SqlConfig,
        help="Run one SQL statement over tables, with functions for similarity to words, pictures and rows.",
    ),
    Command(name="serve", config=ServeConfig, help="Serve a web page and an HTTP API over tables, until interrupted."),
    Command(
        name="explore",
        config=ExploreConfig,
        help="Draw a map of a table's vectors, with its clusters, outliers, near-duplicates and mismatched pairs.",
    ),
    Command(
        name="calibrate",
        config=CalibrateConfig,
        help="Fit a map from scores to match probabilities on a "
        "table's own pairs. Search then shows the probabilities.",
    ),
    Command(
        name="fuse",
        config=FuseConfig,
        help="Add a searchable column that fuses the image vector and the text vector of each row.",
    ),
    Command(
        name="export",
        config=ExportConfig,
        function="run_export",
        help="Export a table as arrays with Parquet (clip-retrieval, "
        "embedding-reader), Parquet, Hugging Face or FiftyOne.",
    ),
    Command(
        name="import",
        config=ImportConfig,
        function="run_import",
        help="Create a table from embeddings that clip-retrieval or `isthmus export` wrote.",
    ),
    Command(
        name="finetune",
        config=FinetuneConfig,
        log=True,
        help="Fine-tune an encoder contrastively on a corpus. An interrupted run continues from its last checkpoint.",
    ),
    Command(
        name="finetune-reranker",
        config=FinetuneRerankerConfig,
        rows="training",
        help="Fine-tune a cross-encoder on a table's pairs against mined negatives. An interrupted run continues.",
    ),
    Command(
        name="mine",
        config=MineConfig,
        help="Mine hard negatives from a table's own vectors, for fine-tuning.",
    ),
    Command(
        name="evaluate",
        config=EvaluateConfig,
        help="Measure retrieval by exact search (text to image, image to text, image to image), with 95 % intervals.",
    ),
    Command(
        name="promote",
        config=PromoteConfig,
        help="Make searches of a table use a new encoder's vectors if they are measurably better; or undo that.",
    ),
    Command(name="encoders", config=EncodersConfig, help="List the registered encoders, or describe one."),
    Command(
        name="corpus",
        config=CorpusConfig,
        rows="pictures",
        help="Fetch real, openly licensed pictures and their names as a Parquet corpus.",
    ),
    Command(
        name="demo",
        config=DemoConfig,
        help="Build a corpus of real pictures, embed it, fine-tune on it, and search it in English and Chinese.",
    ),
)
