"""Parameters in files: written whole, read back bit for bit, refused where they do not fit."""

import os
import sys
import threading

import numpy as np
import pytest
from optional import torch
from safetensors.numpy import load_file

import parnl
from parnl.frameworks import get_backend
from parnl.testing import installed

CELL = parnl.get_cell("gru", input_size=3, hidden_size=4)

PARAMS = CELL.init(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_parameters_come_back_bit_for_bit_on_every_backend(tmp_path, dtype):
    path = tmp_path / "deep" / "gru.safetensors"
    values = CELL.init(3, dtype=dtype)
    # not numbers of any use, but what was saved is what is loaded: a NaN with its payload, too
    values["a_r"][:] = np.array([np.nan, -np.inf, -0.0, 5e-324]).astype(dtype)
    values["a_z"].view(f"u{values['a_z'].itemsize}")[:] |= 0x7F800001 if dtype == "float32" else 1
    for backend in installed():
        target = get_backend(backend)
        given = {name: target.asarray(value, dtype) for name, value in values.items()}
        parnl.save_params(path, CELL, given)
        assert [file.name for file in path.parent.iterdir()] == [path.name]
        # an independent reader
        for name, value in load_file(path).items():
            assert value.tobytes() == values[name].tobytes()
        found = parnl.load_params(str(path), CELL, backend=backend)
        assert list(found) == list(PARAMS)
        for name, value in found.items():
            assert type(value) is type(given[name])
            assert target.to_numpy(value).tobytes() == values[name].tobytes()


def test_parameters_that_are_being_trained_are_saved(tmp_path):
    pytest.importorskip("torch")
    params = {n: p.requires_grad_() for n, p in CELL.init(0, "torch").items()}
    params["W_r"] = params["W_r"].t().contiguous().t()  # strides of its own
    parnl.save_params(tmp_path / "p", CELL, params)
    found = parnl.load_params(tmp_path / "p", CELL, "torch")
    assert all(torch.equal(found[n], params[n]) for n in PARAMS)


def test_nan_in_a_file_does_not_stop_a_solve(tmp_path):
    values = {n: p.copy() for n, p in PARAMS.items()}
    values["a_r"][1] = np.nan
    parnl.save_params(tmp_path / "p", CELL, values)
    u = np.random.default_rng(0).normal(size=(2, 50, 3)).astype(np.float32)
    found = parnl.solve(CELL, parnl.load_params(tmp_path / "p", CELL), u, chunks=7).outputs
    expected = parnl.solve(CELL, PARAMS, u, chunks=1).outputs
    assert np.isnan(found[..., 1]).all()
    np.testing.assert_allclose(found[..., [0, 2, 3]], expected[..., [0, 2, 3]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("a_n"), r"params: missing \['a_n'\], unknown \[\]; .* GRU are: W_r"),
        (lambda p: p.update(extra=p["a_n"]), r"params: missing \[\], unknown \['extra'\]"),
        (lambda p: p.update(W_r=p["W_r"].T), r"parameter W_r: expected shape \(3, 4\), got \(4, 3"),
        (lambda p: p.update(a_n=p["a_n"].astype(int)), "parameter a_n: .*, got int64"),
        (lambda p: p.update(a_n=torch.zeros(4, dtype=torch.int8)), "a_n: .* got int8"),
        (lambda p: p.update(a_n=[0.0] * 4), "parameter a_n: .*, got list"),
        (lambda p: p.update(a_n=p["a_n"].astype("f8")), "one dtype, got .*, a_n float64"),
    ],
)
def test_parameters_that_do_not_fit_are_not_saved(tmp_path, change, message):
    params = dict(PARAMS)
    change(params)
    with pytest.raises(ValueError, match=message):
        parnl.save_params(tmp_path / "p", CELL, params)
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_wrong_kind(tmp_path):
    with pytest.raises(TypeError, match=r"cell: expected a parnl\.Cell"):
        parnl.save_params(tmp_path / "p", "gru", PARAMS)
    with pytest.raises(TypeError, match="params: expected a mapping name -> array, got list"):
        parnl.save_params(tmp_path / "p", CELL, list(PARAMS))
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing"):
        parnl.load_params(tmp_path / "nothing", CELL)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        parnl.load_params(tmp_path, CELL)


def test_without_safetensors_it_says_what_to_install(tmp_path, monkeypatch):
    parnl.save_params(tmp_path / "p", CELL, PARAMS)
    for module in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, module, None)  # makes the import fail
    for call in (
        lambda: parnl.save_params(tmp_path / "p", CELL, PARAMS),
        lambda: parnl.load_params(tmp_path / "p", CELL),
    ):
        with pytest.raises(ImportError, match=r"pip install 'parnl\[checkpoint\]'"):
            call()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p"
    parnl.save_params(path, CELL, PARAMS)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        parnl.save_params(path, CELL, CELL.init(1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_once_leave_one_of_their_files(tmp_path):
    path = tmp_path / "p"
    many = [CELL.init(seed) for seed in range(4)]

    def write(params):
        for _ in range(20):
            parnl.save_params(path, CELL, params)

    threads = [threading.Thread(target=write, args=(params,)) for params in many]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            found = parnl.load_params(path, CELL)
            assert any((found["W_r"] == params["W_r"]).all() for params in many)
    for thread in threads:
        thread.join()
    assert list(tmp_path.iterdir()) == [path]
