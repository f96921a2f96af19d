"""Solves in stretches have no feature in memory at full length, and keep nothing they need not."""

from optional import jax, torch

import parnl
from parnl import ops
from parnl.params import matrix, vector


class Wide(parnl.Cell):
    """Eight features of the inputs."""

    parameters = {f"W{i}": matrix("input", "hidden") for i in range(8)} | {"a": vector("hidden")}

    def features(self, p, u):
        return {f"v{i}": ops.matmul(u, getattr(p, f"W{i}")) for i in range(8)}

    def step(self, p, x, f):
        total = p.a * x
        for i in range(8):
            total = total + getattr(f, f"v{i}")
        return ops.tanh(total)


def test_jax_has_no_feature_in_memory_at_full_length():
    cell = Wide(2, 16)
    params = cell.init(0, "jax")
    inputs = jax.numpy.ones((2, 4096, 2))

    def temporary(stretch):
        def loss(params):
            return (parnl.solve(cell, params, inputs, stretch=stretch).outputs ** 2).sum()

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        size = 2 * 4096 * 16 * inputs.dtype.itemsize
        return compiled.memory_analysis().temp_size_in_bytes / size

    assert temporary(128) < 4 < 12 < temporary(4096)


def test_torch_has_no_feature_in_memory_at_full_length():
    _ = torch.Tensor
    import tracemalloc

    cell, steps = Wide(2, 16), 1 << 18
    params = {n: p.requires_grad_() for n, p in cell.init(0, "torch").items()}
    inputs = torch.ones(1, steps, 2)
    parnl.solve(cell, params, inputs, stretch=steps // 8)  # which tries whether it can be cut

    def peak(stretch):
        """Return the most there is at a time, in arrays (B, T, D): NumPy's memory is traced."""
        tracemalloc.start()
        outputs = parnl.solve(cell, params, inputs, stretch=stretch).outputs
        torch.autograd.grad(outputs.sum(), [*params.values()])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most / (steps * 16 * 4)

    assert 2 < peak(steps // 8) < 6 < 16 < peak(steps)


def test_a_users_own_checkpoint_keeps_nothing():
    """What a checkpoint makes again is let go of, also where it stops as soon as it can."""
    import gc
    import weakref

    _ = torch.Tensor
    from torch.utils.checkpoint import checkpoint

    seen = []

    class Seen(parnl.Cell):
        states = ("x", "y")
        parameters = dict(W=matrix("input", "hidden"), a=vector("hidden"))

        def features(self, p, u):
            v = u @ p.W
            seen.append(weakref.ref(v))
            return {"v": v}

        def step(self, p, x, y, f):
            return ops.tanh(f.v + p.a * y), ops.tanh(f.v + p.a * x)

    cell = Seen(2, 3)
    params, inputs = cell.init(0, "torch"), torch.ones(2, 40, 2)
    params["W"].requires_grad_()
    outputs = checkpoint(
        lambda u: parnl.solve(cell, params, u, stretch=40).outputs, inputs, use_reentrant=False
    )
    torch.autograd.grad(outputs.sum(), params["W"])
    gc.collect()
    assert len(seen) == 2
    assert not any(ref() is not None for ref in seen)
