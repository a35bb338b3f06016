"""What an embed job did, as data: counts that add up, rates, stage times, and the bottleneck."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.rows.pace import Pace, StageWorkers

_HINTS = {
    "read": "reading is the bottleneck: more CPUs, or a store nearer to the workers",
    "decode": "decoding is the bottleneck: more CPUs (per GPU, where there are GPUs), or --preprocessing fast",
    "encode": "encoding is the bottleneck: more or faster GPUs (or cores), or a smaller model",
    "stage": "writing is the bottleneck: a faster store, or --vector-dtype float16",
    "commit": "committing is the bottleneck: a larger --commit-rows",
}


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """The report of one embed job.

    Attributes:
        table: the table.
        encoder: the encoder's name.
        rows_in: rows read by this run; always `written + sum(rejected.values())`.
        written: rows that this run added to the table.
        skipped: rows that earlier runs had settled.
        rejected: rows that this run put into the rejects table, by reason.
        replaced: older rows that left in the commits that brought their successors.
        removed: rows that left without a successor: of changed files, and of files that are gone.
        files_changed: files whose older rows this run replaced.
        files_gone: files of the corpus that are gone, and whose rows this run removed.
        redone: rows that were staged a second time because their first commit's fate was not known.
        reused_vectors: vectors of pictures and words that the table held already, or that the actor had just made.
        overlong: captions longer than the text tower reads (dealt with by the text policy).
        shards: shards of the corpus, and how many of them were complete before this run.
        engine: what ran the stages (at last): `ray`, or `process` (one a core); None where there was nothing to do.
        read_tasks: tasks that read.
        actors: encode actors.
        commits: versions that this run added.
        version: the table's version afterwards.
        seconds: wall seconds of the run, with start-up.
        rows_per_s: `rows_in` by `seconds`.
        stage_seconds: worker seconds of each stage.
        steady_rows_per_s: the same from the first blocks on, without any start; None for runs of few blocks.
        ceiling_rows_per_s: what the workers could decode and encode if they did nothing else, by their first blocks.
        share_of_ceiling: `steady_rows_per_s` by `ceiling_rows_per_s`.
        bottleneck: the stage whose workers were busiest.
        hint: what to add.
        versions: library versions.
    """

    table: str
    encoder: str
    rows_in: int
    written: int
    skipped: int
    rejected: dict[str, int]
    overlong: int
    replaced: int
    removed: int
    files_changed: int
    files_gone: int
    redone: int
    reused_vectors: int
    shards: int
    shards_skipped: int
    engine: str | None
    read_tasks: int
    actors: int
    commits: int
    version: int
    seconds: float
    rows_per_s: float
    steady_rows_per_s: float | None = None
    ceiling_rows_per_s: float | None = None
    share_of_ceiling: float | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    bottleneck: str | None = None
    hint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def find_bottleneck(stage_seconds: dict[str, float], workers: dict[str, int]) -> str | None:
    """The stage with the most busy seconds for each of its workers; None if nothing was timed.

    >>> find_bottleneck({"decode": 10.0, "encode": 12.0}, {"decode": 2, "encode": 4})
    'decode'
    """
    load = {stage: seconds / max(workers.get(stage, 1), 1) for stage, seconds in stage_seconds.items()}
    return max(load, key=lambda stage: load[stage]) if load else None


def hint_for(stage: str | None, pace: Pace, crew: StageWorkers | None) -> str | None:
    """What relieves a bottleneck; of decoding and encoding, how much of what, by the run's own figures."""
    costs = pace.costs()
    if stage in ("decode", "encode") and costs and crew:
        return crew.wanting(*costs)
    return _HINTS.get(stage) if stage else None


def shares(pace: Pace, crew: StageWorkers | None) -> dict[str, float | None]:
    """The report's `steady_rows_per_s`, `ceiling_rows_per_s` and `share_of_ceiling`."""
    costs = pace.costs()
    steady = pace.steady_rows_per_s(crew.encoders) if crew else None
    ceiling = crew.ceiling(*costs) if crew and costs else None
    share = steady / ceiling if steady and ceiling else None
    return {
        "steady_rows_per_s": steady and round(steady, 2),
        "ceiling_rows_per_s": ceiling and round(ceiling, 2),
        "share_of_ceiling": share and round(share, 3),
    }
