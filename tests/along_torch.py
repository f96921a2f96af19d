"""Solves along processes that share the axis of time, against one process and float64 loops.

python tests/along_torch.py CASE,CASE 5,0,7      three processes of so many steps each
"""

import os
import sys
import tempfile
import time

import numpy as np
import oracles
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import parnl
from parnl.torch import RNN

# What each task asks for, beside a cell: every argument that has an axis of time, or none of it.
TASKS = (
    ("gru", {}),
    ("gru", {"reverse": True, "lengths": [17, 40]}),
    ("lstm", {"reverse": True, "resets": 0.1}),
    ("lrc", {"times": "own", "resets": 0.1, "lengths": [40, 5]}),
    ("lru", {"resets": 0.1}),
    ("s6", {"reverse": True}),
)


EVERY = "PARNL_EVERY" in os.environ


class Chaos(parnl.Cell):
    """The logistic map, which Newton makes nothing of."""

    def features(self, p, u):
        return dict(f=0.01 * u[..., :1])

    def step(self, p, x, f):
        return 3.9 * (x + 0.2) * (0.8 - x) - 0.2 + f.f**2


class Part:
    """What a process knows: its group, and which steps are its own."""

    def __init__(self, parts):
        self.group, self.rank, self.parts = dist.group.WORLD, dist.get_rank(), parts
        self.size, self.steps = len(parts), sum(parts)
        first = sum(parts[: self.rank])
        self.own = slice(first, first + parts[self.rank])

    def close(self, found, expected, tolerance, what):
        oracles.assert_close(found.detach().numpy(), expected, tolerance, f"{what} of {self.rank}")


def drawn(part, name, resets=None, **asked):
    """Return the task, of all steps."""
    if resets is not None:
        rng = np.random.default_rng(1)
        resets = rng.random((2, part.steps)) < resets
    return oracles.problem(name, steps=part.steps, batch=(2,), hidden=3, resets=resets, **asked)


def arguments(task, own=slice(None)):
    """Return what `solve` is given, float64 leaves, and those leaves; of the steps `own`."""

    def leaf(array):
        return torch.from_numpy(np.array(array)).requires_grad_()

    params = {n: leaf(p) for n, p in task.params.items()}
    inputs, state = leaf(task.inputs[:, own]), [leaf(s) for s in task.initial_state]
    given = {"reverse": task.reverse}
    leaves = {f"params.{n}": p for n, p in params.items()} | {"inputs": inputs}
    leaves |= {f"state.{i}": s for i, s in enumerate(state)}
    if task.dt is not None:
        given["dt"] = leaves["dt"] = leaf(task.dt[:, own])
    if task.lengths is not None:
        given["lengths"] = torch.from_numpy(task.lengths)
    if task.resets is not None:
        given["resets"] = torch.from_numpy(task.resets[:, own])
    return (task.cell, params, inputs, state), given, leaves


def gradients(part, task, out, leaves):
    """Return the gradients of the loss that is the sum of what the processes compute."""
    own = torch.from_numpy(task.weights[0][:, part.own])
    loss = (out.outputs * own).sum()
    for x, w in zip(out.final_state, task.weights[1:], strict=True):
        loss = loss + (x * torch.from_numpy(w)).sum() / part.size
    found = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for name, g in found.items():
        if name not in ("inputs", "dt"):  # of what all have
            dist.all_reduce(g)
    return found


def solves(part):
    """Outputs, states and gradients are those of the loop over all steps."""
    for i, (name, asked) in enumerate(TASKS):
        task = drawn(part, name, **asked)
        expected = oracles.reference(task)
        counts = [1, 2 * part.size, part.steps, None]
        for chunks in counts if EVERY else [counts[i % 4], counts[(i + 1) % 4]]:
            given, told, leaves = arguments(task, part.own)
            out = parnl.solve(*given, **told, chunks=chunks, check=True, time_axis=part.group)
            what = f"{name} {asked} in {chunks} chunks,"
            part.close(out.outputs, expected.outputs[:, part.own], 1e-12, f"{what} outputs")
            for found, x in zip(out.final_state, expected.final_state, strict=True):
                part.close(found, x, 1e-12, f"{what} final state")
            for leaf, found in gradients(part, task, out, leaves).items():
                wanted = expected.gradients[leaf]
                wanted = wanted[:, part.own] if leaf in ("inputs", "dt") else wanted
                part.close(found, wanted, 1e-9, f"{what} gradient of {leaf}")
            alike(out.info)


