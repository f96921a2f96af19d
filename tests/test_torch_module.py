"""parnl.torch.RNN beside torch.nn.GRU and torch.nn.LSTM, and what users do with modules."""

import re

import diagonal
import oracles
import pytest
import torch
from oracles import CELLS, assert_bits, assert_close
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch_tasks import DOUBLE

import parnl
from parnl.torch import RNN


def pair(name, **how):
    """Make torch.nn's module with diagonal hidden weights, and parnl's with the same parameters."""
    torch.manual_seed(0)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    theirs = diagonal.make_diagonal(kind(3, 5, dtype=DOUBLE, **how))
    ours = RNN(name, 3, 5, **how).double()
    tensors = dict(theirs.named_parameters())
    directions = ("", "_reverse") if how.get("bidirectional") else ("",)
    suffixes = [f"l{i}{d}" for i in range(how.get("num_layers", 1)) for d in directions]
    layers = [diagonal.from_torch(name, tensors, suffix) for suffix in suffixes]
    copied = 0
    for key in layers[0]:
        # in the order in which they were registered: layer by layer, forward before reverse
        name = re.compile(f"(weight_|bias_)?{key}_l[0-9]+(_reverse)?")
        mine = [v for k, v in ours.named_parameters() if name.fullmatch(k)]
        assert len(mine) == len(layers), f"{key} not in {[k for k, _ in ours.named_parameters()]}"
        for parameter, layer in zip(mine, layers, strict=True):
            assert parameter.shape == layer[key].shape
            parameter.data.copy_(layer[key])
            copied += 1
    assert copied == len(list(ours.parameters()))
    return theirs, ours


def assert_states(actual, expected, tolerance=1e-12):
    if not isinstance(expected, tuple):
        actual, expected = (actual,), (expected,)
    assert isinstance(actual, tuple)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, tolerance, "final state")


def starts(name, *shape):
    h = torch.randn(*shape, dtype=DOUBLE)
    return h if name == "gru" else (h, torch.randn(*shape, dtype=DOUBLE))


LAYOUTS = [
    {},
    {"batch_first": True},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("how", LAYOUTS, ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_equals_torch_nn(name, how):
    theirs, ours = pair(name, **how)
    shape = (2, 9, 3) if how.get("batch_first") else (9, 2, 3)
    u = torch.randn(*shape, dtype=DOUBLE, requires_grad=True)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 2, 5),)):
        expected, expected_state = theirs(u, *start)
        found, found_state = ours(u, *start)
        assert_close(found, expected, 1e-12)
        assert_states(found_state, expected_state)
        weights = torch.randn_like(expected)
        (e,) = torch.autograd.grad((expected * weights).sum(), u)
        (a,) = torch.autograd.grad((found * weights).sum(), u)
        assert_close(a, e, 1e-11)


@pytest.mark.parametrize("how", LAYOUTS[:1] + LAYOUTS[-1:], ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_without_a_batch(name, how):
    theirs, ours = pair(name, **how)
    u = torch.randn(9, 3, dtype=DOUBLE)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 5),)):
        expected, expected_state = theirs(u, *start)
        found, found_state = ours(u, *start)
        assert_close(found, expected, 1e-12)
        assert_states(found_state, expected_state)


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("how", [LAYOUTS[0], LAYOUTS[2], LAYOUTS[4]], ids=str)
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_module_on_packed_sequences(name, how, enforce_sorted):
    theirs, ours = pair(name, **how)
    lengths = torch.tensor([9, 6, 1] if enforce_sorted else [1, 9, 6])
    u = torch.randn(3, 9, 3, dtype=DOUBLE)
    packed = pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=enforce_sorted)
    rows = how.get("num_layers", 1) * (2 if how.get("bidirectional") else 1)
    for start in ((), (starts(name, rows, 3, 5),)):
        expected, expected_state = theirs(packed, *start)
        found, found_state = ours(packed, *start)
        assert isinstance(found, PackedSequence)
        assert_bits(found.batch_sizes, expected.batch_sizes)
        assert_close(found.data, expected.data, 1e-12)
        padded, padded_lengths = pad_packed_sequence(found, batch_first=True)
        assert_close(padded, pad_packed_sequence(expected, batch_first=True)[0], 1e-12)
        assert_bits(padded_lengths, lengths)
        assert_states(found_state, expected_state)


