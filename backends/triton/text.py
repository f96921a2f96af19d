"""Triton source for the kernels of a program: a whole solve, or backward run, in one launch.

One program instance owns a block of channels of one sequence with all of its chunks, a tile
(CHUNKS, BLOCK) of lanes, and iterates until all of its own lanes are settled. The text is made from
the expression graph and numbers alone, as that of `c.text` is.

The iteration of `parnl.solver.newton` is written here once more, for a lane knows nothing of other
sequences and channels: run by one instance it needs neither a look of the host at a result nor a
second launch. Order and names are those of `newton.newton`, to be read side by side. What differs:
values that belong to a gap between chunks (`before`, `after`, `settled`) stand in the row of the
chunk that ends there, and a nonlinear program's trajectory brings the products along, so that the
next update needs no run of its own. What is below the last gap is settled from the start. Nothing
is guessed beforehand, and no lane is given up on before its updates are used up; it then goes on in
the same launch, from its own last settled chunk start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from parnl.backends.triton.mathematics import MATHEMATICS
from parnl.graph import derivatives
from parnl.graph.arithmetic import whole_power
from parnl.graph.flatcode import definition, needed, operands_of
from parnl.graph.nodes import Symbol, reachable
from parnl.graph.operation import DEFINED
from parnl.graph.operations import OPERATIONS
from parnl.graph.program import Program
from parnl.solver import newton

# Operand layouts by the axes of (B, T, D) that they really have: time and channel.
FULL, TIME, CHANNEL, SCALAR = "f", "t", "c", "s"


class Kernel(NamedTuple):
    """What decides a kernel: `kind` is "solve" or "gradients".

    dtype: "float32" or "float64", that of the arithmetic; layouts: one letter for each operand;
    parallel: whether there is more than one chunk; wide: whether places within a sequence need 64
    bits; wanted: operands whose gradient is computed.
    """

    program: Program
    kind: str
    dtype: str
    layouts: str
    parallel: bool
    wide: bool
    wanted: tuple[int, ...] = ()

    @property
    def light(self) -> bool:
        """Whether a lane needs few registers."""
        return self.kind == "solve" and len(self.program.states) == 1

    @property
    def ahead(self) -> int:
        """How many steps ahead of their use operands are loaded.

        At most 16 loads in flight, for their registers, or 8 where twice as many threads may share
        these, in many chunks (see `triton_calls.tile`; with 12, a GRU in 256 chunks spilled 31 of
        them for sm_80); and no more steps than it takes to wait for the first of them, for their
        text.
        """
        backward = self.kind == "gradients"
        most = 8 if self.parallel and self.light else 16
        loads = sum(letter in (FULL, TIME) for letter in self.layouts)
        loads += 2 * len(self.program.states) * backward
        cost = self.program.cost * (3 if backward else 1)
        return max(n for n in (1, 2, 4) if n == 1 or (n * loads <= most and n * cost <= 400))

    def summed(self, i: int) -> bool:
        """Whether the gradient of operand i is a sum over time."""
        return self.layouts[i] in (CHANNEL, SCALAR)


SIZES = ("T", "L", "C", "D", "reverse", "tolerance", "max_iterations", "gives_up")
STATS = ("iterations", "largest_update", "largest_residual", "converged", "sequential")


def parameters(kernel: Kernel) -> list[str]:
    """Return the names of the kernel's parameters: arrays and their strides, then the sizes."""
    k = range(len(kernel.program.states))
    names = []
    for i, letter in enumerate(kernel.layouts):
        axes = {FULL: "btd", TIME: "bt", CHANNEL: "bd", SCALAR: "b"}[letter]
        names += [f"op{i}", *(f"op{i}_{axis}" for axis in axes)]
    names += [f"start{i}" for i in k]
    if kernel.kind == "solve":
        names += [*(f"out{i}" for i in k), *STATS, "shared"]
    else:
        for i in k:
            names += [f"state{i}", f"g{i}", f"g{i}_b", f"g{i}_t", f"g{i}_d"]
        names += [*(f"initial{i}" for i in k), *(f"grad{s}" for s in range(len(kernel.wanted)))]
    return [*names, *SIZES]


