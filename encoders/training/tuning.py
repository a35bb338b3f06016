"""How much of a tower trains: nothing, its head, its last blocks, low-rank adapters, or everything."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from encoders.protocol import Modality
from encoders.training.models import Model, Tower

Mode = Literal["frozen", "head", "last", "lora", "full"]
_SPEC = re.compile(r"(frozen|head|full)|(last|lora):(\d+)")
_ADAPTED = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True)
class Tuning:
    """What trains in one tower. Training only the text tower is LiT, Zhai et al., arXiv:2111.07991.

    Attributes:
        mode: `frozen`; `head`: only the projection; `last`: the last `amount` blocks, everything after them, and the
            head; `lora`: adapters of rank `amount` in every block (Hu et al., arXiv:2106.09685), and the head; `full`.
        amount: number of blocks, or rank of the adapters.
    """

    mode: Mode
    amount: int = 0

    @classmethod
    def parse(cls, text: str) -> Tuning:
        """Parse `frozen`, `head`, `full`, `last:N` or `lora:RANK`.

        Raises:
            ValueError: the text is none of these.
        >>> Tuning.parse("last:2")
        Tuning(mode='last', amount=2)
        """
        found = _SPEC.fullmatch(text)
        if found is None or (found[3] is not None and int(found[3]) < 1):
            raise ValueError(f"tuning {text!r}: give frozen, head, full, last:N or lora:RANK")
        return cls(found[1] or found[2], int(found[3] or 0))  # type: ignore[arg-type]

    @property
    def touches_backbone(self) -> bool:
        """Whether training changes the backbone."""
        return self.mode in ("last", "lora", "full")

    @property
    def trains_head(self) -> bool:
        """Whether training changes the projection."""
        return self.mode != "frozen"


def apply_tuning(model: Model, modality: Modality, tuning: Tuning) -> None:
    """Set which parameters of a tower train, before DDP and the optimiser see them. Batch norms always stay frozen.

    Frozen parts stay in evaluation mode, without dropout. A frozen tower therefore gives the vectors that a table
    holds, whether they are read from the table or computed again.

    Raises:
        ValueError: the tower lacks the part: its backbone runs outside torch, or it has fewer blocks.
    """
    tower = model.tower(modality)
    _require(tower.heads, tuning.trains_head)
    if not tuning.trains_head:
        _keep_in_eval(*tower.heads)
    if not tower.heads and tuning.mode == "head":
        raise ValueError(f"{modality} tower: has no projection to train; give last:N, lora:RANK, full or frozen")
    if tower.backbone is None:
        if tuning.touches_backbone:
            raise ValueError(f"{modality} tower: its backbone does not run in torch; train its head, or keep it frozen")
        return
    _require((tower.backbone,), tuning.mode == "full")
    if tuning.mode == "last":
        _train_last_blocks(tower.backbone, modality, tuning.amount)
    if tuning.mode == "lora":
        _add_adapters(tower.backbone, modality, tuning.amount)
    freeze_batch_norm(tower.backbone)
    if tuning.touches_backbone:
        model.mark_tuned(modality)
    else:
        _keep_in_eval(tower.backbone)


def merge_adapters(tower: Tower) -> None:
    """Fold low-rank adapters into the weights that they adapt, so that the model has no adapters left."""
    if tower.backbone is None:
        return
    from peft.tuners.lora import LoraLayer

    for parent in list(tower.backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep batch norms at their pretrained statistics, in training too.

    Batch statistics would leak the batch's other pictures into a vector, and make cached gradients inexact.
    """
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.requires_grad_(False)
            _keep_in_eval(child)


def blocks_of(backbone: nn.Module) -> tuple[str, Any]:
    """Name and list of a backbone's blocks: its longest list of modules.

    In a network of stages (ConvNeXt, Swin) these are the stages, not the layers of one of them.

    Raises:
        ValueError: the backbone has no list of modules.
    """
    lists = [
        (name, child)
        for name, child in backbone.named_modules()
        if isinstance(child, nn.ModuleList) or (isinstance(child, nn.Sequential) and name.endswith("blocks"))
    ]
    if not lists:
        raise ValueError("the backbone has no list of blocks; tune it in full, or only its head")
    names = {name for name, _ in lists}
    lists = [item for item in lists if not any(item[0].startswith(f"{name}.") for name in names)]
    return max(lists, key=lambda item: (len(item[1]), -item[0].count(".")))


def _train_last_blocks(backbone: nn.Module, modality: Modality, amount: int) -> None:
    name, blocks = blocks_of(backbone)
    if amount > len(blocks):
        raise ValueError(f"{modality} tower: last:{amount}, but it has {len(blocks)} blocks; give at most that many")
    first = f"{name}.{len(blocks) - amount}."
    reached = False
    # What is defined after the blocks (final norms, poolers) is computed after them too.
    for parameter_name, parameter in backbone.named_parameters():
        reached = reached or parameter_name.startswith(first)
        parameter.requires_grad_(reached)


def _add_adapters(backbone: nn.Module, modality: Modality, rank: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    prefix, blocks = blocks_of(backbone)
    targets = [
        f"{prefix}.{name}"
        for name, child in blocks.named_modules()
        if isinstance(child, _ADAPTED) and getattr(child, "groups", 1) == 1
    ]
    if not targets:
        raise ValueError(f"{modality} tower: has no linear layers to adapt; tune its last blocks")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), backbone)


def _keep_in_eval(*modules: nn.Module) -> None:
    for module in modules:
        module.eval()
        module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc]


def _require(modules: tuple[nn.Module, ...], trains: bool) -> None:
    for module in modules:
        module.requires_grad_(trains)
