"""PyTorch operations and the two runs over chunks, composed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import array_api_compat.torch as xp
import torch
from torch.utils.checkpoint import checkpoint

from parnl.backends.c.calls import compiled_device
from parnl.backends.c.steps import CompiledSteps
from parnl.backends.composed import COMPOSED, in_rows, input_sum, together
from parnl.backends.torch import arrays, divided, memory, stretches
from parnl.backends.torch.implicit import cast, followed, implicit_solve
from parnl.backends.torch.operators import operator_solve, recorded, unobserved
from parnl.backends.torch.threads import openmp
from parnl.backends.triton import calls as triton_calls
from parnl.dtypes import is_half
from parnl.frameworks import constant, loaded, plain
from parnl.graph.flatcode import array_functions
from parnl.graph.program import Program
from parnl.solver.cost import Device
from parnl.solver.devices import Line
from parnl.solver.newton import Plan, Stats


def _with_numbers(function: Callable[..., Any], name: str) -> Callable[[Any, Any], Any]:
    """torch.minimum and torch.maximum refuse Python numbers, torch.clamp takes them."""

    def either(a: Any, b: Any) -> Any:
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return function(a, b)
        tensor, number = (a, b) if isinstance(a, torch.Tensor) else (b, a)
        return torch.clamp(tensor, **{name: number})

    return either


# What the forms of `parnl.graph.operations` name.
_SCOPE = {
    "torch": torch,
    "minimum": _with_numbers(torch.minimum, "max"),
    "maximum": _with_numbers(torch.maximum, "min"),
    # new_tensor refuses tensors that are negated lazily
    "number": lambda x, like: torch.tensor(x, dtype=like.dtype, device=like.device),
}


@constant
def _device(device: torch.device, dtype: torch.dtype) -> tuple[int, float, int, int]:
    if backend.compiles(torch.empty(0, device=device, dtype=dtype)):
        lanes, price, crowd, cache = compiled_device(dtype, backend.threads(), price=2500.0)
        return lanes, price, crowd, cache
    return (1 << 16 if device.type == "cpu" else 1 << 20), COMPOSED, 0, 0


@constant
def _made(text: str) -> bool:
    """Make the step of a program, which Dynamo cannot follow: it may be traced from then on."""
    Program.of_text(text).function("step", backend)
    return True


@constant
def _autocasts(kind: str) -> bool:
    """Whether `torch.autocast` knows this kind of device; Dynamo of PyTorch 2.10 cannot ask."""
    return torch.amp.is_autocast_available(kind)


def _devices() -> Any:
    """Return the module that needs torch.distributed, which takes a while to import."""
    from parnl.backends.torch import devices

    return devices


_RECORDED = 8  # input channels at a time in a recorded program, whose sizes may be free


class TorchBackend(CompiledSteps):
    """See `parnl.backends.Backend`."""

    name = "torch"
    xp = xp
    functions: dict[str, Any] = {
        **array_functions("torch", _SCOPE),
        "addcmul": torch.addcmul,
        "number": _SCOPE["number"],
    }

    take = staticmethod(arrays.take)
    usual = staticmethod(arrays.usual)

    def asarray(self, value: Any, dtype: str, device: Any = None) -> torch.Tensor:
        """Return `value` as a tensor, on `device` or torch's default device."""
        return torch.asarray(value).to(dtype=getattr(torch, dtype), device=device)

    def to_numpy(self, array: torch.Tensor) -> Any:
        """Return the tensor's values, on the CPU and without gradient."""
        return array.numpy(force=True)

    def device(self, array: torch.Tensor) -> Device:
        """Return the measured number of elements at which an operation's fixed cost is small."""
        if triton_calls.serves(array):
            return triton_calls.device(array)
        return Device(*_device(array.device, array.dtype))

    def readable(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor, or a copy where address and strides would not tell what it holds."""
        return arrays.readable(array)

    def address(self, array: torch.Tensor) -> int:
        """Return the address of the first element.

        Raises TypeError for a tensor without values, where a kernel would read address 0.
        """
        address = array.data_ptr()
        if not address and array.numel():
            raise TypeError(f"{type(array).__name__} has no values to compute with")
        return address

    def strides(self, array: torch.Tensor) -> tuple[int, ...]:
        """Return the strides in elements."""
        return array.stride()

    def on_cpu(self, array: torch.Tensor) -> bool:
        """Return whether the tensor is in the processor's memory."""
        return array.device.type == "cpu"

    def contiguous(self, array: torch.Tensor) -> torch.Tensor:
        """Return the tensor in row-major order."""
        return array.contiguous()

    def empty(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Return a tensor to be written to; see `memory`."""
        return memory.empty(shape, like)

    several_like = staticmethod(arrays.several_like)
    addresses = staticmethod(arrays.addresses)
    unobserved = staticmethod(unobserved)

    def threads(self) -> int:
        """Return torch's own number of threads."""
        return torch.get_num_threads()

    def team(self) -> int:
        """Return the address by which PyTorch's threads are asked, 0 if they cannot be."""
        return openmp()

    def step(self, program: Program) -> Callable[..., tuple[Any, ...]]:
        """Return the program's step over tensors."""
        _made(program.text)
        return super().step(program)

    def concrete(self, array: torch.Tensor) -> Any:
        """Return the values, None under a functorch transform and while being recorded."""
        if recorded([array]) or torch._C._functorch.maybe_current_level() is not None:
            return None
        return self.to_numpy(array)

    def running_max(self, x: torch.Tensor) -> torch.Tensor:
        """Return the running maximum of x along axis 1."""
        return torch.cummax(x, dim=1).values

    def solve(
        self, program: Program, plan: Plan, operands: Sequence[Any], x0: Sequence[Any]
    ) -> tuple[list[Any], Stats]:
        """Solve, with implicit gradients of every order."""
        if divided.is_divided([*operands, *x0]):
            return divided.solve(self, program, plan, operands, x0)
        if recorded([*operands, *x0]):
            return operator_solve(program, plan, operands, x0)
        return implicit_solve(self, program, plan, operands, x0)

    @torch._disable_dynamo  # imports the compiler when it is called, `torch.compiler.disable` now
    def line_of(self, time_axis: Any, inputs: torch.Tensor, alike: str) -> Line:
        """See `devices.line_of`."""
        return _devices().line_of(time_axis, inputs, alike)

    def refuse(self, time_axis: Any) -> None:
        """See `devices.refuse`."""
        if torch.distributed.is_available():
            _devices().refuse(time_axis)

    @torch._disable_dynamo
    def solve_along(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        line: Any,
    ) -> tuple[list[Any], list[Any], list[Any], Stats]:
        """Solve along a line of processes, differentiable once; see `devices`."""
        return _devices().solve_along(self, program, plan, operands, x0, line)

    def run(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        line: Line | None = None,
    ) -> tuple[list[Any], Stats]:
        """Solve, without gradients; line: the processes that share the axis of time."""
        if line is None and triton_calls.serves(x0[0], plan.chunks):
            # it reads operands of any dtype
            operands, x0 = ([arrays.readable(a) for a in group] for group in (operands, x0))
            return triton_calls.solve(program, plan, operands, x0)
        return self.newton(program, plan, [cast(a, x0[0].dtype) for a in operands], x0, line)

    def gradients(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        states: Sequence[Any],
        grads: Sequence[Any],
        wanted: Sequence[int],
        line: Line | None = None,
        last: Sequence[Any] | None = None,
    ) -> tuple[list[Any], list[Any]] | None:
        """Return the gradients of x0, and of the operands `wanted`, before they are summed.

        None where no kernel serves.
        """
        if line is None and triton_calls.serves(states[0], plan.chunks):
            operands, x0, states, grads = (
                [arrays.readable(a) for a in xs] for xs in (operands, x0, states, grads)
            )
            return triton_calls.gradients(program, plan, operands, x0, states, grads, wanted)
        operands = [cast(a, x0[0].dtype) for a in operands]
        return super().gradients(program, plan, operands, x0, states, grads, wanted, line, last)

    def streams(self, arrays: Sequence[Any]) -> bool:
        """Whether no recorder or transform would see many small solves in place of one."""
        if divided.is_divided(arrays):
            return False
        return not recorded(arrays) and torch._C._functorch.maybe_current_level() is None

    def followed(self, arrays: Sequence[Any]) -> bool:
        """See `implicit.followed`: what features close over is not among the arrays."""
        return followed(arrays)

    def in_stretches(
        self, task: Any, fixed: Any, carry: Any, along: Any, length: int
    ) -> tuple[Any, Any]:
        """See `stretches`."""
        recompute = torch.is_grad_enabled() and self.streams(carry[0])
        return stretches.in_stretches(self, task, fixed, carry, along, length, recompute=recompute)

    def values(self) -> AbstractContextManager[Any]:
        """Return a context in which no graph is made."""
        return torch.no_grad()

    def products(self, dtype: Any, array: Any) -> AbstractContextManager[Any]:
        """Return `torch.autocast` for half precision where the device has it."""
        kind = array.device.type
        if is_half(dtype) and _autocasts(kind):
            return torch.autocast(kind, dtype)
        return nullcontext()

    def with_products(self, cell: Any, p: Any, inputs: Any, dtype: Any) -> tuple[Program, None]:
        """Return the cell's own step and features."""
        return cell.program, None

    def complex_numbers(self, re: Any, im: Any) -> Any:
        """Return re + i im."""
        return torch.complex(re, im)

    def matmul(self, inputs: Any, matrix: Any) -> Any:
        """Return inputs @ matrix."""
        if divided.is_divided([inputs, matrix]):
            return divided.matmul(inputs, matrix)
        return in_rows(memory.matmul, inputs, matrix)

    small_product = staticmethod(memory.small_product)

    def lenient(self) -> AbstractContextManager[Any]:
        """Return a context in which plain tensors may stand beside DTensors."""
        return divided.mixed()

    def step_of(self, states: torch.Tensor, step: int) -> torch.Tensor:
        """Return states[:, step]."""
        return divided.step_of(states, step) if divided.is_divided([states]) else states[:, step]

    def input_sum(self, term: Callable[..., Any], inputs: Any, matrices: Sequence[Any]) -> Any:
        """Sum `term` over the input channels, a few at a time; computed again for the gradient."""
        hidden = torch._C._functorch.maybe_current_level() is not None
        recompute = torch.is_grad_enabled() and not hidden  # transforms refuse the hooks it needs
        few = together(inputs, matrices)
        if torch.compiler.is_compiling():  # or what is recorded would hold for this size alone
            few = _RECORDED
        if not recompute:
            return input_sum(xp, term, inputs, matrices, few)
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return input_sum(xp, term, inputs, matrices, few, again)


backend = TorchBackend()
loaded["torch"] = backend
plain.update(dict.fromkeys(arrays.PLAIN, backend))
