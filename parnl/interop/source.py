"""What all sources share: which class, whether it is diagonal, the cell that is made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from parnl.cell import Cell
from parnl.registry import get_cell

Imported = tuple[Cell, dict[str, Any]]


def class_of(who: str, module: Any, package: str, names: Sequence[str]) -> str:
    """Return the class of the module, one of `names` of `package`."""
    for cls in type(module).__mro__:
        inside = f"{cls.__module__}.".startswith(f"{package}.")
        if inside and cls.__name__ in names:
            changed = [
                method
                for method in ("forward", "step")
                if getattr(type(module), method, None) is not getattr(cls, method, None)
            ]
            if changed:
                raise TypeError(
                    f"{who}: module: expected the {changed[0]} of {cls.__name__}, got a subclass "
                    f"{type(module).__name__} with its own"
                )
            return cls.__name__
    got = f"{type(module).__module__}.{type(module).__name__}"
    raise TypeError(f"{who}: module: expected {' or '.join(names)} of {package}, got {got}")


def check_layer(who: str, layer: Any, count: int) -> None:
    """Raise ValueError unless there is such a layer."""
    if not isinstance(layer, int) or not 0 <= layer < count:
        raise ValueError(f"{who}: layer: expected an integer below {count}, got {layer!r}")


def check_diagonal(who: str, where: str, gates: Mapping[str, Any], take: str | None) -> None:
    """Raise ValueError if one of the matrices (hidden, hidden) is not diagonal, unless told so."""
    if take not in (None, "diagonal"):
        raise ValueError(f"{who}: take: expected None or 'diagonal', got {take!r}")
    if take == "diagonal":
        return
    total, mixed, largest = 0.0, 0.0, {}
    for gate, matrix in gates.items():
        whole = matrix.detach().double()
        rest = whole - whole.diagonal().diag()
        total, mixed = total + float((whole**2).sum()), mixed + float((rest**2).sum())
        largest[gate] = float(rest.abs().max())
    if any(size != 0.0 for size in largest.values()):
        gate = max(largest, key=lambda g: (math.isnan(largest[g]), largest[g]))
        share = mixed / total if total else 0.0  # of denormal numbers, the squares are 0
        raise ValueError(
            f"{who}: {where}: expected zeros off the diagonal, got {share:.3g} of the squared norm "
            f"of the recurrent weights there, the largest {largest[gate]:.3g} (gate {gate}); "
            "parnl's cells do not mix channels in the recurrence: take='diagonal' keeps only the "
            "diagonal"
        )


def readout(who: str, what: str, how: str) -> ValueError:
    """Return the error about `what`, a map of the states that `how` applies."""
    return ValueError(
        f"{who}: {what}: expected none, since a cell's outputs are its states; pass "
        f"skip_readout=True and apply {how} yourself"
    )


def made(who: str, name: str, params: dict[str, Any], copy: bool, **options: Any) -> Imported:
    """Return a cell of the sizes of `params`, and `params` in its order, copied if told so."""
    first = next(v for n, v in params.items() if len(v.shape) == 2)
    cell = get_cell(name, *first.shape, **options)
    for key, shape in cell.parameter_shapes.items():
        if tuple(params[key].shape) != shape:
            found = tuple(params[key].shape)
            raise ValueError(f"{who}: {key} of {name}: expected the shape {shape}, got {found}")
    return cell, {key: _copied(params[key]) if copy else params[key] for key in cell.specs}


def _copied(array: Any) -> Any:
    # contiguous: files of tensors hold no others
    return array.detach().clone().contiguous() if hasattr(array, "detach") else array.copy()
