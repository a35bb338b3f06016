"""The rows of each training step: a pure function of the seed and the step, whatever the number of processes.

A resumed run therefore sees the same batches as an uninterrupted one, and two workers see the batches of one worker,
cut in two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.train.finetuning.shuffle import mixed, permuted

Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The batches of a run.

    Attributes:
        rows: number of training rows; a batch names rows by their place among these.
        batch_size: pairs of a global batch, mined negatives included.
        epochs: passes over the rows.
        seed: seed of the order and of the choice of negatives.
        negatives: int64 (rows, most), places of each row's mined negatives, −1 if there are fewer; None without mining.
        negatives_per_row: number of mined negatives that join each row in its batch.
    """

    rows: int
    batch_size: int
    epochs: int
    seed: int
    negatives: Rows | None = None
    negatives_per_row: int = 0

    def __post_init__(self) -> None:
        """Check the plan.

        Raises:
            ValueError: fewer than two rows or pairs (there would be no negative), no epoch, or no room for the mined
                negatives.
        """
        if self.rows < 2:
            raise ValueError(f"training: {self.rows} rows; a contrastive loss needs 2 or more")
        if self.batch_size < 2:
            raise ValueError(f"batch_size {self.batch_size}: give at least 2, or no pair has a negative")
        if self.epochs < 1:
            raise ValueError(f"epochs {self.epochs}: give at least 1")
        if self.negatives is not None and self.anchors < 1:
            raise ValueError(
                f"negatives_per_row {self.negatives_per_row}: no room in batches of {self.batch_size}; give fewer"
            )

    @property
    def anchors(self) -> int:
        """Number of rows of a batch that come from the order, not as a negative of another row."""
        most = min(self.batch_size, self.rows)
        return most if self.negatives is None else self.batch_size // (1 + self.negatives_per_row)

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch; a last batch of a single row is dropped."""
        full, rest = divmod(self.rows, self.anchors)
        return full + (rest > 1 or full == 0)

    @property
    def steps(self) -> int:
        """Batches of the whole run."""
        return self.epochs * self.steps_per_epoch

    def batch(self, step: int) -> Rows:
        """Places of the rows of a step, int64, each once; anchors first."""
        epoch, index = divmod(step, self.steps_per_epoch)
        start = index * self.anchors
        places = np.arange(start, min(start + self.anchors, self.rows), dtype=np.int64)
        anchors = permuted(places, self.rows, int(mixed(self.seed, epoch)))
        if self.negatives is None:
            return anchors
        return _unique(np.concatenate([anchors, self._drawn(anchors, step)]))

    def share(self, step: int, rank: int, world: int) -> Rows:
        """The rows of a step that a process trains on; the shares differ by at most one row."""
        return np.array_split(self.batch(step), world)[rank]

    def _drawn(self, anchors: Rows, step: int) -> Rows:
        """A random choice of the anchors' negatives, drawn anew in each step."""
        assert self.negatives is not None
        theirs = self.negatives[anchors]
        order = mixed(self.seed, step, anchors[:, None] * theirs.shape[1] + np.arange(theirs.shape[1]))
        # Missing negatives go last.
        order = np.where(theirs < 0, np.uint64(2**64 - 1), order)
        chosen = np.take_along_axis(theirs, np.argsort(order, axis=1)[:, : self.negatives_per_row], axis=1).ravel()
        return chosen[chosen >= 0]


@dataclass(frozen=True, kw_only=True)
class SequentialPlan:
    """Batches of rows in their order, for validation."""

    rows: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Number of batches."""
        return -(-self.rows // self.batch_size)

    def share(self, step: int, rank: int, world: int) -> Rows:
        """The rows of a step that a process evaluates."""
        start = step * self.batch_size
        places = np.arange(start, min(start + self.batch_size, self.rows), dtype=np.int64)
        return np.array_split(places, world)[rank]


def _unique(rows: Rows) -> Rows:
    """The rows in their order, each once."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]
