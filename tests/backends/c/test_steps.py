"""Steps that are remembered: what is right stays right, what is wrong is refused as at first."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import oracles
import pytest
import torch
from array_kinds import CELL, KINDS, numbers
from oracles import CELLS, assert_bits, assert_close, to

import parnl
from parnl import ops
from parnl.backends.c import steps
from parnl.params import matrix, vector
from parnl.testing import loop

BACKENDS = ["numpy", "torch"]
B, D = 3, 5


@pytest.fixture(autouse=True)
def _in_c(monkeypatch):
    monkeypatch.setenv("PARNL_KERNELS", "c")


@pytest.fixture
def runs(monkeypatch):
    """How often a remembered step was made."""
    made, run = [], steps.Ready.run

    def counted(self, *given):
        found = run(self, *given)
        made.append(found is not None)
        return found

    monkeypatch.setattr(steps.Ready, "run", counted)
    return made


def fresh():
    """The cell of `array_kinds`, which remembers nothing."""
    return type(CELL)(D, D)


def arguments(backend, dtype="float64"):
    rng = np.random.default_rng(0)
    drawn = {
        "input_t": rng.normal(size=(B, D)),
        "state": rng.normal(size=(B, D)),
        "parameter a": rng.normal(size=D),
        "parameter W": rng.normal(size=(D, D)),
    }
    return {n: to(backend, x.astype(dtype)) for n, x in drawn.items()}


def called(cell, given, **more):
    params = {n.removeprefix("parameter "): x for n, x in given.items() if n[:3] == "par"}
    return parnl.step(cell, params, given["input_t"], given["state"], **more)


def warm(backend, dtype="float64"):
    """A cell that remembers a step with such arguments."""
    cell = fresh()
    called(cell, arguments(backend, dtype))
    assert len(cell._remembered) == 1
    return cell


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("batch", [(), (1,), (4,), (2, 3)])
def test_remembered_steps_are_the_first_and_the_loop(runs, backend, name, dtype, batch):
    task = oracles.problem(name, steps=4, batch=batch)
    cell = type(task.cell)(task.cell.input_size, task.cell.hidden_size)
    params = {n: to(backend, v.astype(dtype)) for n, v in task.params.items()}
    inputs = to(backend, task.inputs.astype(dtype))
    state = tuple(to(backend, s.astype(dtype)) for s in task.initial_state or ())
    expected, last = loop(cell, params, inputs, list(state))
    for t in range(4):
        first = parnl.step(copy.copy(cell), params, inputs[..., t, :], state)
        y, state = parnl.step(cell, params, inputs[..., t, :], state)
        for a, e in zip((first[0], *first[1]), (y, *state), strict=True):
            assert_bits(a, e)
            assert a.shape == e.shape
            assert a.dtype == e.dtype
        assert_close(y, expected[..., t, :], 1e-5 if dtype == "float32" else 1e-12)
    for a, e in zip(state, last, strict=True):
        assert_close(a, e, 1e-5 if dtype == "float32" else 1e-12)
    assert runs == [True] * 3


class Given(parnl.Cell):
    """Features that no product of matrices can round otherwise."""

    states = ("c", "h")
    parameters = dict(a=vector("hidden"), b=vector("hidden"))

    def features(self, p, u):
        return dict(f=u, first=u[..., :1], still=p.b[None] * 0.5)

    def step(self, p, c, h, f, dt):
        c = ops.tanh(p.a * h + f.f) * dt + f.first * c
        return c, ops.sigmoid(c + f.still) * h


@pytest.mark.parametrize("size", [1, 2, 5, 16, 64, 100])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_have_the_bits_of_the_solve(runs, backend, batch, size):
    cell, rng = Given(size, size), np.random.default_rng(1)
    u = to(backend, rng.normal(size=(batch, 6, size)))
    params = cell.init(0, backend, "float64")
    state = tuple(to(backend, rng.normal(size=(batch, size))) for _ in cell.states)
    whole = parnl.solve(cell, params, u, state, method="sequential", dt=0.7)
    for t in range(6):
        y, state = parnl.step(cell, params, u[:, t], state, dt=0.7)
        assert_bits(y, whole.outputs[:, t])
    for a, e in zip(state, whole.final_state, strict=True):
        assert_bits(a, e)
    assert runs == [True] * 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_arrays_of_their_own(runs, backend):
    cell, given = warm(backend), arguments(backend)
    before = numbers(given["state"])
    y, (state,) = called(cell, given)
    assert runs == [True]
    kept = numbers(state)
    y += 1
    np.testing.assert_array_equal(numbers(state), kept)
    np.testing.assert_array_equal(numbers(given["state"]), before)
    _, (after,) = called(cell, given)
    np.testing.assert_array_equal(numbers(after), kept)


def cut(x):
    return x[..., :-1]


def freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


WRONG = {
    "numpy": {
        "short": cut,
        "one axis more": lambda x: x[None],
        "integers": lambda x: x.astype(int),
        "masked": lambda x: np.ma.masked_array(x, x > 0),
        "of torch": torch.from_numpy,
        "list": lambda x: x.tolist(),
        "none": lambda x: None,
        "objects": lambda x: x.astype(object),
    },
    "torch": {
        "short": cut,
        "one axis more": lambda x: x[None],
        "integers": lambda x: x.to(int),
        "of numpy": lambda x: x.numpy(),
        "list": lambda x: x.tolist(),
        "none": lambda x: None,
        "sparse": lambda x: x.to_sparse(),
        "nested": lambda x: torch.nested.nested_tensor(list(x)) if x.ndim > 1 else x.to_sparse(),
        "meta": lambda x: x.to("meta"),
        "freed": freed,
        "float8": lambda x: x.to(torch.float8_e5m2),
        "masked": lambda x: torch.masked.masked_tensor(x, x > 0),
    },
}
ARGUMENTS = ("input_t", "state", "parameter a", "parameter W")


def outcome(cell, given, **more):
    """The error of a call, or its results."""
    try:
        y, state = called(cell, given, **more)
    except Exception as error:
        return type(error), str(error)
    return [(type(x), x.dtype, tuple(x.shape), numbers(x).tolist()) for x in (y, *state)]


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(("backend", "kind"), [(b, k) for b in WRONG for k in WRONG[b]])
@pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes of PyTorch
def test_what_is_wrong_is_refused_as_the_first_time(backend, kind, argument):
    cell, given = warm(backend), arguments(backend)
    if argument == "input_t" and kind == "one axis more":
        argument = "state"  # a batch of one more axis is none that is wrong
    given[argument] = WRONG[backend][kind](given[argument])
    found = outcome(cell, given)
    if (kind, argument) != ("none", "state"):  # which stands for zeros
        assert isinstance(found, tuple), found
    assert found == outcome(fresh(), given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda p, s: ([*p.items()], s),
        lambda p, s: ({"W": p["W"]}, s),
        lambda p, s: ({"W": p["W"], "b": p["a"]}, s),
        lambda p, s: ({**p, "b": p["a"]}, s),
        lambda p, s: (p, (s, s)),
        lambda p, s: (p, ()),
        lambda p, s: (p, {"x": s}),
    ],
)
def test_wrong_parameters_and_states_are_refused(backend, change):
    cell, given = warm(backend), arguments(backend)
    params, state = change({"W": given["parameter W"], "a": given["parameter a"]}, given["state"])
    errors = []
    for one in (cell, fresh()):
        with pytest.raises((TypeError, ValueError)) as caught:
            parnl.step(one, params, given["input_t"], state)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "more",
    [
        {"dt": "one"},
        {"dt": np.ones(B + 1)},
        {"dt": np.ones(B, int)},
        {"reset": np.ones(B)},
        {"reset": np.ones(B + 1, bool)},
    ],
)
def test_wrong_dt_and_reset_are_refused(backend, more):
    cell, given = warm(backend), arguments(backend)
    more = {n: to(backend, x) if isinstance(x, np.ndarray) else x for n, x in more.items()}
    found = outcome(cell, given, **more)
    assert isinstance(found, tuple)
    assert found == outcome(fresh(), given, **more)


def test_no_cell_remembers_for_another():
    given = arguments("torch")
    warm("torch")
    with pytest.raises(TypeError, match=r"^cell: "):
        called("gru", given)
    with pytest.raises(ValueError, match=r"^input_t: expected shape \(..., 4\)"):
        called(type(CELL)(4, D), given)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(("backend", "kind"), [(b, k) for b in KINDS for k in KINDS[b]])
def test_unusual_arrays_are_read_as_the_first_time(backend, kind, argument):
    cell, given = warm(backend), arguments("numpy")
    make = KINDS[backend][kind]
    given = {n: to(backend, x) for n, x in given.items()}
    given[argument] = make(given[argument])
    for _ in range(2):
        assert outcome(cell, given) == outcome(fresh(), given)


@pytest.mark.parametrize("kind", ["float32", "float16", "all float32", "dt", "reset", "zeros"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_calls_are_as_the_first_time(backend, kind):
    cell, given, more = warm(backend), arguments(backend), {}
    if kind in ("float32", "float16"):
        given["state"] = to(backend, numbers(given["state"]).astype(kind))
    elif kind == "all float32":
        given = arguments(backend, "float32")
    elif kind == "zeros":
        given["state"] = None
    elif kind == "dt":
        more = {"dt": to(backend, np.linspace(0.1, 0.9, B))}
    else:
        more = {"reset": to(backend, np.array([True, False, True]))}
    for _ in range(2):
        assert outcome(cell, given, **more) == outcome(fresh(), given, **more)


class Changing(parnl.Cell):
    """Features that are not what they were."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))
    change = staticmethod(lambda f: f)

    def features(self, p, u):
        return dict(f=self.change(u @ p.W))

    def step(self, p, x, f):
        return ops.tanh(p.a * x + f.f)


