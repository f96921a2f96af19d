"""The equations of the cells in `cells/` beyond the core four, from their papers.

One literal step each, as a paper prints it: complex numbers stay complex, exponentials are not
stabilised, states of one channel stay together. `oracles` runs them over time. A step takes the
functions of `oracles.Maths`, parameters, the input (..., input), the tuple of states and dt; it
returns the new states and the output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any
Parameters = Mapping[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Oracle(NamedTuple):
    """What is known of a cell: its step, its number of states, its parameters.

    `hidden` names one of those of size (hidden,).
    """

    step: Callable[..., tuple[tuple, Array]]
    states: int
    hidden: str
    shapes: Callable[..., Shapes]
    time_aware: bool = False


ORACLES: dict[str, Oracle] = {}


def oracle(
    states: int, hidden: str, shapes: Callable[..., Shapes], **more: Any
) -> Callable[[Callable], Any]:
    def decorate(step: Callable) -> Callable:
        ORACLES[step.__name__] = Oracle(step, states, hidden, shapes, **more)
        return step

    return decorate


def gates(names: str, recurrent: str | None = None) -> Callable[..., Shapes]:
    """W_x, b_x for each x in `names`, and a_x for those that read the state."""

    def shapes(n_in: int, n: int, **options: Any) -> Shapes:
        found: Shapes = {}
        for x in names:
            found |= {f"W_{x}": (n_in, n), f"b_{x}": (n,)}
            if x in (names if recurrent is None else recurrent):
                found[f"a_{x}"] = (n,)
        return found

    return shapes


# -- one state -----------------------------------------------------------------------------------


@oracle(1, "a", lambda n_in, n, **o: {"W": (n_in, n), "a": (n,), "b": (n,)})
def indrnn(m: Any, p: Parameters, u: Array, state: tuple, dt: Array, activation="relu"):
    (h,) = state
    h = {"relu": m.relu, "tanh": m.tanh}[activation](u @ p["W"] + p["a"] * h + p["b"])
    return (h,), h


@oracle(1, "a_f", gates("fn"))
def mgu(m, p, u, state, dt):
    (h,) = state
    f = m.sigmoid(u @ p["W_f"] + p["a_f"] * h + p["b_f"])
    candidate = m.tanh(u @ p["W_n"] + p["a_n"] * (f * h) + p["b_n"])
    h = (1 - f) * h + f * candidate
    return (h,), h


@oracle(1, "a_g", gates("ghfl"), time_aware=True)
def cfc(m, p, u, state, dt):
    (x,) = state

    def net(k):
        return u @ p["W_" + k] + p["a_" + k] * x + p["b_" + k]

    gate = m.sigmoid(-(net("f") * dt + net("l")))
    x = gate * m.tanh(net("g")) + (1 - gate) * m.tanh(net("h"))
    return (x,), x


def _stc_shapes(n_in: int, n: int, **options: Any) -> Shapes:
    shapes: Shapes = {"W_f": (n_in, n), "W_g": (n_in, n), "sigma_in": (n_in,), "mu_in": (n_in,)}
    return shapes | {k: (n,) for k in ["sigma", "mu", "g_leak", "w_f", "w_g", "v_leak"]}


@oracle(1, "sigma", _stc_shapes, time_aware=True)
def stc(m, p, u, state, dt):
    (x,) = state
    from_input = m.sigmoid(p["sigma_in"] * (u - p["mu_in"]))
    from_state = m.sigmoid(p["sigma"] * (x - p["mu"]))
    forget = p["g_leak"] + from_input @ p["W_f"] + p["w_f"] * from_state
    update = p["g_leak"] + from_input @ p["W_g"] + p["w_g"] * from_state
    x = x + dt * (-m.sigmoid(forget) * x + p["v_leak"] * m.tanh(update))
    return (x,), x


# -- several states ------------------------------------------------------------------------------


@oracle(4, "a_i", gates("ifzo"))
def slstm(m, p, u, state, dt):
    """The paper's equations without the stabiliser: c and n here are exp(m) times the cell's.

    m itself starts at log 0 where there is no past.
    """
    c, n, log_scale, h = state
    c, n = m.exp(log_scale) * c, m.exp(log_scale) * n

    def before(k):
        return u @ p["W_" + k] + p["a_" + k] * h + p["b_" + k]

    i, f = m.exp(before("i")), m.sigmoid(before("f"))
    past = m.where(state[1] == 0, before("i"), m.log(f) + log_scale)
    log_scale = m.maximum(past, before("i"))
    c = f * c + i * m.tanh(before("z"))
    n = f * n + i
    h = m.sigmoid(before("o")) * (c / n)
    return (c / m.exp(log_scale), n / m.exp(log_scale), log_scale, h), h


@oracle(2, "a_1", gates("12zy"), time_aware=True)
def lem(m, p, u, state, dt):
    z, y = state

    def affine(k, s):
        return u @ p["W_" + k] + p["a_" + k] * s + p["b_" + k]

    step, step_bar = dt * m.sigmoid(affine("1", y)), dt * m.sigmoid(affine("2", y))
    z = (1 - step) * z + step * m.tanh(affine("z", y))
    y = (1 - step_bar) * y + step_bar * m.tanh(affine("y", z))
    return (z, y), y


@oracle(
    2,
    "b",
    lambda n_in, n, **o: {"W": (n_in, n), "b": (n,), "a_y": (n,), "a_z": (n,)},
    time_aware=True,
)
def cornn(m, p, u, state, dt, gamma=2.7, epsilon=4.7):
    z, y = state
    forced = m.tanh(p["a_y"] * y + p["a_z"] * z + u @ p["W"] + p["b"])
    z = z + dt * forced - dt * gamma * y - dt * epsilon * z
    return (z, y + dt * z), y + dt * z


@oracle(
    2, "b", lambda n_in, n, **o: {"W": (n_in, n), "b": (n,), "a": (n,), "c": (n,)}, time_aware=True
)
def unicornn(m, p, u, state, dt, alpha=1.0):
    z, y = state
    step = dt * (0.5 + 0.5 * m.tanh(p["c"] / 2))
    z = z - step * (m.tanh(p["a"] * y + u @ p["W"] + p["b"]) + alpha * y)
    y = y + step * z
    return (z, y), y


def _lrc_complex_shapes(n_in: int, n: int, **options: Any) -> Shapes:
    shapes: Shapes = {"W_f": (n_in, n), "W_g": (n_in, n), "sigma_in": (n_in,), "mu_in": (n_in,)}
    for k in ("sigma", "mu", "w_f", "w_g"):
        shapes |= {k + "_re": (n,), k + "_im": (n,)}
    shapes |= {k: (n,) for k in ("g_leak", "e_w", "e_b", "v_leak")}
    return shapes | {"C_re": (n, n), "C_im": (n, n)}


@oracle(2, "e_w", _lrc_complex_shapes, time_aware=True)
def lrc_complex(m, p, u, state, dt):
    x = state[0] + 1j * state[1]
    sigma, mu, w_f, w_g, c = (
        p[k + "_re"] + 1j * p[k + "_im"] for k in ("sigma", "mu", "w_f", "w_g", "C")
    )

    def sigmoid(z):
        return 1 / (1 + m.exp(-z))

    def tanh(z):
        return (m.exp(z) - m.exp(-z)) / (m.exp(z) + m.exp(-z))

    v = m.sigmoid(p["sigma_in"] * (u - p["mu_in"]))
    y = sigmoid(sigma * (x - mu))
    leak = sigmoid(p["g_leak"] + v @ p["W_f"] + w_f * y)
    drive = tanh(p["g_leak"] + v @ p["W_g"] + w_g * y)
    x = x + dt * sigmoid(p["e_w"] * x + p["e_b"]) * (-leak * x + p["v_leak"] * drive)
    return (x.real, x.imag), (x @ c).real


# -- linear --------------------------------------------------------------------------------------


def _g(m: Any, x: Array, positive: bool) -> Array:
    return m.where(x >= 0, x + 0.5, m.sigmoid(x)) if positive else x


@oracle(1, "b_z", gates("zn", ""))
def mingru(m, p, u, state, dt, positive=False):
    (h,) = state
    z = m.sigmoid(u @ p["W_z"] + p["b_z"])
    h = (1 - z) * h + z * _g(m, u @ p["W_n"] + p["b_n"], positive)
    return (h,), h


@oracle(1, "b_i", gates("ifn", ""))
def minlstm(m, p, u, state, dt, positive=False):
    (h,) = state
    i, f = (m.sigmoid(u @ p["W_" + k] + p["b_" + k]) for k in "if")
    h = f / (f + i) * h + i / (f + i) * _g(m, u @ p["W_n"] + p["b_n"], positive)
    return (h,), h


def _matrices(n_in: int, n: int) -> Shapes:
    shapes: Shapes = {"B_re": (n_in, n), "B_im": (n_in, n)}
    return shapes | {"C_re": (n, n), "C_im": (n, n), "D": (n_in, n)}


@oracle(
    2,
    "nu_log",
    lambda n_in, n, **o: (
        {"nu_log": (n,), "theta_log": (n,), "gamma_log": (n,)} | _matrices(n_in, n)
    ),
)
def lru(m, p, u, state, dt, **start):
    x = state[0] + 1j * state[1]
    b, c = (p[k + "_re"] + 1j * p[k + "_im"] for k in "BC")
    x = m.exp(-m.exp(p["nu_log"]) + 1j * m.exp(p["theta_log"])) * x
    x = x + m.exp(p["gamma_log"]) * ((u + 0j) @ b)
    return (x.real, x.imag), (x @ c).real + u @ p["D"]


@oracle(
    2,
    "log_step",
    lambda n_in, n, **o: (
        {"Lambda_re": (n,), "Lambda_im": (n,), "log_step": (n,)} | _matrices(n_in, n)
    ),
)
def s5(m, p, u, state, dt, **start):
    x = state[0] + 1j * state[1]
    b, c, eigenvalue = (p[k + "_re"] + 1j * p[k + "_im"] for k in ("B", "C", "Lambda"))
    discrete = m.exp(eigenvalue * m.exp(p["log_step"]))
    x = discrete * x + (u + 0j) @ ((1 / eigenvalue) * (discrete - 1) * b)
    return (x.real, x.imag), 2 * (x @ c).real + u @ p["D"]


@oracle(
    2,
    "dt_raw",
    lambda n_in, n, **o: {
        "A": (n,), "dt_raw": (n,), "B": (n_in, n), "C": (n, n), "D": (n_in, n)
    },
)  # fmt: skip
def linoss(m, p, u, state, dt, scheme="im"):
    """By the paper's matrices M and F, of each scheme."""
    z, y = state
    a, t, v = m.where(p["A"] > 0, p["A"], 0 * p["A"]), m.sigmoid(p["dt_raw"]), u @ p["B"]
    if scheme == "im":
        s = 1 / (1 + t**2 * a)
        z, y = (
            (1 - t**2 * a * s) * z - t * a * s * y + t * (1 - t**2 * a * s) * v,
            t * s * z + s * y + t**2 * s * v,
        )
    else:
        z, y = z - t * a * y + t * v, t * z + (1 - t**2 * a) * y + t**2 * v
    return (z, y), y @ p["C"] + u @ p["D"]


