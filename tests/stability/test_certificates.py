"""Certified bounds against dense samples, closed forms and what autograd's gradients do."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optional import torch
from oracles import VARIANTS

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.params import vector
from parnl.testing.expressions import trees, value


def made(step, states=("x",), **parameters):
    """A cell of one channel with this step of (p, *states, f), and its parameters."""

    class Made(parnl.Cell):
        def features(self, p, u):
            return {"u": u}

        def step(self, p, *arguments):
            return step(p, *arguments)

    Made.states = states
    Made.parameters = {name: vector("hidden") for name in parameters}
    return Made(1, 1), {name: np.array([v], float) for name, v in parameters.items()}


def sampled(cell, params, low, high, features, dt, count=20000, seed=0):
    """Jacobians (k, k, count, D) at random points of the box, and the next states; with corners."""
    rng = np.random.default_rng(seed)
    D = cell.hidden_size

    def draw(a, b):
        share = rng.uniform(-0.2, 1.2, (count, D)).clip(0, 1)  # a third of them at an end
        return np.clip(a + share * (b - a), a, b)

    states = [draw(a, b) for a, b in zip(low, high, strict=True)]
    operands = []
    for kind, name in cell.program.operands:
        if kind == "parameter":
            operands.append(np.float64(params[name]))
        else:
            operands.append(draw(*(dt if kind == "dt" else features[name])))
    backend = get_backend("numpy")
    k = len(cell.states)
    with np.errstate(all="ignore"):
        entries = cell.program.function("jacobian", backend)(*states, *operands)
        new = cell.program.function("step", backend)(*states, *operands)
    jacobian = np.array([np.broadcast_to(e, (count, D)) for e in entries])
    return jacobian.reshape(k, k, count, D), [np.broadcast_to(x, (count, D)) for x in new]


def norms(jacobian, weights):
    """The induced norm of max_i |v_i| / weights_i."""
    return np.max(np.einsum("ijnd,jd->ind", np.abs(jacobian), weights) / weights[:, None], axis=0)


def check_bound(cell, params, certificate, features, dt=(1.0, 1.0), **kwargs):
    low, high = certificate.low, certificate.high
    jacobian, new = sampled(cell, params, low, high, features, dt, **kwargs)
    found = np.nanmax(norms(jacobian, certificate.weights), axis=0)
    assert np.all(found <= certificate.rho * (1 + 1e-12)), (found, certificate.rho)
    assert np.all(certificate.attained <= certificate.rho)
    for x, a, b in zip(new, low, high, strict=True):
        room = 1e-12 * (1 + b - a)
        assert np.all((x >= a - room) & (x <= b + room) | ~certificate.invariant)
    return found


def small(name, backend="numpy", dtype="float32", hidden=5):
    """A cell with weights small enough to be stable, and its parameters."""
    cell = parnl.get_cell(name, 2, hidden)
    params = cell.init(3, backend=backend, dtype=dtype)
    return cell, {n: (0.5 if name == "lstm" else 1.0) * v for n, v in params.items()}


def problem(variant, scale=1.0):
    name, options = VARIANTS[variant]
    cell = parnl.get_cell(name, 2, 6, **options)
    params = {n: scale * v for n, v in cell.init(1, dtype="float64").items()}
    rng = np.random.default_rng(2)
    features = {}
    for kind, feature in cell.program.operands:
        if kind == "feature":
            middle, width = rng.normal(size=6), rng.uniform(0, 2, 6)
            if name == "ltc":
                middle = np.abs(middle) + width if feature == "d" else middle
            features[feature] = (middle - width, middle + width)
    return cell, params, features


@pytest.mark.turns("variant")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("scale", "budget"), [(4.0, 1), (1.0, 50)])
def test_never_below_a_dense_sample(variant, scale, budget):
    cell, params, features = problem(variant, scale)
    dt = (0.5, 1.0) if cell.time_aware else None
    given = [(-1.5, 2.0)] * len(cell.states)
    certificate = parnl.certify(cell, params, given, features, dt=dt, budget=budget)
    assert np.all(certificate.low <= -1.5)
    assert np.all(certificate.high >= 2.0)
    check_bound(cell, params, certificate, features, dt or (1.0, 1.0))


@pytest.mark.long
@pytest.mark.parametrize(
    "variant", ["gru", "lrc", "lrc-symmetric", "ltc-unfolds", "ltc-clip-unfolds-dt", "lstm"]
)
def test_the_bound_closes_in_on_the_truth(variant):
    """Within a thousandth of a point where it is attained, and never looser for more boxes."""
    cell, params, features = problem(variant)
    features = {n: (0.5 * (a + b), 0.5 * (a + b) + 0.2) for n, (a, b) in features.items()}
    given = [(-0.5, 1.0)] * len(cell.states)
    before = np.full(6, np.inf)
    for budget in (1, 30, 300, 2000):
        certificate = parnl.certify(cell, params, given, features, budget=budget)
        if len(cell.states) == 1 and budget > 30:  # the range and a block's weights change too
            assert np.all(certificate.rho <= before * (1 + 1e-9))
        before = certificate.rho
    dt = (getattr(cell, "dt", 1.0),) * 2
    found = check_bound(cell, params, certificate, features, dt)
    assert np.all(certificate.rho <= 1.001 * certificate.attained)
    assert np.all(certificate.attained >= found * (1 - 1e-3))


@st.composite
def cells(draw):
    states = ("x", "y", "z")[: draw(st.integers(1, 3))]
    leaves = [*states, "a", "b", "f", "g"]
    expressions = [draw(trees(leaves)) for _ in states]

    class Random(parnl.Cell):
        parameters = dict(a=vector("hidden"), b=vector("hidden"))

        def step(self, p, *arguments):
            *x, f = arguments
            known = dict(zip(states, x, strict=True), a=p.a, b=p.b, f=f.f, g=f.g)
            new = [ops.tanh(value(e, known)) for e in expressions]
            return tuple(0.4 * old + 0.5 * n for old, n in zip(x, new, strict=True))

    Random.states = states
    return Random(1, 3)


@pytest.mark.long
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(cells(), st.integers(0, 2**31), st.sampled_from([1, 60]))
def test_never_below_a_dense_sample_of_random_cells(cell, seed, budget):
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=3) for name in "ab"}
    features = {}
    for kind, name in cell.program.operands:
        if kind == "feature":
            middle, width = rng.normal(size=3), rng.exponential(size=3) * rng.integers(0, 2)
            features[name] = (middle - width, middle + width)
    certificate = parnl.certify(cell, params, None, features, budget=budget)
    # x' = 0.4 x + 0.5 tanh(...) stays within 5 / 6, whatever the tree; an unproved one is infinite
    if np.all(certificate.invariant):
        check_bound(cell, params, certificate, features, count=2000)
    given = [(-1.0, 1.5)] * len(cell.states)
    certificate = parnl.certify(cell, params, given, features, budget=budget)
    check_bound(cell, params, certificate, features, count=2000)


@pytest.mark.parametrize("a", [0.0, 0.3, -0.9, 1.7])
def test_a_linear_cell_has_its_coefficient(a):
    cell, params = made(lambda p, x, f: p.a * x + f.u, a=a)
    certificate = parnl.certify(cell, params, (-5, 5), {"u": (-1, 1)}, budget=1)
    assert certificate.rho == certificate.attained == abs(a)
    assert certificate.stable is (abs(a) < 1)
    assert certificate.invariant == [abs(a) < 1]


def test_lemma_1_of_the_lrc_paper():
    """With e_w = w_f = w_g = 0 the step is affine with the factor 1 - e F, between 0 and 1."""
    cell, params, features = problem("lrc", 3.0)
    params |= {name: np.zeros(6) for name in ("e_w", "w_f", "w_g")}
    certificate = parnl.certify(cell, params, None, features, dt=(0.25, 0.75))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    expected = 1 - 0.25 * sigmoid(params["e_b"]) * sigmoid(params["g_leak"] + features["a"][0])
    np.testing.assert_allclose(certificate.rho, expected, rtol=1e-12)
    assert np.all(certificate.rho >= expected * (1 - 1e-15))
    assert certificate.stable


def test_a_gru_without_recurrent_weights_contracts_by_its_gate():
    cell, params, features = problem("gru")
    params |= {name: np.zeros(6) for name in ("a_r", "a_z", "a_n")}
    certificate = parnl.certify(cell, params, (-1, 1), features)
    gate = 1 / (1 + np.exp(-params["b_z"] - features["z"][1]))
    np.testing.assert_allclose(certificate.rho, gate, rtol=1e-12)
    assert certificate.stable


@pytest.mark.parametrize(
    ("step", "interval", "expected"),
    [
        (lambda p, x, f: ops.tanh(1.3 * x + f.u), (-1, 1), 1.3),
        (lambda p, x, f: 3.7 * x * (1.0 - x) + 0.0 * f.u, (0.2, 0.9), 3.7 * 0.8),
        (lambda p, x, f: ops.sin(3.0 * x) + f.u, (0.2, 0.7), 3 * math.cos(0.6)),
        # |3 cos| is largest inside, where cos is -1
        (lambda p, x, f: ops.sin(3.0 * x) + f.u, (0.7, 1.2), 3.0),
        (lambda p, x, f: ops.exp(-x * x) + f.u, (-2, 2), math.sqrt(2 / math.e)),
        (lambda p, x, f: x**3 - x + f.u, (-0.5, 0.7), 1.0),
        (lambda p, x, f: x / (1.0 + x * x) + f.u, (0.5, 3), 0.48),
        # kinks and jumps of the derivative
        (lambda p, x, f: 0.4 * x + 0.5 * abs(x) + f.u, (-1, 1), 0.9),
        (lambda p, x, f: 0.9 * ops.relu(x - 0.3) + f.u, (-1, 1), 0.9),
        (lambda p, x, f: 0.9 * ops.relu(x - 0.3) + f.u, (-1, 0.2), 0.0),
        (lambda p, x, f: ops.where(x > 0.6180339887, 3.0 * x, 0.2 * x) + f.u, (0, 1), 3.0),
        (lambda p, x, f: ops.where(x > 0.0, x * f.u, -x) + f.u, (0.5, 2), 2.0),
        (lambda p, x, f: ops.clip(2.0 * x, -1.0, 1.0) + f.u, (-1, 1), 2.0),
        # no u is both: found out by halving the range of u, along which the Jacobian has no slope
        (lambda p, x, f: ops.where((f.u > 1.5) & (f.u < 1.4), 9.0 * x, x * x), (0, 1), 2.0),
    ],
)
def test_the_maximum_of_simple_cells(step, interval, expected):
    # thrown far away: no range around the given one is invariant, so that one stands
    cell, params = made(lambda p, x, f: step(p, x, f) + 1e10)
    certificate = parnl.certify(cell, params, interval, {"u": (1, 2)}, budget=4000)
    assert (certificate.low, certificate.high) == interval
    assert expected * (1 - 1e-12) <= certificate.rho <= expected * 1.001 + 1e-12


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_monotone_jacobian_is_bounded_at_once(sign):
    """From one box, by its slopes: the largest of u / (1 + u u) for u in [0.5, 0.6] is at 0.6."""
    cell, params = made(lambda p, x, f: sign * (x * f.u) / (1.0 + f.u * f.u))
    certificate = parnl.certify(cell, params, (-1, 1), {"u": (0.5, 0.6)}, budget=1)
    assert certificate.bound == pytest.approx(0.6 / 1.36, rel=1e-12)
    assert certificate.bound >= 0.6 / 1.36 * (1 - 1e-15)


def test_division_by_what_may_be_zero_has_no_bound():
    cell, params = made(lambda p, x, f: 1.0 / (x - f.u))
    certificate = parnl.certify(cell, params, (0.5, 1), {"u": (0, 0.7)})
    assert certificate.bound == np.inf
    assert not certificate.stable
    assert parnl.certify(cell, params, (0.5, 1), {"u": (0, 0.25)}).bound == pytest.approx(16)


def test_the_norm_of_a_block_is_scaled():
    """Weights bring [[0, 10], [0.05, 0]] from 10 down to its spectral radius, 0.7071."""
    cell, params = made(lambda p, x, y, f: (10.0 * y + f.u, 0.05 * x), states=("x", "y"))
    certificate = parnl.certify(cell, params, None, {"u": (-1, 1)})
    assert certificate.bound == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert certificate.stable
    assert "weights" in certificate.norm
    # a rotation by 45 degrees: no weights help, in this norm
    c = 0.6 * math.sqrt(0.5)
    cell, params = made(lambda p, x, y, f: (c * (x - y) + f.u, c * (x + y)), states=("x", "y"))
    assert parnl.certify(cell, params, None, {"u": (-1, 1)}).bound == pytest.approx(2 * c)


@pytest.mark.parametrize("a", [0.5, -0.7, 0.97])
def test_the_range_reached_from_zero(a):
    """x' = a x + u with |u| <= 1 stays within 1 / (1 - |a|), and reaches it."""
    cell, params = made(lambda p, x, f: p.a * x + f.u, a=a)
    certificate = parnl.certify(cell, params, None, {"u": (-1, 1)})
    reach = 1 / (1 - abs(a))
    assert certificate.invariant
    assert reach <= certificate.high < 1.5 * reach
    assert -1.5 * reach < certificate.low <= -reach


