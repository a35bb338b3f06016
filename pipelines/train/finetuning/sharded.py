"""A model sharded over the processes, block by block: FSDP2 (Zhao et al., arXiv:2304.11277)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from encoders.training.models import Batch
from encoders.training.optimiser import load_state
from encoders.training.pairs import PairsModel
from encoders.training.tuning import blocks_of
from pipelines.train.finetuning.parallel import Copies, State


class Shards(Copies):
    """Each process has a part of every parameter, of its gradient and of Adam's state: FSDP2, block by block.

    Frozen parameters are sharded too. Parameters of one element (the log scale, the bias) are not, because FSDP2 does
    not shard parameters without a dimension. Each process has a copy of these, and their gradients are averaged here.
    """

    # The cached casts would amount to the whole model.
    keeps_casts = False

    def __init__(self, model: PairsModel, device: torch.device) -> None:
        # Do not move the whole model to the device, which may lack room: each block goes there as it is sharded.
        self.model, self.device, self.forward = model, device, model
        self._wrap()

    def _wrap(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self._copied = [p for p in self.model.parameters() if p.numel() == 1]
        for tensor in self.model.state_dict().values():
            self._take_from_first(tensor)
        for parameter in self._copied:
            parameter.data = parameter.data.to(self.device)
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        for module in (*_blocks(self.model), self.model):
            fully_shard(module, mesh=mesh, ignored_params=set(self._copied))

    def _take_from_first(self, tensor: torch.Tensor) -> None:
        """Copy rank 0's weights to all processes, as DDP does."""
        held = tensor.detach().to(self.device)
        dist.broadcast(held, 0)
        tensor.copy_(held)

    def no_sync(self) -> contextlib.AbstractContextManager[Any]:
        """No context: gradients are averaged after every chunk, because until then each process holds them whole."""
        return contextlib.nullcontext()

    def level(self, chunks: list[Batch]) -> list[Batch]:
        """The chunks, padded with empty ones to the number of chunks of the process with most.

        Every forward gathers weights from all processes, so a process that ran fewer would leave the others waiting.
        """
        most = torch.tensor(len(chunks), device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        empty = {name: tensor[:0] for name, tensor in chunks[0].items()}
        return chunks + [empty] * (int(most) - len(chunks))

    @torch.no_grad()
    def clip_gradient(self, longest: float) -> float:
        """Shorten the whole, sharded gradient to at most `longest`; returns its length before that."""
        if any(parameter.grad is None for parameter in self.trained):
            # FSDP2 attaches its hooks to the model's outputs; older versions of torch look for tensors in fewer places.
            raise RuntimeError(f"sharding 'fsdp': torch {torch.__version__} left no gradient; use a newer one, or ddp")
        copied = _gradients(self._copied)
        self._average(copied)
        mine = [_local(gradient) for gradient in _gradients(self.trained) if isinstance(gradient, DTensor)]
        square = torch.nn.utils.get_total_norm(mine).to(self.device).square()
        dist.all_reduce(square)
        square += torch.nn.utils.get_total_norm(copied).to(self.device).square()
        norm = float(square.sqrt())
        # The same factor as in `clip_grad_norm_`.
        factor = min(1.0, longest / (norm + 1e-6))
        for gradient in (*mine, *copied):
            gradient.mul_(factor)
        return norm

    def _average(self, gradients: Sequence[torch.Tensor]) -> None:
        if gradients:
            together = torch.stack([gradient.reshape(()) for gradient in gradients])
            dist.all_reduce(together)
            for gradient, mean in zip(gradients, together / dist.get_world_size(), strict=True):
                gradient.fill_(mean)

    def weights_are_finite(self) -> bool:
        """Whether all weights that train are finite, in every process; all processes must stop together."""
        bad = sum(int((~_local(p.detach()).isfinite()).any()) for p in self.trained)
        return self.mean(float(bad)) == 0.0

    def model_state(self) -> State:
        """The whole state dict of the model, gathered tensor by tensor to rank 0."""
        found: State = _whole(self.model.state_dict())
        return found

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> State:
        """The whole state dict of the optimiser, gathered tensor by tensor to rank 0."""
        found: State = _whole(optimiser.state_dict())
        return found

    def load_optimiser(self, optimiser: torch.optim.Optimizer, state: State) -> None:
        """Load this process's part of a whole state."""
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        parts = {
            i: {name: _part_like(parameters[i], value) for name, value in entry.items()}
            for i, entry in state["state"].items()
        }
        load_state(optimiser, {**state, "state": parts})


def _blocks(model: PairsModel) -> list[nn.Module]:
    """The blocks of all torch backbones; a backbone without blocks is sharded together with the rest."""
    found: list[nn.Module] = []
    for modality in ("image", "text"):
        backbone = model.model.tower(modality).backbone
        with contextlib.suppress(ValueError):
            found += [] if backbone is None else blocks_of(backbone)[1]
    return found


def _gradients(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """The part in this process, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(value: Any) -> Any:
    """Nested data with every sharded tensor whole in the memory of rank 0; None in the other processes."""
    if isinstance(value, dict):
        return {name: _whole(entry) for name, entry in value.items()}
    if not isinstance(value, DTensor):
        return value
    whole = value.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else None


def _part_like(parameter: torch.Tensor, whole: Any) -> Any:
    """This process's part of a tensor that belongs to a sharded parameter; anything else unchanged."""
    if not isinstance(parameter, DTensor) or whole.shape != parameter.shape:
        return whole
    there = whole.to(parameter.device)
    part = distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)
    # A slice of a tensor keeps all of it in memory; hence the copy.
    return torch.empty_like(parameter).copy_(part)
