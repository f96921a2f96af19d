"""Solves in stretches: the answer of the whole, in the memory of a part."""

import numpy as np
import oracles
import oracles_cells
import pytest
from optional import jax, torch
from oracles import BACKENDS, assert_close, assert_same, numpy_of, to

import parnl
from parnl import ops
from parnl.backends.c import build
from parnl.locality import cuts
from parnl.params import matrix, vector
from parnl.solver import cost

DIFFERENTIABLE = ("torch", "jax")
CELLS = ("gru", "lstm", "lrc", "lru", "s6")  # diagonal, blocks, time-aware, linear, with an output
T = 23
RESETS = np.random.default_rng(0).random((3, T)) < 0.2
TASKS = {
    "plain": {},
    "from states": {"start": True},
    "backward": {"reverse": True},
    "lengths": {"lengths": np.array([T, 0, 9])},
    "resets": {"resets": RESETS, "start": True},
    "resets backward": {"resets": RESETS, "reverse": True},
    "packed": {"batch": (), "cu_seqlens": [0, 0, 7, 8, 16, T], "start": True},
    "packed backward": {"batch": (), "cu_seqlens": [0, 5, 5, 20, T], "reverse": True},
}


@pytest.mark.turns("backend", "kind")
@pytest.mark.parametrize("stretch", [7, 1, T - 1])
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_stretches_equal_the_loop(backend, name, kind, stretch):
    task = oracles.problem(name, steps=T, **TASKS[kind])
    found = oracles.answer(task, backend, stretch=stretch, gradients=backend in DIFFERENTIABLE)
    assert_same(found, oracles.reference(task), 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_chunks_within_stretches(backend):
    task = oracles.problem("lstm", steps=T)  # which leaves seven for the last stretch
    found = oracles.answer(task, backend, stretch=8, chunks=8, gradients=backend in DIFFERENTIABLE)
    assert_same(found, oracles.reference(task), 1e-9)
    with pytest.raises(ValueError, match="chunks: expected 1 <= chunks <= stretch = 8, got 9"):
        oracles.answer(task, backend, stretch=8, chunks=9)


def drawn(cell, backend, steps=40, batch=(2,)):
    """Return parameters, none of them zero, and inputs, of float64 in NumPy and PyTorch."""
    rng = np.random.default_rng(1)
    params = {n: rng.uniform(0.2, 0.8, s) for n, s in cell.parameter_shapes.items()}
    inputs = rng.uniform(0.5, 1.5, (*batch, steps, cell.input_size))
    return {n: to(backend, v) for n, v in params.items()}, to(backend, inputs)


class Plain(parnl.Cell):
    """A cell whose features the tests below replace."""

    parameters = {"W": matrix("input", "hidden"), "a": vector("hidden")}

    def features(self, p, u):
        return {"v": u @ p.W}

    def step(self, p, x, f):
        return ops.tanh(f.v + p.a * x)


def shifted(u, by, xp):
    """Return `u` as it was `by` steps before, zeros at first."""
    return xp.concatenate([u[..., :1, :] * 0.0] * min(by, u.shape[-2]) + [u], -2)[
        ..., : u.shape[-2], :
    ]


class Difference(Plain):
    def features(self, p, u):
        return {"v": (u - shifted(u, 1, np)) @ p.W}


class LongAgo(Plain):
    def features(self, p, u):
        return {"v": (u - shifted(u, 17, np)) @ p.W}


class Gated(Plain):
    """Which shows nothing as long as the gate is what it is drawn as."""

    parameters = Plain.parameters | {"gate": vector("hidden", init="zeros")}

    def features(self, p, u):
        return {"v": u @ p.W + p.gate * (shifted(u, 1, np) @ p.W)}


class Normalised(Plain):
    def features(self, p, u):
        return {"v": (u / u.sum(-2, keepdims=True)) @ p.W}


class Numbered(Plain):
    def features(self, p, u):
        return {"v": u @ p.W + 0.1 * np.arange(u.shape[-2])[:, None]}


class Random(Plain):
    def features(self, p, u):
        return {"v": u @ p.W * np.random.default_rng().uniform(0.5, 1.5, (*u.shape[:-1], 1))}


class LooksBackAtTheEnd(Plain):
    def output(self, p, x, f):
        return x + shifted(x, 1, np)


class Picky(Plain):
    """Features of what nobody but the caller has."""

    def features(self, p, u):
        if not (u > 0).all():
            raise ValueError("u")
        return {"v": u @ p.W}


@pytest.fixture
def short(monkeypatch):
    """Have stretches of eight steps taken unasked, whatever there is to compute with."""
    if not build.available():  # only C kernels are worth it
        pytest.skip("no C compiler")
    for name, value in (("_LARGE", 1), ("_CACHED", 8), ("_ASKED", 0)):
        monkeypatch.setattr(cost, name, value)
        monkeypatch.setattr(cost, name + "_ALONE", value)
    monkeypatch.setattr(cost, "_LEAST", 8)
    monkeypatch.setattr(cost, "_MOST_ALONE", 8)


ALONG_TIME = (Difference, LongAgo, Gated, Normalised, Numbered, Random, LooksBackAtTheEnd, Picky)


@pytest.mark.parametrize("kind", ALONG_TIME)
def test_what_cannot_be_cut_is_solved_whole(short, kind):
    seen = []

    class Watched(kind):
        def features(self, p, u):
            seen.append(u.shape[-2])
            return super().features(p, u)

    cell = Watched(2, 3)
    params, inputs = drawn(cell, "numpy")
    seen.clear()
    with pytest.raises(ValueError, match=r"stretch: .* Watched has features that look along time"):
        parnl.solve(cell, params, inputs, stretch=8)
    seen.clear()
    parnl.solve(cell, params, inputs)
    assert seen == [40]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_can_be_cut_is_cut_unasked(short, backend):
    seen = []

    class Watched(Plain):
        time_local = True

        def features(self, p, u):
            seen.append(u.shape[-2])
            return super().features(p, u)

    cell = Watched(2, 3)
    params, inputs = drawn(cell, backend)

    def outputs(u):
        return parnl.solve(cell, params, u).outputs

    found = jax.jit(outputs)(inputs) if backend == "jax" else outputs(inputs)
    # PyTorch looks first, at one step, whether a gradient may be asked for
    assert {*seen} - {1} == {8}
    assert_close(found, parnl.solve(cell, params, inputs, stretch=40).outputs, 1e-12)
    seen.clear()
    for whole in ({"chunks": 4}, {"stretch": 40}, {"check": True}):
        parnl.solve(cell, params, inputs, **whole)
    assert set(seen) == {40}


def test_a_class_says_it_for_its_own_features_only():
    class Said(Difference):
        time_local = True

    class Inherited(Said):
        def features(self, p, u):
            return {"v": (u - shifted(u, 2, np)) @ p.W}

    class Denied(Plain):
        time_local = False

    for kind, cut in ((Said, True), (Inherited, False), (Denied, False)):
        params, inputs = drawn(kind(2, 3), "numpy")
        if cut:
            parnl.solve(kind(2, 3), params, inputs, stretch=8)
            continue
        with pytest.raises(ValueError, match="stretch"):
            parnl.solve(kind(2, 3), params, inputs, stretch=8)


@pytest.mark.turns("name")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", oracles_cells.ORACLES)
def test_every_cell_can_be_cut(backend, name):
    cell = parnl.get_cell(name, input_size=3, hidden_size=4)
    params = cell.init(0, backend)
    inputs = to(backend, np.random.default_rng(0).standard_normal((2, 30, 3)).astype(np.float32))
    found = parnl.solve(cell, params, inputs, stretch=8)
    whole = parnl.solve(cell, params, inputs)
    assert_close(found.outputs, whole.outputs, 1e-5)
    for one, other in zip(found.final_state, whole.final_state, strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize("stretch", [0, -1, 2.5, "auto", True])
def test_what_is_no_number_of_steps(stretch):
    cell = parnl.get_cell("gru", input_size=3, hidden_size=4)
    with pytest.raises((ValueError, TypeError), match="stretch: expected"):
        parnl.solve(cell, cell.init(0), np.zeros((5, 3)), stretch=stretch)


def test_check_looks_at_all_steps():
    cell = parnl.get_cell("gru", input_size=3, hidden_size=4)
    inputs = np.ones((20, 3))
    inputs[13] = np.nan
    with pytest.raises(parnl.SolveError, match="inputs: nan at step 13"):
        parnl.solve(cell, cell.init(0), inputs, stretch=5, check=True)


def test_info_is_of_the_stretch_that_took_most():
    cell = parnl.get_cell("gru", input_size=3, hidden_size=4)
    inputs = np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32)
    params = {n: 3 * v for n, v in cell.init(0).items()}
    info = parnl.solve(cell, params, inputs, stretch=10, chunks=5, max_iterations=1).info
    parts, x = [], None
    for cut in cuts(40, 10, False):
        out = parnl.solve(cell, params, inputs[:, cut], x, chunks=5, max_iterations=1)
        parts.append(out.info)
        x = out.final_state
    for n in ("iterations", "update", "residual", "sequential"):
        assert getattr(info, n) == max(getattr(i, n) for i in parts)
    assert info.chunks == 5
    assert bool(info.converged) == all(bool(i.converged) for i in parts) is False


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_reaches_what_comes_later_only(backend):
    cell = parnl.get_cell("gru", input_size=3, hidden_size=4)
    inputs = np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32)
    fine = parnl.solve(cell, cell.init(0, backend), to(backend, inputs), stretch=8).outputs
    inputs[1, 17] = np.nan
    found = parnl.solve(cell, cell.init(0, backend), to(backend, inputs), stretch=8)
    same, bad = numpy_of(found.outputs), numpy_of(fine)
    oracles.assert_bits(same[0], bad[0])
    oracles.assert_bits(same[1, :17], bad[1, :17])
    assert np.isnan(same[1, 17:]).all()
    assert np.isnan(numpy_of(found.final_state[0])[1]).all()


