"""Everything that an embed run needs besides its source, its encoder and its table."""

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
    """Settings of an embed run; `jobs.embed.EmbedConfig` says what each one means to its user.

    `job` holds the user's own options, without secrets: the table remembers them, so that a retry does the same.
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
    job: Mapping[str, Any] | None = None
