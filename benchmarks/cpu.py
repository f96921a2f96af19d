"""Time and memory on the CPU: parnl against what a user would pick otherwise, in one run.

    python benchmarks/cpu.py [--threads 2] [--repeat 9] [--quick] [--out results/cpu.json]

Prints tables, and saves them as JSON and as a plot beside it. Contenders take turns, so that a busy
machine slows all of them; medians are reported. Every parnl result is compared with the sequential
one before it is timed. pararnn-torch is left out where it is not installed (pip install
pararnn-torch==0.17.4); `nn.GRU` is dense, hence another map: it is the library function a user
would reach for. PARNL_KERNELS=off times the path composed of the framework's own operations.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measure import Run, close, in_process, peak_memory, plot_lengths, processor, timed

import parnl
from parnl import ops
from parnl.backends.c.calls import processors
from parnl.memory import keep_memory
from parnl.params import Values, matrix, vector

B, D = 4, 64


def with_features(cell: parnl.Cell, features: dict[str, Any]) -> parnl.Cell:
    """Return the cell with features computed beforehand: what is left is the recurrence."""

    class Given(type(cell)):  # type: ignore[misc]
        def features(self, p: Any, u: Any) -> dict[str, Any]:
            return features

    return Given(cell.input_size, cell.hidden_size)


# -- PyTorch: diagonal GRU ------------------------------------------------------------------------


def torch_runs(steps: int, inputs: int = 64) -> dict[str, Run]:
    """Diagonal GRU in eager PyTorch, with its input projection."""
    import torch

    torch.manual_seed(0)
    u = torch.randn(B, steps, inputs)
    cell = parnl.get_cell("gru", inputs, D)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    dense = torch.nn.GRU(inputs, D, batch_first=True)
    runs: dict[str, Run] = {
        "parnl": lambda: parnl.solve(cell, params, u).outputs,
        "torch.nn.GRU (dense)": lambda: dense(u)[0],
    }
    try:
        from pararnn import ParaGRU, newton_apply
    except ImportError:
        print("pararnn-torch is not installed: left out", file=sys.stderr)
    else:
        other = ParaGRU(inputs, D)

        def pararnn() -> Any:
            result = newton_apply(other, u)
            return result[0] if isinstance(result, tuple) else result

        runs["pararnn-torch, Newton"] = pararnn
    with torch.no_grad():
        close(runs["parnl"](), parnl.solve(cell, params, u, method="sequential").outputs, "parnl")
    return runs


def torch_gru(repeat: int, steps: int = 16384) -> dict[str, dict[str, float]]:
    import torch

    runs = torch_runs(steps)
    with torch.no_grad():
        forward = timed(runs, repeat)
    gradient = torch.randn(B, steps, D)
    both = timed({n: partial(_backward, r, gradient) for n, r in runs.items()}, repeat)
    return {"forward": forward, "forward + backward": both}


def _backward(run: Run, gradient: Any) -> None:
    """Forward and backward, from a gradient that is there: no loss is timed."""
    run().backward(gradient)


# -- JAX: LRC -------------------------------------------------------------------------------------


def jax_maps(
    steps: int, inputs: int = 4, name: str = "lrc", batch: int = B, hidden: int = D
) -> tuple[dict[str, Callable], Any]:
    """A cell in JAX, `lax.scan` and DEER, of the same features and step; and parameters."""
    import jax
    import jax.numpy as jnp

    u = jnp.asarray(np.random.default_rng(0).normal(size=(batch, steps, inputs)).astype("float32"))
    cell = parnl.get_cell(name, inputs, hidden)
    params = cell.init(0, "jax")
    dt = (1.0,) if cell.time_aware else ()
    zeros = lambda *shape: jnp.zeros((batch, *shape, hidden), u.dtype)  # noqa: E731

    def parts(params: Any) -> tuple[Callable, dict[str, Any]]:
        p = Values("parameter", params)
        step = lambda x, f: cell.step(p, x, Values("feature", f), *dt)  # noqa: E731
        return step, cell.features(p, u)

    def scanned(params: Any) -> Any:
        step, features = parts(params)
        over_time = {n: a.swapaxes(0, 1) for n, a in features.items()}
        run = lambda x, f: (step(x, f),) * 2  # noqa: E731
        return jax.lax.scan(run, zeros(), over_time)[1].swapaxes(0, 1)

    def compose(first: tuple, then: tuple) -> tuple:
        return then[0] * first[0], then[0] * first[1] + then[1]

    def deer(params: Any) -> Any:
        """Newton over all time steps (arXiv 2309.12252), its linear solve a prefix scan."""
        step, features = parts(params)

        def update(carry: tuple) -> tuple:
            count, x, _ = carry
            before = jnp.concatenate([zeros(1), x[:, :-1]], axis=1)
            new, slope = jax.jvp(lambda x: step(x, features), (before,), (jnp.ones_like(before),))
            forcing = new - slope * before
            new = jax.lax.associative_scan(compose, (slope, forcing), axis=1)[1]
            return count + 1, new, jnp.max(jnp.abs(new - x))

        first = (0, zeros(steps), jnp.inf)
        return jax.lax.while_loop(lambda c: (c[2] > 1e-5) & (c[0] < 50), update, first)[1]

    maps = {
        "parnl": lambda p: parnl.solve(cell, p, u).outputs,
        "parnl, chunks=256": lambda p: parnl.solve(cell, p, u, chunks=256).outputs,
        "jax.lax.scan": scanned,
        "DEER, associative_scan": deer,
    }
    return maps, params


def jax_runs(maps: dict[str, Callable], params: Any, gradient: bool = False) -> dict[str, Run]:
    import jax
    import jax.numpy as jnp

    def ready(function: Callable) -> Run:
        if gradient:
            loss = lambda p: jnp.mean(function(p) ** 2)  # noqa: E731
            compiled = jax.jit(jax.value_and_grad(loss))
        else:
            compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(params))

    return {n: ready(f) for n, f in maps.items()}


def jax_lrc(repeat: int, steps: int = 16384) -> dict[str, dict[str, float]]:
    maps, params = jax_maps(steps)
    forward = jax_runs(maps, params)
    exact = forward["jax.lax.scan"]()
    for name, run in forward.items():
        close(run(), exact, name)
    maps.pop("DEER, associative_scan")  # a while loop has no gradient in reverse
    both = jax_runs(maps, params, gradient=True)
    return {"forward": timed(forward, repeat), "value and gradient": timed(both, repeat)}


# -- the recurrence alone -------------------------------------------------------------------------


class Minimal(parnl.Cell):
    """A cell nobody has written a kernel for: the minimal gated unit (Zhou et al., 2016)."""

    parameters = {
        f"{kind}_{gate}": matrix("input", "hidden") if kind == "W" else vector("hidden")
        for gate in "fn"
        for kind in ("W", "a", "b")
    }

    def features(self, p: Any, u: Any) -> dict[str, Any]:
        return {"f": u @ p.W_f, "n": u @ p.W_n}

    def step(self, p: Any, x: Any, f: Any) -> Any:
        gate = ops.sigmoid(f.f + p.b_f + p.a_f * x)
        return x + gate * (ops.tanh(f.n + p.b_n + p.a_n * gate * x) - x)


def given(cell: parnl.Cell, batch: int, steps: int) -> tuple[parnl.Cell, dict, np.ndarray]:
    """Return the cell with random features, its parameters, and inputs that are not looked at."""
    rng = np.random.default_rng(0)
    shape = (batch, steps, cell.hidden_size)
    names = [o.name for o in cell.program.operands if o.kind == "feature"]
    features = {n: rng.standard_normal(shape, dtype=np.float32) for n in names}
    return with_features(cell, features), cell.init(0), np.zeros((batch, steps, 1), np.float32)


def handwritten(repeat: int, threads: int, steps: int = 16384) -> dict[str, dict[str, float]]:
    """The recurrence of a GRU in NumPy, generated and by hand; and of a cell made up here."""
    cell, params, u = given(parnl.get_cell("gru", 1, D), B, steps)
    minimal, minimal_params, _ = given(Minimal(1, D), B, steps)
    features = [cell.features(None, u)[n] for n in "rzn"]
    stacked = np.concatenate([params[n] for n in "a_r a_z a_n b_r b_z b_n c_n".split()])
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/gru.so"
        flags = (
            "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC".split()
        )
        source = str(Path(__file__).with_name("handwritten.c"))
        subprocess.run(["cc", *flags, source, "-o", library, "-lmvec", "-lm"], check=True)
        function = ctypes.CDLL(library).gru

    def by_hand() -> np.ndarray:
        out = np.empty((B, steps, D), np.float32)
        arrays = [ctypes.c_void_p(a.ctypes.data) for a in (*features, stacked, out)]
        function(*arrays, ctypes.c_int64(B), ctypes.c_int64(steps), ctypes.c_int(threads))
        return out

    runs: dict[str, Run] = {
        "parnl": lambda: parnl.solve(cell, params, u).outputs,
        "C by hand": by_hand,
        "parnl, a cell made up here": lambda: parnl.solve(minimal, minimal_params, u).outputs,
    }
    close(runs["parnl"](), by_hand(), "parnl")
    times = timed(runs, repeat)
    per = {"parnl": cell.cost, "parnl, a cell made up here": minimal.cost}
    each = {n: 1e6 * times[n] / (c * B * steps * D) for n, c in per.items()}
    moved = 4 * 4 * B * steps * D  # three features read, one state written
    source_array, target = np.ones((2, moved // 8), np.float32)
    copied = timed({"copy": lambda: np.copyto(target, source_array)}, repeat)["copy"]
    return {
        "ms": times,
        "ns an operation of an element": each,
        "GB/s": {"parnl": 1e-6 * moved / times["parnl"], "copying memory": 1e-6 * moved / copied},
    }


def few_lanes(repeat: int, steps: int = 1 << 20) -> dict[str, dict[str, float]]:
    """B = 1, D = 8: the best sequential C, and chunks."""
    cell, params, u = given(parnl.get_cell("gru", 1, 8), 1, steps)
    solve = partial(parnl.solve, cell, params, u)
    runs: dict[str, Run] = {"parnl": lambda: solve().outputs}
    for chunks in (1, 16, 64, 256):
        runs[f"parnl, chunks={chunks}"] = lambda c=chunks: solve(chunks=c).outputs
    exact = runs["parnl, chunks=1"]()
    for name, run in runs.items():
        close(run(), exact, name)
    return {"ms": timed(runs, repeat)}


# -- lengths --------------------------------------------------------------------------------------


def lengths(repeat: int, exponents: range, longest: float = 3e3) -> dict[str, dict[str, float]]:
    """Return the time for each step, ns, over T; contenders leave when a call takes too long."""
    import torch

    tables: dict[str, dict[str, float]] = {}
    slow: set[str] = set()
    for exponent in exponents:
        steps = 1 << exponent
        maps, params = jax_maps(steps)
        cell, cell_params, u = given(parnl.get_cell("gru", 1, D), B, steps)
        runs: dict[str, Run] = {
            "parnl NumPy, recurrence": partial(parnl.solve, cell, cell_params, u)
        }
        with torch.no_grad():
            named = torch_runs(steps)
        runs |= {f"GRU, {n}": partial(_without_gradient, r) for n, r in named.items()}
        gradient = torch.randn(B, steps, D)
        runs |= {
            f"GRU, {n}, forward + backward": partial(_backward, r, gradient)
            for n, r in named.items()
        }
        forward = jax_runs(maps, params)
        runs |= {f"LRC, {n.replace('parnl', 'parnl JAX')}": r for n, r in forward.items()}
        runs = {n: r for n, r in runs.items() if n not in slow}
        times = timed(runs, max(3, repeat // 2))
        slow |= {n for n, t in times.items() if t > longest}
        tables[f"T = 2^{exponent}"] = {n: 1e6 * t / steps for n, t in times.items()}
        print(f"  T = 2^{exponent} done", file=sys.stderr)
    return tables


def flat(framework: str, repeat: int, exponents: range) -> dict[str, dict[str, float]]:
    """Return parnl's time for each step, ns, over T. All T take turns: none has a better hour."""
    runs: dict[str, dict[str, Run]] = {}

    def add(name: str, exponent: int, run: Run) -> None:
        runs.setdefault(name, {})[f"2^{exponent}"] = run

    for exponent in exponents:
        steps = 1 << exponent
        if framework == "jax":
            maps, params = jax_maps(steps)
            only = {"parnl": maps["parnl"]}
            add("LRC, JAX", exponent, jax_runs(only, params)["parnl"])
            both = jax_runs(only, params, gradient=True)["parnl"]
            add("LRC, JAX, value and gradient", exponent, both)
            continue
        import torch

        run = torch_runs(steps)["parnl"]
        add("GRU, PyTorch", exponent, partial(_without_gradient, run))
        both = partial(_backward, run, torch.randn(B, steps, D))
        add("GRU, PyTorch, forward + backward", exponent, both)
    table = {}
    for name, over_time in runs.items():
        times = timed(over_time, repeat)
        each = {t: 1e6 * ms / (1 << int(t[2:])) for t, ms in times.items()}
        table[name] = each | {"largest / smallest": max(each.values()) / min(each.values())}
    return table


