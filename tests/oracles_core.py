"""The core cells as plain steps from their published equations, and draws of their parameters."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import oracles_cells
from oracles_cells import ORACLES

Array = Any

CELLS = ("lrc", "gru", "lstm", "ltc")

STATES = {"lrc": 1, "gru": 1, "lstm": 2, "ltc": 1}

TIME_AWARE = ("lrc", "ltc")

# Every option of every core cell, under a short name.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "lrc": ("lrc", {}),
    "lrc-dt": ("lrc", {"dt": 0.3}),
    "lrc-symmetric": ("lrc", {"symmetric": True}),
    "lrc-symmetric-dt": ("lrc", {"symmetric": True, "dt": 1.7}),
    "lrc-input-elastance": ("lrc", {"input_elastance": True}),
    "lrc-input-elastance-symmetric": ("lrc", {"input_elastance": True, "symmetric": True}),
    "lrc-leak-of-input": ("lrc", {"leak_of_state": False}),
    "lrc-drive-of-input": ("lrc", {"drive_of_state": False}),
    "lrc-of-input": ("lrc", {"leak_of_state": False, "drive_of_state": False}),
    "gru": ("gru", {}),
    "lstm": ("lstm", {}),
    "lstm-peephole": ("lstm", {"peephole": True}),
    "lstm-coupled": ("lstm", {"coupled": True}),
    "lstm-coupled-peephole": ("lstm", {"coupled": True, "peephole": True}),
    "ltc": ("ltc", {}),
    "ltc-dt": ("ltc", {"dt": 0.4}),
    "ltc-unfolds": ("ltc", {"unfolds": 2}),
    "ltc-clip": ("ltc", {"positive": "clip"}),
    "ltc-clip-unfolds-dt": ("ltc", {"positive": "clip", "unfolds": 1, "dt": 2.5}),
}


class Maths(NamedTuple):
    """The functions a loop needs, for one kind of array."""

    sigmoid: Callable[[Array], Array]
    tanh: Callable[[Array], Array]
    softplus: Callable[[Array], Array]
    relu: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    log: Callable[[Array], Array]
    maximum: Callable[[Array, Array], Array]
    where: Callable[[Array, Array, Array], Array]
    stack: Callable[[list[Array], int], Array]
    zeros: Callable[[tuple[int, ...], Array], Array]
    array: Callable[[np.ndarray], Array]


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


NUMPY = Maths(
    sigmoid=_sigmoid,
    tanh=np.tanh,
    softplus=lambda x: np.logaddexp(0.0, x),
    relu=lambda x: np.maximum(x, 0.0),
    exp=np.exp,
    log=np.log,
    maximum=np.maximum,
    where=np.where,
    stack=lambda arrays, axis: np.stack(arrays, axis),
    zeros=lambda shape, like: np.zeros(shape, like.dtype),
    array=np.asarray,
)


@functools.cache
def _torch_maths() -> Maths:
    import torch

    return Maths(
        sigmoid=torch.sigmoid,
        tanh=torch.tanh,
        softplus=lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        relu=lambda x: torch.clamp(x, min=0.0),
        exp=torch.exp,
        log=torch.log,
        maximum=torch.maximum,
        where=torch.where,
        stack=lambda arrays, axis: torch.stack(arrays, axis),
        zeros=lambda shape, like: torch.zeros(shape, dtype=like.dtype),
        array=torch.from_numpy,
    )


@functools.cache
def _jax_maths() -> Maths:
    import jax
    import jax.numpy as jnp

    return Maths(
        sigmoid=jax.nn.sigmoid,
        tanh=jnp.tanh,
        softplus=lambda x: jnp.logaddexp(x, 0.0),
        relu=jax.nn.relu,
        exp=jnp.exp,
        log=jnp.log,
        maximum=jnp.maximum,
        where=jnp.where,
        stack=lambda arrays, axis: jnp.stack(arrays, axis),
        zeros=lambda shape, like: jnp.zeros(shape, like.dtype),
        array=jnp.asarray,
    )


def is_tensor(array: Array) -> bool:
    """Tell whether this is a torch.Tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def maths(array: Array) -> Maths:
    """Return the functions for arrays such as this one."""
    if is_tensor(array):
        return _torch_maths()
    return NUMPY if isinstance(array, np.ndarray | np.generic) else _jax_maths()


