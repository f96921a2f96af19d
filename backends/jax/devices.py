"""A time axis divided over the devices of a mesh, inside `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from parnl.backends.jax.private import manual_axes
from parnl.solver.devices import Line
from parnl.solver.newton import Stats


class _Line(NamedTuple):
    axis: str | tuple[str, ...]
    size: int
    steps: int


class MeshLine(_Line, Line):
    """The devices along an axis of a mesh; all have T / P steps."""

    xp = jnp

    @property
    def parts(self) -> tuple[int, ...]:  # type: ignore[override]  # there an attribute
        """See `Line`."""
        return (self.steps,) * self.size

    @property
    def place(self) -> Any:
        """See `Line`."""
        return lax.axis_index(self.axis)

    def begins(self) -> Any:
        """See `Line`."""
        return self.place * self.steps

    def gather(self, x: Any) -> Any:
        """See `Line`."""
        return lax.all_gather(x, self.axis)

    def of(self, x: Any, place: Any) -> Any:
        """See `Line`."""
        return lax.psum(jnp.where(self.place == place, x, 0), self.axis)

    def window(self, x: Any, first: Any, count: int) -> Any:
        """See `Line`."""
        return lax.dynamic_slice_in_dim(x, first, count, axis=1)

    def last(self, states: Sequence[Any], x0: Sequence[Any], reverse: bool) -> list[Any]:
        """Return the states after all steps (B, D), as what is the same on all devices."""
        if not self.steps:
            return list(x0)
        last = self.turn(reverse) == self.size - 1
        ends = [jnp.where(last, s[:, 0 if reverse else -1], 0.0) for s in states]
        return [lax.psum(x, self.axis) for x in ends]

    def alike(self, stats: Stats) -> Stats:
        """Return the statistics, which are equal on all devices, as JAX's types can tell."""
        found = []
        for x in map(lax.stop_gradient, stats):
            numbers = x.astype(jnp.int32) if x.dtype == bool else x
            found.append(lax.pmax(numbers, self.axis).astype(x.dtype))
        return Stats(*found)


def line_of(time_axis: Any, steps: int) -> MeshLine:
    """Return the line of devices along the axis of that name, each with so many steps."""
    if not isinstance(time_axis, str):
        raise TypeError(
            "time_axis: expected the name of an axis of the mesh, a string, got "
            f"{type(time_axis).__name__}"
        )
    known = manual_axes()
    if time_axis not in known:
        raise ValueError(
            "time_axis: expected an axis of the mesh of the jax.shard_map around this call "
            f"({', '.join(map(repr, sorted(known))) or 'there is none'}), got {time_axis!r}"
        )
    return MeshLine(time_axis, lax.axis_size(time_axis), steps)