def alike(info):
    """All processes have found out the same."""
    mine = [float(x) for x in info]
    others = [None] * dist.get_world_size()
    dist.all_gather_object(others, mine)
    assert all(other == mine for other in others), others


def bits(part):
    """Where chunks fall alike, the bits are those of one process."""
    for name, asked in TASKS:
        task = drawn(part, name, **asked)
        for chunks in (1, part.size, 4 * part.size):
            given, told, _ = arguments(task, part.own)
            found = parnl.solve(*given, **told, chunks=chunks, time_axis=part.group)
            given, told, _ = arguments(task)
            whole = parnl.solve(*given, **told, chunks=chunks)
            what = f"{name} {asked} in {chunks} chunks"
            oracles.assert_bits(found.outputs.detach(), whole.outputs.detach()[:, part.own], what)
            for x, y in zip(found.final_state, whole.final_state, strict=True):
                oracles.assert_bits(x.detach(), y.detach(), what)
            assert found.info == whole.info, (what, found.info, whole.info)


def hostile(part):
    """The guess, giving up, a NaN, and a cell that has not converged."""
    rng = np.random.default_rng(0)
    cell = parnl.get_cell("gru", 2, 3)
    steps = 4096 * part.size
    inputs = torch.from_numpy(rng.normal(size=(2, steps, 2)))
    own = slice(4096 * part.rank, 4096 * (part.rank + 1))

    def both(params, inputs, **how):
        whole = parnl.solve(cell, params, inputs, **how)
        if "resets" in how:
            how["resets"] = how["resets"][own]
        return parnl.solve(cell, params, inputs[:, own], **how, time_axis=part.group), whole

    params = cell.init(0, "torch", "float64")
    for reverse in (False, True):
        found, whole = both(params, inputs, chunks=2 * part.size, reverse=reverse)
        oracles.assert_bits(found.outputs, whole.outputs[:, own], "guessed")
        assert int(found.info.iterations) == int(whole.info.iterations) == 0  # so they were

    cell = Chaos(2, 3)
    for reverse in (False, True):
        how = {"chunks": 16 * part.size, "reverse": reverse}
        found, whole = both({}, inputs, **how)
        loop = parnl.solve(cell, {}, inputs, method="sequential", reverse=reverse)
        assert int(found.info.sequential) == int(whole.info.sequential) == 6, found.info
        oracles.assert_bits(found.outputs, loop.outputs[:, own], "given up")
        found, whole = both({}, inputs, **how, max_iterations=2, tolerance=1e-3)
        assert not bool(found.info.converged)
        assert found.info == whole.info

    cell = parnl.get_cell("gru", 2, 3)
    spoilt = inputs.clone()
    spoilt[1, steps // 2] = torch.nan
    for reverse in (False, True):
        how = {"chunks": 16 * part.size, "reverse": reverse}
        found, whole = both(params, spoilt, **how)
        clean, _ = both(params, inputs, **how)
        oracles.assert_bits(found.outputs[0], clean.outputs[0], "beside a NaN")
        oracles.assert_bits(found.outputs, whole.outputs[:, own], "of a NaN")
        resets = torch.arange(steps) % 1000 == 0  # a thousand steps of it are lost, and no more
        found, whole = both(params, spoilt, **how, resets=resets)
        oracles.assert_bits(found.outputs, whole.outputs[:, own], "of a NaN, with resets")
        assert int(whole.outputs[1, :, 0].isnan().sum()) < 1000


def modules(part):
    """`RNN` in both directions, a mesh, half precision, and a step of training."""
    mesh = init_device_mesh("cpu", (part.size,))
    torch.manual_seed(0)
    whole_inputs = torch.randn(part.steps, 2, 3)
    own_inputs = whole_inputs[part.own]
    for dtype in (torch.float32, torch.bfloat16):
        rnn = RNN("lstm", 3, 5, 2, bidirectional=True, seed=0, dtype=dtype)
        output, (h, c) = rnn(own_inputs.to(dtype), time_axis=mesh)
        expected, (h_n, c_n) = rnn(whole_inputs.to(dtype))
        for found, wanted in ((output, expected[part.own]), (h, h_n), (c, c_n)):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)

    def trained(inputs, own, **along):
        rnn = RNN("lrc", 3, 8, 2, seed=0, dtype=torch.float64)
        optimiser = torch.optim.Adam(rnn.parameters(), 0.01)
        for _ in range(3):
            optimiser.zero_grad()
            output, _ = rnn(inputs, **along)
            ((output[:, :, 0] - whole_inputs[own, :, 0].sin()) ** 2).sum().backward()
            for p in rnn.parameters() if along else ():
                dist.all_reduce(p.grad)
            optimiser.step()
        return rnn.state_dict()

    found = trained(own_inputs.double(), part.own, time_axis=part.group)
    for name, expected in trained(whole_inputs.double(), slice(None)).items():
        part.close(found[name], expected.numpy(), 1e-9, name)


