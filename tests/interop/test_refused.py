"""What `parnl.interop` refuses, by name; how far a module is from diagonal; copies."""

import subprocess
import sys

import diagonal
import numpy as np
import pytest
import torch
from interop_modules import DOUBLE, keep_diagonal, lrcu, ltc_module

import parnl
from parnl.interop import (
    from_lrcssm,
    from_mingru,
    from_ncps,
    from_pararnn,
    from_s5,
    from_torch,
    layers_of,
)

KINDS = (torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN)


def test_says_how_far_from_diagonal():
    """The share, the largest entry and its gate, counted by hand."""
    module = torch.nn.GRU(3, 5, dtype=DOUBLE)
    with torch.no_grad():
        module.weight_hh_l0.zero_()
        module.weight_hh_l0[0, 0] = 3.0  # r, on the diagonal
        module.weight_hh_l0[1, 4] = 0.5  # r
        module.weight_hh_l0[7, 0] = -1.0  # z
    expected = (
        "from_torch: weight_hh_l0: expected zeros off the diagonal, got 0.122 of the squared norm "
        r"of the recurrent weights there, the largest 1 \(gate z\).*take='diagonal'"
    )
    with pytest.raises(ValueError, match=expected):
        from_torch(module)


@pytest.mark.parametrize("size", [5e-324, float("nan")])
def test_any_bit_off_the_diagonal_is_seen(size):
    module = diagonal.make_diagonal(torch.nn.LSTM(3, 5, dtype=DOUBLE))
    from_torch(module)
    with torch.no_grad():
        module.weight_hh_l0[11, 3] = size
    with pytest.raises(ValueError, match="gate g"):
        from_torch(module)


@pytest.mark.parametrize("kind", KINDS)
def test_begins_from_the_diagonal(kind):
    torch.manual_seed(0)
    module = kind(3, 5, num_layers=2, bidirectional=True)
    taken = layers_of(module, take="diagonal")
    exact = layers_of(diagonal.make_diagonal(module))
    for (cell, params), (same, expected) in zip(taken, exact, strict=True):
        assert cell == same
        assert all(torch.equal(params[name], expected[name]) for name in expected)


def test_dense_networks_of_ncps_are_seen():
    """A wiring of all with all: softplus of a weight is never 0."""
    ncps = pytest.importorskip("ncps.torch")
    ltc, cfc = ncps.LTC(3, 5), ncps.CfC(3, 5, backbone_layers=0)
    w = torch.nn.functional.softplus(ltc.rnn_cell.w.detach()).double().square()
    share = f"{float(1 - w.trace() / w.sum()):.3g}"
    with pytest.raises(ValueError, match=f"from_ncps: w: .* got {share} of .*gate w"):
        from_ncps(ltc)
    with torch.no_grad():
        for layer in ("ff1", "ff2", "time_b"):
            keep_diagonal(getattr(cfc.rnn_cell, layer).weight)
    with pytest.raises(ValueError, match=r"gate time_a"):
        from_ncps(cfc)
    for module in (ltc, cfc):
        cell, params = from_ncps(module, take="diagonal")
        assert parnl.solve(cell, params, torch.randn(2, 17, 3)).outputs.shape == (2, 17, 5)


# -- copies, and what is refused ------------------------------------------------------------------


@pytest.mark.parametrize("source", ["nn.GRU", "ncps LTC", "pararnn-torch"])
def test_copies_share_nothing(source):
    torch.manual_seed(0)
    if source == "nn.GRU":
        module = diagonal.make_diagonal(torch.nn.GRU(3, 5))
        _, params = from_torch(module)
    elif source == "ncps LTC":
        module = ltc_module()
        _, params = from_ncps(module)
    else:
        module = pytest.importorskip("pararnn").ParaGRU(3, 5)
        _, params = from_pararnn(module)
    before = {name: value.clone() for name, value in params.items()}
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1.0)
    for name, value in params.items():
        assert not value.requires_grad
        assert value.is_contiguous()
        assert torch.equal(value, before[name])


class Louder(torch.nn.GRU):
    def forward(self, *args):
        output, h = super().forward(*args)
        return 2 * output, h


def test_a_module_with_parametrised_weights_is_taken():
    """PyTorch makes a subclass of it."""
    module = torch.nn.RNN(3, 1)
    torch.nn.utils.parametrizations.weight_norm(module, "weight_ih_l0")
    assert type(module) is not torch.nn.RNN
    _, params = from_torch(module)
    assert torch.equal(params["W"], module.weight_ih_l0.detach().T)


def gru(**how):
    return torch.nn.GRU(3, 5, **how)


def lstm(**how):
    return torch.nn.LSTM(3, 5, **how)


def cfc(**how):
    return pytest.importorskip("ncps.torch").CfC(3, 5, **how)


def s5_module(*sizes, **how):
    return pytest.importorskip("s5.s5_model").S5(*sizes, **how)


def bilinear():
    module = s5_module(5)
    module.seq.discretize = pytest.importorskip("s5.s5_model").discretize_bilinear
    return module


