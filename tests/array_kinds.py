"""Kinds of arrays, every argument that may be one, and what is computed of them, twice.

A kind is a function of values that returns an array of that kind; it may hold other values, where
its memory allows no others.
"""

import os

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

import parnl
from parnl import ops
from parnl.params import matrix, vector
from parnl.testing import loop
from parnl.testing.kinds import kinds, spread

B, T, D = 3, 23, 5
CHUNKS = 4


class Through(parnl.Cell):
    """A step that reads its inputs as they come, their first channel, a product of them, and dt."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u, first=u[..., :1], n=u @ p.W)

    def step(self, p, x, f, dt):
        return x + dt * (ops.tanh(p.a * x + f.f) + 0.1 * f.first + 0.1 * f.n - x)


CELL = Through(D, D)

# -- kinds of arrays ------------------------------------------------------------------------------


def mapped(v):
    """Of a file that is gone when this returns, as its memory is not."""
    path = f"mapped-{os.getpid()}"
    array = np.memmap(path, v.dtype, "w+", shape=v.shape)
    array[...] = v
    os.unlink(path)
    return array


def windows(v):
    """Each number is part of several rows."""
    return as_strided(v.copy(), v.shape, [v.itemsize] * v.ndim)


NUMPY = {
    "plain": lambda v: v,
    **kinds("numpy"),
    "mapped": mapped,
    "first axis spread": spread(0),
    "broadcast": lambda v: np.broadcast_to(v[:1], v.shape),
    "one number": lambda v: np.broadcast_to(v.flat[0], v.shape),
    "windows": windows,
    "matrix": lambda v: np.asmatrix(v) if v.ndim == 2 else v,
    "longdouble": lambda v: v.astype(np.longdouble),
}


def without_tracking(v):
    with torch.inference_mode():
        return v.clone()


def file_tensor(v):
    path = f"mapped-{os.getpid()}"
    array = torch.from_file(path, shared=True, size=v.numel(), dtype=v.dtype)
    os.unlink(path)
    return array.copy_(v.flatten()).view(v.shape)


TORCH = {
    "plain": lambda v: v,
    **kinds("torch"),
    "negated, one number": lambda v: torch._neg_view(v.flatten()[0]).expand(v.shape),
    "zeros": lambda v: torch._efficientzerotensor(v.shape, dtype=v.dtype),
    "expanded": lambda v: v[:1].expand(v.shape),
    "one number": lambda v: v.flatten()[0].expand(v.shape),
    "windows": lambda v: torch.as_strided(v, v.shape, [1] * v.ndim),
    "parameter": lambda v: torch.nn.Parameter(v),
    "buffer": lambda v: torch.nn.Buffer(v),
    "view with a gradient": lambda v: v.clone().requires_grad_()[:],
    "without tracking": without_tracking,
    "mapped": file_tensor,
}
KINDS = {"numpy": NUMPY, "torch": TORCH}


def cases(table, arguments):
    return [
        pytest.param(backend, kind, argument, id=f"{backend}-{kind}-{argument}")
        for backend, found in table.items()
        for kind in found
        for argument in arguments[backend]
    ]


# -- what is computed of them ---------------------------------------------------------------------

SOLVE = ("inputs", "dt", "dt of all", "state", "parameter a", "parameter W")
SCAN = ("a", "b", "x0")
UPSTREAM = ("of outputs", "of final state", "of a scan")
ARGUMENTS = {"numpy": (*SOLVE, *SCAN), "torch": (*SOLVE, *SCAN, *UPSTREAM)}


def numbers(array):
    """The values of any array, in float64."""
    if isinstance(array, torch.Tensor):
        return array.detach().resolve_neg().clone().to(torch.float64).numpy()
    return np.array(array, np.float64)


def drawn(dtype="float64"):
    """Plain arrays for every argument."""
    rng = np.random.default_rng(0)
    found = {
        "inputs": rng.normal(size=(B, T, D)),
        "dt": rng.uniform(0.1, 0.9, (B, T)),
        "dt of all": rng.uniform(0.1, 0.9, T),
        "state": rng.normal(size=(B, D)),
        "parameter a": rng.normal(size=D),
        "parameter W": rng.normal(size=(D, D)),
        "a": rng.uniform(-0.9, 0.9, (B, T, D)),
        "b": rng.normal(size=(B, T, D)),
        "x0": rng.normal(size=(B, D)),
        "of outputs": rng.normal(size=(B, T, D)),
        "of final state": rng.normal(size=(B, D)),
        "of a scan": rng.normal(size=(B, T, D)),
    }
    return {name: x.astype(dtype) for name, x in found.items()}


def params(given):
    return {"W": given["parameter W"], "a": given["parameter a"]}


def by_solve(given, dt, **how):
    how = {"chunks": CHUNKS, **how}
    out = parnl.solve(CELL, params(given), given["inputs"], given["state"], dt=given[dt], **how)
    return out.outputs, out.final_state[0]


def by_loop(given, dt):
    time = given[dt]
    if time.ndim == 1:
        time = time[None] + 0 * given["dt"]
    outputs, (final,) = loop(CELL, params(given), given["inputs"], [given["state"]], dt=time)
    return outputs, final


def by_scan(given):
    return parnl.affine_scan(given["a"], given["b"], given["x0"])


def scan_by_loop(given):
    x, found = given["x0"], []
    for t in range(T):
        x = given["a"][:, t] * x + given["b"][:, t]
        found.append(x)
    return (torch if isinstance(x, torch.Tensor) else np).stack(found, 1)


def results(argument, given, solve, scan):
    """What the argument is part of, as float64 arrays; `given` holds all of them."""
    if argument in SCAN:
        return [numbers(scan(given))]
    if argument in SOLVE:
        dt = argument if argument.startswith("dt") else "dt"
        return [numbers(x) for x in solve(given, dt)]
    leaf = "b" if argument == "of a scan" else "inputs"
    given = {**given, leaf: given[leaf].clone().requires_grad_()}
    if argument == "of a scan":
        result = scan(given)
    else:
        result = solve(given, "dt")[0 if argument == "of outputs" else 1]
    return [numbers(torch.autograd.grad(result, given[leaf], given[argument])[0])]