CHANGES = {
    "one for all": lambda f: f[:1],
    "expanded": lambda f: f[:1] + 0 * f,
    "float32": lambda f: f.float() if isinstance(f, torch.Tensor) else f.astype(np.float32),
    "backward": lambda f: f.flip(0) if isinstance(f, torch.Tensor) else f[::-1],
    "needs a gradient": lambda f: f + torch.zeros(D, requires_grad=True),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_features_that_are_not_what_they_were(monkeypatch, backend, change):
    if change == "needs a gradient" and backend == "numpy":
        pytest.skip("NumPy has none")
    cell, given = Changing(D, D), arguments(backend)
    called(cell, given)
    assert cell._remembered
    monkeypatch.setattr(Changing, "change", staticmethod(CHANGES[change]))
    y, _ = called(cell, given)
    f = CHANGES[change](given["input_t"] @ given["parameter W"])
    expected = np.tanh(numbers(given["parameter a"]) * numbers(given["state"]) + numbers(f))
    np.testing.assert_allclose(numbers(y), expected, rtol=1e-12)
    if change == "needs a gradient":
        assert y.requires_grad
    monkeypatch.setattr(Changing, "change", staticmethod(lambda f: f[..., :2]))
    with pytest.raises(ValueError, match=r"^feature f: expected shape"):
        called(cell, given)
    monkeypatch.setattr(Changing, "features", lambda self, p, u: {})
    with pytest.raises(AttributeError, match="feature 'f' is not declared"):
        called(cell, given)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_gradients_flow(argument):
    cell, given = warm("torch"), arguments("torch")
    called(cell, given)
    given[argument].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: called(cell, {**given, argument: x})[0], given[argument]
    )
    with torch.no_grad():
        assert not called(cell, given)[0].requires_grad


