"""Base classes of all job configs: strict validation, and access to the stores of tables and corpora."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pipelines.store.storage import Storage, TableRef


_STORE_OPTIONS = ("storage_options", "corpus_storage_options")


class JobConfig(BaseModel):
    """A job's typed config. Its fields define the flags, the YAML keys, the help and the Python API.

    Unknown keys are refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoreConfig(JobConfig):
    """Config of a job that reads or writes tables."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Put the store options last, because fields are positional arguments of the command in their order."""
        fields = cls.__pydantic_fields__
        cls.__pydantic_fields__ = {name: fields[name] for name in sorted(fields, key=_STORE_OPTIONS.__contains__)}

    storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the tables' store, for example "
        "--storage-options.aws_endpoint URL. Default: taken from the environment.",
    )

    def storage(self) -> Storage:
        """The store of tables.

        Raises:
            ValueError: an option is unknown, or a timeout is not a number of seconds.
        """
        from pipelines.store.storage import Storage

        return Storage.from_options(self.storage_options)

    def ref(self, uri: str, *, versions: bool = False) -> TableRef:
        """The table with this URI. It need not exist.

        Args:
            uri: `FOLDER/NAME` or `s3://BUCKET/FOLDER/NAME`.
            versions: whether to accept `NAME@VERSION` and `NAME@TAG`, for jobs that only read.

        Raises:
            ValueError: the URI is not the URI of a table.
        """
        from pipelines.store.storage import TableRef

        return TableRef.parse(uri, self.storage(), versions=versions)


class TableConfig(StoreConfig):
    """Config of a job whose first argument is one table."""

    table: str = Field(description="The table: FOLDER/NAME or s3://BUCKET/FOLDER/NAME.")


class CorpusStoreConfig(StoreConfig):
    """Config of a job that also reads pictures or other files of a corpus."""

    corpus_storage_options: dict[str, str] = Field(
        default_factory=dict,
        repr=False,
        description="Options of the store of the corpus and its pictures, "
        "named as in --storage-options. Default: taken from the environment.",
    )

    def corpus_storage(self) -> Storage:
        """The store of the corpus.

        Raises:
            ValueError: an option is unknown, or a timeout is not a number of seconds.
        """
        from pipelines.store.storage import Storage

        return Storage.from_options(self.corpus_storage_options)

    def picture_storage(self, table: TableRef) -> Storage:
        """The store of the pictures of a table's rows, which finds them also if their corpus has moved.

        Raises:
            FileNotFoundError: there is no such table.
            ValueError: an option is unknown, or a timeout is not a number of seconds.
        """
        from pipelines.tables.corpora import moves_of

        return self.corpus_storage().with_moves(moves_of(table))


class Report(Protocol):
    """The result of a job."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        ...
