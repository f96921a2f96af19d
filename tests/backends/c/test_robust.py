"""The same bits for any number of threads; solves beside each other and after a fork.

What is shared with `test_compiled` is there. PyTorch's own float32 matmul gives other bits for
another number of threads, and so do its elementwise functions on large arrays: features, and the
gradients of matrices, are its own. What is tested is what parnl computes from features.
"""

import sys
import threading

import numpy as np
import pytest
import torch
from children import run

import parnl
from parnl.frameworks import get_backend
from parnl.graph.nodes import Graph
from parnl.solver.newton import Plan

# -- threads of a kernel --------------------------------------------------------------------------


def recurrence(cell, batch, steps, dtype):
    """Operands, initial states, and cotangents of the states."""
    rng = np.random.default_rng(0)
    drawn, operands = cell.init(0, dtype="float64"), []
    for kind, name in cell.program.operands:
        if kind == "parameter":
            operands.append(drawn[name][None, None])
        else:
            operands.append(
                np.ones((1, 1, 1))
                if kind == "dt"
                else rng.normal(size=(batch, steps, cell.hidden_size))
            )
    states = [rng.normal(size=(batch, cell.hidden_size)) for _ in cell.states]
    weights = [rng.normal(size=(batch, steps, cell.hidden_size)) for _ in cell.states]
    return [[torch.tensor(a, dtype=dtype) for a in group] for group in (operands, states, weights)]


# (batch, steps, channels, chunks): lanes are grouped in another way for another number of threads
SHAPES = [(3, 30, 24, 6), (9, 30, 8, 4), (2, 30, 33, 1), (1, 64, 2, 16)]


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["c", "off"])
@pytest.mark.parametrize("name", ["lstm", "lrc", "ltc", "unicornn"])
def test_torch_gives_the_same_bits_for_any_number_of_threads(monkeypatch, name, kernels):
    monkeypatch.setenv("PARNL_KERNELS", kernels)
    dtype = torch.float32 if name in ("lstm", "lrc") else torch.float64
    before = torch.get_num_threads()
    try:
        for batch, steps, channels, chunks in SHAPES if kernels == "c" else SHAPES[:2]:
            cell = parnl.get_cell(name, 3, channels)
            operands, x0, weights = recurrence(cell, batch, steps, dtype)
            plan = Plan.make(steps, chunks, float(torch.finfo(dtype).eps))
            results = []
            for threads in (1, 2, 3, 4) if kernels == "c" else (1, 3):
                torch.set_num_threads(threads)
                arrays = [a.clone().requires_grad_() for a in (*operands, *x0)]
                given = arrays[: len(operands)], arrays[len(operands) :]
                states, _ = get_backend("torch").solve(cell.program, plan, *given)
                grads = torch.autograd.grad(states, arrays, weights)
                results.append([*states, *grads])
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


NUMPY = """
import hashlib, numpy as np, parnl
for name, channels, batch in (("gru", 24, 3), ("lstm", 33, 2), ("lem", 8, 9), ("ltc", 2, 1)):
    cell = parnl.get_cell(name, 3, channels)
    u = np.random.default_rng(0).normal(size=(batch, 200, 3)).astype("float32")
    for chunks in (1, 8):
        out = parnl.solve(cell, cell.init(0), u, chunks=chunks)
        print(name, chunks, hashlib.sha256(out.outputs.tobytes()).hexdigest())
"""

JAX = """
import hashlib, jax, numpy as np, parnl
cell = parnl.get_cell("lstm", 3, 24)
u = jax.numpy.array(np.random.default_rng(0).normal(size=(3, 200, 3)).astype("float32"))
loss = lambda p, u: (parnl.solve(cell, p, u, chunks=8).outputs ** 2).sum()
found = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(cell.init(0, "jax"), u)
print(hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(found))).hexdigest())
"""


@pytest.mark.long
@pytest.mark.parametrize("text", [NUMPY, JAX], ids=["numpy", "jax"])
def test_numpy_and_jax_give_the_same_bits_for_any_number_of_threads(text):
    found = {}
    for threads in ("1", "3") if text is JAX else ("1", "2", "4"):
        done = run(text, OMP_NUM_THREADS=threads, PARNL_KERNELS="c")
        assert done.returncode == 0, done.stderr
        found[threads] = done.stdout
    assert len(set(found.values())) == 1, found


def test_the_number_of_chunks_is_all_that_auto_takes_from_the_number_of_threads(monkeypatch):
    """More threads, more chunks, other last bits: whoever wants the same bits gives `chunks`."""
    monkeypatch.setenv("PARNL_KERNELS", "c")
    cell = parnl.get_cell("gru", 3, 2)
    params, u = cell.init(0), np.random.default_rng(0).normal(size=(1, 1 << 18, 3))
    counts = set()
    for threads in (1, 4):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        automatic = parnl.solve(cell, params, u)
        counts.add(automatic.info.chunks)
        for same in (1, 3):
            monkeypatch.setenv("OMP_NUM_THREADS", str(same))
            given = parnl.solve(cell, params, u, chunks=automatic.info.chunks)
            assert given.outputs.tobytes() == automatic.outputs.tobytes()
    assert len(counts) == 2


# -- threads of Python ----------------------------------------------------------------------------

