"""What the configs of all jobs share: strictness, and how tables and corpora are reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pipelines.store.storage import Storage, TableRef


_STORE_OPTIONS = ("storage_options", "corpus_storage_options")


class JobConfig(BaseModel):
    """A job's typed config: flags, YAML, help and Python API come from its fields. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreConfig(JobConfig):
    """A job that reads or writes tables."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put the stores' options last: fields are positional arguments of the command in the order they stand in."""
        fields = cls.__pydantic_fields__
        cls.__pydantic_fields__ = {name: fields[name] for name in sorted(fields, key=_STORE_OPTIONS.__contains__)}

    storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="How to reach the store of tables: --storage-options.aws_endpoint URL. Default: the environment.",
    )

    def storage(self) -> Storage:
        """The store of tables.

        Raises:
            ValueError: an option that is not known, or a timeout that is not a number of seconds.
        """
        from pipelines.store.storage import Storage

        return Storage.from_options(self.storage_options)

    def ref(self, uri: str, *, versions: bool = False) -> TableRef:
        """The table that a URI names.

        Args:
            uri: `FOLDER/NAME` or `s3://BUCKET/FOLDER/NAME`.
            versions: allow `NAME@VERSION` and `NAME@TAG`, for jobs that only read.

        Raises:
            ValueError: the URI names no table.
        """
        from pipelines.store.storage import TableRef

        return TableRef.parse(uri, self.storage(), versions=versions)


class TableConfig(StoreConfig):
    """A job whose first argument is one table."""

    table: str = Field(description="FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")


class CorpusStoreConfig(StoreConfig):
    """A job that also reads pictures or other files of a corpus."""

    corpus_storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="How to reach the store of the corpus and its pictures. Default: the environment.",
    )

    def corpus_storage(self) -> Storage:
        """The store of the corpus.

        Raises:
            ValueError: an option that is not known, or a timeout that is not a number of seconds.
        """
        from pipelines.store.storage import Storage

        return Storage.from_options(self.corpus_storage_options)


class Report(Protocol):
    """What a job returns."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        ...
