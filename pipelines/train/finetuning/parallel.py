"""How the processes of a run share its model: one process alone, a copy each (DDP), or a part each (FSDP).

Checkpoints do not depend on the way: they hold whole tensors, and the optimiser's state by the number of the parameter.
A run may therefore resume in another way, and with another number of processes.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from encoders.losses.gather import gather_rows, row_counts
from encoders.training.models import Batch
from encoders.training.optimiser import load_state, state_of
from encoders.training.pairs import PairsModel
from pipelines.train.finetuning.train_settings import Sharding

log = logging.getLogger(__name__)
State = dict[str, Any]
_SHARE_OF_DEVICE = 0.5


class Alone:
    """One process with the whole model. Subclasses override what differs in the other ways.

    Attributes:
        model: the model, on its device.
        forward: what to call in a step: the model, or its wrapper.
        keeps_casts: whether autocast may cache the weights that it casts until the step ends.
    """

    keeps_casts = True

    def __init__(self, model: PairsModel, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.forward: Any = self.model

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Context that keeps gradients from being averaged before a batch's last chunk."""
        return contextlib.nullcontext()

    def level(self, chunks: list[Batch]) -> list[Batch]:
        """The chunks that this process runs in a step."""
        return chunks

    def clip_gradient(self, longest: float) -> float:
        """Shorten the whole model's gradient to at most `longest`; returns its length before that."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if float(norm) > longest:
            torch.nn.utils.clip_grads_with_norm_(self.trained, longest, norm)
        return float(norm)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that train."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def weights_are_finite(self) -> bool:
        """Whether all weights that train are finite, in every process."""
        return all(bool(p.detach().isfinite().all()) for p in self.trained)

    def mean(self, value: float) -> float:
        """The mean of a value over the processes."""
        return value

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of all processes, in the order of ranks."""
        return rows

    def model_state(self) -> State:
        """The whole state dict of the model. Every process must call this; only rank 0 needs the result."""
        return self.model.state_dict()

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> State:
        """The whole state dict of the optimiser. Every process must call this; only rank 0 needs the result."""
        return state_of(optimiser)

    def load_optimiser(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Load the result of `optimiser_state`, whichever way wrote it."""
        load_state(optimiser, state)


class Copies(Alone):
    """Each process has a copy of the model: DistributedDataParallel."""

    def __init__(self, model: PairsModel, device: torch.device) -> None:
        super().__init__(model, device)
        self._wrap()

    def _wrap(self) -> None:
        devices = [self.device] if self.device.type == "cuda" else None
        # No buffer changes in training (batch norms keep their statistics), so buffers need no broadcast before each
        # forward. Gradients are views of the buckets in which they are averaged, which saves copies.
        self.forward = nn.parallel.DistributedDataParallel(
            self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """DDP's own context."""
        found: contextlib.AbstractContextManager[Any] = self.forward.no_sync()
        return found

    def mean(self, value: float) -> float:
        """The mean over the processes."""
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total) / dist.get_world_size()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of every process, in the order of ranks."""
        return gather_rows(rows, row_counts(len(rows), rows.device))


def share_model(model: PairsModel, device: torch.device, world: int, sharding: Sharding) -> Alone:
    """Put a model on the devices of all processes. Every process must call this with the same model.

    Args:
        model: the model, built, tuned, and with its initial weights; its parameters may be replaced.
        device: device of this process.
        world: number of processes.
        sharding: `ddp`, `fsdp`, or `auto`: FSDP if training a copy would take more than half of a GPU.
    """
    if world == 1:
        return Alone(model, device)
    sharded = sharding == "fsdp" or (sharding == "auto" and _crowds(model, device))
    log.info("%d processes train with %s", world, "a part of the model each (fsdp)" if sharded else "a copy each (ddp)")
    if not sharded:
        return Copies(model, device)
    from pipelines.train.finetuning.sharded import Shards

    return Shards(model, device)


def training_bytes(model: nn.Module) -> int:
    """Bytes of the parameters, and of the gradients and Adam's two moments of those that train."""
    return sum(p.numel() * p.element_size() * (4 if p.requires_grad else 1) for p in model.parameters())


def _crowds(model: nn.Module, device: torch.device) -> bool:
    """Whether training takes more than half of the smallest GPU; all processes get the same answer."""
    if device.type != "cuda":
        return False
    room = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    dist.all_reduce(room, dist.ReduceOp.MIN)
    return training_bytes(model) > _SHARE_OF_DEVICE * int(room)
