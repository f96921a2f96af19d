"""The two runs over chunks, and the backward run, in generated C on the CPU.

Serves NumPy and PyTorch: arrays are passed as addresses and strides, nothing is copied. What C
cannot do (another device or dtype, no compiler) is left to the composed path of `ComposedKernels`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from parnl.backends import arrays
from parnl.backends.arrays import Memory
from parnl.backends.c import build
from parnl.backends.c.kernel import CHANNEL, FULL, SCALAR, TIME, CKernel, Lanes, fields
from parnl.backends.c.processors import last_cache, processors
from parnl.backends.c.text import source
from parnl.backends.composed import ComposedKernels
from parnl.graph.program import Program, adjoint_program
from parnl.solver.cost import Device
from parnl.solver.devices import Along, Line
from parnl.solver.newton import Kernels, Plan, Stats, newton

Found = TypeVar("Found")


class CompiledKernels(ComposedKernels):
    """C in place of `ComposedKernels` where it serves; subclasses add `address`, `threads`."""

    @abstractmethod
    def device(self, array: Any) -> Device:
        """See `newton.Kernels`."""

    @abstractmethod
    def readable(self, array: Any) -> Any:
        """See `arrays.Memories`."""

    @abstractmethod
    def address(self, array: Any) -> int:
        """See `arrays.Memories`."""

    @abstractmethod
    def strides(self, array: Any) -> tuple[int, ...]:
        """See `arrays.Memories`."""

    @abstractmethod
    def on_cpu(self, array: Any) -> bool:
        """Return whether the array's memory is the processor's."""

    @abstractmethod
    def contiguous(self, array: Any) -> Any:
        """See `arrays.Memories`."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...], like: Any) -> Any:
        """Return an array to be written to, of the dtype of `like` and on its device."""

    def threads(self) -> int:
        """Return how many threads a kernel may use."""
        return processors()

    def team(self) -> int:
        """Return the address of GOMP_parallel of the framework's threads, 0 if it has none."""
        return 0

    def compiles(self, array: Any) -> bool:
        """Whether C serves arrays like this one."""
        return (
            build.wanted()
            and self.on_cpu(array)
            and dtype_name(array.dtype) in ("float32", "float64")
            and build.available()
        )

    def newton(
        self,
        program: Program,
        plan: Plan,
        operands: Sequence[Any],
        x0: Sequence[Any],
        line: Line | None = None,
    ) -> tuple[list[Any], Stats]:
        """Return what `solver.newton.newton` does, by C where it serves, else composed.

        line: the devices that share the axis of time, if several do.
        """

        def advance(
            program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
        ) -> tuple[list[Any], list[Any]]:
            return Call(self, program, plan, "advance", operands, starts).run()

        def trajectory(
            program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
        ) -> tuple[list[Any], list[Any]]:
            return Call(self, program, plan, "trajectory", operands, starts).run()

        def solve(kernels: Any) -> tuple[list[Any], Stats]:
            kernels = kernels if line is None else Along(kernels, line)
            return newton(kernels, program, plan, operands, x0)

        compiled = _Runs(self, advance, trajectory)
        found = self.in_c(x0[0], lambda: solve(compiled), line)
        return solve(self) if found is None else found

    def in_c(self, like: Any, solve: Callable[[], Found], line: Line | None) -> Found | None:
        """Return solve(), None where C cannot be had: decided here, once for a whole solve.

        With several devices, none can start over alone.
        """
        if not self.compiles(like):
            return None
        try:
            return solve()
        except build.BuildError:  # which has been said
            if build.choice() == "c" or line is not None:
                raise
            return None

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

        None if the kernels cannot be had, or do not serve arrays like these.

        `plan` is the backward run's, from the last step of the forward run to its first. The step's
        Jacobian is computed again on the way, which costs less than to store and read it. An
        operand's gradient is (B, T, D), (B, C, D) where the operand does not depend on time, and
        (B, T, parts) where it is the same for all channels, see `kernel.Lanes`.
        line, last: see `backward`.
        """

        def solve() -> tuple[list[Any], list[Any]]:
            fixed = {
                "x0": [arrays.whole(self, x) for x in x0],
                "state": [arrays.whole(self, x) for x in states],
                "g": [arrays.rows(self, g) for g in grads],
            }

            def run(kind: str, plan: Plan, starts: Sequence[Any]) -> tuple[list[Any], list[Any]]:
                asked = tuple(wanted) if kind == "backward" else ()
                call = Call(self, program, plan, kind, operands, starts, asked)
                call.backward(fixed)
                return call.run()

            return backward(self, run, plan, x0, program.resets(operands), line, last)

        return self.in_c(x0[0], solve, line)


# A run backward over chunks, from the adjoint at their starts (B, C, D). "adjoint", of the first
# C - 1: (ends, products); "backward": (ends, gradients of operands).
Run = Callable[[str, Plan, Sequence[Any]], tuple[list[Any], list[Any]]]


def backward(
    kernels: Kernels,
    run: Run,
    plan: Plan,
    x0: Sequence[Any],
    resets: Any = None,
    line: Line | None = None,
    last: Sequence[Any] | None = None,
) -> tuple[list[Any], list[Any]]:
    """Solve the adjoint recurrence: (gradients of x0, gradients of operands as `run` gives them).

    It is the same algorithm as forward; its last run writes gradients in place of states. resets:
    (B, T, 1), where sequences begin anew, if they do. line: the devices that share the axis of
    time, if several do; x0 is then what comes before the own steps, of which these are the
    gradients. last: the gradients of the last states besides, (B, D).
    """
    k = len(x0)
    begin = [kernels.xp.zeros_like(x) for x in x0] if last is None else last
    adjoint = adjoint_program(k, resets is not None)
    given = [resets if o.kind == "reset" else None for o in adjoint.operands]  # `run` has the rest

    def advance(
        program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        return run("adjoint", plan, starts)

    def trajectory(
        program: Program, plan: Plan, operands: Sequence[Any], starts: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        ends, found = run("backward", plan, starts)
        return [*(e[:, -1:] for e in ends), *found], ends

    runs: Any = _Runs(kernels, advance, trajectory)
    if line is not None:
        runs = Along(runs, line)
    found, _ = newton(runs, adjoint, plan, given, begin)
    return [x[:, 0] for x in found[:k]], found[k:]


class _Runs:
    """Kernels as `newton` wants them, of a backend but for their runs over chunks."""

    def __init__(self, kernels: Kernels, advance: Callable, trajectory: Callable) -> None:
        self.name, self.functions, self.xp = kernels.name, kernels.functions, kernels.xp
        self.running_max, self.unwritten = kernels.running_max, kernels.unwritten
        self.while_loop, self.cond, self.device = kernels.while_loop, kernels.cond, kernels.device
        self.line = kernels.line
        self.advance, self.trajectory = advance, trajectory


class Call:
    """One call of a kernel: its arrays, and the table of numbers it reads them from."""

    def __init__(
        self,
        kernels: CompiledKernels,
        program: Program,
        plan: Plan,
        kind: str,
        operands: Sequence[Any],
        starts: Sequence[Any],
        wanted: tuple[int, ...] = (),
    ) -> None:
        self.kernels, self.plan = kernels, plan
        self.like = starts[0]
        batch, count, channels = self.like.shape
        read = [arrays.rows(kernels, a) for a in operands]
        self.layouts = "".join([letter(m.shape) for m in read])
        self.given = {"op": read, "start": [arrays.whole(kernels, s) for s in starts]}
        self.numbers = {
            "opb": [0 if len(m.shape) == 1 or m.shape[0] == 1 else m.strides[0] for m in read],
            "opt": [0 if len(m.shape) == 1 or m.shape[1] == 1 else m.strides[1] for m in read],
        }
        dtype = dtype_name(self.like.dtype)
        lanes = grouped(kind, channels, batch * count, kernels.threads())
        self.kernel = CKernel(program, kind, dtype, self.layouts, lanes, wanted)
        self.shapes = results(self.kernel, plan, starts)
        self.function = function_of(self.kernel)
        if self.function is None:
            raise build.BuildError("the C compiler failed on a kernel; set PARNL_KERNELS=off")

    def backward(self, fixed: dict[str, list[Memory]]) -> None:
        """Add what a backward run reads: "x0" and "state", whole, and "g", the states' gradients.

        The gradients are (B, T, D) with any strides but along D.
        """
        self.given |= fixed
        self.numbers["gb"] = [g.strides[0] for g in fixed["g"]]
        self.numbers["gt"] = [g.strides[1] for g in fixed["g"]]

    def run(self) -> tuple[list[Any], list[Any]]:
        """Call the kernel; return its two groups of results."""
        plan, like, empty = self.plan, self.like, self.kernels.empty
        made = {
            name: [empty(shape, like) for shape in shapes] for name, shapes in self.shapes.items()
        }
        sizes = [*like.shape, plan.steps, plan.length, plan.reverse]
        most, team = self.kernels.threads(), self.kernels.team()
        threads = worthwhile(self.kernel, plan, like.shape, most, waiting=team > 0)
        # OpenMP ends the threads that a smaller team has no use for
        table = [*map(int, sizes), most if team and threads > 1 else threads, team]
        for name, size in fields(self.kernel):
            if name in self.numbers:
                entries = self.numbers[name]
            elif name in self.given:
                entries = [m.address for m in self.given[name]]
            else:
                entries = [self.kernels.address(x) for x in made[name]]
            assert len(entries) == size, name
            table += entries
        numbers = array("q", table)
        self.function(numbers.buffer_info()[0])
        first, second = made.values()
        return first, second


def function_of(kernel: CKernel) -> Any:
    """Return the kernel, made when it is first asked for; None if it cannot be had."""
    key = ("c", *kernel[1:])
    return kernel.program.cached(key, lambda: build.load(source(kernel)))


def results(kernel: CKernel, plan: Plan, starts: Sequence[Any]) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes of what a kernel writes, by the names of `kernel.fields`."""
    k, each = len(starts), tuple(starts[0].shape)
    batch, _, channels = each
    whole = (batch, plan.steps, channels)
    match kernel.kind:
        case "trajectory":
            return {"out": [whole] * k, "end": [each] * k}
        case "backward":
            # summed over the chunk where the operand does not depend on time, and over the channels
            # of a part where it is the same for all
            shared = (batch, plan.steps, kernel.lanes.parts(channels))
            of = {FULL: whole, TIME: shared, CHANNEL: each, SCALAR: each}
            return {"end": [each] * k, "grad": [of[kernel.layouts[i]] for i in kernel.wanted]}
    return {"end": [each] * k, "prod": [each] * (k * k)}


