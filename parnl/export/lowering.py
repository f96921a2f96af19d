"""PyTorch's operations, each as loops over arrays.

What depends on constants alone is computed here and now. A view costs nothing: it is the same array
read in another order, which a tensor of the array's size, viewed likewise, tells.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from parnl.export.aten import CONDITIONS, NUMBERS
from parnl.export.schedule import Buffer, Place, Schedule, stripped
from parnl.graph.nodes import StepError, Symbol
from parnl.graph.operations import CONDITIONS as KINDS

_SHAPE_ONLY = {"full_like", "zeros_like", "ones_like", "new_full", "new_zeros", "new_ones"}


class Value:
    """An array of `shape` as an expression, and where it stands, once it does.

    layout: a tensor whose shape, strides and offset are those of the value in `buffer`; leaf: the
    symbol that reads it there.
    """

    def __init__(self, shape: Sequence[int], symbol: Symbol) -> None:
        self.shape, self.symbol = tuple(shape), symbol
        self.buffer: Buffer | None = None
        self.layout: Tensor | None = None
        self.leaf = symbol

    @property
    def is_condition(self) -> bool:
        """Whether it is true or false, not a number."""
        return self.symbol.op in KINDS


class Lowering:
    """Adds the loops of a graph's operations to a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._constants: dict[bytes, Buffer] = {}
        self._special: dict[str, Callable[..., Any]] = {
            "sum": self._sum, "mean": self._mean, "amax": self._extremum("max"),
            "amin": self._extremum("min"), "max": self._with_index("max"),
            "min": self._with_index("min"), "var": self._var, "var_mean": self._var_mean,
            "mm": self._mm, "bmm": self._mm, "cat": self._cat, "where": self._where,
            "slice_scatter": self._slice_scatter, "select_scatter": self._select_scatter,
            "copy": self._copy,
            "_to_copy": self._to_copy, "clone": self._itself, "alias": self._itself,
        }  # fmt: skip

    def run(self, graph: torch.fx.GraphModule, inputs: Sequence[Value]) -> list[Value]:
        """Return the results of a graph."""
        given = iter(inputs)
        found: dict[torch.fx.Node, Any] = {}

        def value_of(node: torch.fx.Node) -> Any:
            return found[node]

        for node in graph.graph.nodes:
            if node.op == "placeholder":
                found[node] = next(given)
            elif node.op == "get_attr":
                found[node] = operator.attrgetter(str(node.target))(graph)
            elif node.op == "call_function":
                args = torch.fx.map_arg(node.args, value_of)
                found[node] = self._call(node.target, args, torch.fx.map_arg(node.kwargs, value_of))
            else:
                return [self._value(x) for x in torch.fx.map_arg(node.args[0], value_of)]
        raise AssertionError("a graph ends in its output")

    def _call(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if target is operator.getitem:
            if args[0][args[1]] is None:
                raise NotImplementedError("to_c: cannot write where an extremum stands as C")
            return args[0][args[1]]
        packet = getattr(target, "_overloadpacket", target)
        name = packet.__name__
        if not any(isinstance(a, Value) for a in torch.utils._pytree.tree_leaves((args, kwargs))):
            return target(*args, **kwargs)
        if name in _SHAPE_ONLY:
            return target(torch.empty(args[0].shape), *args[1:], **kwargs)
        try:
            if name in self._special:
                return self._special[name](*args, **kwargs)
            if name in CONDITIONS:
                return self._elementwise(CONDITIONS[name], *args, conditions=range(len(args)))
            if name in NUMBERS:
                return self._elementwise(NUMBERS[name], *args, **kwargs)
            if _is_view(target):
                return self._view(target, *args, **kwargs)
        except (NotImplementedError, StepError) as error:
            raise NotImplementedError(f"to_c: cannot write {target} as C: {error}") from error
        raise NotImplementedError(f"to_c: cannot write {target} as C")

    # -- values ------------------------------------------------------------------------------------

    def standing(self, buffer: Buffer, layout: Tensor) -> Value:
        """Return the value that stands in `buffer`."""
        value = Value(layout.shape, self.schedule.read(_place(buffer, layout)))
        value.buffer, value.layout = buffer, layout
        return value

    def _value(self, x: Any) -> Value:
        """Return a tensor or a number as a value, which they become in float32."""
        if isinstance(x, Value):
            return x
        tensor = torch.as_tensor(x).detach().resolve_neg()
        if tensor.is_complex():
            raise NotImplementedError("complex numbers")
        array = tensor.to(torch.float64).numpy()
        if array.size and (np.isnan(array).all() or (array == array.flat[0]).all()):
            value = Value(array.shape, self.schedule.graph.constant(array.flat[0]))
        else:
            with np.errstate(over="ignore"):
                single = array.astype(np.float32)
            key = single.tobytes()
            if key not in self._constants:
                name = f"w{len(self._constants)}"
                numbers = single.ravel()
                self._constants[key] = self.schedule.buffer("constant", array.size, name, numbers)
            value = self.standing(self._constants[key], layout_of(array.shape))
        if tensor.dtype == torch.bool:
            value = self._elementwise(lambda s: s != 0.0, value)
        return value

    def array(self, value: Value) -> Value:
        """Let a value stand in an array."""
        if value.layout is None:
            size = math.prod(value.shape)
            layout = layout_of(value.shape)
            buffer = self.schedule.buffer("scratch", size)
            self.store(value, buffer, layout)
            value.buffer, value.layout = buffer, layout
            value.leaf = self.schedule.read(_place(buffer, layout))
            if value.is_condition:
                value.leaf = value.leaf > 0.5
        return value

    def store(self, value: Value, buffer: Buffer, layout: Tensor) -> None:
        """Write a value to where `layout` says."""
        symbol = _number(value.symbol)
        self.schedule.store(_place(buffer, layout), symbol, stripped(value.shape))

    def _view(self, function: Any, x: Value, *args: Any, **kwargs: Any) -> Any:
        """Return the value, or values, that a function of one tensor's layout picks out."""
        x = self.array(x)
        assert x.layout is not None
        assert x.buffer is not None
        try:
            found = function(x.layout, *args, **kwargs)
        except RuntimeError:  # a shape that these strides cannot have
            copy = Value(x.shape, x.leaf)
            if x.layout.is_contiguous():
                raise
            return self._view(function, copy, *args, **kwargs)
        if isinstance(found, list | tuple):
            return [self._picked(x, layout) for layout in found]
        return self._picked(x, found)

    def _picked(self, x: Value, layout: Tensor) -> Value:
        assert x.buffer is not None
        if layout.dtype != torch.float32 or layout.is_neg():
            raise NotImplementedError("it changes what the numbers are")
        value = self.standing(x.buffer, layout)
        if x.is_condition:
            value.symbol = value.leaf = value.leaf > 0.5
        return value

    def _elementwise(
        self,
        function: Callable[..., Any],
        *args: Any,
        conditions: Sequence[int] = (),
        **kwargs: Any,
    ) -> Value:
        """Return a function of arrays, index by index; conditions: which arguments are some."""
        values = {i: self._value(a) for i, a in enumerate(args) if isinstance(a, Value | Tensor)}
        shape = torch.broadcast_shapes(*(v.shape for v in values.values()))
        symbols = list(args)
        for i, value in values.items():
            symbol = value.symbol
            if symbol.op not in ("leaf", "constant") and math.prod(value.shape) < math.prod(shape):
                symbol = self.array(value).leaf  # not computed anew for every index
            symbols[i] = _condition(symbol) if i in conditions else _number(symbol)
        result = function(*symbols, **kwargs)
        if not isinstance(result, Symbol):
            result = self.schedule.graph.constant(result)
        return Value(shape, result)

    # -- reductions --------------------------------------------------------------------------------

    def _reduce(self, combine: str, x: Any, dims: Any, keepdim: bool) -> Value:
        x = self._value(x)
        dims = range(len(x.shape)) if dims is None or dims == [] else dims
        reduced = {d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)}
        shape = tuple(1 if d in reduced else n for d, n in enumerate(x.shape))
        space = stripped(x.shape)
        skipped = len(x.shape) - len(space)
        buffer = self.schedule.buffer("scratch", math.prod(shape))
        layout = layout_of(shape)
        inner = tuple(sorted(d - skipped for d in reduced if d >= skipped))
        self.schedule.store(_place(buffer, layout), _number(x.symbol), space, inner, combine)
        value = self.standing(buffer, layout)
        return value if keepdim else self._view(torch.squeeze, value, tuple(reduced))

    def _sum(self, x: Any, dim: Any = None, keepdim: bool = False, **named: Any) -> Value:
        return self._reduce("sum", x, dim, keepdim)

    def _mean(self, x: Any, dim: Any = None, keepdim: bool = False, **named: Any) -> Value:
        total = self._reduce("sum", x, dim, keepdim)
        count = math.prod(x.shape) // math.prod(total.shape)
        return self._elementwise(operator.truediv, total, float(count))

    def _extremum(self, combine: str) -> Callable[..., Value]:
        def extremum(x: Any, dim: Any = None, keepdim: bool = False) -> Value:
            return self._reduce(combine, x, dim, keepdim)

        return extremum

    def _with_index(self, combine: str) -> Callable[..., Any]:
        def extremum(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
            value = self._reduce(combine, x, dim, keepdim)
            return value if dim is None else (value, None)

        return extremum

    def _var_mean(
        self, x: Any, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
    ) -> tuple[Value, Value]:
        mean = self._mean(x, dim, True)
        off = self._elementwise(operator.sub, x, mean)
        total = self._reduce("sum", self._elementwise(operator.mul, off, off), dim, keepdim)
        count = math.prod(x.shape) // math.prod(total.shape) - (
            1 if correction is None else correction
        )
        if not keepdim:
            mean = self._view(torch.reshape, mean, total.shape)
        return self._elementwise(operator.truediv, total, float(count)), mean

    def _var(self, x: Any, dim: Any = None, **named: Any) -> Value:
        return self._var_mean(x, dim, **named)[0]

    # -- products, and what is put together -------------------------------------------------------

    def _mm(self, x: Any, y: Any) -> Value:
        """Return x (..., m, k) @ y (..., k, n), a sum over the last of (..., m, n, k)."""
        x = self._view(lambda a: a.unsqueeze(-2), self._value(x))
        if isinstance(y, Value):
            y = self._view(lambda a: a.transpose(-1, -2).unsqueeze(-3), y)
        else:  # a constant stands in the order in which it is read
            y = y.transpose(-1, -2).contiguous().unsqueeze(-3)
        return self._reduce("sum", self._elementwise(operator.mul, x, y), -1, False)

    def _cat(self, parts: Sequence[Any], dim: int = 0) -> Value:
        values = [v for v in map(self._value, parts) if v.shape != (0,)]
        whole = torch.cat([layout_of(v.shape) for v in values], dim)
        buffer, begin = self.schedule.buffer("scratch", whole.numel()), 0
        for value in values:
            length = value.shape[dim]
            self.store(value, buffer, whole.narrow(dim, begin, length))
            begin += length
        return self.standing(buffer, whole)

    def _slice_scatter(
        self, x: Any, part: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> Value:
        """Return x with x[start:end] replaced by `part`, put together of three pieces."""
        if step != 1:
            raise NotImplementedError(f"a step of {step}")
        x = self._value(x)
        first, last, _ = slice(start, end).indices(x.shape[dim])
        before = self._view(torch.narrow, x, dim, 0, first)
        after = self._view(torch.narrow, x, dim, last, x.shape[dim] - last)
        pieces = [before, part, after]
        return self._cat([p for p in pieces if p.shape[dim]], dim)

    def _select_scatter(self, x: Any, part: Any, dim: int, index: int) -> Value:
        index %= x.shape[dim]
        row = self._view(lambda a: a.unsqueeze(dim), self._value(part))
        return self._slice_scatter(x, row, dim, index, index + 1)

    def _copy(self, x: Any, source: Any, non_blocking: bool = False) -> Value:
        """Return `source` in the shape of x, which it is written over."""
        return self._view(lambda a: a.expand(tuple(x.shape)), self._value(source))

    def _where(self, condition: Any, x: Any, y: Any) -> Value:
        return self._elementwise(
            lambda c, a, b: self.schedule.graph.apply("where", c, a, b), condition, x, y,
            conditions=(0,),
        )  # fmt: skip

    def _to_copy(self, x: Any, dtype: Any = None, **named: Any) -> Value:
        if dtype == torch.bool:
            return self._elementwise(lambda a: a, x, conditions=(0,))
        if dtype is not None and not dtype.is_floating_point:
            raise NotImplementedError(f"a conversion to {dtype}")
        return self._elementwise(_number, x) if x.is_condition else x

    def _itself(self, x: Value, **named: Any) -> Value:
        return x


def _number(symbol: Symbol) -> Symbol:
    return symbol.graph.apply("where", symbol, 1.0, 0.0) if symbol.op in KINDS else symbol


def _condition(symbol: Symbol) -> Symbol:
    return symbol if symbol.op in KINDS else symbol != 0.0


def layout_of(shape: Sequence[int]) -> Tensor:
    """Return a tensor for its shape and strides alone, whatever the caller's defaults are."""
    return torch.empty(tuple(shape), dtype=torch.float32, device="cpu")


def _place(buffer: Buffer, layout: Tensor) -> Place:
    return Place.of(buffer, int(layout.storage_offset()), layout.shape, layout.stride())


def _is_view(target: Any) -> bool:
    """Whether an operation gives its argument's own numbers in another shape."""
    if target is torch.ops.aten._unsafe_view.default:
        return True
    if target is torch.ops.aten.as_strided.default:  # which asks how PyTorch lays out memory
        return False
    schema = getattr(target, "_schema", None)
    aliases = [r.alias_info for r in schema.returns] if schema is not None else []
    return any(a is not None and not a.is_write for a in aliases)