def dtensors(part):
    """Inputs and parameters divided: the answer of one process, divided, and nothing gathered."""
    mesh = init_device_mesh("cpu", (part.size,))
    tasks = (("lstm", {"resets": 0.1}), TASKS[3], ("lru", {}), TASKS[0], TASKS[1])
    for name, asked in tasks if EVERY else tasks[:3]:
        task = oracles.problem(
            name, steps=8 * part.size, batch=(2 * part.size,), hidden=4 * part.size,
            **{n: v for n, v in asked.items() if n not in ("resets", "lengths")},
        )  # fmt: skip
        task = task._replace(resets=None)
        if "resets" in asked:
            rng = np.random.default_rng(1)
            task = task._replace(resets=rng.random(task.inputs.shape[:2]) < 0.1)
        given, told, leaves = arguments(task)
        expected = parnl.solve(*given, **told, chunks=4)
        wanted = torch.autograd.grad(loss_of(task, expected), list(leaves.values()))
        for axis, dim in (("sequences", 0), ("time", 1), ("channels", -1)):
            (cell, params, _, state), told, leaves = arguments(task)
            there = {}
            for n, x in leaves.items():
                wide = n.startswith("params") and x.shape[-1] == task.weights[0].shape[-1]
                own = wide if axis == "channels" else n in ("inputs", "dt")
                place = Shard(dim % x.ndim) if own else Replicate()
                there[n] = distribute_tensor(x.detach(), mesh, [place]).requires_grad_()
            params = {n: there[f"params.{n}"] for n in params}
            told |= {n: there[n] for n in told if n in there}
            state = [there[f"state.{i}"] for i in range(len(state))]
            with CommDebugMode() as sent:
                out = parnl.solve(cell, params, there["inputs"], state, **told, chunks=4)
            what = f"{name} {asked} {axis}"
            part.close(out.outputs.full_tensor(), expected.outputs.detach().numpy(), 1e-12, what)
            found, known = out.final_state[0].full_tensor(), expected.final_state[0]
            part.close(found, known.detach().numpy(), 1e-12, what)
            if axis != "time":  # which may take more chunks
                for fact in ("iterations", "converged", "sequential"):
                    one, other = (int(getattr(x.info, fact)) for x in (out, expected))
                    assert one == other, (what, fact, one, other)
            if not (axis == "channels" and hasattr(cell, "output")):
                assert out.outputs.placements == (Shard(dim % 3),), (what, out.outputs.placements)
                counts = sent.get_comm_counts()
                assert not any("all_gather" in str(op) for op in counts), (what, counts)
            found = torch.autograd.grad(loss_of(task, out), list(there.values()))
            for n, g, e in zip(leaves, found, wanted, strict=True):
                part.close(g.full_tensor(), e.numpy(), 1e-9, f"{what}: {n}")


