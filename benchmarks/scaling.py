"""What a solve sends, and how long it takes, over devices that share time: a model and its check.

    python benchmarks/scaling.py check       processes from 1 to 16 send what the model says
    python benchmarks/scaling.py constants   measures on this machine what the model needs
    python benchmarks/scaling.py speed       times one process and two
    python benchmarks/scaling.py tables      the tables of docs/scaling.md

`check` and `tables` are about the model, `constants` and `speed` about the machine they run on.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

GUESSED_FROM = 256


class Task(NamedTuple):
    """T steps of B * D lanes with k states, in c chunks on each of P devices; size: of a number.

    updates: Newton's, forward; guessed: whether chunk starts are guessed, and met: whether it was
    worth a run to see if the guesses are the answer.
    """

    steps: float
    lanes: int
    states: int
    devices: int
    chunks: int
    updates: int
    size: int = 4
    guessed: bool = False
    met: bool = False


def forward(task: Task) -> Counter:
    """Return the messages: how often each device sends how many numbers, to all others."""
    k, each = task.states, task.chunks * task.lanes
    sent = Counter({k * task.lanes: 1})  # last states: what comes before the next device's steps
    if task.guessed:
        sent[(k + 1) * each] += 1
        sent[k * each] += task.met
    sent[(k + k * k) * each] += task.updates  # ends and products of Jacobians
    sent[k * each] += task.updates  # the ends of the run that writes the answer
    return +sent


def backward(task: Task) -> Counter:
    """Return the messages of a gradient: the adjoint is linear, so one update is the answer."""
    k, each = task.states, task.chunks * task.lanes
    return Counter({(k + k * k) * each: 1, k * each: 1})


class Machine(NamedTuple):
    """What a device and its link take, in seconds.

    step: of one lane, where the device is full; idle: a step of all lanes, where it is not; scan:
    of one entry of a block, for each chunk; latency: of an all-gather, for each doubling of the
    devices; bandwidth: bytes a second.
    """

    step: float
    idle: float
    scan: float
    latency: float
    bandwidth: float


def seconds(task: Task, machine: Machine) -> dict[str, float]:
    """Return what a solve takes, forward, by what takes it."""
    own = task.steps / (task.devices * task.chunks)  # steps one after the other
    step = max(machine.idle, task.lanes * task.chunks * machine.step)
    runs = 2 * task.updates + task.met  # of an update: with Jacobians, and the one that writes
    compute = runs * own * step + 2 * GUESSED_FROM * step * task.guessed
    messages, every = forward(task), task.devices * task.chunks * task.lanes * task.states**3
    scan = task.updates * machine.scan * every
    hops = math.ceil(math.log2(task.devices)) if task.devices > 1 else 0
    numbers = sum(n * times for n, times in messages.items())
    send = numbers * task.size * (task.devices - 1) / machine.bandwidth
    return {
        "compute": compute,
        "scan": scan,
        "latency": sum(messages.values()) * hops * machine.latency,
        "bytes": send,
    }


def in_two_levels(task: Task, node: int, inside: Machine, across: Machine) -> float:
    """Return what sending and scanning take where maps are composed within nodes first.

    Inside a node its devices' chunks are gathered; across nodes one map of each; to the next chunk
    its start, and to all whether they have converged. Not built: see docs/scaling.md.
    """
    k, nodes = task.states, task.devices / node
    maps = (k + k * k) * task.lanes * task.size
    within = (
        2 * inside.latency * math.log2(node) + maps * task.chunks * (node - 1) / inside.bandwidth
    )
    beyond = 2 * across.latency * math.log2(nodes) + maps * (nodes - 1) / across.bandwidth
    scan = inside.scan * task.lanes * k**3 * (node * task.chunks + nodes)
    return (within + beyond + scan) * max(1, task.updates)


# -- the check -------------------------------------------------------------------------------------


def counted(rank: int, devices: int, folder: str) -> None:
    """Solve in one of several processes, and compare what it sends with the model."""
    import torch
    import torch.distributed as dist

    import parnl

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=devices)
    sent: Counter = Counter()
    real, every = dist.all_gather, dist.all_reduce

    def all_gather(found: list, x: Any, group: Any) -> None:
        if x.dtype != torch.int64:  # the meeting before a solve
            sent[x.numel()] += 1
        real(found, x, group=group)

    def all_reduce(x: Any, group: Any) -> None:
        sent["last", x.numel()] += 1
        every(x, group=group)

    dist.all_gather, dist.all_reduce = all_gather, all_reduce
    for name, states, steps, chunks in (("gru", 1, 64, 2), ("lstm", 2, 64, 2), ("gru", 1, 2048, 1)):
        cell = parnl.get_cell(name, 3, 8)
        params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
        inputs = torch.randn(2, steps, 3, generator=torch.Generator().manual_seed(rank))
        sent.clear()
        count = max(2, chunks * devices)
        out = parnl.solve(cell, params, inputs, chunks=count, time_axis=dist.group.WORLD)
        updates, own = int(out.info.iterations), count // devices
        guessed = steps / own >= 4 * GUESSED_FROM
        task = Task(0, 16, states, devices, own, updates, guessed=guessed, met=guessed)
        if sent != forward(task):
            raise SystemExit(f"{name}, {devices} devices: sent {sent}, expected {forward(task)}")
        bytes_sent = 4 * sum(n * times for n, times in sent.items())
        messages = sum(sent.values())
        sent.clear()
        out.outputs.sum().backward()
        expected = backward(task) + Counter({("last", states * 16): 1})
        if sent != expected:
            raise SystemExit(f"{name}, {devices} devices: sent {sent}, expected {expected}")
        if rank == 0:
            back = sum(sent.values())
            print(f"{devices:7} {name:5} {own:6} {steps:6} {updates:7} {messages:9} "
                  f"{bytes_sent:9} {back:9}")  # fmt: skip
    leave(dist)


def leave(dist: Any) -> None:
    """End a process when all are done, without torch's teardown, which aborts now and then."""
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


