"""One step of a model as a graph of PyTorch's operations.

Cells are recorded by way of PyTorch too, whatever framework their parameters are of: what a cell
and a module have in common are these operations, some sixty of which cover both.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from parnl.cell import Cell
from parnl.export.aten import NUMBERS
from parnl.inputs import check_params
from parnl.step import step

_FIXED = "step depends on values, or on chance, in a way that cannot be recorded"
_FLOATS = (torch.float32, torch.float64)
KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while bool class new delete private public this template "
    "namespace using virtual try catch throw operator".split()
)  # of C, and of C++ that includes the header


class Recorded(NamedTuple):
    """A step: graph (input, states..., dt if it is an argument) -> (output, states...).

    starts: name -> value before the first step.
    """

    graph: torch.fx.GraphModule
    input_size: int
    starts: dict[str, Tensor]
    variable_dt: bool


def record_cell(cell: Cell, params: Mapping[str, Any], variable_dt: bool) -> Recorded:
    """Record `parnl.step` of a cell, in float64."""
    arrays = {n: _numbers(a) for n, a in params.items()}
    check_params(cell, arrays, np.zeros(cell.input_size), time_axis=False)
    if variable_dt and not cell.time_aware:
        raise ValueError(
            f"variable_dt: expected False, since {type(cell).__name__}.step has no argument dt"
        )
    tensors = {n: torch.tensor(a) for n, a in arrays.items()}

    def advance(x: Tensor, state: Any, **dt: Any) -> tuple[Tensor, Any]:
        return step(cell, tensors, x, state, **dt)

    start = tuple(torch.zeros(cell.hidden_size, dtype=torch.float64) for _ in cell.states)
    task = _Task(advance, cell.input_size, start, torch.float64, variable_dt, cell.states)
    try:
        return task.recorded()
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"model: {type(cell).__name__} cannot be run on tensors of PyTorch, which record a "
            f"step; write features() and output() with parnl.ops and methods of arrays: {error}"
        ) from error


def _numbers(array: Any) -> np.ndarray:
    """Return a parameter in float64; NumPy alone knows no bfloat16 of PyTorch's."""
    array = array.detach().cpu().double() if isinstance(array, Tensor) else array
    return np.asarray(array).astype(np.float64)


def record_module(model: nn.Module, input_size: int | None, variable_dt: bool) -> Recorded:
    """Record `model.step`."""
    advance: Any = getattr(model, "step", None)
    if not callable(advance):
        raise TypeError(
            f"model: expected a method step(input_t, state) -> (output_t, state), which "
            f"{type(model).__name__} lacks"
        )
    if training := [n or "the model" for n, m in model.named_modules() if m.training]:
        raise ValueError(f"model: expected it in eval mode, but {training[0]} is training: .eval()")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    floating = {n: t for n, t in tensors.items() if t.is_floating_point()}
    for name, tensor in floating.items():
        if tensor.dtype not in _FLOATS:
            raise TypeError(f"model: expected float32 or float64, but {name} is {tensor.dtype}")
        if tensor.device.type != "cpu":
            raise ValueError(f"model: expected it on the CPU, but {name} is on {tensor.device}")
    if variable_dt and "dt" not in inspect.signature(advance).parameters:
        raise ValueError(f"variable_dt: {type(model).__name__}.step has no argument dt")
    if input_size is None:
        input_size = getattr(model, "input_size", None)
        if not isinstance(input_size, int):
            raise ValueError(
                f"input_size: {type(model).__name__} has no attribute input_size, so say how many "
                "numbers a step reads"
            )
    dtype = next((t.dtype for t in floating.values()), torch.float32)
    x, dt = torch.zeros(input_size, dtype=dtype), {"dt": torch.ones((), dtype=dtype)}
    with torch.no_grad():
        first: Any = getattr(model, "initial_state", None)
        if callable(first):
            start = first()
            return _Task(advance, input_size, start, dtype, variable_dt).recorded()
        after = advance(x, None, **(dt if variable_dt else {}))[1]
    _check_states(pytree.tree_leaves(after))
    start = pytree.tree_map(torch.zeros_like, after)
    task = _Task(advance, input_size, start, dtype, variable_dt)
    found = task.recorded()
    task.check_start()
    return found


