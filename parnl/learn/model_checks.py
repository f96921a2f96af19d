"""What the models of series check of their options and inputs, whatever the framework."""

from __future__ import annotations

from typing import Any

from parnl.cell import Cell

READOUTS = ("mean", "last", "each")


def check_series(inputs: Any, channels: int, tokens: bool = False) -> None:
    """Raise ValueError unless these are inputs of a model of series, (N, T, channels).

    tokens: they are (N, T) of integers instead, each below `channels`.
    """
    whole = inputs.ndim == 2 if tokens else inputs.ndim == 3 and inputs.shape[-1] == channels
    if not whole:
        expected = "(N, T) of tokens" if tokens else f"(N, T, {channels})"
        raise ValueError(f"inputs: expected shape {expected}, got {tuple(inputs.shape)}")


def check_clock(clock: bool, cell: Cell | None, tokens: bool) -> None:
    """Raise ValueError if the cell cannot take the last channel of the inputs as its dt."""
    if clock and (tokens or cell is None or not cell.time_aware):
        kind = "attention" if cell is None else type(cell).__name__
        got = "tokens" if tokens else f"{kind}, whose step has no argument dt"
        raise ValueError(f"clock: got True with {got}; expected a cell that takes dt")


def check_readout(readout: str) -> None:
    """Raise ValueError for an unknown readout of a model of series."""
    if readout not in READOUTS:
        raise ValueError(f"readout: got {readout!r}, expected {', '.join(map(repr, READOUTS))}")
