"""Fine-tuning a cross-encoder on a table's pairs against mined negatives.

Each step takes some rows. Each row's pair should match; its caption with a mined picture should not, nor its picture
with a mined caption. This is image-text matching with hard negatives (Li et al., ALBEF, arXiv:2107.07651). A step
depends only on the seed and the step's number, so a killed run resumes to the same weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from encoders.cross import CrossEncoder
from encoders.cross import load as load_cross_encoder
from encoders.protocol import EncoderOptions
from encoders.saving import replacing
from encoders.training.optimiser import cosine_with_warmup, make_optimiser, parameter_groups
from pipelines.rows.contract import CAPTION, IMAGE_URI, THUMBNAIL
from pipelines.sources.row_pictures import ReadPictures, decoded
from pipelines.train.reranking.triplets import Triplets

if TYPE_CHECKING:
    import lance
    from PIL.Image import Image

Index = NDArray[np.int64]
_STATE = "state.pt"
_SCORED_AT_ONCE = 32


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """How a cross-encoder is trained.

    Attributes:
        epochs: passes over the training rows.
        batch_rows: rows per step; each gives three pairs.
        learning_rate: peak learning rate.
        weight_decay: weight decay of matrices.
        warmup: share of the steps in which the learning rate rises.
        seed: seed of the order, the choice of negatives and dropout.
    """

    epochs: int = 3
    batch_rows: int = 16
    learning_rate: float = 2e-5
    weight_decay: float = 0.05
    warmup: float = 0.1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MatchReport:
    """The results of training.

    Attributes:
        rows: number of training rows.
        mined: share of their negatives that were mined; the others are random.
        unreadable: number of pictures that could not be read; their pairs were left out.
        steps: optimiser steps of the whole run.
        resumed_at: the epoch at which this process started, 0 for the first.
        losses: mean loss of each epoch that this process ran.
        accuracy_before: share of held-out rows whose pair scores above both of its negatives, before training; None
            without held-out rows.
        accuracy: the same share after each epoch. The weights of the best epoch are kept; those of the last without
            held-out rows.
    """

    rows: int
    mined: float
    unreadable: int
    steps: int
    resumed_at: int
    losses: list[float]
    accuracy_before: float | None
    accuracy: list[float | None]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class _Batch:
    """Pairs to score: three per row, grouped by kind (own pair, other picture, other caption)."""

    pictures: list[Image]
    texts: list[str]
    rows: int
    unreadable: int


def train(
    spec: str,
    triplets: Triplets,
    read: ReadPictures,
    out: Path,
    settings: MatchSettings,
    options: EncoderOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MatchReport:
    """Fine-tune a cross-encoder and save it to `out`, which appears only when it is complete.

    The state of the run is kept in `OUT.run` until it is done.

    Args:
        spec: the model to start from, a directory or a hub id.
        triplets: the rows and their negatives.
        read: reads the pictures of rows.
        out: the directory to write.
        settings: how to train.
        options: device, precision and threads.
        progress: called with (steps done, steps in total).

    Raises:
        ValueError: the model cannot be used, no picture can be read, or `OUT.run` belongs to another run.
    """
    torch.manual_seed(settings.seed)
    model = load_cross_encoder(spec, options)
    model.model.requires_grad_(True)
    groups = parameter_groups(model.model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    run = _Run(
        model=model,
        optimiser=make_optimiser(groups),
        triplets=triplets,
        read=read,
        settings=settings,
        folder=out.with_name(f"{out.name}.run"),
        identity=json.dumps([model.fingerprint, asdict(settings), triplets.identity], sort_keys=True),
    )
    report = run.train(progress)
    with replacing(out) as folder:
        model.save(folder)
    run.forget()
    return report


@dataclass(kw_only=True)
class _Run:
    model: CrossEncoder
    optimiser: torch.optim.AdamW
    triplets: Triplets
    read: ReadPictures
    settings: MatchSettings
    folder: Path
    identity: str
    unreadable: int = 0

    def train(self, progress: Callable[[int, int], None]) -> MatchReport:
        per_epoch = -(-len(self.triplets.training) // self.settings.batch_rows)
        total = per_epoch * self.settings.epochs
        state = self._resume()
        start, accuracy = state["epoch"], state["accuracy"]
        before = state["before"] if start else self._accuracy()
        losses = []
        for epoch in range(start, self.settings.epochs):
            losses.append(self._epoch(epoch, per_epoch, total, progress))
            accuracy.append(self._accuracy())
            is_best = accuracy[-1] is None or accuracy[-1] >= max(a for a in accuracy if a is not None)
            best = self.model.model.state_dict() if is_best else state["best"]
            state = {"epoch": epoch + 1, "accuracy": accuracy, "before": before, "best": _copied(best)}
            self._keep(state)
        if state["best"] is not None:
            self.model.model.load_state_dict(state["best"])
        return MatchReport(
            rows=len(self.triplets.training),
            mined=round(self.triplets.mined, 4),
            unreadable=self.unreadable,
            steps=total,
            resumed_at=start,
            losses=[round(loss, 5) for loss in losses],
            accuracy_before=before,
            accuracy=accuracy,
        )

    def _epoch(self, epoch: int, per_epoch: int, total: int, progress: Callable[[int, int], None]) -> float:
        self.model.model.train()
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(self.triplets.training)
        losses = []
        for n, batch in enumerate(self._batches(order, self.settings.batch_rows, epoch)):
            step = epoch * per_epoch + n
            losses.append(self._step(batch, step, total))
            progress(step + 1, total)
        read = [loss for loss in losses if loss is not None]
        if not read:
            raise ValueError(
                f"reranker: none of the pictures of {len(order)} rows could be read; restore the files that the "
                "table's image_uri names, or give --corpus-storage-options if they are in a store"
            )
        return float(np.mean(read))

    def _step(self, batch: _Batch, step: int, total: int) -> float | None:
        """Train one step; returns the loss, or None if none of the batch's pictures could be read."""
        if not batch.rows:
            return None
        factor = cosine_with_warmup(step, warmup_steps=round(self.settings.warmup * total), total_steps=total)
        for group in self.optimiser.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        torch.manual_seed(self.settings.seed * 1_000_003 + step)
        with self.model.autocast():
            logits = self.model.match(batch.pictures, batch.texts).float()
        loss = match_loss(logits, batch.rows)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.model.parameters(), 1.0)
        self.optimiser.step()
        return float(loss.detach())

    def _accuracy(self) -> float | None:
        """Accuracy on the held-out rows, None if none can be read; their negatives are the same every time."""
        self.model.model.eval()
        right = rows = 0
        for batch in self._batches(self.triplets.held_out, _SCORED_AT_ONCE, epoch=-1):
            if batch.rows:
                scores = self.model.score(batch.pictures, batch.texts).reshape(3, batch.rows)
                right += int((scores[0] > scores[1:].max(axis=0)).sum())
                rows += batch.rows
        return round(right / rows, 4) if rows else None

    def _batches(self, places: Index, rows: int, epoch: int) -> Iterator[_Batch]:
        """Batches in order; the next one is read while the last one is in use."""
        parts = [places[i : i + rows] for i in range(0, len(places), rows)]
        with ThreadPoolExecutor(1) as pool:
            coming: list[Future[_Batch]] = []
            for part in parts:
                coming.append(pool.submit(self._read_batch, part, epoch))
                if len(coming) > 1:
                    yield self._counted(coming.pop(0))
            for last in coming:
                yield self._counted(last)

    def _counted(self, coming: Future[_Batch]) -> _Batch:
        batch = coming.result()
        self.unreadable += batch.unreadable
        return batch

    def _read_batch(self, places: Index, epoch: int) -> _Batch:
        pictures, captions = self.triplets.negatives_of(places, epoch, self.settings.seed)
        wanted, inverse = np.unique(np.concatenate([places, pictures, captions]), return_inverse=True)
        rows = _rows(self.triplets.dataset, self.triplets.offsets[wanted])
        images, texts = decoded(rows, self.read), rows[CAPTION].to_pylist()
        own, other, said = inverse.reshape(3, -1)
        good = [i for i in range(len(places)) if images[own[i]] is not None and images[other[i]] is not None]
        picked = [images[own[i]] for i in good], [images[other[i]] for i in good]
        mine, theirs = [texts[own[i]] for i in good], [texts[said[i]] for i in good]
        return _Batch(
            pictures=[image for image in (*picked[0], *picked[1], *picked[0]) if image is not None],
            texts=[*mine, *mine, *theirs],
            rows=len(good),
            unreadable=sum(image is None for image in images),
        )

    def _resume(self) -> dict[str, Any]:
        path = self.folder / _STATE
        if not path.is_file():
            return {"epoch": 0, "accuracy": [], "before": None, "best": None}
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise ValueError(
                f"out: {self.folder} holds the state of another run (other settings, rows or model); "
                "remove it, or give another --out"
            )
        self.model.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        return dict(state["run"])

    def _keep(self, state: dict[str, Any]) -> None:
        whole = {
            "identity": self.identity,
            "model": self.model.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "run": state,
        }
        with replacing(self.folder) as folder:
            torch.save(whole, folder / _STATE)

    def forget(self) -> None:
        """Remove the run's state, because the run is done."""
        (self.folder / _STATE).unlink(missing_ok=True)
        if self.folder.is_dir():
            self.folder.rmdir()


def match_loss(logits: torch.Tensor, rows: int) -> torch.Tensor:
    """Binary cross-entropy of matching and non-matching pairs; both kinds have equal weight.

    Args:
        logits: (3 · rows,), the matching pairs first.
        rows: number of matching pairs.
    """
    yes = torch.nn.functional.softplus(-logits[:rows]).mean()
    no = torch.nn.functional.softplus(logits[rows:]).mean()
    return (yes + no) / 2


def _rows(dataset: lance.LanceDataset, offsets: Index) -> Any:
    thumbnail = [THUMBNAIL] if THUMBNAIL in dataset.schema.names else []
    return dataset.take(offsets.tolist(), columns=[CAPTION, IMAGE_URI, *thumbnail])


def _copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}