_HEAD = """\
import triton
import triton.language as tl


@triton.jit
def added(a, b):
    return a + b


@triton.jit
def larger(a, b):
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def clamped(x):
    return tl.minimum(tl.maximum(x, -{limit}), {limit})


@triton.jit
def gap(a, b):
    # an exact 0 where both are the same inf or both NaN
    return tl.where((a == b) | ((a != a) & (b != b)), 0.0, a - b)


@triton.jit
def finite(x):
    return tl.where(tl.abs(x) < float("inf"), tl.abs(x), 0.0)


@triton.jit
def peak(x, where):
    x = tl.where(where, tl.where(x != x, float("inf"), x), 0.0)
    return tl.reduce(tl.reduce(x, 1, larger), 0, larger)


@triton.jit
def some(x):
    return tl.reduce(tl.reduce(x.to(tl.int32), 1, larger), 0, larger) > 0


@triton.jit
def all_so_far(ok):
    return tl.associative_scan((~ok).to(tl.int32), 0, larger) == 0


@triton.jit
def earlier(x, first, c, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    # row c gets row c - 1, row 0 gets `first`
    row = tl.broadcast_to(tl.where(c > 0, c - 1, 0), (CHUNKS, BLOCK))
    return tl.where(c > 0, tl.gather(x, row, 0), first)


@triton.jit
def two_sum(total, lost, x):
    # total + x, and what its rounding has lost so far (D. Knuth)
    new = total + x
    part = new - total
    return new, lost + ((total - (new - part)) + (x - part))
"""


def source(kernel: Kernel) -> str:
    """Return the text of a module that defines the Triton function parnl_solve or parnl_gradients.

    Its parameters are `parameters(kernel)`, then CHUNKS and BLOCK, the powers of two that the tile
    measures.
    """
    return _Writer(kernel).text()


