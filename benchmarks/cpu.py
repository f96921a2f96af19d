"""Time and memory on the CPU: parnl against what a user would pick otherwise, in one run.

    python benchmarks/cpu.py [--threads 2] [--repeat 5] [--out benchmarks/results/cpu.json]

torch: diagonal GRU, forward and forward + backward, input projection included, against
pararnn-torch (pip install pararnn-torch==0.17.4; left out where it is missing) and `nn.GRU` (dense,
hence another map: it is the library function a user would reach for). JAX: LRC against `lax.scan`
of the same cell. Contenders take turns, so that a busy machine slows all of them; medians are
reported. Every parnl result is compared with the sequential one before it is timed.
PARNL_KERNELS=off times the path composed of the framework's own operations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

B, D = 4, 64


def timed(contenders: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Return the median time of each contender in milliseconds; each is called once before."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(repeat):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}


def torch_gru(repeat: int, steps: int = 16384, inputs: int = 64) -> dict[str, dict[str, float]]:
    """Diagonal GRU in eager PyTorch."""
    import torch

    import parnl

    torch.manual_seed(0)
    u = torch.randn(B, steps, inputs)
    cell = parnl.get_cell("gru", inputs, D)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    dense = torch.nn.GRU(inputs, D, batch_first=True)
    runs: dict[str, Callable[[], Any]] = {
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
        exact = parnl.solve(cell, params, u, method="sequential").outputs
        error = (parnl.solve(cell, params, u).outputs - exact).abs().max() / exact.abs().max()
        assert error < 2e-5, f"parallel and sequential differ by {error}"
        forward = timed(runs, repeat)
    both = timed({n: lambda r=r: r().square().mean().backward() for n, r in runs.items()}, repeat)
    return {"forward": forward, "forward + backward": both}


def jax_lrc(repeat: int, steps: int = 17984, inputs: int = 4) -> dict[str, dict[str, float]]:
    """LRC in JAX, jitted, against `lax.scan` of the same features and step."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import parnl
    from parnl.params import Values

    u = jnp.asarray(np.random.default_rng(0).normal(size=(B, steps, inputs)).astype("float32"))
    cell = parnl.get_cell("lrc", inputs, D)
    params = cell.init(0, "jax")

    def scanned(params: Any) -> Any:
        p = Values("parameter", params)
        features = {n: a.swapaxes(0, 1) for n, a in cell.features(p, u).items()}

        def step(x: Any, f: Any) -> Any:
            x = cell.step(p, x, Values("feature", f), 1.0)
            return x, x

        return jax.lax.scan(step, jnp.zeros((B, D)), features)[1].swapaxes(0, 1)

    maps: dict[str, Callable[[Any], Any]] = {
        "parnl": lambda p: parnl.solve(cell, p, u).outputs,
        "parnl, chunks=256": lambda p: parnl.solve(cell, p, u, chunks=256).outputs,
        "jax.lax.scan": scanned,
    }

    def ready(function: Callable[[Any], Any]) -> Callable[[], Any]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(params))

    forward = {n: ready(f) for n, f in maps.items()}
    exact = forward["jax.lax.scan"]()
    for name, run in forward.items():
        error = jnp.max(jnp.abs(run() - exact)) / jnp.max(jnp.abs(exact))
        assert error < 2e-5, f"{name} and the scan differ by {error}"
    grads = {
        n: ready(jax.value_and_grad(lambda p, f=f: jnp.mean(f(p) ** 2))) for n, f in maps.items()
    }
    return {"forward": timed(forward, repeat), "value and gradient": timed(grads, repeat)}


def memory(name: str, steps: int = 65536, inputs: int = 64) -> float:
    """Return peak memory of forward + backward in torch, in arrays of B x T x D."""
    import torch

    import parnl

    cell = parnl.get_cell(name, inputs, D)
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    u = torch.randn(B, steps, inputs)

    def run(u: Any) -> None:
        outputs = parnl.solve(cell, params, u).outputs
        outputs.backward(torch.ones(()).expand_as(outputs))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    run(u[:, :256])
    before, peak, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run(u)
    done.set()
    watcher.join()
    return (peak - before) / (4 * B * steps * D)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)  # a fresh process for each measurement
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory))
        return
    tables: dict[str, Any] = {
        f"torch, diagonal GRU, B={B} D={D} T=16384, ms": torch_gru(args.repeat),
        f"JAX, LRC, B={B} D={D} T=17984, ms": jax_lrc(args.repeat),
        f"torch, forward + backward, peak in arrays of B x T x D, B={B} D={D} T=65536": {
            "peak": {
                name: float(subprocess.check_output([sys.executable, __file__, "--memory", name]))
                for name in ("gru", "lrc", "lstm")
            }
        },
    }
    for title, table in tables.items():
        print(f"\n{title}")
        for what, row in table.items():
            best = row.get("parnl")
            for name, value in row.items():
                ratio = f"{value / best:8.2f} x parnl" if best else ""
                print(f"  {what:20} {name:26} {value:10.1f} {ratio}")
    if args.out:
        machine = {"processor": _processor(), "threads": args.threads}
        args.out.write_text(json.dumps({"machine": machine, **tables}, indent=1) + "\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {os.cpu_count()} cores"
    return platform.processor()


if __name__ == "__main__":
    main()
