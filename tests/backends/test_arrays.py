"""Every kind of array as every argument: it is taken for the values it holds, or refused by name.

A kind is a function of values that returns an array of that kind; it may hold other values, where
its memory allows no others. What a solve gives for it is compared with a loop over the cell's own
step, in float64, on plain arrays of the same values.
"""

import ctypes
import os

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided
from torch.masked import masked_tensor

import parnl
from parnl import ops
from parnl.backends import arrays, get_backend
from parnl.params import matrix, vector
from parnl.testing import loop
from parnl.testing.kinds import kinds, spread

B, T, D = 3, 23, 5
CHUNKS = 4


class Through(parnl.Cell):
    """A step that reads its inputs as they come, their first channel, a product of them, and dt."""

    parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u, first=u[..., :1], n=u @ p.W)

    def step(self, p, x, f, dt):
        return x + dt * (ops.tanh(p.a * x + f.f) + 0.1 * f.first + 0.1 * f.n - x)


CELL = Through(D, D)

# -- kinds of arrays ------------------------------------------------------------------------------


class Units(np.ndarray):
    """A subclass with arithmetic of its own."""

    def __array_ufunc__(self, ufunc, method, *args, **how):
        raise AssertionError("not to be called")


def mapped(v):
    """Of a file that is gone when this returns, as its memory is not."""
    path = f"mapped-{os.getpid()}"
    array = np.memmap(path, v.dtype, "w+", shape=v.shape)
    array[...] = v
    os.unlink(path)
    return array


def windows(v):
    """Each number is part of several rows."""
    return as_strided(v.copy(), v.shape, [v.itemsize] * v.ndim)


NUMPY = {
    "plain": lambda v: v,
    **kinds("numpy"),
    "mapped": mapped,
    "first axis spread": spread(0),
    "broadcast": lambda v: np.broadcast_to(v[:1], v.shape),
    "one number": lambda v: np.broadcast_to(v.flat[0], v.shape),
    "windows": windows,
    "matrix": lambda v: np.asmatrix(v) if v.ndim == 2 else v,
    "longdouble": lambda v: v.astype(np.longdouble),
}


def without_tracking(v):
    with torch.inference_mode():
        return v.clone()


def file_tensor(v):
    path = f"mapped-{os.getpid()}"
    array = torch.from_file(path, shared=True, size=v.numel(), dtype=v.dtype)
    os.unlink(path)
    return array.copy_(v.flatten()).view(v.shape)


TORCH = {
    "plain": lambda v: v,
    **kinds("torch"),
    "negated, one number": lambda v: torch._neg_view(v.flatten()[0]).expand(v.shape),
    "zeros": lambda v: torch._efficientzerotensor(v.shape, dtype=v.dtype),
    "expanded": lambda v: v[:1].expand(v.shape),
    "one number": lambda v: v.flatten()[0].expand(v.shape),
    "windows": lambda v: torch.as_strided(v, v.shape, [1] * v.ndim),
    "parameter": lambda v: torch.nn.Parameter(v),
    "buffer": lambda v: torch.nn.Buffer(v),
    "view with a gradient": lambda v: v.clone().requires_grad_()[:],
    "without tracking": without_tracking,
    "mapped": file_tensor,
}
KINDS = {"numpy": NUMPY, "torch": TORCH}


def cases(table, arguments):
    return [
        pytest.param(backend, kind, argument, id=f"{backend}-{kind}-{argument}")
        for backend, found in table.items()
        for kind in found
        for argument in arguments[backend]
    ]


# -- what is computed of them ---------------------------------------------------------------------

SOLVE = ("inputs", "dt", "dt of all", "state", "parameter a", "parameter W")
SCAN = ("a", "b", "x0")
UPSTREAM = ("of outputs", "of final state", "of a scan")
ARGUMENTS = {"numpy": (*SOLVE, *SCAN), "torch": (*SOLVE, *SCAN, *UPSTREAM)}