def test_module_of_every_cell_and_a_class():
    u = torch.randn(7, 2, 3)
    for name in CELLS:
        rnn = RNN(name, 3, 4)
        outputs, state = rnn(u)
        assert outputs.shape == (7, 2, 4)
        states = state if isinstance(state, tuple) else (state,)
        assert [tuple(s.shape) for s in states] == [(1, 2, 4)] * oracles.STATES[name]
        outputs.sum().backward()
        for k, v in rnn.named_parameters():
            assert v.grad is not None, k
            assert torch.isfinite(v.grad).all(), k
        by_class = RNN(type(parnl.get_cell(name, input_size=3, hidden_size=4)), 3, 4)
        by_class.load_state_dict(rnn.state_dict())
        assert_bits(by_class(u)[0], outputs)


def test_module_options_reach_the_cell():
    torch.manual_seed(0)
    slow = RNN("lrc", 3, 4, dt=0.01)
    usual = RNN("lrc", 3, 4)
    with pytest.raises(RuntimeError, match=r"cell: LRC\(dt=0.01, .*expected LRC\(dt=1.0, "):
        usual.load_state_dict(slow.state_dict())
    usual.load_state_dict(slow.state_dict(), strict=False)
    u, start = torch.randn(7, 2, 3), torch.ones(1, 2, 4)
    assert (slow(u, start)[0] - 1).abs().max() < 0.1 < (usual(u, start)[0] - 1).abs().max()


def test_module_state_continues_a_sequence():
    _, ours = pair("lstm", num_layers=2)
    u = torch.randn(9, 2, 3, dtype=DOUBLE)
    whole, end = ours(u)
    first, state = ours(u[:4])
    second, state = ours(u[4:], state)
    assert_close(torch.cat([first, second]), whole, 1e-12)
    assert_states(state, end)


def test_module_dropout_acts_between_layers_in_training_only():
    torch.manual_seed(0)
    rnn = RNN("gru", 3, 8, num_layers=2, dropout=0.5)
    one = RNN("gru", 3, 8, num_layers=1, dropout=0.0)
    u = torch.randn(9, 2, 3)
    assert (rnn(u)[0] - rnn(u)[0]).abs().max() > 1e-4
    rnn.eval()
    assert_bits(rnn(u)[0], rnn(u)[0])
    plain = RNN("gru", 3, 8, num_layers=2)
    plain.load_state_dict(rnn.state_dict())
    assert_bits(plain(u)[0], rnn(u)[0])
    assert_bits(one(u)[0], one(u)[0])  # nothing after the last layer is dropped


def test_module_follows_torch_seeds_and_saves():
    def make():
        torch.manual_seed(5)
        return RNN("lstm", 3, 4, num_layers=2, bidirectional=True)

    a, b, c = make(), make(), RNN("lstm", 3, 4, num_layers=2, bidirectional=True)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))
    c.load_state_dict(a.state_dict())
    u = torch.randn(5, 2, 3)
    assert_bits(a(u)[0], c(u)[0])
    layers = [p for k, p in a.named_parameters() if "W_i" in k]
    assert len({tuple(p.flatten().tolist()) for p in layers}) == 4  # no two start the same


def test_module_in_half_precision():
    rnn = RNN("gru", 3, 4).to(torch.bfloat16)
    outputs, state = rnn(torch.randn(7, 2, 3, dtype=torch.bfloat16))
    assert (outputs.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def test_module_with_a_weight_that_is_computed():
    """As by torch.nn.utils: it is no longer among the module's parameters."""

    class Halved(torch.nn.Module):
        def forward(self, weight):
            return weight / 2

    module, x = RNN("gru", 3, 4, batch_first=True), torch.randn(2, 5, 3)
    expected = RNN("gru", 3, 4, batch_first=True)
    expected.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected.weight_W_z_l0 /= 2
    torch.nn.utils.parametrize.register_parametrization(module, "weight_W_z_l0", Halved())
    y, _ = module(x)
    assert_bits(y.detach(), expected(x)[0].detach())
    assert_bits(module.step(x[:, 0])[0].detach(), expected.step(x[:, 0])[0].detach())
    y.sum().backward()
    (weight,) = module.parametrizations.weight_W_z_l0.parameters()
    expected(x)[0].sum().backward()
    assert_close(weight.grad, expected.weight_W_z_l0.grad / 2, 1e-6)


def test_module_learns():
    """A few steps of Adam lower the loss of a task that needs memory."""
    torch.manual_seed(0)
    rnn, head = RNN("gru", 1, 16), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], lr=0.02)
    u = torch.randn(20, 32, 1)
    target = u[-3:].sum(0)
    losses = []
    for _ in range(120):
        loss = (head(rnn(u)[0][-1]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
