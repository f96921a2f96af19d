"""Layers and directions of a cell, as `nn.GRU` has them: what the modules of all frameworks share.

A *run* is one layer in one direction. Runs are numbered as in PyTorch: layer 0 forward, layer 0
backward, layer 1 forward, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from parnl.cell import Cell
from parnl.registry import get_class
from parnl.solve import Solution, solve
from parnl.solver.run import settings
from parnl.states import in_order, state_type
from parnl.step import step


class LayersSolution(NamedTuple):
    """Result of the modules' `solve`.

    Attributes:
        outputs: as of the module.
        final_state: a state for each run (a layer in one direction), as the module returns it.
        states: for each run, the named tuple of its states at every step, in the layout of the
            outputs.
        infos: for each run, `parnl.Info`.
    """

    outputs: Any
    final_state: Any
    states: tuple[Any, ...]
    infos: tuple[Any, ...]


class Layers:
    """The cells of a module, and how they are run one after the other.

    `names` are the states in the order of the module: the cell's own, but (h, c) for the (c, h) of
    an LSTM, as `nn.LSTM` has them.
    """

    def __init__(
        self,
        cell: str | type[Cell],
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        options: Mapping[str, Any],
    ) -> None:
        if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
            raise ValueError(f"num_layers: expected a positive integer, got {num_layers!r}")
        self.directions = 2 if bidirectional else 1
        self.count = num_layers * self.directions
        kind, wide = class_of(cell), hidden_size * self.directions
        first, *later = (
            kind(input_size if layer == 0 else wide, hidden_size, **options)
            for layer in range(num_layers)
        )
        self.cells: list[Cell] = [first, *later]
        names = tuple(first.states)
        self.names = ("h", "c") if names == ("c", "h") else names
        self.State = state_type(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {n: v for n, v in vars(self).items() if n != "State"}  # no module holds the class

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.State = state_type(self.names)

    def cell(self, run: int) -> Cell:
        """Return the cell of a run."""
        return self.cells[run // self.directions]

    def suffix(self, run: int) -> str:
        """Return what parameters of a run end with: "_l0", "_l0_reverse", ..."""
        layer, backward = divmod(run, self.directions)
        return f"_l{layer}{'_reverse' if backward else ''}"

    def parameter_names(self, run: int) -> dict[str, str]:
        """Return the module's name of each parameter of the cell.

        Matrices begin with "weight_" and biases with "bias_": recipes that initialise or decay
        them differently look for these names. Other vectors, such as recurrent weights, have
        neither.
        """
        cell = self.cell(run)
        found = {}
        for name, spec in cell.specs.items():
            role = "weight_" if len(spec.dims) == 2 else "bias_" if name in cell.biases else ""
            found[name] = f"{role}{name}{self.suffix(run)}"
        return found

    def starts(self, argument: str, given: Any, batch: Sequence[int]) -> list[Any] | None:
        """Return for each state, in the cell's order, an array (runs, *batch, hidden), or None.

        given: a state of the module, None for zeros.
        """
        if given is None:
            return None
        cell, plain = self.cells[0], isinstance(given, tuple | list)
        if plain and not hasattr(given, "_fields") and len(given) == len(self.names):
            given = self.State(*given)
        arrays = in_order(argument, cell.states, given)
        shape = (self.count, *batch, cell.hidden_size)
        if any(tuple(a.shape) != shape for a in arrays):
            raise ValueError(
                f"{argument}: expected {len(arrays)} array(s) of shape {shape}, for the states "
                f"{', '.join(self.names)}, got shape(s) {[tuple(a.shape) for a in arrays]}"
            )
        return arrays

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layers) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:
        return (self.directions, *self.cells)

    def _of(self, run: int, states: Sequence[Any] | None) -> Any:
        """Return the named tuple of a run's states, of arrays (runs, ...) in the cell's order."""
        return None if states is None else self.cells[0].State(*(s[run] for s in states))

    def in_module_order(self, state: Any) -> Any:
        """Return the module's state of a named tuple: one array, or such a tuple."""
        parts = [getattr(state, name) for name in self.names]
        return parts[0] if len(parts) == 1 else self.State(*parts)

    def state(self, ends: Sequence[Any], stack: Callable[[Sequence[Any]], Any]) -> Any:
        """Return the module's state of the runs' last ones: one array, or a named tuple."""
        names = self.cells[0].states
        whole = self.cells[0].State(*(stack([getattr(end, n) for end in ends]) for n in names))
        return self.in_module_order(whole)

    def solution(
        self, output: Any, state: Any, solutions: Sequence[Solution], batch_first: bool
    ) -> LayersSolution:
        """Return the result of a module's `solve`, from that of `run`, in the module's layout."""
        every = [[moved(x, batch_first) for x in s.states or ()] for s in solutions]
        named = tuple(self.cells[0].State(*states) for states in every)
        infos = tuple(s.info for s in solutions)
        return LayersSolution(moved(output, batch_first), state, named, infos)

    def run(
        self,
        params: Sequence[Mapping[str, Any]],
        x: Any,
        starts: Sequence[Any] | None,
        concat: Callable[[Sequence[Any]], Any],
        between: Callable[[Any], Any],
        anew: Sequence[Any] | None = None,
        **told: Any,
    ) -> tuple[Any, list[Solution]]:
        """Return the outputs (..., T, D * hidden) and each run's solution.

        params: of each run; x: (..., T, input); concat: joins directions along the last axis;
        between: what is done between layers, dropout; anew: the states at `resets`, laid out as
        `starts`, None if they are those; told: keywords of `parnl.solve`.
        """
        solutions = []
        for layer in range(len(self.cells)):
            outputs = []
            for backward in range(self.directions):
                run = layer * self.directions + backward
                start, fresh = self._of(run, starts), self._of(run, anew)
                found = solve(
                    self.cells[layer], params[run], x, start, reset_state=fresh,
                    reverse=bool(backward), **told,
                )  # fmt: skip
                outputs.append(found.outputs)
                solutions.append(found)
            x = outputs[0] if len(outputs) == 1 else concat(outputs)
            if layer + 1 < len(self.cells):
                x = between(x)
        return x, solutions

    def step(
        self,
        params: Sequence[Mapping[str, Any]],
        x: Any,
        starts: Sequence[Any] | None,
        between: Callable[[Any], Any],
        anew: Sequence[Any] | None = None,
        **told: Any,
    ) -> tuple[Any, list[Any]]:
        """Return the output (..., hidden) of one time step and each layer's state.

        x: (..., input); anew: as `run` has it; told: keywords of `parnl.step`.
        """
        if self.directions == 2:
            raise ValueError("step: expected a module of one direction, got a bidirectional one")
        ends = []
        for run, cell in enumerate(self.cells):
            start, fresh = self._of(run, starts), self._of(run, anew)
            x, end = step(cell, params[run], x, start, reset_state=fresh, **told)
            ends.append(end)
            if run + 1 < len(self.cells):
                x = between(x)
        return x, ends