def numbers(array):
    """The values of any array, in float64."""
    if isinstance(array, torch.Tensor):
        return array.detach().resolve_neg().clone().to(torch.float64).numpy()
    return np.array(array, np.float64)


def drawn(dtype="float64"):
    """Plain arrays for every argument."""
    rng = np.random.default_rng(0)
    found = {
        "inputs": rng.normal(size=(B, T, D)),
        "dt": rng.uniform(0.1, 0.9, (B, T)),
        "dt of all": rng.uniform(0.1, 0.9, T),
        "state": rng.normal(size=(B, D)),
        "parameter a": rng.normal(size=D),
        "parameter W": rng.normal(size=(D, D)),
        "a": rng.uniform(-0.9, 0.9, (B, T, D)),
        "b": rng.normal(size=(B, T, D)),
        "x0": rng.normal(size=(B, D)),
        "of outputs": rng.normal(size=(B, T, D)),
        "of final state": rng.normal(size=(B, D)),
        "of a scan": rng.normal(size=(B, T, D)),
    }
    return {name: x.astype(dtype) for name, x in found.items()}


def params(given):
    return {"W": given["parameter W"], "a": given["parameter a"]}


def by_solve(given, dt, **how):
    how = {"chunks": CHUNKS, **how}
    out = parnl.solve(CELL, params(given), given["inputs"], given["state"], dt=given[dt], **how)
    return out.outputs, out.final_state[0]


def by_loop(given, dt):
    time = given[dt]
    if time.ndim == 1:
        time = time[None] + 0 * given["dt"]
    outputs, (final,) = loop(CELL, params(given), given["inputs"], [given["state"]], dt=time)
    return outputs, final


def by_scan(given):
    return parnl.affine_scan(given["a"], given["b"], given["x0"])


def scan_by_loop(given):
    x, found = given["x0"], []
    for t in range(T):
        x = given["a"][:, t] * x + given["b"][:, t]
        found.append(x)
    return (torch if isinstance(x, torch.Tensor) else np).stack(found, 1)


def results(argument, given, solve, scan):
    """What the argument is part of, as float64 arrays; `given` holds all of them."""
    if argument in SCAN:
        return [numbers(scan(given))]
    if argument in SOLVE:
        dt = argument if argument.startswith("dt") else "dt"
        return [numbers(x) for x in solve(given, dt)]
    leaf = "b" if argument == "of a scan" else "inputs"
    given = {**given, leaf: given[leaf].clone().requires_grad_()}
    if argument == "of a scan":
        result = scan(given)
    else:
        result = solve(given, "dt")[0 if argument == "of outputs" else 1]
    return [numbers(torch.autograd.grad(result, given[leaf], given[argument])[0])]


def check(backend, kind, argument, dtype, tolerance):
    given = drawn(dtype)
    if backend == "torch":
        given = {n: torch.from_numpy(x) for n, x in given.items()}
    given[argument] = KINDS[backend][kind](given[argument])
    plain = {n: torch.from_numpy(numbers(x)) for n, x in given.items()}
    with np.errstate(all="ignore"):
        found = results(argument, given, by_solve, by_scan)
    expected = results(argument, plain, by_loop, scan_by_loop)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=0, atol=tolerance * max(1.0, np.abs(e).max()))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize(("backend", "kind", "argument"), cases(KINDS, ARGUMENTS))
def test_every_kind_as_every_argument(monkeypatch, kernels, backend, kind, argument):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    check(backend, kind, argument, "float64", 1e-12)
    if kernels == "c":
        check(backend, kind, argument, "float32", 1e-5)


