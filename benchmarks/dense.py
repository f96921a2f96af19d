"""The original LRC, whose channels read each other, against the diagonal one: sweeps and time.

    python benchmarks/dense.py [--steps 4096] [--hidden 64] [--gain 1] [--repeat 3]

In the dense cell (arXiv 2403.08791) F and Z of a channel read y = s(sigma (x - mu)) of all
channels, so its Jacobian is a full matrix. Two ways to solve it with what solves diagonal ones:

sweeps        `parnl.solve` of the registered `lrc`, to which the other channels' states of the
              sweep before are further inputs: their sigma, mu and weights stand beside those of the
              inputs. Nothing is linearised; after k sweeps the first k steps are exact.
quasi-Newton  the diagonal of the dense Jacobian in Newton's method over all steps at once (quasi-
              DEER, arXiv 2407.19115): one `parnl.affine_scan` an iteration.

Both stop at rounding level and are compared with the plain loop. NumPy, float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

import parnl

Array = np.ndarray
Params = dict[str, Array]
B, INPUTS = 4, 6


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


class Dense:
    """The dense cell: the parameters of `lrc`, with matrices R_f, R_g (from, to) for w_f, w_g."""

    def __init__(self, hidden: int, gain: float, seed: int = 0) -> None:
        self.p: Params = parnl.get_cell("lrc", INPUTS, hidden).init(seed, dtype="float64")
        bound, rng = gain / np.sqrt(hidden), np.random.default_rng(seed)
        self.r_f, self.r_g = rng.uniform(-bound, bound, (2, hidden, hidden))

    def step(self, x: Array, u: Array) -> tuple[Array, Array]:
        """Return the next states and the diagonal of the Jacobian, each (..., hidden)."""
        p = self.p
        v, y = sigmoid(p["sigma_in"] * (u - p["mu_in"])), sigmoid(p["sigma"] * (x - p["mu"]))
        leak = sigmoid(p["g_leak"] + v @ p["W_f"] + y @ self.r_f)
        drive = np.tanh(p["g_leak"] + v @ p["W_g"] + y @ self.r_g)
        e = sigmoid(p["e_w"] * x + p["e_b"])
        flow = p["v_leak"] * drive - leak * x
        dy = p["sigma"] * y * (1 - y)
        d_leak = leak * (1 - leak) * self.r_f.diagonal() * dy
        d_drive = (1 - drive**2) * self.r_g.diagonal() * dy
        d_flow = p["v_leak"] * d_drive - d_leak * x - leak
        return x + e * flow, 1 + p["e_w"] * e * (1 - e) * flow + e * d_flow


def before(x: Array) -> Array:
    """Return the states one step earlier, zero at first."""
    return np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)


def loop(cell: Dense, u: Array) -> tuple[Array, int]:
    x, rows = np.zeros((B, cell.r_f.shape[0])), []
    for t in range(u.shape[1]):
        x, _ = cell.step(x, u[:, t])
        rows.append(x)
    return np.stack(rows, 1), 0


def repeated(update: Callable[[Array], Array], start: Array) -> tuple[Array, int]:
    """Apply `update` until nothing but rounding changes."""
    last, x, count = start, update(start), 1
    while np.abs(x - last).max() > 1e-13 * np.abs(x).max():
        last, x, count = x, update(x), count + 1
    return x, count


def sweeps(cell: Dense, u: Array) -> tuple[Array, int]:
    p, hidden = cell.p, cell.r_f.shape[0]
    off = 1.0 - np.eye(hidden)
    wide = {
        "sigma_in": np.concatenate([p["sigma_in"], p["sigma"]]),
        "mu_in": np.concatenate([p["mu_in"], p["mu"]]),
        "W_f": np.concatenate([p["W_f"], off * cell.r_f]),
        "W_g": np.concatenate([p["W_g"], off * cell.r_g]),
        "w_f": cell.r_f.diagonal(),
        "w_g": cell.r_g.diagonal(),
    }
    diagonal = parnl.get_cell("lrc", INPUTS + hidden, hidden)

    def update(x: Array) -> Array:
        return parnl.solve(diagonal, p | wide, np.concatenate([u, before(x)], -1)).outputs

    return repeated(update, np.zeros((*u.shape[:2], hidden)))


def quasi_newton(cell: Dense, u: Array) -> tuple[Array, int]:
    def update(x: Array) -> Array:
        new, jacobian = cell.step(before(x), u)
        return parnl.affine_scan(jacobian, new - jacobian * before(x))

    return repeated(update, np.zeros((*u.shape[:2], cell.r_f.shape[0])))


def diagonal(cell: Dense, u: Array) -> tuple[Array, int]:
    out = parnl.solve(parnl.get_cell("lrc", INPUTS, cell.r_f.shape[0]), cell.p, u)
    return out.outputs, int(out.info.iterations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("steps", 4096), ("hidden", 64), ("repeat", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--gain", type=float, default=1.0, help="of the recurrent matrices")
    options = parser.parse_args()
    cell = Dense(options.hidden, options.gain)
    u = np.random.default_rng(1).normal(size=(B, options.steps, INPUTS))
    expected, _ = loop(cell, u)
    for solver in (loop, sweeps, quasi_newton, diagonal):
        times = []
        for _ in range(options.repeat):
            start = time.perf_counter()
            found, count = solver(cell, u)
            times.append(1e3 * (time.perf_counter() - start))
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert solver is diagonal or error < 1e-10, f"{solver.__name__}: error {error:.3g}"
        print(f"{solver.__name__:13s} {statistics.median(times):9.1f} ms  {count:3d} iterations")


if __name__ == "__main__":
    main()
