"""The cache of compiled kernels is bounded and can be emptied, beside other processes."""

import ctypes
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from parnl import kernel_cache
from parnl.backends.c import build

HOUR = 3600.0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of its own, for this process and its children."""
    path = tmp_path / "cache"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("PARNL_CACHE", str(path))
    return path


def fill(folder, ages, size=1000):
    """Make a kernel of each age, in hours; return their names."""
    names = [f"{i:040x}-{i:016x}.so" for i in range(len(ages))]
    for name, age in zip(names, ages, strict=True):
        (folder / name).write_bytes(b"\0" * size)
        then = time.time() - HOUR * age
        os.utime(folder / name, (then, then))
    return names


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(("count", "size"), [(8, 10**9), (10**9, 8000)])
def test_the_least_recently_used_go_first(folder, monkeypatch, count, size):
    monkeypatch.setattr(kernel_cache, "MOST_KERNELS", count)
    monkeypatch.setattr(kernel_cache, "MOST_BYTES", size)
    ages = random.Random(0).sample(range(2, 50), 8)
    made = fill(folder, ages)
    kernel_cache.prune(folder)
    assert names(folder) == set(made)  # not beyond its bounds
    extra = "f" * 40 + "-" + "f" * 16 + ".so"
    (folder / extra).write_bytes(b"\0" * 1000)
    kernel_cache.prune(folder)
    youngest = sorted(zip(ages, made, strict=True))[:5]
    assert names(folder) == {extra, *(name for _, name in youngest)}  # three quarters of 8


def test_only_what_parnl_has_written_is_removed(folder, monkeypatch):
    monkeypatch.setattr(kernel_cache, "MOST_KERNELS", 0)
    fill(folder, [5, 6])
    others = {"notes.txt", "mine.so", "a" * 40 + ".so", "tmp123.so", "x" + "0" * 40 + "-1.so"}
    for name in others:
        (folder / name).write_text("of the user")
        os.utime(folder / name, (0, 0))
    kernel_cache.prune(folder)
    assert names(folder) == others
    assert kernel_cache.clear(folder) == []
    assert names(folder) == others


def test_what_a_killed_build_left_goes_when_it_is_old(folder):
    old, young = (folder / f"{kernel_cache.TEMPORARY}{name}.so" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * HOUR,) * 2)
    assert kernel_cache.kernels(folder) == []
    kernel_cache.prune(folder)
    assert names(folder) == {young.name}
    os.utime(young, (time.time() - 2 * HOUR,) * 2)
    kernel_cache.clear(folder)
    assert not names(folder)


def test_use_is_noted_once_an_hour(folder):
    path = folder / fill(folder, [0.5])[0]
    before = path.stat().st_mtime_ns
    kernel_cache.mark_used(path)
    assert path.stat().st_mtime_ns == before
    os.utime(path, (0, 0))
    kernel_cache.mark_used(path)
    assert abs(path.stat().st_mtime - time.time()) < 60
    os.utime(path, (time.time() + 9 * HOUR,) * 2)  # by a clock that was wrong
    kernel_cache.mark_used(path)
    assert abs(path.stat().st_mtime - time.time()) < 60
    kernel_cache.mark_used(folder / "gone.so")


def test_one_of_many_builds_prunes(folder, monkeypatch):
    pruned = []
    monkeypatch.setattr(kernel_cache, "prune", pruned.append)
    for _ in range(3):
        kernel_cache.prune_sometimes(folder)
    assert pruned == [folder]
    note = folder / "last-pruned"
    for then in (time.time() - HOUR, time.time() + HOUR):  # long ago; by a clock that was wrong
        os.utime(note, (then, then))
        kernel_cache.prune_sometimes(folder)
        kernel_cache.prune_sometimes(folder)
    assert pruned == [folder] * 3


def test_a_folder_that_is_not_there(tmp_path):
    missing = tmp_path / "missing"
    assert kernel_cache.kernels(missing) == kernel_cache.clear(missing) == []
    kernel_cache.prune_sometimes(missing)
    assert not missing.exists()


USED = """
from parnl import kernel_cache
from parnl.backends.c import build
kernel_cache.MOST_KERNELS = 3
TEXT = '#include <stdint.h>\\nvoid kernel(int64_t *a) { *a = NUMBER; }\\n'
"""

LOAD = f"""{USED}
import ctypes
assert build.load(TEXT.replace("NUMBER", "7"))
"""


def test_a_kernel_that_is_loaded_counts_as_used_and_survives(folder):
    """The one that was made first is used; a process that builds prunes the others."""
    run = [sys.executable, "-W", "error", "-c"]
    subprocess.run([*run, LOAD], check=True)
    (used,) = (k.path for k in kernel_cache.kernels(folder))
    os.utime(used, (time.time() - 99 * HOUR,) * 2)
    fill(folder, [9, 8, 7, 6])
    os.utime(folder / "last-pruned", (0, 0))
    build = LOAD + "assert build.load(TEXT.replace('NUMBER', '8'))"
    subprocess.run([*run, build], check=True)
    assert used in [k.path for k in kernel_cache.kernels(folder)]
    assert len(kernel_cache.kernels(folder)) == 2


def answers(number):
    """Load a kernel that answers `number` as a new process would, and ask it."""
    text = f"#include <stdint.h>\nvoid kernel(int64_t *a) {{ *a = {number}; }}\n"
    build._library.cache_clear()
    place = ctypes.c_int64()
    build.load(text)(ctypes.addressof(place))
    return place.value == number


def test_a_kernel_that_another_process_removes_as_soon_as_it_has_its_name(folder, monkeypatch):
    def replace_and_remove(path, target):
        os.replace(path, target)
        os.unlink(target)

    monkeypatch.setattr(Path, "replace", replace_and_remove)
    assert answers(11)  # a warning would be an error
    assert not kernel_cache.kernels(folder)


def test_a_kernel_that_another_process_removes_before_it_is_loaded(folder, monkeypatch):
    assert answers(12)
    (kernel,) = kernel_cache.kernels(folder)
    original = build._named

    def named(name, path):
        found = original(name, path)
        if path == kernel.path:
            path.unlink()
            monkeypatch.setattr(build, "_named", original)
        return found

    monkeypatch.setattr(build, "_named", named)
    assert answers(12)
    assert [k.path for k in kernel_cache.kernels(folder)] == [kernel.path]  # built again


# Processes that want the same nine kernels in orders of their own, forget them and want them again,
# while each of them prunes and clears the folder. Nothing is remembered in a process but what is
# loaded.
BESIDE = f"""{USED}
import ctypes, random, sys, threading, time
draw = random.Random(int(sys.argv[1]))
folder, _ = kernel_cache.folder()
done = threading.Event()

def remove():
    while not done.is_set():
        draw_of_thread.choice([kernel_cache.prune, kernel_cache.clear])(folder)
        time.sleep(0.01)

draw_of_thread = random.Random(99 + int(sys.argv[1]))
remover = threading.Thread(target=remove)
remover.start()
loaded, place = [], ctypes.c_int64()
try:
    for _ in range(25):
        number = draw.randrange(9)
        build._library.cache_clear()
        loaded.append((number, build.load(TEXT.replace("NUMBER", str(number)))))
        for expected, function in loaded:
            function(ctypes.addressof(place))
            assert place.value == expected, (place.value, expected)
finally:
    done.set()
    remover.join()
print("done")
"""


@pytest.mark.long
def test_processes_that_build_load_and_remove_at_once(folder):
    many = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", BESIDE, str(seed)],
            env={**os.environ, "PARNL_KERNELS": "c"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for process in many:
        out, err = process.communicate(timeout=300)
        assert (out, err, process.returncode) == ("done\n", "", 0), err
    assert not [name for name in names(folder) if name.startswith("tmp")]