def _lrc(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    symmetric=False,
    input_elastance=False,
    leak_of_state=True,
    drive_of_state=True,
):
    (x,) = state
    absent = [k for k, kept in (("w_f", leak_of_state), ("w_g", drive_of_state)) if not kept]
    if len(absent) == 2:
        absent += ["sigma", "mu"]
    assert not set(absent) & p.keys()
    p = {**p, **{k: p["g_leak"] * 0.0 for k in absent}}
    v = m.sigmoid(p["sigma_in"] * (u - p["mu_in"]))
    a = v @ p["W_f"]
    g = v @ p["W_g"]
    y = m.sigmoid(p["sigma"] * (x - p["mu"]))
    big_f = m.sigmoid(p["g_leak"] + a + p["w_f"] * y)
    big_z = m.tanh(p["g_leak"] + g + p["w_g"] * y)
    k = p["e_w"] * x + p["e_b"]
    if input_elastance:
        k = k + v @ p["W_e"]
    if symmetric:
        e = dt * (m.sigmoid(k + p["e_shift"]) - m.sigmoid(k - p["e_shift"]))
    else:
        e = dt * m.sigmoid(k)
    return (x + e * (-big_f * x + p["v_leak"] * big_z),)


def _gru(m: Maths, p: Mapping[str, Array], u: Array, state: tuple, dt: Array):
    (h,) = state
    r = m.sigmoid(u @ p["W_r"] + p["b_r"] + p["a_r"] * h)
    z = m.sigmoid(u @ p["W_z"] + p["b_z"] + p["a_z"] * h)
    n = m.tanh(u @ p["W_n"] + p["b_n"] + r * (p["a_n"] * h + p["c_n"]))
    return ((1.0 - z) * n + z * h,)


def _lstm(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    peephole=False,
    coupled=False,
):
    c, h = state

    def before(gate):
        return u @ p["W_" + gate] + p["b_" + gate] + p["a_" + gate] * h

    f = m.sigmoid(before("f") + p["p_f"] * c if peephole else before("f"))
    if not coupled:
        i = m.sigmoid(before("i") + p["p_i"] * c if peephole else before("i"))
    else:
        i = 1.0 - f
    g = m.tanh(before("g"))
    c = f * c + i * g
    o = m.sigmoid(before("o") + p["p_o"] * c if peephole else before("o"))
    return c, o * m.tanh(c)


def _ltc(
    m: Maths,
    p: Mapping[str, Array],
    u: Array,
    state: tuple,
    dt: Array,
    *,
    unfolds=6,
    positive="softplus",
):
    (x,) = state
    keep = {"softplus": m.softplus, "clip": m.relu}[positive]
    w, w_in, c_m, g_leak = (keep(p[name]) for name in ("w", "w_in", "c_m", "g_leak"))
    synapse = w_in * m.sigmoid(p["sigma_in"] * (u[..., :, None] - p["mu_in"]))
    n = (synapse * p["e_in"]).sum(-2)
    d = synapse.sum(-2)
    h = dt / unfolds
    for _ in range(unfolds):
        y = w * m.sigmoid(p["sigma"] * (x - p["mu"]))
        top = c_m / h * x + g_leak * p["v_leak"] + y * p["e"] + n
        x = top / (c_m / h + g_leak + y + d + 1e-8)
    return (x,)


_STEPS: dict[str, Callable] = {"lrc": _lrc, "gru": _gru, "lstm": _lstm, "ltc": _ltc}

