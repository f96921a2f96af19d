"""Files larger than memory: read block by block, and as exact as in memory."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from toy_runs import SMALL

from parnl.learn import data, readers, training
from parnl.learn.readers import mapped

SLOW = pytest.mark.skipif("PARNL_EVERY" not in os.environ, reason="reads for 20 s")
RNG = np.random.default_rng(0)


@pytest.fixture
def file(tmp_path):
    values = RNG.normal(3, 2, size=(40, 30, 3)).astype(np.float32)
    values[7, 3, 1] = np.nan
    np.savez(tmp_path / "a.npz", X=values, y=np.arange(40) % 2)
    return tmp_path / "a.npz"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(mapped, "MAPPED_FROM", 1000)
    monkeypatch.setattr(mapped, "BLOCK", 500)  # some six series


@pytest.mark.parametrize("missing", ["interpolate", "mask", "mean"])
def test_mapped_sets_are_those_in_memory(file, missing, request):
    expected = data.load(str(file), missing=missing)
    request.getfixturevalue("small")
    found = data.load(str(file), missing=missing)
    np.testing.assert_allclose(found.preparation.mean, expected.preparation.mean, rtol=1e-12)
    np.testing.assert_allclose(
        found.preparation.deviation, expected.preparation.deviation, rtol=1e-12
    )
    rows = np.array([5, 0, 5])
    for size in (1, 4):
        for part, other in zip(data.patched(found, size)[2:5], data.patched(expected, size)[2:5],
                               strict=True):  # fmt: skip
            assert not isinstance(part.inputs, np.ndarray)
            assert part.inputs.shape == other.inputs.shape
            assert len(part.inputs) == len(other.inputs)
            np.testing.assert_allclose(part.inputs[rows], other.inputs[rows], atol=1e-6)
            np.testing.assert_allclose(part.inputs[:3], other.inputs[:3], atol=1e-6)
            np.testing.assert_array_equal(part.labels, other.labels)
    assert "series are read as needed" in found.notes[0]


def test_blocks_are_small(file, small):
    series = readers.read(file).series
    sizes = [(len(rows), len(steps)) for rows, steps in mapped.blocks(series, np.arange(3, 40))]
    assert len(sizes) > 5
    assert sum(count for count, _ in sizes) == 37
    assert all(steps == 30 * count <= 240 for count, steps in sizes)


@pytest.mark.parametrize("backend", ["torch"])
def test_a_mapped_set_trains(file, small, tmp_path, backend):
    config = replace(SMALL, data=str(file), epochs=1, backend=backend)
    dataset = training.dataset_of(config)
    result = training.fit(config, dataset, tmp_path / "run")
    assert np.isfinite(result.best["validation_loss"])


def test_values_are_checked_where_they_are_read(file, small):
    with np.load(file) as held:
        arrays = dict(held)
    for i in (0, 39):
        values = arrays["X"].copy()
        values[:, 2, 1] = np.where(np.arange(40) == i, np.inf, values[:, 2, 1])
        np.savez(file, X=values, y=arrays["y"], val_0=[38], test_0=[39])
        message = f"series {i}, step 2, channel 1: got inf, expected a finite number"
        with pytest.raises(ValueError, match=message):
            data.load(str(file)).test.inputs[[0]]


LARGE = """
import sys
import numpy as np
from parnl.learn import data
count = int(sys.argv[3])
shape = (count, 4096, 1024)                               # 32 MiB each; few pages are written
array = np.lib.format.open_memmap(sys.argv[1], "w+", np.float64, shape)
rng = np.random.default_rng(0)
for i in range(0, count, 8):
    array[i, ::64] = rng.normal(size=(64, 1024))
del array
np.save(sys.argv[2], np.arange(count) // 8 % 2)
dataset = data.load(sys.argv[1], label=sys.argv[2])
order = rng.permutation(len(dataset.train.labels))
for rows in (order[:4], order[4:8], order[8:12]):
    batch = dataset.train.inputs[rows]
    assert batch.shape == (4, 4096, 1024) and np.isfinite(batch).all()
# the most of this program alone: ru_maxrss begins with that of the program that started it
(most,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(most.split()[1]) / 2**20)
print(*dataset.preparation.deviation[:2])
"""


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what it took")
@pytest.mark.parametrize(
    ("count", "size", "limit"), [(32, 1, 0.8), pytest.param(128, 4, 0.8, marks=SLOW)]
)
def test_a_large_set_takes_little_memory(tmp_path, count, size, limit):
    """Sizes in GiB. Half a GiB was measured for both, most of it Python's libraries and batches."""
    path = tmp_path / "large.npy"
    command = [sys.executable, "-c", LARGE, path, tmp_path / "y.npy", str(count)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, *deviations = map(float, done.stdout.split())
    assert path.stat().st_size > size * 2**30
    path.unlink()
    assert peak < limit
    assert all(0.01 < one < 0.1 for one in deviations)  # 1 value in 512 is not 0
