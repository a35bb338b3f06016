"""The report of an embed job: counts, rates, stage times and the bottleneck."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.rows.pace import Pace, StageWorkers

_HINTS = {
    "read": "reading is the bottleneck: more CPUs, or a store nearer to the workers",
    "decode": "decoding is the bottleneck: more CPUs (per GPU, if GPUs are used), or --preprocessing fast",
    "encode": "encoding is the bottleneck: more or faster GPUs (or cores), or a smaller model",
    "stage": "writing is the bottleneck: a faster store, or --vector-dtype float16",
    "commit": "committing is the bottleneck: a larger --commit-rows",
}


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """The report of one embed job.

    Attributes:
        table: the table's URI.
        encoder: the encoder's name.
        rows_in: rows read by this run; always `written + sum(rejected.values())`.
        written: rows that this run added to the table.
        skipped: rows that earlier runs settled.
        rejected: rows that this run put into the rejects table, by reason.
        replaced: older rows that were removed in the commits that added their replacements.
        removed: rows that were removed without a replacement, of changed files and of deleted files.
        files_changed: files whose older rows this run replaced.
        files_gone: files deleted from the corpus whose rows this run removed.
        redone: rows that were staged a second time because it was unknown whether their first commit landed.
        reused_vectors: vectors of pictures and captions reused from the table or from the actor's recent work.
        overlong: captions longer than the text tower reads; the text policy decides what happens to them.
        shards: number of shards of the corpus.
        shards_skipped: number of shards that were complete before this run.
        engine: the engine that ran the stages, or the last one if it changed: `ray`, or `process` (one worker process
            for each core); None if there was nothing to do.
        read_tasks: number of read tasks.
        actors: number of encode actors or worker processes.
        commits: number of versions that this run added.
        version: the table's version after the run.
        seconds: wall time of the run in seconds, including the start.
        rows_per_s: `rows_in` divided by `seconds`.
        steady_rows_per_s: rows per second after the first blocks, without the start; None if there were few blocks.
        ceiling_rows_per_s: rows per second if workers only decoded and encoded, as fast as the first or last blocks.
        share_of_ceiling: `steady_rows_per_s` divided by `ceiling_rows_per_s`.
        stage_seconds: stage → seconds, summed over its workers.
        bottleneck: the stage whose workers were busiest.
        hint: what would relieve the bottleneck.
        versions: library → version.
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
    """The stage with the most busy seconds per worker; None if nothing was timed.

    Args:
        stage_seconds: stage → seconds, summed over its workers.
        workers: stage → number of its workers; 1 if not given.

    >>> find_bottleneck({"decode": 10.0, "encode": 12.0}, {"decode": 2, "encode": 4})
    'decode'
    """
    load = {stage: seconds / max(workers.get(stage, 1), 1) for stage, seconds in stage_seconds.items()}
    return max(load, key=lambda stage: load[stage]) if load else None


def hint_for(stage: str | None, pace: Pace, crew: StageWorkers | None) -> str | None:
    """What would relieve a bottleneck. For decoding and encoding, the run's own timings say how much to add."""
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
