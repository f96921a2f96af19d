"""The states of a cell under their names.

`solve` and `step` return them as a named tuple, in the cell's order. Given back, they are taken by
name, so the order does not matter; a plain tuple is taken in the cell's order.
"""

from __future__ import annotations

import copyreg
from collections import namedtuple
from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def state_type(names: tuple[str, ...]) -> Any:
    """Return the class of named tuples with these fields; it is made once, for all cells."""
    made = namedtuple("State", names)  # type: ignore[misc]
    # no module holds the class, so a copy in another process makes it again
    copyreg.pickle(made, lambda state: (_made, (names, tuple(state))))
    return made


def _made(names: tuple[str, ...], values: Sequence[Any]) -> Any:
    return state_type(names)(*values)


def in_order(argument: str, names: Sequence[str], given: Any) -> list[Any]:
    """Return the states `given`, one array or a tuple of them, in the order of `names`.

    A named tuple has its own order. Raises ValueError if it has other names, or if there are more
    or fewer arrays than names.
    """
    if not isinstance(given, tuple | list):
        arrays = [given]
    elif (fields := getattr(given, "_fields", None)) is None:
        arrays = list(given)
    elif sorted(fields) != sorted(names):
        raise ValueError(
            f"{argument}: expected the states {', '.join(names)}, got those of another cell: "
            f"{', '.join(fields)}"
        )
    else:
        arrays = [getattr(given, name) for name in names]
    if len(arrays) != len(names):
        raise ValueError(
            f"{argument}: expected {len(names)} array(s), one for each of the states "
            f"{', '.join(names)}, got {len(arrays)}"
        )
    return arrays


def as_given(made: Any, given: Any, values: Sequence[Any]) -> Any:
    """Return `values` as `made`, a class of `state_type`, or plainly where a plain tuple came.

    What loops in JAX carry must come back as what went in.
    """
    plain = isinstance(given, tuple | list) and not hasattr(given, "_fields")
    return tuple(values) if plain else made(*values)