def test_a_range_that_the_step_leaves_is_widened():
    cell, params = made(lambda p, x, f: p.a * x + f.u, a=0.5)
    certificate = parnl.certify(cell, params, (-0.1, 7.0), {"u": (-1, 0)})
    assert certificate.invariant
    assert -3 < certificate.low <= -2
    assert certificate.high == 7


def test_what_expands_has_no_invariant_range():
    cell, params = made(lambda p, x, f: p.a * x + f.u, a=1.25)
    certificate = parnl.certify(cell, params, None, {"u": (-1, 1)})
    assert (certificate.bound, certificate.stable) == (np.inf, False)
    certificate = parnl.certify(cell, params, (-1, 1), {"u": (-1, 1)})
    assert (certificate.bound, certificate.stable) == (1.25, False)
    assert (certificate.low, certificate.high) == (-1, 1)


def test_contraction_alone_is_not_stability():
    """Outside the range the Jacobian may be anything, and the step leads there."""
    cell, params = made(lambda p, x, f: 0.5 * x + f.u)
    certificate = parnl.certify(cell, params, (-1, 1), {"u": (1e10, 1e10)})
    assert (certificate.bound, certificate.invariant, certificate.stable) == (0.5, False, False)


def test_one_range_does_for_all_states():
    cell, params, features = problem("lstm")
    one, each = (
        parnl.certify(cell, params, given, features, budget=10)
        for given in ((-1, 1), [(-1, 1), (-1, 1)])
    )
    np.testing.assert_array_equal(one.rho, each.rho)


