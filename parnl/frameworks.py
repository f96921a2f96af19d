"""Which framework an array belongs to, and the backend that serves it.

The framework is recognised by the type of the arrays and imported only then. Three have names; any
other library of the array API standard has the backend that is made for its namespace. A backend is
an object with the interface of `Backend`; it supplies elementwise operations, the two runs over
chunks that `parnl.solver.newton` is made of, and the implicit gradient. Backends use the core; the
core names them only here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

import array_api_compat
import numpy as np

from parnl.graph.program import Program
from parnl.solver.devices import Line
from parnl.solver.newton import Kernels, Plan, Stats

F = TypeVar("F", bound=Callable[..., Any])
Found = TypeVar("Found")
NAMES = ("numpy", "jax", "torch")


def _is_torch_array(array: Any) -> bool:
    torch = sys.modules.get("torch")  # array-api-compat's own test is no code for torch.compile
    # while another thread still imports it, it has no tensors yet
    kind = getattr(torch, "Tensor", None)
    return kind is not None and isinstance(array, kind)


def _is_numpy_array(array: Any) -> bool:
    try:
        return array_api_compat.is_numpy_array(array)
    except AttributeError:  # likewise, of older releases, which ask jax for a type
        return isinstance(array, np.ndarray | np.generic)


def _is_jax_array(array: Any) -> bool:
    try:
        return array_api_compat.is_jax_array(array)
    except AttributeError:  # while another thread still imports jax, it has no arrays yet
        return False


_RECOGNISE: dict[str, Any] = {
    "torch": _is_torch_array,
    "numpy": _is_numpy_array,
    "jax": _is_jax_array,
}


# Backends, each put here by its module: an import, even of what is there, takes 1 us.
loaded: dict[str, Backend] = {}
# By the types of their own arrays, which need no closer look; those that gain from that.
plain: dict[type, Any] = {}


def constant(function: F) -> F:
    """Mark a function that PyTorch's compiler does not follow: what it returns is a constant.

    `torch.compiler.assume_constant_result` does the same, but imports the compiler. That takes
    longer than the rest of PyTorch, and few programs need it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


