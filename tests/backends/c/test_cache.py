"""The cache of compiled kernels: filled once, and right when processes die, bytes rot, and nothing
can be written.
"""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import NO_CACHE, NO_KERNELS, SOLVE, run

from parnl.backends.c import build


@pytest.fixture(scope="module")
def answers():
    """What the child prints, compiled and composed."""
    return {kernels: run(SOLVE, PARNL_KERNELS=kernels).stdout for kernels in ("c", "off")}


def libraries(folder):
    """The files that a later process would trust."""
    return [f for f in folder.glob("*.so") if not f.name.startswith("tmp")]


def whole(path):
    return path.name == build._named(path.name.partition("-")[0], path)


def shortened(share):
    return lambda content: content[: int(share * len(content))]


def flipped(content):
    changed = bytearray(content)
    for at in range(0x1000, len(changed), 64):  # in what is executed
        changed[at] ^= 0x55
    return bytes(changed)


@pytest.mark.long
def test_a_library_that_was_cut_short_or_changed_is_built_again(tmp_path, answers):
    folder = tmp_path / "cache"
    assert run(SOLVE, PARNL_CACHE=str(folder)).stdout == answers["c"]
    files = {f.name: f.read_bytes() for f in libraries(folder)}
    changes = [shortened(0.0), lambda content: b"not a library", lambda content: content[:300]]
    for damage in (*changes, shortened(0.5), flipped, lambda content: content + b"\0"):
        for file in libraries(folder):
            file.write_bytes(damage(file.read_bytes()))
        done = run(SOLVE, PARNL_CACHE=str(folder))
        assert (done.returncode, done.stdout, done.stderr) == (0, answers["c"], "")
        assert {f.name: f.read_bytes() for f in libraries(folder)} == files


SLOW = """#!/bin/sh
# a compiler that has written half of its output when it is killed
[ "$1" = --version ] && exec cc --version
while [ "$1" != -o ]; do shift; done
head -c 3000 /bin/sh > "$2"
touch started
sleep 60
"""


@pytest.mark.long
def test_a_process_killed_while_it_compiles_leaves_nothing_to_trust(tmp_path, answers):
    compiler, folder = tmp_path / "slow", tmp_path / "cache"
    compiler.write_text(SLOW)
    compiler.chmod(0o755)
    environment = {**os.environ, "PARNL_CACHE": str(folder), "PARNL_KERNELS": ""}
    killed = subprocess.Popen(
        [sys.executable, "-c", SOLVE],
        env={**environment, "CC": str(compiler)},
        cwd=tmp_path,
        start_new_session=True,
    )
    while not (tmp_path / "started").exists():
        assert killed.poll() is None
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert [f.stat().st_size for f in folder.glob("tmp*.so")] == [
        3000
    ]  # half written, under no name
    assert not libraries(folder)
    # and with the system's compiler, at whatever moment
    for delay in (0.0, 0.03, 0.1):
        before = set(folder.iterdir())
        killed = subprocess.Popen(
            [sys.executable, "-c", SOLVE], env=environment, start_new_session=True
        )
        while set(folder.iterdir()) == before and killed.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert all(whole(f) for f in libraries(folder))
    done = run(SOLVE, PARNL_CACHE=str(folder))
    assert (done.returncode, done.stdout, done.stderr) == (0, answers["c"], "")


def check_unkept(done, answers, places=()):
    """Compiled for this process alone, said once, nothing left behind."""
    assert done.returncode == 0, done.stderr
    assert done.stdout == answers["c"]
    assert done.stderr.count(NO_CACHE) == 1, done.stderr
    assert NO_KERNELS not in done.stderr
    for folder in places:
        assert not list(folder.iterdir())


