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

    name: CorpusName = Field(description="Which corpus.")
    out: Path = Field(description="Folder of the Parquet file and its NOTICE.txt.")
    pictures: int | None = Field(default=None, ge=1, description="How many pictures, drawn at random; default: all.")
    captions: Captions = Field(
        default="label", description="label: names or titles. label+tags: tags as one more caption a language."
    )
    seed: int = Field(default=0, description="Of the draw.")
    cache: Path | None = Field(
        default=None, description="Where fetched packages are kept, to be fetched once; default: OUT/.cache."
    )


def run(config: CorpusConfig, progress: Progress | None = None) -> CorpusInfo:
    """Fetch the packages of a corpus and convert them.

    Raises:
        FetchError: npm, apt-get or dpkg-deb is missing, or could not fetch a package.
        ModuleNotFoundError: `openmoji` needs the extra `demo`.
        ValueError: fewer pictures than a concept of the corpus has.
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
