"""The training process: the same code for one process or many, on CPUs or GPUs."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from encoders.losses.grad_cache import cached_backward, plain_backward
from encoders.losses.pairs import Pairs
from encoders.losses.temperature import clamp_log_scale
from encoders.losses.weighted import WeightedLoss
from encoders.training.optimiser import cosine_with_warmup, make_optimiser, parameter_groups
from encoders.training.pairs import PairsModel, cut_batch, scale_of
from pipelines.train.finetuning.batches import BatchPlan, SequentialPlan
from pipelines.train.finetuning.building import build, start_from_cca
from pipelines.train.finetuning.checkpoints import BEST, LATEST, RunFolder
from pipelines.train.finetuning.ingest import Resident, Share, resident_bytes, stream
from pipelines.train.finetuning.loading import Arrays, Needs
from pipelines.train.finetuning.parallel import share_model
from pipelines.train.finetuning.shuffle import step_seed
from pipelines.train.finetuning.train_settings import Sharding, TrainSettings
from pipelines.train.finetuning.validation import retrieval_metrics

log = logging.getLogger(__name__)
DIVERGED = "diverged.json"
_CLAMPED_FOR_LONG = 200
_VALIDATION_BATCH = 512
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the driver sends to every process: settings, batches, offsets of the rows, and the run's folder."""

    settings: TrainSettings
    plan: BatchPlan
    needs: Needs
    train: np.ndarray[Any, Any]
    validation: np.ndarray[Any, Any]
    teacher_train: np.ndarray[Any, Any] | None
    folder: RunFolder
    board: Any
    sharding: Sharding = "auto"
    task_cpus: float = 1.0