@cache
def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype, "float32" for instance, of any framework."""
    return str(dtype).removeprefix("torch.")


def compiled_device(dtype: Any, threads: int, price: float) -> Device:
    """Return what keeps the processor busy: one vector of 64 bytes for each thread, better two.

    Measured on one thread: an element of a row of 8, 16, 32 channels takes 4.8, 2.7, 1.9 ns. On two
    threads, a GRU of one sequence and 2, 8, 16, 32 channels in 32, 8, 4, 2 guessed chunks takes
    0.2, 0.43, 0.62, 0.6 of the plain loop's time. On so few, an operation of a step takes 1.1
    to 1.8 ns; `price` tells how many of them a small array's operation takes in the framework:
    NumPy 1.5 to 3 us, PyTorch 4 to 6 us, compiled by XLA 0.2 us.
    """
    width = 8 if "64" in dtype_name(dtype) else 16
    return Device(width * threads, price, 2 * width * threads, last_cache())


def worthwhile(
    kernel: CKernel, plan: Plan, shape: Sequence[int], threads: int, waiting: bool
) -> int:
    """Return how many threads to use for starts of `shape` (B, C, D), at most `threads`.

    Measured: to make a thread and wait for it takes 0.1 ms, and a tenth of that if it waits for
    work. An operation of a step takes 0.03 ns for each element, and to read and write it 0.1 ns for
    each array.
    """
    batch, chunks, channels = shape
    if threads == 1:
        return 1
    lanes = max(batch * chunks * channels, 16)  # fewer take as long: it is one vector
    passes = 1 if kernel.kind == "trajectory" else 2
    each = passes * (0.03 * kernel.program.cost + 0.1 * len(kernel.layouts))
    return max(1, min(threads, int((1e-4 if waiting else 1e-5) * each * lanes * plan.length)))


def layout(operand: Any) -> str:
    """Return the letter of `c.kernel` for the axes that the operand has."""
    return letter(operand.shape)


def letter(shape: Sequence[int]) -> str:
    """As `layout`, of a shape (B, T, D) or (D,)."""
    if len(shape) == 1 or shape[1] == 1:
        return SCALAR if shape[-1] == 1 else CHANNEL
    return TIME if shape[2] == 1 else FULL


def grouped(kind: str, channels: int, rows: int, threads: int) -> Lanes:
    """Return how the lanes of `rows` sequences and chunks of `channels` each are grouped.

    A backward run holds twice as many numbers for each lane: at most 32 (measured: 1.1 to 1.5 times
    faster than 64).
    """
    most, span = 32 if kind in ("adjoint", "backward") else 64, math.gcd(channels, 8)
    # a few channels of many rows are staged: alone they make no full vector
    alone = channels % 8 == 0 and channels <= 128 and (channels >= 16 or rows < 4 * threads)
    if alone or channels >= most:
        group = channels if alone and channels % most else most
        rest = channels % group
        return Lanes(group, span, True, rest > 0, group < channels)
    group = 16 if rows * channels <= 16 * threads else 32
    return Lanes(group, span, False, True)
