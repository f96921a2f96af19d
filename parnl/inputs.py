"""Checks of what a user passes to `solve` and `step`, and its layout as operands (B, T, D)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import array_api_compat
import numpy as np

from parnl.cell import Cell
from parnl.dtypes import is_floating, is_half, promoted, widened
from parnl.frameworks import backend_of, get_backend, loaded, name_of
from parnl.graph.program import Program
from parnl.params import Values
from parnl.solver.devices import Line
from parnl.states import in_order

_NUMBERS = (int, float, np.integer, np.floating)


def check_params(
    cell: Cell, params: Mapping[str, Any], inputs: Any, *, time_axis: bool = True
) -> tuple[Any, dict[str, Any], Any]:
    """Return (backend, parameters, inputs) after checking types, dtypes and shapes.

    The arrays come as the backend takes them.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"cell: expected a parnl.Cell, see parnl.get_cell, got {cell!r}")
    if not isinstance(params, Mapping):
        params = _mapping(params)
    shapes = cell.parameter_shapes
    if params.keys() != shapes.keys():
        missing = [n for n in shapes if n not in params]
        unknown = [n for n in params if n not in shapes]
        raise ValueError(
            f"params: missing {missing}, unknown {unknown}; "
            f"the parameters of {type(cell).__name__} are: {', '.join(shapes)}"
        )
    argument, pattern = ("inputs", "(..., T, {})") if time_axis else ("input_t", "(..., {})")
    backend = backend_of([(argument, inputs)])
    arrays = [params[n] for n in shapes]
    if backend.usual([inputs, *arrays]):  # look no further
        fits = inputs.ndim > time_axis and inputs.shape[-1] == cell.input_size
        if fits and [a.shape for a in arrays] == [*shapes.values()]:
            return backend, dict(zip(shapes, arrays, strict=True)), inputs
    named = {argument: inputs}
    named.update({f"parameter {n}": params[n] for n in shapes})
    backend = backend_of(named.items())
    check_devices(backend, named)
    named = {n: backend.take(n, a) for n, a in named.items()}
    inputs, *rest = named.values()
    params = dict(zip(shapes, rest, strict=True))
    xp = backend.xp
    if inputs.ndim < (2 if time_axis else 1) or inputs.shape[-1] != cell.input_size:
        raise ValueError(
            f"{argument}: expected shape {pattern.format(cell.input_size)}, got "
            f"{tuple(inputs.shape)}"
        )
    for n, expected in shapes.items():
        if params[n].shape != expected:
            raise ValueError(
                f"parameter {n}: expected shape {expected}, got {tuple(params[n].shape)}"
            )
    known = None
    for name, array in named.items():
        if array.dtype == known:
            continue
        if not is_floating(xp, array.dtype):
            raise TypeError(f"{name}: expected a floating point array, got dtype {array.dtype}")
        known = array.dtype
    return backend, params, inputs


def _mapping(params: Any) -> Mapping[str, Any]:
    """Return `params` as a mapping; `torch.nn.ParameterDict` has its methods, but not its type."""
    if not (hasattr(params, "keys") and hasattr(params, "__getitem__")):
        raise TypeError(f"params: expected a mapping name -> array, got {type(params).__name__}")
    return {name: params[name] for name in params.keys()}  # noqa: SIM118


def remembered(cell: Any, input_t: Any) -> Any:
    """Return what `cell` remembers of a step with such an input: see `Backend`; None if nothing."""
    backend: Any = loaded.get(name_of(input_t) or "")
    return backend.remembered(cell, input_t) if backend and isinstance(cell, Cell) else None


