"""How JAX reaches the C kernels: one custom call, which finds the kernel by its name."""

import os
import shutil
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from oracles import assert_close

import parnl
from parnl.backends.c import build
from parnl.backends.jax import ffi

compiler = shutil.which((os.environ.get("CC") or "cc").split()[0])
pytestmark = pytest.mark.skipif(compiler is None, reason="there is no C compiler")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_c_serves_jax(dtype, monkeypatch):
    """Where there is a C compiler, whatever the release of JAX: forward and backward, unwarned."""
    monkeypatch.delenv("PARNL_KERNELS", raising=False)
    jax.clear_caches()  # the choice of kernels is made when a function is traced
    task = oracles.problem("gru", steps=50, batch=(2,), n_in=3, hidden=8, dtype=dtype)
    params = {n: jnp.asarray(p) for n, p in task.params.items()}
    arguments = params, jnp.asarray(task.inputs), tuple(map(jnp.asarray, task.initial_state))

    def loss(params, u, x0):
        out = parnl.solve(task.cell, params, u, x0, chunks=4).outputs
        return (out**2).sum(), out

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(*arguments).compile()
        gradients, outputs = compiled(*arguments)
    called = [x for x in compiled.as_text().splitlines() if "custom-call(" in x and ffi.TARGET in x]
    kinds = len(called)
    assert kinds >= 4, "a trajectory and an advance forward, an adjoint and a backward one"
    single = dtype == "float32"
    expected = oracles.reference(task).outputs
    assert_close(outputs, expected, 1e-5 if single else 1e-10)

    def scan(params):
        return (oracles.scan_loop(task.cell, params, *arguments[1:])[0] ** 2).sum()

    for name, g in jax.grad(scan)(params).items():
        assert_close(gradients[name], g, 2e-4 if single else 1e-10, name)


def test_the_trampoline_compiles_without_a_warning(tmp_path):
    """Against the header of the jaxlib that is installed."""
    file = Path(ffi.__file__).with_name("trampoline.c")
    strict = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-I", jax.ffi.include_dir()]
    done = subprocess.run(
        [compiler, *strict, str(file), "-o", str(tmp_path / "trampoline.so")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# -- the table of kernels -------------------------------------------------------------------------

ANSWER = """
#include <stdint.h>
void kernel_on_pool(const int64_t *a, void *ask, const void *context) {
  (void)ask, (void)context;
  *(float *)a[0] = a[1];
}
"""


def called(name, number):
    """Call the kernel `name` of the text above: it returns the number."""
    call = jax.ffi.ffi_call(ffi.TARGET, [jax.ShapeDtypeStruct((), jnp.float32)])
    slots, table = np.array([-1, 0], np.int64), np.array([0, number], np.int64)
    return jax.jit(lambda: call(kernel=name, slots=slots, table=table)[0])()


def test_a_kernel_that_is_not_loaded_is_an_error_that_names_it():
    assert ffi.usable(np.dtype("float32"))
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        called("nobody", 1).block_until_ready()
    assert "parnl: kernel nobody is not loaded" in str(caught.value)
    assert "Call parnl.solve here with the same cell" in str(caught.value)


def test_threads_add_and_find_kernels_at_once():
    trampoline, library = ffi._trampoline(), build.library(ANSWER)
    assert trampoline is not None
    assert library is not None
    wrong = []

    def add_and_call(mine):
        for i in range(20):
            for other in range(100):  # most names share a list with others
                assert trampoline.add(f"{mine}-{i}-{other}".encode(), library.kernel_on_pool)
            found = float(called(f"{mine}-{i}-57", 100 * mine + i))
            wrong.extend([] if found == 100 * mine + i else [found])

    threads = [threading.Thread(target=add_and_call, args=(n,)) for n in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert all(float(called(f"{n}-{i}-99", 5)) == 5 for n in (1, 4) for i in (0, 19))


# -- programs that another process compiled -------------------------------------------------------

PROCESS = """
import pickle, sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np, parnl
from jax.experimental import serialize_executable

hits = []
jax.monitoring.register_event_listener(lambda e, **_: hits.append(e) if "cache_hit" in e else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

def solve(name):
    cell = parnl.get_cell(name, 2, 16)
    params, u = cell.init(0, "jax"), jnp.ones((2, 64, 2))
    run = jax.jit(lambda p, u: parnl.solve(cell, p, u, chunks=4).outputs)
    return run.lower(params, u).compile(), (params, u)

def told(run):
    try:
        return repr(float(run(params, u).sum()))
    except jax.errors.JaxRuntimeError as error:
        return str(error)

file = Path(sys.argv[1])
if not file.exists():
    compiled, (params, u) = solve("gru")
    file.write_bytes(pickle.dumps(serialize_executable.serialize(compiled)))
    print(told(compiled))
else:
    other, arguments = solve("mgu")
    other(*arguments)
    params, u = parnl.get_cell("gru", 2, 16).init(0, "jax"), jnp.ones((2, 64, 2))
    loaded = serialize_executable.deserialize_and_load(*pickle.loads(file.read_bytes()))
    print(told(loaded))  # this process has not built the kernels
    hits.clear()
    compiled, _ = solve("gru")
    print(len(hits))
    print(told(compiled))
    print(told(loaded))
"""


@pytest.mark.long
def test_programs_compiled_by_another_process(tmp_path):
    """From JAX's persistent cache they run; what was loaded as it is tells what it lacks."""

    def process(own_cache):
        environment = {
            **os.environ,
            "PARNL_KERNELS": "c",
            "PARNL_CACHE": str(tmp_path / own_cache),
            "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "shared"),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROCESS, str(tmp_path / "executable")],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    (first,) = process("first")
    refused, hits, found, again = process("second")  # which has none of the other's kernels
    assert "parnl: kernel " in refused
    assert "is not loaded" in refused
    assert int(hits) >= 1
    assert found == again == first