def _s6_shapes(n_in: int, n: int, state_size: int = 16, rank: int | None = None) -> Shapes:
    size = min(state_size, n)
    e = n // size
    r = rank or (e + 15) // 16
    return {
        "W_v": (n_in, e), "W_B": (e, size), "W_C": (e, size), "W_r": (e, r), "W_d": (r, e),
        "b_d": (e,), "A_log": (n,), "D": (e,), "W_out": (e, n),
    }  # fmt: skip


@oracle(1, "A_log", _s6_shapes)
def s6(m, p, u, state, dt, state_size=16, rank=None):
    """Channel by channel and state by state, as h_t = exp(D A) h_{t-1} + D B_t x_t."""
    n = min(state_size, p["A_log"].shape[0])
    (h,) = state
    v = u @ p["W_v"]
    into, out = v @ p["W_B"], v @ p["W_C"]
    delta = m.softplus((v @ p["W_r"]) @ p["W_d"] + p["b_d"])
    new, y = [], []
    for e in range(v.shape[-1]):
        total = p["D"][e] * v[..., e]
        for j in range(n):
            k = e * n + j
            decay = m.exp(delta[..., e] * -m.exp(p["A_log"][k]))
            new.append(decay * h[..., k] + delta[..., e] * into[..., j] * v[..., e])
            total = total + out[..., j] * new[-1]
        y.append(total)
    return (m.stack(new, -1),), m.stack(y, -1) @ p["W_out"]


