"""The settings of an embed run: everything besides its source, encoder and table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from encoders.protocol import EncoderOptions, Modality
from pipelines.rows.contract import Columns
from pipelines.store.storage import Storage

Engine = Literal["auto", "ray", "process"]


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Settings of an embed run. Those not listed here are options of `jobs.embed.EmbedConfig`, which explains them.

    Attributes:
        needs: modalities that each row must have; a row without one is rejected.
        max_pixels: pictures with more pixels are rejected.
        thumbnail_px: longest side of thumbnails in pixels; 0 keeps none.
        gpus_per_actor: GPUs of each encode actor; None: 1 if the cluster has any, else 0.
        actor_memory_bytes: memory that Ray reserves for each encode actor; None reserves none.
        retry: reasons whose rejects are tried again.
        delete_gone: whether to remove the rows of files that were deleted from the corpus.
        max_delete_rate: the largest share of the table's rows that may be removed for deleted files.
        corpus_name: the corpus' name within the table; None: known by its folder.
        job: the user's own options, without secrets. The table stores them, so that a retry uses the same.
    """

    corpus: str
    columns: Columns
    modalities: tuple[Modality, ...]
    needs: frozenset[str]
    options: EncoderOptions
    corpus_storage: Storage
    vector_dtype: str = "float32"
    max_pixels: int = 100_000_000
    thumbnail_px: int = 0
    decode_timeout_s: float = 60.0
    fragment_rows: int | None = None
    commit_rows: int | None = None
    commit_interval_s: float = 60.0
    engine: Engine = "auto"
    actors: int | None = None
    gpus_per_actor: float | None = None
    actor_memory_bytes: int | None = None
    block_rows: int | None = None
    retry: frozenset[str] = frozenset()
    max_reject_rate: float = 1.0
    delete_gone: bool = False
    max_delete_rate: float = 0.5
    corpus_name: str | None = None
    job: Mapping[str, Any] | None = None
