"""Every cell against a loop written from its paper's equations; other libraries where they are."""

import os
import tracemalloc
from typing import Any

import diagonal
import numpy as np
import oracles
import pytest
from optional import jax, torch
from oracles import BACKENDS, CELLS, VARIANTS, assert_close, assert_same
from oracles_cells import LINEAR, ORACLES
from oracles_cells import VARIANTS as MORE

import parnl
from parnl.testing import check_cell

ALL = VARIANTS | MORE
EXAMPLES = 5 if "PARNL_EVERY" in os.environ else 2

HOW: dict[str, dict[str, Any]] = {
    "sequential": {"method": "sequential"},
    "newton-1": {"method": "newton", "chunks": 1},
    "newton-5": {"method": "newton", "chunks": 5},
    "newton-T": {"method": "newton", "chunks": 13},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ALL)
@pytest.mark.turns("variant")
def test_equals_the_published_equations(variant, backend):
    name, options = ALL[variant]
    for seed, (key, how) in enumerate(HOW.items()):
        if backend == "jax" and key in ("newton-1", "newton-T"):
            continue  # compile time; test_solve.py has them
        if backend == "jax" and variant in MORE and (key == "sequential" or options):
            continue
        task = oracles.problem(name, steps=13, seed=seed, **options)
        found = oracles.answer(task, backend, **how)
        assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("variant", ALL)
@pytest.mark.turns("variant")
def test_gradients_equal_the_published_equations(variant, how):
    name, options = ALL[variant]
    task = oracles.problem(name, steps=13, **options)
    expected = oracles.reference(task)
    assert_same(oracles.answer(task, "torch", gradients=True, **how), expected, 1e-10)


@pytest.mark.parametrize("variant", MORE)
def test_composed_gradients_equal_the_published_equations(monkeypatch, variant):
    """Without C kernels; for the core cells test_compiled.py has them."""
    monkeypatch.setenv("PARNL_KERNELS", "off")
    name, options = ALL[variant]
    task = oracles.problem(name, steps=13, lengths=[13, 0, 6], reverse=True, start=False, **options)
    found = oracles.answer(task, "torch", gradients=True, chunks=4)
    assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.parametrize("name", ["lru", "s6"])
def test_jax_gradients_equal_the_published_equations(name):
    """Features that are constant in time, and output maps."""
    task = oracles.problem(name, steps=13)
    found = oracles.answer(task, "jax", gradients=True, chunks=5)
    assert_same(found, oracles.reference(task), 1e-10)


@pytest.mark.parametrize("name", ORACLES)
def test_float32_is_as_accurate_as_it_can_be(monkeypatch, name):
    task = oracles.problem(name, steps=50, dtype="float32")
    expected = oracles.reference(task)
    found = oracles.answer(task, "numpy", chunks=7)
    assert found.outputs.dtype == np.float32
    assert_same(found, expected, 2e-5)
    monkeypatch.setenv("PARNL_KERNELS", "off")
    assert_same(oracles.answer(task, "torch", gradients=True, chunks=7), expected, 2e-5)


@pytest.mark.parametrize("name", [*CELLS, *ORACLES])
def test_linear_cells_are_solved_by_one_scan(name):
    task = oracles.problem(name, steps=40)
    assert task.cell.linear == (name in LINEAR)
    out = parnl.solve(task.cell, task.params, task.inputs, chunks=8)
    assert out.info.converged
    assert (out.info.iterations == 1) == (name in LINEAR)


@pytest.mark.long
@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.turns("name")  # each; more examples in `make fuzz`
def test_parnl_testing_agrees(monkeypatch, name):
    monkeypatch.setenv("PARNL_KERNELS", "off")  # each dtype and mask would compile its own
    check_cell(name, backends=["numpy", "torch"], examples=EXAMPLES, max_steps=12)


