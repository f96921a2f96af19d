"""Cells where their formula is 0 / 0, or meets an overflow: value and gradient are the limit.

The truth is one step of the published equation in mpmath with 120 digits, next to the point by
1e-40; gradients are its difference quotients.
"""

import mpmath as mp
import numpy as np
import pytest

import parnl
from parnl import cells

U, FAR, NEAR = 0.7, mp.mpf("1e-20"), mp.mpf("1e-40")


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return mp.log(1 + mp.exp(x))


def s5(p, u, state, dt):
    eigenvalue, step = p["Lambda_re"] + 1j * p["Lambda_im"], mp.exp(p["log_step"])
    a = mp.exp(eigenvalue * step)
    x = a * (state[0] + 1j * state[1])
    x += (a - 1) / eigenvalue * u * (p["B_re"] + 1j * p["B_im"])
    return [x.real, x.imag]


def lru(p, u, state, dt):
    a = mp.exp(-mp.exp(p["nu_log"]) + 1j * mp.exp(p["theta_log"]))
    x = a * (state[0] + 1j * state[1])
    x += mp.exp(p["gamma_log"]) * u * (p["B_re"] + 1j * p["B_im"])
    return [x.real, x.imag]


def s6(p, u, state, dt):
    v = u * p["W_v"]
    d = softplus(v * p["W_r"] * p["W_d"] + p["b_d"])
    return [mp.exp(-d * mp.exp(p["A_log"])) * state[0] + d * v * p["W_B"] * v]


def rglru(p, u, state, dt):
    x = u * p["W_x"] + p["b_x"]
    r, i = (sigmoid(x * p["W_" + k] + p["b_" + k]) for k in "ri")
    a = sigmoid(p["Lambda"]) ** (8 * r)
    return [a * state[0] + mp.sqrt(1 - a**2) * i * x]


def ltc(p, u, state, dt):
    x, h = state[0], dt / 6
    w_in, w, c_m, g_leak = (softplus(p[k]) for k in ("w_in", "w", "c_m", "g_leak"))
    d = w_in * sigmoid(p["sigma_in"] * (u - p["mu_in"]))
    n = d * p["e_in"]
    for _ in range(6):
        y = w * sigmoid(p["sigma"] * (x - p["mu"]))
        x = (c_m / h * x + g_leak * p["v_leak"] + y * p["e"] + n) / (
            c_m / h + g_leak + y + d + mp.mpf("1e-8")
        )
    return [x]


def minlstm(p, u, state, dt):
    i, f = (sigmoid(u * p["W_" + k] + p["b_" + k]) for k in "if")
    return [f / (f + i) * state[0] + i / (f + i) * (u * p["W_n"] + p["b_n"])]


def unicornn(p, u, state, dt):
    t = dt * sigmoid(p["c"])
    z = state[0] - t * (mp.tanh(p["a"] * state[1] + u * p["W"] + p["b"]) + state[1])
    return [z, state[1] + t * z]


def linoss(p, u, state, dt):
    a, t = max(p["A"], mp.mpf(0)), sigmoid(p["dt_raw"])
    z = (state[0] + t * (u * p["B"] - a * state[1])) / (1 + t**2 * a)
    return [z, state[1] + t * z]


def cfc(p, u, state, dt):
    def net(k):
        return u * p["W_" + k] + p["a_" + k] * state[0] + p["b_" + k]

    gate = sigmoid(-(net("f") * dt + net("l")))
    return [gate * mp.tanh(net("g")) + (1 - gate) * mp.tanh(net("h"))]


def lrc(p, u, state, dt):
    x = state[0]
    v, y = sigmoid(p["sigma_in"] * (u - p["mu_in"])), sigmoid(p["sigma"] * (x - p["mu"]))
    leak = sigmoid(p["g_leak"] + v * p["W_f"] + p["w_f"] * y)
    drive = mp.tanh(p["g_leak"] + v * p["W_g"] + p["w_g"] * y)
    level = p["e_w"] * x + p["e_b"]
    e = dt * (sigmoid(level + p["e_shift"]) - sigmoid(level - p["e_shift"]))
    return [x + e * (-leak * x + p["v_leak"] * drive)]


def slstm(p, u, state, dt):
    """At the start, c = n = 0: what is left of c' / n' does not depend on either gate."""
    h = state[3]
    i, z, o = (u * p["W_" + k] + p["b_" + k] + p["a_" + k] * h for k in "izo")
    return [mp.tanh(z), mp.mpf(1), i, sigmoid(o) * mp.tanh(z)]


