"""Large contrastive batches in the memory of small ones (GradCache, Gao et al., arXiv:2101.06983), exactly.

1. Forward every chunk but the last without a graph, keeping its vectors and the state of the random generators; the
last with one.
2. The loss of the whole batch gives the gradients of the vectors. It runs in blocks of rows, so that no (n, n) matrix
is ever held.
3. Push the last chunk's gradients through its graph; then forward every other chunk again, with a graph and the same
random numbers, and push its vectors' gradients through it.

Unlike plain gradient accumulation, which only knows the negatives of its chunk, this is the gradient of the full
batch, that of the logit scale included. Of k chunks k − 1 are forwarded twice: with a backward that takes two forwards,
(4 − 1/k)/3 of the time of a plain step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from encoders.losses.gather import gather_pairs
from encoders.losses.pairs import Pairs, Shard

Forward = Callable[[Any], Pairs]
_BLOCK_ROWS = 64
_LEARNED = ("image", "text", "student_image", "student_text")
_SCALARS = ("scale", "bias")


def plain_backward(forward: Forward, batch: Any, loss: Callable[[Shard], torch.Tensor]) -> tuple[float, Pairs]:
    """Forward, loss and backward of a batch in one piece.

    Returns:
        This process' loss, and the pairs of all processes, detached.
    """
    pairs = forward(batch)
    shard = gather_pairs(pairs)
    value = loss(shard)
    (value + _surrogate(pairs, None, slice(None), scalars=False)).backward()
    return float(value.detach()), _detached(shard.pairs)


def cached_backward(
    forward: Forward,
    chunks: Sequence[Any],
    loss: Callable[[Shard], torch.Tensor],
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> tuple[float, Pairs]:
    """As `plain_backward` of all chunks together, in the memory of one.

    Args:
        forward: a chunk → its pairs. Called twice a chunk, with the same random numbers; once for the last.
        chunks: the batch in pieces, one at least.
        loss: of the whole batch; additive over blocks of rows, as all of `encoders.losses` are.
        no_sync: keeps DDP from averaging gradients before the last backward.
    """
    *others, kept = chunks
    states, pieces = [], []
    with torch.no_grad():
        for chunk in others:
            states.append(_random_state())
            pieces.append(forward(chunk))
    # Its graph is a chunk's memory, which the loss in blocks leaves free.
    with no_sync() if others else contextlib.nullcontext():
        graph = forward(kept)
        batch = _leaves(_concatenated([*pieces, _detached(graph)]))
        value, everything = _loss_backward(batch, loss)
        start = len(batch) - len(graph)
        _surrogate(graph, batch, slice(start, None), scalars=True).backward()
    del graph
    start = 0
    for i, (chunk, state, piece) in enumerate(zip(others, states, pieces, strict=True)):
        rows = slice(start, start + len(piece))
        start += len(piece)
        with no_sync() if i < len(others) - 1 else contextlib.nullcontext(), _replayed(state):
            _surrogate(forward(chunk), batch, rows, scalars=False).backward()
    return value, everything


def _loss_backward(batch: Pairs, loss: Callable[[Shard], torch.Tensor]) -> tuple[float, Pairs]:
    """Gradients of the loss on the leaves of `batch`; the loss; and the pairs of all processes, detached."""
    shard = gather_pairs(batch)
    # Cut the graph between gathering and loss, so that each block can be freed as soon as it is done.
    cut = replace(shard, pairs=_leaves(shard.pairs, keep_scalars=True))
    value = 0.0
    for block in cut.blocks(_BLOCK_ROWS):
        part = loss(block)
        part.backward()
        value += float(part.detach())
    for name in _LEARNED:
        gathered, leaf = getattr(shard.pairs, name), getattr(cut.pairs, name)
        if gathered is not None:
            gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
            gathered.backward(gradient)
    return value, _detached(cut.pairs)


def _surrogate(pairs: Pairs, batch: Pairs | None, rows: slice, *, scalars: bool) -> torch.Tensor:
    """A scalar whose gradient is that of the loss: ⟨outputs, their gradients⟩.

    Outputs that the loss does not use take part with 0: DDP waits for every parameter, on every process.

    Args:
        pairs: outputs with a graph.
        batch: leaves with gradients; None for none.
        rows: the rows of the leaves that the outputs are.
        scalars: whether to count the gradients of the scalars too (once a batch, not once a chunk).
    """
    total = pairs.image.new_zeros(())
    for name in (*_LEARNED, *_SCALARS):
        output, leaf = getattr(pairs, name), getattr(batch, name, None)
        if output is None or not output.requires_grad:
            continue
        gradient = leaf.grad if leaf is not None else None
        if gradient is None or (name in _SCALARS and not scalars):
            total = total + output.sum() * 0.0
        else:
            total = total + (output * (gradient[rows] if name in _LEARNED else gradient)).sum()
    return total


def _leaves(pairs: Pairs, *, keep_scalars: bool = False) -> Pairs:
    names = _LEARNED if keep_scalars else (*_LEARNED, *_SCALARS)
    found = {name: getattr(pairs, name) for name in names}
    return replace(pairs, **{n: t.detach().clone().requires_grad_() for n, t in found.items() if t is not None})


def _detached(pairs: Pairs) -> Pairs:
    found = {name: getattr(pairs, name) for name in (*_LEARNED, *_SCALARS)}
    return replace(pairs, **{name: tensor.detach() for name, tensor in found.items() if tensor is not None})


def _concatenated(pieces: Sequence[Pairs]) -> Pairs:
    rows = [piece.rows() for piece in pieces]
    return replace(pieces[0], **{name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _random_state() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


@contextlib.contextmanager
def _replayed(state: tuple[torch.Tensor, list[torch.Tensor]]) -> Iterator[None]:
    """The random numbers of an earlier moment; afterwards those of now again."""
    now = _random_state()
    _set_random_state(state)
    try:
        yield
    finally:
        _set_random_state(now)


def _set_random_state(state: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
