"""Functions whose derivative is stated, as primitives of JAX.

`jax.custom_jvp` would say the same in fewer words, but JAX forgets its rule where it evaluates in
part, as in a second derivative through `lax.scan`. It would then try to differentiate a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from parnl.backends.jax import divided
from parnl.backends.jax.kernels import exported
from parnl.backends.jax.private import (
    Primitive,
    ad,
    asks_for_devices,
    batching,
    for_export,
    local_type,
    mlir,
    result_type,
    unchecked,
    vary,
)


def primitive(
    name: str,
    function: Callable,
    shapes: Callable,
    rule: Callable,
    jvp: Callable,
    batch: Callable | None = None,
) -> Primitive:
    """Return a primitive that computes function(*arrays, problem=...), a list of arrays.

    shapes(*arrays, problem=...) returns a `jax.ShapeDtypeStruct` for each of them,
    rule(primitive, *arrays, problem=...) how it may be divided among devices: see `divided`.
    jvp(primals, tangents, *, problem) returns (results, tangents); a tangent may be an `ad.Zero`.
    batch(arrays, axes, *, problem) returns (results, axes); without it, `function` is vmapped.
    `problem` is hashable.
    """
    made = _Together(name)
    made.multiple_results = True

    def compute(*arrays: Any, problem: Any) -> list:
        if isinstance(problem, _Mapped):
            return jax.vmap(partial(compute, problem=problem.each), problem.axes)(*arrays)
        return function(*arrays, problem=problem)

    compiled = jax.jit(compute, static_argnames="problem")

    def abstract(*arrays: Any, problem: Any) -> list:
        whole = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        return [result_type(arrays[0], x) for x in _shapes(shapes, whole, problem)]

    def lower(context: Any, *arrays: Any, problem: Any) -> Any:
        types = [local_type(a) for a in context.avals_in]
        known = None if isinstance(problem, _Mapped) else rule(made, *types, problem=problem)
        context = context.replace(avals_in=types)
        if for_export(context):  # another process has no kernels: `compiled` may know of some
            with unchecked(), exported():
                return divided.lowered(context, arrays, partial(compute, problem=problem), known)
        with unchecked():
            return divided.lowered(context, arrays, partial(compiled, problem=problem), known)

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
    asks_for_devices(made)
    ad.primitive_jvps[made] = derivative
    batching.primitive_batchers[made] = batch or by_vmap
    return made


def _shapes(shapes: Callable, arrays: Sequence[Any], problem: Any) -> list:
    if not isinstance(problem, _Mapped):
        return shapes(*arrays, problem=problem)
    struct, each, size = jax.ShapeDtypeStruct, [], 0
    for a, axis in zip(arrays, problem.axes, strict=True):
        if axis is None:
            each.append(a)
        else:
            size = a.shape[axis]
            each.append(struct((*a.shape[:axis], *a.shape[axis + 1 :]), a.dtype))
    found = _shapes(shapes, each, problem.each)
    return [struct((size, *x.shape), x.dtype) for x in found]


class _Mapped(NamedTuple):
    """A problem over an axis of the arrays that vmap has added."""

    each: Any
    axes: tuple[int | None, ...]


class _Together(Primitive):
    """In a `shard_map`, its arrays differ over the same axes of the mesh."""

    def bind(self, *arrays: Any, **params: Any) -> Any:
        return super().bind(*vary(arrays), **params)