@pytest.mark.parametrize("variant", ALL)
def test_loops_agree(variant):
    """The loop that calls a cell's own features and step is the loop written from the equations."""
    name, options = ALL[variant]
    for times in (None, "own") if oracles.is_time_aware(name) else (None,):
        task = oracles.problem(name, steps=9, times=times, **options)
        found = oracles.loop(task.cell, task.params, task.inputs, task.initial_state, dt=task.dt)
        expected = oracles.reference(task)
        assert_close(found[0], expected.outputs, 1e-13)
        for a, e in zip(found[1], expected.final_state, strict=True):
            assert_close(a, e, 1e-13)


@pytest.mark.parametrize("variant", ALL)
def test_parameter_names_and_shapes(variant):
    name, options = ALL[variant]
    cell = parnl.get_cell(name, input_size=3, hidden_size=6, **options)
    found = {k: v.shape for k, v in cell.init(seed=0, backend="numpy").items()}
    assert found == oracles.parameter_shapes(name, 3, 6, **options)


@pytest.mark.parametrize("variant", ALL)
def test_init_is_the_same_on_every_backend(variant):
    name, options = ALL[variant]
    cell = parnl.get_cell(name, input_size=3, hidden_size=6, **options)
    kinds = {"numpy": lambda: np.ndarray, "torch": lambda: torch.Tensor, "jax": lambda: jax.Array}
    drawn = {backend: cell.init(seed=7, backend=backend) for backend in BACKENDS}
    for backend, params in drawn.items():
        assert params.keys() == drawn["numpy"].keys()
        for k, v in params.items():
            assert isinstance(v, kinds[backend]())
            assert oracles.numpy_of(v).dtype == np.float32
            oracles.assert_bits(v, drawn["numpy"][k], f"{backend} {k}")
    again = cell.init(seed=7, backend="numpy")
    other = cell.init(seed=8, backend="numpy")
    assert all(np.array_equal(again[k], v) for k, v in drawn["numpy"].items())
    assert any(not np.array_equal(other[k], v) for k, v in drawn["numpy"].items())


@pytest.mark.parametrize("symmetric", [False, True])
def test_init_of_lrc_is_uniform(symmetric):
    cell = parnl.get_cell("lrc", input_size=30, hidden_size=400, symmetric=symmetric)
    bound = 1 / np.sqrt(400)
    for k, v in cell.init(seed=1, backend="numpy").items():
        assert np.abs(v).max() <= bound, k
        assert len(np.unique(v)) > 0.99 * v.size, k
        if v.size >= 400:
            # a uniform sample fills its interval and has the moments of one, to 5 standard errors
            assert v.max() > 0.97 * bound, k
            assert v.min() < -0.97 * bound, k
            assert abs(v.mean()) < 5 * bound / np.sqrt(3 * v.size), k
            assert abs(v.std() - bound / np.sqrt(3)) < 5 * bound / np.sqrt(11 * v.size), k


@pytest.mark.parametrize("name", [*CELLS, *ORACLES])
def test_init_gives_a_finite_run(name):
    cell = parnl.get_cell(name, input_size=6, hidden_size=16)
    u = np.random.default_rng(0).normal(size=(2, 50, 6)).astype(np.float32)
    out = parnl.solve(cell, cell.init(seed=0, backend="numpy"), u)
    assert out.outputs.shape == (2, 50, 16)
    assert np.isfinite(out.outputs).all()
    assert np.abs(out.outputs).max() > 1e-4


def test_ltc_conductances_stay_positive_when_clipped():
    """Stored values below zero count as zero, so the stored value itself has no effect."""
    task = oracles.problem("ltc", positive="clip")
    lower = {k: v - 5.0 * (v < 0) * (k in ("w", "w_in", "g_leak")) for k, v in task.params.items()}
    assert any(not np.array_equal(lower[k], v) for k, v in task.params.items())
    found = oracles.answer(task._replace(params=lower), "numpy")
    assert_same(found, oracles.answer(task, "numpy"), 0.0)


