"""`certify`: a proved bound on the Jacobian of a step over ranges of its states and features.

The Jacobian is an expression graph like the step itself, so `refinement.py` bounds both: the one
for the rate at which gradients shrink, the other for the range that the states never leave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from parnl.cell import Cell
from parnl.dtypes import widened
from parnl.frameworks import backend_of
from parnl.graph.intervals import Interval
from parnl.graph.nodes import Symbol
from parnl.graph.program import Program
from parnl.inputs import check_params, computed_features, feature_operands, time_step
from parnl.stability.refinement import Hull, Norm, refine


class Certificate(NamedTuple):
    """Result of `certify`; D channels, k states.

    Attributes:
        rho: (D,), proved to be at least the norm of the step's Jacobian anywhere in the box; inf
            where nothing could be proved.
        attained: (D,), the largest norm found at a point of the box: rho is that close to the
            truth.
        low: (k, D), lower ends of the box of states.
        high: (k, D), upper ends of the box of states.
        invariant: (D,), whether a step from the box is proved to end in it.
        weights: (k, D), those of the norm max_i |v_i| / weights_i of a state v; the gradient's is
            the dual one, sum_i weights_i |g_i|. For one state both are the absolute value.
    """

    rho: Any
    attained: Any
    low: Any
    high: Any
    invariant: Any
    weights: Any

    @property
    def bound(self) -> float:
        """The largest rho."""
        return float(np.max(self.rho))

    @property
    def stable(self) -> bool:
        """Whether Theorem 1 of arXiv 2505.21717 holds: rho < 1 over an invariant box.

        Then |dL/dx_t| <= rho^(T - t) |dL/dx_T| along every trajectory that starts in the box.
        """
        return bool(np.all((self.rho < 1) & self.invariant))

    @property
    def norm(self) -> str:
        """The norm, in words."""
        if len(self.weights) == 1:
            return "absolute value"
        return "max_i |v_i| / weights_i, for gradients sum_i weights_i |g_i|"

    def __str__(self) -> str:
        """A few readable lines."""
        count, fewer = len(self.rho), int(np.sum(self.rho < 1))
        held = int(np.sum(self.invariant))
        verdict = "gradients shrink by rho a step (Theorem 1 of arXiv 2505.21717)"
        return "\n".join(
            (
                f"|df/dx| <= {self.bound:.6g} in {count} channels, of which {fewer} are below 1",
                f"attained at a point: {float(np.max(self.attained)):.6g}",
                f"norm: {self.norm}",
                f"states: {float(np.min(self.low)):.6g} to {float(np.max(self.high)):.6g}; "
                f"{held} of {count} channels proved to stay in their range",
                f"{verdict if self.stable else 'not proved: ' + verdict}",
            )
        )


Range = tuple[Any, Any]


def certify(
    cell: Cell,
    params: Mapping[str, Any],
    state_range: Range | Sequence[Range] | None = None,
    feature_ranges: Mapping[str, Range] | None = None,
    *,
    inputs: Any = None,
    dt: Any = None,
    budget: int = 1000,
) -> Certificate:
    """Bound the Jacobian of one step, for all states and features within ranges: a proof.

    Args:
        cell: from `parnl.get_cell`, or an instance of your own class.
        params: name -> array, of any framework, taken as the float64 numbers they are.
        state_range: (low, high), for all states, or one such pair for each; numbers or arrays
            (hidden,). If the step leaves the range, parnl widens it to one that the step does not
            leave. If it finds none, it keeps yours. None: the range that is reached from zero.
        feature_ranges: name -> (low, high), numbers or arrays (hidden,), for each feature.
        inputs: (..., T, input), instead of `feature_ranges`: the ranges of their features.
        dt: time step of a time-aware cell: a number, or (low, high). With `inputs` it may be
            an array, as in `parnl.solve`. None: the cell's own option.
        budget: boxes to look at for each channel; more give closer bounds.

    The bound is on the traced step in exact arithmetic, with its constants as they are in float64;
    a run adds the rounding of its dtype. The bound on gradients holds for every step. That
    trajectories approach each other follows only if the step has no jumps (`ops.sign` of the state,
    `ops.where` between values that do not meet).

    Returns:
        A `Certificate`.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.

    >>> import numpy as np, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> u = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
    >>> parnl.certify(cell, cell.init(seed=0), inputs=u).stable
    True
    """
    if (feature_ranges is None) == (inputs is None):
        raise ValueError("feature_ranges, inputs: expected exactly one of them")
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise ValueError(f"budget: expected a positive integer, got {budget!r}")
    if feature_ranges is None:
        ranges = _seen_ranges(cell, params, inputs, dt)
    else:
        ranges = _given_ranges(cell, params, feature_ranges, dt)
    start = _state_box(cell, state_range)
    pieces = []
    for first in range(0, cell.hidden_size, 64):  # channels do not mix: groups bound the memory
        group = slice(first, first + 64)
        operands = [Interval(r.low[group], r.high[group]) for r in ranges]
        box = Interval(start.low[:, group], start.high[:, group])
        pieces.append(_certify(cell.program, operands, box, budget, state_range is None))
    return Certificate(*(np.concatenate(parts, axis=-1) for parts in zip(*pieces, strict=True)))


def _certify(
    program: Program, operands: list[Interval], start: Interval, budget: int, grow: bool
) -> tuple[Any, ...]:
    box, invariant = _invariant_box(program, operands, start, min(budget, 64))
    bounded = invariant | (not grow)
    channels = np.flatnonzero(bounded)
    norm = Norm(len(start.low), len(bounded), channels)
    if channels.size:
        refine(program, "jacobian", _leaves(program, operands, box, channels), budget, norm)
    low, high = np.where(bounded, box.low, -np.inf), np.where(bounded, box.high, np.inf)
    return norm.rho, norm.attained, low, high, invariant, norm.weights


def _seen_ranges(cell: Cell, params: Mapping[str, Any], inputs: Any, dt: Any) -> list[Interval]:
    """Return the range of each operand, arrays (hidden,), for these inputs."""
    fixed = dt if isinstance(dt, tuple | list) and getattr(cell, "time_aware", False) else None
    arrays = float64_operands(cell, params, inputs, None if fixed else dt)
    if inputs.shape[-2] == 0 or 0 in inputs.shape:
        raise ValueError(f"inputs: expected at least one step, got shape {tuple(inputs.shape)}")
    ranges = []
    for (kind, name), array in zip(cell.program.operands, arrays, strict=True):
        if fixed and kind == "dt":
            ranges.append(_range("dt", fixed, cell.hidden_size))
        else:
            pair = np.min(array, axis=(0, 1)), np.max(array, axis=(0, 1))
            ranges.append(_range(f"{kind} {name}", pair, cell.hidden_size))
    return ranges


def _given_ranges(
    cell: Cell, params: Mapping[str, Any], features: Mapping[str, Any], dt: Any
) -> list[Interval]:
    """Return the range of each operand, arrays (hidden,), from those of the features."""
    given: Any = params
    if isinstance(params, Mapping):
        given = {n: as_float64(f"parameter {n}", v) for n, v in params.items()}
    check_params(cell, given, np.zeros((1, getattr(cell, "input_size", 1))))
    if not isinstance(features, Mapping):
        kind = type(features).__name__
        raise TypeError(f"feature_ranges: expected a mapping name -> (low, high), got {kind}")
    wanted = [name for kind, name in cell.program.operands if kind == "feature"]
    missing = [name for name in wanted if name not in features]
    unknown = [name for name in features if name not in wanted]
    if missing or unknown:
        raise ValueError(
            f"feature_ranges: missing {missing}, unknown {unknown}; "
            f"the features of {type(cell).__name__} are: {', '.join(wanted)}"
        )
    if dt is not None and not cell.time_aware:
        raise ValueError(f"dt: expected None, since {type(cell).__name__}.step has no argument dt")
    dt = getattr(cell, "dt", 1.0) if dt is None else dt
    ranges = []
    for kind, name in cell.program.operands:
        if kind == "feature":
            pair = features[name]
        elif kind == "dt":
            pair = dt if isinstance(dt, tuple | list) else (dt, dt)
        else:
            pair = (given[name], given[name])
        label = f"feature_ranges {name}" if kind == "feature" else kind if kind == name else name
        ranges.append(_range(label, pair, cell.hidden_size))
    return ranges


def _state_box(cell: Cell, given: Any) -> Interval:
    """Return the range of each state, (k, hidden)."""
    k = len(cell.states)
    if given is None:
        given = (0.0, 0.0)
    pairs = isinstance(given, tuple | list)
    if pairs and len(given) == 2 and not isinstance(given[0], tuple | list):
        given = [given] * k
    if not pairs or len(given) != k:
        raise ValueError(
            f"state_range: expected a pair (low, high), or one for each of the states "
            f"{', '.join(cell.states)}, got {given!r}"
        )
    ranges = [
        _range(f"state_range {name}", pair, cell.hidden_size)
        for name, pair in zip(cell.states, given, strict=True)
    ]
    return Interval(*(np.stack(ends) for ends in zip(*ranges, strict=True)))


def _range(name: str, pair: Any, hidden: int) -> Interval:
    """Return (low, high) as float64 arrays (hidden,)."""
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (low, high), got {pair!r}")
    try:
        low, high = (np.broadcast_to(as_float64(name, end), (hidden,)) for end in pair)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected numbers or arrays of shape ({hidden},), got shapes "
            f"{np.shape(pair[0])} and {np.shape(pair[1])}"
        ) from error
    if not np.all(np.isfinite(low) & np.isfinite(high)):
        raise ValueError(f"{name}: expected finite numbers, got {low} to {high}")
    if not np.all(low <= high):
        raise ValueError(f"{name}: expected low <= high, got {low} to {high}")
    return Interval(low, high)


def as_float64(name: str, value: Any) -> np.ndarray:
    """Return a number, or an array of any framework, as the float64 array it is exactly."""
    if isinstance(value, int | float):
        return np.asarray(value, np.float64)
    backend = backend_of([(name, value)])
    value = backend.take(name, value)
    value = widened(backend.xp, value, backend.xp.float32)  # NumPy may not know the type
    return np.asarray(backend.to_numpy(value), np.float64)


def float64_operands(cell: Cell, params: Mapping[str, Any], inputs: Any, dt: Any) -> list[Any]:
    """Return the operands of the cell's program as `parnl.solve` computes them, in float64."""
    backend, params, inputs = check_params(cell, params, inputs)
    p, features, dtype, _ = computed_features(backend, cell, params, inputs)
    dt = time_step(backend, cell, dt, inputs, dtype)
    operands = feature_operands(backend, cell, p, features, dt, inputs)
    return [as_float64("inputs", backend.xp.astype(a, dtype)) for a in operands]