# -- gradients ------------------------------------------------------------------------------------


def by_steps(cell, params, inputs):
    """Return the outputs (..., T, hidden), one step after the other by the framework itself."""
    x, rows = None, []
    for t in range(inputs.shape[-2]):
        row, x = parnl.step(cell, params, inputs[..., t, :], x)
        rows.append(row)
    return rows


def test_gradients_of_what_features_close_over_in_torch():
    torch_ = pytest.importorskip("torch")
    layer = torch_.nn.Sequential(torch_.nn.Linear(2, 5), torch_.nn.Tanh(), torch_.nn.Linear(5, 3))
    layer.double()

    class Layered(Plain):
        def features(self, p, u):
            return {"v": layer(u) * p.W[0]}

    cell = Layered(2, 3)
    params, inputs = drawn(cell, "torch")
    outputs = parnl.solve(cell, params, inputs, stretch=16).outputs
    found = torch.autograd.grad((outputs**2).sum(), [*layer.parameters()])
    rows = by_steps(cell, params, inputs)
    expected = torch.autograd.grad(sum((r**2).sum() for r in rows), [*layer.parameters()])
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-9)


@pytest.mark.long
def test_gradients_of_what_features_close_over_in_jax():
    jnp = pytest.importorskip("jax.numpy")

    def loss(scale, whole):
        class Scaled(Plain):
            time_local = True  # what nobody could try, for `scale` is being traced

            def features(self, p, u):
                return {"v": u @ p.W * scale}

        cell = Scaled(2, 3)
        params, inputs = drawn(cell, "jax", steps=13)
        if whole:
            return sum((r**2).sum() for r in by_steps(cell, params, inputs))
        return (parnl.solve(cell, params, inputs, stretch=5).outputs ** 2).sum()

    scale = jnp.asarray(np.array([0.5, 1.0, 2.0]))
    for derivative in (jax.grad, jax.jacfwd, jax.hessian):
        found, expected = (derivative(loss)(scale, whole) for whole in (False, True))
        assert_close(found, expected, 1e-5 if scale.dtype == jnp.float32 else 1e-9)


