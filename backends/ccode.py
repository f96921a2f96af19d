"""C source for the kernels of a program: the step, its Jacobian and its gradient, run over chunks.

One group of `W` lanes goes through its steps at a time: `V` neighbouring channels of each of
`W / V` rows, a row being one chunk of one sequence. The compiler turns the loop over the `V`
into vector instructions; several rows at a time keep the processor busy where a row is short.
Channels left over are gathered from all rows. Groups are divided among threads. The text is made
from the expression graph and numbers alone.

Every kernel takes one array of 64-bit integers, laid out by `Layout.fields`: sizes, then pointers
and strides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from parnl import diff
from parnl.backends import vecmath
from parnl.expr import INFIX, Symbol, reachable
from parnl.program import Program

# Operand layouts by the axes of (B, T, D) that they really have: time and channel.
FULL, TIME, CHANNEL, SCALAR = "f", "t", "c", "s"


class Lanes(NamedTuple):
    """How lanes are grouped: W at a time, in spans of V.

    near: there are groups of V neighbours in a row; far: there are channels left over, or too few.
    Only what there is gets compiled.
    """

    group: int
    span: int
    near: bool
    far: bool


class Kernel(NamedTuple):
    """What decides a kernel: `kind` is "trajectory", "advance", "adjoint" or "backward".

    dtype: "float32" or "float64"; layouts: one letter for each operand; wanted: operands whose
    gradient "backward" computes.
    """

    program: Program
    kind: str
    dtype: str
    layouts: str
    lanes: Lanes
    wanted: tuple[int, ...] = ()


# What stands in the argument array, in this order: sizes, then one entry per name and index.
SIZES = ("batch", "chunks", "channels", "steps", "length", "reverse", "threads")


def fields(kernel: Kernel) -> list[tuple[str, int]]:
    """Return the groups of entries that follow the sizes: (name, how many)."""
    k, n = len(kernel.program.states), len(kernel.program.operands)
    groups = [("op", n), ("opb", n), ("opt", n)]  # operand pointers, strides over batch and time
    match kernel.kind:
        case "trajectory":
            return [*groups, ("start", k), ("out", k), ("end", k)]
        case "advance":
            return [*groups, ("start", k), ("end", k), ("prod", k * k)]
    # states and the initial state; gradients of the states, with strides
    groups += [("state", k), ("x0", k), ("g", k), ("gb", k), ("gt", k)]
    groups += [("start", k)]
    if kernel.kind == "adjoint":
        return [*groups, ("end", k), ("prod", k * k)]
    return [*groups, ("end", k), ("grad", len(kernel.wanted))]


_MATH = ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf")

_HEAD = """\
#include <stdint.h>
#include <pthread.h>
typedef {real} real;
#define W {lanes}
#define V {span}
#define R(x) ((real)(x))
#ifdef PARNL_VECTOR_MATH
#define SIMD_MATH _Pragma("omp declare simd notinbranch")
#else
#define SIMD_MATH
#endif
{declarations}
{real} sqrt{f}({real});
{real} fabs{f}({real});
{real} pow{f}({real}, {real});
#define ROW(j) (near ? row[(j) / V] : row[j])
#define CHANNEL(j) (near ? d0 + (j) % V : d[j])
#define INFINITY_ (__builtin_inf{f}())
#define NAN_ (__builtin_nan{f}(""))
"""

_TAIL = """
typedef struct { const int64_t *a; int64_t first, last; } Part;

static void *part(void *given) {
  const Part *p = given;
  for (int64_t item = p->first; item < p->last; item++) group(p->a, item);
  return 0;
}

/* Threads are made for the call and gone after it: nothing outlives it that a fork could break. */
void kernel(const int64_t *a) {
  const int64_t items = count(a);
  int64_t threads = a[6] < items ? a[6] : items;
  if (threads > 64) threads = 64;
  pthread_t id[64];
  Part parts[64];
  int started[64];
  for (int64_t i = 0; i < threads; i++) {
    parts[i] = (Part){a, items * i / threads, items * (i + 1) / threads};
    started[i] = i > 0 && pthread_create(&id[i], 0, part, &parts[i]) == 0;
  }
  for (int64_t i = 0; i < threads; i++)
    if (!started[i]) part(&parts[i]);
  for (int64_t i = 1; i < threads; i++)
    if (started[i]) pthread_join(id[i], 0);
}
"""

# The same kernel as an XLA custom call: a handler in plain C, for jaxlib's C header. The numbers of
# the argument array come as one attribute; the other, `slots`, tells which of them are addresses:
# i > 0 is that of argument i - 1, i < 0 that of result -i - 1. Attributes are sorted by name.
_FFI = """
#include "xla/ffi/api/c_api.h"

