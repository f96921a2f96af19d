"""Modules that are copied, pickled, saved and stacked after they were used."""

import copy
import io
import pickle

import pytest
import torch
from oracles import assert_bits, assert_close
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from parnl.torch import RNN


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _by_cloudpickle(module):
    cloudpickle = pytest.importorskip("cloudpickle")
    return cloudpickle.loads(cloudpickle.dumps(module))


def _by_joblib(module):
    joblib, file = pytest.importorskip("joblib"), io.BytesIO()
    joblib.dump(module, file)
    file.seek(0)
    return joblib.load(file)


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "cloudpickle": _by_cloudpickle,
    "joblib": _by_joblib,
    "torch.save": _saved,
}


def used(name="gru"):
    """A module whose cells have run forward, backward and compiled."""
    torch.manual_seed(0)
    rnn = RNN(name, 3, 4, bidirectional=True)
    rnn(torch.randn(9, 2, 3))[0].sum().backward()
    torch._dynamo.reset()
    torch.compile(rnn, backend="eager")(torch.randn(9, 2, 3))
    return rnn


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gru", "lstm", "s5"])
@pytest.mark.turns("way")
def test_a_copy_computes_the_same(name, way):
    rnn, u = used(name), torch.randn(9, 2, 3)
    other = WAYS[way](rnn)
    assert other.cells == rnn.cells
    assert other.cells[0].program is rnn.cells[0].program
    assert_bits(other(u)[0], rnn(u)[0])
    if way != "copy":
        assert_bits(RNN.forward(other, u)[0], rnn(u)[0])
        next(other.parameters()).data.zero_()
        assert next(rnn.parameters()).abs().sum() > 0


def test_averages_of_models():
    rnn, u = used(), torch.randn(9, 2, 3)
    averaged = AveragedModel(rnn, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(rnn)
    assert_bits(averaged(u)[0], rnn(u)[0])
    for p in rnn.parameters():
        p.data.mul_(2.0)
    averaged.update_parameters(rnn)
    for a, p in zip(averaged.module.parameters(), rnn.parameters(), strict=True):
        assert_close(a, 0.75 * p, 1e-6)


@pytest.mark.long
def test_stacked_ensembles():
    models, u = [used(), used()], torch.randn(9, 2, 3)
    for p in models[1].parameters():
        p.data.mul_(0.5)
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def call(params, buffers):
        return torch.func.functional_call(base, (params, buffers), (u,))[0]

    found = torch.func.vmap(call)(params, buffers)
    for a, model in zip(found, models, strict=True):
        assert_close(a, model(u)[0], 1e-6)
