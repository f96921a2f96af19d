"""Functions whose derivative is stated, as primitives of JAX.

`jax.custom_jvp` would say the same in fewer words, but JAX forgets its rule where it evaluates in
part, as in a second derivative through `lax.scan`: what is left then is to differentiate a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec


def primitive(
    name: str, function: Callable, jvp: Callable, batch: Callable | None = None
) -> Primitive:
    """Return a primitive that computes function(*arrays, problem=...), a list of arrays.

    jvp(primals, tangents, *, problem) returns (results, tangents); a tangent may be an `ad.Zero`.
    batch(arrays, axes, *, problem) returns (results, axes); without it, `function` is vmapped.
    `problem` is hashable.
    """
    made = _Alike(name)
    made.multiple_results = True

    def compute(*arrays: Any, problem: Any) -> list:
        if isinstance(problem, _Mapped):
            return jax.vmap(partial(compute, problem=problem.each), problem.axes)(*arrays)
        return function(*arrays, problem=problem)

    compiled = jax.jit(compute, static_argnames="problem")

    def abstract(*arrays: Any, problem: Any) -> list:
        whole = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        return [_like(arrays[0], x) for x in compiled.eval_shape(*whole, problem=problem)]

    lowered = mlir.lower_fun(compiled, multiple_results=True)

    def lower(context: Any, *arrays: Any, problem: Any) -> Any:
        avals = [ShapedArray(a.shape, a.dtype) if _axes(a) else a for a in context.avals_in]
        return lowered(context.replace(avals_in=avals), *arrays, problem=problem)

    def derivative(primals: Sequence[Any], tangents: Sequence[Any], *, problem: Any) -> tuple:
        if not isinstance(problem, _Mapped):
            return jvp(primals, tangents, problem=problem)

        def of_each(primals: list, tangents: list) -> tuple:
            found, dots = derivative(primals, tangents, problem=problem.each)
            return list(found), [ad.instantiate_zeros(d) for d in dots]

        given = list(primals), [ad.instantiate_zeros(t) for t in tangents]
        return jax.vmap(of_each, (list(problem.axes),) * 2)(*given)

    def by_vmap(arrays: Sequence[Any], axes: Sequence[Any], *, problem: Any) -> tuple:
        found = made.bind(*arrays, problem=_Mapped(problem, tuple(axes)))
        return found, [0] * len(found)

    made.def_impl(compiled)
    made.def_abstract_eval(abstract)
    mlir.register_lowering(made, lower)
    ad.primitive_jvps[made] = derivative
    batching.primitive_batchers[made] = batch or by_vmap
    return made


class _Mapped(NamedTuple):
    """A problem over an axis of the arrays that vmap has added."""

    each: Any
    axes: tuple[int | None, ...]


class _Alike(Primitive):
    """In a `shard_map`, arrays that differ over the same axes of the mesh.

    What is the same on all devices, as parameters are, is cast to what differs, and the transpose
    of that cast sums its gradient over the devices. What runs on a device is not told of the mesh.
    """

    def bind(self, *arrays: Any, **params: Any) -> Any:
        each = [_axes(jax.typeof(a)) if _AXES else frozenset() for a in arrays]
        if axes := frozenset().union(*each):
            arrays = tuple(
                a if axes == own else _vary(a, tuple(axes - own))
                for a, own in zip(arrays, each, strict=True)
            )
        return super().bind(*arrays, **params)


# JAX 0.5 has no such types, and a `shard_map` around a solve wants `check_rep=False`.
_AXES = next((n for n in ("manual_axis_type", "vma") if hasattr(ShapedArray, n)), "")
_vary: Any = (
    partial(lax.pcast, to="varying") if hasattr(lax, "pcast") else getattr(lax, "pvary", None)
)


def typed(array: Any) -> dict[str, Any]:
    """What a `jax.ShapeDtypeStruct` needs to differ over the axes `array` differs over."""
    return {_AXES: getattr(jax.typeof(array), _AXES)} if _AXES else {}


def _axes(aval: Any) -> frozenset:
    """The axes of a mesh over which an array differs."""
    axes: Any = getattr(aval, _AXES, frozenset())
    return getattr(axes, "varying", axes)


def _like(aval: Any, x: Any) -> ShapedArray:
    """The type of an array of the shape and dtype of x that differs over the axes `aval` does."""
    if not _axes(aval):
        return ShapedArray(x.shape, x.dtype)
    everywhere = aval.sharding.update(spec=PartitionSpec(*[None] * len(x.shape)))
    return ShapedArray(x.shape, x.dtype, sharding=everywhere, **{_AXES: getattr(aval, _AXES)})