def class_of(cell: Any) -> type[Cell]:
    """Return the cell class for a module's argument `cell`: a name, or the class itself."""
    if isinstance(cell, str):
        return get_class(cell)
    if isinstance(cell, type) and issubclass(cell, Cell):
        return cell
    raise TypeError(
        'cell: expected the name of a cell, "gru" for instance, or a parnl.Cell class, got '
        f"{cell!r}; it comes first, before input_size"
    )


def check_options(method: Any, chunks: Any, dropout: Any) -> None:
    """Raise for a solver setting that no solve would take, and for an invalid dropout."""
    settings(method=method, chunks=chunks)
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout: expected a number, 0 <= dropout < 1, got {dropout!r}")


def shape_in_time(batch_first: bool) -> str:
    """Return the shape of inputs, as messages have it."""
    return "(B, T, {})" if batch_first else "(T, B, {})"


def moved(x: Any, batch_first: bool) -> Any:
    """Swap the axes of time and batch, of an array that has a batch."""
    return x.swapaxes(0, 1) if x.ndim == 3 and not batch_first else x


def laid_out(given: Any, told: Mapping[str, Any], batch_first: bool) -> tuple[Any, dict[str, Any]]:
    """Return input and keywords of a module as `parnl.solve` has them, with the batch first."""
    found = dict(told)
    if given.ndim == 3 and not batch_first:
        for name in ("dt", "resets"):
            if getattr(told[name], "ndim", 0) == 2:
                found[name] = told[name].swapaxes(0, 1)
    return moved(given, batch_first), found


def solver(module: Any, steps: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `parnl.solve` for a module's settings.

    A sequence with fewer steps than `chunks` has one chunk for each step, so any length will do.
    """
    chunks = module.chunks
    # compared, not min(): of a graph's free number of steps that is no integer
    if isinstance(chunks, int) and chunks > steps:
        chunks = max(steps, 1)
    stretch = None if "states" in told else module.stretch
    return {"method": module.method, "chunks": chunks, "stretch": stretch}