def check_devices(backend: Any, named: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the argument, unless all arrays are on the device of the first."""
    if not _places(backend):
        return
    (first, array), *rest = named.items()
    device = array.device
    for name, other in rest:
        if other.device != device:
            raise ValueError(f"{name}: is on {other.device}, but {first} is on {device}")


def _places(backend: Any) -> bool:
    """Whether users place arrays on devices: NumPy has one, and JAX checks for itself."""
    return backend.name not in ("numpy", "jax")


def _told(backend: Any, name: str, given: Any, kind: str, inputs: Any) -> Any:
    """Return the argument `name`, of the dtypes `kind`, as an array where `inputs` is."""
    xp = backend.xp
    if name_of(given) != backend.name:  # a list, or an array of NumPy's: no harm in either
        numbers = get_backend("numpy").take(name, np.asanyarray(given))
        given = xp.asarray(np.array(numbers))  # a copy: PyTorch takes no strides but its own
    given = backend.take(name, given)
    if not xp.isdtype(given.dtype, kind):
        expected = {"integral": "integers", "bool": "booleans"}[kind]
        raise TypeError(f"{name}: expected {expected}, got dtype {given.dtype}")
    if not _places(backend) or given.device == inputs.device:
        return given
    if backend.name == "torch":
        return given.to(inputs.device)
    return array_api_compat.to_device(given, inputs.device)


def lengths_of(backend: Any, lengths: Any, inputs: Any) -> Any:
    """Return the argument `lengths` as integers of the batch's shape."""
    batch = tuple(inputs.shape[:-2])
    lengths = _told(backend, "lengths", lengths, "integral", inputs)
    if tuple(lengths.shape) != batch:
        raise ValueError(
            f"lengths: expected shape {batch}, that of the batch, got {tuple(lengths.shape)}"
        )
    return lengths


def mask_of(backend: Any, lengths: Any, inputs: Any, line: Line | None = None) -> Any:
    """Return the mask (..., T) of valid steps; on a line of devices, of this device's steps."""
    first, steps = (0, inputs.shape[-2]) if line is None else (line.begins(), line.total())
    known = backend.concrete(lengths)
    if known is not None and known.size and (known.min() < 0 or known.max() > steps):
        raise ValueError(
            f"lengths: expected 0 <= length <= T = {steps}, got {known.min()} to {known.max()}"
        )
    return first + times(backend, inputs) < lengths[..., None]


def times(backend: Any, inputs: Any) -> Any:
    """Return 0 to T - 1, where `inputs` is."""
    where = {"device": inputs.device} if _places(backend) else {}
    return backend.xp.arange(inputs.shape[-2], **where)


def resets_of(backend: Any, name: str, resets: Any, inputs: Any, shape: tuple[int, ...]) -> Any:
    """Return the argument `name`, booleans that broadcast to `shape`."""
    resets = _told(backend, name, resets, "bool", inputs)
    if not _broadcasts(tuple(resets.shape), shape):
        raise ValueError(
            f"{name}: expected an array that broadcasts to {shape}, got {tuple(resets.shape)}"
        )
    return resets


class Packed(NamedTuple):
    """Sequences that stand one after the other, S in T steps.

    offsets: (S + 1,), where each begins, and T; index: (T,), which one a step belongs to; begins:
    (T,), whether it is its first.
    """

    offsets: Any
    index: Any
    begins: Any


def last_states(xp: Any, offsets: Any, first: Any, states: Any, before: Any, reverse: bool) -> Any:
    """Return the last state of each packed sequence (S, D), or `before` if it ends elsewhere.

    states: (T, D), of the steps from number `first` on.
    """
    steps = states.shape[0]
    if not steps:
        return before
    last = (offsets[:-1] if reverse else offsets[1:] - 1) - first
    here = (offsets[1:] > offsets[:-1]) & (last >= 0) & (last < steps)
    row = xp.where(here, last, 0)
    return xp.where(here[:, None, ...], xp.take(states, row, axis=0), before)


def packed(backend: Any, cu_seqlens: Any, inputs: Any) -> Packed:
    """Return where the sequences of `cu_seqlens` are in inputs (T, input) or (1, T, input)."""
    xp = backend.xp
    offsets = _told(backend, "cu_seqlens", cu_seqlens, "integral", inputs)
    steps = inputs.shape[-2]
    if inputs.ndim > 3 or (inputs.ndim == 3 and inputs.shape[0] != 1):
        raise ValueError(
            "cu_seqlens: expected inputs of shape (T, input) or (1, T, input), whose sequences "
            f"stand one after the other, got {tuple(inputs.shape)}"
        )
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens: expected shape (S + 1,) for S sequences, got {tuple(offsets.shape)}"
        )
    known = backend.concrete(offsets)
    if known is not None and (known[0] != 0 or known[-1] != steps or (np.diff(known) < 0).any()):
        raise ValueError(
            f"cu_seqlens: expected numbers that rise from 0 to T = {steps}, got {known.tolist()}"
        )
    number = times(backend, inputs)
    offsets = xp.astype(offsets, number.dtype)
    index = xp.searchsorted(offsets[1:], number, side="right")
    last = offsets.shape[0] - 2
    index = xp.where(index > last, last, index)
    begins = xp.concat([index[:1] == index[:1], index[1:] != index[:-1]])
    return Packed(offsets, index, begins)


