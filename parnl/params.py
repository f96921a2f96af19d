"""Parameter specifications: what a cell declares, and how its arrays are drawn.

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden", init=0.0))

A dimension is "input", "hidden", or a number. `init` is a number (every entry), "zeros", "ones",
"uniform" (the default, U(-1/sqrt(hidden), 1/sqrt(hidden)), as in torch.nn.GRU), or a function
(rng, shape) -> array, such as `uniform(low, high)` and `normal(std)` below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], Any]
Init = float | str | Draw


class Parameter(NamedTuple):
    """One parameter: its dimensions, by name or number, and how it starts."""

    dims: tuple[str | int, ...]
    init: Init = "uniform"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape for `sizes`, dimension name -> size."""
        for d in self.dims:
            if isinstance(d, str) and d not in sizes:
                raise ValueError(f"dimension: expected one of {', '.join(sizes)}, got {d!r}")
        return tuple(sizes[d] if isinstance(d, str) else d for d in self.dims)

    def draw(self, rng: np.random.Generator, sizes: Mapping[str, int]) -> np.ndarray:
        """Draw the values, in float64."""
        shape, init = self.shape(sizes), self.init
        if init == "uniform":
            bound = 1.0 / math.sqrt(sizes["hidden"])
            return rng.uniform(-bound, bound, shape)
        if init == "zeros":
            init = 0.0
        elif init == "ones":
            init = 1.0
        if isinstance(init, str):
            raise ValueError(f"init: expected uniform, zeros, ones or a function, got {init!r}")
        values = np.asarray(init(rng, shape) if callable(init) else np.full(shape, init), float)
        if values.shape != shape:
            raise ValueError(f"init: expected values of shape {shape}, got {values.shape}")
        return values

    @property
    def per_channel(self) -> bool:
        """Whether there is one number per hidden channel, so that a step may read it."""
        return self.dims == ("hidden",)


def matrix(rows: str | int, columns: str | int, init: Init = "uniform") -> Parameter:
    """Declare a matrix parameter, (rows, columns), for `features`.

    >>> matrix("input", "hidden", init=normal(0.1)).shape({"input": 3, "hidden": 8})
    (3, 8)
    """
    return Parameter((rows, columns), init)


def vector(size: str | int, init: Init = "uniform") -> Parameter:
    """A vector parameter, (size,); of size "hidden" it may be read by `step`."""
    return Parameter((size,), init)


def uniform(low: float, high: float) -> Draw:
    """Return an `init` that draws from U(low, high)."""
    return lambda rng, shape: rng.uniform(low, high, shape)


def normal(std: float, mean: float = 0.0) -> Draw:
    """Return an `init` that draws from a normal distribution."""
    return lambda rng, shape: rng.normal(mean, std, shape)


def softplus_inverse(draw: Draw) -> Draw:
    """Return an `init` whose values, after softplus, are distributed as the positive `draw`."""

    def inverse(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        y = np.asarray(draw(rng, shape))
        return y + np.log(-np.expm1(-y))

    return inverse


class Values:
    """Attribute access to parameters or features: `p.W_f` for `{"W_f": ...}["W_f"]`."""

    def __init__(self, kind: str, values: Mapping[str, Any]) -> None:
        for name, value in values.items():  # in a form that every TorchDynamo knows
            setattr(self, name, value)
        self._kind = kind

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(n for n in self.__dict__ if n != "_kind")
        raise AttributeError(f"{self._kind} {name!r} is not declared; there are: {known}")
