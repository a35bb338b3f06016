"""Part 7, what follows: the line for `docs/scale.md`, from the figures of the parts before."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.base import Row
from benchmarks.gpu.results import Results
from benchmarks.gpu.words import SMALL, VIT_B, VIT_L, best_rate, per_core

# Assumed: an hour of a GPU with its share of cores, on demand. Prices differ by a factor of three.
DOLLARS_AN_HOUR = 4.0
_PICTURES = 1_000_000_000


def rows(results: Results) -> Iterator[Row]:
    """Rows a second and GPU, cores that decode for it, and dollars for a billion pictures, of each model."""
    decoded = results.figure(per_core(SMALL))
    for model in (VIT_B, VIT_L):
        encoded = results.figure(best_rate(model))
        if encoded is None:
            yield Row(what=model, status="skipped", note="the part `fast` did not measure it")
            continue
        yield Row(what=f"{model}: rows a second and GPU", figure=encoded)
        dollars = _PICTURES / encoded / 3600 * DOLLARS_AN_HOUR
        yield Row(
            what=f"{model}: a billion pictures",
            figure=dollars,
            unit="dollars",
            note=f"at {DOLLARS_AN_HOUR:g} dollars a GPU and hour, which is assumed, with enough cores",
        )
        if decoded is None:
            yield Row(what=f"{model}: cores", status="skipped", note="the part `fed` did not measure decoding")
        else:
            yield Row(what=f"{model}: decoding cores for a GPU, {SMALL}", figure=encoded / decoded)
