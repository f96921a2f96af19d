"""float16 and bfloat16 in any argument: summed and carried in float32, returned as NumPy promotes.

The truth is the same call on float32 arrays that hold the same, already rounded numbers, or a plain
sum in float64.
"""

import importlib

import numpy as np
import pytest

import parnl
from parnl import cells, ops

TYPES = ("bfloat16", "float16")
# Outputs are rounded once, by up to 2^-9 and 2^-12 of their size; PyTorch rounds products of
# matrices as well. Relative to the largest output.
CLOSE = {"bfloat16": 0.01, "float16": 0.0015}


class Framework:
    """Arrays of one backend from NumPy's, by the name of their type, and back."""

    def __init__(self, name):
        self.name = name
        if name == "numpy":
            pytest.importorskip("ml_dtypes")
        self.module = pytest.importorskip({"jax": "jax.numpy"}.get(name, name))

    def array(self, values, dtype):
        if self.name == "torch":
            return self.module.as_tensor(np.asarray(values)).to(getattr(self.module, dtype))
        if self.name == "numpy":
            kind = importlib.import_module("ml_dtypes").bfloat16
            return np.asarray(values).astype(kind if dtype == "bfloat16" else dtype)
        return self.module.asarray(np.asarray(values), dtype)

    def params(self, params, dtype):
        return {n: self.array(v, dtype) for n, v in params.items()}

    def widened(self, array):
        """The same numbers in float32."""
        return array.float() if self.name == "torch" else array.astype("float32")

    def numbers(self, array):
        if self.name == "torch":
            return array.detach().double().numpy()
        return np.asarray(array).astype(np.float64)


@pytest.fixture(params=["numpy", "jax", "torch"])
def framework(request):
    return Framework(request.param)


def kind(array):
    return str(array.dtype).removeprefix("torch.")


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def problem(framework, name, dtype, steps=60):
    cell = parnl.get_cell(name, 4, 8)
    u = np.random.default_rng(0).normal(size=(2, steps, 4))
    return cell, framework.params(cell.init(0), dtype), framework.array(u, dtype)


# -- solve and step, every cell -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", cells.__all__)
@pytest.mark.turns("name")
def test_every_cell_is_near_float32_with_the_same_parameters(framework, name, dtype):
    cell, params, u = problem(framework, name, dtype)
    wide = {n: framework.widened(v) for n, v in params.items()}
    expected = parnl.solve(cell, wide, framework.widened(u), chunks=4)
    found = parnl.solve(cell, params, u, chunks=4)
    assert kind(found.outputs) == dtype
    assert {kind(x) for x in found.final_state} == {"float32"}
    outputs, states = framework.numbers(expected.outputs), expected.final_state
    assert error(framework.numbers(found.outputs), outputs) < CLOSE[dtype]
    for f, e in zip(found.final_state, states, strict=True):
        assert error(framework.numbers(f), framework.numbers(e)) < CLOSE[dtype]
    state, rows = None, []
    for t in range(20 if framework.name != "jax" else 3):
        row, state = parnl.step(cell, params, u[:, t], state)
        assert kind(row) == dtype
        assert {kind(x) for x in state} == {"float32"}
        rows.append(framework.numbers(row))
    assert np.abs(np.stack(rows, 1) - outputs[:, : len(rows)]).max() < (
        CLOSE[dtype] * np.abs(outputs).max()
    )