def test_channels_are_judged_one_by_one():
    cell, params, features = problem("gru")
    features["z"] = (features["z"][0], features["z"][0] + np.arange(6))
    wide = parnl.certify(cell, params, (-1, 1), features, budget=100)
    for channel in range(6):
        alone = parnl.get_cell("gru", 2, 1)
        own = {n: v[..., channel : channel + 1] for n, v in params.items()}
        ranges = {n: (a[channel], b[channel]) for n, (a, b) in features.items()}
        found = parnl.certify(alone, own, (-1, 1), ranges, budget=100)
        np.testing.assert_allclose(found.rho, wide.rho[channel], rtol=1e-6)


def test_many_channels_are_done_in_groups():
    cell = parnl.get_cell("lrc", 2, 130)
    params = cell.init(0)
    certificate = parnl.certify(cell, params, inputs=np.ones((5, 2), np.float32), budget=10)
    assert certificate.rho.shape == certificate.invariant.shape == (130,)
    assert certificate.low.shape == certificate.weights.shape == (1, 130)
    half = {n: v[..., 100:] if v.shape[-1] == 130 else v for n, v in params.items()}
    rest = parnl.certify(
        parnl.get_cell("lrc", 2, 30), half, inputs=np.ones((5, 2), np.float32), budget=10
    )
    np.testing.assert_array_equal(certificate.rho[100:], rest.rho)


