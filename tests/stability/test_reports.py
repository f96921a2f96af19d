"""Lyapunov exponents against known values; reports."""

import json
import math

import numpy as np
import pytest
from optional import torch

import parnl
from parnl import ops
from parnl.frameworks import get_backend
from parnl.params import vector


def made(step, states=("x",), **parameters):
    """A cell of one channel with this step of (p, *states), and its parameters."""

    class Made(parnl.Cell):
        def features(self, p, u):
            return {"u": u}

        def step(self, p, *arguments):
            return step(p, *arguments[:-1])

    Made.states = states
    Made.parameters = {name: vector("hidden") for name in parameters}
    return Made(1, 1), {name: np.array([v], float) for name, v in parameters.items()}


def silence(steps):
    return np.zeros((steps, 1))


def start(*values):
    return [np.array([v]) for v in values]


def test_the_logistic_map_doubles():
    """x' = 4 x (1 - x) is conjugate to the tent map: ln 2."""
    cell, params = made(lambda p, x: 4.0 * x * (1.0 - x))
    found = parnl.lyapunov(cell, params, silence(20000), start(0.3))
    assert abs(found.largest - math.log(2)) < 1e-3
    assert found.exponents.shape == found.rho.shape == (1,)
    assert 3.99 < found.rho[0] <= 4


@pytest.mark.parametrize("a", [0.5, -0.9, 1.5])
def test_a_linear_cell_has_the_logarithm_of_its_coefficient(a):
    cell, params = made(lambda p, x: p.a * x, a=a)
    found = parnl.lyapunov(cell, params, silence(500), start(0.1))
    assert found.largest == pytest.approx(math.log(abs(a)), abs=1e-14)
    assert found.rho == abs(a)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_a_rotation_has_the_logarithm_of_its_scale(scale):
    """Long enough for the plain product to leave the range of float64 at both ends."""
    c, s = scale * math.cos(0.7), scale * math.sin(0.7)
    cell, params = made(lambda p, x, y: (c * x - s * y, s * x + c * y), ("x", "y"))
    found = parnl.lyapunov(cell, params, silence(900), start(0.0, 0.0))
    assert found.largest == pytest.approx(math.log(scale), abs=1e-13)
    assert found.rho[0] == pytest.approx(abs(c) + abs(s))


def test_a_sheared_block_has_the_larger_eigenvalue():
    cell, params = made(lambda p, x, y: (0.5 * x + 100.0 * y, 0.8 * y), ("x", "y"))
    found = parnl.lyapunov(cell, params, silence(20000), start(0.0, 0.0))
    assert found.largest == pytest.approx(math.log(0.8), abs=1e-3)


def test_the_henon_map():
    """a = 1.4, b = 0.3: 0.4192 (Wolf et al., 1985, give 0.603 bits = 0.418)."""
    cell, params = made(lambda p, x, y: (1.0 - 1.4 * x * x + y, 0.3 * x), ("x", "y"))
    found = parnl.lyapunov(cell, params, silence(20000), start(0.1, 0.1))
    assert abs(found.largest - 0.4192) < 0.01


def test_what_is_forgotten_at_once_has_no_exponent():
    for states in (("x",), ("x", "y")):
        cell, params = made(lambda p, x, y=None: x * 0.0 if y is None else (x * 0.0, x), states)
        found = parnl.lyapunov(cell, params, silence(5), start(*[0.5] * len(states)))
        assert found.largest == -math.inf


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", ["lrc", "lstm"])
def test_exponents_are_those_of_autograd_through_a_loop(backend, name):
    cell = parnl.get_cell(name, 3, 4)
    u = np.random.default_rng(0).normal(size=(2, 12, 3))
    dt = np.random.default_rng(1).uniform(0.2, 1, (2, 12)) if cell.time_aware else None
    given = {n: v for n, v in cell.init(5, dtype="float64").items()}
    x0 = [np.random.default_rng(2).normal(size=(2, 4)) for _ in cell.states]

    kind = get_backend(backend)
    put = lambda a: kind.asarray(a, "float64")  # noqa: E731
    found = parnl.lyapunov(
        cell,
        {n: put(v) for n, v in given.items()},
        put(u),
        [put(x) for x in x0],
        dt=None if dt is None else put(dt),
    )
    assert found.exponents.shape == (2, 4)

    params = {n: torch.tensor(v) for n, v in given.items()}
    first = [torch.tensor(x, requires_grad=True) for x in x0]
    state = first
    for t in range(12):
        step_dt = None if dt is None else torch.tensor(dt[:, t])
        _, state = parnl.step(cell, params, torch.tensor(u[:, t]), state, dt=step_dt)
    rows = [torch.autograd.grad(x.sum(), first, retain_graph=True) for x in state]
    entries = np.array([[g.numpy() for g in row] for row in rows])  # (k, k, 2, 4)
    size = np.sqrt((entries**2).sum(axis=(0, 1)) / len(state))
    np.testing.assert_allclose(found.exponents, np.log(size) / 12, rtol=1e-9)