RACE = """
import sys, threading, numpy as np, torch, parnl
from parnl import ops
from parnl.params import matrix, vector
sys.setswitchinterval(1e-6)
torch.set_num_threads(1)

class Made(parnl.Cell):
    states = ("a", "b", "c")
    parameters = {"W": matrix("input", "hidden"), "p": vector("hidden"), "q": vector("hidden")}
    options = {"shift": 0.0}
    def features(self, p, u):
        return {"u": u @ p.W}
    def step(self, p, a, b, c, f):
        x = ops.tanh(p.p * a + f.u + self.shift)
        y = ops.sigmoid(p.q * b - x) * ops.sin(x * c)
        return 0.5 * a + x * y, ops.tanh(b * x + y), ops.softplus(c - x) * y

def answer(cell):
    u = torch.tensor(np.random.default_rng(0).normal(size=(2, 60, 3)))
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", "float64").items()}
    outputs = parnl.solve(cell, params, u, chunks=5).outputs
    return [outputs, *torch.autograd.grad(outputs.square().sum(), list(params.values()))]

# one cell in four threads, and cells of their own in two others, all used for the first time
shared = Made(3, 17)
cells = [shared] * 4 + [Made(3, 17, shift=0.1 * i) for i in range(1, 3)]
found, start = [None] * len(cells), threading.Barrier(len(cells))

def work(i):
    start.wait()
    found[i] = answer(cells[i])

threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cells))]
for thread in threads: thread.start()
for thread in threads: thread.join()
for cell in set(cells):
    order = [node.index for node in cell.program.graph.nodes]
    assert order == list(range(len(order))), "two nodes of one graph have the same number"
for cell, one in zip(cells, found):
    assert one is not None
    again = answer(Made(3, 17, shift=cell.shift))
    assert all(torch.equal(a, b) for a, b in zip(one, again))
print("done")
"""


def test_a_graph_that_grows_in_several_threads():
    """Threads that ask for nodes at once must not get one number for different ones."""
    before, graph = sys.getswitchinterval(), Graph()
    x, start = graph.leaf("state", "x"), threading.Barrier(8)

    def grow(own):
        start.wait()
        y = x
        for i in range(1000):
            y = graph.apply("tanh", y * float(i) + own)

    threads = [threading.Thread(target=grow, args=(0.5 * i,)) for i in range(1, 9)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert [node.index for node in graph.nodes] == list(range(len(graph.nodes)))
    assert all(a.index < node.index for node in graph.nodes for a in node.args)


@pytest.mark.long
@pytest.mark.parametrize("kernels", ["c", "off"])
def test_threads_that_use_cells_for_the_first_time_at_once(tmp_path, kernels):
    done = run(RACE, PARNL_KERNELS=kernels, PARNL_CACHE=str(tmp_path / "cache"))
    assert done.stdout == "done\n", done.stderr


JAX_RACE = """
import sys, threading, jax, numpy as np, parnl
sys.setswitchinterval(1e-6)
cell = parnl.get_cell("mgu", 3, 9)
params, u = cell.init(0, "jax"), jax.numpy.ones((2, 50, 3))
found, start = [None] * 4, threading.Barrier(4)

def work(i):
    start.wait()
    found[i] = jax.jit(lambda p: parnl.solve(cell, p, u, chunks=5).outputs)(params)

threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert all((np.asarray(x) == np.asarray(found[0])).all() for x in found)
print("done")
"""


@pytest.mark.long
def test_threads_that_trace_in_jax_at_once(tmp_path):
    done = run(JAX_RACE, PARNL_KERNELS="c", PARNL_CACHE=str(tmp_path / "cache"))
    assert done.stdout == "done\n", done.stderr


# -- fork -----------------------------------------------------------------------------------------

FORK = """
import os, signal, sys, threading, time, warnings, numpy as np, torch, parnl
warnings.simplefilter("ignore")  # Python's own of a fork beside threads
threads = int(sys.argv[1]) if len(sys.argv) > 1 else 2
torch.set_num_threads(threads)

def answer(name, backend):
    cell = parnl.get_cell(name, 3, 40)
    u = np.random.default_rng(0).normal(size=(4, 400, 3))
    if backend == "numpy":
        return [parnl.solve(cell, cell.init(0, dtype="float64"), u, chunks=8).outputs]
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch", "float64").items()}
    outputs = parnl.solve(cell, params, torch.tensor(u), chunks=8).outputs
    grads = torch.autograd.grad(outputs.square().sum(), [params["a_n"], params["b_n"]])
    return [outputs.detach().numpy(), *(g.numpy() for g in grads)]

USED = [("gru", "numpy")] + ([("gru", "torch")] if threads == 1 else [])
expected = {key: answer(*key) for key in USED}
going = True

def work():
    while going:
        for key in USED:
            answer(*key)

beside = [threading.Thread(target=work) for _ in range(2)]
for thread in beside: thread.start()
statuses = []
for _ in range(4):
    time.sleep(0.02)
    child = os.fork()
    if not child:
        signal.alarm(60)  # a child that hangs is ended by it, and seen
        same = all(
            np.array_equal(a, b) for key in USED for a, b in zip(answer(*key), expected[key])
        )
        new = np.isfinite(answer("mgu", "numpy")[0]).all()  # first used after the fork
        os._exit(0 if same and new else 1)
    statuses.append(os.waitpid(child, 0)[1])
going = False
for thread in beside: thread.join()
assert not any(statuses), statuses
assert all(np.array_equal(a, b) for key in USED for a, b in zip(answer(*key), expected[key]))
print("done")
"""


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
def test_forks_while_other_threads_solve(tmp_path, threads):
    """With one thread, torch too: its own pool of threads does not survive a fork beside them."""
    text = f"import sys; sys.argv.append('{threads}')\n{FORK}"
    done = run(text, PARNL_KERNELS="c", OMP_NUM_THREADS="2", PARNL_CACHE=str(tmp_path / "cache"))
    assert done.stdout == "done\n", done.stderr
