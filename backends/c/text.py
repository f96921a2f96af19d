"""C source for the kernels of a program: the step, its Jacobian and its gradient, run over chunks.

A row is one chunk of one sequence. A group of `W` lanes goes through its steps together, and the
compiler turns the loop over its lanes into vector instructions. The lanes of a group are either

    near:    neighbouring channels of one row, read and written where they lie; or
    staged:  what is left over, from several rows, `V` neighbours of each: read into a buffer for
             `STAGE` steps at a time, and written from one; the arithmetic is on full vectors.

Groups are divided among threads. The text is made from the expression graph and numbers alone.

Every kernel takes one array of 64-bit integers, laid out by `kernel.fields`: sizes, then pointers
and strides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.resources import files

from parnl.backends.c import vecmath
from parnl.backends.c.expressions import MATH, Expressions, sum_of_products
from parnl.backends.c.kernel import CHANNEL, FULL, SCALAR, SIZES, TIME, CKernel, fields
from parnl.graph.nodes import Symbol

# Lines are asked for so many steps ahead where a group is less than a row: to go through memory
# with gaps is not what processors foresee. Measured, one thread, T = 16384, ns a channel and step:
# backward, 64 channels, GRU 6.2 -> 2.5, LRC 6.9 -> 3.3; forward, 512 channels, GRU 3.5 -> 2.5.
# Where a group is a row, 3 to 15 % are lost forward, and 0 to 10 % gained backward.
_AHEAD = 8


def _written(name: str) -> str:
    """C that is not generated, a file beside this one."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_LANES, _THREADS = _written("lanes.h"), _written("threads.h")


def source(kernel: CKernel) -> str:
    """Return the text of a C file that defines `kernel` and `kernel_on_pool`: see `threads.h`."""
    suffix, real = ("f", "float") if kernel.dtype == "float32" else ("", "double")
    group, span, near, staged, _ = kernel.lanes
    ways = [w(kernel, suffix).text() for w, there in ((_Near, near), (_Staged, staged)) if there]
    return "\n".join(
        [
            f"#define REAL {real}",
            f"#define F(name) name{'##f' if suffix else ''}",
            f"#define W {group}",
            f"#define V {span}",
            f"#define NEAR_CHANNELS(D) ({'(D) / W * W' if near else '0'})",
            f"#define FADES {int(kernel.kind in ('adjoint', 'backward'))}",
            _LANES,
            *(f"SIMD_MATH {real} {name}{suffix}({real});" for name in MATH),
            vecmath.FLOAT32 if suffix else "",
            Expressions(suffix).definitions(),
            *ways,
            "static void group(const int64_t *a, int64_t item) {",
            "  const int64_t near = near_count(a);",
            *(["  if (item < near) { near_group(a, item); return; }"] if near else []),
            *(["  staged_group(a, item - near);"] if staged else []),
            "}",
            "static void large_results(const int64_t *a) {",
            "  const int64_t size = a[0] * a[2] * a[3] * (int64_t)sizeof(real);",
            *(f"  expect(a[{at}], size);" for at in _large(kernel)),
            "}",
            _THREADS,
        ]
    )


def _large(kernel: CKernel) -> list[int]:
    """Return where in the argument array the results are that hold a number for every step."""
    at = len(SIZES)
    positions: list[int] = []
    for name, size in fields(kernel):
        if name == "out":
            positions += range(at, at + size)
        elif name == "grad":
            whole = [kernel.layouts[i] == FULL for i in kernel.wanted]
            positions += [at + i for i in range(size) if whole[i]]
        at += size
    return positions