@oracle(
    1, "b_x",
    lambda n_in, n, **o: {
        "W_x": (n_in, n), "b_x": (n,), "W_r": (n, n), "b_r": (n,), "W_i": (n, n), "b_i": (n,),
        "Lambda": (n,),
    },
)  # fmt: skip
def rglru(m, p, u, state, dt):
    (h,) = state
    x = u @ p["W_x"] + p["b_x"]
    r, i = (m.sigmoid(x @ p["W_" + k] + p["b_" + k]) for k in "ri")
    a = m.sigmoid(p["Lambda"]) ** (8 * r)
    h = a * h + (1 - a**2) ** 0.5 * (i * x)
    return (h,), h


# Every option of every cell above, under a short name.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ORACLES} | {
    "indrnn-tanh": ("indrnn", {"activation": "tanh"}),
    "cfc-dt": ("cfc", {"dt": 0.3}),
    "stc-dt": ("stc", {"dt": 0.4}),
    "lem-dt": ("lem", {"dt": 0.5}),
    "cornn-options": ("cornn", {"dt": 0.2, "gamma": 1.3, "epsilon": 0.6}),
    "unicornn-options": ("unicornn", {"dt": 0.4, "alpha": 2.5}),
    "lrc_complex-dt": ("lrc_complex", {"dt": 0.5}),
    "mingru-positive": ("mingru", {"positive": True}),
    "minlstm-positive": ("minlstm", {"positive": True}),
    "linoss-imex": ("linoss", {"scheme": "imex"}),
    "lru-ring": ("lru", {"r_min": 0.8, "r_max": 0.9, "max_phase": 0.5}),
    "s5-step": ("s5", {"step_min": 0.3, "step_max": 0.9}),
    "s6-groups": ("s6", {"state_size": 2, "rank": 2}),
}
# The option `dt` where it is not 1.
DT = {"cornn": 0.042, "unicornn": 0.1}
LINEAR = ("mingru", "minlstm", "lru", "s5", "s6", "rglru", "linoss")


def draw(name: str, shapes: Shapes, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw parameters of order one that keep the states of order one."""
    params = {k: rng.uniform(-1.2, 1.2, shape) for k, shape in shapes.items()}
    if name == "lrc_complex":  # away from the poles of the complex sigmoid and tanh
        params |= {k: 0.4 * params[k] for k in shapes if k.endswith("_im")}
    if name == "s5":
        params["Lambda_re"] = rng.uniform(-1.2, -0.1, shapes["Lambda_re"])
    if name == "linoss":  # oscillators; where A < 0 there is no spring, and y grows with the steps
        params["A"] = rng.uniform(0.1, 1.2, shapes["A"])
    return params
