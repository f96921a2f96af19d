"""`parnl::solve` in ONNX, for `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from parnl.backends.torch.operators import solve_operator  # noqa: F401 it makes torch.ops.parnl
from parnl.graph.program import Program


def export_onnx(
    module: torch.nn.Module, args: tuple[Any, ...] = (), path: Any = None, **how: Any
) -> Any:
    """Write a module that has parnl's solves in it as ONNX, by `torch.onnx.export`.

        rnn = parnl.torch.RNN("lstm", 3, 64, batch_first=True).eval()
        free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}     # batch and time
        parnl.torch.export_onnx(rnn, (torch.zeros(2, 20, 3),), "rnn.onnx", dynamic_shapes=(free,))

    how: all other keywords of `torch.onnx.export`, such as `kwargs` for dt, lengths and resets.
    Returns its `ONNXProgram`. The file is plain ONNX and runs without parnl. A solve in it is a
    `Scan`, which takes one step after the other, whatever `chunks` says, so `iterations` in its
    `Info` is 0, as for any plain loop.

    Needs the packages onnx and onnxscript. Raises NotImplementedError for an operation that ONNX
    does not have, and names it.
    """
    if how.setdefault("dynamo", True) is not True:
        raise ValueError(f"dynamo: expected True, got {how['dynamo']!r}")
    table = translations() | (how.pop("custom_translation_table", None) or {})
    return torch.onnx.export(module, args, path, custom_translation_table=table, **how)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the `custom_translation_table` of `torch.onnx.export` for parnl's operators."""
    return {torch.ops.parnl.solve.default: _solve}


def _solve(
    program: str,
    steps: Any,
    chunks: Any,
    epsilon: Any,
    tolerance: Any,
    max_iterations: Any,
    reverse: bool,
    backward_chunks: Any,
    x0: Sequence[Any],
    operands: Sequence[Any],
) -> list[Any]:
    """Write the solve where `torch.onnx.export` is writing; return states and statistics."""
    from onnx_ir.tape import Tape
    from onnxscript import evaluator

    from parnl.backends import onnx

    tape = Tape()
    states = onnx.loop(tape, Program.of_text(program), steps, reverse, x0, operands)
    stats = onnx.stats_of_loop(tape, x0[0])
    recorder: Any = evaluator.default()
    recorder.nodes.extend(tape.nodes)
    return [*states, *stats]
