"""Plant faults in parnl, one at a time, and see that `parnl.testing` catches every one of them.

    python tests/mutations.py            all of them, two at a time
    python tests/mutations.py NUMBER     one, with its whole message

Each fault is a change of the text of one file, made in a copy of the package. The text must occur
there exactly once: a fault that no longer fits is an error, to be mended here. The copy without a
fault must pass. What is run is `check_cell` on two small cells, composed and compiled, and no other
test. Exit status 0: all were caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Fault(NamedTuple):
    what: str
    file: str
    text: str
    instead: str


FAULTS = [
    Fault(
        "the derivative of the sigmoid has a wrong sign",
        "parnl/graph/elementary.py",
        "f - f * f",
        "f + f * f",
    ),
    Fault(
        "the derivative by a divisor is that of the quotient by its numerator",
        "parnl/graph/arithmetic.py",
        "-(t * (f / y))",
        "-(t / y)",
    ),
    Fault(
        "composed: the product of Jacobians holds its last factor only",
        "backends/composed.py",
        "products = blocks.matmul(results[k:], running.arrays[k:], k)",
        "products = list(results[k:])",
    ),
    Fault(
        "the change of a chunk start is carried to the wrong chunk, off by one",
        "parnl/solver/newton.py",
        "xp.concat([xp.zeros_like(d[:, :1, ...]), d[:, :-1, ...]], axis=1) for d in change",
        "d for d in change",
    ),
    Fault(
        "composed: the adjoint has J where J^T belongs",
        "parnl/graph/program.py",
        "total = total + jac[i * k + j] * lam[i]",
        "total = total + jac[j * k + i] * lam[i]",
    ),
    Fault(
        "C: the adjoint has J where J^T belongs",
        "backends/c/text.py",
        "turned = [entries[j * k + i] for i in range(k) for j in range(k)]",
        "turned = list(entries)",
    ),
    Fault(
        "chunks are accepted with gaps 1000 times larger",
        "parnl/solver/newton.py",
        "return 8.0 * self.epsilon * math.sqrt(self.length)",
        "return 8000.0 * self.epsilon * math.sqrt(self.length)",
    ),
    Fault(
        "a chunk start that is settled is moved on",
        "parnl/solver/newton.py",
        "after = [xp.where(settled, s, m) for s, m in zip(before, moved, strict=True)]",
        "after = moved",
    ),
    Fault(
        "a chunk start is settled only where it is so in all sequences",
        "parnl/solver/lanes.py",
        "return self.running_max(self.xp.astype(~ok, self.xp.float32)) == 0",
        "ok = ok & self.xp.all(ok, axis=0)\n"
        "        return self.running_max(self.xp.astype(~ok, self.xp.float32)) == 0",
    ),
    Fault(
        "features of masked steps are computed from the padding",
        "parnl/stretch.py",
        "inputs = xp.where(mask, inputs, xp.zeros_like(inputs))",
        "inputs = inputs",
    ),
    Fault(
        "composed: chunks of a reversed run start in the wrong order",
        "backends/composed.py",
        "self.arrays = [*self._ordered(starts), *others]",
        "self.arrays = [*starts, *others]",
    ),
    Fault(
        "C: chunks of a reversed run are taken in the wrong order",
        "backends/c/text.py",
        '"    t[r] = reverse ? T - 1 - c * L : c * L;"',
        '"    t[r] = reverse ? c * L + len[r] - 1 : c * L;"',
    ),
    Fault(
        "torch: a parameter's gradient is the mean over the batch, not the sum",
        "backends/torch/implicit.py",
        "return x.sum(axes, keepdim=True) if axes else x",
        "return x.sum(axes, keepdim=True) / (len(x) if 0 in axes else 1) if axes else x",
    ),
    Fault(
        "C: all sequences read the features of the first",
        "backends/c/text.py",
        'start = f"{self.pointer(base, i)} + b[r] * {self.a(sb, i)} + now * {self.a(st, i)}"',
        'start = f"{self.pointer(base, i)} + now * {self.a(st, i)}"',
    ),
    Fault(
        "C: the operands of an operator are exchanged",
        "backends/c/expressions.py",
        "return operation.text(form, *x, f=self.suffix)",
        "return operation.text(form, *x[::-1], f=self.suffix)",
    ),
    Fault(
        "C: where a product is subtracted, it is added",
        "backends/c/expressions.py",
        "FMA({f'-({x})' if negative else x}, {y}, {summand})",
        "FMA({x}, {y}, {summand})",
    ),
    Fault(
        "a product of two functions of the state counts as linear",
        "parnl/graph/nodes.py",
        "degree[node.index] = min(2, sum(d))",
        "degree[node.index] = min(1, sum(d))",
    ),
    Fault(
        "torch: softplus is x from 4 on",
        "parnl/graph/elementary.py",
        "threshold=40.0",
        "threshold=4.0",
    ),
    Fault(
        "half precision is solved in half precision",
        "parnl/inputs.py",
        "return (xp.float32 if is_half(result) else result), result",
        "return result, result",
    ),
    Fault(
        "what begins in the padding changes the final state",
        "parnl/inputs.py",
        "begins = begins & mask\n    return",
        "begins = begins | ~mask\n    return",
    ),
    Fault(
        "reversed runs begin anew one step too late",
        "parnl/inputs.py",
        "begins = xp.concat([begins[..., 1:], last], axis=-1)",
        "begins = begins | False",
    ),
]


def copied(folder: Path, fault: Fault | None) -> None:
    """Lay the package out as it is installed, with the fault in it."""
    ignored = shutil.ignore_patterns("__pycache__")
    for source, target in (("parnl", ""), ("backends", "backends"), ("cells", "cells")):
        shutil.copytree(ROOT / source, folder / "parnl" / target, ignore=ignored)
    if fault is None:
        return
    inside = fault.file if fault.file.startswith("parnl/") else f"parnl/{fault.file}"
    path = folder / inside
    path.write_text(path.read_text().replace(fault.text, fault.instead))


def misfits() -> list[str]:
    """Return the faults whose text is not once in its file."""
    counts = {f: (ROOT / f.file).read_text().count(f.text) for f in FAULTS}
    return [f"{f.what}: its text is {n} times in {f.file}" for f, n in counts.items() if n != 1]


def tried(fault: Fault | None, cache: str) -> tuple[str, str, float]:
    """Run the suite on a copy with the fault: (what caught it, the whole message, seconds)."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="parnl-mutation-") as folder:
        copied(Path(folder), fault)
        environment = os.environ | {
            "PYTHONPATH": folder, "PARNL_CACHE": cache, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, __file__, "--check", folder],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
    said = (done.stdout + done.stderr).strip()
    caught = said.partition(":")[0] if done.returncode == 1 else ""
    if done.returncode not in (0, 1):
        caught = f"a crash (exit status {done.returncode})"
    return caught, said, time.perf_counter() - start