class Trainer:
    """One process of a run."""

    def __init__(self, work: Work, rank: int, world: int, device: torch.device) -> None:
        """Build the model, the loss and the optimiser, and resume from the run's checkpoint if there is one."""
        self.work, self.rank, self.world, self.device = work, rank, world, device
        self.settings = work.settings
        self.model: PairsModel = build(self.settings.model)
        self.loss = WeightedLoss(self.settings.losses, self.model.model.dim).to(device)
        self.step, self.best, self.without_gain, self.clamped = 0, -math.inf, 0, 0
        self.finished = False
        self.history: list[Row] = []
        self._resident: Resident | None = None
        self._open_data()
        state = work.folder.load(LATEST)
        if state is not None:
            self.model.load_state_dict(state["model"])
        self.parallel = share_model(self.model, device, world, work.sharding)
        self.forward = self.parallel.forward
        self.optimiser = make_optimiser(
            parameter_groups(
                self.model,
                learning_rate=self.settings.learning_rate,
                weight_decay=self.settings.weight_decay,
                head_factor=self.settings.head_factor,
            )
        )
        self._base_rates = [group["lr"] for group in self.optimiser.param_groups]
        if state is not None:
            self._restore(state)

    def run(self) -> None:
        """Train to the last step, or until the validation has stopped improving."""
        if self.step == 0 and not self.history:
            self._validate()
            self._save(LATEST)
        last = min(self.work.plan.steps, self.settings.stop_after_steps or self.work.plan.steps)
        started, seen = time.perf_counter(), 0
        for arrays in self._stream():
            if self.finished or self.step >= last:
                break
            value = self.train_step(arrays)
            if not math.isfinite(value):
                self._say_diverged(self.step, f"the loss or its gradient is {value}")
                return
            self.step += 1
            seen += min(self.work.plan.batch_size, self.work.plan.rows)
            if self.step % self.settings.log_every == 0 or self.step == last:
                self._log(value, seen / (time.perf_counter() - started))
            # Weights that are not finite must not reach a checkpoint. In validation, their vectors would compare as if
            # every positive were found.
            if self._is_boundary(last) and not self.parallel.weights_are_finite():
                self._say_diverged(self.step - 1, "the step left weights that are not finite")
                return
            self._at_boundaries(last)
        self.finished = self.finished or self.step >= self.work.plan.steps
        self._save(LATEST)

    def _at_boundaries(self, last: int) -> None:
        if self._validation_due(last):
            self._validate()
        if self._checkpoint_due or self.finished:
            self._save(LATEST)

    def _is_boundary(self, last: int) -> bool:
        return self._validation_due(last) or self._checkpoint_due

    def _validation_due(self, last: int) -> bool:
        every = self.work.plan.steps_per_epoch * self.settings.evaluate_every
        return self.step % every == 0 or self.step == last

    @property
    def _checkpoint_due(self) -> bool:
        return self.step % (self.settings.checkpoint_every or self.work.plan.steps_per_epoch) == 0

    def train_step(self, arrays: Arrays) -> float:
        """Forward, backward and optimiser step on this process's share of a batch.

        Returns:
            The mean loss of the whole batch. If the loss or the length of the gradient is not finite, that value; the
            weights then stay unchanged.
        """
        self.forward.train()
        torch.manual_seed(step_seed(self.settings.model.seed, self.step, self.rank))
        factor = cosine_with_warmup(
            self.step, warmup_steps=self.settings.warmup_steps, total_steps=self.work.plan.steps
        )
        for group, rate in zip(self.optimiser.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * factor
        self.optimiser.zero_grad(set_to_none=True)
        batch = self._batch(arrays)
        chunk = self.settings.chunk_size
        with self._autocast():
            if chunk is None:
                value, pairs = plain_backward(self.forward, batch, self.loss)
            else:
                chunks = self.parallel.level(cut_batch(batch, chunk))
                value, pairs = cached_backward(self.forward, chunks, self.loss, self.parallel.no_sync)
        value = self.parallel.mean(value)
        if math.isfinite(value):
            self._norm = self.parallel.clip_gradient(self.settings.gradient_clip)
            if not math.isfinite(self._norm):
                return self._norm
            self._apply(pairs)
        return value

    def _apply(self, pairs: Pairs) -> None:
        self.optimiser.step()
        self.clamped = self.clamped + 1 if clamp_log_scale(scale_of(self.model)) else 0
        if self.clamped == _CLAMPED_FOR_LONG:
            text = f"the temperature has been at its bound for {self.clamped} steps; lower the learning rate"
            log.warning(text)
            self._post({"step": self.step, "warning": text})
        self.loss.enqueue(pairs)

    def _batch(self, arrays: Arrays) -> dict[str, torch.Tensor]:
        """Arrays as tensors on the device: pictures normalised, captions as tokens."""
        rest = dict(arrays)
        tensors: dict[str, torch.Tensor] = {}
        if "pictures" in rest:
            tensors |= self.model.model.pixels(rest.pop("pictures"))
        if "captions" in rest:
            tokens = self.model.model.tokenize(rest.pop("captions"))
            tensors |= {name: torch.from_numpy(array) for name, array in tokens.items()}
        tensors |= {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in rest.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in tensors.items()}

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure recall on the held-out rows; keep the weights if they are the best so far."""
        if not len(self.work.validation):
            return
        self.forward.eval()
        pieces: list[Pairs] = []
        for arrays in self._validation_batches():
            # A process without rows still takes part in the gathering.
            with self._autocast():
                pieces.append(self.model(self._batch(arrays)))
        names = ("image", "text", "image_ids", "text_ids")
        gathered = [self.parallel.gather(torch.cat([getattr(p, name) for p in pieces])) for name in names]
        metrics = retrieval_metrics(*(tensor.cpu() for tensor in gathered))
        chosen = metrics[self.settings.metric]
        self._post({"step": self.step, "epoch": self._epoch, "validation": metrics}, keep=True)
        if chosen > self.best:
            self.best, self.without_gain = chosen, 0
            self._save(BEST)
        else:
            self.without_gain += 1
            self.finished = 0 < self.settings.patience <= self.without_gain

    def _open_data(self) -> None:
        share = self._share(self.work.plan, self.work.train, self.work.teacher_train, augmented=True)
        size = resident_bytes(share, 4096)
        if size is not None and size <= self.settings.resident_bytes:
            self._resident = Resident(share)
        if self.settings.model.start == "cca":
            if self._resident is None or not self.work.needs.text_features:
                raise ValueError("start 'cca': needs both towers as features that fit in memory; use start random")
            held = self._resident.everything
            start_from_cca(self.model.model, held["image_features"], held["text_features"])

    def _stream(self) -> Iterator[Arrays]:
        if self._resident is not None:
            return self._resident.stream(self.step)
        share = self._share(self.work.plan, self.work.train, self.work.teacher_train, augmented=True)
        return stream(share, self.step, tasks=self.settings.tasks_per_worker, task_cpus=self.work.task_cpus)

    def _validation_batches(self) -> Iterator[Arrays]:
        plan = SequentialPlan(rows=len(self.work.validation), batch_size=_VALIDATION_BATCH * self.world)
        share = self._share(plan, self.work.validation, None, augmented=False)
        if self._resident is not None:
            return (share.load(step) for step in range(plan.steps))
        return stream(share, 0, tasks=self.settings.tasks_per_worker, task_cpus=self.work.task_cpus)

    def _share(self, plan: Any, offsets: Any, teacher: Any, *, augmented: bool) -> Share:
        return Share(
            plan=plan,
            needs=self.work.needs,
            offsets=offsets,
            teacher_offsets=teacher,
            rank=self.rank,
            world=self.world,
            augmented=augmented,
        )

    @property
    def _epoch(self) -> float:
        return round(self.step / self.work.plan.steps_per_epoch, 3)

    def _log(self, value: float, pairs_per_s: float) -> None:
        row = {
            "step": self.step,
            "epoch": self._epoch,
            "loss": value,
            "scale": float(scale_of(self.model).detach().exp()),
            "learning_rate": self.optimiser.param_groups[-1]["lr"],
            "gradient_norm": self._norm,
        }
        self._post(row, keep=True, pairs_per_s=round(pairs_per_s, 1))

    def _post(self, row: Row, *, keep: bool = False, **extra: Any) -> None:
        """Send a row to the driver; with `keep`, also add it to the history in the checkpoint."""
        if keep:
            self.history.append(row)
        if self.rank == 0 and self.work.board is not None:
            self.work.board.post.remote({**row, **extra})

    def _say_diverged(self, step: int, problem: str) -> None:
        """Write the problem to a file for the driver; the checkpoints stay unchanged."""
        if self.rank == 0:
            offsets = self.work.train[self.work.plan.batch(step)].tolist()
            said = {"step": step, "problem": problem, "offsets": offsets}
            self.work.folder.write(DIVERGED, json.dumps(said).encode())

    def _save(self, name: str) -> None:
        """Every process must call this, because each may hold a part of the state."""
        state = self.parallel.model_state() if name == BEST else self._state()
        if self.rank == 0:
            self.work.folder.save(name, state)

    def _state(self) -> Row:
        plan = self.work.plan
        return {
            "model": self.parallel.model_state(),
            "optimiser": self.parallel.optimiser_state(self.optimiser),
            "loss": self.loss.state_dict(),
            "step": self.step,
            "samples_seen": self.step * plan.batch_size,
            "position": {"epoch": self.step // plan.steps_per_epoch, "batch": self.step % plan.steps_per_epoch},
            "random": {"seed": self.settings.model.seed, "of": "seed, step and rank"},
            "best": self.best,
            "without_gain": self.without_gain,
            "clamped": self.clamped,
            "finished": self.finished,
            "history": json.dumps(self.history),
            "table_versions": self.settings.table_versions,
        }

    def _restore(self, state: Row) -> None:
        self.parallel.load_optimiser(self.optimiser, state["optimiser"])
        self.loss.load_state_dict(state["loss"])
        self.step, self.best, self.without_gain = state["step"], state["best"], state["without_gain"]
        self.clamped, self.finished = state["clamped"], state["finished"]
        self.history = json.loads(state["history"])

    def _autocast(self) -> Any:
        wanted = self.settings.precision
        if wanted == "bf16" or (wanted == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=self.parallel.keeps_casts)
        return contextlib.nullcontext()