@pytest.mark.long
def test_what_looks_on_still_sees_a_step():
    cell, given = warm("torch"), arguments("torch")
    expected = called(cell, given)[0]
    stacked = torch.stack([given["state"], 2 * given["state"]])
    mapped = torch.func.vmap(lambda x: called(cell, {**given, "state": x})[0])(stacked)
    assert_close(mapped[0], expected, 1e-12)
    of_state = lambda x: called(cell, {**given, "state": x})[0]  # noqa: E731
    _, tangent = torch.func.jvp(of_state, (given["state"],), (given["state"],))
    assert tangent.abs().max() > 0
    compiled = torch.compile(lambda g: called(cell, g)[0], fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_close(compiled(given), expected, 1e-12)
    traced = torch.fx.experimental.proxy_tensor.make_fx(of_state)(given["state"])
    assert_close(traced(2 * given["state"]), of_state(2 * given["state"]), 1e-12)
    scripted = torch.jit.trace(of_state, given["state"])
    assert_close(scripted(2 * given["state"]), of_state(2 * given["state"]), 1e-12)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {n: mode.from_tensor(x) for n, x in given.items()}
        assert called(cell, fake)[0].shape == (B, D)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = called(cell, {n: x.float() for n, x in given.items()})[0]
    assert_close(rounded, expected, 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_kernels_nothing_is_remembered(monkeypatch, runs, backend):
    cell, given = warm(backend), arguments(backend)
    monkeypatch.setenv("PARNL_KERNELS", "off")
    found = called(cell, given)[0]
    assert not runs
    monkeypatch.setenv("PARNL_KERNELS", "c")
    assert_close(found, called(cell, given)[0], 1e-12)
    assert runs == [True]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_array_is_kept_alive(backend):
    cell, given = warm(backend), arguments(backend)
    y, (state,) = called(cell, given)
    known = [weakref.ref(x) for x in (*given.values(), y, state)]
    del given, y, state
    gc.collect()
    assert [x() for x in known] == [None] * len(known)


def test_what_a_cell_remembers_is_bounded_and_its_own():
    cell, given = warm("numpy"), arguments("numpy")
    for batch in range(1, 100):
        one = {**given, "input_t": np.zeros((batch, D)), "state": np.zeros((batch, D))}
        called(cell, one)
    assert len(cell._remembered) <= 16
    for other in (copy.copy(cell), copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))):
        assert other == cell
        assert hash(other) == hash(cell)
        assert not other._remembered


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_do_not_meet(backend):
    cell, wrong = fresh(), []

    def work(seed):
        rng = np.random.default_rng(seed)
        given = {n: to(backend, rng.normal(size=x.shape)) for n, x in arguments("numpy").items()}
        given |= {n: given[n][: 1 + seed % B] for n in ("input_t", "state")}
        expected = outcome(fresh(), given)
        wrong.extend(1 for _ in range(200) if outcome(cell, given) != expected)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
