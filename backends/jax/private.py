"""What parnl takes from JAX that JAX does not promise to keep, and what differs between releases.

All of it stands here, so that a new JAX can break one file. A test names what has moved.

    what                             why
    Primitive, ad, batching, mlir    a function whose derivative parnl states: see `primitive.py`
    ShapedArray                      the type of what such a function returns
    Tracer                           whether an array's values are known
    axes of a mesh                   in a `shard_map`, arrays of one call must differ over the same
    unchecked                        within such a function, their types are not told of the mesh
    for_export                       what is lowered to be exported has no kernels of this process
    device_count, dispatch           among how many devices what is lowered is to be divided
    custom_partitioning              how XLA divides it
    Var, rest_of_trace               features that a step computes itself are not computed before it
    gpu_triton                       launches Triton kernels, with JAX's CUDA plugin
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import lax
from jax._src import config, dispatch
from jax.core import ShapedArray, Tracer
from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.extend.core import ClosedJaxpr, Primitive, Var, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe
from jax.sharding import PartitionSpec, get_abstract_mesh

try:
    from jaxlib import gpu_triton

    TritonKernel, TritonKernelCall = gpu_triton.TritonKernel, gpu_triton.TritonKernelCall
    create_array_parameter = gpu_triton.create_array_parameter
    create_scalar_parameter = gpu_triton.create_scalar_parameter
    TRITON_ABSENT = ""
except (ImportError, AttributeError):
    TritonKernel = TritonKernelCall = create_array_parameter = create_scalar_parameter = None
    TRITON_ABSENT = f"JAX {jax.__version__} is here without its CUDA plugin, which launches them"

__all__ = [
    "TRITON_ABSENT",
    "ArrayMapping",
    "Primitive",
    "SdyShardingRule",
    "ShapedArray",
    "Tracer",
    "TritonKernel",
    "TritonKernelCall",
    "Var",
    "ad",
    "asks_for_devices",
    "axes",
    "batching",
    "create_array_parameter",
    "create_scalar_parameter",
    "custom_partitioning",
    "device_count",
    "for_export",
    "local_type",
    "manual_axes",
    "mlir",
    "rest_of_trace",
    "result_type",
    "unchecked",
    "vary",
]

# A type tells the axes of the mesh over which an array differs: "vma" in JAX 0.9.
_AXES = "manual_axis_type" if hasattr(ShapedArray, "manual_axis_type") else "vma"


def unchecked() -> AbstractContextManager[Any]:
    """Return a context in which JAX does not ask over which axes of a mesh arrays differ."""
    return config._check_vma(False)


def asks_for_devices(made: Primitive) -> None:
    """Make `device_count` known where the primitive is lowered."""
    dispatch.prim_requires_devices_during_lowering.add(made)


def for_export(context: Any) -> bool:
    """Return whether what is being lowered is for `jax.export`."""
    return context.module_context.lowering_parameters.for_export


def device_count(context: Any) -> int:
    """Return among how many devices XLA is to divide what is being lowered."""
    devices = getattr(context.module_context.axis_context, "device_assignment", None)
    return len(devices or (None,))


def manual_axes() -> frozenset:
    """Return the axes of the mesh of the `shard_map` that is being traced."""
    return frozenset(get_abstract_mesh().manual_axes)


def axes(aval: Any) -> frozenset:
    """Return the axes of a mesh over which an array of type `aval` differs."""
    found: Any = getattr(aval, _AXES)
    return getattr(found, "varying", found)


def vary(arrays: Sequence[Any]) -> Sequence[Any]:
    """Return the arrays as ones that differ over the same axes of the mesh.

    Arrays that are the same on all devices, as parameters are, are cast to ones that differ. The
    transpose of that cast sums their gradient over the devices.
    """
    each = [axes(jax.typeof(a)) for a in arrays]
    every = frozenset().union(*each)
    return [
        lax.pcast(a, tuple(every - own), to="varying") if every - own else a
        for a, own in zip(arrays, each, strict=True)
    ]


def result_type(aval: Any, x: Any) -> ShapedArray:
    """Return the type of shape and dtype of `x` that differs over the axes that `aval` does."""
    if not axes(aval):
        return ShapedArray(x.shape, x.dtype)
    everywhere = aval.sharding.update(spec=PartitionSpec(*[None] * len(x.shape)))
    return ShapedArray(x.shape, x.dtype, sharding=everywhere, **{_AXES: getattr(aval, _AXES)})


def local_type(aval: Any) -> Any:
    """Return the type of what lies on one device, which is not told of the mesh."""
    return ShapedArray(aval.shape, aval.dtype) if axes(aval) else aval


def rest_of_trace(trace: ClosedJaxpr, wanted: Sequence[Any], given: Sequence[Any]) -> list:
    """Return the values of variables of a trace, of these arguments, by what leads to them alone.

    Besides, what has effects is done.
    """
    debug = trace.jaxpr.debug_info._replace(result_paths=("",) * len(wanted))
    changed = trace.jaxpr.replace(outvars=list(wanted), debug_info=debug)
    short, _ = pe.dce_jaxpr(changed, [True] * len(wanted), instantiate=True)
    return jaxpr_as_fun(ClosedJaxpr(short, trace.consts))(*given)
