"""`isthmus embed`: a corpus goes in, a searchable LanceDB table comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from jobs.config import CorpusStoreConfig

if TYPE_CHECKING:
    from encoders.description import Description
    from pipelines.ingest.embed_report import EmbedReport
    from pipelines.ingest.embed_settings import EmbedSettings
    from pipelines.ingest.engines.early import Reserve
    from pipelines.sources.base import Source
    from pipelines.store.storage import TableRef

Embed = Literal["auto", "image", "text", "both", "any"]
# So many processes at the most are started before anybody knows how much there is to do.
_EARLY = 4


@Parameter(name="*")
class EmbedConfig(CorpusStoreConfig):
    """Config of `isthmus embed`."""

    corpus: str = Field(description="A file, a folder, a glob, or an s3:// prefix.")
    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME; made if it is not there.")
    encoder: str = Field(
        description="A registered name (see `isthmus encoders`), a model directory, a hub id, or IMAGE+TEXT for two "
        "unrelated towers."
    )
    format: Literal["auto", "parquet", "webdataset", "folder", "captions", "coco", "karpathy"] = Field(
        default="auto", description="The corpus' format; auto looks at what is there."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Names that differ: --columns.ROLE NAME, with role key, image, uri, caption or item.",
    )
    embed: Embed = Field(
        default="auto",
        description="What to embed. both: each row needs a picture and a caption. any: whatever a row has. "
        "auto: all that both the corpus' layout and the encoder have.",
    )
    preprocessing: Literal["fast", "exact"] = Field(
        default="fast", description="exact equals the model family's own processor; fast decodes large JPEGs small."
    )
    text_policy: Literal["truncate", "window", "reject"] = Field(
        default="truncate", description="Captions longer than the text tower reads: cut, cut into windows, rejected."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the encoder runs.")
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        default="auto",
        description="auto: bf16 on CUDA, fp32 on the CPU. int8: linear layers rounded, on the CPU by OpenVINO; cosine "
        "0.99 or better to fp32.",
    )
    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto",
        description="What computes on the CPU. auto: torch, and from the moment that a batch has shown it to be faster "
        "and as exact, OpenVINO (extra cpu).",
    )
    batch_size: int = Field(default=64, ge=1, description="Inputs of a forward pass; halved when memory runs out.")
    engine: Literal["auto", "ray", "process"] = Field(
        default="auto",
        description="What runs the stages. auto: Ray on a cluster or with GPUs, else a process a core.",
    )
    actors: int | None = Field(default=None, ge=1, description="Encode actors; default: one a GPU, else one a core.")
    num_gpus: float | None = Field(default=None, ge=0, description="GPUs of each actor; default: 1 if there are any.")
    threads: int | None = Field(default=None, ge=1, description="Torch threads of each actor on the CPU.")
    block_rows: int | None = Field(default=None, ge=1, description="Rows of a block; default by the input size.")
    max_image_pixels: int = Field(default=100_000_000, ge=1, description="Larger pictures are rejected undecoded.")
    decode_timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="A picture that takes longer to decode is rejected."
    )
    thumbnails: int = Field(default=0, ge=0, le=1024, description="Keep JPEG thumbnails of this many pixels (0: none).")
    vector_dtype: Literal["float16", "float32"] = Field(default="float32", description="Type of the vectors.")
    fragment_rows: int | None = Field(
        default=None, ge=1, description="Rows of a Lance fragment; default: 16,384, in large tables up to 65,536."
    )
    commit_rows: int | None = Field(
        default=None, ge=1, description="The most rows that a crash can cost; default: 65,536, or a 256th of the table."
    )
    commit_interval_s: float = Field(default=60.0, gt=0, description="The most seconds between commits.")
    max_reject_rate: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Stop, as of the last commit, when a greater share of the rows is rejected.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.device == "cpu" and self.num_gpus:
            raise ValueError(f"num_gpus {self.num_gpus} with device 'cpu': drop one of the two")
        if self.engine == "process" and (self.actors or self.num_gpus):
            raise ValueError("actors and num_gpus are Ray's: drop them, or --engine process")
        if self.thumbnails and self.embed == "text":
            raise ValueError("thumbnails need pictures: drop --thumbnails, or embed pictures too")
        return self


def run(config: EmbedConfig, progress: Callable[[int, int | None], None] | None = None) -> EmbedReport:
    """Embed a corpus into a table; a run that was interrupted goes on where its last commit ended.

    Files that the table holds are skipped; rows of files that changed are replaced. What is gone from the corpus stays
    in the table: `isthmus sync` removes it.

    Args:
        config: the job.
        progress: called with (rows settled so far, rows in all if known).

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together; nothing was changed.
        TooManyRejectsError: more rows were rejected than `max_reject_rate` allows; the table is as of its last commit.
        OSError: a store fails; the table is as of its last commit.
    """
    return run_with(config, {}, progress)


def run_with(
    config: EmbedConfig, changes: dict[str, Any], progress: Callable[[int, int | None], None] | None
) -> EmbedReport:
    """`run` with some of the pipeline's settings changed."""
    from dataclasses import replace

    with _reserve(config) as reserve:
        from pipelines.ingest.embed import embed

        source, description, table, settings = prepare(config)
        settings = replace(settings, **changes)
        return embed(source, description, table, settings, progress or (lambda done, total: None), reserve)


