"""The processes of `benchmarks.train`. Each holds all contenders and runs the steps of the requested one."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.nn.functional import cross_entropy, normalize

from encoders.losses.weighted import LossTerm
from pipelines.store.storage import Storage, TableRef
from pipelines.train.finetuning.batches import BatchPlan
from pipelines.train.finetuning.checkpoints import RunFolder
from pipelines.train.finetuning.loading import Arrays, Needs, TableAt
from pipelines.train.finetuning.loop import Trainer, Work
from pipelines.train.finetuning.train_settings import ModelSettings, TrainSettings

OURS, RAW, PLAIN, OPEN_CLIP = "isthmus", "isthmus, from pixels and words", "plain torch loop", "open_clip's loss"
GRAD_CACHE, LIT, LIT_CACHED = "isthmus, GradCache", "LiT, picture by picture", "LiT, cached features"
Step = Callable[[], float]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_RATE, _DECAY = 1e-4, 0.1


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of a process.

    Attributes:
        model: directory of a CLIP model.
        batch: pairs in a batch of the process.
        chunk: pairs in a chunk of GradCache.
        rank: rank of the process.
        world: number of processes; 1 runs without a process group.
        port: port at which the process group meets.
        open_clip: folder into which open_clip_torch was installed; None leaves it out.
    """

    model: Path
    batch: int
    chunk: int
    rank: int
    world: int
    port: int
    open_clip: Path | None


def serve(job: Job, pipe: Connection) -> None:
    """Build the contenders, then answer each (name, steps) with its seconds and losses, until None arrives."""
    torch.set_num_threads(1)
    if job.world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job.port))
        dist.init_process_group("gloo", rank=job.rank, world_size=job.world)
    with tempfile.TemporaryDirectory() as scratch:
        steps = contenders(job, Path(scratch))
        pipe.send(list(steps))
        while (told := pipe.recv()) is not None:
            name, count = told
            if job.world > 1:
                dist.barrier()
            started = time.perf_counter()
            losses = [steps[name]() for _ in range(count)]
            pipe.send((time.perf_counter() - started, losses))
    if job.world > 1:
        dist.destroy_process_group()


def contenders(job: Job, scratch: Path) -> dict[str, Step]:
    """Each contender's step, with the same weights and pairs. A group of one has only two, for the scaling."""
    raw = pairs(job)
    full = process(job, scratch)
    ready = {name: tensor.numpy() for name, tensor in full._batch(raw).items()}
    found = {OURS: _ours(full, ready), PLAIN: _plain(job, ready, _own_loss(job))}
    if job.world == 1:
        return found
    if job.open_clip is not None:
        found[OPEN_CLIP] = _plain(job, ready, _open_clip_loss(job))
    lit = process(job, scratch, image="frozen")
    with torch.inference_mode():
        features = lit.model.model.image({"pixel_values": torch.from_numpy(ready["pixel_values"])}).numpy()
    words = {name: array for name, array in ready.items() if name != "pixel_values"}
    return found | {
        RAW: _ours(process(job, scratch), raw),
        GRAD_CACHE: _ours(process(job, scratch, chunk=job.chunk), ready),
        LIT: _ours(lit, ready),
        LIT_CACHED: _ours(process(job, scratch, image="frozen"), words | {"image_features": features}),
    }


def pairs(job: Job) -> Arrays:
    """This process' pairs in the form that an ingest task gives: pictures of noise, captions of a dozen words."""
    rng = np.random.default_rng(job.rank)
    side = _side(job.model)
    words = np.array(
        [
            "a",
            "the",
            "red",
            "blue",
            "small",
            "dog",
            "house",
            "on",
            "under",
            "near",
            "old",
            "tree",
            "car",
            "two",
            "people",
            "street",
            "light",
        ]
    )
    return {
        "pictures": list(rng.integers(0, 256, (job.batch, side, side, 3), np.uint8)),
        "captions": [" ".join(rng.choice(words, int(n))) for n in rng.integers(6, 16, job.batch)],
        "image_ids": np.arange(job.batch) + job.rank * job.batch,
        "text_ids": np.arange(job.batch) + job.rank * job.batch,
    }


def process(job: Job, scratch: Path, *, image: str = "full", chunk: int | None = None) -> Trainer:
    """A training process of isthmus, as Ray Train starts it, without its tables."""
    settings = TrainSettings(
        model=ModelSettings(spec=str(job.model), image_tuning=image, text_tuning="full"),
        losses=(LossTerm("infonce"),),
        learning_rate=_RATE,
        weight_decay=_DECAY,
        warmup_steps=1,
        chunk_size=chunk,
    )
    nowhere = TableAt(ref=TableRef.parse(str(scratch / "db" / "none")), version=1)
    size = job.batch * job.world
    work = Work(
        settings=settings,
        plan=BatchPlan(rows=size * 10_000, batch_size=size, epochs=1, seed=0),
        needs=Needs(samples=nowhere, image_features=False, text_features=False),
        train=np.arange(size * 10_000),
        validation=np.zeros(0, np.int64),
        teacher_train=None,
        folder=RunFolder(uri=str(scratch / "run"), storage=Storage()),
        board=None,
    )
    return Trainer(work, job.rank, job.world, torch.device("cpu"))


def _ours(training: Trainer, arrays: Arrays) -> Step:
    def step() -> float:
        value = training.train_step(arrays)
        training.step += 1
        return value

    return step


class PlainTowers(nn.Module):
    """A hand-written module around a CLIP of transformers."""

    def __init__(self, directory: Path) -> None:
        import transformers

        super().__init__()
        self.clip = transformers.CLIPModel.from_pretrained(directory)

    def forward(self, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Image vectors, text vectors and the logit scale."""
        image = self.clip.get_image_features(pixel_values=pixels).pooler_output
        text = self.clip.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return normalize(image, dim=1), normalize(text, dim=1), self.clip.logit_scale.exp()


def _plain(job: Job, ready: Arrays, loss: Loss) -> Step:
    """Forward, loss, backward, AdamW with its defaults: no clipping, no schedule, no check, no log."""
    model: nn.Module = PlainTowers(job.model).train()
    if job.world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=_DECAY)
    inputs = [torch.from_numpy(ready[name]) for name in ("pixel_values", "input_ids", "attention_mask")]

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        value = loss(*model(*inputs))
        value.backward()
        optimiser.step()
        return float(value.detach())

    return step


def _own_loss(job: Job) -> Loss:
    targets = torch.arange(job.batch) + job.rank * job.batch

    def loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        images, texts = (torch.cat(all_gather(rows)) if job.world > 1 else rows for rows in (image, text))
        return (cross_entropy(scale * image @ texts.T, targets) + cross_entropy(scale * text @ images.T, targets)) / 2

    return loss


def _open_clip_loss(job: Job) -> Loss:
    """`ClipLoss`, loaded from its own file, because the package as a whole needs torchvision."""
    assert job.open_clip is not None
    path = job.open_clip / "open_clip" / "loss.py"
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    sys.modules["open_clip_loss"] = module
    spec.loader.exec_module(module)
    made: Loss = module.ClipLoss(local_loss=True, gather_with_grad=True, rank=job.rank, world_size=job.world)
    return made


def _side(directory: Path) -> int:
    import transformers

    return int(transformers.CLIPConfig.from_pretrained(directory).vision_config.image_size)


def alone(job: Job) -> Job:
    """The same settings for a process without a group."""
    return replace(job, rank=0, world=1)
