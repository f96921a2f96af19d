"""Modules of other libraries that `parnl.interop` takes, and one recurrence as a loop."""

from types import SimpleNamespace

import numpy as np
import pytest
from optional import torch

DOUBLE = torch.float64


@torch.no_grad()
def keep_diagonal(weight):
    """Zero what lies off the diagonal of the last `hidden` columns of (hidden, input + hidden)."""
    hidden = weight.shape[0]
    weight[:, -hidden:] *= torch.eye(hidden, dtype=weight.dtype)


@torch.no_grad()
def redraw(module):
    """Draw parameters that the library starts at 0 or 1, as training leaves them."""
    for p in module.parameters():
        if p.requires_grad and p.unique().numel() == 1:
            p.copy_(torch.empty_like(p).uniform_(0.5, 1.5))


def ltc_module(*, units=5, absent=(), implicit=True, **how):
    """Make an LTC whose neurons hear themselves alone; `absent`: synapses (input, neuron)."""
    wirings, ncps = pytest.importorskip("ncps.wirings"), pytest.importorskip("ncps.torch")
    wiring = wirings.Wiring(units)
    wiring.build(3)
    wiring.set_output_dim(units)
    for i in range(units):
        if i != 3:  # which does not even hear itself
            wiring.add_synapse(i, i, 1 if i % 2 else -1)
        for j in {0, 1, 2} - {j for j, neuron in absent if neuron == i}:
            wiring.add_sensory_synapse(j, i, 1 if i % 3 else -1)
    how = {"output_mapping": None, "implicit_param_constraints": implicit} | how
    module = ncps.LTC(3, wiring, **how).double()
    redraw(module)
    return module


def lrcu(symmetric, dt):
    """Make what the authors' LRCU holds: 3 inputs, 5 channels."""
    draw = np.random.default_rng(0).normal
    shapes = {"sensory_mu": 3, "sensory_sigma": 3, "sensory_w": (5, 3), "sensory_h": (5, 3)}
    names = "mu sigma w h gleak vleak elastance_kernel elastance_bias elastance_shift".split()
    arrays = {f"weight_{k}": draw(size=s) for k, s in (shapes | dict.fromkeys(names, 5)).items()}
    return SimpleNamespace(**arrays, use_symmetric=symmetric, dt=dt, input_size=3, hidden_size=5)


def lrcu_loop(m, inputs):
    """The recurrence in the authors' names, one step after the other."""

    def s(x):
        return 1 / (1 + np.exp(-x))

    x, rows = np.zeros(5), []
    for u in inputs:
        heard = s(m.weight_sensory_sigma * (u - m.weight_sensory_mu))
        own = s(m.weight_sigma * (x - m.weight_mu))
        leak = s(m.weight_gleak + m.weight_sensory_w @ heard + m.weight_w * own)
        drive = np.tanh(m.weight_gleak + m.weight_sensory_h @ heard + m.weight_h * own)
        level, shift = m.weight_elastance_kernel * x + m.weight_elastance_bias, 0.0
        shift = m.weight_elastance_shift
        elastance = s(level + shift) - s(level - shift) if m.use_symmetric else s(level)
        x = x + m.dt * elastance * (m.weight_vleak * drive - leak * x)
        rows.append(x)
    return np.stack(rows)
