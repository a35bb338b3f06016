"""The fan-out is decided by isthmus: many tasks must read a large file, and few tasks ten thousand small ones."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from corpora import pairs, picture, write_parquet
from ray.data import Dataset

from encoders.protocol import EncoderOptions
from encoders.registry import describe
from jobs.embed import EmbedConfig, run
from pipelines.cluster import session
from pipelines.cluster.resources import Resources
from pipelines.ingest.embed import table_schema
from pipelines.ingest.embed_settings import EmbedSettings
from pipelines.ingest.engines.ray_data import build_dataset
from pipelines.ingest.job import EmbedJob, build_stages
from pipelines.ingest.planning import group_work, plan_pools
from pipelines.ingest.stages.reading import ShardWork
from pipelines.rows.blocks import unwrap
from pipelines.rows.contract import Columns
from pipelines.sources import open_source
from pipelines.store.storage import Storage, TableRef

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_session")]


def read_tasks(corpus: Path, tmp_path: Path) -> int:
    return run(EmbedConfig(corpus=str(corpus), table=str(tmp_path / "db/t"), encoder="fake")).read_tasks


def test_one_file_of_64_row_groups_is_read_by_at_least_8_tasks(tmp_path: Path) -> None:
    corpus = write_parquet(tmp_path / "c.parquet", pairs(64 * 4), row_group_rows=4)
    assert read_tasks(corpus, tmp_path) >= 8


def stage_names(dataset: Dataset) -> list[str]:
    """Names of the physical stages, after Ray has fused what it can."""
    from ray.data._internal.logical.optimizers import get_execution_plan

    plan = get_execution_plan(dataset._logical_plan)
    operator = getattr(plan[0] if isinstance(plan, tuple) else plan, "dag", None)
    names: list[str] = []
    while operator is not None:
        names.append(operator.name)
        operator = operator.input_dependencies[0] if operator.input_dependencies else None
    return names


@pytest.mark.heavy
def test_5000_files_of_one_row_are_read_by_at_most_64_tasks(tmp_path: Path) -> None:
    items = pairs(5_000)
    for pair in items:
        write_parquet(tmp_path / "c" / f"{pair.key}.parquet", [pair])
    report = run(EmbedConfig(corpus=str(tmp_path / "c"), table=str(tmp_path / "db/t"), encoder="fake"))
    assert report.read_tasks <= 64
    assert report.written == 5_000


def test_500_pictures_in_a_folder_are_read_by_few_tasks(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    for i in range(500):
        (tmp_path / "c" / f"{i}.jpg").write_bytes(picture(i, size=(16, 16)))
    assert read_tasks(tmp_path / "c", tmp_path) <= 64


def test_a_dataset_has_a_block_for_each_piece_of_the_corpus_and_a_stage_of_its_own_for_gpus(tmp_path: Path) -> None:
    """On GPUs, decoding inside the GPU actors would make the GPU wait."""
    corpus = write_parquet(tmp_path / "c.parquet", pairs(64 * 4), row_group_rows=4)
    source = open_source(str(corpus), columns=Columns(), storage=Storage())
    work = [ShardWork(shard=shard, shard_id=str(i)) for i, shard in enumerate(source.shards())]
    settings = EmbedSettings(
        corpus=str(corpus),
        columns=Columns(),
        modalities=("image", "text"),
        needs=frozenset(),
        options=EncoderOptions(),
        corpus_storage=Storage(),
        block_rows=4,
    )
    session.configure_data_context(progress=False)
    groups = group_work(work, 4)
    job = EmbedJob(
        source=source,
        description=describe("fake"),
        settings=settings,
        table=TableRef.parse(str(tmp_path / "db" / "t")),
        schema=table_schema(source, describe("fake"), settings),
    )

    def dataset_for(resources: Resources) -> Dataset:
        return build_dataset(build_stages(job, plan_pools(resources), 4), groups)

    materialised = dataset_for(Resources(cpus=4, gpus=0)).materialize()
    assert len(groups) == 16
    assert materialised.num_blocks() == 64
    assert (
        sum(block.num_rows for block in unwrap(pa.concat_tables(materialised.iter_batches(batch_format="pyarrow"))))
        == 256
    )

    names = stage_names(dataset_for(Resources(cpus=8, gpus=2)))
    assert any("EncodeBlocks" in name and "decode" not in name for name in names), names