@pytest.mark.parametrize("shape", [(0, 3), (0, 5, 3)])
def test_without_a_step_there_is_no_exponent(shape):
    cell = parnl.get_cell("gru", 3, 4)
    with pytest.raises(ValueError, match="inputs: expected at least one step"):
        parnl.lyapunov(cell, cell.init(0), np.zeros(shape, np.float32))


@pytest.fixture(scope="module")
def report():
    cell = parnl.get_cell("lrc", 3, 6)
    params = cell.init(0, backend="torch")
    u = torch.tensor(np.random.default_rng(0).normal(size=(2, 100, 3)), dtype=torch.float32)
    return parnl.diagnose(cell, params, u, budget=50)


def test_a_report_agrees_with_itself(report):
    assert report.certificate.stable
    assert np.all(report.measured <= report.certificate.rho * (1 + 1e-12))
    assert np.all(np.exp(report.lyapunov.exponents) <= report.measured * (1 + 1e-12))
    assert report.steps == 100
    assert [run.chunks for run in report.runs] == [1, 4, 15, 50, 100]
    sequential, *parallel = report.runs
    assert sequential[1:] == (0, True, 100, 1.0)
    for run in parallel:
        assert run.converged
        assert 1 <= run.iterations <= 10
        assert run.in_a_row == 2 * run.iterations * -(-100 // run.chunks)
        assert run.evaluations == 2 * run.iterations


def test_a_report_reads_well(report):
    text = str(report)
    assert f"|df/dx| <= {report.certificate.bound:.6g} in 6 channels" in text
    assert "a change of the state halves in" in text
    assert "solving 100 steps" in text
    assert text.count("\n") < 20


def test_a_report_as_numbers(report):
    numbers = json.loads(json.dumps(report.as_dict()))
    assert numbers["certificate"]["bound"] == report.certificate.bound
    assert numbers["certificate"]["stable"] is True
    assert numbers["lyapunov"]["largest"] == report.lyapunov.largest
    assert numbers["runs"][1]["chunks"] == 4
    assert len(numbers["measured"]) == 6


def test_a_report_as_a_picture(report, tmp_path):
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    from matplotlib.figure import Figure

    axes = Figure().subplots(1, 2)
    report.plot(axes)
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), np.sort(report.certificate.rho))
    assert list(axes[1].lines[0].get_xdata()) == [1, 4, 15, 50, 100]


def test_a_chaotic_cell_is_found_out():
    cell, params = made(lambda p, x: 4.0 * x * (1.0 - x))
    report = parnl.diagnose(cell, params, silence(64), start(0.3), chunks=[16], budget=100)
    assert not report.certificate.stable
    assert report.certificate.bound == pytest.approx(4, rel=0.02)
    assert "does not fade" in str(report)
    assert report.runs[0].iterations > 8


def test_an_exploding_cell_is_reported_too():
    cell, params = made(lambda p, x: x * x)
    report = parnl.diagnose(cell, params, silence(20), start(2.0), chunks=[4], budget=10)
    assert not report.certificate.stable
    assert report.certificate.bound > 2**16
    assert not report.lyapunov.largest < 0
    assert "does not fade" in str(report)


def test_the_norm_of_a_block_is_the_certificate_s():
    cell, params = made(lambda p, x, y: (10.0 * y, 0.05 * x + ops.tanh(0.0 * x)), ("x", "y"))
    report = parnl.diagnose(cell, params, silence(8), start(0.1, 0.1), chunks=[1])
    assert report.lyapunov.rho == 10
    assert report.measured == pytest.approx(math.sqrt(0.5), rel=1e-3)
    assert report.measured <= report.certificate.rho


def test_no_framework_is_imported():
    import subprocess
    import sys

    code = (
        "import sys, numpy as np, parnl\n"
        "cell = parnl.get_cell('gru', 2, 3)\n"
        "parnl.diagnose(cell, cell.init(0), np.ones((20, 2), np.float32), budget=5)\n"
        "assert not {'torch', 'jax', 'matplotlib'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
