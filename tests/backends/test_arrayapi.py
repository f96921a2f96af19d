"""Other libraries of the array API standard, by array-api-strict and two made here.

array-api-strict refuses what the standard does not promise. `Array` below has nothing but what the
standard gives an array, and counts the functions that are called.

The file is long, for all these libraries are given the same tasks.
"""

import operator
import sys
import types

import array_api_compat
import array_api_compat.numpy as whole
import numpy as np
import pytest

import parnl
from parnl import ops
from parnl.backends import arrayapi
from parnl.frameworks import get_backend

strict = pytest.importorskip("array_api_strict")
NAME = "array_api_strict"
# without those of other tests
CELLS = [n for n in parnl.list_cells() if not n.startswith("test-")]
B, T, H = 2, 23, 4
RNG = np.random.default_rng(0)
INPUTS = RNG.standard_normal((B, T, 3))
RESETS = RNG.random((B, T)) < 0.2
PACKED = np.array([0, 4, 4, T])
DEVICE = strict.Device("device1")


def near(found, expected, tolerance=1e-12):
    assert type(found).__module__.startswith("array_api_strict")
    np.testing.assert_allclose(np.from_dlpack(found), expected, rtol=tolerance, atol=tolerance)


def given(name, **options):
    """Return a cell, its parameters and initial states, in NumPy."""
    cell = parnl.get_cell(name, 3, H, **options)
    states = [RNG.standard_normal((B, H)) for _ in cell.states]
    return cell, cell.init(0, dtype="float64"), states


def strictly(value, device=None):
    """Return all arrays of a value in array-api-strict."""
    if isinstance(value, dict):
        return {n: strictly(v, device) for n, v in value.items()}
    if isinstance(value, list):
        return [strictly(v, device) for v in value]
    return strict.asarray(value, device=device) if isinstance(value, np.ndarray) else value


@pytest.fixture(autouse=True)
def composed(monkeypatch):
    """NumPy without C, whose vector functions round otherwise."""
    monkeypatch.setenv("PARNL_KERNELS", "off")


def same(name, inputs=INPUTS, initial="drawn", **arguments):
    """A solve equals NumPy's of as many chunks, and NumPy's plain loop."""
    cell, params, states = given(name)
    initial = states if initial == "drawn" else initial
    here = strictly([params, inputs, initial, arguments])
    out = parnl.solve(cell, *here[:3], **here[3])
    loop = {**arguments, "chunks": None, "method": "sequential", "stretch": None}
    for how in (arguments, loop):
        expected = parnl.solve(cell, params, inputs, initial, **how)
        near(out.outputs, expected.outputs)
        for one, other in zip(out.final_state, expected.final_state, strict=True):
            near(one, other)
    return out


