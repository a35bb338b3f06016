"""Recall on held-out rows during training: exact, held in memory, the same in every process."""

from __future__ import annotations

import torch

K = (1, 5, 10)


@torch.no_grad()
def retrieval_metrics(
    image: torch.Tensor, text: torch.Tensor, image_ids: torch.Tensor, text_ids: torch.Tensor
) -> dict[str, float]:
    """Recall@K in both directions, their mean (`R@K`), and the mean reciprocal rank of text → image (`MRR`).

    A picture with several captions is in the gallery once, and so is a caption of several pictures. Any positive
    counts: the row's own item, or an entry with an equal caption. Ties go to the earlier row of the gallery; NaN scores
    rank last.

    Args:
        image: image vectors (n, dim), L2-normalised.
        text: text vectors (n, dim), L2-normalised.
        image_ids: int64 (n,); equal ids mean the same picture.
        text_ids: int64 (n,); equal ids mean the same caption.
    """
    (pictures, picture_of), (captions, caption_of) = _distinct(image_ids), _distinct(text_ids)
    said_of = torch.zeros(len(captions), len(pictures), dtype=torch.bool)
    said_of[caption_of, picture_of] = True
    found = {
        "text_to_image": _ranks(text, image[pictures], said_of[caption_of]),
        "image_to_text": _ranks(image[pictures], text[captions], said_of.T),
    }
    metrics = {f"{way} R@{k}": float((r <= k).float().mean()) for way, r in found.items() for k in K}
    metrics |= {f"R@{k}": sum(metrics[f"{way} R@{k}"] for way in found) / 2 for k in K}
    return metrics | {"MRR": float((1.0 / found["text_to_image"]).mean())}


def _distinct(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows where each value occurs first, ascending; and for each row, the entry of its value among these."""
    values, inverse = torch.unique(ids, return_inverse=True)
    first = torch.full((len(values),), len(ids), dtype=torch.int64)
    first.scatter_reduce_(0, inverse, torch.arange(len(ids)), reduce="amin")
    order = first.argsort()
    return first[order], order.argsort()[inverse]


def _ranks(queries: torch.Tensor, gallery: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """The rank, from 1, of each query's best positive."""
    # Round so that equal vectors tie: a matrix product may differ in its last bits from column to column.
    scores = (queries.double() @ gallery.double().T * 1e9).round()
    scores = scores.nan_to_num(nan=-torch.inf)
    best, place = scores.masked_fill(~positives, -torch.inf).max(dim=1, keepdim=True)
    place = ((scores == best) & positives).float().argmax(dim=1, keepdim=True)
    earlier = torch.arange(gallery.shape[0])[None, :] < place
    ranks = ((scores > best) | ((scores == best) & earlier)).sum(dim=1) + 1
    return torch.where(best[:, 0].isneginf(), gallery.shape[0], ranks)
