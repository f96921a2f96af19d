"""C source for the kernels of a program: the step, its Jacobian and its gradient, run over chunks.

A row is one chunk of one sequence. A group of `W` lanes goes through its steps together, and the
compiler turns the loop over its lanes into vector instructions. The lanes of a group are either

    near:    neighbouring channels of one row, read and written where they lie; or
    staged:  what is left over, from several rows, `V` neighbours of each: read into a buffer for
             `STAGE` steps at a time, and written from one; the arithmetic is on full vectors.

Groups are divided among threads. The text is made from the expression graph and numbers alone.

Every kernel takes one array of 64-bit integers, laid out by `fields`: sizes, then pointers and
strides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from parnl.backends.c import vecmath
from parnl.backends.c.expressions import MATH, Expressions, sum_of_products
from parnl.graph import derivatives
from parnl.graph.program import Program

# Operand layouts by the axes of (B, T, D) that they really have: time and channel.
FULL, TIME, CHANNEL, SCALAR = "f", "t", "c", "s"


# Lines are asked for so many steps ahead where a group is less than a row: to go through memory
# with gaps is not what processors foresee. Measured, one thread, T = 16384, ns a channel and step:
# backward, 64 channels, GRU 6.2 -> 2.5, LRC 6.9 -> 3.3; forward, 512 channels, GRU 3.5 -> 2.5.
# Where a group is a row, 3 to 15 % are lost forward, and 0 to 10 % gained backward.
_AHEAD = 8


class Lanes(NamedTuple):
    """How lanes are grouped: W, V, and which kinds of groups there are: only they are compiled.

    apart: whether a near group is less than its row, so that what it reads next lies apart.
    """

    group: int
    span: int
    near: bool
    staged: bool
    apart: bool = False


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
# `team`: the address of OpenMP's GOMP_parallel, or 0.
SIZES = ("batch", "chunks", "channels", "steps", "length", "reverse", "threads", "team")


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


_HEAD = """\
#include <stdint.h>
#include <stdlib.h>
#include <pthread.h>
#include <sys/mman.h>
typedef {real} real;
#define W {lanes}
#define V {span}
#define STAGE 16
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
#define INFINITY_ (__builtin_inf{f}())
#define NAN_ (__builtin_nan{f}(""))
"""

_TAIL = """
typedef struct { const int64_t *a; int64_t items, some, next; } Work;

/* Whoever is free takes the next few, until there are none: who comes late holds up nobody. */
static void share(void *given) {
  Work *w = given;
  int64_t first;
  while ((first = __atomic_fetch_add(&w->next, w->some, __ATOMIC_RELAXED)) < w->items) {
    const int64_t last = first + w->some < w->items ? first + w->some : w->items;
    for (int64_t item = first; item < last; item++) group(w->a, item);
  }
}

/* A large result is mostly fresh memory: taken in huge pages it costs a fraction of the faults. */
static void expect(int64_t address, int64_t size) {
#ifdef MADV_HUGEPAGE
  const int64_t page = 4096, first = (address + page - 1) / page * page;
  if (size >= 4 << 20)
    madvise((void *)first, (address + size - first) / page * page, MADV_HUGEPAGE);
#endif
}

static Work begun(const int64_t *a) {
  const int64_t items = count(a);
  large_results(a);
  return (Work){a, items, items / (8 * a[6] + 1) + 1, 0};
}

/* Work that helpers were asked for: they may come late, even when all is done and forgotten. */
typedef struct {
  Work work;
  pthread_mutex_t lock;
  pthread_cond_t idle;
  int known_to, active, over;
} Job;

/* under the lock, which it gives up */
static void forget(Job *job) {
  const int last = --job->known_to == 0;
  pthread_mutex_unlock(&job->lock);
  if (!last) return;
  pthread_mutex_destroy(&job->lock);
  pthread_cond_destroy(&job->idle);
  free(job);
}

static void help(void *given) {
  Job *job = given;
  pthread_mutex_lock(&job->lock);
  if (!job->over) {
    job->active++;
    pthread_mutex_unlock(&job->lock);
    share(&job->work);
    pthread_mutex_lock(&job->lock);
    if (--job->active == 0) pthread_cond_signal(&job->idle);
  }
  forget(job);
}

