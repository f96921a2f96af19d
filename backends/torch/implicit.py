"""The implicit derivative of a solve, as one autograd function.

Backward: the step Jacobians J_t along the states, the adjoint recurrence solved backward in time by
the same solver, then one pass of vector-Jacobian products. What is kept for it are operands and
states, never iterates. Forward mode: the tangents obey a linear recurrence, which the same solver
solves. Both are written in terms of the solve, so they can be differentiated again, to any order,
but for forward mode of forward mode, which PyTorch does not follow through autograd functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch.autograd import forward_ad

from parnl.graph.program import Program, adjoint_program, affine_program
from parnl.solver.devices import Line
from parnl.solver.newton import Plan, Stats

if TYPE_CHECKING:
    from parnl.backends.torch.adaptor import TorchBackend

# Elements (B * time * D) that one elementwise pass of the backward works on: few enough that its
# intermediate results stay in the cache and count for nothing in memory.
_BLOCK = 1 << 16


def implicit_solve(
    kernels: TorchBackend,
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
) -> tuple[list[Tensor], Stats]:
    """Return states and statistics as `solver.newton.newton` does, differentiable in all arrays."""
    k = len(x0)
    if not followed([*x0, *operands]):
        return kernels.run(program, plan, operands, x0)
    out = _Solve.apply(kernels, program, plan, *x0, *operands)
    return list(out[:k]), Stats(*out[k:])


def followed(arrays: Sequence[Tensor]) -> bool:
    """Whether anyone asks for a derivative of what is computed from `arrays`, or maps over them.

    If not, there is no need of an autograd function: measured, 0.08 ms of a call's 0.4.
    """
    return transformed() or (torch.is_grad_enabled() and any(a.requires_grad for a in arrays))


def transformed() -> bool:
    """Whether there is forward mode, or a transform of `torch.func`."""
    level = torch._C._functorch.maybe_current_level()
    return level is not None or forward_ad._current_level >= 0


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(kernels: TorchBackend, program: Program, plan: Plan, *arrays: Tensor) -> tuple:
        k = len(program.states)
        states, stats = kernels.run(program, plan, arrays[k:], arrays[:k])
        return (*states, *stats)

    # which PyTorch asks for at each call; to find it anew takes 0.03 ms
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.kernels, ctx.program, ctx.plan, *arrays = inputs
        k = len(ctx.program.states)
        ctx.mark_non_differentiable(*output[k:])
        ctx.save_for_backward(*arrays, *output[:k])
        # Only then: what is saved here outlives an error in saving, and a checkpoint makes one on
        # purpose, to stop when it has computed again what is wanted.
        if transformed():
            ctx.save_for_forward(*arrays, *output[:k])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        program, plan, kernels = ctx.program, ctx.plan, ctx.kernels
        k = len(program.states)
        saved = ctx.saved_tensors
        x0, operands, states = saved[:k], saved[k:-k], saved[-k:]
        grads = list(cotangents[:k])
        if any(torch._C._functorch.is_legacy_batchedtensor(g) for g in grads):
            raise NotImplementedError(
                "parnl.solve: is_grads_batched=True is not supported; use torch.func.vmap of "
                "torch.func.vjp, or torch.func.jacrev"
            )
        wanted = [i for i in range(len(operands)) if ctx.needs_input_grad[3 + k + i]]
        of_x0, found = implicit_gradients(
            kernels, program, plan, operands, x0, states, grads, wanted
        )
        needed = ctx.needs_input_grad[3:]
        return (
            None, None, None,
            *(g if need else None for g, need in zip(of_x0, needed, strict=False)),
            *(found.get(i) for i in range(len(operands))),
        )  # fmt: skip

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple:
        levels = torch._C._functorch.get_interpreter_stack() or []
        if sum(level.key() == TransformType.Jvp for level in levels) > 1:
            # PyTorch would take the outer tangents of what is computed here for zero
            raise NotImplementedError(
                "parnl.solve: forward mode of forward mode is not supported; use torch.func.jacfwd "
                "of torch.func.jacrev, as torch.func.hessian does"
            )
        k, saved = len(ctx.program.states), ctx.saved_tensors
        x0, operands, states = saved[:k], saved[k:-k], saved[-k:]
        moving = tangents[3:]
        found = implicit_tangents(
            ctx.kernels, ctx.program, ctx.plan, operands, x0, states, moving[k:], moving[:k]
        )
        return (*found, *(None for _ in Stats._fields))

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *args: Any) -> tuple:
        kernels, program, plan, *arrays = args
        k, size = len(program.states), info.batch_size
        rows = max(
            (a.movedim(d, 0) if d is not None else a[None]).shape[1]
            for a, d in zip(arrays, in_dims[3:], strict=True)
        )

        def merged(array: Tensor, dim: int | None) -> Tensor:
            """(N, B, ...) -> (N * B, ...); what neither axis enters keeps its axis of length 1."""
            if dim is None and array.shape[0] == 1 and array.ndim == 3:
                return array
            array = array.movedim(dim, 0) if dim is not None else array[None]
            array = array.expand(size, rows, *array.shape[2:])
            return array.reshape(size * rows, *array.shape[2:])

        flat = [merged(a, d) for a, d in zip(arrays, in_dims[3:], strict=True)]
        out = _Solve.apply(kernels, program, plan, *flat)
        states = [s.reshape(size, rows, *s.shape[1:]) for s in out[:k]]
        return (*states, *out[k:]), (*([0] * k), *([None] * len(out[k:])))


def implicit_gradients(
    kernels: TorchBackend,
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
    states: Sequence[Tensor],
    grads: Sequence[Tensor],
    wanted: Sequence[int],
    line: Line | None = None,
    last: Sequence[Tensor] | None = None,
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """Return the gradients of x0 and of the operands `wanted`, in their shapes and dtypes.

    line: the processes that share the axis of time, if several do; x0 are then the states before
    the own steps. last: the gradients of the last states (B, D) besides.
    """
    back = plan.backward()
    written = None
    if not torch.is_grad_enabled():
        written = kernels.gradients(program, back, operands, x0, states, grads, wanted, line, last)
    if written is not None:
        of_x0, parts = written
        found = {i: _reduced(g, operands[i]) for i, g in zip(wanted, parts, strict=True)}
    else:
        worked = [cast(a, states[0].dtype) for a in operands]
        run = _Passes(kernels, program, plan, x0, worked, states, torch.is_grad_enabled())
        jacobian = run.jacobian()
        after = [torch.zeros_like(x) for x in x0] if last is None else last
        resets = run.resets()
        adjoint, given = adjoint_program(len(x0), bool(resets)), [*jacobian, *grads, *resets]
        if line is None:
            pulled, _ = implicit_solve(kernels, adjoint, back, given, after)
        else:
            pulled, _ = kernels.run(adjoint, back, given, after, line)
            after, _ = line.edges(pulled, after, back.reverse)
        del jacobian, given
        found = run.vjp(grads, pulled, after, wanted)
        of_x0 = [
            m[:, -1 if plan.reverse else 0] if m.shape[1] else a
            for m, a in zip(pulled, after, strict=True)
        ]
    return of_x0, {i: cast(g, operands[i].dtype) for i, g in found.items()}


def implicit_tangents(
    kernels: TorchBackend,
    program: Program,
    plan: Plan,
    operands: Sequence[Tensor],
    x0: Sequence[Tensor],
    states: Sequence[Tensor],
    of_operands: Sequence[Tensor | None],
    of_x0: Sequence[Tensor | None],
) -> list[Tensor]:
    """Return dx_t = J_t dx_{t-1} + (df/d operands) d operands for all t; None: does not move."""
    k, like = len(x0), states[0]
    run = _Passes(kernels, program, plan, x0, [cast(a, like.dtype) for a in operands], states, True)
    moving = {i: cast(d, like.dtype) for i, d in enumerate(of_operands) if d is not None}
    slopes_of = program.function("vjp", kernels, tuple(moving))
    forcing = []
    for i in range(k):
        unit = [torch.full_like(s, float(i == j)) for j, s in enumerate(states)]
        slopes = slopes_of(*run.arguments(0, plan.steps), *unit)
        total = torch.zeros_like(like)
        for slope, change in zip(slopes, moving.values(), strict=True):
            total = total + slope * change
        forcing.append(total)
    start = [torch.zeros_like(x) if d is None else d for x, d in zip(x0, of_x0, strict=True)]
    exact = plan._replace(max_iterations=None)
    resets = run.resets()
    affine, given = affine_program(k, bool(resets)), [*run.jacobian(), *forcing, *resets]
    return implicit_solve(kernels, affine, exact, given, start)[0]


class _Passes:
    """The elementwise passes of a derivative over all time steps.

    They run block by block into arrays made beforehand, or, when the derivative is itself being
    differentiated, in one piece (`whole`), so that autograd can follow.
    """

    def __init__(
        self,
        kernels: TorchBackend,
        program: Program,
        plan: Plan,
        x0: Sequence[Tensor],
        operands: Sequence[Tensor],
        states: Sequence[Tensor],
        whole: bool,
    ) -> None:
        self.kernels, self.program, self.reverse = kernels, program, plan.reverse
        self.x0, self.operands, self.states = x0, operands, states
        self.steps = states[0].shape[1]
        batch, channels = x0[0].shape
        self.block = self.steps if whole else max(1, _BLOCK // max(1, batch * channels))

    def spans(self) -> list[tuple[int, int]]:
        return [(i, min(i + self.block, self.steps)) for i in range(0, self.steps, self.block)]

    def arguments(self, start: int, stop: int) -> list[Tensor]:
        """States before the steps start..stop, and the operands at them."""
        before = [
            _shifted(x, s, start, stop, self.reverse)
            for x, s in zip(self.x0, self.states, strict=True)
        ]
        return [*before, *(a if a.shape[1] == 1 else a[:, start:stop] for a in self.operands)]

    def resets(self) -> list[Tensor]:
        """Where sequences begin anew, if they do: an operand of the linear programs too."""
        found = self.program.resets(self.operands)
        return [] if found is None else [found]

    def jacobian(self) -> list[Tensor]:
        """The k * k entries of the step Jacobian at every step, each (B, T, D)."""
        function = self.program.function("jacobian", self.kernels)
        like = self.states[0]
        if not self.steps:
            return [like] * len(self.program.jacobian)
        results: list[Tensor] = []
        for start, stop in self.spans():
            parts = [
                _expanded(j, like[:, start:stop]) for j in function(*self.arguments(start, stop))
            ]
            if len(self.spans()) == 1:
                return parts
            results = results or [torch.empty_like(like) for _ in parts]
            for whole, part in zip(results, parts, strict=True):
                whole[:, start:stop] = part
        return results

    def vjp(
        self,
        grads: Sequence[Tensor],
        pulled: Sequence[Tensor],
        after: Sequence[Tensor],
        wanted: Sequence[int],
    ) -> dict[int, Tensor]:
        """Cotangents of the operands `wanted`, where lambda_t = g_t + J_{t+1}^T lambda_{t+1}.

        after: the part of lambda that comes from after the last step.
        """
        if not self.steps:
            return {i: torch.zeros_like(self.operands[i]) for i in wanted}
        if not wanted:
            return {}
        function = self.program.function("vjp", self.kernels, tuple(wanted))
        results: dict[int, Tensor] = {}
        for start, stop in self.spans():
            later = [
                _shifted(z, m, start, stop, not self.reverse)
                for z, m in zip(after, pulled, strict=True)
            ]
            adjoint = [g[:, start:stop] + m for g, m in zip(grads, later, strict=True)]
            parts = function(*self.arguments(start, stop), *adjoint)
            for i, part in zip(wanted, parts, strict=True):
                operand = self.operands[i]
                part = _reduced(_expanded(part, adjoint[0]), operand)
                if len(self.spans()) == 1:
                    results[i] = part
                elif operand.shape[1] == 1:
                    results[i] = part if start == 0 else results[i].add_(part)
                else:
                    whole = results.setdefault(i, torch.empty_like(operand))
                    whole[:, start:stop] = part
        return results


def _shifted(edge: Tensor, x: Tensor, start: int, stop: int, backward: bool) -> Tensor:
    """Return x_{t-1} (x_{t+1} if `backward`) for t in start..stop; `edge` (B, D) stands outside."""
    if backward:
        if stop < x.shape[1]:
            return x[:, start + 1 : stop + 1]
        return torch.cat([x[:, start + 1 :], edge[:, None]], dim=1)
    if start > 0:
        return x[:, start - 1 : stop - 1]
    return torch.cat([edge[:, None], x[:, : stop - 1]], dim=1)


def _expanded(x: Any, like: Tensor) -> Tensor:
    if isinstance(x, float):
        return torch.full_like(like, x)
    return x if x.shape == like.shape else x.expand(like.shape)


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x in `dtype`; if it is already, `Tensor.to` takes ten times as long to find out."""
    return x if x.dtype == dtype else x.to(dtype)


def _reduced(x: Tensor, operand: Tensor) -> Tensor:
    """Sum x (B, t, D) over the axes along which `operand` was broadcast."""
    axes = [i for i in range(3) if operand.shape[i] == 1 and x.shape[i] != 1]
    return x.sum(axes, keepdim=True) if axes else x
