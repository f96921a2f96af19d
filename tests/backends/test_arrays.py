"""Every kind of array as every argument: it is taken for the values it holds.

What a solve gives for it is compared with a loop over the cell's own step, in float64, on plain
arrays of the same values.
"""

import ctypes

import numpy as np
import pytest
import torch
from array_kinds import (
    ARGUMENTS,
    CELL,
    CHUNKS,
    KINDS,
    NUMPY,
    SCAN,
    TORCH,
    B,
    D,
    T,
    by_loop,
    by_scan,
    by_solve,
    cases,
    drawn,
    numbers,
    params,
    results,
    scan_by_loop,
)

import parnl
from parnl import ops
from parnl.backends import arrays, get_backend
from parnl.params import vector


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


@pytest.mark.long
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("argument", ARGUMENTS["torch"])
@pytest.mark.turns("argument")
def test_kinds_in_triton(monkeypatch, kind, argument):
    pytest.importorskip("triton", minversion="3.6")
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


@pytest.mark.long
def test_kinds_in_what_is_compiled():
    given = {n: torch.from_numpy(x) for n, x in drawn().items()}
    compiled = torch.compile(lambda x: by_solve(x, "dt")[0], backend="aot_eager")
    for kind in ("plain", "negated", "negated, dense", "misaligned"):
        odd = {**given, "dt": TORCH[kind](given["dt"]), "inputs": TORCH[kind](given["inputs"])}
        np.testing.assert_allclose(numbers(compiled(odd)), numbers(by_loop(given, "dt")[0]))


def test_results_are_plain_arrays_in_this_machines_byte_order():
    given = drawn("float32")
    for kind in ("byte order", "subclass", "matrix", "no mask", "mapped", "field"):
        odd = {n: NUMPY[kind](x) for n, x in given.items()}
        for result in (*by_solve(odd, "dt"), by_scan(odd)):
            assert type(result) is np.ndarray, kind
            assert result.dtype == np.float32, kind
            assert result.dtype.isnative, kind
            assert result.flags.writeable, kind