XLA_FFI_Error *handler(XLA_FFI_CallFrame *frame) {
  for (XLA_FFI_Extension_Base *e = frame->extension_start; e; e = e->next)
    if (e->type == XLA_FFI_Extension_Metadata) {
      XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)e)->metadata;
      metadata->api_version.major_version = XLA_FFI_API_MAJOR;
      metadata->api_version.minor_version = XLA_FFI_API_MINOR;
      metadata->traits = 0;
      return 0;
    }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return 0;
  const XLA_FFI_Array *slots = frame->attrs.attrs[0], *table = frame->attrs.attrs[1];
  int64_t a[table->size];
  for (size_t i = 0; i < table->size; i++) {
    const int64_t slot = ((const int64_t *)slots->data)[i];
    if (slot > 0) a[i] = (int64_t)((XLA_FFI_Buffer *)frame->args.args[slot - 1])->data;
    else if (slot < 0) a[i] = (int64_t)((XLA_FFI_Buffer *)frame->rets.rets[-slot - 1])->data;
    else a[i] = ((const int64_t *)table->data)[i];
  }
  kernel(a);
  return 0;
}
"""


def source(kernel: Kernel, ffi: bool = False) -> str:
    """Return the text of a C file that defines `void kernel(const int64_t *)`.

    With `ffi`, also the XLA FFI handler `handler` around it.
    """
    suffix, real = ("f", "float") if kernel.dtype == "float32" else ("", "double")
    declarations = "\n".join(f"SIMD_MATH {real} {m}{suffix}({real});" for m in _MATH)
    lanes, span = kernel.lanes[:2]
    head = _HEAD.format(real=real, lanes=lanes, span=span, f=suffix, declarations=declarations)
    head += vecmath.FLOAT32 if suffix else ""
    return head + _Writer(kernel, suffix).text() + _TAIL + (_FFI if ffi else "")


class _Writer:
    """Writes the function `group`, which takes one group of lanes through its chunk."""

    def __init__(self, kernel: Kernel, suffix: str) -> None:
        self.kernel, self.suffix = kernel, suffix
        self.program = kernel.program
        self.k, self.n = len(self.program.states), len(self.program.operands)
        self.backward = kernel.kind in ("adjoint", "backward")
        self.position: dict[str, int] = {}
        at = len(SIZES)
        for name, size in fields(kernel):
            self.position[name] = at
            at += size

    def a(self, name: str, i: int) -> str:
        return f"a[{self.position[name] + i}]"

    def pointer(self, name: str, i: int, const: bool = True) -> str:
        return f"(({'const ' if const else ''}real *){self.a(name, i)})"

    def text(self) -> str:
        """`count` and `group`; the latter in two versions, of neighbouring and scattered lanes."""
        return "\n".join(
            [
                # no part of the loop over steps: inlined, it would be run in every one, masked
                "static __attribute__((noinline, unused)) void flush(real *s, double *S) {",
                "  for (int j = 0; j < W; j++) { S[j] += s[j]; s[j] = 0; }",
                "}",
                "static int64_t count(const int64_t *a) {",
                "  const int64_t rows = a[0] * a[1], D = a[2], left = D % V;",
                "  return (rows + W / V - 1) / (W / V) * (D / V) + (rows * left + W - 1) / W;",
                "}",
                "static inline __attribute__((always_inline)) void",
                "lanes(const int64_t *a, const int near, const int64_t q, const int64_t used,",
                "      const int64_t d0, const int64_t left) {",
                *self.prologue(),
                *self.loop(),
                *self.epilogue(),
                "}",
                "static void group(const int64_t *a, int64_t item) {",
                "  const int64_t rows = a[0] * a[1], D = a[2], left = D % V, R = W / V;",
                "  const int64_t across = D / V, whole = (rows + R - 1) / R * across;",
                *(self.near() if self.kernel.lanes.near else []),
                *(self.far() if self.kernel.lanes.far else []),
                "}",
            ]
        )

    def near(self) -> list[str]:
        return [
            "  if (item < whole) {",
            "    const int64_t q = item / across * R;",
            "    lanes(a, 1, q, rows - q < R ? rows - q : R, item % across * V, left);",
            "    return;",
            "  }",
        ]

    def far(self) -> list[str]:
        return [
            "  const int64_t q = (item - whole) * W, all = rows * left;",
            "  lanes(a, 0, q, all - q < W ? all - q : W, 0, left);",
        ]

    def prologue(self) -> list[str]:
        """Where each lane stands: sequence b, chunk c, channel d; its steps; its start."""
        lines = [
            "  const int64_t C = a[1], D = a[2], T = a[3], L = a[4], reverse = a[5];",
            "  const int64_t way = reverse ? -1 : 1;",
            "  /* near: `used` rows from row q on, V channels from d0 on; else lane j is number",
            "     q + j of the channels left over in all rows; lanes not used repeat the last */",
            "  int64_t row[W], d[W], t[W], len[W], longest = 0;",
            "  for (int j = 0; j < (near ? W / V : W); j++) {",
            "    const int64_t lane = q + (j < used ? j : used - 1);",
            "    row[j] = near ? lane : lane / left;",
            "    d[j] = near ? d0 : D - left + lane % left;",
            "    const int64_t c = row[j] % C, rest = T - c * L;",
            "    len[j] = rest < L ? rest : L;",
            "    if (len[j] > longest) longest = len[j];",
            "    t[j] = reverse ? T - 1 - c * L : c * L;",
            "  }",
        ]
        for i in range(self.k):
            lines.append(f"  real x{i}[W];")
            lines.append(
                f"  for (int j = 0; j < W; j++) "
                f"x{i}[j] = {self.pointer('start', i)}[ROW(j) * D + CHANNEL(j)];"
            )
        for i, layout in enumerate(self.kernel.layouts):
            if layout in (CHANNEL, SCALAR):
                index = "CHANNEL(j)" if layout == CHANNEL else "0"
                lines.append(f"  real w{i}[W];")
                lines.append(
                    f"  for (int j = 0; j < W; j++) w{i}[j] = "
                    f"{self.pointer('op', i)}[ROW(j) / C * {self.a('opb', i)} + {index}];"
                )
        if self.kernel.kind in ("advance", "adjoint"):
            for e in range(self.k * self.k):
                start = 1 if e // self.k == e % self.k else 0
                lines.append(f"  real p{e}[W]; for (int j = 0; j < W; j++) p{e}[j] = {start};")
        if self.kernel.kind == "backward":
            for s, i in enumerate(self.kernel.wanted):
                if self.kernel.layouts[i] in (CHANNEL, SCALAR):
                    # summed in double now and then: thousands of steps in float would round
                    lines.append(f"  real s{s}[W]; double S{s}[W];")
                    lines.append(f"  for (int j = 0; j < W; j++) s{s}[j] = S{s}[j] = 0;")
                else:
                    lines.append(f"  real k{s}[W];")
        return lines

    def sums(self) -> list[int]:
        """Which of the wanted gradients are sums over time."""
        if self.kernel.kind != "backward":
            return []
        layouts = self.kernel.layouts
        return [s for s, i in enumerate(self.kernel.wanted) if layouts[i] in (CHANNEL, SCALAR)]

    def loop(self) -> list[str]:
        self.before: list[str] = []  # what a load needs once, before the loop
        lines: list[str] = []
        loads = self.loads(lines)
        lines = [
            "  int64_t here[W];",
            "  if (near) for (int r = 0; r < W / V; r++)",
            "    here[r] = (row[r] / C * T + t[r]) * D + d0;",
            *self.before,
            "  for (int64_t l = 0; l < longest; l++) {",
            "    for (int r = 0; r < (near && W > V ? used : 1); r++) {",
            "    if (near && W > V && l >= len[r]) continue;",
            "    const int64_t at = here[r], now = t[r];",
            *lines,
            "    #pragma omp simd",
            "    for (int i = 0; i < (near ? V : W); i++) {",
            "      const int j = (near ? r * V : 0) + i;",
            *(f"      {line}" for line in [*loads, *self.body()]),
            "    }",
            "    if (near && W == V) t[r] += way, here[r] += way * D;",
            "    }",
            *self.stores(),
        ]
        for s in self.sums():
            lines.append(f"    if (l % 64 == 63 || l + 1 == longest) flush(s{s}, S{s});")
        lines += [
            "    if (!near) for (int j = 0; j < W; j++) t[j] += l + 1 < len[j] ? way : 0;",
            "  }",
        ]
        return lines

    def loads(self, lines: list[str]) -> list[str]:
        """Operands into q0, q1, ...; pointers of neighbouring lanes are moved once a step."""
        loads = []
        for i, layout in enumerate(self.kernel.layouts):
            base, sb, st = self.pointer("op", i), self.a("opb", i), self.a("opt", i)
            if layout in (CHANNEL, SCALAR):
                loads.append(f"const real q{i} = w{i}[j];")
                continue
            d = (" + d0", "[i]", " + d[j]") if layout == FULL else ("", "[0]", "")
            self.before += [
                f"  const real *r{i}_[W];",
                f"  if (near) for (int r = 0; r < W / V; r++) "
                f"r{i}_[r] = {base} + row[r] / C * {sb} + t[r] * {st}{d[0]};",
                f"  const int64_t r{i}way = way * {st};",
            ]
            lines.append(f"    const real *r{i} = near ? r{i}_[r] : 0;")
            lines.append(f"    if (near) r{i}_[r] += r{i}way;")
            offset = f"row[j] / C * {sb}{d[2]}"  # no division in the loop that is vectorised
            self.before.append(f"  int64_t o{i}[W];")
            self.before.append(f"  if (!near) for (int j = 0; j < W; j++) o{i}[j] = {offset};")
            far = f"{base}[o{i}[j] + t[j] * {st}]"
            loads.append(f"const real q{i} = near ? r{i}{d[1]} : {far};")
        for i in range(self.k):
            loads.append(f"const real m{i} = x{i}[j];")
        if not self.backward:
            return loads
        self.before += [
            "  int64_t s[W];",
            "  if (!near) for (int j = 0; j < W; j++) s[j] = row[j] / C * T * D + d[j];",
        ]
        for i in range(self.k):
            # the state before the step: one step earlier in the forward run, which goes the other
            # way, or the initial state
            state, x0 = self.pointer("state", i), self.pointer("x0", i)
            edge = "(reverse ? {t} == 0 : {t} == T - 1)"
            at_edge, within = edge.format(t="now"), f"{state} + at + way * D"
            begin = f"{x0} + row[r] / C * D + d0"
            lines.append(f"    const real *h{i} = near ? {at_edge} ? {begin} : {within} : 0;")
            self.before += [
                f"  real e{i}[W];",
                f"  if (!near) for (int j = 0; j < W; j++) e{i}[j] = {x0}[row[j] / C * D + d[j]];",
            ]
            at_edge = edge.format(t="t[j]")
            # loaded whether used or not: a load under a condition would not be vectorised
            far = f"{state}[s[j] + (t[j] + ({at_edge} ? 0 : way)) * D]"
            loads.append(f"const real f{i} = near ? h{i}[i] : {far};")
            loads.append(f"const real h{i}_ = !near && {at_edge} ? e{i}[j] : f{i};")
            g, gb, gt = self.pointer("g", i), self.a("gb", i), self.a("gt", i)
            self.before += [
                f"  const real *g{i}_[W];",
                f"  if (near) for (int r = 0; r < W / V; r++) "
                f"g{i}_[r] = {g} + row[r] / C * {gb} + t[r] * {gt} + d0;",
                f"  const int64_t g{i}way = way * {gt};",
            ]
            lines.append(f"    const real *g{i} = near ? g{i}_[r] : 0;")
            lines.append(f"    if (near) g{i}_[r] += g{i}way;")
            self.before += [
                f"  int64_t og{i}[W];",
                f"  if (!near) for (int j = 0; j < W; j++) og{i}[j] = row[j] / C * {gb} + d[j];",
            ]
            far = f"{g}[og{i}[j] + t[j] * {gt}]"
            loads.append(f"const real l{i} = m{i} + (near ? g{i}[i] : {far});")
        return loads

    def body(self) -> list[str]:
        """The arithmetic of one step of one lane."""
        program, k = self.program, self.k
        names = {s.index: f"q{i}" for i, s in enumerate(program.operand_symbols)}
        state_name = "h{}_" if self.backward else "m{}"
        names |= {s.index: state_name.format(i) for i, s in enumerate(program.state_symbols)}
        match self.kernel.kind:
            case "trajectory":
                results, lines = self.compute(program.outputs, names)
            case "advance":
                results, lines = self.compute([*program.outputs, *program.jacobian], names)
            case "adjoint":
                entries, lines = self.compute(program.jacobian, names)
                # transposed: row i of J^T is column i of J
                turned = [entries[j * k + i] for i in range(k) for j in range(k)]
                states = [_sum_of_products(turned[i * k :], [f"l{j}" for j in range(k)])
                          for i in range(k)]  # fmt: skip
                results = [*states, *turned]
            case _:
                cotangents = [program.graph.leaf("cotangent", s) for s in program.states]
                names |= {c.index: f"l{i}" for i, c in enumerate(cotangents)}
                wanted = [program.operand_symbols[i] for i in self.kernel.wanted]
                zero = program.graph.constant(0.0)
                pulled = diff.vjp(program.outputs, cotangents, [*program.state_symbols, *wanted])
                found = [zero if p is None else p for p in pulled]
                results, lines = self.compute(found, names)
        alive = "near || l < len[j]"
        for i in range(k):
            lines.append(f"const real n{i} = {results[i]};")
        if self.kernel.kind in ("advance", "adjoint"):
            entries = results[k:]
            for e in range(k * k):
                row = entries[e // k * k : e // k * k + k]
                column = [f"p{m * k + e % k}[j]" for m in range(k)]
                lines.append(f"const real y{e} = {_sum_of_products(row, column)};")
            lines += [f"p{e}[j] = {alive} ? y{e} : p{e}[j];" for e in range(k * k)]
        for i in range(k):
            lines.append(f"x{i}[j] = {alive} ? n{i} : m{i};")
        if self.kernel.kind == "trajectory":
            for i in range(k):
                out = f"{self.pointer('out', i, False)}[at + i]"
                lines.append(f"if (near && W == V) {out} = n{i};")
        if self.kernel.kind == "backward":
            for s, i in enumerate(self.kernel.wanted):
                value = results[k + s]
                if self.kernel.layouts[i] in (CHANNEL, SCALAR):
                    lines.append(f"s{s}[j] += {alive} ? {value} : 0;")
                else:
                    out = f"{self.pointer('grad', s, False)}[at + i]"
                    lines.append(f"const real z{s} = {value};")
                    lines.append(f"if (near && W == V) {out} = z{s}; else k{s}[j] = z{s};")
        return lines

    def stores(self) -> list[str]:
        """What was computed for several rows, or for scattered lanes, is stored after all of it.

        Rows are often a multiple of 4096 bytes apart. A load whose address has the last 12 bits of
        a store before it waits for that store: rows would be computed one after the other.
        """
        stores = []
        if self.kernel.kind == "trajectory":
            stores = [(self.pointer("out", i, False), f"x{i}") for i in range(self.k)]
        if self.kernel.kind == "backward":
            for s, i in enumerate(self.kernel.wanted):
                if self.kernel.layouts[i] in (FULL, TIME):
                    stores.append((self.pointer("grad", s, False), f"k{s}"))
        rows = [
            f"      for (int i = 0; i < V; i++) {array}[here[r] + i] = {lane}[r * V + i];"
            for array, lane in stores
        ]
        scattered = [
            f"    if (!near) for (int64_t j = 0; j < used; j++) if (l < len[j]) "
            f"{array}[(row[j] / C * T + t[j]) * D + d[j]] = {lane}[j];"
            for array, lane in stores
        ]
        return [
            "    if (near && W > V) for (int r = 0; r < used; r++) if (l < len[r]) {",
            *rows,
            "      t[r] += way, here[r] += way * D;",
            "    }",
            *scattered,
        ]

    def epilogue(self) -> list[str]:
        """Ends, products and sums of each lane, at (b, c, d)."""
        stores = [("end", i, f"x{i}") for i in range(self.k)]
        if self.kernel.kind in ("advance", "adjoint"):
            stores += [("prod", e, f"p{e}") for e in range(self.k * self.k)]
        stores += [("grad", s, f"S{s}") for s in self.sums()]
        return [
            f"  for (int64_t j = 0; j < (near ? used * V : used); j++) "
            f"{self.pointer(name, i, False)}[ROW(j) * D + CHANNEL(j)] = {lane}[j];"
            for name, i, lane in stores
        ]

    def compute(
        self, outputs: Sequence[Symbol], names: Mapping[int, str]
    ) -> tuple[list[str], list[str]]:
        """Return the expressions of `outputs`, and the lines before them."""
        names, lines = dict(names), []
        for node in reachable(list(outputs)):
            if node.op == "constant":
                names[node.index] = self.number(node.value)
            elif node.index not in names:
                names[node.index] = f"v{node.index}"
                kind = "int" if node.op in _CONDITIONS else "real"
                text = self.expression(node, [names[a.index] for a in node.args])
                lines.append(f"const {kind} v{node.index} = {text};")
        return [names[o.index] for o in outputs], lines

    def function(self, name: str) -> str:
        own = self.suffix and name in vecmath.INLINED
        return f"v{name}f" if own else f"{name}{self.suffix}"

    def number(self, value: float) -> str:
        if value != value:
            return "NAN_"
        if value in (float("inf"), float("-inf")):
            return "INFINITY_" if value > 0 else "(-INFINITY_)"
        return f"R({value!r})"

    def expression(self, node: Symbol, x: list[str]) -> str:
        f = self.suffix
        if node.op in INFIX:
            return f"{x[0]} {INFIX[node.op]} {x[1]}"
        if node.op in _MATH or node.op == "sqrt":
            return f"{self.function(node.op)}({x[0]})"
        match node.op:
            case "neg":
                return f"-{x[0]}"
            case "abs":
                return f"fabs{f}({x[0]})"
            case "sigmoid":
                return f"1 / (1 + {self.function('exp')}(-{x[0]}))"
            case "softplus":
                small = f"{self.function('exp')}(-fabs{f}({x[0]}))"
                return f"({x[0]} < 0 ? 0 : {x[0]}) + log1p{f}({small})"
            case "relu":
                return f"{x[0]} < 0 ? 0 : {x[0]}"
            case "sign":
                return f"{x[0]} > 0 ? 1 : {x[0]} < 0 ? -1 : {x[0]}"
            case "minimum":  # either NaN is the result
                return f"({x[0]} < {x[1]} || {x[0]} != {x[0]}) ? {x[0]} : {x[1]}"
            case "maximum":
                return f"({x[0]} > {x[1]} || {x[0]} != {x[0]}) ? {x[0]} : {x[1]}"
            case "where":
                return f"{x[0]} ? {x[1]} : {x[2]}"
            case "logical_and":
                return f"{x[0]} & {x[1]}"
            case "logical_or":
                return f"{x[0]} | {x[1]}"
            case "logical_not":
                return f"!{x[0]}"
            case "pow":
                return self.power(x[0], node.args[1].value)
        raise NotImplementedError(f"no C for {node.op}")

    def power(self, x: str, exponent: float) -> str:
        if exponent == int(exponent) and 0 < abs(exponent) <= 8:
            product = " * ".join([x] * int(abs(exponent)))
            return product if exponent > 0 else f"1 / ({product})"
        return f"pow{self.suffix}({x}, {self.number(exponent)})"


_CONDITIONS = ("lt", "le", "gt", "ge", "eq", "ne", "logical_and", "logical_or", "logical_not")


def _sum_of_products(row: Sequence[str], column: Sequence[str]) -> str:
    """A structural zero of `row` is left out: what it would multiply may not be finite."""
    terms = []
    for a, b in zip(row, column, strict=False):
        if a != "R(0.0)":
            terms.append(b if a == "R(1.0)" else f"{a} * {b}")
    return " + ".join(terms) or "0"
