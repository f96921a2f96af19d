"""Small tasks in PyTorch, whose leaves ask for gradients."""

import oracles
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import parnl

DOUBLE = torch.float64


def small(name, *, steps=5, batch=(2,), n_in=2, hidden=2, **options):
    """Draw (cell, params, inputs, initial state) as float64 leaves."""
    task = oracles.problem(name, steps=steps, batch=batch, n_in=n_in, hidden=hidden, **options)
    params = {k: torch.from_numpy(v).requires_grad_() for k, v in task.params.items()}
    inputs = torch.from_numpy(task.inputs).requires_grad_()
    state = tuple(torch.from_numpy(s).requires_grad_() for s in task.initial_state or ())
    return task.cell, params, inputs, state


def flat_solve(cell, names, n_states, **how):
    """Return a function of plain tensors that gives outputs and final states."""

    def f(inputs, *leaves):
        params = dict(zip(names, leaves[n_states:], strict=True))
        out = parnl.solve(cell, params, inputs, leaves[:n_states], **how)
        return out.outputs, *out.final_state

    return f


def checkpoints_forward():
    """Whether this PyTorch follows forward mode through `checkpoint`, as ltc's features need it."""
    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.ones(1, requires_grad=True), torch.ones(1))
        try:
            checkpoint(torch.sin, x, use_reentrant=False)
        except NotImplementedError:
            return False
    return True
