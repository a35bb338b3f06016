"""Vector columns as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def matrix(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """The vectors of a column without nulls, (rows, dim), in their own dtype."""
    whole = column.combine_chunks()
    return np.asarray(whole.flatten()).reshape(len(whole), column.type.list_size)
