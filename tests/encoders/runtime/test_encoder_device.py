"""Running out of memory costs a smaller batch, not the job."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoders.protocol import EncoderOptions
from encoders.runtime.device import Runtime, run_halving


@given(st.integers(0, 40), st.integers(1, 64), st.integers(1, 12))
def test_a_batch_that_does_not_fit_is_halved_and_nothing_is_lost(n: int, batch_size: int, room: int) -> None:
    sizes: list[int] = []

    def function(part: Sequence[int]) -> list[int]:
        if len(part) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(part))
        return list(part)

    results, fitted = run_halving(function, list(range(n)), batch_size)
    assert [item for part in results for item in part] == list(range(n))
    assert fitted <= batch_size
    assert max(sizes, default=0) <= room


def test_an_input_that_never_fits_is_an_error() -> None:
    def function(part: Sequence[int]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(MemoryError, match="one input alone"):
        run_halving(function, [1, 2, 3], 2)


def test_other_errors_pass_through() -> None:
    def function(part: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_halving(function, [1], 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="device 'cuda'"):
        Runtime(EncoderOptions(device="cuda"))
    assert Runtime(EncoderOptions()).device.type == "cpu"
