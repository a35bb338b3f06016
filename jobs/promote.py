"""`isthmus promote`: another encoder's vectors take a table's place, if they are measurably better; and back."""

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

    table: str = Field(description="The table that people ask.")
    encoder: str | None = Field(default=None, description="The new encoder; embeds --corpus, or projects --features.")
    corpus: str | None = Field(default=None, description="The table's corpus, to embed into a shadow table.")
    features: str | None = Field(
        default=None, description="In place of the corpus: a table of the features that the new encoder's heads take."
    )
    candidate: str | None = Field(default=None, description="In place of both: a table that the new encoder made.")
    columns: dict[str, str] = Field(default_factory=dict, description="Of the corpus, as for `isthmus embed`.")
    where: str | None = Field(default=None, description="SQL filter of the held-out rows that decide.")
    relevant: str = Field(default="item_id", description="As for `isthmus evaluate`.")
    direction: Literal["text_to_image", "image_to_text", "image_to_image"] = Field(
        default="text_to_image", description="What decides."
    )
    metric: Literal["R@1", "R@5", "R@10", "MRR", "mAP", "nDCG@10"] = Field(default="R@10", description="What decides.")
    threshold: float = Field(
        default=0.0, description="Promote if the 95 % interval of the gain lies wholly above this."
    )
    rollback: bool = Field(default=False, description="Undo the last promotion.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("corpus", "features", "candidate") if getattr(self, name) is not None]
        if self.rollback:
            if given or self.encoder:
                raise ValueError("rollback: takes the table alone")
            return self
        if len(given) != 1:
            raise ValueError(f"give one of --corpus, --features and --candidate; got {' and '.join(given) or 'none'}")
        if (self.encoder is None) != (self.candidate is not None):
            raise ValueError("encoder: goes with --corpus or --features, and not with --candidate")
        return self


@dataclass(frozen=True, kw_only=True)
class PromoteReport:
    """What was decided, and why."""

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
    """Make the shadow table, measure both, and promote it or not; or go back.

    Raises:
        ValueError: the tables answer different queries, or nothing is there to undo.
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
    """The shadow table: the one that is named, or made from the corpus or from features."""
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
    """Index the candidate where the table that it replaces is indexed: nobody's search gets slower."""
    import jobs.index
    from pipelines.tables.opening import open_dataset

    if open_dataset(current).describe_indices() and not open_dataset(candidate).describe_indices():
        jobs.index.run(jobs.index.IndexConfig(table=str(candidate), storage_options=dict(candidate.storage.options)))