ODD = ("negated, dense", "misaligned", "windows")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("argument", ARGUMENTS["torch"])
def test_kinds_in_triton(monkeypatch, kind, argument):
    pytest.importorskip("triton")
    monkeypatch.setenv("PARNL_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    check("torch", kind, argument, "float64", 1e-12)


@pytest.mark.parametrize("form", [arrays.rows, arrays.whole])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("backend", "kind"), [(b, k) for b, table in KINDS.items() for k in table if k != "longdouble"]
)
def test_at_the_address_stands_what_the_array_holds(backend, kind, dtype, form):
    """What a kernel would read, number by number; at addresses that it may read numbers at."""
    kernels, values = get_backend(backend), drawn(dtype)["inputs"]
    array = KINDS[backend][kind](values if backend == "numpy" else torch.from_numpy(values))
    memory = form(kernels, kernels.take("inputs", array))
    number = {"float32": ctypes.c_float, "float64": ctypes.c_double}[dtype]
    size = ctypes.sizeof(number)
    strides = memory.strides or (T * D, D, 1)
    assert memory.address % size == 0
    assert strides[-1] == 1
    expected = numbers(array)
    for place in np.ndindex(*expected.shape):
        offset = sum(i * s for i, s in zip(place, strides, strict=True))
        found = number.from_address(memory.address + size * offset).value
        assert found == expected[place], place


@pytest.mark.parametrize("kind", ["negated, dense", "misaligned", "zeros", "spread"])
def test_what_triton_is_given(kind):
    """The interpreter may read a tensor by other means than a GPU, by its address and strides."""
    kernels, values = get_backend("torch"), torch.from_numpy(drawn("float32")["inputs"])
    array = TORCH[kind](values)
    given = kernels.readable(array)
    assert not given.is_neg()
    assert given.data_ptr()
    assert given.data_ptr() % 4 == 0
    np.testing.assert_array_equal(numbers(given), numbers(array))


@pytest.mark.parametrize("kernels", ["c", "off"])
def test_kinds_that_features_return(monkeypatch, kernels):
    """They are made by the cell, and come in by no argument."""
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    for backend, table in KINDS.items():
        for kind, make in table.items():
            if kind == "longdouble":
                continue
            values = drawn()["inputs"]
            feature = make(values if backend == "numpy" else torch.from_numpy(values))

            class Made(parnl.Cell):
                parameters = dict(a=vector("hidden"))

                def features(self, p, u, feature=feature):
                    return dict(f=feature)

                def step(self, p, x, f):
                    return ops.tanh(p.a * x + f.f)

            cell, asarray = Made(D, D), get_backend(backend).asarray
            given = cell.init(0, backend, "float64")
            out = parnl.solve(cell, given, asarray(values, "float64"), chunks=CHUNKS)
            f, a, x = numbers(feature), numbers(given["a"]), np.zeros((B, D))
            for t in range(T):
                x = np.tanh(a * x + f[:, t])
                np.testing.assert_allclose(numbers(out.outputs)[:, t], x, atol=1e-12, err_msg=kind)


