"""Each source's own output, beside that of the cell and the parameters taken from it.

A function makes a module and runs both; `test_equals_its_source` compares outputs, and gradients of
the inputs and of the module's own parameters.
"""

import diagonal
import numpy as np
import pytest
import torch
from interop_modules import DOUBLE, keep_diagonal, lrcu, lrcu_loop, ltc_module
from oracles import assert_close

import parnl
from parnl.interop import from_lrcssm, from_mingru, from_ncps, from_pararnn, from_s5, layers_of


def solved(cell, params, u, **more):
    return parnl.solve(cell, params, u, chunks=4, **more).outputs


# -- one source after the other: module, inputs, its output, the cell's ---------------------------


def of_torch(kind, **how):
    module = kind(3, 5, batch_first=True, dtype=DOUBLE, **how)
    diagonal.make_diagonal(module)
    u = diagonal.leaf(2, 17, 3)
    x, directions = u, 1 + module.bidirectional
    layers = layers_of(module, copy=False)
    for i in range(0, len(layers), directions):
        runs = [solved(*layers[i + d], x, reverse=d == 1) for d in range(directions)]
        x = torch.cat(runs, dim=-1)
    return module, u, module(u)[0], x


def of_ltc(**how):
    module = ltc_module(**how)
    u, dt = diagonal.leaf(2, 17, 3), 0.5 + torch.rand(2, 17, dtype=DOUBLE)
    state, rows = torch.zeros(2, 5, dtype=DOUBLE), []
    for t in range(17):  # the library's own loop takes no dt that differs within a batch
        _, state = module.rnn_cell(u[:, t], state, dt[:, t, None])
        rows.append(state)
    return module, u, torch.stack(rows, 1), solved(*from_ncps(module, copy=False), u, dt=dt)


def of_cfc(**how):
    ncps = pytest.importorskip("ncps.torch")
    module = ncps.CfC(3, 5, backbone_layers=0).double()
    for layer in ("ff1", "ff2", "time_a", "time_b"):
        keep_diagonal(getattr(module.rnn_cell, layer).weight)
    u, dt = diagonal.leaf(1, 17, 3), torch.rand(1, 17, dtype=DOUBLE)
    expected, _ = module(u, timespans=dt)
    return module, u, expected, solved(*from_ncps(module, copy=False), u, dt=dt)


def of_wired_cfc():
    ncps, wirings = pytest.importorskip("ncps.torch"), pytest.importorskip("ncps.wirings")
    wiring = wirings.NCP(
        inter_neurons=4, command_neurons=3, motor_neurons=2, sensory_fanout=2, inter_fanout=2,
        recurrent_command_synapses=2, motor_fanin=2, seed=1,
    )  # fmt: skip
    module = ncps.CfC(3, wiring).double()
    assert any(bool((layer.sparsity_mask == 0).any()) for layer in module.rnn_cell._layers)
    for layer in module.rnn_cell._layers:
        for name in ("ff1", "ff2", "time_a", "time_b"):
            keep_diagonal(getattr(layer, name).weight)
    u = diagonal.leaf(2, 17, 3)
    x = u
    for layer in range(3):
        x = solved(*from_ncps(module, layer, copy=False), x)
    return module, u, module(u)[0], x


def of_mingru(kind, **how):
    library = pytest.importorskip(f"minGRU_pytorch.{kind}")
    module = getattr(library, kind)(4, **how).double()
    u = diagonal.leaf(2, 17, 4)
    skip = bool(how)
    found = solved(*from_mingru(module, skip_readout=skip, copy=False), u)
    return module, u, module(u), module.to_out(found) if skip else found


def of_s5(width, states):
    s5 = pytest.importorskip("s5.s5_model")
    module = s5.S5(width, states)
    # one number type: the library mixes float64 steps into complex64
    module.seq.log_step = torch.nn.Parameter(module.seq.log_step.detach().float())
    u = diagonal.leaf(2, 17, width, dtype=torch.float32)
    return module, u, module(u), solved(*from_s5(module, copy=False), u)


def of_pararnn(kind, **how):
    pararnn = pytest.importorskip("pararnn")
    module = pararnn.ParaRNN(
        getattr(pararnn, kind)(3, 5, dtype=DOUBLE, **how), num_layers=2, solver="sequential"
    )
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p))  # beyond the clip, biases that are not 0
    u = diagonal.leaf(2, 17, 3)
    x = u
    for layer in range(2):
        x = solved(*from_pararnn(module, layer, copy=False), x)
    return module, u, module(u), x