class _Task(NamedTuple):
    """What is to be recorded: function(input, state) -> (output, state), from the state `start`."""

    function: Callable[..., Any]
    input_size: int
    start: Any
    dtype: torch.dtype
    variable_dt: bool
    names: Sequence[str] = ()

    def drawn(self, seed: int) -> list[Tensor]:
        """Return an input, states, and dt if it is an argument."""
        random = torch.Generator().manual_seed(seed)
        shapes = [(self.input_size,), *(tuple(s.shape) for s in pytree.tree_leaves(self.start))]
        shapes += [()] if self.variable_dt else []
        return [0.25 + 0.5 * torch.rand(s, generator=random).to(self.dtype) for s in shapes]

    def flat(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Take one step: input, states, dt -> output, states."""
        given, spec = pytree.tree_flatten(self.start)
        dt = {"dt": rest[-1]} if self.variable_dt else {}
        state = pytree.tree_unflatten(rest[: len(given)], spec)
        output, after = self.function(x, state, **dt)
        leaves, found = pytree.tree_flatten(after)
        if found != spec:
            raise ValueError(
                f"step: expected a state like the one it was given, {spec}, got {found}"
            )
        return output, *leaves

    def check_start(self) -> None:
        """Raise ValueError unless zeros are what the model makes of a state of None."""
        x, *_, last = self.drawn(2)
        dt = {"dt": last} if self.variable_dt else {}
        zeros = [torch.zeros_like(s) for s in pytree.tree_leaves(self.start)]
        with torch.no_grad():
            found = pytree.tree_leaves(self.function(x, None, **dt))
            _check_equal(
                self.flat(x, *zeros, *dt.values()), found,
                "step with a state of None does not start from zeros: give it a method "
                "initial_state()",
            )  # fmt: skip

    def recorded(self) -> Recorded:
        """Return the graph of a step."""
        paths = pytree.tree_flatten_with_path(self.start)[0]
        tensors = [tensor for _, tensor in paths]
        _check_states(tensors)
        names = self.names or [pytree.keystr(path) for path, _ in paths]
        starts = dict(zip(_distinct(names), tensors, strict=True))
        with torch.no_grad():
            graph = self._graph(self.drawn(0))
            graph.graph.eliminate_dead_code()
            graph.recompile()
            other = self.drawn(1)
            expected = self.flat(*other)
            _check_results(expected, tensors)
            _check_equal(
                graph(*other), expected,
                _FIXED,
            )  # fmt: skip
        return Recorded(graph, self.input_size, starts, self.variable_dt)

    def _graph(self, given: list[Tensor]) -> torch.fx.GraphModule:
        """Return what a step does with these arguments; nothing in it writes in place."""
        try:
            graph = make_fx(self.flat, decomposition_table=_decompositions())(*given)
        except RuntimeError as error:
            if "data-dependent" in str(error):
                raise ValueError(f"model: {_FIXED}") from error
            raise
        calls = [n.target for n in graph.graph.nodes if n.op == "call_function"]
        if any(getattr(c, "_schema", None) and c._schema.is_mutable for c in calls):
            graph = make_fx(functionalize(graph, remove="mutations"))(*given)
        return graph


@cache
def _decompositions() -> dict[Any, Any]:
    """Return how PyTorch writes operations by fewer, but for those that parnl has."""
    aten = torch.ops.aten
    more = get_decompositions([
        aten.native_layer_norm, aten.native_batch_norm, aten.native_group_norm, aten._softmax,
        aten._native_batch_norm_legit_no_training, aten._log_softmax, aten.addmm, aten.baddbmm,
        aten.linalg_vector_norm,
    ])  # fmt: skip
    return {
        op: rule
        for op, rule in {**core_aten_decompositions(), **more}.items()
        if getattr(op, "_overloadpacket", op).__name__ not in NUMBERS
    }


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of members of a C struct, each once."""
    found = [re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") for name in names]
    found = [name if re.match(r"[A-Za-z]", name) else f"x{name}" for name in found]
    found = [f"{name}_" if name in KEYWORDS else name for name in found]
    return found if len(set(found)) == len(found) else [f"x{i}" for i in range(len(found))]


def _check_states(states: Sequence[Any]) -> None:
    if not states:
        raise ValueError("step: expected a state of at least one tensor, got none")
    for state in states:
        if not isinstance(state, Tensor) or not state.is_floating_point():
            kind = state.dtype if isinstance(state, Tensor) else type(state).__name__
            raise TypeError(f"state: expected tensors of a floating point type, got {kind}")
        if not state.numel():
            raise ValueError("state: expected tensors that hold numbers, got an empty one")


def _check_results(results: Sequence[Any], states: Sequence[Tensor]) -> None:
    output, *after = results
    if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
        raise TypeError(f"step: expected an output of floating point numbers, got {output!r}")
    before, now = ([tuple(s.shape) for s in group] for group in (states, after))
    if before != now:
        raise ValueError(f"step: expected states of the shapes it was given, {before}, got {now}")


def _check_equal(found: Sequence[Tensor], expected: Sequence[Tensor], complaint: str) -> None:
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or not torch.allclose(
            one, other, rtol=1e-4, atol=1e-6, equal_nan=True
        ):
            raise ValueError(f"model: {complaint}")
