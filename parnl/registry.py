"""Cells by name: those of parnl, the user's, and those that installed packages bring."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any

from parnl.cell import Cell
from parnl.graph.nodes import StepError

ENTRY_POINTS = "parnl.cells"

_cells: dict[str, type[Cell]] = {}


def register(name: str) -> Callable[[type[Cell]], type[Cell]]:
    """Class decorator that makes a `Cell` known as `name`.

        @parnl.register("my-cell")
        class MyCell(parnl.Cell): ...

    The step is traced here and now. Defining the same class again, as in a notebook, replaces it.

    Raises:
        StepError: the step mixes channels, or does something else that cannot be traced.
        TypeError: the class is not a subclass of `parnl.Cell`.
        ValueError: another cell has the name.
    """

    def decorate(cls: type[Cell]) -> type[Cell]:
        if not (isinstance(cls, type) and issubclass(cls, Cell)):
            raise TypeError(f"register({name!r}): expected a subclass of parnl.Cell, got {cls!r}")
        known = _cells.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ValueError(f"register: the name {name!r} is taken by {_path(known)}")
        try:
            cls(input_size=1, hidden_size=1)
        except StepError as error:
            raise StepError(f"cell {name!r}: {error}") from error
        _cells[name] = cls
        return cls

    return decorate


def get_class(name: str) -> type[Cell]:
    """Return the cell class called `name`; ValueError with the closest names if there is none."""
    _load()
    if name not in _cells:
        close = difflib.get_close_matches(str(name), _cells, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise ValueError(
            f"cell: unknown name {name!r}; {hint}known cells: {', '.join(sorted(_cells))}; to use "
            "a cell of your own, import its module first"
        )
    return _cells[name]


def get_cell(name: str, input_size: int, hidden_size: int, **options: Any) -> Cell:
    """Return the cell called `name`, of the given sizes and options.

    Args:
        name: as in `list_cells`.
        input_size: channels of the inputs.
        hidden_size: channels of the states and outputs.
        **options: of the cell, see its docstring.

    Raises:
        TypeError: the cell does not know an option.
        ValueError: no cell has the name; the message gives the closest names.

    >>> import parnl
    >>> parnl.get_cell("lrc", input_size=6, hidden_size=64, dt=0.5).parameter_shapes["W_f"]
    (6, 64)
    """
    return get_class(name)(input_size=input_size, hidden_size=hidden_size, **options)


def list_cells() -> list[str]:
    """Return the names of all cells: built in, registered, and of installed packages."""
    _load()
    return sorted(_cells)


@cache
def _load() -> None:
    """Import the built-in cells and the entry points of other packages, once."""
    import_module("parnl.cells")
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        loaded = entry.load()
        if isinstance(loaded, type) and issubclass(loaded, Cell) and loaded not in _cells.values():
            register(entry.name)(loaded)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
