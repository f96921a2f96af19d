"""parnl.torch.RNN: what `nn.GRU` does not have, and what code written for `nn.GRU` asks for."""

import copy
import io

import diagonal
import numpy as np
import pytest
import torch
from oracles import assert_close
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch_tasks import DOUBLE

import parnl
from parnl.torch import RNN

STEPS, BATCH = 12, 3


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def inputs(batch_first=False, steps=STEPS):
    shape = (BATCH, steps, 2) if batch_first else (steps, BATCH, 2)
    return torch.randn(*shape, dtype=DOUBLE, requires_grad=True)


class Model(torch.nn.Module):
    """As such models are written; `layer` is the only thing that changes."""

    def __init__(self, layer):
        super().__init__()
        self.encoder = layer(2, 5, 2, batch_first=True, dropout=0.1, bidirectional=True)
        self.head = torch.nn.Linear(10, 1)
        for name, parameter in self.encoder.named_parameters():
            if "weight" in name:
                torch.nn.init.xavier_uniform_(parameter)
            elif "bias" in name:
                torch.nn.init.zeros_(parameter)

    def forward(self, x):
        self.encoder.flatten_parameters()
        output, hidden = self.encoder(input=x, hx=None)
        output = torch.nn.ReLU(inplace=True)(output)
        return self.head(output[:, -1] + hidden[-1].repeat(1, 2))


@pytest.mark.parametrize("layer", [torch.nn.GRU, lambda *a, **k: RNN("gru", *a, **k)])
def test_a_model_changes_the_name_only(layer):
    model = Model(layer)
    target = torch.randn(BATCH, 1)
    x = torch.randn(BATCH, STEPS, 2)
    decayed = [p for n, p in model.named_parameters() if "bias" not in n]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}], lr=0.01)
    first = last = None
    for _ in range(20):
        loss = (model(x) - target).square().mean()
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        last = loss.item()
    assert last < 0.5 * first
    assert len(model.encoder.all_weights) == 4


def test_positions_of_arguments_are_those_of_torch_nn():
    theirs = torch.nn.GRU(2, 3, 2, False, True, 0.5, True)
    ours = RNN("gru", 2, 3, 2, False, True, 0.5, True)
    for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional", "proj_size"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("name", ["gru", "lstm", "lem"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_whole_in_pieces_and_step_by_step(name, batch_first):
    rnn = RNN(name, 2, 4, num_layers=2, batch_first=batch_first, learn_initial=True).double()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = inputs(batch_first)
    time = 1 if batch_first else 0
    whole, end = rnn(x)
    assert whole.is_contiguous()
    first, state = rnn(x.narrow(time, 0, 5))
    second, state = rnn(x.narrow(time, 5, STEPS - 5), state)
    assert_close(torch.cat([first, second], time), whole, 1e-13)
    streamed, last = [], None
    for x_t in x.unbind(time):
        y, last = rnn.step(x_t, last)
        streamed.append(y)
    assert_close(torch.stack(streamed, time), whole, 1e-13)
    wanted = [x, *rnn.parameters()]
    weights = torch.randn_like(whole)
    expected = torch.autograd.grad((whole * weights).sum(), wanted, retain_graph=True)
    for other in (torch.cat([first, second], time), torch.stack(streamed, time)):
        found = torch.autograd.grad((other * weights).sum(), wanted)
        for f, e in zip(found, expected, strict=True):
            assert_close(f, e, 1e-11)
    for one in (state, last):
        pairs = zip(one, end, strict=True) if isinstance(end, tuple) else [(one, end)]
        for a, b in pairs:
            assert_close(a, b, 1e-13)