def _without_gradient(run: Run) -> Any:
    import torch

    with torch.no_grad():
        return run()


# -- memory ---------------------------------------------------------------------------------------


def memory(name: str, steps: int, inputs: int = 64) -> float:
    """Return peak memory of forward + backward in torch, in arrays of B x T x D."""
    import torch

    cell = parnl.get_cell(name, inputs, D)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    u = torch.randn(B, steps, inputs)

    def run(u: Any) -> None:
        outputs = parnl.solve(cell, params, u).outputs
        outputs.backward(torch.ones(()).expand_as(outputs))

    run(u[:, :256])
    return peak_memory(lambda: run(u)) / (4 * B * steps * D)


def peaks() -> dict[str, dict[str, float]]:
    """Return the peaks, each from a fresh process."""
    table = {}
    for steps in (16384, 65536, 262144):
        call = [sys.executable, __file__, "--steps", str(steps), "--memory"]
        cells = ("gru", "lrc", "lstm") if steps == 65536 else ("gru",)
        table[f"T = {steps}"] = {c: float(subprocess.check_output([*call, c])) for c in cells}
    return table


# -- report ---------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="T to 2^14, no memory")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # a fresh process for each measurement
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--jax", action="store_true", help=argparse.SUPPRESS)  # likewise
    parser.add_argument("--flat", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.keep:
        assert keep_memory(), "memory can be kept with glibc only"
    every = processors()  # XLA takes all that it may
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    import torch

    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory, args.steps))
        return
    each = range(8, 15 if args.quick else 21, 2)
    if args.flat:
        print(json.dumps(flat(args.flat, args.repeat, each[1:])))
        return
    if args.jax:
        print(json.dumps(jax_lrc(args.repeat)))
        return
    sizes, over_time = f"B={B} D={D}", f"ns for each step, B={B} D={D}"
    peak = f"torch, forward + backward, peak memory in arrays of B x T x D, {sizes}"

    def alone(threads: int, *part: str) -> dict[str, dict[str, float]]:
        call = [__file__, "--threads", str(threads), "--repeat", str(args.repeat), *part]
        return in_process(*call, *(["--quick"] if args.quick else []))

    parts: dict[str, Callable[[], dict[str, dict[str, float]]]] = {
        f"torch, diagonal GRU with projection, {sizes} T=16384, ms": lambda: torch_gru(args.repeat),
        # by itself: threads that wait for PyTorch's next operation take time from XLA's
        f"JAX, LRC with 4 inputs, {every} threads, {sizes} T=16384, ms": lambda: alone(
            every, "--jax"
        ),
        "JAX, the same, memory kept": lambda: alone(every, "--jax", "--keep"),
        f"the recurrence alone, {sizes} T=16384": lambda: handwritten(args.repeat, args.threads),
        "few lanes: GRU, B=1 D=8 T=2^20": lambda: few_lanes(args.repeat),
        peak: peaks,
        f"parnl over T, {over_time}, and their ratio": lambda: (
            alone(args.threads, "--flat", "torch") | alone(every, "--flat", "jax")
        ),
        over_time: lambda: lengths(args.repeat, each),
    }
    if args.quick:
        parts.pop(peak)
    tables: dict[str, Any] = {"machine": {"processor": processor(), "threads": args.threads}}
    for title, measure in parts.items():
        tables[title] = table = measure()
        print(f"\n{title}")
        for what, row in table.items():
            best = row.get("parnl")
            for name, value in row.items():
                ratio = f"{value / best:8.2f} x parnl" if best else ""
                print(f"  {what:30} {name:44} {value:12.3f} {ratio}", flush=True)
        if args.out:
            args.out.write_text(json.dumps(tables, indent=1) + "\n")
    if args.out:
        what = f"ns for each step of B = {B} sequences, D = {D}"
        plot_lengths(tables[over_time], args.out.with_suffix(".png"), what)


if __name__ == "__main__":
    main()