def working_dtype(xp: Any, arrays: Iterable[Any]) -> tuple[Any, Any]:
    """Return (dtype to solve in, dtype of the outputs): half precision is solved in float32."""
    result = promoted(xp, [a.dtype for a in arrays])
    return (xp.float32 if is_half(result) else result), result


def computed_features(
    backend: Any,
    cell: Cell,
    params: Mapping[str, Any],
    inputs: Any,
    found: Mapping[str, Any] | None = None,
) -> tuple[Values, Values, Any, Any]:
    """Return (parameters, features, dtype to solve in, dtype of the outputs).

    found: the features, if they are known.
    """
    p, dtype, result = wide_params(backend, params, inputs)
    features, dtype = features_of(backend, cell, p, inputs, dtype, result, found)
    return p, features, dtype, (result if is_half(result) else dtype)


def wide_params(backend: Any, params: Mapping[str, Any], inputs: Any) -> tuple[Values, Any, Any]:
    """Return (parameters, dtype to compute in, dtype of the outputs).

    The cell gets everything in the dtype to solve in. So a value that depends only on parameters,
    such as a decay exp(-exp(nu)), is not rounded on the way. And PyTorch, which multiplies only
    matrices of one type, takes what NumPy takes.
    """
    dtype, result = working_dtype(backend.xp, [inputs, *params.values()])
    if any([a.dtype != dtype for a in params.values()]):
        params = {n: _wide(backend.xp, a, dtype) for n, a in params.items()}
    return Values("parameter", params), dtype, result


