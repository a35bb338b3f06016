"""An opened corpus: a source, and the listing that its shards come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from pipelines.sources.base import CorpusShard, Source, adopt_types
from pipelines.sources.listing import Listing, relative_to


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A source that knows what its corpus names. The listing's files stay on the driver.

    Attributes:
        source: the reader of the corpus' format.
        listing: the files that the corpus names.
    """

    source: Source
    listing: Listing = field(repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"listing": Listing(self.listing.pattern, ())}

    def schema(self) -> pa.Schema:
        """The fields that pass through to the table."""
        return self.source.schema()

    def modalities(self) -> frozenset[str]:
        """Which of `image` and `text` the corpus holds."""
        return self.source.modalities()

    def shards(self) -> list[CorpusShard]:
        """All shards, ordered by uri and start."""
        return self.source.shards()

    def read(self, shard: CorpusShard) -> Iterator[pa.Table]:
        """The records of a shard."""
        return self.source.read(shard)

    def adopting(self, table: pa.Schema) -> Corpus:
        """The same corpus with a table's types, where its files state none; see `adopt_types`."""
        return replace(self, source=adopt_types(self.source, table))

    def path_of(self, uri: str) -> str:
        """The path of one of its files, relative to its root."""
        return relative_to(uri, self.listing.root)