_HIDDEN = {"lrc": "g_leak", "gru": "a_r", "lstm": "a_f", "ltc": "sigma"}


def one_step(name: str, *arguments: Any, **options: Any) -> tuple[tuple, Array]:
    """Return the new states and the output of one step of any cell."""
    if name in ORACLES:
        return ORACLES[name].step(*arguments, **options)
    state = _STEPS[name](*arguments, **options)
    return state, state[-1]


def count_states(name: str) -> int:
    return ORACLES[name].states if name in ORACLES else STATES[name]


def is_time_aware(name: str) -> bool:
    return ORACLES[name].time_aware if name in ORACLES else name in TIME_AWARE


def name_per_channel(name: str) -> str:
    return ORACLES[name].hidden if name in ORACLES else _HIDDEN[name]


def parameter_shapes(name: str, n_in: int, n: int, **options: Any) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a cell's parameters: they are part of the interface."""
    shapes: dict[str, tuple[int, ...]] = {}
    options.pop("dt", None)
    if name in ORACLES:
        shapes = ORACLES[name].shapes(n_in, n, **options)
    elif name == "lrc":
        shapes = {"W_f": (n_in, n), "W_g": (n_in, n), "sigma_in": (n_in,), "mu_in": (n_in,)}
        names = ["sigma", "mu", "g_leak", "w_f", "w_g", "e_w", "e_b", "v_leak"]
        names += ["e_shift"] if options.get("symmetric") else []
        leak, drive = options.get("leak_of_state", True), options.get("drive_of_state", True)
        for name, used in {"w_f": leak, "w_g": drive, "sigma": leak or drive}.items():
            if not used:
                names.remove(name)
        if "sigma" not in names:
            names.remove("mu")
        shapes |= {k: (n,) for k in names}
        shapes |= {"W_e": (n_in, n)} if options.get("input_elastance") else {}
    elif name == "gru":
        for gate in "rzn":
            shapes |= {"W_" + gate: (n_in, n), "b_" + gate: (n,), "a_" + gate: (n,)}
        shapes["c_n"] = (n,)
    elif name == "lstm":
        for gate in "fog" if options.get("coupled") else "ifog":
            shapes |= {"W_" + gate: (n_in, n), "b_" + gate: (n,), "a_" + gate: (n,)}
            if options.get("peephole") and gate != "g":
                shapes["p_" + gate] = (n,)
    elif name == "ltc":
        shapes = {k: (n,) for k in ["w", "sigma", "mu", "e", "c_m", "g_leak", "v_leak"]}
        shapes |= {k: (n_in, n) for k in ["w_in", "sigma_in", "mu_in", "e_in"]}
    return shapes


def draw_params(
    name: str, n_in: int, n: int, rng: np.random.Generator, **options: Any
) -> dict[str, np.ndarray]:
    """Draw parameters of order one, with signs on both sides of every clip."""
    shapes = parameter_shapes(name, n_in, n, **options)
    if name in ORACLES:
        return oracles_cells.draw(name, shapes, rng)
    params = {k: rng.uniform(-1.2, 1.2, shape) for k, shape in shapes.items()}
    if name == "ltc":
        params["c_m"] = rng.uniform(0.3, 1.5, n)  # a clipped capacitance of 0 leaves no memory
        params["g_leak"][0] = 0.6  # with all conductances clipped, c_m / c_m has no derivative
        for k in ("sigma", "sigma_in"):
            params[k] = rng.uniform(0.5, 3.0, shapes[k])
    return params


def first_state(
    name: str, index: int, rng: np.random.Generator, shape: tuple[int, ...]
) -> np.ndarray:
    """Draw the state number `index`."""
    drawn = rng.uniform(-0.9, 0.9, shape)
    return 0.1 + np.abs(drawn) if (name, index) == ("slstm", 1) else drawn  # a sum of exponentials