@pytest.mark.parametrize("kind", [k for k in NUMPY if k != "longdouble"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_kinds_of_lengths(backend, kind):
    asarray = get_backend(backend).asarray
    given = {n: asarray(x, "float64") for n, x in drawn().items()}
    lengths = NUMPY[kind](np.array([23, 7, 0]))
    found, expected = (by_solve(given, "dt", lengths=n)[0] for n in (lengths, np.array(lengths)))
    np.testing.assert_array_equal(numbers_of(backend, found), numbers_of(backend, expected))


def numbers_of(backend, array):
    return np.asarray(get_backend(backend).to_numpy(array))


class Chosen(parnl.Cell):
    """A step whose Jacobian makes arrays of numbers, like one that it is given."""

    parameters = dict(a=vector("hidden"))

    def features(self, p, u):
        return dict(f=u)

    def step(self, p, x, f):
        return p.a * f.f + 0.4 * x + 0.5 * ops.tanh(ops.where(x > 0.1, x, 0.5))


@pytest.mark.parametrize("kernels", ["c", "off"])
def test_numbers_like_an_array_negated_lazily(monkeypatch, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    u, a, x = (torch.from_numpy(drawn()[n]) for n in ("inputs", "parameter a", "state"))
    odd = TORCH["negated, dense"]
    out = parnl.solve(Chosen(D, D), {"a": odd(a)}, odd(u[:, :2]), odd(x), chunks=2)
    for t in range(2):
        x = a * u[:, t] + 0.4 * x + 0.5 * torch.tanh(torch.where(x > 0.1, x, 0.5))
        torch.testing.assert_close(out.outputs[:, t], x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", ["negated", "negated, dense", "misaligned", "zeros"])
def test_kinds_in_other_functions(kind):
    given = {n: torch.from_numpy(x) for n, x in drawn().items()}
    odd = {n: TORCH[kind](x) for n, x in given.items()}
    plain = {n: torch.from_numpy(numbers(x)) for n, x in odd.items()}

    def everything(x):
        u, dt = x["inputs"], x["dt"]
        output, state = parnl.step(CELL, params(x), u[:, 0], x["state"], dt=dt[:, 0])
        checked = parnl.solve(CELL, params(x), u, x["state"], dt=dt, check=True).outputs
        found = parnl.lyapunov(CELL, params(x), u, x["state"], dt=dt).exponents
        return [numbers(output), numbers(state[0]), numbers(checked), found]

    for f, e in zip(everything(odd), everything(plain), strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-12)


@pytest.mark.parametrize("argument", SCAN)
@pytest.mark.parametrize("kernels", ["c", "off"])
def test_complex_coefficients_conjugated_lazily(monkeypatch, kernels, argument):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    given = {n: torch.from_numpy(x[..., ::-1] + 0.3j * x) for n, x in drawn().items()}
    odd = {**given, argument: given[argument].conj()}
    plain = {**given, argument: given[argument].conj().resolve_conj()}
    torch.testing.assert_close(by_scan(odd), scan_by_loop(plain), rtol=1e-12, atol=1e-12)


def test_kinds_in_what_is_compiled():
    given = {n: torch.from_numpy(x) for n, x in drawn().items()}
    compiled = torch.compile(lambda x: by_solve(x, "dt")[0], backend="aot_eager")
    for kind in ("plain", "negated", "negated, dense", "misaligned"):
        odd = {**given, "dt": TORCH[kind](given["dt"]), "inputs": TORCH[kind](given["inputs"])}
        np.testing.assert_allclose(numbers(compiled(odd)), numbers(by_loop(given, "dt")[0]))


# -- what is refused ------------------------------------------------------------------------------


def some_masked(v):
    return np.ma.masked_array(v, np.arange(v.size).reshape(v.shape) == 1)


def freed(v):
    v = v.clone()
    v.untyped_storage().resize_(0)
    return v


REFUSED = {
    "numpy": {
        "masked": (some_masked, r"without a mask, got a MaskedArray of shape .* with 1 values"),
        "units": (lambda v: v.view(Units), r"got a .*Units, which has arithmetic of its own"),
        "float8": (lambda v: v.astype(ml_dtypes.float8_e4m3fn), r"got (dtype )?float8_e4m3fn"),
        "objects": (lambda v: v.astype(object), "got (dtype )?object"),
        "integers": (lambda v: v.astype(int), "got (dtype )?int64"),
        "bool": (lambda v: v > 0, "got (dtype )?bool"),
        "text": (lambda v: v.astype(str), "got (dtype )?<U"),
        "structure": (lambda v: v.view([("x", v.dtype)]), r"got (dtype )?\[\('x'"),
    },
    "torch": {
        "COO": (lambda v: v.to_sparse(), r"dense tensor, got one of layout torch.sparse_coo"),
        "CSR": (lambda v: v.to_sparse_csr() if v.ndim > 1 else v.to_sparse(), "dense tensor"),
        "MKL-DNN": (lambda v: v.float().to_mkldnn(), "one of layout torch._mkldnn"),
        "nested": (lambda v: torch.nested.nested_tensor(list(v)), "got a nested one"),
        "jagged": (
            lambda v: torch.nested.nested_tensor(list(v), layout=torch.jagged), "got a nested one"
        ),
        "masked": (lambda v: masked_tensor(v, v > 0), "without a mask, got a MaskedTensor"),
        "freed": (freed, r"a tensor with values, got one of shape \(.* on cpu whose memory"),
        "float8": (lambda v: v.to(torch.float8_e5m2), "got torch.float8_e5m2"),
        "quantised": (
            lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.quint8), "torch.quint8"
        ),
        "integers": (lambda v: v.to(int), "got (dtype )?torch.int64"),
    },
}  # fmt: skip
TAKEN = {b: (*SOLVE, *SCAN) for b in REFUSED}
CALLED = {"dt of all": "dt", "state": "initial_state x"}


@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize(("backend", "kind", "argument"), cases(REFUSED, TAKEN))
@pytest.mark.filterwarnings("ignore::UserWarning")  # prototypes of PyTorch
def test_what_is_refused_is_named(monkeypatch, kernels, backend, kind, argument):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    given = drawn()
    if backend == "torch":
        given = {n: torch.from_numpy(x) for n, x in given.items()}
    make, message = REFUSED[backend][kind]
    if kind in ("nested", "jagged") and given[argument].ndim == 1:
        return
    given[argument] = make(given[argument])
    name = CALLED.get(argument, argument)
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: (?s:.*){message}"):
        results(argument, given, by_solve, by_scan)
    if argument in ("inputs", "dt", "state"):
        name = {"inputs": "input_t"}.get(argument, name)
        u = given["inputs"] if argument == "inputs" else given["inputs"][:, 0]
        dt = given["dt"] if argument == "dt" else 0.5
        with pytest.raises((TypeError, ValueError), match=rf"^{name}: (?s:.*){message}"):
            parnl.step(CELL, params(given), u, given["state"], dt=dt)


@pytest.mark.parametrize("argument", ["dt", "state", "a", "b", "x0"])
def test_a_tensor_that_never_had_values(argument):
    given = {n: torch.from_numpy(x) for n, x in drawn().items()}
    given[argument] = given[argument].to("meta")
    with pytest.raises(ValueError, match=r"is on (meta, but .* is on cpu|cpu, but .* is on meta)$"):
        results(argument, given, by_solve, by_scan)


@pytest.mark.parametrize("argument", [*SOLVE, *SCAN])
def test_a_deleted_array_of_jax(argument):
    given = {n: get_backend("jax").asarray(x, "float64") for n, x in drawn().items()}
    given[argument].delete()
    name = CALLED.get(argument, argument)
    with pytest.raises(ValueError, match=rf"^{name}: expected an array with values.* deleted"):
        results(argument, given, by_solve, by_scan)


def test_masked_lengths_are_refused():
    lengths = np.ma.masked_array([23, 7, 0], [False, True, False])
    for backend in ("numpy", "torch", "jax"):
        asarray = get_backend(backend).asarray
        given = {n: asarray(x, "float64") for n, x in drawn().items()}
        with pytest.raises(TypeError, match=r"^lengths: .* without a mask"):
            by_solve(given, "dt", lengths=lengths)


def test_a_mask_is_not_lost_where_parameters_are_kept(tmp_path):
    given = CELL.init(0)
    given["a"] = some_masked(given["a"])
    with pytest.raises(TypeError, match=r"^parameter a: .* without a mask"):
        parnl.save_params(tmp_path / "x.safetensors", CELL, given)
    with pytest.raises(TypeError, match=r"^parameter a: .* without a mask"):
        parnl.certify(CELL, given, [(-1.0, 1.0)], inputs=drawn("float32")["inputs"], dt=0.5)


def test_results_are_plain_arrays_in_this_machines_byte_order():
    given = drawn("float32")
    for kind in ("byte order", "subclass", "matrix", "no mask", "mapped", "field"):
        odd = {n: NUMPY[kind](x) for n, x in given.items()}
        for result in (*by_solve(odd, "dt"), by_scan(odd)):
            assert type(result) is np.ndarray, kind
            assert result.dtype == np.float32, kind
            assert result.dtype.isnative, kind
            assert result.flags.writeable, kind
