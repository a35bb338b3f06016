"""`isthmus promote`: replace a table in searches by one of a new encoder, if that is measurably better; or undo it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.config import CorpusStoreConfig, TableConfig

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipelines.store.storage import TableRef

_FINGERPRINT_CHARS = 8


@Parameter(name="*")
class PromoteConfig(TableConfig, CorpusStoreConfig):
    """Config of `isthmus promote`."""

    table: str = Field(description="The table that is searched: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")
    encoder: str | None = Field(
        default=None, description="The new encoder, which embeds --corpus or projects --features."
    )
    corpus: str | None = Field(
        default=None, description="The table's corpus, which the new encoder embeds into a shadow table."
    )
    features: str | None = Field(
        default=None,
        description="Table of features that the new encoder's heads project into a shadow table, instead of --corpus.",
    )
    candidate: str | None = Field(
        default=None, description="Table that the new encoder already made, instead of --corpus and --features."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of the corpus: --columns.ROLE NAME, where ROLE is key, image, uri, caption or item.",
    )
    where: str | None = Field(
        default=None,
        description="SQL filter of the held-out rows on which both tables are evaluated; default: all rows.",
    )
    relevant: str = Field(
        default="item_id",
        description="Column that defines matches: rows with equal values in it are relevant to each other.",
    )
    direction: Literal["text_to_image", "image_to_text", "image_to_image"] = Field(
        default="text_to_image", description="Direction of retrieval in which the two tables are compared."
    )
    metric: Literal["R@1", "R@5", "R@10", "MRR", "mAP", "nDCG@10"] = Field(
        default="R@10", description="Metric by which the two tables are compared."
    )
    threshold: float = Field(
        default=0.0, description="Promote if the whole 95 % interval of the metric's gain is above this."
    )
    rollback: bool = Field(default=False, description="Undo the last promotion of the table.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("corpus", "features", "candidate") if getattr(self, name) is not None]
        if self.rollback:
            if given or self.encoder:
                raise ValueError("rollback: takes only the table; drop the other options")
            return self
        if len(given) != 1:
            raise ValueError(f"give one of --corpus, --features and --candidate; got {' and '.join(given) or 'none'}")
        if (self.encoder is None) != (self.candidate is not None):
            raise ValueError("encoder: needed with --corpus and --features, not allowed with --candidate")
        return self


@dataclass(frozen=True, kw_only=True)
class PromoteReport:
    """The decision and its reason.

    Attributes:
        table: the table's URI.
        promoted: whether the candidate was promoted.
        answers: name of the table that now answers searches.
        version: its version; None after a rollback.
        why: the reason, in words.
        before: metrics of the table that answered before.
        after: metrics of the candidate.
        difference: mean and 95 % interval of the gain.
    """

    table: str
    promoted: bool
    answers: str
    version: int | None
    why: str
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    difference: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text(f"{'promoted' if self.promoted else 'kept'}: {self.answers} answers for {self.table}\n{self.why}")


def run(config: PromoteConfig) -> PromoteReport:
    """Make the shadow table, evaluate both tables, and promote the shadow table if it is better; or undo a promotion.

    Raises:
        ValueError: the tables have different queries, or there is no promotion to undo.
    """
    from pipelines.tables.promotion import answering, promote, roll_back
    from pipelines.train.evaluation.evaluate import EvaluationSettings, evaluate_table
    from pipelines.train.evaluation.paired import compare

    table = config.ref(config.table)
    if config.rollback:
        undone, name = roll_back(table)
        why = f"{undone.name}@{undone.version} was put back ({undone.why})"
        return PromoteReport(table=str(table), promoted=False, answers=name, version=None, why=why)
    candidate = _candidate(config, table)
    settings = EvaluationSettings(where=config.where, relevant=config.relevant)
    current, dataset = answering(table)
    before = evaluate_table(current, EvaluationSettings(**{**vars(settings), "version": int(dataset.version)}))
    after = evaluate_table(candidate, settings)
    gain = compare(before, after, config.metric, config.direction)
    old, new = (e.directions[config.direction].metrics[config.metric] for e in (before, after))
    why = (
        f"{config.direction.replace('_', ' ')} {config.metric} {old:.4f} → {new:.4f}, gain {gain.mean:+.4f} "
        f"(95 % {gain.low:+.4f} to {gain.high:+.4f}), threshold {config.threshold:+.4f}"
    )
    better = gain.low > config.threshold
    if better:
        _index_like(current, candidate)
        promote(table, candidate, _version(candidate), why)
    return PromoteReport(
        table=str(table),
        promoted=better,
        answers=candidate.name if better else current.name,
        version=_version(candidate) if better else int(dataset.version),
        why=why,
        before=before.directions[config.direction].to_dict(),
        after=after.directions[config.direction].to_dict(),
        difference=gain.to_dict(),
    )


def _version(table: TableRef) -> int:
    from pipelines.tables.opening import open_dataset

    return int(open_dataset(table).version)


def _candidate(config: PromoteConfig, table: TableRef) -> TableRef:
    """The shadow table: the named candidate, or a table made from the corpus or from features."""
    from encoders.registry import describe
    from pipelines.store.storage import TableRef
    from pipelines.train.finetuning.projecting import project_table

    if config.candidate is not None:
        return TableRef.parse(config.candidate, table.storage)
    assert config.encoder is not None
    shadow = table.sibling(describe(config.encoder).card.fingerprint[:_FINGERPRINT_CHARS])
    if config.features is not None:
        project_table(TableRef.parse(config.features, table.storage), config.encoder, shadow)
        return shadow
    assert config.corpus is not None
    _embed(config, shadow)
    return shadow


def _embed(config: PromoteConfig, shadow: TableRef) -> None:
    import jobs.embed
    from jobs.display import row_progress

    embed_config = jobs.embed.EmbedConfig(
        corpus=config.corpus or "",
        table=str(shadow),
        encoder=config.encoder or "",
        columns=config.columns,
        storage_options=config.storage_options,
        corpus_storage_options=config.corpus_storage_options,
    )
    with row_progress("embedding") as progress:
        jobs.embed.run(embed_config, progress)


def _index_like(current: TableRef, candidate: TableRef) -> None:
    """Index the candidate if the table that it replaces is indexed, so that searches do not become slower."""
    import jobs.index
    from pipelines.tables.opening import open_dataset

    if open_dataset(current).describe_indices() and not open_dataset(candidate).describe_indices():
        jobs.index.run(jobs.index.IndexConfig(table=str(candidate), storage_options=dict(candidate.storage.options)))