class Backend(Kernels, Protocol):
    """What the rest of parnl asks of a framework, beyond `Kernels`.

    functions: elementwise operation -> callable over arrays and numbers.
    """

    def asarray(self, value: Any, dtype: str, device: Any = None) -> Any:
        """Return `value` (anything NumPy reads) as an array of the framework."""

    def take(self, name: str, array: Any) -> Any:
        """Return a user's array as parnl computes with it, nearly always unchanged.

        Raises TypeError or ValueError that names the argument; see `parnl.backends.arrays`.
        """

    def usual(self, arrays: Sequence[Any]) -> bool:
        """Whether arrays are the usual case: as `take` returns them, of one dtype and device.

        arrays: the first is of this framework, the others may be anything. False where it is
        faster, or better, to look at them one by one.
        """

    def to_numpy(self, array: Any) -> Any:
        """Return a framework array as a NumPy array."""

    def concrete(self, array: Any) -> Any:
        """Return the values as a NumPy array, None while they are not known (under a transform)."""

    def step(self, program: Program) -> Callable[..., tuple[Any, ...]]:
        """Return the function states, operands -> next states, over the framework's arrays."""

    def step_by_kernel(
        self, program: Program, operands: Sequence[Any], states: Sequence[Any]
    ) -> list[Any] | None:
        """Return the k next states (B, 1, D), None if no kernel serves or a transform looks on.

        operands: each broadcasts to (B, 1, D); states: k arrays (B, 1, D), all of one dtype.
        """

    def remembered(self, cell: Any, input_t: Any) -> Any:
        """Return the step that `cell` remembers for such an input, a `backends.c.steps.Ready`.

        None if it remembers none; `remember` stores one, in backends that have `step_by_kernel`.
        """

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve as `parnl.solver.newton.newton` does, differentiable where the framework can.

        Operands may be of other dtypes than x0, whose dtype is the one to solve in.
        """

    def step_of(self, states: Any, step: int) -> Any:
        """Return states[:, step] of states (B, T, D); step: 0 or -1."""

    def line_of(self, time_axis: Any, inputs: Any, alike: str) -> Line:
        """Return the devices that share the axis of time, of which this one has `inputs`.

        alike: what has to be the same on all of them. Raises TypeError or ValueError.
        """

    def solve_along(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any], line: Any
    ) -> tuple[list[Any], list[Any], list[Any], Stats]:
        """Solve along a line of devices: (states of the own steps, before, after all, statistics).

        States before the own steps need no gradient.
        """

    def streams(self, arrays: Sequence[Any]) -> bool:
        """Whether a solve of these arrays may be cut into stretches unasked."""

    def followed(self, arrays: Sequence[Any]) -> bool:
        """Whether a gradient may be asked for of what is computed from these arrays."""

    def in_stretches(
        self, task: Any, fixed: Any, carry: Any, along: Any, length: int
    ) -> tuple[Any, Any]:
        """Apply `parnl.stretch.advance` to all stretches: (outputs, the last carry)."""

    def values(self) -> AbstractContextManager[Any]:
        """Return a context in which operations on values give values, whatever is traced."""

    def products(self, dtype: Any, array: Any) -> AbstractContextManager[Any]:
        """Return a context in which products of matrices are taken in `dtype` if that is faster.

        `dtype` is that of a solve's outputs, `array` on the device it runs on; only half precision
        changes anything.
        """

    def with_products(
        self, cell: Any, p: Any, inputs: Any, dtype: Any
    ) -> tuple[Program, Mapping[str, Any] | None]:
        """Return the cell's step, which may compute features itself, and all features it reads.

        None in their place: the cell's own, which are still to be computed, in `dtype`.
        """

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return the complex array re + i im; unlike that sum, for inf and NaN too."""

    def matmul(self, inputs: Any, matrix: Any) -> Any:
        """Return inputs (..., n) @ matrix (n, hidden); see `parnl.ops.matmul`."""

    def small_product(self, inputs: Any, matrix: Any) -> Any:
        """Return what `ops.matmul` does, by a fast path for arrays whose types are in `plain`.

        None where more has to be checked.
        """

    def input_sum(self, term: Any, inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels; see `parnl.ops.input_sum`."""


def get_backend(name: str) -> Backend:
    """Return the backend called `name`, importing its framework.

    name: one of NAMES, or the name of a module of the array API standard, "cupy" for instance.
    """
    if name not in NAMES:
        from parnl.backends import arrayapi

        return arrayapi.named(name)
    if name in loaded:
        return loaded[name]
    try:
        # statements, which torch.compile follows, unlike a call of importlib
        if name == "numpy":
            from parnl.backends import numpy

            return numpy.backend
        if name == "jax":
            from parnl.backends import jax

            return jax.backend
        from parnl.backends import torch

        return torch.backend
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == name:
            raise ModuleNotFoundError(
                f"backend {name!r} needs the package {name}: pip install 'parnl[{name}]'",
                name=error.name,
            ) from error
        raise


def name_of(array: Any) -> str | None:
    """Return the name of the framework that `array` belongs to, None if it is no array."""
    for name, recognise in _RECOGNISE.items():
        if recognise(array):
            return name
    # the type is asked, for a proxy has every attribute; array-api-compat knows CuPy's by itself
    standard = hasattr(type(array), "__array_namespace__")
    if not standard and not array_api_compat.is_cupy_array(array):
        return None
    from parnl.backends import arrayapi

    return arrayapi.backend_for(array_api_compat.array_namespace(array)).name


def backend_of(arrays: Iterable[tuple[str, Any]]) -> Backend:
    """Return the one backend of all (argument name, array) pairs.

    Raises TypeError, naming the arguments, if one is no array or they mix frameworks.
    """
    first: tuple[str, str] | None = None
    known = None
    for argument, array in arrays:
        if type(array) is known:
            continue
        known, name = type(array), name_of(array)
        if name is None:
            kind = f"{type(array).__module__}.{type(array).__name__}"
            hint = ""
            if kind.startswith("torch.fx."):
                hint = "; torch.fx.symbolic_trace cannot record a solve, torch.export.export can"
            raise TypeError(
                f"{argument}: expected an array of {', '.join(NAMES)}, or of another library of "
                f"the array API standard, got {kind}{hint}"
            )
        if first is None:
            first = (argument, name)
        elif name != first[1]:
            raise TypeError(
                f"{argument}: got {_a(name)} array, but {first[0]} is {_a(first[1])} array; "
                "all arrays of one call must come from one framework: "
                + _conversion((argument, name), first)
            )
    if first is None:
        raise TypeError("expected at least one array, got none")
    return get_backend(first[1])


def lenient(position: int, name: str) -> Callable[[F], F]:
    """Make a function run free of a framework's strict modes, where its argument `name` has some.

    They forbid how cells are written: in JAX by choice, and beside DTensors of PyTorch.
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            array = args[position] if len(args) > position else kwargs.get(name)
            params = args[position - 1] if len(args) >= position else kwargs.get("params")
            framework = _strict(array, params)
            if framework is None:
                return function(*args, **kwargs)
            backend: Any = get_backend(framework)
            with backend.lenient():
                return function(*args, **kwargs)

        return cast(F, run)

    return decorate


def _strict(array: Any, params: Any) -> str | None:
    """Return the framework whose strict modes are in the way, None if none is."""
    if name_of(array) == "jax":
        return "jax"
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    if kind is None or not isinstance(params, Mapping):
        return None
    kinds = {type(array), *map(type, params.values())}  # one or two
    return "torch" if any([issubclass(k, kind) for k in kinds]) else None


def telling(time_axis: Any, check: Callable[[], Found]) -> Found:
    """Return check(); if it fails, tell the devices that share the axis of time and wait for it."""
    try:
        return check()
    except Exception:
        if "torch" in sys.modules:  # JAX's devices run one program: it fails on all
            torch: Any = get_backend("torch")
            torch.refuse(time_axis)
        raise


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


# From one framework to another, as code; `_convert` knows of other libraries.
_CONVERT = {
    ("numpy", "jax"): "jnp.asarray({})",
    ("numpy", "torch"): "torch.from_numpy({})",
    ("torch", "jax"): "jnp.from_dlpack({}.detach())",
    ("jax", "torch"): "torch.from_dlpack({})",
}


def _convert(source: str, target: str) -> str:
    if (source, target) in _CONVERT:
        return _CONVERT[source, target]
    if source == "numpy":
        return f"{target}.asarray({{}})"
    into = {"jax": "jnp"}.get(target, target)
    return f"{into}.from_dlpack({{}}{'.detach()' if source == 'torch' else ''})"


def _conversion(one: tuple[str, str], first: tuple[str, str]) -> str:
    """Return how to convert one of two (argument, framework): NumPy's, or else not the first."""
    (argument, source), (_, target) = (first, one) if first[1] == "numpy" else (one, first)
    convert = _convert(source, target)
    if argument.startswith("parameter "):
        each = convert.format("a")
        return (
            f'make the parameters by cell.init(backend="{target}"), or convert them: '
            f"{{n: {each} for n, a in params.items()}}"
        )
    name = argument if argument.isidentifier() else "x"
    return f"convert {argument} by {convert.format(name)}"
