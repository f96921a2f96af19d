"""Arrays whose rows are made when they are asked for: windows of a series, series in a file."""

from collections.abc import Callable
from typing import Any

import numpy as np


class Lazy:
    """What `make(rows)` returns for integers (k,), an array (k, ...), as an array (N, ...).

    Only rows can be indexed; they are made anew each time.
    """

    def __init__(
        self, shape: tuple[int, ...], make: Callable[[np.ndarray], np.ndarray], dtype: Any
    ) -> None:
        self.shape, self.ndim, self.dtype, self._make = shape, len(shape), np.dtype(dtype), make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, int | np.integer):
            return self[np.array([rows])][0]
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        return self._make(np.asarray(rows))