def _reserve(config: EmbedConfig) -> Reserve:
    """Processes that do their imports while this one does its own and lists the corpus.

    There are none where the table is there already, on this disk or in a store, which nobody asks before its library
    is imported: mostly there is little to do then, or nothing.
    """
    from pipelines.cluster.machine import cores, needs_no_ray
    from pipelines.ingest.engines.early import Reserve
    from pipelines.store.storage import TableRef, is_remote

    asks = bool(config.actors or config.num_gpus)
    table = TableRef.parse(config.table).uri
    fresh = not is_remote(table) and not Path(table).exists()
    here = needs_no_ray(config.engine, config.device, asks=asks)
    return Reserve(config.encoder, min(cores(), _EARLY) if here and fresh else 0)


def prepare(config: EmbedConfig) -> tuple[Source, Description, TableRef, EmbedSettings]:
    """What a config names: the opened corpus, the described encoder, the table, and the rest.

    Raises:
        ValueError: the corpus and the encoder do not fit together.
        FileNotFoundError: there is no such corpus or encoder.
    """
    from encoders.protocol import EncoderOptions
    from encoders.registry import describe
    from pipelines.ingest.embed_settings import EmbedSettings
    from pipelines.ingest.planning import choose_modalities
    from pipelines.rows.contract import Columns
    from pipelines.sources import open_source

    options = EncoderOptions(
        preprocessing=config.preprocessing,
        text_policy=config.text_policy,
        device=config.device,
        precision=config.precision,
        backend=config.backend,
        threads=config.threads,
        batch_size=config.batch_size,
    )
    table = config.ref(config.table)
    columns = Columns.from_mapping(config.columns)
    corpus_storage = config.corpus_storage()
    description = describe(config.encoder, options)
    source = open_source(config.corpus, columns=columns, storage=corpus_storage, format=config.format)
    modalities = choose_modalities(config.embed, description.card.modalities, source.modalities())
    settings = EmbedSettings(
        corpus=config.corpus,
        columns=columns,
        modalities=modalities,
        needs=frozenset() if config.embed == "any" else frozenset(modalities),
        options=options,
        corpus_storage=corpus_storage,
        vector_dtype=config.vector_dtype,
        max_pixels=config.max_image_pixels,
        thumbnail_px=config.thumbnails,
        decode_timeout_s=config.decode_timeout_s,
        fragment_rows=config.fragment_rows,
        commit_rows=config.commit_rows,
        commit_interval_s=config.commit_interval_s,
        engine=config.engine,
        actors=config.actors,
        gpus_per_actor=0.0 if config.device == "cpu" else config.num_gpus,
        block_rows=config.block_rows,
        max_reject_rate=config.max_reject_rate,
        job=_without_secrets(config),
    )
    return source, description, table, settings


def _without_secrets(config: EmbedConfig) -> dict[str, Any]:
    """What a later run needs to do the same: the options given, but for those of the stores."""
    names = set(EmbedConfig.model_fields) - {"storage_options", "corpus_storage_options"}
    return config.model_dump(mode="json", include=names, exclude_unset=True)