ZERO = {"Lambda_re": 0.0, "Lambda_im": 0.0}
# name: (equation, parameters at the point, dt, options)
CASES = {
    "s5: Lambda = 0": (s5, ZERO, None, {}),
    **{
        f"s5: |Lambda| step = {z}": (
            s5, {"Lambda_re": -0.6 * z, "Lambda_im": 0.8 * z, "log_step": 0.0}, None, {}
        )
        for z in (1e-30, 1e-12, 1e-8, 1e-4, 0.05, 0.2499, 0.2501, 0.5, 3.0)
    },
    "s5: Lambda real": (s5, {"Lambda_re": -0.3, "Lambda_im": 0.0}, None, {}),
    "s5: step = 0": (s5, {"log_step": -800.0}, None, {}),
    "lru: no memory": (lru, {"nu_log": 8.0}, None, {}),
    "lru: exp(nu) overflows": (lru, {"nu_log": 800.0}, None, {}),
    "lru: |lambda| = 1": (lru, {"nu_log": -800.0}, None, {}),
    "s6: exp(A) overflows": (s6, {"A_log": 800.0}, None, {}),
    "s6: step = 0": (s6, {"b_d": -800.0}, None, {}),
    "rglru: a = 1": (rglru, {"Lambda": 300.0}, None, {}),
    "rglru: a = 0": (rglru, {"Lambda": -800.0}, None, {}),
    "ltc: dt = 0": (ltc, {}, 0.0, {}),
    "ltc: dt is small": (ltc, {}, 1e-30, {}),
    "ltc: dt is huge": (ltc, {}, 1e300, {}),
    "ltc: no capacitance": (ltc, {"c_m": -800.0}, 0.5, {}),
    "minlstm: both gates shut": (minlstm, {"b_i": -900.0, "b_f": -901.0}, None, {}),
    "unicornn: step = 0": (unicornn, {"c": -800.0}, None, {}),
    "unicornn: dt = 0": (unicornn, {}, 0.0, {}),
    "linoss: no spring": (linoss, {"A": -0.5}, None, {}),
    "linoss: step = 0": (linoss, {"dt_raw": -800.0}, None, {}),
    "linoss: stiff": (linoss, {"A": 1e30}, None, {}),
    "cfc: dt = 0": (cfc, {}, 0.0, {}),
    "lrc: no elastance": (lrc, {"e_shift": 0.0}, None, {"symmetric": True}),
    "lrc: dt = 0": (lrc, {}, 0.0, {"symmetric": True}),
    "slstm: at the start": (slstm, {}, None, {}),
}  # fmt: skip


def posed(case):
    """The cell of one channel, its numbers by name, and those the equation is displaced in."""
    equation, point, dt, options = CASES[case]
    cell = parnl.get_cell(equation.__name__, 1, 1, **options)
    rng = np.random.default_rng(5)
    numbers = {n: float(rng.uniform(0.2, 0.9)) for n in cell.specs} | point
    start = {f"x{i}": float(x) for i, x in enumerate(rng.uniform(0.2, 0.9, len(cell.states)))}
    if equation is slstm:
        start |= {"x0": 0.0, "x1": 0.0}
    numbers |= start | {"u": U}
    if cell.time_aware:
        numbers["dt"] = float(cell.dt if dt is None else dt)
    return cell, numbers, [*point, *(["dt"] if dt is not None else [])]


def truth(case, weights):
    """The new states, and the gradient of their weighted sum in each number."""
    equation = CASES[case][0]
    cell, numbers, singular = posed(case)
    with mp.workdps(120):

        def at(changed, offset):
            given = {n: mp.mpf(v) for n, v in numbers.items()}
            for n in singular:
                given[n] += NEAR * (given[n] == 0)
            if changed:
                given[changed] += offset
            state = [given[f"x{i}"] for i in range(len(cell.states))]
            return equation(given, given["u"], state, given.get("dt"))

        def slope(n):
            # small beside the number, lest a curve as sharp as 1 / dt be missed
            h = FAR * min(1, abs(mp.mpf(numbers[n])) or 1)
            pairs = zip(at(n, h), at(n, -h), strict=True)
            return float(sum(w * (a - b) for w, (a, b) in zip(weights, pairs, strict=True)) / h / 2)

        return [float(x) for x in at(None, 0)], {n: slope(n) for n in numbers}


WEIGHTS = (1.0, -0.7, 0.4, 1.3)