@pytest.mark.long
@pytest.mark.parametrize("dtype", TYPES)
def test_a_cell_that_forgets_slowly_streams_as_it_solves(framework, dtype):
    """A state that takes steps of a thousandth of its size: in half precision it stands still."""
    cell = parnl.get_cell("mingru", 1, 1)
    zero = np.zeros((1, 1))
    params = {"W_z": zero, "W_n": zero, "b_z": np.array([-7.0]), "b_n": np.array([1.0])}
    params = framework.params(params, dtype)
    steps = 3000 if framework.name != "jax" else 600
    u = framework.array(np.zeros((steps, 1)), dtype)
    enter = 1.0 / (1.0 + np.exp(7.0))
    expected = 1.0 - (1.0 - enter) ** np.arange(1, steps + 1)
    found = framework.numbers(parnl.solve(cell, params, u).outputs)[:, 0]
    assert error(found, expected) < CLOSE[dtype]
    state = None
    for t in range(steps):
        y, state = parnl.step(cell, params, u[t], state)
    assert error(framework.numbers(y), expected[-1:]) < CLOSE[dtype]
    # and in parts, by either
    first = parnl.solve(cell, params, u[: steps // 2])
    _, state = parnl.step(cell, params, u[steps // 2], first.final_state)
    last = parnl.solve(cell, params, u[steps // 2 + 1 :], state).final_state[0]
    assert error(framework.numbers(last), expected[-1:]) < 1e-4


@pytest.mark.parametrize("dtype", TYPES)
def test_any_argument_may_be_half(framework, dtype):
    """One argument at a time: the type of the outputs is that of inputs and parameters."""
    cell = parnl.get_cell("lrc", 4, 8)
    rng = np.random.default_rng(0)
    given = {
        "inputs": rng.normal(size=(2, 9, 4)),
        "initial_state": rng.normal(size=(2, 8)),
        "dt": rng.uniform(0.1, 1.0, size=(2, 9)),
    }
    drawn = cell.init(0)
    for half in ("inputs", "initial_state", "dt", *drawn, "all but initial_state", "all"):
        everything = half.startswith("all")

        def made(name, value, half=half, everything=everything):
            low = name == half or (everything and half != f"all but {name}")
            return framework.array(value, dtype if low else "float32")

        params = {n: made(n, v) for n, v in drawn.items()}
        arrays = {n: made(n, v) for n, v in given.items()}
        out = parnl.solve(cell, params, **arrays)
        assert kind(out.outputs) == (dtype if everything else "float32"), half
        assert kind(out.final_state[0]) == "float32", half
        wide = {n: framework.widened(v) for n, v in params.items()}
        exact = parnl.solve(cell, wide, **{n: framework.widened(v) for n, v in arrays.items()})
        limit = CLOSE[dtype] if everything else 1e-6
        found, expected = framework.numbers(out.outputs), framework.numbers(exact.outputs)
        assert error(found, expected) < limit, half


def test_both_half_types_make_single(framework):
    cell, params, _ = problem(framework, "gru", "float16")
    u = framework.array(np.ones((5, 4)), "bfloat16")
    assert kind(parnl.solve(cell, params, u).outputs) == "float32"


def test_an_option_is_not_rounded(framework):
    """dt = 0.042 of coRNN is no number of bfloat16."""
    cell, params, u = problem(framework, "cornn", "bfloat16")
    exact = framework.array(np.full((2, 60), 0.042), "float32")
    found, expected = (parnl.solve(cell, params, u, dt=dt).final_state for dt in (None, exact))
    for f, e in zip(found, expected, strict=True):
        assert error(framework.numbers(f), framework.numbers(e)) < 1e-5


class Decaying(parnl.Cell):
    """A cell as a user may write it: `@`, and a transform of parameters with a steep slope."""

    parameters = {
        "W": parnl.params.matrix("input", "hidden"),
        "c": parnl.params.vector("input"),
        "nu": parnl.params.vector("hidden", -4.0),
    }

    def features(self, p, u):
        v = ops.sigmoid(p.c * u)
        return {"v": v @ p.W, "a": ops.exp(-ops.exp(p.nu))[None, :]}

    def step(self, p, x, f):
        return f.a * x + f.v


@pytest.mark.parametrize("dtype", TYPES)
def test_a_users_cell(framework, dtype):
    cell = Decaying(3, 5)
    u = framework.array(np.random.default_rng(0).normal(size=(400, 3)), dtype)
    params = framework.params(cell.init(0), dtype)
    wide = {n: framework.widened(v) for n, v in params.items()}
    expected = framework.numbers(parnl.solve(cell, wide, framework.widened(u)).outputs)
    assert error(framework.numbers(parnl.solve(cell, params, u).outputs), expected) < CLOSE[dtype]


# -- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["gru", "s5", "lru", "unicornn", "ltc"])
def test_gradients_come_in_each_arguments_dtype(name, dtype):
    torch = pytest.importorskip("torch")
    framework = Framework("torch")
    cell, params, u = problem(framework, name, dtype, steps=20)
    x0 = [torch.full((2, 8), 0.25, dtype=torch.float64) for _ in cell.states]

    def gradients(params, u):
        leaves = [t.detach().clone().requires_grad_() for t in [u, *x0, *params.values()]]
        k = len(x0)
        named = dict(zip(params, leaves[1 + k :], strict=True))
        out = parnl.solve(cell, named, leaves[0], leaves[1 : 1 + k])
        loss = out.outputs.float().square().sum() + sum(x.sum() for x in out.final_state)
        return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)

    found = gradients(params, u)
    expected = gradients({n: v.float() for n, v in params.items()}, u.float())
    assert [g.dtype for g in found] == [u.dtype, *(x.dtype for x in x0), *[u.dtype] * len(params)]
    for f, e in zip(found, expected, strict=True):
        assert (f.double() - e.double()).abs().max() <= 3 * CLOSE[dtype] * e.abs().max()


@pytest.mark.long
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["gru", "s5"])
def test_gradients_in_jax_come_in_each_arguments_dtype(name, dtype):
    jax = pytest.importorskip("jax")
    framework = Framework("jax")
    cell, params, u = problem(framework, name, dtype, steps=20)
    x0 = tuple(framework.array(np.full((2, 8), 0.25), "float32") for _ in cell.states)

    def loss(params, u, x0):
        out = parnl.solve(cell, params, u, x0)
        return (out.outputs.astype("float32") ** 2).sum() + sum(x.sum() for x in out.final_state)

    found = jax.grad(loss, (0, 1, 2))(params, u, x0)
    wide = jax.tree.map(framework.widened, (params, u, x0))
    expected = jax.grad(loss, (0, 1, 2))(*wide)
    given = jax.tree.leaves((params, u, x0))
    for g, f, e in zip(given, jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert f.dtype == g.dtype
        f, e = framework.numbers(f), framework.numbers(e)
        assert np.abs(f - e).max() <= 3 * CLOSE[dtype] * np.abs(e).max()


# -- PyTorch: autocast and the module -------------------------------------------------------------


@pytest.mark.parametrize("name", ["gru", "lrc", "lru", "s5"])
def test_autocast(name):
    """float32 comes in, float32 comes out; products of matrices in between are in bfloat16."""
    torch = pytest.importorskip("torch")
    cell, params, u = problem(Framework("torch"), name, "float32")
    expected = parnl.solve(cell, params, u)
    with torch.autocast("cpu", torch.bfloat16):
        found = parnl.solve(cell, params, u)
        row, state = parnl.step(cell, params, u[:, 0])
    assert {x.dtype for x in (found.outputs, *found.final_state, row, *state)} == {torch.float32}
    difference = (found.outputs - expected.outputs).abs().max() / expected.outputs.abs().max()
    assert 0 < difference < 0.01


def test_products_are_taken_in_half_precision():
    """What half precision is used for; and autocast is left as it was."""
    torch = pytest.importorskip("torch")
    seen = []

    class Watching(Decaying):
        def features(self, p, u):
            found = super().features(p, u)
            seen.append((p.W.dtype, u.dtype, found["v"].dtype, found["a"].dtype))
            return found

    cell = Watching(3, 5)
    params = cell.init(0, "torch", "bfloat16")
    parnl.solve(cell, params, torch.ones(7, 3, dtype=torch.bfloat16))
    assert seen == [(torch.float32, torch.float32, torch.bfloat16, torch.float32)]
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("dtype", TYPES)
def test_module(dtype):
    torch = pytest.importorskip("torch")
    from parnl.torch import RNN

    torch.manual_seed(0)
    rnn = RNN("lru", 4, 8, num_layers=2, batch_first=True).to(getattr(torch, dtype))
    u = torch.randn(2, 50, 4).to(getattr(torch, dtype))
    output, h = rnn(u)
    states = h if isinstance(h, tuple) else (h,)
    assert output.dtype == u.dtype
    assert {x.dtype for x in states} == {torch.float32}
    single = RNN("lru", 4, 8, num_layers=2, batch_first=True)
    single.load_state_dict({n: v.float() for n, v in rnn.state_dict().items()})
    expected, _ = single(u.float())
    assert (output.float() - expected).abs().max() < 2 * CLOSE[dtype] * expected.abs().max()
    parts, h = [], None
    for part in u.split(10, dim=1):
        y, h = rnn(part, h)
        parts.append(y)
    found = torch.cat(parts, 1).float()
    assert (found - output.float()).abs().max() < 2 * CLOSE[dtype] * expected.abs().max()


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_initial_parameters_are_rounded_from_those_of_double_precision(framework, dtype):
    cell = parnl.get_cell("s5", 3, 4)
    found = cell.init(seed=3, backend=framework.name, dtype=dtype)
    for name, drawn in cell.init(seed=3, dtype="float64").items():
        assert kind(found[name]) == dtype
        expected = framework.numbers(framework.array(drawn, dtype))
        assert np.array_equal(framework.numbers(found[name]), expected)


@pytest.mark.parametrize("dtype", TYPES)
def test_files_keep_every_bit(framework, tmp_path, dtype):
    pytest.importorskip("safetensors")
    cell = parnl.get_cell("gru", 3, 4)
    params = cell.init(0, framework.name, dtype)
    parnl.save_params(tmp_path / "gru.safetensors", cell, params)
    found = parnl.load_params(tmp_path / "gru.safetensors", cell, framework.name)
    for name, value in params.items():
        assert kind(found[name]) == dtype
        assert np.array_equal(framework.numbers(found[name]), framework.numbers(value))


# -- certificates and reports ---------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", ["lrc", "s5", "unicornn"])
def test_reports_are_those_of_the_same_numbers(framework, name, dtype):
    cell, params, u = problem(framework, name, dtype, steps=12)
    x0 = [framework.array(np.full((2, 8), 0.3), dtype) for _ in cell.states]
    wide = {n: framework.widened(v) for n, v in params.items()}
    single, start = framework.widened(u), [framework.widened(x) for x in x0]
    found, expected = (
        parnl.lyapunov(cell, *given) for given in ((params, u, x0), (wide, single, start))
    )
    near = {"rtol": CLOSE[dtype], "atol": CLOSE[dtype]}
    np.testing.assert_allclose(found.exponents, expected.exponents, **near)
    np.testing.assert_allclose(found.rho, expected.rho, **near)
    certified, exact = (
        parnl.certify(cell, p, (-1.0, 1.0), inputs=v, budget=5)
        for p, v in ((params, u), (wide, single))
    )
    np.testing.assert_allclose(certified.rho, exact.rho, **near)
    if framework.name != "jax":  # which compiles a solve for each number of chunks
        report = parnl.diagnose(cell, params, u, x0, budget=5)
        np.testing.assert_allclose(report.lyapunov.rho, expected.rho, **near)
        assert all(run.converged for run in report.runs)


# -- functions of features ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_sums_over_inputs(framework, dtype):
    """2100 ones: float16 stops counting at 2048, bfloat16 at 256."""
    u, w = framework.array(np.ones((3, 2100)), dtype), framework.array(np.ones((2100, 2)), dtype)

    def term(u, w):
        return (u * w,)

    (total,) = ops.input_sum(term, u, [w])
    assert kind(total) == dtype
    rounded = framework.numbers(framework.array(np.array(2100.0), dtype))
    assert np.all(framework.numbers(total) == rounded)
    assert np.all(framework.numbers(ops.matmul(u, w)) == rounded)
    mixed = ops.matmul(framework.array(np.ones((3, 2100)), "float32"), w)
    assert (kind(mixed), float(mixed[0, 0])) == ("float32", 2100.0)