def test_ltc_never_holds_time_by_input_by_hidden():
    steps, n_in, hidden = 1500, 64, 32
    task = oracles.problem("ltc", steps=steps, batch=(), n_in=n_in, hidden=hidden)
    tracemalloc.start()
    try:
        oracles.answer(task, "numpy", chunks=4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * 8 * steps * n_in * hidden


def test_lrc_contracts_in_the_setting_of_lemma_1():
    """With e_w = w_f = w_g = 0 two trajectories approach by the factor 1 - e F at each step."""
    task = oracles.problem("lrc", steps=12, batch=(), dt=0.8)
    params = task.params | {k: np.zeros(4) for k in ("e_w", "w_f", "w_g")}
    a, b = (
        parnl.solve(task.cell, params, task.inputs, (np.full(4, x0),)).outputs for x0 in (0.3, -0.5)
    )
    v = oracles.NUMPY.sigmoid(params["sigma_in"] * (task.inputs - params["mu_in"]))
    rate = 0.8 * oracles.NUMPY.sigmoid(params["e_b"])
    factor = 1 - rate * oracles.NUMPY.sigmoid(params["g_leak"] + v @ params["W_f"])
    assert_close(a - b, 0.8 * np.cumprod(factor, 0), 1e-12)


# -- torch.nn -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [1, 4, "auto", 17])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_equals_torch_nn(name, chunks):
    """Outputs, final states and every gradient of torch.nn with diagonal hidden weights."""
    torch.manual_seed(0)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    module = diagonal.make_diagonal(kind(3, 5, batch_first=True, dtype=torch.float64))
    for weight in module.parameters():
        weight.data.mul_(2.0)  # away from the linear range

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    u, h0, c0 = leaf(2, 17, 3), leaf(1, 2, 5), leaf(1, 2, 5)
    weights = torch.randn(2, 17, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)

    if name == "gru":
        expected, h = module(u, h0)
        finals: tuple[torch.Tensor, ...] = (h[0],)
    else:
        expected, (h, c) = module(u, (h0, c0))
        finals = (c[0], h[0])
    leaves = [u, h0] if name == "gru" else [u, c0, h0]
    loss = (expected * weights[0]).sum() + sum((s * weights[1]).sum() for s in finals)
    expected_gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    by_key = dict(
        zip(
            [key for key, _ in module.named_parameters()],
            expected_gradients[len(leaves) :],
            strict=True,
        )
    )

    params = diagonal.from_torch(name, dict(module.named_parameters()))
    params = {k: v.requires_grad_() for k, v in params.items()}
    state = tuple(x[0].detach().clone().requires_grad_() for x in leaves[1:])
    inputs = u.detach().clone().requires_grad_()
    cell = parnl.get_cell(name, input_size=3, hidden_size=5)
    out = parnl.solve(cell, params, inputs, state, chunks=chunks)
    assert_close(out.outputs, expected, 1e-13, "outputs")
    for a, e in zip(out.final_state, finals, strict=True):
        assert_close(a, e, 1e-13, "final state")
    loss = (out.outputs * weights[0]).sum()
    loss = loss + sum((s * weights[1]).sum() for s in out.final_state)
    found = torch.autograd.grad(loss, [inputs, *state, *params.values()])
    assert_close(found[0], expected_gradients[0], 1e-12, "gradient of inputs")
    for a, e in zip(found[1 : 1 + len(state)], expected_gradients[1 : len(leaves)], strict=True):
        assert_close(a, e[0], 1e-12, "gradient of initial state")
    mapped = diagonal.from_torch(name, by_key, gradients=True)
    for k, a in zip(params, found[1 + len(state) :], strict=True):
        assert_close(a, mapped[k], 1e-12, f"gradient of {k}")


# -- registry -------------------------------------------------------------------------------------


def test_the_core_cells_are_listed():
    assert set(CELLS) <= set(parnl.list_cells())


def test_options_can_be_read_back():
    cell = parnl.get_cell("ltc", input_size=2, hidden_size=3, unfolds=4)
    assert (cell.unfolds, cell.dt, cell.positive) == (4, 1.0, "softplus")
    assert (cell.input_size, cell.hidden_size) == (2, 3)
    assert parnl.get_cell("lrc", input_size=2, hidden_size=3).dt == 1.0
