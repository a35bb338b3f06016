"""What an engine is given, and what it says that it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from encoders.description import Description
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.sink.staging import Files
from pipelines.rows.pace import StageWorkers
from pipelines.sources.base import Source
from pipelines.store.storage import TableRef

# Staging tasks that the driver has running on Ray at a time.
STAGES_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """An embed run, but for the work that is left of it.

    Attributes:
        source: the corpus.
        description: the encoder's card and image transform.
        settings: the rest.
        table: where the rows go; it exists.
        schema: the table's.
        files: what staging must know of the corpus' files.
    """

    source: Source
    description: Description
    settings: EmbedSettings
    table: TableRef
    schema: pa.Schema
    files: Files


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How an engine did its work: cores, encode actors, their GPUs, and tasks that read."""

    engine: Literal["ray", "process"]
    cores: int
    actors: int
    read_tasks: int
    gpus: float = 0.0

    @property
    def workers(self) -> dict[str, int]:
        """Stage → how many of it run at a time; what is not named runs alone."""
        if self.engine == "process":
            return dict.fromkeys(("read", "decode", "encode", "stage"), self.actors)
        return {"read": self.cores, "decode": self.cores, "encode": self.actors, "stage": STAGES_IN_FLIGHT}

    @property
    def crew(self) -> StageWorkers:
        """Who decodes and who encodes: with GPUs each actor has a CPU, and the others decode."""
        decoders = max(1, self.cores - self.actors) if self.gpus else 0
        return StageWorkers(encoders=self.actors, decoders=decoders, gpus=self.gpus)
