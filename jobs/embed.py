"""`isthmus embed`: embed a corpus into a searchable LanceDB table."""

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
    from pipelines.sources import Corpus
    from pipelines.store.storage import TableRef

Embed = Literal["auto", "image", "text", "both", "any"]
# The most processes to start before the amount of work is known.
_EARLY = 4


@Parameter(name="*")
class EmbedConfig(CorpusStoreConfig):
    """Config of `isthmus embed`."""

    corpus: str = Field(description="The corpus to embed: a file, a folder, a glob, or an s3:// prefix.")
    table: str = Field(description="The table to write: FOLDER/NAME or s3://BUCKET/FOLDER/NAME. Created if missing.")
    encoder: str = Field(
        description="The encoder: a registered name (see `isthmus encoders`), "
        "a model directory, a hub id, or IMAGE+TEXT for two unrelated towers."
    )
    format: Literal["auto", "parquet", "webdataset", "folder", "captions", "coco", "karpathy"] = Field(
        default="auto", description="The corpus' format. auto: detected from its files."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Column names of the corpus, if they are not the usual ones: "
        "--columns.ROLE NAME, where ROLE is key, image, uri, caption or item.",
    )
    embed: Embed = Field(
        default="auto",
        description="What to embed. image or text: only this modality. both: each row needs a picture and a "
        "caption. any: whatever the row has. auto: every modality that the corpus contains and the encoder reads.",
    )
    preprocessing: Literal["fast", "exact"] = Field(
        default="fast",
        description="Picture preprocessing. exact: the same as the model "
        "family's own processor. fast: decodes large JPEGs at a reduced size.",
    )
    text_policy: Literal["truncate", "window", "reject"] = Field(
        default="truncate",
        description="What to do with captions longer than the text tower "
        "reads: cut them, split them into windows, or reject the row.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where the encoder runs. auto: on a GPU if one is available."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16", "int8"] = Field(
        default="auto",
        description="Number format of the encoder's computation. auto: bf16 on CUDA, fp32 on the CPU. int8: "
        "quantised linear layers on the CPU by OpenVINO; the vectors' cosine to fp32 is at least 0.99.",
    )
    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto",
        description="Library that runs the encoder on the CPU. auto: starts with torch and "
        "changes to OpenVINO (extra cpu) once a batch has shown it to be faster and as exact.",
    )
    batch_size: int = Field(default=64, ge=1, description="Inputs in a forward pass; halved when memory runs out.")
    engine: Literal["auto", "ray", "process"] = Field(
        default="auto",
        description="What runs the stages. ray: Ray Data. process: one worker process for each core of "
        "this machine. auto: ray on a cluster, with GPUs, or with --actors or --num-gpus; else process.",
    )
    actors: int | None = Field(
        default=None,
        ge=1,
        description="Number of encode actors on Ray; default: one for each GPU, or one for each core without GPUs.",
    )
    num_gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs that each encode actor reserves; default: 1 if the cluster has any, else 0.",
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        description="Torch threads of each encode actor or worker process on the CPU; default: its share of the cores.",
    )
    block_rows: int | None = Field(
        default=None,
        ge=1,
        description="Rows in a block, the unit of decoding and encoding; default: from the encoder's input size.",
    )
    max_image_pixels: int = Field(
        default=100_000_000, ge=1, description="Pictures with more pixels than this are rejected without being decoded."
    )
    decode_timeout_s: float = Field(
        default=60.0, gt=0, le=3600, description="A picture that takes more seconds than this to decode is rejected."
    )
    thumbnails: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Longest side in pixels of the JPEG thumbnails to keep in the table; 0: none.",
    )
    vector_dtype: Literal["float16", "float32"] = Field(
        default="float32", description="Number format of the vectors in the table."
    )
    fragment_rows: int | None = Field(
        default=None, ge=1, description="Rows in a Lance fragment; default: 16,384, growing to 65,536 in large tables."
    )
    commit_rows: int | None = Field(
        default=None,
        ge=1,
        description="Rows after which a commit is due, so the most rows that a "
        "crash can lose; default: 65,536, or 1/256 of the table if that is more.",
    )
    commit_interval_s: float = Field(
        default=60.0, gt=0, description="The most seconds between commits while rows arrive."
    )
    max_reject_rate: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Stop when more than this share of the rows is rejected; the table stays as of the last commit.",
    )
    corpus_name: str | None = Field(
        default=None,
        description="A name for the corpus within the table. Wherever a corpus of this name lies, its files are the "
        "same if they have the same paths below its folder. Default: the corpus is known by its folder.",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.device == "cpu" and self.num_gpus:
            raise ValueError(f"num_gpus {self.num_gpus} with device 'cpu': drop one of the two")
        if self.engine == "process" and (self.actors or self.num_gpus):
            raise ValueError(
                "actors and num_gpus with engine 'process': only Ray uses them; drop them or drop --engine process"
            )
        if self.thumbnails and self.embed == "text":
            raise ValueError(
                "thumbnails with embed 'text': they need pictures; drop --thumbnails, or embed pictures too"
            )
        return self


def run(config: EmbedConfig, progress: Callable[[int, int | None], None] | None = None) -> EmbedReport:
    """Embed a corpus into a table. A run after an interrupted one continues from its last commit.

    Files that the table already holds are skipped, and the rows of changed files are replaced. Rows of deleted files
    stay in the table; `isthmus sync` removes them.

    Args:
        config: the job.
        progress: called with (rows settled so far, total rows or None if unknown).

    Raises:
        ValueError: the corpus, the encoder and the table do not fit together; nothing was written.
        TooManyRejectsError: more rows were rejected than `max_reject_rate` allows; the table is as of its last commit.
        OSError: a store fails; the table is as of its last commit.
    """
    return run_with(config, {}, progress)


def run_with(
    config: EmbedConfig, changes: dict[str, Any], progress: Callable[[int, int | None], None] | None
) -> EmbedReport:
    """Like `run`, with some of the pipeline's settings changed.

    Args:
        config: the job.
        changes: fields of `EmbedSettings` and their new values.
        progress: called with (rows settled so far, total rows or None if unknown); None reports nothing.
    """
    from dataclasses import replace

    with _reserve(config) as reserve:
        from pipelines.ingest.embed import embed

        source, description, table, settings = prepare(config)
        settings = replace(settings, **changes)
        return embed(source, description, table, settings, progress or (lambda done, total: None), reserve)


def _reserve(config: EmbedConfig) -> Reserve:
    """Worker processes that import their libraries while this process imports its own and lists the corpus.

    The reserve is empty if the table already exists, because such a run often has little to do, and if the table is in
    a remote store, which cannot be asked before its library is imported.
    """
    from pipelines.cluster.machine import cores, needs_no_ray
    from pipelines.ingest.engines.early import Reserve
    from pipelines.store.storage import TableRef, is_remote

    asks = bool(config.actors or config.num_gpus)
    table = TableRef.parse(config.table).uri
    fresh = not is_remote(table) and not Path(table).exists()
    here = needs_no_ray(config.engine, config.device, asks=asks)
    return Reserve(config.encoder, min(cores(), _EARLY) if here and fresh else 0)


def prepare(config: EmbedConfig) -> tuple[Corpus, Description, TableRef, EmbedSettings]:
    """The parts that a config names: the opened corpus, the encoder's description, the table, and the settings.

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
        corpus_name=config.corpus_name,
        job=_without_secrets(config),
    )
    return source, description, table, settings


def _without_secrets(config: EmbedConfig) -> dict[str, Any]:
    """The given options as JSON-ready data, for a later retry. Store options may be secret, so they are left out."""
    names = set(EmbedConfig.model_fields) - {"storage_options", "corpus_storage_options"}
    return config.model_dump(mode="json", include=names, exclude_unset=True)