class _Writer:
    """Writes the step, the runs over all chunks, and the kernel that calls them."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.program = kernel, kernel.program
        self.k = len(self.program.states)
        self.backward = kernel.kind == "gradients"
        self.linear = self.backward or self.program.linear
        self.real = "tl." + kernel.dtype
        largest = {"float32": 3.4028235e38, "float64": 1.7976931348623157e308}[kernel.dtype]
        self.limit = repr(math.sqrt(largest) / 100)
        self.functions: list[str] = []  # those made on the way, each before what calls it

    def text(self) -> str:
        body = self.newton() if self.kernel.parallel else self.sequential()
        names = ", ".join(parameters(self.kernel))
        sizes = ", ".join(f'"{name}"' for name in SIZES if name not in ("D", "tolerance"))
        kernel = [
            f"@triton.jit(do_not_specialize=[{sizes}])",
            f"def parnl_{self.kernel.kind}({names}, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):",
            *_indented([*self.prologue(), *body, *self.epilogue()]),
        ]
        fixed = _HEAD.format(limit=self.limit) + MATHEMATICS[self.kernel.dtype]
        return "\n".join([fixed, *self.definitions(), *self.functions, *kernel]) + "\n"

    def each(self, text: str) -> list[str]:
        """One line for each state."""
        return [text.format(i=i) for i in range(self.k)]

    def entries(self, text: str) -> list[str]:
        """One line for each entry of a k x k block."""
        return [text.format(i=i) for i in range(self.k * self.k)]

    def prologue(self) -> list[str]:
        """Where each lane stands: sequence b, chunk c, channel d; its steps; its arrays there."""
        index = "tl.int64" if self.kernel.wide else "tl.int32"
        lines = [
            "blocks = (D + BLOCK - 1) // BLOCK",
            "b = (tl.program_id(0) // blocks).to(tl.int64)",
            "c = tl.arange(0, CHUNKS)[:, None]",
            "d = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)[None, :]",
            "channel = d < D",
            f"d = d.to({index})",
            "way = 1 - 2 * reverse",
            f"t = reverse * (T - 1) + way * (c.to({index}) * L)",
            "due = tl.where(c < C, tl.minimum(T - c * L, L), 0)",
            "steps = tl.where(channel, due, 0)",
            "zero = tl.full([1, 1], 0, tl.int32)",
            # places are a pointer for the instance, moved along the run, and an offset for the lane
            "lane = t * D + d",
            "row = (way * D).to(tl.int64)",
        ]
        for i, letter in enumerate(self.kernel.layouts):
            lines.append(f"r{i} = op{i} + b * op{i}_b")
            match letter:
                case "f":
                    lines.append(f"r{i}_at = t * op{i}_t + d * op{i}_d")
                case "t":
                    lines.append(f"r{i}_at = t * op{i}_t")
                case "c":
                    load = f"tl.load(r{i} + d * op{i}_d, mask=channel, other=0)"
                    lines.append(f"w{i} = {load}.to({self.real})")
                case _:
                    lines.append(f"w{i} = tl.load(r{i} + zero).to({self.real})")
            if letter in (FULL, TIME):
                lines.append(f"r{i}_t = (way * op{i}_t).to(tl.int64)")
        start = "tl.load(start{i} + b * D + d, mask=channel, other=0.0)"
        if not self.backward:
            lines += self.each("first{i} = " + start)
            return [*lines, *self.each("o{i} = out{i} + b * T * D")]
        # the state before the step: one step earlier in the forward run, which goes the other way
        lines += ["past = tl.where(channel, T - 1 - c * L, 0)", "sums = c * D + d"]
        lines += self.each("edge{i} = " + start)
        lines += self.each("h{i} = state{i} + b * T * D + row")
        lines += self.each("u{i} = g{i} + b * g{i}_b")
        lines += self.each("u{i}_at = t * g{i}_t + d * g{i}_d")
        lines += self.each("u{i}_t = (way * g{i}_t).to(tl.int64)")
        lines += self.each(f"first{{i}} = tl.full([1, BLOCK], 0.0, {self.real})")
        for s, i in enumerate(self.kernel.wanted):
            lines.append(f"o{s} = grad{s} + b * {'C' if self.kernel.summed(i) else 'T'} * D")
        return lines

    def sequential(self) -> list[str]:
        """One chunk is the plain loop."""
        run = self.run("backward" if self.backward else "trajectory", products=False)
        return [*self.each("s{i} = tl.broadcast_to(first{i}, (CHUNKS, BLOCK))"), *run]

    def newton(self) -> list[str]:
        """`newton.newton`; the number of the state, or of the block's entry, follows its names."""
        runs = ("adjoint", "backward") if self.backward else ("advance", "trajectory")
        body = self.entries("a{i} = clamped(tl.where(p{i} != p{i}, 0.0, p{i}))")
        body += self.each("change{i} = tl.where(settled, 0.0, gap(end{i}, before{i}))")
        body += self.affine_scan()
        body += self.each("change{i} = earlier(change{i}, 0.0, c, CHUNKS, BLOCK)")
        changes = self.each("change{i}")
        for i in range(self.k):
            moved = _sum_of_products(self.entries("a{i}")[i * self.k : (i + 1) * self.k], changes)
            body.append(f"after{i} = tl.where(settled, before{i}, end{i} + ({moved}))")
        body += self.each("s{i} = earlier(after{i}, first{i}, c, CHUNKS, BLOCK)")
        body += self.each("size{i} = tl.associative_scan(finite(after{i}), 0, larger)")
        body += self.each("size{i} = larger(size{i}, finite(first{i}))")
        body += self.trust()
        body += self.run(runs[1], products=not self.linear)
        body += self.each("left{i} = tl.abs(gap(end{i}, after{i}))")
        body += _largest("residual", self.each("left{i}"))
        if self.linear:
            body.append("settled = ~inner | all_so_far(settled | (residual == 0.0) | sound)")
        else:
            small = " & ".join(self.each("(left{i} <= tolerance * size{i})"))
            body.append(f"small = {small} & tame")
            body.append("settled = ~inner | all_so_far(settled | (residual == 0.0) | small)")
        body += _largest("update", self.each("tl.abs(gap(after{i}, before{i}))"))
        body += [
            *self.each("before{i} = after{i}"),
            "iteration += 1",
            "unfinished = (iteration < max_iterations) & some(~settled)",
        ]
        return [
            *self.each("s{i} = tl.broadcast_to(first{i}, (CHUNKS, BLOCK))"),
            *self.each("before{i} = s{i}"),
            "inner = (c < C - 1) & channel",
            "settled = ~inner",
            "iteration = tl.full([], 0, tl.int32)",
            f"update = tl.full([CHUNKS, BLOCK], 0.0, {self.real})",
            "residual = update",
            *self.run(runs[0], products=True),
            "unfinished = max_iterations > 0",
            "while unfinished:",
            *_indented(body),
            *self.give_up(runs[1]),
        ]

    def give_up(self, kind: str) -> list[str]:
        """Lanes that are not settled go on by themselves from their last settled chunk start."""
        results = ", ".join([*self.each("rest{i}"), *(self.entries("_{i}") * (not self.linear))])
        lines = [
            "front = tl.reduce((settled & inner).to(tl.int32), 0, added)[None, :]",
            "undone = (front < (C - 1) * gives_up) & channel",
            "final = tl.where(undone, front, C - 1)",
        ]
        body = ["left = tl.where(undone & (c == front), T - c * L, 0)", "tl.debug_barrier()"]
        for s, i in enumerate(self.kernel.wanted):
            if self.kernel.summed(i):
                after = "undone & (c > front) & (c < C)"
                body.append(f"tl.store(o{s} + sums, residual * 0.0, mask={after})")
        given = {"steps": "left", "due": "left", "L": "T"}
        arguments = ", ".join([*self.each("s{i}"), *(given.get(n, n) for n in self.given())])
        body.append(f"{results} = {kind}({arguments}, CHUNKS, BLOCK)")
        body += self.each("end{i} = tl.where(left > 0, rest{i}, end{i})")
        return [*lines, "if some(undone):", *_indented(body)]

    def trust(self) -> list[str]:
        """`newton._growth` and what `newton.newton` makes of it: `tame` of the lane, or `sound`."""
        lines = _largest("steepest", self.entries("tl.abs(p{i})"))
        lines.append("nan = steepest != steepest")
        lines += self.entries("e{i} = clamped(tl.where(nan, 0.0, p{i}))")
        if self.k > 1 and not self.linear:
            lines += self.in_proportion()
        power = 1
        while self.k > 1 and power < 4:
            square = _matmul(self.entries("e{i}"), self.entries("e{i}"), self.k)
            lines += [f"f{i} = clamped({entry})" for i, entry in enumerate(square)]
            lines += self.entries("e{i} = f{i}")
            power *= 2
        lines += _largest("grown", self.entries("tl.abs(e{i})"))
        lines += [
            f"growth = tl.log(tl.where(grown < 1e-30, 1e-30, grown)) * {1 / power}",
            "level = tl.associative_scan(tl.where(nan, 0.0, growth), 0, added)",
            "least = tl.associative_scan(tl.where(level < 0.0, -level, 0.0), 0, larger)",
            f"tame = ~inner | (level + least < {newton.GROWTH!r})",
        ]
        if self.linear:
            return [*lines, f"sound = all_so_far(~inner | (tame & (steepest < {self.limit})))"]
        return [*lines, "tame = (tl.reduce((~tame).to(tl.int32), 0, larger) == 0)[None, :]"]

    def in_proportion(self) -> list[str]:
        """`newton._in_proportion` of e."""
        lines = self.each("unit{i} = tl.reduce(size{i}, 0, larger)[None, :]")
        for e in range(self.k * self.k):
            i, j = divmod(e, self.k)
            ratio = f"tl.where(unit{i} > 0.0, unit{j} / unit{i}, 0.0)"
            lines.append(f"e{e} = clamped(e{e} * clamped({ratio}))")
        return lines

    def affine_scan(self) -> list[str]:
        """`scan.affine_scan` of a and change."""
        k = self.k
        a, b = [f"{x}{i}" for x in "aA" for i in range(k * k)], self.each("b{i}")
        early, late = a[: k * k], a[k * k :]
        composed = [f"clamped({entry})" for entry in _matmul(late, early, k)]
        for i in range(k):
            composed.append(f"B{i} + ({_sum_of_products(late[i * k : (i + 1) * k], b)})")
        self.functions += [
            "@triton.jit",
            f"def compose({', '.join([*early, *b, *late, *self.each('B{i}')])}):",
            f"    return {', '.join(composed)}",
            "",
            "",
        ]
        arrays = [*early, *self.each("change{i}")]
        results = [*self.entries("_{i}"), *self.each("change{i}")]
        return [f"{', '.join(results)} = tl.associative_scan(({', '.join(arrays)}), 0, compose)"]

    def epilogue(self) -> list[str]:
        """What the whole solve gives beside the states: statistics, or the gradient of x0."""
        if self.backward:
            row = "final" if self.kernel.parallel else "C - 1"
            last = f"mask=(c == {row}) & channel"
            return self.each("tl.store(initial{i} + b * D + d + c * 0, end{i}, " + last + ")")
        if not self.kernel.parallel:
            return [
                "if tl.program_id(0) == 0:",
                "    tl.store(iterations, 0)",
                "    tl.store(largest_update, 0.0)",
                "    tl.store(largest_residual, 0.0)",
                "    tl.store(converged, 1)",
                "    tl.store(sequential, tl.num_programs(0) // blocks * D)",
            ]
        bits = "tl.int32" if self.kernel.dtype == "float32" else "tl.int64"
        return [
            # The bits of numbers that are not negative have the order of the numbers. The update is
            # that of the last iteration of all, so it stands behind the count in one integer, in
            # single precision. The last instance to come finds everyone's results in `shared`.
            "last = peak(update, inner).to(tl.float32).to(tl.int32, bitcast=True).to(tl.int64)",
            "tl.atomic_max(shared, (iteration.to(tl.int64) << 32) + last)",
            f"left = peak(residual, inner & ~undone).to({bits}, bitcast=True).to(tl.int64)",
            "tl.atomic_max(shared + 1, left)",
            "tl.atomic_max(shared + 2, some(~settled & ~undone).to(tl.int64))",
            "undone = undone.to(tl.int64)",
            "tl.atomic_add(shared + 4, tl.reduce(tl.reduce(undone, 1, added), 0, added))",
            "if tl.atomic_add(shared + 3, 1) == tl.num_programs(0) - 1:",
            "    last = tl.atomic_max(shared, 0)",
            "    tl.store(iterations, (last >> 32).to(tl.int32))",
            "    tl.store(largest_update, last.to(tl.int32).to(tl.float32, bitcast=True))",
            "    left = tl.atomic_max(shared + 1, 0)",
            f"    tl.store(largest_residual, left.to({bits}).to({self.real}, bitcast=True))",
            "    tl.store(converged, tl.atomic_max(shared + 2, 0) == 0)",
            "    tl.store(sequential, tl.atomic_add(shared + 4, 0).to(tl.int32))",
        ]

    # -- a run over all chunks ------------------------------------------------------------------

    def given(self) -> list[str]:
        """What a run is given: places and strides along the run, operands free of time, sizes."""
        names = []
        for i, letter in enumerate(self.kernel.layouts):
            names += [f"r{i}", f"r{i}_at", f"r{i}_t"] if letter in (FULL, TIME) else [f"w{i}"]
        if self.backward:
            names += [name.format(i=i) for i in range(self.k) for name in _BEHIND]
            names += ["past", "sums", *(f"o{s}" for s in range(len(self.kernel.wanted)))]
        else:
            names += self.each("o{i}")
        return [*names, "lane", "row", "steps", "due", "L"]

    def run(self, kind: str, products: bool) -> list[str]:
        """Define the run `kind` and return the lines that call it, with ends end0, ..., and p0, ...

        "trajectory" and "advance" are those of `newton.Kernels`; "adjoint" and "backward" the same
        of the adjoint recurrence, the latter with the gradients of operands.
        """
        given = ", ".join([*self.given(), "CHUNKS", "BLOCK"])
        body, sums = self.step(kind, products)
        ahead, loads = self.kernel.ahead, self.loads()
        lines = []
        if products:
            for e in range(self.k * self.k):
                one = "1.0" if e // self.k == e % self.k else "0.0"
                lines.append(f"p{e} = tl.full([CHUNKS, BLOCK], {one}, {self.real})")
        for s in sums:
            lines.append(f"S{s} = tl.full([CHUNKS, BLOCK], 0.0, {self.real})")
            lines.append(f"lost{s} = S{s}")
        # loads are issued some steps before their use, and before the stores of those steps
        for u in range(ahead):
            lines += [f"{name}_{u} = {load.format(at=u)}" for name, load in loads]
        lines.append(f"for l in range(0, L, {ahead}):")
        loop = []
        for u in range(ahead):
            at = f"l + {ahead + u}"
            loop += [f"{name}_{u}_ = {load.format(at=at)}" for name, load in loads]
        for u in range(ahead):
            loop += [f"{name} = {name}_{u}.to({self.real})" for name, _ in loads]
            loop.append(f"alive = l + {u} < steps")
            loop += [line.format(at=f"(l + {u})") for line in body]
            for s in sums:
                loop.append(f"v{s} = z{s}" if u == 0 else f"v{s} = v{s} + z{s}")
        for s in sums:
            loop.append(f"S{s}, lost{s} = two_sum(S{s}, lost{s}, v{s})")
        for u in range(ahead):
            loop += [f"{name}_{u} = {name}_{u}_" for name, _ in loads]
        lines += _indented(loop)
        for s in sums:
            total = f"tl.where(tl.abs(S{s}) < float('inf'), S{s} + lost{s}, S{s})"
            lines.append(f"tl.store(o{s} + sums, {total}, mask=steps > 0)")
        results = ", ".join([*self.each("x{i}"), *(self.entries("p{i}") if products else [])])
        ends = ", ".join([*self.each("end{i}"), *(self.entries("p{i}") if products else [])])
        constants = "CHUNKS: tl.constexpr, BLOCK: tl.constexpr"
        self.functions += [
            "@triton.jit",
            f"def {kind}({', '.join([*self.each('x{i}'), *self.given(), constants])}):",
            *_indented([*lines, f"return {results}"]),
            "",
            "",
        ]
        return [f"{ends} = {kind}({', '.join(self.each('s{i}'))}, {given})"]

    def loads(self) -> list[tuple[str, str]]:
        """What a step reads that depends on time: name, and the load at step {at} of the run."""
        found = []
        for i, letter in enumerate(self.kernel.layouts):
            if letter in (FULL, TIME):
                mask = "steps" if letter == FULL else "due"
                place = f"r{i} + ({{at}}) * r{i}_t + r{i}_at"
                found.append((f"q{i}", f"tl.load({place}, mask={{at}} < {mask}, other=0)"))
        for i in range(self.k if self.backward else 0):
            place = f"h{i} + ({{at}}) * row + lane"
            found.append((f"m{i}", f"tl.load({place}, mask={{at}} < past, other=edge{i})"))
            place = f"u{i} + ({{at}}) * u{i}_t + u{i}_at"
            found.append((f"g{i}", f"tl.load({place}, mask={{at}} < steps, other=0)"))
        return found

    def step(self, kind: str, products: bool) -> tuple[list[str], list[int]]:
        """Return the lines of one step, with {at} for its number, and which gradients are sums."""
        program, k = self.program, self.k
        names = {}
        for i, (symbol, letter) in enumerate(
            zip(program.operand_symbols, self.kernel.layouts, strict=True)
        ):
            names[symbol.index] = f"q{i}" if letter in (FULL, TIME) else f"w{i}"
        state = "m{i}" if self.backward else "x{i}"
        names |= {s.index: state.format(i=i) for i, s in enumerate(program.state_symbols)}
        lines: list[str] = []
        sums = []
        match kind:
            case "trajectory" | "advance":
                wanted = [*program.outputs, *(program.jacobian if products else [])]
                name = "step_jacobian" if products else "step"
                results = self.function(name, names, wanted, lines)
            case "adjoint":
                entries = self.function("jacobian", names, program.jacobian, lines)
                # transposed: row i of J^T is column i of J
                results = [entries[j * k + i] for i in range(k) for j in range(k)]
                lines += self.each("y{i} = x{i} + g{i}")
                states = [_sum_of_products(results[i * k : (i + 1) * k], self.each("y{i}"))
                          for i in range(k)]  # fmt: skip
                results = [*states, *results]
            case _:
                lines += self.each("y{i} = x{i} + g{i}")
                cotangents = [program.graph.leaf("cotangent", s) for s in program.states]
                names |= {c.index: f"y{i}" for i, c in enumerate(cotangents)}
                variables = [program.operand_symbols[i] for i in self.kernel.wanted]
                zero = program.graph.constant(0.0)
                found = derivatives.vjp(
                    program.outputs, cotangents, [*program.state_symbols, *variables]
                )
                pulled = [zero if p is None else p for p in found]
                results = self.function("vjp", names, pulled, lines)
        if products:
            product = _matmul(results[k : k + k * k], self.entries("p{i}"), k)
            lines += [f"t{e} = {entry}" for e, entry in enumerate(product)]
            lines += self.entries("p{i} = tl.where(alive, t{i}, p{i})")
        lines += [f"x{i} = tl.where(alive, {results[i]}, x{i})" for i in range(k)]
        if kind == "trajectory":
            lines += self.each("tl.store(o{i} + {{at}} * row + lane, x{i}, mask=alive)")
        if kind == "backward":
            for s, i in enumerate(self.kernel.wanted):
                value = results[k + s]
                if self.kernel.summed(i):
                    sums.append(s)
                    lines.append(f"z{s} = tl.where(alive, {value}, 0.0)")
                else:
                    lines.append(f"tl.store(o{s} + {{at}} * row + lane, {value}, mask=alive)")
        return lines, sums

    # -- arithmetic -----------------------------------------------------------------------------

    def function(
        self, name: str, names: dict[int, str], outputs: Sequence[Symbol], lines: list[str]
    ) -> list[str]:
        """Define function `name` of `outputs`, add its call to `lines`, and return its results."""
        known, body = dict(names), []
        fused = self.program.fused(outputs)
        arguments = []
        for node in needed(outputs, fused):
            if node.index in known:
                arguments.append(known[node.index])
            elif node.op != "constant":
                operands = operands_of(node, fused)
                text = self.expression(node, operands, known, node.index in fused)
                known[node.index] = f"v{node.index}"
                body.append(f"v{node.index} = {text}")
        varying = {o.index: f"{name}{o.index}" for o in outputs if o.op != "constant"}
        if body:
            self.functions += [
                "@triton.jit",
                f"def {name}({', '.join(arguments)}):",
                *_indented([*body, f"return {', '.join(known[i] for i in varying)}"]),
                "",
                "",
            ]
            lines.append(f"{', '.join(varying.values())} = {name}({', '.join(arguments)})")
        else:  # every result is a number or an argument
            varying = {i: known[i] for i in varying}
        return [varying[o.index] if o.index in varying else self.typed(o) for o in outputs]

    def typed(self, constant: Symbol) -> str:
        """A number where no operand beside it tells its type; 0 and 1 are exact in any."""
        if repr(constant.value) in ("0.0", "1.0"):
            return repr(constant.value)
        return f"tl.full([1, 1], {_literal(constant.value)}, {self.real})"

    def expression(
        self, node: Symbol, operands: Sequence[Symbol], names: dict[int, str], fused: bool
    ) -> str:
        operation = OPERATIONS[node.op]
        literal = len(operands) == 2 and operation.syntax and not fused
        if literal and not all(a.op == "constant" for a in operands):
            x = [_literal(a.value) if a.op == "constant" else names[a.index] for a in operands]
            return operation.text(operation.syntax, *x)
        x = [self.typed(a) if a.op == "constant" else names[a.index] for a in operands]
        if fused:
            return f"tl.fma({'-' if node.op == 'sub' else ''}{x[1]}, {x[2]}, {x[0]})"
        if node.op == "pow":
            return _power(x[0], node.args[1].value)
        form = operation.form("triton")
        return operation.text(node.op if form == DEFINED else form, *x)

    def definitions(self) -> list[str]:
        """Return the lines of the functions of all operations that Triton lacks."""
        found = []
        for operation in OPERATIONS.values():
            if operation.form("triton") != DEFINED:
                continue
            arguments, value = definition(operation)
            known = {a.index: a.value[1] for a in arguments}
            body = []
            for node in reachable([value]):
                if node.op not in ("leaf", "constant"):
                    known[node.index] = f"v{node.index}"
                    text = self.expression(node, node.args, known, False)
                    body.append(f"v{node.index} = {text}")
            given = ", ".join(a.value[1] for a in arguments)
            body.append(f"return {known[value.index]}")
            found += ["", "@triton.jit", f"def {operation.name}({given}):", *_indented(body), ""]
        return [*found, ""]


