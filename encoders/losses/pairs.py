"""The input of a loss: the pairs of the whole batch, and the range of its rows that this process computes.

A contrastive loss is a sum over rows, each compared with all others. So a batch sharded over processes and a batch cut
into blocks to save memory are the same thing: a range of rows against all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """n pictures, each with its caption.

    Attributes:
        image: image vectors (n, dim), L2-normalised.
        text: text vectors (n, dim), L2-normalised.
        scale: (), the factor of the cosines (not its logarithm).
        bias: (), added to the scaled cosines by the sigmoid loss; None means 0.
        image_ids: int64 (n,); equal ids mean the same picture. None: all pictures differ.
        text_ids: int64 (n,); equal ids mean the same caption. None: all captions differ.
        teacher_image: (n, teacher dim), the teacher's vectors of the pictures.
        teacher_text: (n, teacher dim), the teacher's vectors of the captions.
        student_image: (n, teacher dim), `image` projected for the comparison with the teacher; None means `image`.
        student_text: (n, teacher dim), `text` projected for the comparison with the teacher; None means `text`.
    """

    image: torch.Tensor
    text: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None = None
    image_ids: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None
    teacher_image: torch.Tensor | None = None
    teacher_text: torch.Tensor | None = None
    student_image: torch.Tensor | None = None
    student_text: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.image)

    def rows(self) -> dict[str, torch.Tensor]:
        """The fields with one row per pair, by name; fields that are None are left out."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value.dim() > 0}

    def __getitem__(self, rows: slice) -> Pairs:
        return replace(self, **{name: value[rows] for name, value in self.rows().items()})


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Rows `first` to `first + rows` of a batch, to be compared with the whole batch.

    Attributes:
        pairs: the whole batch.
        first: the first row that this shard computes.
        rows: the number of rows that it computes.
        world: the number of processes whose losses (and gradients) are averaged.
    """

    pairs: Pairs
    first: int
    rows: int
    world: int = 1

    @classmethod
    def whole(cls, pairs: Pairs) -> Shard:
        """The shard of a batch that is in one process."""
        return cls(pairs=pairs, first=0, rows=len(pairs))

    @property
    def local(self) -> Pairs:
        """The pairs that this shard computes."""
        return self.pairs[self.first : self.first + self.rows]

    @property
    def targets(self) -> torch.Tensor:
        """int64 (rows,): the place of each local row's own partner in the batch."""
        return torch.arange(self.first, self.first + self.rows, device=self.pairs.image.device)

    def mean(self, total: torch.Tensor) -> torch.Tensor:
        """Turn a sum over the local rows into a share of the batch's mean.

        The average of these shares over the processes is the mean over the batch, even if processes hold unequal
        numbers of rows. The sum over the blocks of a shard is the share of the shard.
        """
        return total * (self.world / max(len(self.pairs), 1))

    def blocks(self, rows: int) -> Iterator[Shard]:
        """This shard as shards of at most `rows` rows."""
        for start in range(0, self.rows, rows):
            yield replace(self, first=self.first + start, rows=min(rows, self.rows - start))


Loss = Callable[[Shard], torch.Tensor]


def not_negatives(shard: Shard) -> torch.Tensor:
    """bool (rows, n): pairs that must not be pushed apart. A row's own partner is not marked.

    A picture's other captions are not its negatives, nor is a caption that is the same as its own.
    """
    marked = same_ids(shard, shard.pairs.image_ids, shard.pairs.text_ids)
    marked[torch.arange(shard.rows, device=marked.device), shard.targets] = False
    return marked


def same_ids(shard: Shard, image_ids: torch.Tensor | None, text_ids: torch.Tensor | None) -> torch.Tensor:
    """bool (rows, m): whether a local row shares its picture or its caption with each of m others."""
    local, others = shard.local, image_ids if image_ids is not None else text_ids
    count = len(shard.pairs) if others is None else len(others)
    marked = torch.zeros(shard.rows, count, dtype=torch.bool, device=shard.pairs.image.device)
    for mine, theirs in ((local.image_ids, image_ids), (local.text_ids, text_ids)):
        if mine is not None and theirs is not None:
            marked |= mine[:, None] == theirs[None, :]
    return marked


def both_ways(shard: Shard) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines (rows, n) of the local pictures to all captions, and of the local captions to all pictures."""
    local, everything = shard.local, shard.pairs
    return local.image @ everything.text.T, local.text @ everything.image.T
