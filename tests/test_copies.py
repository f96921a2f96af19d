"""Cells that are copied, pickled and printed, before and after they were used."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import parnl
from parnl import cells, ops
from parnl.params import uniform, vector

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "pickle protocol 2": lambda x: pickle.loads(pickle.dumps(x, 2)),
    "cloudpickle": lambda x: _by_cloudpickle(x),
    "joblib": lambda x: _by_joblib(x),
}


def _by_cloudpickle(x):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(x))


def _by_joblib(x):
    joblib, file = pytest.importorskip("joblib"), io.BytesIO()
    joblib.dump(x, file)
    return joblib.load(io.BytesIO(file.getvalue()))


def used(cell):
    """Return the outputs of a solve, by whatever kernels there are, from fixed numbers."""
    inputs = np.random.default_rng(0).normal(size=(2, 40, cell.input_size))
    return parnl.solve(cell, cell.init(0, dtype="float64"), inputs, chunks=4).outputs


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", cells.__all__)
def test_a_copy_equals_the_cell_and_shares_its_program(name, way):
    cell = parnl.get_cell(name, 4, 4)
    expected = used(cell)
    other = WAYS[way](cell)
    assert other == cell
    assert hash(other) == hash(cell)
    assert other.program is cell.program
    assert other.program.masked is cell.program.masked
    assert list(other.parameter_shapes) == list(cell.parameter_shapes)
    np.testing.assert_array_equal(used(other), expected)


class Scaled(parnl.Cell):
    """Options and attributes of its own, and a start that pickle cannot carry."""

    options = {"scale": 0.5}

    def __init__(self, input_size, hidden_size, **options):
        super().__init__(input_size, hidden_size, **options)
        self.note = ("set", "later")

    @property
    def parameters(self):
        return {"a": vector("hidden", lambda rng, shape: rng.normal(self.scale, 0.1, shape))}

    def features(self, p, u):
        return {"x": u.sum(-1)[..., None]}

    def step(self, p, x, f):
        return ops.tanh(self.scale * p.a * x + f.x)


@pytest.mark.parametrize("way", WAYS)
def test_options_and_attributes_are_copied(way):
    cell = Scaled(2, 3, scale=0.25)
    other = WAYS[way](cell)
    assert other == cell != Scaled(2, 3)
    assert other.scale == 0.25
    assert other.note == ("set", "later")
    np.testing.assert_array_equal(other.init(3)["a"], cell.init(3)["a"])
    np.testing.assert_array_equal(used(other), used(cell))


def test_copies_do_not_share_what_may_change():
    cell = Scaled(2, 3)
    cell.note = ["mine"]
    copy.deepcopy(cell).note.append("yours")
    assert cell.note == ["mine"]


def test_a_local_class_goes_where_pickle_lets_it():
    class Local(Scaled):
        parameters = {"a": vector("hidden", uniform(0.0, 1.0))}

    cell = Local(2, 3)
    for way in ("copy", "deepcopy", "cloudpickle"):
        assert WAYS[way](cell) == cell
    with pytest.raises((AttributeError, pickle.PicklingError), match="Local"):
        pickle.dumps(cell)


OF_MAIN = """
import pickle, sys, numpy as np, parnl
from multiprocessing import get_context
from parnl import ops
from parnl.params import vector

@parnl.register("of-main")
class OfMain(parnl.Cell):
    parameters = {"a": vector("hidden", lambda rng, shape: rng.normal(size=shape))}
    def features(self, p, u): return {"x": u}
    def step(self, p, x, f): return ops.tanh(p.a * x + f.x)

def run(cell):
    u = np.linspace(-1, 1, 40).reshape(2, 10, 2)
    return parnl.solve(cell, cell.init(0, dtype="float64"), u, chunks=2).outputs

if __name__ == "__main__":
    cells = [OfMain(2, 2), parnl.get_cell("lstm", 2, 3), parnl.get_cell("lrc", 2, 3, dt=0.5)]
    expected = [run(c) for c in cells]
    with get_context("spawn").Pool(1) as pool:
        for a, e in zip(pool.map(run, cells), expected, strict=True):
            np.testing.assert_array_equal(a, e)
    print("equal")
"""


def test_other_processes_take_used_cells(tmp_path):
    """By `multiprocessing` that spawns, also those of a class of the main program."""
    path = Path(tmp_path, "program.py")
    path.write_text(OF_MAIN)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "equal", done.stderr


def test_repr_tells_name_sizes_and_options():
    cell = parnl.get_cell("lrc", 6, 64)
    shown = repr(cell)
    assert shown.startswith("LRC(input_size=6, hidden_size=64, dt=1.0, symmetric=False")
    assert eval(shown, {"LRC": type(cell)}) == cell
    assert repr(parnl.get_cell("gru", 1, 2)) == "GRU(input_size=1, hidden_size=2)"
    assert repr(Scaled(1, 2, scale=2.0)) == "Scaled(input_size=1, hidden_size=2, scale=2.0)"


@pytest.mark.parametrize("name", cells.__all__)
def test_repr_makes_an_equal_cell(name):
    cell = parnl.get_cell(name, 4, 4)
    assert eval(repr(cell), {type(cell).__name__: type(cell)}) == cell
