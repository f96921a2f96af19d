"""A program in ONNX: the plain loop, a `Scan` over time whose body is the step.

Values and nodes are those of `onnx_ir`. An operation's entry in the table says which operator it
is. ONNX knows of no solve in parallel, so there are no chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from parnl.graph.flatcode import definition
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.operation import DEFINED
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program

_TIME_FIRST = {"perm": [1, 0, 2]}  # not every runtime scans along another axis
_bodies = count()  # a body must not use a name that the graph around it has


def loop(
    tape: Tape,
    program: Program,
    steps: Any,
    reverse: bool,
    x0: Sequence[Any],
    operands: Sequence[Any],
) -> list[ir.Value]:
    """Write the solve on `tape` and return its k states (B, T, D).

    steps: T, a number or a value; x0: k values (B, D); operands: values that broadcast to
    (B, T, D); their shapes say which of them are the same for all steps.
    """
    body = _Body(x0[0].dtype)
    states = [body.value() for _ in x0]
    known = dict(_numbered(program.state_symbols, states))
    along: list[ir.Value] = []
    rows: list[ir.Value] = []  # of what is scanned, what the body gets
    for symbol, operand in zip(program.operand_symbols, operands, strict=True):
        still = operand.shape[1] == 1
        if operand.dtype != body.dtype:
            operand = tape.op("Cast", [operand], {"to": body.dtype})
        if still:  # the body reads it where it stands
            known[symbol.index] = tape.op("Squeeze", [operand, whole(tape, [1])])
        else:
            along.append(tape.op("Transpose", [operand], _TIME_FIRST))
            rows.append(body.value())
            known[symbol.index] = rows[-1]
    if not along:  # a Scan takes its length from what it scans
        ends = [whole(tape, 0), whole(tape, steps), whole(tape, 1)]
        along = [tape.op("Range", ends)]
        rows = [body.value(ir.DataType.INT64)]

    after = body.write(program.outputs, known)
    moving = {s.index for s in program.state_symbols}
    for i, (symbol, state) in enumerate(zip(program.outputs, states, strict=True)):
        if not any(n.index in moving for n in reachable([symbol])):
            after[i] = body.op("Expand", after[i], body.op("Shape", state))
    # each result under a name of its own, though two may be the same value, or an argument
    ends, written = ([body.op("Identity", a) for a in after] for _ in range(2))
    k, back = len(x0), int(reverse)
    scan: dict[str, Any] = {
        "body": ir.Graph([*states, *rows], [*ends, *written], nodes=body.nodes, name=body.name),
        "num_scan_inputs": len(along),
        "scan_input_directions": [back] * len(along),
        "scan_output_directions": [back] * k,
    }
    found = tape.op_multi_out("Scan", [*x0, *along], scan, num_outputs=2 * k)
    return [tape.op("Transpose", [x], _TIME_FIRST) for x in found[k:]]


def stats_of_loop(tape: Tape, like: Any) -> list[ir.Value]:
    """Return what `newton.Stats` has of the plain loop; like: an initial state (B, D)."""
    real = like.dtype.numpy().type
    numbers = [np.int32(0), real(0), real(0), np.bool_(True)]
    found = [tape.op("Constant", [], {"value": ir.tensor(np.asarray(n))}) for n in numbers]
    lanes = tape.op("Cast", [tape.op("Size", [like])], {"to": ir.DataType.INT32})
    return [*found, lanes]


def whole(tape: Tape, numbers: Any) -> ir.Value:
    """Return integers as a value; one that is a value is returned as a scalar."""
    if isinstance(numbers, ir.Value):
        return tape.op("Reshape", [numbers, whole(tape, np.zeros(0, np.int64))])
    return tape.op("Constant", [], {"value": ir.tensor(np.asarray(numbers, np.int64))})


class _Body:
    """The nodes of a step in floating point of `dtype`."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.name = f"step_{next(_bodies)}"
        self.nodes: list[ir.Node] = []
        self._names = (f"{self.name}_{i}" for i in count())

    def value(self, dtype: Any = None) -> ir.Value:
        """Return a value that nothing has written yet."""
        return ir.Value(name=next(self._names), type=ir.TensorType(dtype or self.dtype))

    def op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Write a node and return its value."""
        found = ir.Value(name=next(self._names))
        given = ir.convenience.convert_attributes(attributes)
        self.nodes.append(ir.Node("", kind, inputs, given, outputs=[found]))
        return found

    def write(self, symbols: Sequence[Symbol], known: Mapping[int, ir.Value]) -> list[ir.Value]:
        """Write what `symbols` are computed by, and return their values; known: of the leaves."""
        values = dict(known)
        for node in reachable([*symbols]):
            if node.index not in values:
                values[node.index] = self._node(node, [values[a.index] for a in node.args])
        return [values[s.index] for s in symbols]

    def _node(self, node: Symbol, inputs: list[ir.Value]) -> ir.Value:
        if node.op == "constant":
            with np.errstate(over="ignore"):  # beyond the largest float32 is infinity
                number = np.asarray(node.value).astype(self.dtype.numpy())
            return self.op("Constant", value=ir.tensor(number))
        operation = OPERATIONS[node.op]
        form = operation.form("onnx")
        if form != DEFINED:
            return self.op(form, *inputs)
        arguments, value = definition(operation)
        return self.write([value], dict(_numbered(arguments, inputs)))[0]


def _numbered(symbols: Sequence[Symbol], values: Sequence[ir.Value]) -> Any:
    return zip((s.index for s in symbols), values, strict=True)