@pytest.mark.parametrize("learn_initial", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_resets_in_a_rollout_that_goes_on(name, learn_initial):
    """At resets the state is the module's initial one, in `step` and in the whole, after any hx."""
    rnn = RNN(name, 2, 4, num_layers=2, learn_initial=learn_initial).double()
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = inputs()
    resets = torch.zeros(STEPS, BATCH, dtype=torch.bool)
    resets[3, 0] = resets[0, 1] = True
    _, start = rnn(inputs())
    whole, _ = rnn(x, start, resets=resets)
    streamed, state = [], start
    for x_t, reset in zip(x, resets, strict=True):
        y, state = rnn.step(x_t, state, reset=reset)
        streamed.append(y)
    assert_close(torch.stack(streamed).detach(), whole.detach(), 1e-13)
    alone, _ = rnn(x[3:, 0])
    assert_close(whole[3:, 0].detach(), alone.detach(), 1e-13)
    packed, told = (pack_padded_sequence(a, [STEPS] * BATCH) for a in (x, resets[..., None]))
    with pytest.raises(ValueError, match="resets: expected None for a PackedSequence with hx"):
        rnn(packed, start, resets=told)


def test_states_are_taken_by_name():
    rnn = RNN("lstm", 2, 4).double()
    _, state = rnn(inputs())
    assert state._fields == ("h", "c")  # as nn.LSTM has them
    cell = rnn.cells[0]
    params = {n: getattr(rnn, m) for n, m in rnn._names[0].items()}
    u = torch.randn(BATCH, 2, dtype=DOUBLE)
    expected, _ = rnn.step(u, state)
    rows = type(state)(*(s[0] for s in state))
    found, after = parnl.step(cell, params, u, rows)  # whose order is (c, h)
    assert after._fields == ("c", "h")
    assert torch.equal(found, expected)
    solved = parnl.solve(cell, params, u[:, None], rows)
    assert_close(solved.final_state.c, after.c, 1e-14)
    swapped, _ = parnl.step(cell, params, u, tuple(rows))
    assert (swapped - expected).abs().max() > 0.01
    with torch.no_grad():  # where a call is remembered
        for order in ("ch", "hc", "ch"):
            given = parnl.states.state_type(tuple(order))(**rows._asdict())
            assert_close(parnl.step(cell, params, u, given)[0], expected, 1e-14)
            assert parnl.step(cell, params, u, given)[1]._fields == ("c", "h")
        assert type(parnl.step(cell, params, u, (rows.c, rows.h))[1]) is tuple
    with pytest.raises(ValueError, match=r"expected the states c, h, got those of .*: y, z"):
        parnl.step(cell, params, u, parnl.states.state_type(("y", "z"))(*rows))


@pytest.mark.parametrize("batch_first", [False, True])
def test_all_states_of_every_layer(batch_first):
    rnn = RNN("lstm", 2, 4, num_layers=2, bidirectional=True, batch_first=batch_first).double()
    x = inputs(batch_first)
    output, state = rnn(x)
    full = rnn.solve(x)
    assert torch.equal(full.outputs, output)
    assert len(full.states) == len(full.infos) == 4
    last = [(-1, 0)[run % 2] for run in range(4)]
    for run, (states, end) in enumerate(zip(full.states, last, strict=True)):
        at = states.c[:, end] if batch_first else states.c[end]
        assert torch.equal(at, state.c[run])
    both = torch.cat([full.states[2].h, full.states[3].h], -1)
    assert torch.equal(both, output)


@pytest.mark.parametrize("name", ["lrc", "cfc"])
def test_time_lengths_and_resets_are_laid_out_as_the_input(name):
    rnn = RNN(name, 2, 4, num_layers=2, bidirectional=True).double()
    x, dt = inputs(), torch.rand(STEPS, BATCH, dtype=DOUBLE)
    resets = torch.rand(STEPS, BATCH) < 0.2
    lengths = torch.tensor([STEPS, 7, 1])
    found, state = rnn(x, dt=dt, lengths=lengths, resets=resets)
    rnn.batch_first = True
    other, _ = rnn(x.transpose(0, 1), dt=dt.T, lengths=lengths, resets=resets.T)
    assert_close(other.transpose(0, 1), found, 1e-14)
    for b, n in enumerate(lengths.tolist()):  # each sequence by itself, without a batch
        alone, end = rnn(x[:n, b], dt=dt[:n, b], resets=resets[:n, b])
        assert_close(found[:n, b], alone, 1e-13)
        assert_close(state[:, b], end, 1e-13)
        assert not found[n:, b].any()
    rnn.batch_first = False
    packed = [pack_padded_sequence(a, lengths) for a in (x, dt[..., None], resets[..., None])]
    timed = [p._replace(data=p.data[:, 0]) for p in packed[1:]]
    output, end = rnn(packed[0], dt=timed[0], resets=timed[1])
    assert_close(pad_packed_sequence(output, total_length=STEPS)[0], found, 1e-13)
    assert_close(end, state, 1e-13)


@pytest.mark.parametrize("name", ["gru", "lstm"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batch", [1, BATCH])
def test_outputs_may_be_written_to(name, batch_first, batch):
    rnn = RNN(name, 2, 4, batch_first=batch_first).double()
    x = inputs(batch_first)[:, :batch] if not batch_first else inputs(True)[:batch]
    results = []
    for written in (False, True):
        output, state = rnn(x)
        last = state[0] if name == "lstm" else state
        if written:
            torch.nn.ReLU(inplace=True)(output.sub_(0.1))
            last.mul_(3)
        else:
            output, last = torch.relu(output - 0.1), last * 3
        loss = (output * output).sum() + last.sum()
        results.append(torch.autograd.grad(loss, list(rnn.parameters())))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_without_biases():
    rnn = RNN("gru", 2, 4, bias=False).double()
    assert not [n for n, _ in rnn.named_parameters() if "b_" in n or "c_n" in n]
    assert not [n for n in rnn.state_dict() if "bias" in n]
    theirs = torch.nn.GRU(2, 4, bias=False).double()
    assert len(theirs.all_weights[0]) < len(torch.nn.GRU(2, 4).all_weights[0])
    with_zeros = RNN("gru", 2, 4).double()
    missing, unexpected = with_zeros.load_state_dict(rnn.state_dict(), strict=False)
    assert not unexpected
    with torch.no_grad():
        for name in missing:
            getattr(with_zeros, name).zero_()
    x = inputs()
    assert torch.equal(rnn(x)[0], with_zeros(x)[0])
    assert torch.equal(copy.deepcopy(rnn)(x)[0], rnn(x)[0])
    with pytest.raises(ValueError, match="bias: expected True, since LRC has no biases"):
        RNN("lrc", 2, 4, bias=False)


def test_parameters_of_earlier_releases_are_read():
    rnn = RNN("gru", 2, 4, num_layers=2, bidirectional=True)
    old = {n.removeprefix("weight_").removeprefix("bias_"): p for n, p in rnn.state_dict().items()}
    assert "W_r_l1_reverse" in old
    again = RNN("gru", 2, 4, num_layers=2, bidirectional=True)
    again.load_state_dict(old)
    model = torch.nn.Sequential(RNN("gru", 2, 4, num_layers=2, bidirectional=True))
    model.load_state_dict({f"0.{n}": p for n, p in old.items()})
    for one in (again, model[0]):
        for a, b in zip(one.parameters(), rnn.parameters(), strict=True):
            assert torch.equal(a, b)


def test_what_is_saved_knows_its_cell():
    peephole = RNN("lstm", 2, 4, peephole=True)
    file = io.BytesIO()
    torch.save(RNN("lstm", 2, 4).state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    RNN("lstm", 2, 4).load_state_dict(saved)
    with pytest.raises(RuntimeError, match=r"LSTM\(peephole=False.*expected LSTM\(peephole=Tr"):
        peephole.load_state_dict(saved)


def test_parameters_drawn_anew():
    rnn = RNN("gru", 2, 4, learn_initial=True)
    before = {n: p.clone() for n, p in rnn.named_parameters()}
    torch.manual_seed(1)
    rnn.reset_parameters()
    after = {n: p.clone() for n, p in rnn.named_parameters()}
    assert all(not torch.equal(before[n], after[n]) for n in before if n != "initial_h")
    torch.manual_seed(1)
    rnn.reset_parameters()
    assert all(torch.equal(p, after[n]) for n, p in rnn.named_parameters())


def test_learned_initial_states_have_gradients():
    rnn = RNN("lstm", 2, 4, num_layers=2, learn_initial=True).double()
    output, _ = rnn(inputs())
    output.sum().backward()
    for name in ("initial_h", "initial_c"):
        assert getattr(rnn, name).grad.abs().min() > 0
    x = inputs()
    assert_close(rnn(x[:, 0])[0], rnn(x)[0][:, 0], 1e-14)
    zeros = torch.zeros(2, BATCH, 4, dtype=DOUBLE)
    with torch.no_grad():
        rnn.initial_c.fill_(1.0)
    assert (rnn(x, (zeros, zeros))[0] - rnn(x)[0]).abs().max() > 0.01


@pytest.mark.parametrize("learned", [False, True])
def test_the_state_before_the_first_step(learned):
    rnn = RNN("lstm", 2, 4, num_layers=2, learn_initial=learned).double()
    if learned:
        with torch.no_grad():
            rnn.initial_c.normal_()
    x = inputs()
    for batch in ((), (BATCH,)):
        first = rnn.initial_state(batch)
        assert first._fields == ("h", "c")
        assert first.c.shape == (2, *batch, 4)
        one = x if batch else x[:, 0]
        assert torch.equal(rnn(one, first)[0], rnn(one)[0])


def test_short_sequences_have_fewer_chunks():
    rnn = RNN("gru", 2, 4, chunks=100).double()
    for steps in (1, 5):
        assert rnn.solve(inputs(steps=steps)).infos[0].chunks == steps


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: RNN(2, 4, 1),
            TypeError,
            "cell: expected the name of a cell.*got 2; it comes first",
        ),
        (lambda: RNN("gru", 2, 4, method="fast"), ValueError, "method: expected one of auto"),
        (lambda: RNN("gru", 2, 4, chunks=2.5), TypeError, "chunks: expected an integer or 'auto'"),
        (lambda: RNN("gru", 2, 4, dropout="no"), ValueError, "dropout: expected a number"),
        (lambda: RNN("gru", 2, 4, proj_size=2), ValueError, "proj_size: expected 0"),
        (lambda: RNN("gru", 2, 4, num_layers=True), ValueError, "num_layers: expected a positive"),
        (
            lambda: RNN("gru", 2, 4)(np.zeros((5, 3, 2), np.float32)),
            TypeError,
            r"input: expected a torch.Tensor, got numpy.ndarray; .* torch.from_numpy\(input\)",
        ),
        (
            lambda: RNN("gru", 2, 4)([[0.0, 1.0]]),
            TypeError,
            r"input: expected a torch.Tensor, got list; .* torch.as_tensor\(input\)",
        ),
        (
            lambda: RNN("gru", 2, 4)(torch.zeros(5, 3, 7)),
            ValueError,
            r"input: expected shape \(T, B, 2\), got \(5, 3, 7\)",
        ),
        (
            lambda: RNN("gru", 2, 4, batch_first=True)(torch.zeros(3, 5, 7)),
            ValueError,
            r"input: expected shape \(B, T, 2\), got \(3, 5, 7\)",
        ),
        (
            lambda: RNN("gru", 2, 4)(torch.zeros(5, 3, 2, dtype=DOUBLE)),
            TypeError,
            "input: expected torch.float32, the dtype of the module, got torch.float64",
        ),
        (
            lambda: RNN("gru", 2, 4, bidirectional=True).step(torch.zeros(3, 2)),
            ValueError,
            "step: expected a module of one direction",
        ),
        (
            lambda: RNN("gru", 2, 4)(
                pack_padded_sequence(torch.zeros(5, 2, 2), [5, 3]), lengths=torch.tensor([5, 3])
            ),
            ValueError,
            "lengths: expected None for a PackedSequence",
        ),
    ],
)
def test_wrong_calls(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_wrong_cells_are_told():
    class Nothing(parnl.Cell):
        def features(self, p, u):
            return dict(u=u)

        def step(self, p, x, f):
            x + f.u

    class Array(parnl.Cell):
        def features(self, p, u):
            return u

        def step(self, p, x, f):
            return x + f.u

    with pytest.raises(parnl.StepError, match=r"states x, got None; does the method end in"):
        Nothing(2, 2)
    with pytest.raises(TypeError, match=r"Array.features: expected a dict name -> array .* Tensor"):
        parnl.solve(Array(2, 2), {}, torch.zeros(3, 5, 2))


def test_a_parameter_dict_is_a_mapping():
    cell = parnl.get_cell("gru", 2, 4)
    params = cell.init(0, "torch")
    kept = torch.nn.ParameterDict({n: torch.nn.Parameter(p) for n, p in params.items()})
    x = torch.randn(BATCH, STEPS, 2)
    assert torch.equal(parnl.solve(cell, kept, x).outputs, parnl.solve(cell, params, x).outputs)
    with pytest.raises(TypeError, match="params: expected a mapping name -> array, got list"):
        parnl.solve(cell, list(params.values()), x)


@pytest.mark.parametrize("kind", [torch.nn.GRU, torch.nn.LSTM, torch.nn.RNN])
@pytest.mark.parametrize("bias", [True, False])
def test_modules_of_torch_become_layers(kind, bias):
    how = {"bias": bias, "batch_first": True, "dropout": 0.5, "bidirectional": True}
    theirs = diagonal.make_diagonal(kind(2, 4, num_layers=2, dtype=DOUBLE, **how).eval())
    ours = RNN.from_torch(theirs, chunks=3)
    x = inputs(batch_first=True)
    expected, end = theirs(x)
    found, state = ours(x)
    assert_close(found, expected, 1e-12)
    for a, b in zip(*((s if isinstance(s, tuple) else (s,)) for s in (state, end)), strict=True):
        assert_close(a, b, 1e-12)
    assert not ours.training
    with pytest.raises(ValueError, match="take='diagonal' keeps only the diagonal"):
        RNN.from_torch(kind(2, 4))
    assert RNN.from_torch(kind(2, 4), take="diagonal")(x[0].float())[0].shape == (STEPS, 4)