@pytest.mark.parametrize("chunks", [1, 5, T])
@pytest.mark.parametrize("name", CELLS)
def test_every_cell(name, chunks):
    out = same(name, chunks=chunks)
    assert (out.info.chunks, bool(out.info.converged)) == (-(-T // -(-T // chunks)), True)


OPTIONS = {
    "automatic": {},
    "from zeros": {"initial": None},
    "reverse": {"reverse": True},
    "lengths": {"lengths": np.array([T, 9])},
    "resets": {"resets": RESETS},
    "resets in reverse": {"resets": RESETS, "reverse": True, "lengths": np.array([T, 9])},
    "packed": {"cu_seqlens": PACKED, "inputs": INPUTS[0], "initial": None},
    "checked": {"check": True, "resets": RESETS, "lengths": np.array([T, 9])},
    "to the last bit": {"tolerance": 0.0},
    "stretches": {"stretch": 6, "chunks": None, "lengths": np.array([T, 9])},
    "packed stretches": {
        "stretch": 6, "chunks": None, "reverse": True,
        "cu_seqlens": PACKED, "inputs": INPUTS[0], "initial": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["lrc", "lstm", "lru"])
def test_options(name, option):
    same(name, **{"chunks": None if option == "automatic" else 5, **OPTIONS[option]})


@pytest.mark.parametrize("chunks", [1, 5, T])
def test_time_steps(chunks):
    same("cfc", dt=RNG.random((B, T)), chunks=chunks)
    same("ltc", dt=0.3, chunks=chunks)


@pytest.mark.parametrize("name", ["lrc", "lstm", "lru"])
def test_step(name):
    cell, params, states = given(name)
    arguments = [params, INPUTS[:, 0], states]
    y, state = parnl.step(cell, *strictly(arguments), reset=strictly(np.array([True, False])))
    expected, after = parnl.step(cell, *arguments, reset=np.array([True, False]))
    near(y, expected)
    for one, other in zip(state, after, strict=True):
        near(one, other)


def test_chunk_starts_that_are_guessed():
    """Long chunks of a cell that forgets: runs that meet, and no update."""
    cell, params, _ = given("gru")
    inputs = RNG.standard_normal((1, 4096, 3))
    out = parnl.solve(cell, *strictly([params, inputs]), chunks=4)
    assert int(out.info.iterations) == 0
    near(out.outputs, parnl.solve(cell, params, inputs, method="sequential").outputs)


class Logistic(parnl.Cell):
    """x' = 4 x (1 - x): chaotic."""

    parameters = {"W": parnl.params.matrix("input", "hidden")}

    def features(self, p, u):
        return {"f": u @ p.W}

    def step(self, p, x, f):
        return 4.0 * x * (1.0 - x) + 1e-9 * f.f


def test_the_plain_loop_after_newton_is_given_up():
    cell = Logistic(3, H)
    inputs, x0 = RNG.standard_normal((1, 300, 3)), [np.full((1, H), 0.3)]
    arguments = [cell.init(0, dtype="float64"), inputs, x0]
    out = parnl.solve(cell, *strictly(arguments), chunks=100)
    assert int(out.info.sequential) > 0
    near(out.outputs, parnl.solve(cell, *arguments, method="sequential").outputs)


@pytest.mark.parametrize("kind", [float, complex])
@pytest.mark.parametrize("blocks", [(), (2,)])
@pytest.mark.parametrize("reverse", [False, True])
def test_affine_scan(kind, blocks, reverse):
    def draw(*shape):
        x = 0.5 * RNG.standard_normal(shape)
        return x + 0.3j * RNG.standard_normal(shape) if kind is complex else x

    a, b = draw(B if blocks else 1, T, H, *blocks, *blocks), draw(B, T, H, *blocks)
    x0 = draw(B, H, *blocks)
    found = parnl.affine_scan(*strictly([a, b, x0]), reverse=reverse)
    x, expected = x0, np.empty_like(b)
    for t in reversed(range(T)) if reverse else range(T):
        x = (a[:, t] @ x[..., None])[..., 0] if blocks else a[:, t] * x
        expected[:, t] = x = x + b[:, t]
    near(found, expected)


def test_complex_numbers_of_what_is_not_finite():
    re, im = (x.ravel() for x in np.meshgrid(*[[1.5, -0.0, np.inf, -np.inf, np.nan]] * 2))
    found = np.from_dlpack(get_backend(NAME).complex_numbers(*strictly([re, im])))
    np.testing.assert_array_equal(found.real, re)
    np.testing.assert_array_equal(found.imag, im)


def test_a_running_maximum():
    x = RNG.standard_normal((B, T, H))
    x[0, 9, 1] = np.nan
    found = np.from_dlpack(get_backend(NAME).running_max(strict.asarray(x)))
    np.testing.assert_array_equal(found, np.maximum.accumulate(x, axis=1))


def test_another_device():
    cell, params, states = given("lstm")
    arguments = strictly([params, INPUTS, states], DEVICE)
    how = {"lengths": [T, 9], "resets": RESETS}
    out = parnl.solve(cell, *arguments, **how, chunks=5, check=True)
    near(out.outputs, parnl.solve(cell, params, INPUTS, states, **how).outputs)
    again = parnl.solve(cell, *arguments, cu_seqlens=None, stretch=6)
    y, _ = parnl.step(cell, arguments[0], strict.asarray(INPUTS[:, 0], device=DEVICE))
    assert {a.device for a in (out.outputs, again.outputs, y, *out.final_state)} == {DEVICE}
    made = cell.init(0, backend=NAME, device=DEVICE)
    assert {a.device for a in made.values()} == {DEVICE}
    refused = r"parameter \w+: is on .*CPU.*, but inputs is on .*device1"
    with pytest.raises(ValueError, match=refused):
        parnl.solve(cell, strictly(params), arguments[1])


def test_parameters_are_the_same_as_elsewhere():
    cell = parnl.get_cell("s6", 3, 32)
    for dtype in ("float32", "float64"):
        made, expected = cell.init(3, backend=NAME, dtype=dtype), cell.init(3, dtype=dtype)
        for n in expected:
            assert made[n].dtype == getattr(strict, dtype)
            np.testing.assert_array_equal(np.from_dlpack(made[n]), expected[n])
    inputs = INPUTS.astype("float32")
    out = parnl.solve(cell, cell.init(3, backend=NAME), strict.asarray(inputs), chunks=5)
    assert out.outputs.dtype == strict.float32
    near(out.outputs, parnl.solve(cell, cell.init(3), inputs).outputs, 1e-5)


def test_functions_on_arrays():
    x = np.array([-1000.0, -1.0, 0.0, 2.0, 1000.0])
    for name in ("sigmoid", "softplus", "logsigmoid", "relu", "silu", "sign", "atan"):
        function = getattr(ops, name)
        near(function(strict.asarray(x)), function(x))
    near(ops.where(strict.asarray(x) > 0, 1, 0.5), np.where(x > 0, 1.0, 0.5))
    near(ops.clip(strict.asarray(x), -1.0, 2.0), np.clip(x, -1.0, 2.0))


@pytest.mark.long
def test_what_else_takes_arrays(tmp_path):
    pytest.importorskip("safetensors")
    cell, params, _ = given("gru")
    here, path = strictly([params, INPUTS]), tmp_path / "gru.safetensors"
    parnl.save_params(path, cell, here[0])
    for n, array in parnl.load_params(path, cell, backend=NAME).items():
        near(array, params[n], 0.0)
    found, expected = parnl.lyapunov(cell, *here), parnl.lyapunov(cell, params, INPUTS)
    np.testing.assert_allclose(found.exponents, expected.exponents, rtol=1e-12)
    both = [parnl.certify(cell, p, inputs=u) for p, u in (here, (params, INPUTS))]
    np.testing.assert_array_equal(both[0].rho, both[1].rho)


class Erf(Logistic):
    """A step that the standard has no function for."""

    def step(self, p, x, f):
        return ops.erf(x + f.f)


def test_erf_is_computed_by_its_definition():
    cell, inputs = Erf(3, H), INPUTS.astype("float64")
    params = cell.init(0, dtype="float64")
    expected = parnl.solve(cell, params, inputs).outputs
    near(parnl.solve(cell, strictly(params), strictly(inputs)).outputs, expected)


def test_what_is_missing_has_a_name(monkeypatch):
    monkeypatch.delitem(get_backend(NAME).functions, "erf")
    with pytest.raises(NotImplementedError, match=r"ops\.erf: array_api_strict has no form of erf"):
        ops.gelu(strict.asarray(INPUTS))
    cell = Erf(3, H)
    with pytest.raises(NotImplementedError, match="array_api_strict has no form of erf"):
        parnl.solve(cell, cell.init(0, backend=NAME), strictly(INPUTS.astype("float32")))
    with pytest.raises(TypeError, match="dtype: array_api_strict has no float16"):
        cell.init(0, backend=NAME, dtype="float16")
    with pytest.raises(ValueError, match="time_axis: expected None, since parnl knows one device"):
        parnl.solve(cell, cell.init(0, NAME), strictly(INPUTS.astype("float32")), time_axis="t")


@pytest.mark.parametrize("name", ["no_such_library", "os", ""])
def test_a_backend_that_is_none(name):
    expected = "backend: expected numpy, jax, torch, or the name of a module of the array API"
    with pytest.raises(ValueError, match=rf"{expected} standard, got {name!r}: "):
        get_backend(name)


def test_an_old_standard(monkeypatch):
    monkeypatch.setattr(arrayapi, "_made", {})
    old = types.SimpleNamespace(__name__="old", exp=np.exp)
    with pytest.raises(
        TypeError, match=r"old: expected the array API standard of 2023\.12 or newer"
    ):
        arrayapi.backend_for(old)


FROM_DLPACK = "array_api_strict.from_dlpack(a{})"
MIXED = {
    "parameters of NumPy": (None, "array_api_strict", 'backend="array_api_strict"'),
    "inputs of NumPy": ("array_api_strict", None, "convert inputs by array_api_strict.asarray"),
    "parameters of PyTorch": ("torch", "array_api_strict", FROM_DLPACK.format(".detach()")),
    "inputs of PyTorch": ("array_api_strict", "torch", "torch.from_dlpack(a)"),
    "inputs of JAX": ("array_api_strict", "jax", "jnp.from_dlpack(a)"),
    "parameters of JAX": ("jax", "array_api_strict", FROM_DLPACK.format("")),
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_mixed_libraries(case):
    ours, theirs, hint = MIXED[case]
    for name in {ours, theirs} & {"jax", "torch"}:
        pytest.importorskip(name)
    cell = parnl.get_cell("gru", 3, H)
    inputs = get_backend(theirs or "numpy").asarray(INPUTS, "float32")
    params = cell.init(0, backend=ours)
    with pytest.raises(TypeError, match="must come from one framework") as caught:
        parnl.solve(cell, params, inputs)
    assert hint in str(caught.value)
    if "for n, a in" in str(caught.value):  # what it says is code, and works
        code = str(caught.value).rpartition("or convert them: ")[2]
        scope = {n: pytest.importorskip(n) for n in {ours, theirs} - {None, "numpy", "jax"}}
        if "jnp" in code:
            scope["jnp"] = pytest.importorskip("jax.numpy")
        params = eval(code, scope, {"params": params})
        found = get_backend(theirs).to_numpy(parnl.solve(cell, params, inputs).outputs)
        expected = parnl.solve(cell, cell.init(0), INPUTS.astype("float32")).outputs
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# -- libraries made here ---------------------------------------------------------------------------


class Array:
    """What the standard says an array has, by NumPy: no `__array__`, and no other methods."""

    def __init__(self, values):
        self.values = np.asarray(values)

    shape = property(lambda self: self.values.shape)
    ndim = property(lambda self: self.values.ndim)
    dtype = property(lambda self: self.values.dtype)
    device = property(lambda self: "cpu")

    def __getitem__(self, key):
        return type(self)(self.values[key])

    def __setitem__(self, key, value):
        self.values[key] = value.values

    def __bool__(self):
        return bool(self.values)

    def __float__(self):
        return float(self.values)

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def _operator(name):
    def method(self, *others):
        assert not any(isinstance(o, np.ndarray) for o in others)
        return type(self)(getattr(operator, name)(self.values, *map(bare, others)))

    def turned(self, other):
        return type(self)(getattr(operator, name)(bare(other), self.values))

    return method, turned


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "neg", "invert", "abs",
              "lt", "le", "gt", "ge", "eq", "ne"):  # fmt: skip
    _plain, _turned = _operator(f"__{_name}__")
    setattr(Array, f"__{_name}__", _plain)
    setattr(Array, f"__r{_name}__", _turned)


def bare(value):
    """Return NumPy's arrays for those of `Array`."""
    if isinstance(value, Array):
        return value.values
    return [bare(v) for v in value] if isinstance(value, list | tuple) else value


class Library(types.ModuleType):
    """A namespace of functions on one class of arrays; `called` counts them by name."""

    def __init__(self, name, kind):
        super().__init__(name)
        self.ndarray, self.called = kind, {}

    def __getattr__(self, name):
        if name not in dir(strict):  # the standard's own names
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        function = getattr(whole, name)
        if not callable(function) or isinstance(function, type):
            return function

        def run(*args, **kwargs):
            self.called[name] = self.called.get(name, 0) + 1
            kwargs = {n: bare(v) for n, v in kwargs.items()}
            found = function(*map(bare, args), **kwargs)
            return self.ndarray(found) if isinstance(found, np.ndarray | np.generic) else found

        return run


def library(name, **attributes):
    """Return a library, and a function that makes its arrays."""
    kind = type("ndarray", (Array,), attributes)
    made = Library(name, kind)
    if name != "cupy":  # whose arrays array-api-compat knows by their class
        kind.__array_namespace__ = lambda self, api_version=None: made
    return made


@pytest.mark.parametrize("name", ["gru", "lstm", "s5", "s6"])
def test_a_library_that_has_nothing_but_the_standard(name, monkeypatch):
    monkeypatch.setattr(arrayapi, "_made", {})
    made, (cell, params, states) = library("made"), given(name)
    here = {n: made.ndarray(a) for n, a in params.items()}
    x0 = [made.ndarray(x) for x in states]
    out = parnl.solve(cell, here, made.ndarray(INPUTS), x0, chunks=5, resets=made.ndarray(RESETS))
    expected = parnl.solve(cell, params, INPUTS, states, resets=RESETS, method="sequential")
    assert type(out.outputs) is made.ndarray
    np.testing.assert_allclose(out.outputs.values, expected.outputs, rtol=1e-12, atol=1e-12)
    assert made.called["concat"] > 5
    assert get_backend("made").xp is made


def test_half_precision_is_solved_in_float32(monkeypatch):
    monkeypatch.setattr(arrayapi, "_made", {})
    made, cell = library("made"), parnl.get_cell("gru", 3, H)
    params, inputs = cell.init(0, dtype="float16"), INPUTS.astype("float16")
    here = {n: made.ndarray(a) for n, a in params.items()}
    out = parnl.solve(cell, here, made.ndarray(inputs), chunks=5)
    expected = parnl.solve(cell, params, inputs, method="sequential")
    for one, other in [(out.outputs, expected.outputs), (out.final_state[0], expected[1][0])]:
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.values, other, rtol=1e-3, atol=1e-3)


def test_libraries_of_one_name_are_told_apart(monkeypatch):
    monkeypatch.setattr(arrayapi, "_made", {})
    one, two = library("same"), library("same")
    cell, params, _ = given("gru")
    here = {n: one.ndarray(a) for n, a in params.items()}
    with pytest.raises(TypeError, match="must come from one framework"):
        parnl.solve(cell, here, two.ndarray(INPUTS))


def test_cupy_is_known_by_its_arrays(monkeypatch):
    """array-api-compat knows CuPy's arrays by their class; here by one of a module of that name."""
    monkeypatch.setattr(arrayapi, "_made", {})
    cupy = library("cupy", get=lambda self: self.values)
    compat = Library("array_api_compat.cupy", cupy.ndarray)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", compat)
    monkeypatch.setattr(array_api_compat, "cupy", compat, raising=False)
    cell, expected = parnl.get_cell("gru", 3, H), parnl.get_cell("gru", 3, H).init(0)
    params = cell.init(0, backend="cupy")
    assert {type(a) for a in params.values()} == {cupy.ndarray}
    inputs = INPUTS.astype("float32")
    out = parnl.solve(cell, params, cupy.ndarray(inputs), chunks=5, lengths=[T, 9], check=True)
    backend = get_backend("cupy")
    assert (backend.name, backend.xp) == ("cupy", compat)
    assert backend.device(out.outputs).lanes == 1 << 20
    np.testing.assert_allclose(
        backend.to_numpy(out.outputs),
        parnl.solve(cell, expected, inputs, lengths=[T, 9]).outputs, rtol=1e-5, atol=1e-6,
    )  # fmt: skip
    with pytest.raises(TypeError, match=r"convert inputs by cupy\.asarray\(inputs\)"):
        parnl.solve(cell, params, inputs)
