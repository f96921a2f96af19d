"""Text: windows, counts and fits against plain truth, and what a run leaves and draws."""

import math

import numpy as np
import pytest
import torch
from torch import nn

SENTENCES = [b"a cat sees a dog. ", b"a dog sees a bird. ", b"my bird hears a cat. "]


@pytest.fixture
def text(experiment, tmp_path, monkeypatch):
    module = experiment("text")
    small = dict(BYTES=512, SHARES=(1.0, 0.5), WINDOW=16, BATCH=4, EPOCHS=2, ROUNDS=1, TURN=2)
    small |= dict(SEEDS=(0, 1), RATES=(1e-2, 3e-2), ORDERS=range(1, 3), VALIDATED=8, TESTED=8)
    small |= dict(FIGURE=tmp_path / "results" / "figure.png")
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    for size, results in module.RESULTS.items():
        units = 6 * (1 + list(module.SIZES).index(size))
        own = module.Sizes(256, 256, units=units, block_width=8, blocks=1)
        monkeypatch.setitem(module.SIZES, size, own)
        monkeypatch.setattr(results, "path", tmp_path / "results" / f"{size}.jsonl")
    return module


@pytest.fixture
def folder(tmp_path):
    """Sentences in random order, in a file such as that of the experiment."""
    rng = np.random.default_rng(0)
    made = {}
    for part in ("train", "valid", "test"):
        sentences = b"".join(SENTENCES[i] for i in rng.integers(3, size=40))
        made[part] = np.frombuffer(sentences, np.uint8)
    np.savez(tmp_path / "PennTreebank.npz", **made)
    return tmp_path


class Known(nn.Module):
    """Gives the next byte of this text the logit 3, others 0; its last 256 bytes differ."""

    def forward(self, read):
        return 3.0 * nn.functional.one_hot((read + 1) % 256, 256).float(), []