def negative():
    module = ltc_module(implicit=False)
    with torch.no_grad():
        module.rnn_cell.gleak[0] = -0.1
    return module


def twice_a_synapse():
    module = ltc_module()
    module.rnn_cell.sensory_sparsity_mask.data[0, 0] = 2.0
    return module


def without_first_input():
    module = ltc_module()
    with torch.no_grad():
        module.rnn_cell.input_w[0] = 0.0
    return module


def heads():
    return pytest.importorskip("pararnn").ParaGRU(3, 6, mix="head", n_heads=2)


REFUSED = {
    "from_torch: module: expected GRU or LSTM or RNN": lambda: from_torch(torch.nn.ReLU()),
    "from_torch: module: .* got torch.*rnn.GRUCell": lambda: from_torch(torch.nn.GRUCell(3, 5)),
    "from_torch: module: .* subclass Louder": lambda: from_torch(Louder(3, 5)),
    "layers_of: module: .* got builtins.NoneType": lambda: layers_of(None),
    "from_torch: proj_size: expected 0, got 2": lambda: from_torch(lstm(proj_size=2)),
    "from_torch: layer: .* below 2, got 2": lambda: from_torch(gru(num_layers=2), 2),
    "from_torch: layer: .* got -1": lambda: from_torch(gru(), -1),
    "from_torch: reverse: ": lambda: from_torch(gru(), reverse=True),
    "from_torch: take: .* got 'diag'": lambda: from_torch(gru(), take="diag"),
    "from_ncps: module: .* got torch.nn": lambda: from_ncps(gru()),
    "from_ncps: layer: ": lambda: from_ncps(cfc(), 1),
    "from_ncps: mixed_memory: ": lambda: from_ncps(cfc(mixed_memory=True)),
    "from_ncps: backbone_layers: expected 0, got 1": lambda: from_ncps(cfc()),
    "from_ncps: mode: expected 'default', got 'pure'": lambda: from_ncps(cfc(mode="pure")),
    "from_ncps: mode: .* got 'no_gate'": lambda: from_ncps(cfc(mode="no_gate")),
    "from_ncps: proj_size: .* skip_readout": lambda: from_ncps(cfc(proj_size=2)),
    "from_ncps: wiring: ": lambda: from_ncps(twice_a_synapse()),
    "from_ncps: epsilon: ": lambda: from_ncps(ltc_module(epsilon=1e-6)),
    "from_ncps: g_leak: .* no negative": lambda: from_ncps(negative()),
    "from_ncps: input_w: ": lambda: from_ncps(without_first_input()),
    "from_mingru: module: ": lambda: from_mingru(gru()),
    "from_s5: state_width: expected at most the width, 5, got 8": lambda: from_s5(s5_module(5, 8)),
    "from_s5: bidir: expected False, got True": lambda: from_s5(s5_module(5, bidir=True)),
    "from_s5: liquid: ": lambda: from_s5(s5_module(5, liquid=True)),
    "from_s5: degree: expected 1, got 2": lambda: from_s5(s5_module(5, degree=2)),
    "from_s5: discretization: expected 'zoh', got 'bilinear'": lambda: from_s5(bilinear()),
    "from_pararnn: module: ": lambda: from_pararnn(gru()),
    "from_pararnn: mix: expected 'diag', got 'head'": lambda: from_pararnn(heads()),
    "from_pararnn: layer: ": lambda: from_pararnn(heads(), 1),
    "from_lrcssm: recurrence: .* got a GRU without weight_": lambda: from_lrcssm(gru()),
    "from_lrcssm: .* got a dict without use_symmetric": lambda: from_lrcssm(
        {k: v for k, v in vars(lrcu(True, 1.0)).items() if k != "use_symmetric"}
    ),
    "from_lrcssm: .* complex": lambda: from_lrcssm({"weight_mure": np.zeros(5)}),
    "from_lrcssm: W_g of lrc: expected the shape .3, 5., got .2, 5.": lambda: from_lrcssm(
        vars(lrcu(False, 1.0)) | {"weight_sensory_h": np.zeros((5, 2))}
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.filterwarnings("ignore:mix='head'")
def test_refuses_by_name(message):
    kind = TypeError if "module" in message or "without" in message else ValueError
    with pytest.raises(kind, match=message):
        REFUSED[message]()


@pytest.mark.parametrize("changed", ["output_w", "output_b", "motor_size"])
def test_a_readout_is_seen(changed):
    module = ltc_module(output_mapping="affine")
    inner = module.rnn_cell
    with torch.no_grad():
        inner.output_w.fill_(1.0)
        inner.output_b.fill_(0.0)
    from_ncps(module)
    if changed == "motor_size":
        module._wiring.set_output_dim(4)
    else:
        getattr(inner, changed).data[0] = 0.5
    with pytest.raises(ValueError, match=r"from_ncps: output_mapping.* skip_readout"):
        from_ncps(module)


def test_no_library_is_imported():
    code = "import sys, parnl.interop; assert not {'torch', 'jax', 'ncps'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