/* `ask` finds one helper, and returns whether it did. */
static void run(const int64_t *a, int (*ask)(const void *, Job *), const void *context) {
  Work work = begun(a);
  const int64_t most = a[6] < work.items ? a[6] : work.items;
  Job *job = most > 1 ? malloc(sizeof *job) : 0;
  if (!job) { share(&work); return; }
  *job = (Job){.work = work, .known_to = most};
  pthread_mutex_init(&job->lock, 0);
  pthread_cond_init(&job->idle, 0);
  int64_t asked = 1;
  while (asked < most && ask(context, job)) asked++;
  share(&job->work);
  pthread_mutex_lock(&job->lock);
  job->over = 1;
  while (job->active) pthread_cond_wait(&job->idle, &job->lock);
  job->known_to -= most - asked;
  forget(job);
}

static void *thread(void *job) { help(job); return 0; }

/* Threads of our own end with the work: nothing is left that a fork could break. */
static int make_thread(const void *context, Job *job) {
  (void)context;
  pthread_t id;
  if (pthread_create(&id, 0, thread, job) != 0) return 0;
  pthread_detach(id);
  return 1;
}

/* On a team of OpenMP's threads, or on our own. */
void kernel(const int64_t *a) {
  if (!a[7] || a[6] < 2) { run(a, make_thread, 0); return; }
  Work work = begun(a);
  ((void (*)(void (*)(void *), void *, unsigned, unsigned))a[7])(share, &work, a[6], 0);
}
"""

# The same kernel as an XLA custom call: a handler in plain C, for jaxlib's C header. The numbers of
# the argument array come as one attribute; the other, `slots`, tells which of them are addresses:
# i > 0 is that of argument i - 1, i < 0 that of result -i - 1. Attributes are sorted by name.
_FFI = """
#include "xla/ffi/api/c_api.h"

/* A helper of XLA's own threads. */
static int ask_xla(const void *context, Job *job) {
  const XLA_FFI_CallFrame *frame = context;
  XLA_FFI_ThreadPool_Schedule_Args schedule = {
    .struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE,
    .ctx = frame->ctx, .task = help, .data = job,
  };
  XLA_FFI_Error *error = frame->api->XLA_FFI_ThreadPool_Schedule(&schedule);
  if (!error) return 1;
  XLA_FFI_Error_Destroy_Args destroy = {
    .struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, .error = error,
  };
  frame->api->XLA_FFI_Error_Destroy(&destroy);
  return 0;
}

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
  run(a, ask_xla, frame);
  return 0;
}
"""


def source(kernel: Kernel, ffi: bool = False) -> str:
    """Return the text of a C file that defines `void kernel(const int64_t *)`.

    With `ffi`, also the XLA FFI handler `handler` around it.
    """
    suffix, real = ("f", "float") if kernel.dtype == "float32" else ("", "double")
    declarations = "\n".join(f"SIMD_MATH {real} {m}{suffix}({real});" for m in MATH)
    group, span, near, staged, _ = kernel.lanes
    head = _HEAD.format(real=real, lanes=group, span=span, f=suffix, declarations=declarations)
    head += vecmath.FLOAT32 if suffix else ""
    head += Expressions(suffix).definitions()
    ways = [w(kernel, suffix).text() for w, there in ((_Near, near), (_Staged, staged)) if there]
    calls = {
        True: "  if (item < near) { near_group(a, item); return; }",
        False: "  staged_group(a, item - near);",
    }
    count = f"""