@pytest.mark.long
def test_the_cache_is_private_and_used_again(tmp_path, answers):
    folder = tmp_path / "cache"
    assert run(SOLVE, PARNL_CACHE=str(folder)).stdout == answers["c"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {f.name: f.stat().st_mtime_ns for f in folder.iterdir()}
    assert len(libraries(folder)) >= 3
    assert run(SOLVE, PARNL_CACHE=str(folder)).stdout == answers["c"]
    assert {f.name: f.stat().st_mtime_ns for f in folder.iterdir()} == before


@pytest.mark.long
def test_several_processes_build_at_once(tmp_path):
    environment = {**os.environ, "PARNL_KERNELS": "c", "PARNL_CACHE": str(tmp_path / "cache")}
    many = [
        subprocess.Popen([sys.executable, "-c", SOLVE], env=environment, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    results = {process.communicate()[0] for process in many}
    assert len(results) == 1
    assert all(process.returncode == 0 for process in many)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.name.startswith("tmp")]


def test_a_folder_others_may_write_is_not_trusted(tmp_path, answers):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o777)
    check_unkept(run(SOLVE, PARNL_CACHE=str(folder)), answers, [folder])


@pytest.mark.long
def test_a_cache_that_cannot_be_made(tmp_path, answers):
    """Under a file, there is no folder even for root."""
    (tmp_path / "file").write_bytes(b"")
    own = tmp_path / "temporary"
    own.mkdir()
    for where in (tmp_path / "file" / "cache", Path("/dev/null")):
        done = run(SOLVE, PARNL_CACHE=str(where), TMPDIR=str(own))
        check_unkept(done, answers, [own])


def test_a_user_without_a_home(tmp_path, answers):
    text = "import pwd\ndef none(uid): raise KeyError\npwd.getpwuid = none\nimport os\n"
    text += "for name in ('HOME', 'XDG_CACHE_HOME', 'PARNL_CACHE'): os.environ.pop(name, None)\n"
    check_unkept(run(text + SOLVE), answers)


def mounted(script, *arguments):
    """A command that runs `script` where it may mount, in a namespace of its own."""
    probe = ["unshare", "--mount", "true"]
    if sys.platform != "linux" or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no right to mount in a namespace of its own")
    return ["unshare", "--mount", "sh", "-ec", f'{script}\nexec "$@"', "sh", *arguments]


def run_mounted(script, **environment):
    return subprocess.run(
        mounted(script, sys.executable, "-W", "always", "-c", SOLVE),
        env={**os.environ, "PARNL_KERNELS": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_a_cache_that_is_mounted_to_be_read_only(tmp_path, answers):
    folder, own = tmp_path / "cache", tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    own.mkdir()
    script = f"mount --bind {folder} {folder}; mount -o remount,ro,bind {folder}"
    where = {"PARNL_CACHE": str(folder), "TMPDIR": str(own)}
    check_unkept(run_mounted(script, **where), answers, [folder, own])
    # filled beforehand, it serves as it is
    run(SOLVE, PARNL_CACHE=str(folder))
    done = run_mounted(script, **where)
    assert (done.returncode, done.stdout, done.stderr) == (0, answers["c"], "")
    # what is damaged in it cannot be replaced, and is not used
    for file in libraries(folder):
        file.write_bytes(flipped(file.read_bytes()))
    check_unkept(run_mounted(script, **where), answers, [own])


@pytest.mark.long
@pytest.mark.parametrize("room", ["4k", "20k"])
def test_a_full_disk_under_the_cache(tmp_path, answers, room):
    """Room for nothing; and for the small library that is tried first, not for a kernel."""
    folder = tmp_path / "cache"
    folder.mkdir()
    script = f"mount -t tmpfs -o size={room},mode=700 none {folder}"
    check_unkept(run_mounted(script, PARNL_CACHE=str(folder)), answers)


@pytest.mark.long
def test_a_cache_where_nothing_may_be_executed(tmp_path, answers):
    folder = tmp_path / "cache"
    folder.mkdir()
    script = f"mount -t tmpfs -o noexec,mode=700 none {folder}"
    done = run_mounted(script, PARNL_CACHE=str(folder))
    check_unkept(done, answers)
    assert f"nothing in {folder} may be executed, for it is mounted noexec" in done.stderr


LIMIT = """
import os, resource, signal, sys, numpy as np, parnl
backend, limit = sys.argv[1:]
if backend == "torch":
    import torch
if backend == "jax":
    import jax
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
cell = parnl.get_cell("gru", 2, 5)
u = np.random.default_rng(0).normal(size=(2, 64, 2))

def answer():
    if backend == "numpy":
        return [parnl.solve(cell, cell.init(0, dtype="float64"), u, chunks=4).outputs]
    if backend == "torch":
        params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", "float64").items()}
        outputs = parnl.solve(cell, params, torch.tensor(u), chunks=4).outputs
        return torch.autograd.grad(outputs.square().sum(), list(params.values()))
    jax.clear_caches()
    loss = lambda p: (parnl.solve(cell, p, jax.numpy.array(u), chunks=4).outputs ** 2).sum()
    return jax.tree.leaves(jax.grad(loss)(cell.init(0, "jax", "float64")))

found = answer()
os.environ["PARNL_KERNELS"] = "off"
for one, expected in zip(found, answer()):
    np.testing.assert_allclose(one, expected, rtol=0, atol=1e-12)
os.environ["PARNL_KERNELS"] = "c"
try:
    answer()
except RuntimeError as error:
    print(type(error).__name__)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("backend", "limit"), [("numpy", 4_000), ("numpy", 17_000), ("torch", 17_000), ("jax", 17_000)]
)
def test_where_no_file_can_be_written_operations_are_composed(tmp_path, backend, limit):
    """A limit on the size of files is a full disk everywhere; the larger one lets the small library
    through that is tried first, and no kernel.
    """
    text = f"import sys; sys.argv += ['{backend}', '{limit}']\n{LIMIT}"
    where = {"PARNL_CACHE": str(tmp_path / "cache"), "JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    done = run(text, **where)
    assert done.stdout == "BuildError\n", done.stderr
    assert done.stderr.count(NO_KERNELS) == 1, done.stderr
    assert all(whole(f) for f in libraries(tmp_path / "cache"))