def _leaves(
    program: Program, operands: list[Interval], box: Interval, rows: Any
) -> dict[Symbol, Interval]:
    """Return the interval of every leaf, arrays (D,), of the channels `rows`."""
    states = dict(zip(program.state_symbols, map(Interval, *box), strict=True))
    known = states | dict(zip(program.operand_symbols, operands, strict=True))
    return {s: Interval(r.low[rows], r.high[rows]) for s, r in known.items()}


def _invariant_box(
    program: Program, operands: list[Interval], start: Interval, budget: int
) -> tuple[Interval, Any]:
    """Return a box of states around `start` that a step maps into itself, and where it is proved.

    A side through which the image leaves the box is moved beyond it, each time further, until the
    image stays inside. Bisection between the last two boxes gives up what was too much; so does the
    image of the box, which with `start` is as invariant. If none is found, the box is `start`.
    """

    def image(box: Interval, rows: Any, budget: int) -> Interval:
        hull = Hull(len(rows))
        refine(program, "step", _leaves(program, operands, box, rows), budget, hull)
        return Interval(hull.low, hull.high)

    def taken(box: Interval, rows: Any) -> Interval:
        return Interval(box.low[:, rows], box.high[:, rows])

    def put(box: Interval, rows: Any, part: Interval, where: Any) -> None:
        for end, new in zip(box, part, strict=True):
            end[:, rows[where]] = new[:, where]

    inner = Interval(start.low.copy(), start.high.copy())
    outer = Interval(start.low.copy(), start.high.copy())
    invariant = np.zeros(start.low.shape[1], bool)
    rows = np.arange(len(invariant))
    for share in 0.05 * 1.12 ** np.arange(32):
        if not rows.size:
            break
        here, found = taken(outer, rows), image(outer, rows, min(budget, 8))
        below, above = found.low < here.low, found.high > here.high
        inside = ~np.any(below | above, axis=0)
        invariant[rows[inside]] = True
        room = share * (np.maximum(here.high, found.high) - np.minimum(here.low, found.low))
        low = np.where(below, found.low - room, here.low)
        high = np.where(above, found.high + room, here.high)
        going = ~inside & np.all((low > -1e9) & (high < 1e9), axis=0)
        put(inner, rows, here, going)
        put(outer, rows, Interval(low, high), going)
        rows = rows[going]

    rows = np.flatnonzero(
        invariant & np.any((inner.low > outer.low) | (inner.high < outer.high), 0)
    )
    for _ in range(5 if rows.size else 0):
        middle = Interval(*(0.5 * (a + b) for a, b in zip(inner, outer, strict=True)))
        here, found = taken(middle, rows), image(middle, rows, budget)
        inside = np.all((here.low <= found.low) & (found.high <= here.high), axis=0)
        put(outer, rows, here, inside)
        put(inner, rows, here, ~inside)
    for _ in range(2 if rows.size else 0):
        here, found = taken(outer, rows), image(outer, rows, budget)
        first = taken(start, rows)
        low = np.maximum(here.low, np.minimum(first.low, found.low))
        high = np.minimum(here.high, np.maximum(first.high, found.high))
        put(outer, rows, Interval(low, high), np.ones(len(rows), bool))
    low, high = (np.where(invariant, a, b) for a, b in zip(outer, start, strict=True))
    return Interval(low, high), invariant
