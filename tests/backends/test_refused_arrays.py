"""Kinds of arrays that no kernel may read: each is refused, by the name of its argument."""

import ml_dtypes
import numpy as np
import pytest
import torch
from array_kinds import CELL, SCAN, SOLVE, by_scan, by_solve, cases, drawn, params, results
from torch.masked import masked_tensor

import parnl
from parnl.backends import get_backend


class Units(np.ndarray):
    """A subclass with arithmetic of its own."""

    def __array_ufunc__(self, ufunc, method, *args, **how):
        raise AssertionError("not to be called")


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
