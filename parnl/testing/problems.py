"""Random problems: a cell, its parameters and inputs, and how they are to be solved."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from parnl.cell import Cell
from parnl.frameworks import NAMES
from parnl.registry import get_class

# Lengths and widths that kernels treat differently: one, a few, a whole vector of float32.
HIDDEN = (1, 3, 4, 16)

# Kinds of inputs that a solver must survive: what stands in one sequence, T numbers.
HOSTILE: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "huge": lambda rng, x: np.sign(x) * 10.0 ** rng.uniform(20, 37, x.shape),
    "tiny": lambda rng, x: np.sign(x) * 10.0 ** rng.uniform(-37, -20, x.shape),
    "subnormal": lambda rng, x: np.sign(x) * rng.choice([1e-40, 1e-44, 1e-310], x.shape),
    "nan": lambda rng, x: _somewhere(rng, x, np.nan),
    "inf": lambda rng, x: _somewhere(rng, x, rng.choice([np.inf, -np.inf])),
    "constant": lambda rng, x: np.full_like(x, rng.normal() * 5),
    "alternating": lambda rng, x: _alternating(x, rng.uniform(1, 100)),
    "mixed": lambda rng, x: np.choose(
        rng.integers(0, 5, x.shape), [x, x * 1e30, x * 1e-40, np.inf * x, np.full_like(x, np.nan)]
    ),
}


def _somewhere(rng: np.random.Generator, x: np.ndarray, value: float) -> np.ndarray:
    x = x.copy()
    x[tuple(rng.integers(0, n) for n in x.shape)] = value
    return x


def _alternating(x: np.ndarray, size: float) -> np.ndarray:
    signs = np.where(np.arange(x.shape[0]) % 2, -size, size)
    return np.broadcast_to(signs.reshape(-1, *[1] * (x.ndim - 1)), x.shape).copy()


@st.composite
def hostile(draw: Callable[..., Any], shape: tuple[int, ...]) -> np.ndarray:
    """Hypothesis strategy: inputs of `shape` (T, ...) of one of the kinds in `HOSTILE`, float64."""
    kind = draw(st.sampled_from(list(HOSTILE)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    with np.errstate(all="ignore"):
        return HOSTILE[kind](rng, rng.normal(size=shape))


class Shape(NamedTuple):
    """Sizes of a problem; `batch` is a tuple of any length."""

    batch: tuple[int, ...]
    steps: int
    input_size: int
    hidden_size: int


@st.composite
def shapes(
    draw: Callable[..., Any],
    *,
    max_steps: int = 24,
    batches: Sequence[tuple[int, ...]] = ((), (1,), (3,), (2, 2)),
    hidden: Sequence[int] = HIDDEN,
    few: bool = False,
) -> Shape:
    """Hypothesis strategy: random `Shape`. `few`: of few kinds, for what compiles for each."""
    if few:
        steps = draw(st.sampled_from(sorted({1, min(7, max_steps)})))
        return Shape(draw(st.sampled_from(list(batches)[-2:])), steps, 2, 3)
    return Shape(
        draw(st.sampled_from(list(batches))),
        draw(st.integers(1, max_steps)),
        draw(st.integers(1, 3)),
        draw(st.sampled_from(list(hidden))),
    )


class Problem(NamedTuple):
    """One solve to be checked; all arrays are NumPy's, in float64.

    dt, lengths, resets and initial_state may be None; weights are those of the loss whose gradients
    are compared, one array for the outputs and one for each final state; cut is a number of steps,
    0 to T, for properties that take a sequence apart; seed is for what else they have to draw.
    """

    cell: Cell
    backend: str
    dtype: str
    chunks: int
    reverse: bool
    params: dict[str, np.ndarray]
    inputs: np.ndarray
    initial_state: tuple[np.ndarray, ...] | None
    dt: np.ndarray | None
    lengths: np.ndarray | None
    weights: tuple[np.ndarray, ...]
    cut: int
    seed: int
    resets: np.ndarray | None = None

    @property
    def steps(self) -> int:
        """T."""
        return self.inputs.shape[-2]

    @property
    def batch(self) -> tuple[int, ...]:
        """The axes before T."""
        return self.inputs.shape[:-2]

    @property
    def start(self) -> tuple[np.ndarray, ...]:
        """The initial state, zeros if none is given."""
        zeros = np.zeros((*self.batch, self.cell.hidden_size))
        return self.initial_state or tuple(zeros for _ in self.cell.states)

    def between(self, first: int, last: int) -> Problem:
        """The same without the steps outside of first..last; its initial state stays."""
        outputs, *finals = self.weights
        return self._replace(
            chunks=max(1, min(self.chunks, last - first)),
            inputs=self.inputs[..., first:last, :],
            dt=None if self.dt is None else self.dt[..., first:last],
            lengths=None
            if self.lengths is None
            else np.clip(self.lengths - first, 0, last - first),
            resets=None if self.resets is None else self.resets[..., first:last],
            weights=(outputs[..., first:last, :], *finals),
        )

    def __repr__(self) -> str:
        lengths = None if self.lengths is None else self.lengths.tolist()
        size = f"{self.cell.input_size}, {self.cell.hidden_size}"
        cell = f"{type(self.cell).__name__}({size}, {self.cell.chosen})"
        if hasattr(self.cell, "source"):
            cell = repr(self.cell)
        return (
            f"{cell} on {self.backend} in {self.dtype}: inputs {self.inputs.shape}, "
            f"chunks={self.chunks}, reverse={self.reverse}, lengths={lengths}, "
            f"resets={None if self.resets is None else np.argwhere(self.resets).tolist()}, "
            f"initial_state={self.initial_state is not None}, dt={self.dt is not None}, "
            f"cut={self.cut}, seed={self.seed}"
        )


def installed() -> tuple[str, ...]:
    """Return the backends whose framework is installed."""
    return tuple(n for n in NAMES if importlib.util.find_spec(n) is not None)


@st.composite
def problems(
    draw: Callable[..., Any],
    cell: Any,
    backends: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float64", "float32"),
    max_steps: int = 24,
    batches: Sequence[tuple[int, ...]] = ((), (1,), (3,), (2, 2)),
    lengths: bool | None = None,
    resets: bool | None = None,
) -> Problem:
    """Hypothesis strategy: random problems for `cell`.

    Args:
        cell: a name, an instance, or a class or function of (input_size, hidden_size).
        backends: to draw from; by default all that are installed.
        dtypes: to draw from.
        max_steps: largest T.
        batches: shapes of the batch to draw from.
        lengths: whether the sequences have lengths; None: some problems do.
        resets: whether they begin anew at some steps; None: likewise.
    """
    backend = draw(st.sampled_from(tuple(backends or installed())))
    sizes = draw(shapes(max_steps=max_steps, batches=batches, few=backend == "jax"))
    if isinstance(cell, Cell):
        sizes = sizes._replace(input_size=cell.input_size, hidden_size=cell.hidden_size)
    else:
        kind = get_class(cell) if isinstance(cell, str) else cell
        cell = kind(input_size=sizes.input_size, hidden_size=sizes.hidden_size)
    batch, steps = sizes.batch, sizes.steps
    few = backend == "jax"  # it compiles for every shape
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shape = (*batch, cell.hidden_size)
    given_state = draw(st.booleans())
    given_dt = cell.time_aware and draw(st.booleans())
    given_lengths = draw(st.booleans()) if lengths is None else lengths
    given_resets = draw(st.booleans()) if resets is None else resets
    counts = st.sampled_from(sorted({1, min(3, steps)})) if few else st.integers(1, steps)
    return Problem(
        cell,
        backend,
        draw(st.sampled_from(tuple(dtypes))),
        draw(counts),
        draw(st.booleans()),
        cell.init(int(rng.integers(2**31)), dtype="float64"),
        rng.normal(size=(*batch, steps, cell.input_size)),
        tuple(rng.normal(size=shape) for _ in cell.states) if given_state else None,
        rng.uniform(0.1, 1.0, size=(*batch, steps)) if given_dt else None,
        np.asarray(rng.integers(0, steps + 1, size=batch)) if given_lengths else None,
        (
            rng.normal(size=(*batch, steps, cell.hidden_size)),
            *(rng.normal(size=shape) for _ in cell.states),
        ),
        steps // 2 if few else draw(st.integers(0, steps)),
        seed,
        rng.random((*batch, steps)) < rng.choice([0.05, 0.3, 0.9]) if given_resets else None,
    )