@pytest.mark.long
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", ["lrc", "lstm"])
def test_ranges_of_inputs(backend, name):
    """Those of the features that `solve` computes from the same arrays."""
    cell, params = small(name, backend)
    u = np.random.default_rng(0).normal(size=(2, 30, 2))
    given = get_backend(backend).asarray(u, "float32")
    certificate = parnl.certify(cell, params, inputs=given, budget=100)
    from parnl.params import Values

    features = cell.features(Values("parameter", params), given)
    ranges = {
        n: (np.asarray(v).min(axis=(0, 1)), np.asarray(v).max(axis=(0, 1)))
        for n, v in features.items()
    }
    again = parnl.certify(cell, params, None, ranges, budget=100)
    np.testing.assert_array_equal(certificate.rho, again.rho)
    assert certificate.stable
    out = parnl.solve(cell, params, given)
    outputs = np.asarray(out.outputs)
    assert np.all(
        (outputs >= certificate.low[-1] - 1e-6) & (outputs <= certificate.high[-1] + 1e-6)
    )
    check_bound(cell, {n: np.asarray(v, float) for n, v in params.items()}, certificate, ranges)


def test_half_precision_parameters():
    cell = parnl.get_cell("gru", 3, 4)
    params = {n: v.to(torch.bfloat16) for n, v in cell.init(0, backend="torch").items()}
    u = torch.ones(1, 5, 3, dtype=torch.bfloat16)
    assert parnl.certify(cell, params, inputs=u).stable
    ranges = {name: (-1, 1) for name in "rzn"}
    assert parnl.certify(cell, params, (-1, 1), ranges).stable


