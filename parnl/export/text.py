"""The C of a schedule: C99, no allocation, no dependency but libm."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Sequence

import numpy as np

from parnl.backends.c.expressions import Expressions
from parnl.export.schedule import Buffer, Group, Place, Schedule
from parnl.graph.operation import Operation
from parnl.graph.operations import OPERATIONS

_INDICES = "ijklmnpq"
# How a sum starts, and what a further value makes of it; of NaN the largest is NaN.
_COMBINE = {
    "sum": ("0.0f", "{total} += {x};"),
    "max": ("-INFINITY", "{total} = {x} > {total} || isnan({x}) ? {x} : {total};"),
    "min": ("INFINITY", "{total} = {x} < {total} || isnan({x}) ? {x} : {total};"),
}


class _Floats(Expressions):
    """C that a reader may look at: functions of libm, and plain numbers."""

    real = "float"

    def __init__(self) -> None:
        super().__init__("f")

    def _number(self, value: float) -> str:
        text = number(value)
        return f"({text})" if text.startswith("-") else text

    def _form(self, operation: Operation) -> str:
        return operation.form("c")


_FLOATS = _Floats()


def number(value: float) -> str:
    """Return the shortest text of the float32 next to `value`."""
    with np.errstate(over="ignore"):
        single = np.float32(value)
    if np.isnan(single):
        return "NAN"
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    return f"{single!s}f"


def functions(body: str) -> str:
    """Return the definitions of parnl's own functions that `body` calls."""
    found: dict[str, str] = {}

    def add(text: str) -> None:
        for name in re.findall(r"\bown_(\w+)\(", text):
            if name not in found:
                function = _FLOATS.definition(OPERATIONS[name])
                add(function.partition("{")[2])  # those it calls stand before it
                found[name] = function

    add(body)
    return "".join(found.values())


def constant(buffer: Buffer) -> str:
    """Return the declaration of a constant array, at most 100 characters a line."""
    lines, line = [], "   "
    for value in buffer.values:
        text = f" {number(value)},"
        if len(line) + len(text) > 100:
            lines.append(line)
            line = "   "
        line += text
    lines.append(line)
    return f"static const float {buffer.name}[{buffer.size}] = {{\n" + "\n".join(lines) + "\n};\n"


def loops(schedule: Schedule, groups: Iterable[Group]) -> list[str]:
    """Return the lines of all loops, without indentation of their own."""
    return [line for group in groups for line in _loop(schedule.buffers, group)]


def _entry(buffers: Sequence[Buffer], place: Place, indices: Sequence[str]) -> str:
    """Return the C of an entry; indices: those of the loops, "" of one with a single index."""
    buffer = buffers[place.buffer]
    if buffer.kind == "dt":
        return buffer.name
    terms = []
    for index, stride in zip(
        indices[len(indices) - len(place.strides) :], place.strides, strict=True
    ):
        if stride and index:
            terms.append(index if stride == 1 else f"{index} * {stride}")
    if place.offset or not terms:
        terms.insert(0, str(place.offset))
    return f"{buffer.name}[{' + '.join(terms)}]"


def _loop(buffers: Sequence[Buffer], group: Group) -> list[str]:
    names = iter(_INDICES) if len(group.space) <= len(_INDICES) else iter(string.ascii_lowercase)
    indices = [next(names) if size > 1 else "" for size in group.space]
    outer = [d for d, index in enumerate(indices) if index and d not in group.reduced]
    inner = [d for d in group.reduced if indices[d]]

    def heads(dims: Iterable[int]) -> list[str]:
        return [
            f"for (int {(i := indices[d])} = 0; {i} < {group.space[d]}; {i}++) {{" for d in dims
        ]

    symbols = [s.symbol for s in group.stores]
    copied = {s.index for s in symbols}
    written = {s.place.buffer for s in group.stores}
    texts, first = {}, []
    for leaf in group.leaves():
        place = leaf.value[1]
        texts[leaf.index] = _entry(buffers, place, indices)
        if place.buffer in written and leaf.index in copied:  # read before it is written
            first.append(f"const float old{leaf.index} = {texts[leaf.index]};")
            texts[leaf.index] = f"old{leaf.index}"
    results, lines = _FLOATS.compute(symbols, texts, {})
    before, body, after = [], [*first, *lines], []
    for count, (store, result) in enumerate(zip(group.stores, results, strict=True)):
        target = _entry(buffers, store.place, indices)
        if store.combine:
            start, further = _COMBINE[store.combine]
            before.append(f"float total{count} = {start};")
            body.append(further.format(total=f"total{count}", x=result))
            after.append(f"{target} = total{count};")
        else:
            body.append(f"{target} = {result};")
    around = heads(outer) or ["{"]  # names are those of this group alone
    within = [*heads(inner), *body, *["}"] * len(inner)]
    return [*around, *before, *within, *after, *["}"] * len(around)]


def indented(lines: Iterable[str]) -> str:
    """Return lines of C in the depth of their braces, inside a function."""
    depth, text = 1, []
    for line in lines:
        if line == "}":
            depth -= 1
        text.append("    " * depth + line)
        if line.endswith("{"):
            depth += 1
    return "".join(line + "\n" for line in text)