class _Writer(ABC):
    """Writes a function that takes one group of lanes through its steps.

    A subclass says where the lanes are (`place`), and how their steps are read and written.
    Element j of an array such as x0 belongs to lane j; `row` and `channel` are C expressions of j.
    """

    name: str
    row: str
    channel: str
    alive: str  # whether lane j has the step that is computed, "" if all have

    def __init__(self, kernel: CKernel, suffix: str) -> None:
        self.kernel = kernel
        self.expressions = Expressions(suffix)
        self.program = kernel.program
        self.k = len(self.program.states)
        self.backward = kernel.kind in ("adjoint", "backward")
        self.products = kernel.kind in ("advance", "adjoint")
        self.position: dict[str, int] = {}
        at = len(SIZES)
        for name, size in fields(kernel):
            self.position[name] = at
            at += size
        wanted = list(enumerate(kernel.wanted)) if kernel.kind == "backward" else []
        still = [layout in (CHANNEL, SCALAR) for layout in kernel.layouts]
        # operands that depend on time; wanted gradients that are sums over time, those that are
        # sums over channels, and the others
        self.moving = [i for i, s in enumerate(still) if not s]
        self.sums = [s for s, i in wanted if still[i]]
        self.shared = [s for s, i in wanted if kernel.layouts[i] == TIME]
        self.written = [("grad", s) for s, i in wanted if kernel.layouts[i] == FULL]
        if kernel.kind == "trajectory":
            self.written = [("out", i) for i in range(self.k)]

    def a(self, name: str, i: int) -> str:
        return f"a[{self.position[name] + i}]"

    def pointer(self, name: str, i: int, const: bool = True) -> str:
        return f"(({'const ' if const else ''}real *){self.a(name, i)})"

    def text(self) -> str:
        return "\n".join(
            [
                f"static void {self.name}(const int64_t *a, int64_t item) {{",
                "  const int64_t C = a[1], D = a[2], T = a[3], L = a[4], reverse = a[5];",
                "  const int64_t way = reverse ? -1 : 1;",
                *self.place(),
                *self.prologue(),
                *self.loop(),
                *self.epilogue(),
                "}",
            ]
        )

    @abstractmethod
    def place(self) -> list[str]:
        """Where each lane stands: row, sequence b, channel; its first step and their number."""

    @abstractmethod
    def loop(self) -> list[str]:
        """All steps."""

    @abstractmethod
    def read(self, name: str, whole: bool) -> str:
        """What lane j reads of an array that moves; not `whole`: one number for all channels."""

    @abstractmethod
    def write(self, name: str, i: int, value: str) -> str:
        """Write what lane j computed."""

    def prologue(self) -> list[str]:
        """States, and what does not move."""
        lines = []

        def array(name: str, value: str) -> None:
            lines.append(f"  real {name}[W];")
            lines.append(f"  for (int j = 0; j < W; j++) {name}[j] = {value};")

        for i in range(self.k):
            array(f"x{i}", f"{self.pointer('start', i)}[{self.row} * D + {self.channel}]")
        for i, layout in enumerate(self.kernel.layouts):
            if i not in self.moving:
                at = self.channel if layout == CHANNEL else "0"
                base, sb = self.pointer("op", i), self.a("opb", i)
                array(f"w{i}", f"{base}[{self.row} / C * {sb} + {at}]")
        for e in range(self.k * self.k if self.products else 0):
            array(f"p{e}", "1" if e // self.k == e % self.k else "0")
        for s in self.sums:
            # summed in double now and then: thousands of steps in float would round
            lines.append(f"  real s{s}[W]; double S{s}[W];")
            lines.append(f"  for (int j = 0; j < W; j++) s{s}[j] = S{s}[j] = 0;")
        return lines

    def flush(self) -> list[str]:
        return [f"flush(s{s}, S{s});" for s in self.sums]

    def step(self) -> list[str]:
        """The arithmetic of one step, a loop over lanes."""
        lines = []
        for i, layout in enumerate(self.kernel.layouts):
            value = self.read(f"q{i}_", layout == FULL) if i in self.moving else f"w{i}[j]"
            lines.append(f"const real q{i} = {value};")
        lines += [f"const real m{i} = x{i}[j];" for i in range(self.k)]
        for i in range(self.k if self.backward else 0):
            lines.append(f"const real h{i} = {self.read(f'h{i}_', True)};")
            lines.append(f"const real l{i} = m{i} + {self.read(f'g{i}_', True)};")
        lines += self.arithmetic()
        body = [f"      {line}" for line in lines]
        return ["    #pragma omp simd", "    for (int j = 0; j < W; j++) {", *body, "    }"]

    def arithmetic(self) -> list[str]:
        program, k = self.program, self.k
        names = {s.index: f"q{i}" for i, s in enumerate(program.operand_symbols)}
        state = "h" if self.backward else "m"
        names |= {s.index: f"{state}{i}" for i, s in enumerate(program.state_symbols)}
        match self.kernel.kind:
            case "trajectory":
                results, lines = self.compute(program.outputs, names)
            case "advance":
                results, lines = self.compute([*program.outputs, *program.jacobian], names)
            case "adjoint":
                entries, lines = self.compute(program.jacobian, names)
                # transposed: row i of J^T is column i of J
                turned = [entries[j * k + i] for i in range(k) for j in range(k)]
                adjoint = [f"l{j}" for j in range(k)]
                pulled = [sum_of_products(turned[i * k :], adjoint) for i in range(k)]
                if program.reset is not None:  # 0 times NaN would be NaN
                    begins = f"q{program.reset} > (real)0.5"
                    pulled = [f"({begins} ? (real)0 : {p})" for p in pulled]
                results = [*pulled, *turned]
            case _:
                cotangents, found = program.vjp(self.kernel.wanted, states=True)
                names |= {c.index: f"l{i}" for i, c in enumerate(cotangents)}
                results, lines = self.compute(found, names)
        lines += [f"const real n{i} = {results[i]};" for i in range(k)]
        if self.products:
            entries = results[k:]
            for e in range(k * k):
                row = entries[e // k * k : e // k * k + k]
                column = [f"p{m * k + e % k}[j]" for m in range(k)]
                product = sum_of_products(row, column)
                if not self.backward:  # a backward run needs no help: see threads.h
                    product = f"faded({product})"
                lines.append(f"const real y{e} = {product};")
            lines += [f"p{e}[j] = {self.if_alive(f'y{e}', f'p{e}[j]')};" for e in range(k * k)]
        lines += [f"x{i}[j] = {self.if_alive(f'n{i}', f'm{i}')};" for i in range(k)]
        lines += [f"s{s}[j] += {self.if_alive(results[k + s], '0')};" for s in self.sums]
        for name, i in self.written:
            value = f"n{i}" if name == "out" else results[k + i]
            lines.append(self.write(name, i, value))
        lines += [f"{self.read(f'grad{s}_', True)} = {results[k + s]};" for s in self.shared]
        return lines

    def compute(
        self, results: Sequence[Symbol], names: Mapping[int, str]
    ) -> tuple[list[str], list[str]]:
        return self.expressions.compute(results, names, self.program.fused(results))

    def if_alive(self, value: str, other: str) -> str:
        return f"{self.alive} ? {value} : {other}" if self.alive else value

    def epilogue(self) -> list[str]:
        """Ends, products and sums of each lane, at (b, c, d)."""
        stores = [("end", i, f"x{i}") for i in range(self.k)]
        if self.products:
            stores += [("prod", e, f"p{e}") for e in range(self.k * self.k)]
        stores += [("grad", s, f"S{s}") for s in self.sums]
        return [
            f"  for (int j = 0; j < used; j++) "
            f"{self.pointer(name, i, False)}[{self.row} * D + {self.channel}] = {lane}[j];"
            for name, i, lane in stores
        ]

    # The state before step t of the forward run, which went the other way: at t + way, or x0.
    edge = "(reverse ? {t} == 0 : {t} == T - 1)"


class _Near(_Writer):
    name, row, channel, alive = "near_group", "row", "(d0 + j)", ""

    def place(self) -> list[str]:
        return [
            "  const int64_t across = NEAR_CHANNELS(D) / W;",
            "  const int64_t row = item / across, d0 = item % across * W;",
            "  const int64_t b = row / C, c = row % C;",
            "  const int64_t used = W, len = T - c * L < L ? T - c * L : L;",
            "  int64_t t = reverse ? T - 1 - c * L : c * L;",
        ]

    def loop(self) -> list[str]:
        before, after, soon = [], [], []
        streams = [(f"q{i}_", "op", "opb", "opt", i) for i in self.moving]
        streams += [(f"g{i}_", "g", "gb", "gt", i) for i in range(self.k if self.backward else 0)]
        for name, base, sb, st, i in streams:
            start = f"{self.pointer(base, i)} + b * {self.a(sb, i)} + t * {self.a(st, i)}"
            shared = base == "op" and self.kernel.layouts[i] == TIME
            before.append(f"  const real *{name} = {start}{'' if shared else ' + d0'};")
            after.append(f"    {name} += way * {self.a(st, i)};")
            if not shared:
                soon.append(f"{name} + {_AHEAD} * way * {self.a(st, i)}")
        pointers = []
        for i in range(self.k if self.backward else 0):
            edge, x0 = self.edge.format(t="t"), f"{self.pointer('x0', i)} + b * D + d0"
            state = f"{self.pointer('state', i)} + at + way * D"
            pointers.append(f"    const real *h{i}_ = {edge} ? {x0} : {state};")
        written = [("state", i) for i in range(self.k if self.backward else 0)] + self.written
        soon += [f"{self.pointer(name, i)} + at + {_AHEAD} * way * D" for name, i in written]
        summed = []
        for s in self.shared:
            before.append(f"  real grad{s}_[W];")
            to = f"{self.pointer('grad', s, False)}[(b * T + t) * PARTS(D) + d0 / W]"
            summed.append(f"    {to} = sum(grad{s}_, W);")
        return [
            "  int64_t at = (b * T + t) * D + d0;",
            *before,
            "  for (int64_t l = 0; l < len; l++) {",
            *(f"    fetch({address});" for address in soon if self.kernel.lanes.apart),
            *pointers,
            *self.step(),
            *summed,
            *after,
            "    t += way; at += way * D;",
            *(f"    if (l % 64 == 63 || l + 1 == len) {line}" for line in self.flush()),
            "  }",
        ]

    def read(self, name: str, whole: bool) -> str:
        return f"{name}[j]" if whole else f"{name}[0]"

    def write(self, name: str, i: int, value: str) -> str:
        return f"{self.pointer(name, i, False)}[at + j] = {value};"


class _Staged(_Writer):
    name, row, channel, alive = "staged_group", "row[j / V]", "(d[j / V] + j % V)", "s < left[j]"

    def place(self) -> list[str]:
        return [
            "  const int64_t near = NEAR_CHANNELS(D), rest = D - near, first = item * W;",
            "  const int64_t all = a[0] * C * rest, used = all - first < W ? all - first : W;",
            "  int64_t row[W / V], b[W / V], d[W / V], t[W / V], len[W / V], longest = 0;",
            "  for (int r = 0; r < W / V; r++) {",
            "    /* what is not used repeats the last */",
            "    const int64_t lane = first + (r * V < used ? r * V : used - V);",
            "    row[r] = lane / rest; d[r] = near + lane % rest; b[r] = row[r] / C;",
            "    const int64_t c = row[r] % C;",
            "    len[r] = T - c * L < L ? T - c * L : L;",
            "    if (len[r] > longest) longest = len[r];",
            "    t[r] = reverse ? T - 1 - c * L : c * L;",
            "  }",
        ]

    def loop(self) -> list[str]:
        names, fill, empty = [], [], []
        streams = [(f"q{i}_", "op", "opb", "opt", i) for i in self.moving]
        streams += [(f"g{i}_", "g", "gb", "gt", i) for i in range(self.k if self.backward else 0)]
        for name, base, sb, st, i in streams:
            shared = base == "op" and self.kernel.layouts[i] == TIME
            start = f"{self.pointer(base, i)} + b[r] * {self.a(sb, i)} + now * {self.a(st, i)}"
            start += "" if shared else " + d[r]"
            fill += self.copied(name, start, self.a(st, i), "0" if shared else "i")
            names.append(name)
        for i in range(self.k if self.backward else 0):
            state = f"{self.pointer('state', i)} + (b[r] * T + now + way) * D + d[r]"
            x0 = f"{self.pointer('x0', i)} + b[r] * D + d[r]"
            fill += self.copied(f"h{i}_", state, "D", "i", x0)
            names.append(f"h{i}_")
        written = [(name, i, False) for name, i in self.written]
        for name, i, summed in [*written, *(("grad", s, True) for s in self.shared)]:
            of = f"{name}{i}_ + s * W + r * V"
            size, channel, take = "D", "d[r]", f"for (int i = 0; i < V; i++) to[i] = ({of})[i]"
            if summed:
                size, channel, take = "PARTS(D)", "PART(D, d[r])", f"*to = sum({of}, V)"
            empty += [
                "    for (int r = 0; r * V < used; r++) {",
                "      const int64_t now = t[r] + way * l0;",
                f"      real *to = {self.pointer(name, i, False)} + (b[r] * T + now) * {size};",
                f"      to += {channel};",
                f"      for (int s = 0; s < left[r * V]; s++, to += way * {size}) {take};",
                "    }",
            ]
            names.append(f"{name}{i}_")
        return [
            *(f"  real {name}[STAGE * W];" for name in names),
            "  int32_t left[W];",
            "  for (int64_t l0 = 0; l0 < longest; l0 += STAGE) {",
            "    const int n = longest - l0 < STAGE ? longest - l0 : STAGE;",
            "    for (int j = 0; j < W; j++) {",
            "      const int64_t rest = len[j / V] - l0;",
            "      left[j] = rest < 0 ? 0 : rest < n ? rest : n;",
            "    }",
            *fill,
            "    for (int s = 0; s < n; s++) {",
            *self.step(),
            "    }",
            *empty,
            *(f"    if (l0 % 64 + STAGE == 64 || l0 + n == longest) {x}" for x in self.flush()),
            "  }",
        ]

    def copied(self, name: str, start: str, stride: str, index: str, edge: str = "") -> list[str]:
        """Fill a buffer from `start`, from `edge` where the forward run began; then zeros."""
        at_edge = "(reverse ? now : T - 1 - now)"  # steps until there
        lines = [
            "    for (int r = 0; r < W / V; r++) {",
            "      const int64_t now = t[r] + way * l0;",
            f"      const real *from = {start};",
            f"      real *to = {name} + r * V;",
        ]
        if edge:
            lines += [
                f"      const int begin = {at_edge} < left[r * V] ? {at_edge} : -1;",
                "      const int m = begin < 0 ? left[r * V] : begin;",
            ]
        else:
            lines.append("      const int m = left[r * V];")
        lines += [
            "      int s = 0;",
            f"      for (; s < m; s++, from += way * {stride}, to += W)",
            f"        for (int i = 0; i < V; i++) to[i] = from[{index}];",
        ]
        if edge:
            lines += [
                "      if (begin >= 0) {",
                f"        for (int i = 0; i < V; i++) to[i] = ({edge})[i];",
                "        s++, to += W;",
                "      }",
            ]
        lines += [
            "      for (; s < n; s++, to += W) for (int i = 0; i < V; i++) to[i] = 0;",
            "    }",
        ]
        return lines

    def read(self, name: str, whole: bool) -> str:
        return f"{name}[s * W + j]"

    def write(self, name: str, i: int, value: str) -> str:
        return f"{name}{i}_[s * W + j] = {value};"