def _wide(xp: Any, array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else xp.astype(array, dtype)


def features_of(
    backend: Any,
    cell: Cell,
    p: Values,
    inputs: Any,
    dtype: Any,
    result: Any,
    found: Mapping[str, Any] | None = None,
) -> tuple[Values, Any]:
    """Return (features, dtype to solve in); `dtype`, `result`: as `wide_params` returns them.

    If everything is of one half type, products of matrices still use that type where the backend
    gains from it.
    """
    if found is None:
        with backend.products(result, inputs):
            found = cell.features(p, _wide(backend.xp, inputs, dtype))
    if not isinstance(found, Mapping):
        raise TypeError(
            f"{type(cell).__name__}.features: expected a dict name -> array (..., T, hidden), got "
            f"{type(found).__name__}"
        )
    # a cell may compute its features in a wider type than it was given
    dtype = promoted(backend.xp, [dtype, *[v.dtype for v in found.values()]])
    return Values("feature", found), dtype


def time_step(
    backend: Any, cell: Cell, dt: Any, inputs: Any, dtype: Any, *, time_axis: bool = True
) -> Any:
    """Return dt as an array that broadcasts to (..., T), None if the cell reads none.

    Without `time_axis` it comes as (...), for one step. A number becomes an array of `dtype`, as
    does an array of half precision.
    """
    dt = given_time_step(backend, cell, dt, inputs, time_axis=time_axis)
    return None if dt is None else time_array(backend.xp, dt, inputs, dtype)


def given_time_step(
    backend: Any, cell: Cell, dt: Any, inputs: Any, *, time_axis: bool = True
) -> Any:
    """Return dt after checking it: None, a number, or an array that broadcasts to (..., T)."""
    if not cell.time_aware:
        if dt is not None:
            kind = type(cell).__name__
            raise ValueError(f"dt: expected None, since {kind}.step has no argument dt")
        return None
    if dt is None:
        dt = getattr(cell, "dt", 1.0)
    if isinstance(dt, _NUMBERS):
        return float(dt)
    backend_of([("inputs", inputs), ("dt", dt)])
    dt = backend.take("dt", dt)
    check_devices(backend, {"inputs": inputs, "dt": dt})
    if not time_axis and dt.ndim:
        dt = dt[..., None]
    if not is_floating(backend.xp, dt.dtype):
        raise TypeError(f"dt: expected a number or a floating point array, got dtype {dt.dtype}")
    expected = tuple(inputs.shape[:-1])
    if not _broadcasts(tuple(dt.shape), expected):
        raise ValueError(
            f"dt: expected a number or an array that broadcasts to (..., T) = {expected}, "
            f"got shape {tuple(dt.shape)}"
        )
    return dt if dt.ndim else dt[None, ...]


def time_array(xp: Any, dt: Any, inputs: Any, dtype: Any) -> Any:
    """Return dt as an array: a number (1,) of `dtype`, an array of half precision in `dtype`."""
    if isinstance(dt, float):
        return xp.full((1,), dt, dtype=dtype, device=getattr(inputs, "device", None))
    return widened(xp, dt, dtype)


def initial_states(
    backend: Any,
    cell: Cell,
    given: Any,
    inputs: Any,
    dtype: Any,
    batch: Sequence[int],
    argument: str = "initial_state",
) -> list[Any]:
    """Return one array (*batch, hidden) for each state of the cell."""
    xp = backend.xp
    shape = (*batch, cell.hidden_size)
    if given is None:
        zeros = xp.zeros(shape, dtype=dtype, device=getattr(inputs, "device", None))
        return [zeros for _ in cell.states]
    arrays = in_order(argument, cell.states, given)
    if backend.usual([inputs, *arrays]) and all([x.shape == shape for x in arrays]):
        return arrays
    for i, state in enumerate(cell.states):
        name = f"{argument} {state}"
        backend_of([("inputs", inputs), (name, arrays[i])])
        arrays[i] = x = backend.take(name, arrays[i])
        check_devices(backend, {"inputs": inputs, name: x})
        if tuple(x.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(x.shape)}")
        if not is_floating(xp, x.dtype):
            raise TypeError(f"{name}: expected a floating point array, got dtype {x.dtype}")
    return arrays


def feature_operands(
    backend: Any,
    cell: Cell,
    p: Values,
    features: Values,
    dt: Any,
    inputs: Any,
    program: Program | None = None,
) -> list[Any]:
    """Return the operands of the cell's program, or of another, each broadcasting to (B, T, D)."""
    xp = backend.xp
    *batch, steps, _ = inputs.shape
    whole = (*batch, steps, cell.hidden_size)
    operands = []
    for kind, name in (program or cell.program).operands:
        if kind == "parameter":
            operands.append(xp.reshape(getattr(p, name), (1, 1, cell.hidden_size)))
        elif kind == "dt":
            operands.append(batched(xp, dt[..., None], tuple(batch)))
        else:
            array = backend.take(f"feature {name}", getattr(features, name))
            shape = tuple(array.shape)
            if shape != whole and (array.ndim < 2 or not _broadcasts(shape, whole)):
                raise ValueError(
                    f"feature {name}: expected shape {whole}, got {tuple(array.shape)}"
                )
            operands.append(batched(xp, array, tuple(batch)))
    return operands


def batched(xp: Any, array: Any, batch: tuple[int, ...]) -> Any:
    """Return `array` (..., t, d) as (B, t, d), or as (1, t, d) if the batch does not enter it."""
    lead, tail = tuple(array.shape[:-2]), tuple(array.shape[-2:])
    if len(batch) == 1 and lead in (batch, (1,)):
        return array
    if math.prod(lead) == 1 and math.prod(batch) != 1:
        return xp.reshape(array, (1, *tail))
    if lead != batch:
        array = xp.broadcast_to(array, (*batch, *tail))
    return xp.reshape(array, (math.prod(batch), *tail))


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    if len(shape) > len(target):
        return False
    return all(s in (1, t) for s, t in zip(reversed(shape), reversed(target), strict=False))


def beginnings(
    backend: Any,
    resets: Any,
    pack: Packed | None,
    mask: Any,
    inputs: Any,
    reverse: bool,
    line: Line | None,
    at_first: bool,
) -> Any:
    """Return at which steps the run begins anew, the operand `reset` (B, T, 1).

    at_first: whether the run's first step may count as one: the result is the same.
    """
    xp = backend.xp
    *batch, steps, _ = inputs.shape
    begins: Any = None if pack is None else pack.begins
    if resets is not None:
        told = xp.broadcast_to(resets, (*resets.shape[:-1], steps))
        begins = told if begins is None else told | begins
    if mask is not None:  # nothing happens in the padding
        begins = begins & mask
    if reverse:  # what begins in time at a step ends the run before it, and the run begins itself
        last = xp.zeros_like(begins[..., :1]) | at_first
        if line is not None:
            last = line.following(begins[..., :1], last)
        begins = xp.concat([begins[..., 1:], last], axis=-1)
    if mask is not None:  # nothing happens in the padding
        begins = begins & mask
    return batched(xp, begins[..., None], tuple(batch))