SOURCES = {
    "nn.GRU": lambda: of_torch(torch.nn.GRU, num_layers=2, bidirectional=True),
    "nn.GRU without biases": lambda: of_torch(torch.nn.GRU, bias=False),
    "nn.LSTM": lambda: of_torch(torch.nn.LSTM, num_layers=2, bidirectional=True),
    "nn.LSTM without biases": lambda: of_torch(torch.nn.LSTM, bias=False),
    "nn.RNN, tanh": lambda: of_torch(torch.nn.RNN, num_layers=2, bidirectional=True),
    "nn.RNN, relu": lambda: of_torch(torch.nn.RNN, nonlinearity="relu"),
    "nn.RNN without biases": lambda: of_torch(torch.nn.RNN, bias=False),
    "ncps LTC, softplus": lambda: of_ltc(absent=[(0, 1), (2, 4)]),
    "ncps LTC, clip": lambda: of_ltc(absent=[(0, 1), (2, 4)], implicit=False),
    "ncps LTC, inputs as they are": lambda: of_ltc(input_mapping=None, ode_unfolds=3),
    "ncps CfC": of_cfc,
    "ncps CfC, wired": of_wired_cfc,
    "minGRU-pytorch minGRU": lambda: of_mingru("minGRU"),
    "minGRU-pytorch minLSTM": lambda: of_mingru("minLSTM"),
    "minGRU-pytorch minGRU, expanded": lambda: of_mingru("minGRU", expansion_factor=1.5),
    "s5-pytorch": lambda: of_s5(5, 5),
    "s5-pytorch, fewer states": lambda: of_s5(5, 3),
    "pararnn-torch ParaGRU": lambda: of_pararnn("ParaGRU"),
    "pararnn-torch ParaLSTM": lambda: of_pararnn("ParaLSTM"),
    "pararnn-torch ParaGRU, not clipped": lambda: of_pararnn("ParaGRU", max_recurrent_norm=None),
}


@pytest.mark.parametrize("source", SOURCES)
def test_equals_its_source(source):
    torch.manual_seed(0)
    diagonal.assert_same_map(*SOURCES[source]())


def test_absent_synapses_stay_absent():
    torch.manual_seed(0)
    cell, params = from_ncps(ltc_module(absent=[(0, 1)]))
    params = {name: value.requires_grad_() for name, value in params.items()}
    outputs = parnl.solve(cell, params, torch.randn(2, 17, 3, dtype=DOUBLE)).outputs
    outputs.sum().backward()
    assert (params["w_in"].grad == 0).nonzero().tolist() == [[0, 1]]
    assert (params["w"].grad == 0).nonzero().tolist() == [[3]]


def test_the_readout_is_left_out_on_demand():
    torch.manual_seed(0)
    module = ltc_module(output_mapping="affine")
    u = torch.randn(2, 17, 3, dtype=DOUBLE)
    found = solved(*from_ncps(module, skip_readout=True), u)
    inner = module.rnn_cell
    assert_close(found * inner.output_w + inner.output_b, module(u)[0], 1e-12)


def test_the_states_that_s5_lacks_decay():
    _, params = from_s5(pytest.importorskip("s5.s5_model").S5(5, 3))
    assert (params["Lambda_re"] < 0).all()


# -- LrcSSM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["object", "mapping"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_recurrence_of_lrcssm(symmetric, given):
    module = lrcu(symmetric, dt=0.3)
    u = np.random.default_rng(1).normal(size=(17, 3))
    cell, params = from_lrcssm(module if given == "object" else vars(module))
    assert_close(solved(cell, params, u), lrcu_loop(module, u), 1e-13)
    params["mu"] += 1.0
    assert not np.array_equal(params["mu"], module.weight_mu - 0.0)
    assert params["W_f"].flags.c_contiguous


def test_takes_equinox_modules():
    eqx, jnp = pytest.importorskip("equinox"), pytest.importorskip("jax.numpy")
    fields = {
        k: jnp.asarray(v) if hasattr(v, "shape") else v for k, v in vars(lrcu(True, 1.0)).items()
    }
    kind = type("LRCU", (eqx.Module,), {"__annotations__": dict.fromkeys(fields, object)})
    cell, params = from_lrcssm(kind(**fields))
    u = np.random.default_rng(1).normal(size=(17, 3))
    expected = lrcu_loop(lrcu(True, 1.0), u)
    assert_close(solved(cell, params, jnp.asarray(u)), expected, 1e-13)