def check() -> None:
    import torch.multiprocessing

    print("devices cell  chunks  steps updates messages     bytes  backward   (of each device)")
    for devices in (1, 2, 4, 8, 16):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(counted, (devices, folder), nprocs=devices)
    print("all as the model says")


# -- constants, and tables -------------------------------------------------------------------------


def timed(run: Any, repeats: int = 15) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def constants() -> None:
    """Print what the model needs of this machine: PyTorch, float32, one thread."""
    import torch

    import parnl
    from parnl.solver.scan import affine_scan

    torch.set_num_threads(1)
    print("step of a lane, full and idle:")
    for name in ("gru", "lstm", "lrc"):
        found = []
        for hidden in (1, 256):
            cell = parnl.get_cell(name, 1, hidden)
            params = cell.init(0, "torch")
            out = []
            for steps in (4096, 16384):
                inputs = torch.randn(1, steps, 1)
                out.append(timed(partial(parnl.solve, cell, params, inputs, chunks=1)))
            found.append((out[1] - out[0]) / 12288)
        print(f"  {name:5} {1e9 * found[1] / 256:6.2f} ns a lane, {1e9 * found[0]:6.1f} ns idle")
    backend: Any = parnl.frameworks.get_backend("torch")
    for k in (1, 2):
        a, b = ([torch.rand(1, 4096, 64) for _ in range(n)] for n in (k * k, k))
        found = timed(partial(affine_scan, backend.xp, a, b, 1e18))
        print(f"scan, k = {k}: {1e9 * found / (4096 * 64 * k**3):.2f} ns a chunk, lane and entry")
    import torch.multiprocessing

    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(links, (2, folder), nprocs=2)


def links(rank: int, devices: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=devices)
    found = []
    for numbers in (16, 1 << 22):
        x = torch.ones(numbers)
        out = [torch.empty_like(x) for _ in range(devices)]
        found.append(timed(partial(dist.all_gather, out, x), 31))
    if rank == 0:
        print(f"gloo, two processes of this machine: {1e6 * found[0]:.0f} us a message, "
              f"{(1 << 24) / found[1] / 1e9:.1f} GB/s")  # fmt: skip
    leave(dist)


def speed() -> None:
    """Print the time of one and of two processes, one thread each."""
    import torch.multiprocessing

    for devices in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(solving, (devices, folder), nprocs=devices)


def solving(rank: int, devices: int, folder: str) -> None:
    import torch
    import torch.distributed as dist

    import parnl

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=devices)
    for name, scale in (("gru", 1.0), ("gru", 3.0), ("lstm", 1.0)):
        cell, steps = parnl.get_cell(name, 4, 64), 1 << 17
        params = {n: scale * p for n, p in cell.init(0, "torch").items()}
        inputs = torch.randn(1, steps // devices, 4)
        group = dist.group.WORLD if devices > 1 else None

        def solve(
            cell: Any = cell, params: Any = params, x: Any = inputs, group: Any = group
        ) -> Any:
            return parnl.solve(cell, params, x, chunks=devices, time_axis=group)

        updates = int(solve().info.iterations)
        found = timed(solve, 9)
        if rank == 0:
            print(f"{name}, parameters times {scale}: {devices} process(es), "
                  f"{updates} update(s), {1e3 * found:.0f} ms")  # fmt: skip
    leave(dist)


# One H100: a GRU's step reads three features and writes a state, 16 bytes, at 3.35 TB/s; an idle
# step takes the latency of its operations. Links: NVLink 4, 450 GB/s each way; InfiniBand NDR, 50
# GB/s for each GPU. Latencies are of small all-gathers by NCCL, for each doubling of the devices.
H100 = Machine(16 / 3.35e12, 0.4e-6, 8 / 3.35e12, 5e-6, 450e9)
CLUSTER = H100._replace(latency=8e-6, bandwidth=50e9)


def tables() -> None:
    """Print the tables of docs/scaling.md."""
    names = "T, devices, chunks of each, compute, scan, latency, bytes, all, two levels, one device"
    print("|", names.replace(", ", " | "), "|")
    print("|", " | ".join("---" for _ in names.split(",")), "|")
    for power in (6, 7, 8, 9):
        steps = 10.0**power
        alone = best(steps, 1)
        for devices in (8, 64, 512, 4096):
            found, task = best(steps, devices)
            parts = " | ".join(f"{1e3 * t:.3g}" for t in found.values())
            total = 1e3 * sum(found.values())
            two = "-"
            if devices > 8:
                nodes = (
                    seconds(t := task._replace(chunks=2**c), CLUSTER)["compute"]
                    + in_two_levels(t, 8, H100, CLUSTER)
                    for c in range(13)
                )
                two = f"{1e3 * min(nodes):.3g}"
            print(f"| 10^{power} | {devices} | {task.chunks} | {parts} | {total:.3g} | {two} | "
                  f"{1e3 * sum(alone[0].values()):.3g} |")  # fmt: skip


def best(steps: float, devices: int, lanes: int = 1024) -> tuple[dict[str, float], Task]:
    """Return the model's time with the number of chunks that takes the least."""
    machine = H100 if devices <= 8 else CLUSTER
    found = []
    for power in range(13):
        chunks = 2**power
        if chunks * devices > 1:
            task = Task(steps, lanes, 1, devices, chunks, 2)
            found.append((sum(seconds(task, machine).values()), task))
    _, task = min(found)
    return seconds(task, machine), task


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    {f.__name__: f for f in (check, constants, speed, tables)}[sys.argv[1]]()
