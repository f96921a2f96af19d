"""`lyapunov`: how fast a cell forgets along a trajectory; `diagnose`: what that means for a solve.

A step whose Jacobians shrink what they act on forgets its past: the solver's guesses are soon right
and few iterations are needed (arXiv 2508.16817), and gradients fade. One whose Jacobians expand is
chaotic: the solver needs up to as many iterations as there are chunks, and gradients explode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parnl.cell import Cell
from parnl.frameworks import get_backend
from parnl.inputs import check_params, initial_states
from parnl.solve import solve
from parnl.solver.newton import Plan
from parnl.stability.certificates import Certificate, as_float64, certify, float64_operands
from parnl.stability.growth import growth


class Lyapunov(NamedTuple):
    """Result of `lyapunov`.

    Attributes:
        exponents: (..., hidden), the mean growth of a small change of the state in one step, a
            natural logarithm; negative where the past is forgotten.
        rho: (hidden,), the largest norm of a step's Jacobian on the way: |df/dx|, and for a cell
            with several states the maximum norm.
    """

    exponents: Any
    rho: Any

    @property
    def largest(self) -> float:
        """The largest exponent of any channel."""
        return float(np.max(self.exponents))


def lyapunov(
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Any,
    initial_state: Any = None,
    *,
    dt: Any = None,
    differentiable: bool = False,
) -> Lyapunov:
    """Return the largest Lyapunov exponent of each channel along its trajectory.

    Computed in float64, by NumPy, from the states of a sequential run: (1/T) log of the norm of the
    product of the T Jacobians.

    Args:
        cell: from `parnl.get_cell`, or an instance of your own class.
        params: name -> array, of any framework.
        inputs: (..., T, input).
        initial_state: as in `parnl.solve`.
        dt: as in `parnl.solve`.
        differentiable: compute with the framework's own arrays, in parallel over time, so that both
            results may be terms of a loss. Jacobians smaller than 1e-30 count as 1e-30.

    Returns:
        A `Lyapunov`.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.

    >>> import numpy as np, parnl
    >>> cell = parnl.get_cell("gru", input_size=3, hidden_size=8)
    >>> found = parnl.lyapunov(cell, cell.init(seed=0), np.ones((2, 100, 3), dtype=np.float32))
    >>> found.exponents.shape, found.rho.shape, found.largest < 0
    ((2, 8), (8,), True)
    """
    if differentiable:
        return Lyapunov(*growth(cell, params, inputs, initial_state, dt))
    _, jacobian = _trajectory(cell, params, inputs, initial_state, dt)
    return _lyapunov(jacobian, tuple(inputs.shape[:-2]))


def _lyapunov(jacobian: np.ndarray, batch: tuple[int, ...]) -> Lyapunov:
    channels, k = jacobian.shape[2:4]
    with np.errstate(all="ignore"):
        exponents = _exponents(jacobian).reshape(*batch, channels)
        norms = _norms(jacobian, np.ones((k, channels)))
    return Lyapunov(exponents, np.max(norms, axis=(0, 1)))


def _trajectory(
    cell: Cell, params: Any, inputs: Any, initial_state: Any, dt: Any
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the states, k arrays (B, T + 1, D), and the Jacobian of each step, (B, T, D, k, k)."""
    given, params, inputs = check_params(cell, params, inputs)
    *batch, steps, _ = inputs.shape
    if steps == 0 or 0 in batch:
        raise ValueError(f"inputs: expected at least one step, got shape {tuple(inputs.shape)}")
    operands = float64_operands(cell, params, inputs, dt)
    shape, k = (math.prod(batch), cell.hidden_size), len(cell.states)
    x0 = [
        as_float64("initial_state", x).reshape(shape)
        for x in initial_states(given, cell, initial_state, inputs, inputs.dtype, inputs.shape[:-2])
    ]
    backend, epsilon = get_backend("numpy"), float(np.finfo(np.float64).eps)
    states, _ = backend.solve(cell.program, Plan.make(steps, 1, epsilon), operands, x0)
    states = [np.concatenate([x[:, None], s], 1) for x, s in zip(x0, states, strict=True)]
    with np.errstate(all="ignore"):
        before = [x[:, :-1] for x in states]
        entries = cell.program.function("jacobian", backend)(*before, *operands)
    whole = (shape[0], steps, shape[1])
    full = np.stack([np.broadcast_to(e, whole) for e in entries], axis=-1)
    return states, full.reshape(*whole, k, k)