def test_every_byte_but_the_first_ones_is_told_once(text):
    own = np.arange(100, dtype=np.uint8)
    rows = text.overlapping(own, 1000)
    assert rows.shape[1] == 17
    told = rows[:, 9:].flatten().tolist()
    assert told == list(range(9, 9 + len(told)))
    assert len(told) > 100 - 9 - 8  # what is left is no half window
    few = text.overlapping(own, 3)
    assert few[:, 0].tolist() == [0, rows[len(rows) // 2, 0], rows[-1, 0]]


def test_bits_are_those_of_the_second_halves(text):
    rows = torch.arange(17).repeat(40, 1)
    right, wrong = (math.log2((math.exp(3) + 255) / x) for x in (math.exp(3), 1))
    assert text.bits(Known(), rows) == pytest.approx(right, rel=1e-5)
    rows[:, 3] = 200  # in the first half, so it does not count
    assert text.bits(Known(), rows) == pytest.approx(right, rel=1e-5)
    rows[::2, 16] = 200
    assert text.bits(Known(), rows) == pytest.approx(right + (wrong - right) / 16, rel=1e-5)


@pytest.mark.long
def test_a_model_knows_nothing_of_what_it_is_to_tell(text):
    rows = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    other = rows.clone()
    other[:, 9:] = 0
    for name in text.MODELS:
        state = text.matched_state(name, text.SIZES["0.1M"])
        model = text.build(name, state, text.SIZES["0.1M"], 0)
        with torch.no_grad():
            one, two = model(rows)[0], model(other)[0]
        torch.testing.assert_close(one[:, :9], two[:, :9], msg=name)
        assert (one[:, 9:] - two[:, 9:]).abs().max() > 1e-3, name


@pytest.mark.long
def test_models_have_as_many_parameters(experiment):
    text = experiment("text")
    for size, sizes in text.SIZES.items():
        wanted = text.count(text.build("gru", sizes.units, sizes, 0))
        assert 0.9 < wanted / (float(size[:-1]) * 1e6) < 1.2
        for name in text.MODELS if size == text.SMALLEST else text.GROWN:
            found = text.count(text.build(name, text.matched_state(name, sizes), sizes, 0))
            assert abs(found / wanted - 1) < 0.03, (size, name)


def test_operations_are_those_that_pytorch_counts(text):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    rows = torch.zeros(2, text.WINDOW, dtype=torch.long)
    for name in ("mingru", "attention"):
        model = text.build(name, 8, text.SIZES["0.1M"], 0)
        # the only attention on a CPU whose operations it knows
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(rows)[0].sum().backward()
        matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
        vectors = text.count(model) - matrices
        wanted = text.operations(model) - 6 * vectors
        assert counter.get_total_flops() / rows.numel() == pytest.approx(wanted, rel=0.05), name


def test_chances_of_all_bytes_sum_to_one_and_follow_the_counts(text):
    counts = text.Counts([b"abab", b"abc"], 2)
    for before in (b"", b"a", b"ab", b"zz", b"zb"):
        every = (counts.chance(before, bytes([b])) for b in range(256))
        assert sum(every) == pytest.approx(1.0), before
    alone = (3 + 3 / 256) / (7 + 3)  # a is 3 of 7 bytes, of 3 kinds
    assert counts.chance(b"", b"a") == pytest.approx(alone)
    after_b = (1 + 2 * alone) / (2 + 2)  # of the two bytes after b, one is a
    assert counts.chance(b"b", b"a") == pytest.approx(after_b)
    assert counts.chance(b"zb", b"a") == pytest.approx(after_b)  # zb was never seen
    assert counts.chance(b"ab", b"a") == pytest.approx((1 + 2 * after_b) / (2 + 2))


def test_counts_take_the_bits_of_the_same_bytes(text):
    counts = text.Counts([bytes(range(40))], 2)
    rows = torch.arange(17).repeat(2, 1)
    rows[1, 3] = 200
    wanted = -np.mean([math.log2(counts.chance(bytes([t - 2, t - 1]), bytes([t])))
                       for t in range(9, 17)])  # fmt: skip
    assert counts.bits(rows, 2) == pytest.approx(wanted)


def test_the_frontier_has_its_exponent(text):
    made = [(c, 1.0 + 5.0 * c**-0.25) for c in (1e9, 1e10, 1e11)]
    worse = [(2e11, 2.0), (2e9, 3.0), (1e10, 1.9)]
    runs = [dict(operations=c / 1000, read=1000, validation=b) for c, b in worse + made]
    points = text.frontier(runs)
    assert points == made
    start, exponent = text.power(points, floor=1.0)
    assert (math.exp(start), exponent) == pytest.approx((5.0, 0.25))
    assert 0 < text.power(points)[1] < 0.25


@pytest.mark.long
def test_runs_are_kept_not_run_again_and_drawn(text, folder, command, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for what in ("run", "time"):
        command(text, what, "--data", folder, "--models", "gru", "s6")
    small, middle, large = ([r for r in results.records()] for results in text.RESULTS.values())
    assert [r["model"] for r in small if r["kind"] == "time"] == ["gru", "s6"]
    runs = [r for r in small if r["kind"] == "run"]
    assert runs[0]["model"] == text.COUNTS
    # two rates and another seed; the gru with half the text, too
    assert [r["read"] for r in runs[1:]] == [512] * 6 + [256]
    best = text.RESULTS[text.SMALLEST].best("gru", 0)["rate"]  # the widths are equal here
    for grown in (middle, large):
        assert [(r["model"], r["read"], r["rate"]) for r in grown] == [
            ("gru", 512, best),
            ("gru", 256, best),
        ]
    assert all(len(r["curve"]) == 2 and r["validation"] == min(r["curve"]) for r in runs[1:])
    capsys.readouterr()

    before = {size: results.path.read_text() for size, results in text.RESULTS.items()}
    text.FIGURE.unlink()
    monkeypatch.setattr(text, "build", None)  # nothing is trained again
    command(text, "run", "--data", folder, "--models", "gru", "s6")
    assert before == {size: results.path.read_text() for size, results in text.RESULTS.items()}
    shown = capsys.readouterr().out
    assert "| gru | " in shown
    assert "| gru | 1M |" in shown
    assert f"{1 + 7 + 2 + 2} runs" in shown
    assert text.FIGURE.is_file()
