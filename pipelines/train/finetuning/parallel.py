"""How the processes of a run share its model: one alone, each with a copy (DDP), or each with a part (FSDP).

A checkpoint is the same whichever way wrote it: whole tensors, the optimiser's state by the number of the parameter. So
a run may go on another way, and with another number of processes.
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
    """One process, with all of the model. The other ways override what they do otherwise.

    Attributes:
        model: the model, on its device.
        forward: what to call for a step; the model, or what wraps it.
        keeps_casts: whether autocast may keep the weights that it casts until the step ends.
    """

    keeps_casts = True

    def __init__(self, model: PairsModel, device: torch.device) -> None:
        self.model = model.to(device)
        self.device = device
        self.forward: Any = self.model

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """Keeps gradients from being averaged before a batch's last chunk."""
        return contextlib.nullcontext()

    def level(self, chunks: list[Batch]) -> list[Batch]:
        """The chunks that this process runs in a step."""
        return chunks

    def clip_gradient(self, longest: float) -> float:
        """Shorten the gradient of the whole model to a length; the length that it had."""
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
        """Whether all weights that train are numbers, in every process."""
        return all(bool(p.detach().isfinite().all()) for p in self.trained)

    def mean(self, value: float) -> float:
        """The mean over the processes."""
        return value

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of every process, in the order of ranks."""
        return rows

    def model_state(self) -> State:
        """The whole state dict of the model. Every process calls this; only rank 0 has use of what it gets."""
        return self.model.state_dict()

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> State:
        """The same of the optimiser."""
        return state_of(optimiser)

    def load_optimiser(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Take up what `optimiser_state` gave, in whichever way it was made."""
        load_state(optimiser, state)


class Copies(Alone):
    """Each process has a copy of the model: DistributedDataParallel."""

    def __init__(self, model: PairsModel, device: torch.device) -> None:
        super().__init__(model, device)
        self._wrap()

    def _wrap(self) -> None:
        devices = [self.device] if self.device.type == "cuda" else None
        # No buffer changes in training (batch norms keep their statistics), so none is sent round before each forward;
        # and gradients lie where they are averaged, not copied there and back.
        self.forward = nn.parallel.DistributedDataParallel(
            self.model, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """DDP's own."""
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
    """Put a model on the devices of all processes. Every process must call this, with the same model.

    Args:
        model: built, tuned, with the weights to start from; its parameters may be replaced.
        device: of this process.
        world: processes.
        sharding: `ddp`, `fsdp`, or `auto`: fsdp where a copy would not leave a GPU its other half.
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
    """Whether training takes more than about a half of some process' GPU; all processes find the same."""
    if device.type != "cuda":
        return False
    room = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    dist.all_reduce(room, dist.ReduceOp.MIN)
    return training_bytes(model) > _SHARE_OF_DEVICE * int(room)