def test_what_features_close_over_may_change_in_jax():
    jnp = pytest.importorskip("jax.numpy")
    scale = [jnp.ones(3)]

    class Scaled(Plain):
        time_local = True

        def features(self, p, u):
            return {"v": u @ p.W * scale[0]}

    cell = Scaled(2, 3)
    params, inputs = drawn(cell, "jax")

    def outputs(u):
        return parnl.solve(cell, params, u, stretch=16).outputs

    for kind in (lambda f: f, jax.jit):
        for value in (1.0, 2.0):
            scale[0] = value * jnp.ones(3)
            expected = jnp.stack(by_steps(cell, params, inputs), -2)
            assert_close(kind(lambda u: outputs(u))(inputs), expected, 1e-9)


def test_torch_derives_twice_and_again():
    torch_ = pytest.importorskip("torch")
    cell = parnl.get_cell("lstm", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "torch", steps=12)
    inputs.requires_grad_()

    def gradient(outputs):
        loss = (outputs**2).sum()
        (first,) = torch_.autograd.grad(loss, inputs, create_graph=True)
        (second,) = torch_.autograd.grad((first**3).sum(), inputs, retain_graph=True)
        (again,) = torch_.autograd.grad(loss, inputs)  # the graph has been kept
        return first, second, again

    found = gradient(parnl.solve(cell, params, inputs, stretch=5).outputs)
    expected = gradient(torch.stack(by_steps(cell, params, inputs), -2))
    for one, other in zip(found, expected, strict=True):
        assert_close(one.detach(), other.detach(), 1e-9)


