"""`isthmus encoders`: which encoders are here, and what one of them is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig


@Parameter(name="*")
class EncodersConfig(JobConfig):
    """Config of `isthmus encoders`."""

    encoder: str | None = Field(
        default=None,
        description="Encoder to describe: a registered name, a "
        "directory, or IMAGE+TEXT; default: list all registered ones.",
    )


@dataclass(frozen=True, kw_only=True)
class EncodersReport:
    """The registered encoders, or the towers of one encoder."""

    encoders: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)


def run(config: EncodersConfig) -> EncodersReport:
    """List the registered encoders, or describe one by its card, without loading its weights.

    Raises:
        ValueError: the encoder is unknown or cannot be read.
    """
    from encoders.registry import describe, names

    if config.encoder is None:
        return EncodersReport(encoders=[{"name": name, "about": about} for name, about in names().items()])
    card = describe(config.encoder).card
    rows = [
        {"name": card.name, "modality": tower.modality, "dim": tower.dim, "fingerprint": tower.fingerprint}
        | {"space": tower.space}
        for tower in card.towers
    ]
    return EncodersReport(encoders=rows)
