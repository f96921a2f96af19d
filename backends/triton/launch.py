"""What a launch of a Triton kernel is given, whatever the framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

from parnl.backends.triton import build
from parnl.backends.triton.build import Pointer
from parnl.backends.triton.text import Kernel
from parnl.graph.flatcode import absent
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program, adjoint_program
from parnl.solver.cost import Device, updates_worth
from parnl.solver.newton import Plan, Stats

LEAST = (3, 6)  # the oldest Triton, as in pyproject.toml
CHUNKS = 2048  # the most that a program instance holds, several of them in a thread
FEWER = 256  # the most that are chosen where the caller does not say how many
PRICE = 4.0  # of an operation between runs, next to one of a step: both are in one launch

Shape = tuple[int, ...]


@cache
def importable() -> str:
    """Return "" if there is a Triton that serves, else why not."""
    try:
        import triton
    except ImportError as error:
        return str(error)
    major, minor, *_ = triton.__version__.split(".")
    if (int(major), int(minor)) < LEAST:
        return f"Triton {triton.__version__} is too old, {LEAST[0]}.{LEAST[1]} is the oldest"
    return ""


def unsupported(program: Program) -> str:
    """Return why Triton cannot run the program, "" if it can."""
    missing = absent([*program.outputs, *program.jacobian], forms())
    return f"Triton has no form of {', '.join(missing)}" if missing else ""


@cache
def forms() -> dict[str, str]:
    """Return the operations that Triton has, and how they are written."""
    found = {}
    for name, operation in OPERATIONS.items():
        try:
            found[name] = operation.form("triton")
        except NotImplementedError:
            continue
    return found


def instances(tiled: tuple[int, int, int], batch: int, channels: int) -> int:
    """Return how many program instances a launch has."""
    return batch * -(-channels // tiled[1])


def arguments(
    kernel: Kernel,
    plan: Plan,
    shape: Sequence[int],
    device: Device,
    operands: Mapping[int, Any] | Sequence[Any],
    strides: Mapping[int, Shape] | Sequence[Shape],
    arrays: Sequence[Any],
) -> tuple[Any, ...]:
    """Return all that a kernel takes, in its order, but for constants.

    shape: (B, D); operands: tensors or pointers, by their place in the program; strides: of each,
    along batch, time and channels; arrays: what the kernel takes between operands and sizes.
    """
    moving, fixed = kernel.moving(), kernel.fixed()
    batch, channels = shape
    most = plan.max_iterations
    if most is None:
        program = kernel.program
        asked = program if kernel.kind == "solve" else adjoint_program(len(program.states))
        most = updates_worth(asked, device, batch * channels, plan.steps, plan.chunks)
    return (
        tuple(operands[i] for i in moving),
        tuple(strides[i] for i in moving),
        tuple(operands[i] for i in fixed),
        tuple(strides[i][::2] for i in fixed),
        *arrays,
        plan.steps,
        plan.length,
        plan.chunks,
        channels,
        int(plan.reverse),
        plan.allowed,  # single precision is enough of it
        most,
        int(plan.max_iterations is None),
    )


class Launch(NamedTuple):
    """A launch on dense arrays of the kernel's dtype, such as XLA hands over.

    What is read are the operands in the kernel's own order, the k initial states (B, D), and in a
    backward run the k states (B, T, D) and the k gradients of these.
    """

    kernel: Kernel
    plan: Plan
    device: Device

    @property
    def order(self) -> list[int]:
        """The program's operands in the order in which the kernel takes them."""
        return [*self.kernel.moving(), *self.kernel.fixed()]

    def results(self, read: Sequence[Shape]) -> list[tuple[Shape, Pointer]]:
        """Return shape and dtype of all that is written; read: the shapes of what is read."""
        kernel, real = self.kernel, Pointer(self.kernel.dtype)
        batch, channels = read[len(self.order)]
        k = len(kernel.program.states)
        state: Shape = (batch, channels)
        whole: Shape = (batch, self.plan.steps, channels)
        if kernel.kind == "solve":
            found: list[tuple[Shape, Pointer]] = [(whole, real)] * k
            int32, truth = Pointer("int32"), Pointer("bool")
            found += [((), t) for t in Stats(int32, real, real, truth, int32)]
            # where instances compare results; one chunk needs none
            return found + [((5,), Pointer("int64", zeroed=40))] * kernel.parallel
        parts: Shape = (batch, self.plan.chunks, channels)
        of_moving, of_fixed = ([i for i in group if i in kernel.wanted]
                               for group in (kernel.moving(), kernel.fixed()))  # fmt: skip
        return (
            [(state, real)] * k + [(whole, real)] * len(of_moving) + [(parts, real)] * len(of_fixed)
        )

    def arguments(self, read: Sequence[Shape], arrays: Sequence[Any]) -> tuple[Any, ...]:
        """Return all that the kernel takes, but for constants.

        read: the shapes of what is read; arrays: what stands for that, and then for the results.
        Their order is that of the kernel's arguments, in which XLA's handler takes its buffers.
        """
        kernel, order, k = self.kernel, self.order, len(self.kernel.program.states)
        operands = dict(zip(order, arrays, strict=False))
        strides = {i: dense_strides(shape) for i, shape in zip(order, read, strict=False)}
        rest = iter(arrays[len(order) :])

        def group(n: int) -> tuple[Any, ...]:
            return tuple(islice(rest, n))

        if kernel.kind == "solve":
            groups = [group(k), group(k), group(len(Stats._fields)), next(rest, None)]
        else:
            of_moving = sum(i in kernel.wanted for i in kernel.moving())
            groups = [group(k), group(k), group(k), (dense_strides(read[-1]),) * k]
            groups += [group(k), group(of_moving), tuple(rest)]
        shape = read[len(order)]
        return arguments(kernel, self.plan, shape, self.device, operands, strides, groups)

    def tile(self, read: Sequence[Shape]) -> tuple[tuple[int, int, int], int]:
        """Return the tile, and how many program instances there are."""
        batch, channels = read[len(self.order)]
        tiled = build.tile(self.kernel, self.plan.chunks, channels)
        return tiled, instances(tiled, batch, channels)

    def compiled(self, read: Sequence[Shape], capability: int) -> build.Compiled:
        """Return the kernel compiled for such arrays; see `build.compiled`."""
        pointers = [Pointer(self.kernel.dtype)] * len(read) + [t for _, t in self.results(read)]
        given = self.arguments(read, pointers)
        return build.compiled(self.kernel, self.tile(read)[0], given, capability)


def dense_strides(shape: Sequence[int]) -> Shape:
    """Return the strides of an array in row-major order, 0 along axes of length 1.

    >>> dense_strides((2, 1, 5))
    (5, 0, 1)
    """
    strides, size = [], 1
    for n in reversed(shape):
        strides.append(size if n > 1 else 0)
        size *= n
    return tuple(reversed(strides))