def test_torch_follows_transforms_and_forward_mode():
    torch_ = pytest.importorskip("torch")
    cell = parnl.get_cell("gru", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "torch", steps=12)

    def loss(u, stretch):
        return (parnl.solve(cell, params, u, stretch=stretch).outputs ** 2).sum(-1)

    for transform in (torch_.func.vmap, torch_.func.jacrev, torch_.func.jacfwd):
        found, expected = (transform(lambda u, s=s: loss(u, s))(inputs) for s in (5, 12))
        assert_close(found, expected, 1e-9)


def test_outputs_may_be_written_to():
    torch_ = pytest.importorskip("torch")
    cell = parnl.get_cell("gru", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "torch", steps=12)
    inputs.requires_grad_()
    found, expected = [], []
    for out, stretch in ((found, 5), (expected, 12)):
        outputs = parnl.solve(cell, params, inputs, stretch=stretch).outputs
        if out is found:
            outputs.mul_(2.0)
        else:
            outputs = outputs * 2.0
        out += torch_.autograd.grad((outputs**2).sum(), inputs)
    assert_close(found[0], expected[0], 1e-9)


@pytest.mark.parametrize("which", ["inputs", "parameters", "initial state"])
def test_what_a_gradient_needs_must_not_be_written_to(which):
    torch_ = pytest.importorskip("torch")
    cell = parnl.get_cell("gru", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "torch", steps=12)
    leaf = params["a_r"].requires_grad_()
    x = torch_.ones(2, 3, dtype=inputs.dtype)
    loss = parnl.solve(cell, params, inputs, x, stretch=5).outputs.sum()
    with torch_.no_grad():
        {"inputs": inputs, "parameters": params["W_r"], "initial state": x}[which].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch_.autograd.grad(loss, leaf)


def test_cells_that_were_tried_are_let_go_of():
    import gc
    import weakref

    class Own(Plain):
        def features(self, p, u):
            return {"v": u @ p.W}

    cell = Own(2, 3)
    params, inputs = drawn(cell, "numpy")
    parnl.solve(cell, params, inputs, stretch=8)
    ref = weakref.ref(cell)
    del cell
    gc.collect()
    assert ref() is None


def test_torch_compiles_stretches():
    torch_ = pytest.importorskip("torch")
    cell = parnl.get_cell("gru", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "torch", steps=12)

    def outputs(u):
        return parnl.solve(cell, params, u, stretch=5).outputs

    compiled = torch_.compile(outputs, backend="aot_eager", fullgraph=True)
    assert_close(compiled(inputs), outputs(inputs), 1e-9)


@pytest.mark.long
def test_jax_maps_over_stretches():
    pytest.importorskip("jax")
    cell = parnl.get_cell("lrc", input_size=2, hidden_size=3)
    params, inputs = drawn(cell, "jax", steps=12)

    def outputs(u, stretch):
        return parnl.solve(cell, params, u, stretch=stretch).outputs

    found, expected = (jax.vmap(lambda u, s=s: outputs(u, s))(inputs) for s in (5, 12))
    assert_close(found, expected, 1e-5)