/* no part of the loop over steps: inlined, it would be run in every one, masked */
static __attribute__((noinline, unused)) void flush(real *some, double *total) {{
  for (int j = 0; j < W; j++) {{ total[j] += some[j]; some[j] = 0; }}
}}
/* the lines of W numbers, which may begin within one */
static inline __attribute__((unused)) void fetch(const real *p) {{
  for (int j = 0; j < W; j += 64 / (int)sizeof(real)) __builtin_prefetch(p + j);
  __builtin_prefetch(p + W - 1);
}}
/* channels that are near others, and the rest of each row; how many groups of each */
#define NEAR_CHANNELS(D) ({"(D) / W * W" if near else "0"})
static int64_t near_count(const int64_t *a) {{ return a[0] * a[1] * (NEAR_CHANNELS(a[2]) / W); }}
static int64_t count(const int64_t *a) {{
  return near_count(a) + (a[0] * a[1] * (a[2] - NEAR_CHANNELS(a[2])) + W - 1) / W;
}}
"""
    group_function = [
        "static void group(const int64_t *a, int64_t item) {",
        "  const int64_t near = near_count(a);",
        *([calls[True]] if near else []),
        *([calls[False]] if staged else []),
        "}",
    ]
    large = [
        "static void expect(int64_t address, int64_t size);",
        "static void large_results(const int64_t *a) {",
        "  const int64_t size = a[0] * a[2] * a[3] * (int64_t)sizeof(real);",
        *(f"  expect(a[{at}], size);" for at in _large(kernel)),
        "}",
    ]
    text = "\n".join([head, count, *ways, *group_function, *large])
    return text + _TAIL + (_FFI if ffi else "")


def _large(kernel: Kernel) -> list[int]:
    """Return where in the argument array the results are that hold a number for every step."""
    at = len(SIZES)
    positions: list[int] = []
    for name, size in fields(kernel):
        if name == "out":
            positions += range(at, at + size)
        elif name == "grad":
            moving = [kernel.layouts[i] in (FULL, TIME) for i in kernel.wanted]
            positions += [at + i for i in range(size) if moving[i]]
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

    def __init__(self, kernel: Kernel, suffix: str) -> None:
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
        # operands that depend on time; wanted gradients that are sums over time, and the others
        self.moving = [i for i, s in enumerate(still) if not s]
        self.sums = [s for s, i in wanted if still[i]]
        self.written = [("grad", s) for s, i in wanted if not still[i]]
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
        program, k, compute = self.program, self.k, self.expressions.compute
        names = {s.index: f"q{i}" for i, s in enumerate(program.operand_symbols)}
        state = "h" if self.backward else "m"
        names |= {s.index: f"{state}{i}" for i, s in enumerate(program.state_symbols)}
        match self.kernel.kind:
            case "trajectory":
                results, lines = compute(program.outputs, names)
            case "advance":
                results, lines = compute([*program.outputs, *program.jacobian], names)
            case "adjoint":
                entries, lines = compute(program.jacobian, names)
                # transposed: row i of J^T is column i of J
                turned = [entries[j * k + i] for i in range(k) for j in range(k)]
                adjoint = [f"l{j}" for j in range(k)]
                pulled = [sum_of_products(turned[i * k :], adjoint) for i in range(k)]
                results = [*pulled, *turned]
            case _:
                cotangents = [program.graph.leaf("cotangent", s) for s in program.states]
                names |= {c.index: f"l{i}" for i, c in enumerate(cotangents)}
                wanted = [program.operand_symbols[i] for i in self.kernel.wanted]
                zero = program.graph.constant(0.0)
                found = derivatives.vjp(
                    program.outputs, cotangents, [*program.state_symbols, *wanted]
                )
                results, lines = compute([zero if p is None else p for p in found], names)
        lines += [f"const real n{i} = {results[i]};" for i in range(k)]
        if self.products:
            entries = results[k:]
            for e in range(k * k):
                row = entries[e // k * k : e // k * k + k]
                column = [f"p{m * k + e % k}[j]" for m in range(k)]
                lines.append(f"const real y{e} = {sum_of_products(row, column)};")
            lines += [f"p{e}[j] = {self.if_alive(f'y{e}', f'p{e}[j]')};" for e in range(k * k)]
        lines += [f"x{i}[j] = {self.if_alive(f'n{i}', f'm{i}')};" for i in range(k)]
        lines += [f"s{s}[j] += {self.if_alive(results[k + s], '0')};" for s in self.sums]
        for name, i in self.written:
            value = f"n{i}" if name == "out" else results[k + i]
            lines.append(self.write(name, i, value))
        return lines

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
        return [
            "  int64_t at = (b * T + t) * D + d0;",
            *before,
            "  for (int64_t l = 0; l < len; l++) {",
            *(f"    fetch({address});" for address in soon if self.kernel.lanes.apart),
            *pointers,
            *self.step(),
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
        for name, i in self.written:
            empty += [
                "    for (int r = 0; r * V < used; r++) {",
                "      const int64_t now = t[r] + way * l0;",
                f"      real *to = {self.pointer(name, i, False)} + (b[r] * T + now) * D + d[r];",
                "      for (int s = 0; s < left[r * V]; s++, to += way * D)",
                f"        for (int i = 0; i < V; i++) to[i] = {name}{i}_[s * W + r * V + i];",
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