def in_torch(cell, numbers):
    torch = pytest.importorskip("torch")
    leaves = {
        n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in numbers.items()
    }
    loss, states = run(cell, leaves, torch.stack)
    found = torch.autograd.grad(
        loss, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return [x.item() for x in states], {n: g.item() for n, g in zip(leaves, found, strict=True)}


def in_jax(cell, numbers):
    jax = pytest.importorskip("jax")

    def loss(leaves):
        return run(cell, leaves, jax.numpy.stack)

    leaves = {n: jax.numpy.asarray(v, "float64") for n, v in numbers.items()}
    (_, states), found = jax.value_and_grad(loss, has_aux=True)(leaves)
    return [float(x) for x in states], {n: float(g) for n, g in found.items()}


def run(cell, leaves, stack):
    """One step from numbers of any framework; the loss, and the states."""
    params = {n: leaves[n].reshape(shape) for n, shape in cell.parameter_shapes.items()}
    x0 = [leaves[f"x{i}"].reshape(1) for i in range(len(cell.states))]
    dt = leaves["dt"].reshape(1) if cell.time_aware else None
    out = parnl.solve(cell, params, leaves["u"].reshape(1, 1), x0, dt=dt)
    states = [x[0] for x in out.final_state]
    return sum(w * x for w, x in zip(WEIGHTS, states, strict=False)), states


@pytest.mark.parametrize("run_in", [in_torch, in_jax])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_limit(case, run_in):
    cell, numbers, _ = posed(case)
    weights = WEIGHTS[: len(cell.states)]
    expected, gradient = truth(case, weights)
    found, slopes = run_in(cell, numbers)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-14)
    for n, g in gradient.items():
        if CASES[case][0] is slstm and n in ("x0", "x1", "x2"):
            continue  # another past is another equation
        assert slopes[n] == pytest.approx(g, rel=1e-11, abs=1e-12), n


# -- time steps -----------------------------------------------------------------------------------

TIME_AWARE = [n for n in cells.__all__ if parnl.get_cell(n, 1, 1).time_aware]


def timed(name, dt, dtype="float64"):
    rng = np.random.default_rng(1)
    cell = parnl.get_cell(name, 2, 3)
    params = cell.init(0, dtype=dtype)
    u = rng.normal(size=(2, len(dt), 2)).astype(dtype)
    x0 = [rng.normal(size=(2, 3)).astype(dtype) for _ in cell.states]
    with np.errstate(all="ignore"):
        out = parnl.solve(
            cell, params, u, x0, dt=np.broadcast_to(np.asarray(dt, dtype), u.shape[:2])
        )
    return x0, out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in TIME_AWARE if n != "cfc"])
def test_no_time_leaves_the_state(name, dtype):
    x0, out = timed(name, [0.0] * 20, dtype)
    for x, end in zip(x0, out.final_state, strict=True):
        assert np.array_equal(x, end)


@pytest.mark.parametrize("positive", ["softplus", "clip"])
def test_ltc_without_capacitance_and_time(positive):
    """Where a state would follow at once, no time still leaves it."""
    cell = parnl.get_cell("ltc", 2, 3, positive=positive)
    params = cell.init(0) | {"c_m": np.full(3, -1e4, np.float32)}
    x0 = np.full(3, 0.5, np.float32)
    out = parnl.solve(cell, params, np.ones((4, 2), np.float32), x0, dt=0.0)
    assert np.array_equal(out.outputs, np.full((4, 3), 0.5, np.float32))
    assert np.isfinite(parnl.solve(cell, params, np.ones((4, 2), np.float32), x0).outputs).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", TIME_AWARE)
def test_a_time_that_is_none_spoils_nothing_before_it(name, bad):
    dt = np.full(12, 0.1)
    _, clean = timed(name, dt)
    dt[7] = bad
    _, found = timed(name, dt)
    assert np.array_equal(found.outputs[:, :7], clean.outputs[:, :7])
    if np.isnan(bad):
        assert np.isnan(found.outputs[:, 7:]).all()


@pytest.mark.parametrize("name", TIME_AWARE)
def test_negative_time_follows_the_formula(name):
    """A small step there and back again ends near where it began, as the ODE does."""
    if name == "cfc":
        pytest.skip("a closed form in time, whose state is no initial value")
    x0, out = timed(name, [1e-5, -1e-5])
    _, there = timed(name, [1e-5])
    for x, far, end in zip(x0, there.final_state, out.final_state, strict=True):
        assert np.abs(end - x).max() < 0.7 * np.abs(far - x).max()