def check(folder: str) -> None:
    """In a process of its own: exit with the first failure's message."""
    import torch

    import parnl
    from parnl import ops
    from parnl.params import matrix, vector
    from parnl.testing import check_cell

    assert Path(parnl.__file__).is_relative_to(folder), parnl.__file__
    torch.set_num_threads(1)

    class Pair(parnl.Cell):
        """Two states that read each other, and dt; affine but for products of functions."""

        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"), b=vector("hidden"))
        states = ("x", "y")

        def features(self, p, u):
            return dict(f=3.0 * (u @ p.W))

        def step(self, p, x, y, f, dt):
            gate = ops.sigmoid(p.a * x - y + f.f)
            new = x + dt * gate * (ops.tanh(2.0 * y + f.f) - x)
            return new, 0.5 * y + new / (1.0 + ops.softplus(p.b + 2.0 * f.f))

    # compiled, every shape and dtype costs seconds of the C compiler: fewer of them
    for kernels, cell, examples in (("off", Pair, 15), ("off", "mingru", 5), ("c", Pair, 4)):
        os.environ["PARNL_KERNELS"] = kernels
        try:
            check_cell(cell, backends=["numpy", "torch"], examples=examples)
        except Exception as error:  # an error of any kind is a fault that was noticed
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            sys.exit(f"{kind}{error}")


def main() -> None:
    if misfits():
        sys.exit("\n".join(misfits()))
    chosen = FAULTS if len(sys.argv) == 1 else [FAULTS[int(sys.argv[1]) - 1]]
    missed = 0
    with (
        tempfile.TemporaryDirectory(prefix="parnl-kernels-") as cache,
        ThreadPoolExecutor(2) as two,
    ):
        waiting = [two.submit(tried, fault, cache) for fault in [None, *chosen]]
        for number, (fault, result) in enumerate(zip([None, *chosen], waiting, strict=True)):
            caught, said, seconds = result.result()
            what = fault.what if fault else "no fault"
            verdict = caught or ("NOT CAUGHT" if fault else "passes")
            missed += bool(caught) != bool(fault)
            print(f"{number:2}  {what:72} {verdict:28} {seconds:5.1f} s", flush=True)
            if len(chosen) == 1 or (caught and not fault):
                print(said)
    print(f"{len(chosen)} faults, {'and something missed' if missed else 'every one caught'}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        check(sys.argv[2])
    else:
        main()