@pytest.mark.long
@pytest.mark.parametrize("name", ["gru", "lrc", "lstm"])
def test_gradients_of_a_certified_cell_shrink(name):
    """Theorem 1: |dL/dx_0| <= rho^T |dL/dx_T|, with autograd through a plain loop."""
    cell, params = small(name, "torch", "float64")
    u = torch.tensor(np.random.default_rng(1).normal(size=(20, 2)))
    certificate = parnl.certify(cell, params, inputs=u)
    assert certificate.stable
    state = [torch.zeros(5, dtype=torch.float64, requires_grad=True) for _ in cell.states]
    first = state
    for t in range(20):
        _, state = parnl.step(cell, params, u[t], state)
    rng = np.random.default_rng(0)
    weights = [torch.tensor(rng.normal(size=5)) for _ in state]
    last = sum((w * x).sum() for w, x in zip(weights, state, strict=True))
    gradient = torch.autograd.grad(last, first)
    # the norm of a gradient is the dual one
    before, after = (
        sum(w * np.abs(g.numpy()) for w, g in zip(certificate.weights, gs, strict=True))
        for gs in (gradient, weights)
    )
    assert np.all(before <= certificate.rho**20 * after)
    assert np.all(before > 0)


def test_a_certificate_reads_well():
    cell, params = made(lambda p, x, f: p.a * x + f.u, a=0.5)
    text = str(parnl.certify(cell, params, (-4, 4), {"u": (-1, 1)}))
    assert "|df/dx| <= 0.5 in 1 channels, of which 1 are below 1" in text
    assert "states: -4 to 4; 1 of 1 channels proved to stay" in text
    assert "not proved" not in text
    params = {"a": np.array([1.5])}
    assert "not proved" in str(parnl.certify(cell, params, (-4, 4), {"u": (-1, 1)}))