# Of each state in a backward run: the states before a step, x0 before the first, the gradients.
_BEHIND = ("h{i}", "edge{i}", "u{i}", "u{i}_at", "u{i}_t")


def _literal(value: float) -> str:
    if value != value or value in (math.inf, -math.inf):
        return f'float("{value}")'
    return f"({value!r})" if value < 0 else repr(value)


def _power(x: str, exponent: float) -> str:
    if product := whole_power(x, exponent, "1.0"):
        return product
    power = OPERATIONS["pow"]
    size = power.text(power.triton, f"tl.abs({x})", repr(exponent))
    if exponent != int(exponent):
        return power.text(power.triton, x, repr(exponent))
    return size if exponent % 2 == 0 else f"tl.where({x} < 0.0, -{size}, {size})"


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _largest(name: str, parts: Sequence[str]) -> list[str]:
    return [f"{name} = {parts[0]}", *(f"{name} = larger({name}, {part})" for part in parts[1:])]


def _sum_of_products(row: Sequence[str], column: Sequence[str]) -> str:
    """A structural zero of `row` is left out: what it would multiply may not be finite."""
    terms = []
    for a, b in zip(row, column, strict=True):
        if a != "0.0":
            terms.append(b if a == "1.0" else f"{a} * {b}")
    return " + ".join(terms) or "0.0"


def _matmul(a: Sequence[str], b: Sequence[str], k: int) -> list[str]:
    return [_sum_of_products(a[i * k : (i + 1) * k], b[j::k]) for i in range(k) for j in range(k)]