def parallel(part):
    """Training by FSDP2, and with the columns of the projections divided, as in one process."""
    mesh = init_device_mesh("cpu", (part.size,))
    torch.manual_seed(0)
    inputs, target = torch.randn(11, 2 * part.size, 3), torch.randn(11, 2 * part.size, 4)
    own = slice(2 * part.rank, 2 * part.rank + 2)

    def trained(kind):
        rnn, head = RNN("gru", 3, 4 * part.size, 2, seed=0), torch.nn.Linear(4 * part.size, 4)
        torch.manual_seed(1)
        torch.nn.init.normal_(head.weight)
        torch.nn.init.zeros_(head.bias)
        x, y, size = inputs, target, 1
        if kind == "fsdp":
            fully_shard(rnn, mesh=mesh)
            x, y, size = inputs[:, own], target[:, own], part.size
        elif kind == "columns":
            for n, p in list(rnn.named_parameters()):
                rnn.register_parameter(n, nn.Parameter(distribute_tensor(p, mesh, [Shard(-1)])))
        optimiser = torch.optim.SGD(rnn.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            output, h_n = rnn(x)
            if kind == "columns":
                assert output.placements == (Shard(2),)
                output, h_n = output.full_tensor(), h_n.full_tensor()
            loss = ((head(output) - y) ** 2).sum() + (h_n**2).sum()
            (size * loss).backward()  # FSDP takes the mean over processes
            optimiser.step()
        return {n: p.full_tensor() if hasattr(p, "full_tensor") else p
                for n, p in rnn.named_parameters()}  # fmt: skip

    expected = trained("alone")
    for kind in ("columns", "fsdp"):
        for name, found in trained(kind).items():
            part.close(found, expected[name].detach().numpy(), 1e-5, f"{kind} {name}")


def loss_of(task, out):
    found = [x.full_tensor() if hasattr(x, "full_tensor") else x for x in (out[0], *out[1])]
    return sum((x * torch.from_numpy(w)).sum() for x, w in zip(found, task.weights, strict=True))


def errors(part):
    """What one process refuses ends the others too, and all are asked for the same."""
    cell = parnl.get_cell("gru", 3, 4)
    params = cell.init(0, "torch")
    inputs = torch.ones(2, part.parts[part.rank], 3)
    last = part.rank == part.size - 1

    def solve(inputs=inputs, axis=part.group, **how):
        return parnl.solve(cell, params, inputs, time_axis=axis, **how)

    refused = (ValueError, "inputs") if last else (RuntimeError, f"rank {part.size - 1}")
    with pytest.raises(refused[0], match=refused[1]):
        solve(inputs[..., : 2 if last else 3])
    with pytest.raises(ValueError, match="same cell, batch, dtype and arguments"):
        solve(inputs[: 1 if last else 2])
    with pytest.raises(ValueError, match="same cell, batch, dtype and arguments"):
        solve(chunks=2 if last else 3)
    with (
        pytest.raises(ValueError, match="same cell, batch, dtype and arguments"),
        torch.set_grad_enabled(last),
    ):
        solve()
    with pytest.raises(ValueError, match=f"chunks <= T = {part.steps}"):
        solve(chunks=part.steps + 1)
    with pytest.raises(refused[0], match=refused[1].replace("inputs", "stretch")):
        solve(stretch=2 if last else None)
    with pytest.raises(refused[0], match=refused[1].replace("inputs", "method")):
        solve(method="fast" if last else "auto")
    with pytest.raises(ValueError, match=f"length <= T = {part.steps}"):
        solve(lengths=torch.tensor([part.steps + 1, 1]))
    with pytest.raises(TypeError, match="DeviceMesh of one dimension, got str"):
        solve(axis="time")
    with pytest.raises(TypeError, match="of 2 dimensions"):
        solve(axis=init_device_mesh("cpu", (part.size, 1)))
    oracles.assert_bits(torch.compile(solve, backend="eager")().outputs, solve().outputs)
    with pytest.raises(NotImplementedError, match=r"torch\.func"):
        torch.func.vmap(solve)(inputs[None])
    spoilt = inputs.clone()
    if last and inputs.shape[1]:
        spoilt[1, 0] = torch.inf
    with pytest.raises(parnl.SolveError, match="inputs: inf at sequence 1, step 0, channel 0"):
        solve(spoilt, check=True)
    if part.rank:
        with pytest.raises(TypeError, match="that this process is in"):
            solve(axis=dist.new_group([0]))
    else:
        dist.new_group([0])
    solve()  # nobody is out of step


CASES = {f.__name__: f for f in (solves, bits, hostile, modules, dtensors, parallel, errors)}


def process(rank, cases, parts, store):
    torch.set_num_threads(1)
    shared = dist.FileStore(f"{store}/store", len(parts))
    dist.init_process_group("gloo", store=shared, rank=rank, world_size=len(parts))
    for case in cases:
        CASES[case](Part(parts))
    shared.add("done", 1)
    while shared.add("done", 0) < len(parts):  # nobody hangs up on one who still listens
        time.sleep(0.01)
    # gloo's threads may outlive the interpreter, which then aborts ("terminate called without an
    # active exception"): all is done, so leave at once
    os._exit(0)


if __name__ == "__main__":
    cases, sizes = sys.argv[1].split(","), [int(n) for n in sys.argv[2].split(",")]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            process,
            (sys.argv[1].split(","), sizes, folder),
            nprocs=len(sizes),
            start_method="spawn",
        )
