"""The cells of the page "See it move", as JavaScript: a hook of MkDocs writes `see/cells.js`.

Step and Jacobian come from the traced program, as those of the C and Triton kernels do. Features
are computed here, by the cell itself, and written down as numbers. `python docs/see/cells.py`
prints the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

import parnl
from parnl.backends.c.expressions import Expressions
from parnl.graph.nodes import Symbol
from parnl.graph.operation import Operation
from parnl.graph.program import Program
from parnl.params import Values

STEPS = 512  # the longest sequence of the page
INPUTS = "np.sin(0.11 * t) + np.sin(0.037 * t + 1) + 0.5 * np.sin(0.71 * t)"


class Shown(NamedTuple):
    """A cell of the page.

    seed: of its parameters; scaled: those that the gain multiplies, all per channel; most: the
    largest gain.
    """

    title: str
    seed: int
    scaled: tuple[str, ...]
    most: float = 10.0
    options: tuple[tuple[str, Any], ...] = ()


CELLS = {
    "gru": Shown("GRU", 110, ("a_r", "a_z", "a_n")),
    "mgu": Shown("Minimal gated unit", 0, ("a_f", "a_n")),
    "lstm": Shown("LSTM", 35, ("a_i", "a_f", "a_o", "a_g")),
    "lem": Shown("Long expressive memory", 27, ("a_1", "a_2", "a_z", "a_y")),
    "lrc": Shown("LRC, as in LrcSSM", 1310, ("w_f", "w_g", "e_w"), most=5.0),
    "cfc": Shown("CfC", 44, ("a_g", "a_h", "a_f", "a_l")),
    "indrnn": Shown("IndRNN, tanh", 129, ("a",), options=(("activation", "tanh"),)),
    "lru": Shown("Linear recurrent unit", 0, ()),
}


class JavaScript(Expressions):
    """JavaScript over its numbers, which are of double precision."""

    def __init__(self) -> None:
        super().__init__("")

    def _declared(self, node: Symbol) -> str:
        return f"const v{node.index}"

    def _head(self, name: str, arguments: Iterable[str]) -> str:
        return f"function {name}({', '.join(arguments)})"

    def _number(self, value: float) -> str:
        if value != value:
            return "NaN"
        if value in (float("inf"), float("-inf")):
            return "Infinity" if value > 0 else "(-Infinity)"
        return f"({value!r})" if value < 0 else repr(value)

    def _form(self, operation: Operation) -> str:
        return operation.form("javascript")


def functions(program: Program) -> str:
    """Return the members `step` and `stepJacobian` of an object.

    Each takes the states x and the operands q at one step. `step` returns the next states,
    `stepJacobian` these and the entries of the Jacobian, row by row.
    """
    writer = JavaScript()
    names = {s.index: f"x[{i}]" for i, s in enumerate(program.state_symbols)}
    names |= {s.index: f"q[{i}]" for i, s in enumerate(program.operand_symbols)}

    def member(name: str, *groups: Sequence[Symbol]) -> str:
        texts, lines = writer.compute([s for group in groups for s in group], names, {})
        given = iter(texts)
        lists = [f"[{', '.join(next(given) for _ in group)}]" for group in groups]
        result = lists[0] if len(lists) == 1 else f"[{', '.join(lists)}]"
        return f"{name}: (x, q) => {{ {' '.join(lines)} return {result}; }},\n"

    step = member("step", program.outputs)
    return step + member("stepJacobian", program.outputs, program.jacobian)


def cell_of(name: str) -> parnl.Cell:
    """Return a cell of one input and one channel."""
    return parnl.get_cell(name, input_size=1, hidden_size=1, **dict(CELLS[name].options))


def inputs_of(steps: int) -> np.ndarray:
    """Return the inputs (T, 1) of the page."""
    return eval(INPUTS, {"np": np, "t": np.arange(steps)})[:, None]


def _data(name: str) -> dict[str, Any]:
    """Return what the page has of a cell besides its functions.

    values: of each operand, a list where there is one for each step, else a number.
    """
    cell, shown = cell_of(name), CELLS[name]
    params = cell.init(seed=shown.seed, dtype="float64")
    features = cell.features(Values("parameter", params), inputs_of(STEPS))
    values: list[Any] = []
    for kind, operand in cell.program.operands:
        if kind == "feature":
            column = np.asarray(features[operand])[:, 0].tolist()
            values.append(column[0] if len(column) == 1 else column)
        else:
            values.append(cell.dt if kind == "dt" else params[operand].item())
    operands = [operand.name for operand in cell.program.operands]
    told = shown._asdict() | {"options": dict(shown.options)}
    derived = {"linear": cell.linear, "states": cell.states, "operands": operands}
    return told | derived | {"values": values}


def text() -> str:
    """Return the JavaScript of all cells."""
    parts = ["// Written by docs/see/cells.py from the traced steps of parnl's cells.\n"]
    parts.append(JavaScript().definitions())
    parts.append(f"const INPUTS = {json.dumps(INPUTS)};\nconst CELLS = {{\n")
    for name in CELLS:
        members = "".join(f"{k}: {json.dumps(v)},\n" for k, v in _data(name).items())
        parts.append(f"{name}: {{\n{members}{functions(cell_of(name).program)}}},\n")
    return "".join([*parts, "};\n"])


def on_files(files: Any, config: Any) -> Any:
    """Add `see/cells.js` to the site: it is made at each build, so it cannot be out of date."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "see/cells.js", content=text()))
    return files


if __name__ == "__main__":
    print(text(), end="")
