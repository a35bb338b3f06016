"""`isthmus evaluate`: exact retrieval metrics between words and pictures, with 95 % intervals."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.config import CorpusStoreConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.store.storage import TableRef
    from pipelines.train.evaluation.evaluate import Evaluation, EvaluationSettings

_COMPARED = ("R@1", "R@5", "R@10", "MRR", "nDCG@10")


@Parameter(name="*")
class EvaluateConfig(CorpusStoreConfig):
    """Config of `isthmus evaluate`."""

    target: str = Field(description="What to evaluate: a table, or with --encoder a corpus, which is embedded first.")
    encoder: str | None = Field(
        default=None, description="Encoder that embeds the corpus. For a table, a check: it must be the table's own."
    )
    table: str | None = Field(
        default=None, description="Table into which a corpus is embedded; default: one in a temporary folder."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of a corpus: --columns.ROLE NAME, where ROLE is key, image, uri, caption or item.",
    )
    version: int | None = Field(
        default=None, description="Version number of the table to evaluate; default: the latest."
    )
    tag: str | None = Field(default=None, description="Tag of the table's version to evaluate, instead of --version.")
    compare: str | None = Field(
        default=None, description="Second table of the same rows, to compare with the first by a paired test."
    )
    where: str | None = Field(default=None, description="SQL filter of the rows to evaluate; default: all rows.")
    split: str | None = Field(
        default=None,
        description="Value of the column split to evaluate: short for --where \"split = '…'\" (Karpathy's splits).",
    )
    gallery_where: str | None = Field(
        default=None,
        description="SQL filter of further rows for the gallery, which "
        "are no queries. They may have only a picture or a caption.",
    )
    relevant: str = Field(
        default="item_id",
        description="Column that defines matches: rows with equal values in it are relevant to each other.",
    )
    slice: list[str] = Field(
        default_factory=list, description="Columns; the metrics are also reported for each of their values."
    )
    folds: int = Field(
        default=1,
        ge=1,
        description="Number of parts that are evaluated separately and averaged: 5 gives COCO's 1K × 5.",
    )
    train: str | None = Field(
        default=None, description="Table of the training rows, to find evaluated rows that leaked."
    )
    train_where: str | None = Field(
        default=None, description="SQL filter of the training rows in --train, or without it in the evaluated table."
    )
    near_duplicate: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="Cosine from which a picture counts as a near-duplicate of a training picture.",
    )
    exclude_leaked: bool = Field(
        default=False, description="Exclude the leaked rows from the queries; needs --train or --train-where."
    )
    classes: str | None = Field(
        default=None, description="Class names for zero-shot classification: a,b,c, or a file with one name per line."
    )
    class_column: str | None = Field(
        default=None, description="Column with the true class of each picture, for zero-shot classification."
    )
    template: list[str] = Field(
        default_factory=lambda: ["a picture of {}"],
        description="Prompts of a zero-shot class, with {} for its name; repeat it for several.",
    )
    rerank: str | None = Field(
        default=None,
        description="Cross-encoder (BLIP, ViLT or BridgeTower: a directory or "
        "hub id) whose gain as a second stage is measured, in both directions.",
    )
    rerank_depth: int = Field(
        default=100, ge=1, description="Number of top-ranked entries of a query that --rerank reorders."
    )
    rerank_queries: int = Field(
        default=200,
        ge=2,
        description="The most queries in each direction that --rerank "
        "reorders; each costs --rerank-depth forward passes.",
    )
    html: Path | None = Field(
        default=None, description="Write the results with plots and pictures to this file, as an HTML page."
    )
    markdown: Path | None = Field(default=None, description="Write the tables of metrics to this Markdown file.")
    seed: int = Field(default=0, description="Random seed of the bootstrap that gives the intervals.")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.version is not None and self.tag is not None:
            raise ValueError("version and tag: give one of the two")
        if self.split is not None and self.where is not None:
            raise ValueError("split and where: give one of the two")
        if (self.classes is None) != (self.class_column is None):
            raise ValueError("classes and class_column: give both, or neither")
        if self.exclude_leaked and self.train is None and self.train_where is None:
            raise ValueError("exclude_leaked: needs --train or --train-where to find the leaked rows")
        return self


@dataclass(frozen=True, kw_only=True)
class EvaluateReport:
    """The metrics of each direction, the comparison, and the other results that the config asked for."""

    evaluation: Evaluation
    other: Evaluation | None
    extra: dict[str, Any]
    pages: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        compared = {"compared_to": self.other.to_dict()} if self.other else {}
        return {**self.evaluation.to_dict(), **self.extra, **compared, "pages": self.pages}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        from jobs.display import rows_table

        parts: list[RenderableType] = []
        for evaluation in filter(None, (self.evaluation, self.other)):
            parts.append(Text(f"{evaluation.encoder} · {evaluation.table}@{evaluation.version}", style="bold"))
            parts.append(rows_table([_row(name, result) for name, result in evaluation.directions.items()]))
        for name, value in self.extra.items():
            parts += [Text(f"\n{name.replace('_', ' ')}", style="bold"), rows_table(_flat(value))]
        return Group(*parts, *(Text(f"page: {page}") for page in self.pages))


def run(config: EvaluateConfig) -> EvaluateReport:
    """Evaluate a table, or a corpus under an encoder.

    Raises:
        FileNotFoundError: there is no such table, version or corpus.
        EncoderMismatchError: another encoder than the named one made the table.
        ValueError: the vectors cannot be compared, or the filters select no rows.
    """
    from pipelines.train.evaluation import evaluation_page as report
    from pipelines.train.evaluation.evaluate import evaluate_table
    from pipelines.train.evaluation.paired import compare

    with ExitStack() as stack:
        table = _table(config, stack)
        asked = _settings(config)
        settings, extra = _without_leaks(config, table, asked)
        evaluation = evaluate_table(table, settings)
        if settings != asked:
            extra["with_leaked"] = {name: r.metrics for name, r in evaluate_table(table, asked).directions.items()}
        other = None
        if config.compare is not None:
            second = config.ref(config.compare)
            other = evaluate_table(second, replace(settings, version=None))
            extra["difference"] = {
                f"{name.replace('_', ' ')} {metric}": compare(evaluation, other, metric, name).to_dict()
                for name in evaluation.directions
                for metric in _COMPARED
            }
        if config.classes is not None:
            extra["zero_shot"] = _zero_shot(config, table)
        if config.rerank is not None:
            extra[f"reranked by {Path(config.rerank).name}"] = _reranked(config, table, settings)
        page = report.Page(evaluation=evaluation, other=other, extra=extra)
        pages = []
        if config.markdown is not None:
            pages.append(report.write(config.markdown, report.markdown(page)))
        if config.html is not None:
            storage = config.picture_storage(table)
            pages.append(report.write(config.html, report.html(page, table, storage)))
    return EvaluateReport(evaluation=evaluation, other=other, extra=extra, pages=pages)


def _settings(config: EvaluateConfig) -> EvaluationSettings:
    from pipelines.tables.filters import quote
    from pipelines.train.evaluation.evaluate import EvaluationSettings

    return EvaluationSettings(
        version=config.version if config.version is not None else config.tag,
        where=f"split = {quote(config.split)}" if config.split is not None else config.where,
        gallery_where=config.gallery_where,
        relevant=config.relevant,
        slices=tuple(config.slice),
        folds=config.folds,
        seed=config.seed,
    )


def _table(config: EvaluateConfig, stack: ExitStack) -> TableRef:
    """The named table, or the table into which the named corpus was embedded."""
    import jobs.embed
    from encoders.registry import describe
    from jobs.display import row_progress
    from pipelines.store.storage import TableRef
    from pipelines.tables.opening import open_dataset
    from pipelines.tables.provenance import Provenance

    storage = config.storage()
    try:
        named: TableRef | None = TableRef.parse(config.target, storage)
    except ValueError:
        named = None
    dataset = open_dataset(named, missing_ok=True) if named is not None else None
    if named is not None and dataset is not None:
        if config.encoder is not None:
            card = describe(config.encoder).card
            Provenance.from_schema(dataset.schema, str(named)).check_same_encoder(card, str(named))
        return named
    if config.encoder is None:
        assert named is not None
        open_dataset(named)  # raises an error that lists the existing tables
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-evaluate-"))
    uri = config.table or f"{folder}/evaluated"
    embed_config = jobs.embed.EmbedConfig(
        corpus=config.target,
        table=uri,
        encoder=config.encoder or "",
        columns=config.columns,
        storage_options=config.storage_options,
        corpus_storage_options=config.corpus_storage_options,
    )
    with row_progress("embedding") as progress:
        jobs.embed.run(embed_config, progress)
    return TableRef.parse(uri, storage)


def _without_leaks(
    config: EvaluateConfig, table: TableRef, settings: EvaluationSettings
) -> tuple[EvaluationSettings, dict[str, Any]]:
    """The settings, without leaked rows if the config excludes them, and the leak counts if training rows are named."""
    from pipelines.tables.opening import open_at
    from pipelines.train.evaluation.leakage import find_leakage, without

    if config.train is None and config.train_where is None:
        return settings, {}
    train = config.ref(config.train) if config.train else table
    found = find_leakage(
        open_at(table, settings.version),
        settings.where,
        open_at(train, None if config.train else settings.version),
        config.train_where,
        near=config.near_duplicate,
    )
    if config.exclude_leaked:
        settings = _asking_less(settings, without(settings.where, found.leaked))
    return settings, {"leakage": {**found.to_dict(), "excluded": config.exclude_leaked}}


def _asking_less(settings: EvaluationSettings, where: str | None) -> EvaluationSettings:
    """Fewer rows are queries, but the gallery stays the same. A smaller gallery would make retrieval easier."""
    from pipelines.train.evaluation.selection import HAS_BOTH

    if where == settings.where:
        return settings
    whole = f"({settings.where or 'true'}) AND {HAS_BOTH}"
    wheres = [f"({w})" for w in (whole, settings.gallery_where) if w]
    return replace(settings, where=where, gallery_where=" OR ".join(wheres))


def _zero_shot(config: EvaluateConfig, table: TableRef) -> dict[str, Any]:
    from pipelines.tables.opening import open_at
    from pipelines.train.evaluation.zero_shot import classify

    assert config.classes is not None
    assert config.class_column is not None
    file = Path(config.classes)
    text = file.read_text(encoding="utf-8").splitlines() if file.is_file() else config.classes.split(",")
    found = classify(
        open_at(table, config.version if config.version is not None else config.tag),
        where=_settings(config).where,
        column=config.class_column,
        names=[name.strip() for name in text if name.strip()],
        templates=config.template,
        table=str(table),
    )
    return found.to_dict()


def _reranked(config: EvaluateConfig, table: TableRef, settings: EvaluationSettings) -> dict[str, Any]:
    """Metrics before and after re-ranking, in both directions: row name → metrics."""
    from encoders.cross import load
    from pipelines.sources.row_pictures import reader
    from pipelines.train.reranking.evaluating import evaluate_reranked

    assert config.rerank is not None
    read = reader(config.picture_storage(table))
    found = evaluate_reranked(
        table, settings, load(config.rerank), read, depth=config.rerank_depth, queries=config.rerank_queries
    )
    return {
        f"{direction.replace('_', ' ')} {name}": value
        for direction, result in found.items()
        for name, value in result.to_rows().items()
    }


def _row(name: str, result: Any) -> dict[str, Any]:
    low, high = result.intervals["R@10"]
    shown = {
        metric: round(result.metrics[metric], 3) for metric in ("R@1", "R@5", "R@10", "MRR", "nDCG@10", "median_rank")
    }
    return {
        "direction": name.replace("_", " "),
        "queries": result.queries,
        "gallery": result.gallery,
        **shown,
        "R@10 95 %": f"{low:.3f}–{high:.3f}",
        "by chance": round(result.chance, 4),
    }


def _flat(value: dict[str, Any]) -> list[dict[str, Any]]:
    if value and all(isinstance(v, dict) for v in value.values()):
        return [{"": name, **{k: _short(x) for k, x in row.items()}} for name, row in value.items()]
    return [{"": name, "value": _short(v)} for name, v in value.items()]


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
