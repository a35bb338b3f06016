"""What the configs of all jobs share: strictness, and the options by which stores are reached."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict


class JobConfig(BaseModel):
    """A job's typed config: flags, YAML, help and Python API come from its fields. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Report(Protocol):
    """What a job returns."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        ...