def _exponents(jacobian: np.ndarray) -> np.ndarray:
    """Return the largest exponent of each channel, (B, D)."""
    rows, steps, channels, k, _ = jacobian.shape
    if k == 1:
        return np.mean(np.log(np.abs(jacobian[..., 0, 0])), axis=1)
    # the product's size is taken out at each step, lest it under- or overflow
    product = np.broadcast_to(np.eye(k) / math.sqrt(k), (rows, channels, k, k))
    total = np.zeros((rows, channels))
    for t in range(steps):
        product = jacobian[:, t] @ product
        size = np.sqrt(np.sum(product**2, axis=(-2, -1)))
        total += np.log(size)
        product = product / np.where(size == 0, 1.0, size)[..., None, None]
    return total / steps


def _norms(jacobian: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the norm max_i |v_i| / weights_i of Jacobians (B, T, D, k, k), as (B, T, D)."""
    w = weights.T
    return np.max(np.sum(np.abs(jacobian) * w[:, None, :], axis=-1) / w, axis=-1)


class Run(NamedTuple):
    """One solve of a report: its chunks, Newton iterations, and whether it converged.

    These are counts, not measured times. Each iteration runs all chunks twice.

    Attributes:
        chunks: C.
        iterations: Newton updates.
        converged: whether all gaps are small enough.
        in_a_row: steps computed one after the other, of T in the sequential loop.
        evaluations: steps computed in all, as a multiple of T; half of them with their Jacobian.
    """

    chunks: int
    iterations: int
    converged: bool
    in_a_row: int
    evaluations: float


class Report(NamedTuple):
    """Result of `diagnose`; `str` is a page to read, `as_dict` plain numbers, `plot` a picture.

    Attributes:
        certificate: see `parnl.certify`.
        lyapunov: see `parnl.lyapunov`.
        measured: (hidden,), the largest norm of a step's Jacobian on the trajectory, in the
            certificate's norm.
        steps: T.
        automatic: the chunks `parnl.solve` takes by itself.
        runs: one for each number of chunks, with `chunks`, `iterations`, `converged`, the steps
            computed one after the other, `in_a_row`, and all of them as a multiple of T,
            `evaluations`.
    """

    certificate: Certificate
    lyapunov: Lyapunov
    measured: Any
    steps: int
    automatic: int
    runs: tuple[Run, ...]

    def __str__(self) -> str:
        """A page to read."""
        largest = self.lyapunov.largest
        if largest < 0:
            meaning = f"a change of the state halves in {math.log(2) / -largest:.3g} steps"
        else:
            meaning = "a small change of the state does not fade"
        lines = [
            "certified for these ranges",
            *(f"  {line}" for line in str(self.certificate).splitlines()),
            "measured on this trajectory",
            f"  |df/dx| <= {float(np.max(self.measured)):.6g}",
            f"  largest Lyapunov exponent {largest:.4g} a step: {meaning}",
            f"solving {self.steps} steps; chunks by default: {self.automatic}",
            "  chunks  iterations  steps in a row  evaluations / steps",
        ]
        for run in self.runs:
            lines.append(
                f"  {run.chunks:6}  {run.iterations:10}  {run.in_a_row:14}  {run.evaluations:19.3g}"
                f"{'' if run.converged else '  not converged'}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as numbers, strings, lists and dictionaries, ready for JSON."""
        certificate = self.certificate._asdict() | {
            name: getattr(self.certificate, name) for name in ("bound", "stable", "norm")
        }
        return _plain(
            self._asdict()
            | {
                "certificate": _plain(certificate),
                "lyapunov": _plain(self.lyapunov._asdict() | {"largest": self.lyapunov.largest}),
                "runs": [run._asdict() for run in self.runs],
            }
        )

    def plot(self, target: Any) -> None:
        """Draw the report into an image file (a path), or into two axes of matplotlib."""
        figure = None
        if isinstance(target, str | Path):
            from matplotlib.figure import Figure

            figure = Figure(figsize=(10, 3.5), layout="constrained")
            axes = figure.subplots(1, 2)
        else:
            axes = target
        bounds, iterations = axes
        order = np.argsort(self.certificate.rho)
        bounds.plot(self.certificate.rho[order], label="certified")
        bounds.plot(self.measured[order], ".", label="measured")
        bounds.axhline(1.0, color="gray", linewidth=0.8)
        bounds.set(title="largest |df/dx|", xlabel="channels, by bound")
        bounds.legend()
        counts = [run.chunks for run in self.runs]
        iterations.plot(counts, [run.iterations for run in self.runs], ".-")
        iterations.axvline(self.automatic, color="gray", linewidth=0.8)
        iterations.set(title="Newton iterations", xlabel="chunks")
        iterations.set_xscale("log", base=2)
        if figure is not None:
            figure.savefig(target, dpi=120)


def diagnose(
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Any,
    initial_state: Any = None,
    *,
    dt: Any = None,
    chunks: Sequence[int] | None = None,
    budget: int = 1000,
) -> Report:
    """Tell how stable a cell is on these inputs, and what solving it in parallel takes.

    Args:
        cell: from `parnl.get_cell`, or an instance of your own class.
        params: name -> array, of any framework.
        inputs: (..., T, input).
        initial_state: as in `parnl.solve`.
        dt: as in `parnl.solve`.
        chunks: the numbers of chunks to try, by default the powers of four and T.
        budget: see `parnl.certify`, which is given the ranges of the features and of the states on
            the trajectory.

    Returns:
        A `Report`: print it, or take its numbers.

    Raises:
        ValueError: names the argument, what came, and what was expected.
        TypeError: likewise.

    >>> import numpy as np, parnl
    >>> cell = parnl.get_cell("lrc", input_size=3, hidden_size=8)
    >>> u = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    >>> report = parnl.diagnose(cell, cell.init(seed=0), u)
    >>> report.certificate.stable, [run.iterations <= 4 for run in report.runs]
    (True, [True, True, True, True])
    """
    states, jacobian = _trajectory(cell, params, inputs, initial_state, dt)
    # a trajectory that explodes has a range only up to where it does
    states = [np.where(np.abs(x) < 1e9, x, x[:, :1]) for x in states]
    seen = [(np.min(x, axis=(0, 1)), np.max(x, axis=(0, 1))) for x in states]
    certificate = certify(cell, params, seen, inputs=inputs, dt=dt, budget=budget)
    with np.errstate(all="ignore"):
        measured = np.max(_norms(jacobian, certificate.weights), axis=(0, 1))
    steps = inputs.shape[-2]
    if chunks is None:
        chunks = [*(c for c in (4**i for i in range(32)) if c < steps), steps]
    runs = []
    for count in chunks:
        # Newton to its end: what a report shows is not where the plain loop takes over
        how: dict[str, Any] = {"dt": dt, "chunks": count, "max_iterations": max(count, 1)}
        info = solve(cell, params, inputs, initial_state, **how).info
        iterations, length = int(info.iterations), -(-steps // info.chunks)
        rounds = 2 * iterations if info.chunks > 1 else 1
        in_a_row = rounds * length
        runs.append(Run(info.chunks, iterations, bool(info.converged), in_a_row, float(rounds)))
    automatic = solve(cell, params, inputs, initial_state, dt=dt).info.chunks
    found = _lyapunov(jacobian, tuple(inputs.shape[:-2]))
    return Report(certificate, found, measured, steps, automatic, tuple(runs))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in values.items()}
