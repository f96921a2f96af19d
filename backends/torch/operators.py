"""Solves as operators of PyTorch, `parnl::solve` and `parnl::gradients`, for `torch.compile`.

They serve wherever a solve is recorded, whether or not it is also run: for `torch.compile`,
`torch.export`, `make_fx`, `torch.func.functionalize`, and tensors without values (`FakeTensor`, the
device "meta"). A graph holds tensors, numbers and the text of its program. So it can be saved, and
run by any process that has imported `parnl.torch`, whatever cells that process knows. On a device,
an operator does what the backend does there. First derivatives only, as in any compiled graph;
elsewhere `implicit` serves, which goes to any order.

TorchScript's tracer, and the old ONNX exporter that is built on it, are refused: they record only
ATen's operations, and would take a kernel's results for memory that nobody fills. A CUDA graph
records kernels themselves, so there the kernels serve as they are.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

from parnl.backends.torch.arrays import PLAIN, readable
from parnl.backends.torch.divided import is_divided
from parnl.backends.torch.implicit import implicit_gradients, transformed
from parnl.frameworks import get_backend
from parnl.graph.program import Program
from parnl.solver.newton import Plan, Stats


def recorded(arrays: Sequence[Tensor] = ()) -> bool:
    """Whether what is done to `arrays` is recorded, or handled by their own class in Python.

    Raises NotImplementedError where the recorder cannot follow an operator.
    """
    if torch.compiler.is_compiling():
        return True
    if torch._C._get_tracing_state() is not None:
        raise NotImplementedError(
            "parnl.solve: torch.jit.trace and torch.onnx.export(dynamo=False) cannot record it; "
            "use torch.export.export, or parnl.torch.export_onnx"
        )
    modes = torch._C._TorchDispatchModeKey
    if any(torch._C._get_dispatch_mode(mode) is not None for mode in (modes.FAKE, modes.PROXY)):
        return True
    if torch._ops._get_dispatch_mode_pre_dispatch(modes.PROXY) is not None:
        return True
    if torch._C._functorch.maybe_current_level() is not None:
        levels = torch._C._functorch.get_interpreter_stack() or []
        if any(level.key() == TransformType.Functionalize for level in levels):
            return True
    return any(
        a.is_meta
        or (
            type(a) not in PLAIN
            and torch._C._dispatch_keys(a).has("Python")
            and not is_divided([a])
        )
        for a in arrays
    )


def unobserved() -> bool:
    """Whether what is done to plain tensors is done by PyTorch alone: as it is asked, on values."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if transformed() or _get_current_dispatch_mode() is not None:
        return False
    proxy = torch._C._TorchDispatchModeKey.PROXY
    return torch._ops._get_dispatch_mode_pre_dispatch(proxy) is None


def operator_solve(
    program: Program, plan: Plan, operands: Sequence[Tensor], x0: Sequence[Tensor]
) -> tuple[list[Tensor], Stats]:
    """Solve as `implicit_solve` does, as one operator of a graph that is being compiled.

    Raises NotImplementedError in forward mode: PyTorch would take an operator's tangents for zero.
    """
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "parnl.solve: forward mode is not supported in what is being compiled or recorded "
            "(torch.compile, torch.func.linearize); use torch.func.jvp outside of it"
        )
    k = len(x0)
    *told, _ = plan  # who has decided the chunks is not part of what is saved
    out = solve_operator(program.text, *told, list(x0), list(operands))
    return out[:k], Stats(*(x.detach() for x in out[k:]))


@torch.library.custom_op("parnl::solve", mutates_args=())
def solve_operator(
    program: str,
    steps: int,
    chunks: int,
    epsilon: float,
    tolerance: float | None,
    max_iterations: int | None,
    reverse: bool,
    backward_chunks: int | None,
    x0: Sequence[Tensor],
    operands: Sequence[Tensor],
) -> list[Tensor]:
    """Return the k states (B, T, D), then the statistics."""
    kernels: Any = get_backend("torch")
    plan = Plan(steps, chunks, epsilon, tolerance, max_iterations, reverse, backward_chunks)
    states, stats = kernels.run(Program.of_text(program), plan, operands, x0)
    return _apart([*states, *stats], [*x0, *operands])


@solve_operator.register_fake
def _(
    program: str,
    steps: int,
    chunks: int,
    epsilon: float,
    tolerance: float | None,
    max_iterations: int | None,
    reverse: bool,
    backward_chunks: int | None,
    x0: Sequence[Tensor],
    operands: Sequence[Tensor],
) -> list[Tensor]:
    like = x0[0]
    batch, channels = like.shape
    states = [like.new_empty(batch, steps, channels) for _ in x0]
    types = (torch.int32, like.dtype, like.dtype, torch.bool, torch.int32)
    return [*states, *(like.new_empty((), dtype=t) for t in types)]


@torch.library.custom_op("parnl::gradients", mutates_args=())
def gradients_operator(
    program: str,
    steps: int,
    chunks: int,
    epsilon: float,
    tolerance: float | None,
    max_iterations: int | None,
    reverse: bool,
    backward_chunks: int | None,
    x0: Sequence[Tensor],
    operands: Sequence[Tensor],
    states: Sequence[Tensor],
    grads: Sequence[Tensor],
    wanted: Sequence[int],
) -> list[Tensor]:
    """Return the gradients of x0, then those of the operands `wanted`; the plan is the solve's."""
    kernels: Any = get_backend("torch")
    plan = Plan(steps, chunks, epsilon, tolerance, max_iterations, reverse, backward_chunks)
    of_x0, found = implicit_gradients(
        kernels, Program.of_text(program), plan, operands, x0, states, grads, wanted
    )
    given = [*x0, *operands, *states, *grads]
    return _apart([*of_x0, *(found[i] for i in wanted)], given)


@gradients_operator.register_fake
def _(
    program: str,
    steps: int,
    chunks: int,
    epsilon: float,
    tolerance: float | None,
    max_iterations: int | None,
    reverse: bool,
    backward_chunks: int | None,
    x0: Sequence[Tensor],
    operands: Sequence[Tensor],
    states: Sequence[Tensor],
    grads: Sequence[Tensor],
    wanted: Sequence[int],
) -> list[Tensor]:
    return [a.new_empty(a.shape) for a in [*x0, *(operands[i] for i in wanted)]]


def _setup_context(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    *ctx.fixed, x0, operands = inputs
    ctx.save_for_backward(*x0, *operands, *output[: len(x0)])
    ctx.k = len(x0)


def _backward(ctx: Any, cotangents: list[Tensor | None]) -> tuple:
    k, saved = ctx.k, ctx.saved_tensors
    x0, operands, states = saved[:k], saved[k:-k], saved[-k:]
    grads = [
        torch.zeros_like(s) if c is None else c for c, s in zip(cotangents, states, strict=False)
    ]
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[-1]) if needed]
    found = gradients_operator(*ctx.fixed, list(x0), list(operands), list(states), grads, wanted)
    by_operand = dict(zip(wanted, found[k:], strict=True))
    of_operands = [by_operand.get(i) for i in range(len(operands))]
    return (*(None for _ in ctx.fixed), found[:k], of_operands)


solve_operator.register_autograd(_backward, setup_context=_setup_context)


def _apart(found: list[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """An operator's results are row-major and share no memory with one another or its arguments."""
    known = {a.untyped_storage().data_ptr() for a in given}
    results = []
    for x in found:
        x = readable(x).contiguous()  # a compiled graph reads it by its address, too
        if x.untyped_storage().data_ptr() in known:
            x = x.clone()
        known.add(x.untyped_storage().data_ptr())
        results.append(x)
    return results
