"""Series in a file larger than memory: read when they are asked for, never kept.

A map of the file is opened for each request and closed after it. So its pages do not add up in
memory, and a file that was cut short meanwhile is an error of Python instead of a crash.
"""

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAPPED_FROM = 2**28  # bytes; smaller arrays are read at once
BLOCK = 2**21  # numbers that are looked at together


class Place(NamedTuple):
    """An array in a file: where its numbers begin, and how they stand."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    def open(self) -> np.ndarray:
        """The array, mapped for reading. It is not in memory until it is copied."""
        order: Any = "F" if self.fortran else "C"
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
        except (ValueError, OSError) as error:
            raise ValueError(f"data: {self.path} changed while it was read ({error})") from error

    @property
    def bytes(self) -> int:
        """How much of the file it takes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=object))


class MappedSeries(Sequence[np.ndarray]):
    """Series of an array (N, T, channels) or (N, T), the first `lengths` steps of each.

    `packed`: of an array (steps, channels) or (steps,) that holds one after the other instead.
    Each is an array (steps, channels) of the file's type.
    """

    def __init__(
        self, place: Place, lengths: np.ndarray | None = None, packed: bool = False
    ) -> None:
        self.place, self.packed = place, packed
        count = place.shape[0]
        self.lengths = np.full(count, place.shape[1]) if lengths is None else lengths
        self.ends = np.cumsum(self.lengths)
        whole = place.shape[1:] if packed else place.shape[2:]
        self.channels = int(whole[0]) if whole else 1

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        return self.take([index])[0]

    def take(self, rows: Iterable[int]) -> list[np.ndarray]:
        """Copies of some series."""
        array = self.place.open()
        return [np.array(self._cut(array, int(i))) for i in rows]

    def _cut(self, array: np.ndarray, i: int) -> np.ndarray:
        if self.packed:
            own = array[self.ends[i] - self.lengths[i] : self.ends[i]]
        else:
            own = array[i, : self.lengths[i]]
        return own[:, None] if own.ndim == 1 else own


def lengths_of(series: Sequence[np.ndarray]) -> np.ndarray:
    """The steps (N,) of each series."""
    if isinstance(series, MappedSeries):
        return series.lengths.astype(np.int64)
    return np.array([len(one) for one in series], np.int64)


def blocks(
    series: Sequence[np.ndarray], rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of series and their steps, one after the other, (steps, channels) float64.

    Series in memory come as one block, mapped ones in blocks of about BLOCK numbers.
    """
    if not isinstance(series, MappedSeries):
        yield rows, np.concatenate([series[i] for i in rows])
        return
    sizes = np.cumsum(series.lengths[rows] * series.channels) // BLOCK
    for part in np.split(rows, np.flatnonzero(np.diff(sizes)) + 1):
        yield part, np.concatenate(series.take(part)).astype(np.float64)


def place_of_npy(path: Path) -> Place:
    """Where the numbers of an .npy file stand."""
    with path.open("rb") as file:
        return _place(path, file, path.stat().st_size)


def places_of_npz(path: Path) -> dict[str, Place]:
    """Where the arrays of an .npz file stand that are not compressed."""
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or not entry.filename.endswith(".npy"):
                continue
            file.seek(entry.header_offset)
            header = file.read(30)  # a local file header; its last four bytes are two lengths
            if header[:4] != b"PK\x03\x04":
                continue
            skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            begin = entry.header_offset + 30 + skip
            file.seek(begin)
            found[entry.filename[:-4]] = _place(path, file, begin + entry.file_size)
    return found


def _place(path: Path, file: Any, end: int) -> Place:
    """Read the header of an array that `file` stands before; its numbers end at `end`."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"data: {path} holds an array of format {version}, expected 1.0 or 2.0")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    place = Place(path, file.tell(), shape, dtype, fortran)
    if dtype.hasobject:
        raise ValueError(f"data: {path} is not a file of plain arrays (it holds Python objects)")
    if min(shape, default=1) < 0 or place.offset + place.bytes > end:
        raise ValueError(f"data: {path} is cut short: {shape} {dtype} need {place.bytes} bytes")
    return place
