"""Text, or any file, as its bytes; or an .npz file of tokens.

An .npz file holds arrays of integers (steps,): `train`, `test` and maybe `valid`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.learn.readers.arrays import plain
from parnl.learn.readers.collection import listed, wrong

HELD = ("valid", "val", "validation")
MOST_TOKENS = 2**20


class Text(NamedTuple):
    """Tokens (steps,) of one text, or of its parts, each below `size`.

    bytes_: whether a token is a byte.
    """

    whole: np.ndarray | None
    parts: dict[str, np.ndarray]
    size: int
    bytes_: bool


def is_text(path: Path, kinds: tuple[str, ...]) -> bool:
    """Whether a file is read as text: its name ends in .txt, or in nothing that is known."""
    suffix = path.suffix.lower()
    if suffix == ".npz" and path.is_file():
        with plain(path), np.load(path, allow_pickle=False) as file:
            return {"train", "test"} <= {*file.files}
    return path.is_file() and (suffix == ".txt" or suffix not in kinds)


def read(path: Path) -> Text:
    """The tokens of a file. Raises ValueError that begins with "data: " and the file."""
    if path.suffix.lower() != ".npz":
        if not path.stat().st_size:
            raise wrong(path, "the file", "no bytes", "a text")
        # mapped: a text may be larger than memory
        return Text(np.memmap(path, np.uint8, "r"), {}, 256, True)
    with plain(path), np.load(path, allow_pickle=False) as file:
        found: dict[str, Any] = {}
        for name in file.files:
            if name in ("train", "test", *HELD):
                found["validation" if name in HELD else name] = _tokens(path, name, file[name])
        others = [name for name in file.files if name not in ("train", "test", *HELD)]
    if others:
        raise wrong(path, listed(others), "arrays", "train, valid and test alone")
    small = all(tokens.dtype == np.uint8 for tokens in found.values())
    size = 256 if small else 1 + max(int(tokens.max()) for tokens in found.values())
    if size > MOST_TOKENS:
        raise wrong(path, "tokens", f"numbers up to {size - 1}", f"numbers below {MOST_TOKENS}")
    return Text(None, found, size, small)


def _tokens(path: Path, name: str, tokens: np.ndarray) -> np.ndarray:
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        got = f"{tokens.dtype} of shape {tokens.shape}"
        raise wrong(path, name, got, "integers (steps,): tokens")
    if not len(tokens) or (tokens < 0).any():
        raise wrong(path, name, "no tokens or negative ones", "tokens from 0 on")
    return tokens
