"""The model of a run, built identically by every process, and its closed-form start."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from encoders.training.models import open_model
from encoders.training.pairs import PairsModel
from encoders.training.tuning import Tuning, apply_tuning, merge_adapters
from pipelines.train.finetuning.train_settings import ModelSettings

_REGULARISATION = 0.2


def build(settings: ModelSettings) -> PairsModel:
    """The model with its tuning applied. Fresh heads are initialised from the seed.

    Raises:
        ValueError: the encoder cannot be trained this way.
    """
    torch.manual_seed(settings.seed)
    model = open_model(
        settings.spec, dim=settings.dim, head=settings.head, dropout=settings.dropout, bias=settings.bias
    )
    if settings.gradient_checkpointing:
        _checkpoint_gradients(model)
    apply_tuning(model, "image", Tuning.parse(settings.image_tuning))
    apply_tuning(model, "text", Tuning.parse(settings.text_tuning))
    return PairsModel(model, teacher_image_dim=settings.teacher_image_dim, teacher_text_dim=settings.teacher_text_dim)


def plain(pairs_model: PairsModel) -> Any:
    """The `Model` inside, with its adapters merged: this is what is saved."""
    model = pairs_model.model
    for modality in ("image", "text"):
        merge_adapters(model.tower(modality))
    return model


def _checkpoint_gradients(model: Any) -> None:
    """Recompute activations in the backward pass, in every backbone that supports it.

    Raises:
        ValueError: no backbone supports it.
    """
    backbones = [m for m in model.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not backbones:
        raise ValueError("gradient_checkpointing: neither tower supports it; use --chunk-size to save memory")
    for backbone in backbones:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def start_from_cca(model: Any, image: NDArray[np.float32], text: NDArray[np.float32]) -> None:
    """Set linear heads by canonical correlation analysis of the training pairs (Hotelling, 1936; regularised).

    The closed form finds the linear maps under which pictures and captions correlate most. Contrastive training
    continues from there.

    Args:
        model: a `Model` with linear heads that normalise their input.
        image: (n, backbone dim), features of the pictures.
        text: (n, backbone dim), features of their captions, row by row.

    Raises:
        ValueError: the heads are not linear, or their dimension exceeds that of the features.
    """
    layers = [_linear(model.tower(modality).heads) for modality in ("image", "text")]
    x, y = (_rescaled(features) for features in (image, text))
    k = layers[0].out_features
    if k > min(x.shape[1], y.shape[1]):
        raise ValueError(
            f"dim {k}: start cca gives at most {min(x.shape[1], y.shape[1])} dimensions; give a smaller --dim"
        )
    left, right = cca(x, y, k)
    with torch.no_grad():
        for layer, features, weights in zip(layers, (x, y), (left, right), strict=True):
            layer.weight.copy_(torch.from_numpy(weights.T))
            layer.bias.copy_(torch.from_numpy(-(features.mean(axis=0) @ weights)))


def cca(
    x: NDArray[np.float64], y: NDArray[np.float64], k: int, regularisation: float = _REGULARISATION
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Canonical directions, each weighted by its correlation, so that uncertain directions count less in a cosine.

    Args:
        x: (n, p), features of one modality.
        y: (n, q), features of the other, row by row.
        k: number of directions.
        regularisation: share of the mean variance that is added to each variance.

    Returns:
        Weights (p, k) for x and (q, k) for y.
    """
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    white_x, white_y = _whitener(x, regularisation), _whitener(y, regularisation)
    u, s, vt = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    return white_x @ u[:, :k] * s[:k], white_y @ vt[:k].T * s[:k]


def _whitener(x: NDArray[np.float64], regularisation: float) -> NDArray[np.float64]:
    covariance = x.T @ x / len(x)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0) + regularisation * values.mean() + 1e-12
    return np.asarray(vectors / np.sqrt(values))


def _rescaled(features: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = features.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True).clip(min=1e-12) * np.sqrt(wide.shape[1]))


def _linear(heads: tuple[nn.Module, ...]) -> nn.Linear:
    layers = [layer for head in heads for layer in head.modules() if isinstance(layer, nn.Linear)]
    if len(layers) != 1 or layers[0].bias is None:
        raise ValueError("start 'cca': needs fresh linear heads; give --encoder IMAGE+TEXT --head linear")
    return layers[0]
