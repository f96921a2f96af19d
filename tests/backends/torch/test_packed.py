"""`RNN` on packed sequences: order and indices of what comes back, as `torch.nn` has them."""

import pytest
import torch
from diagonal import from_torch, make_diagonal
from oracles import assert_bits, assert_close
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from parnl.torch import RNN

DOUBLE = torch.float64
STACKED = {"num_layers": 2, "bidirectional": True}


def pair(name, **how):
    """Make `torch.nn`'s module with diagonal hidden weights, and parnl's of the same parameters."""
    torch.manual_seed(0)
    kind = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
    theirs = make_diagonal(kind(3, 5, dtype=DOUBLE, **how))
    ours, tensors = RNN(name, 3, 5, dtype=DOUBLE, **how), dict(theirs.named_parameters())
    values = {}
    for layer in range(how.get("num_layers", 1)):
        for end in ("", "_reverse") if how.get("bidirectional") else ("",):
            taken = from_torch(name, tensors, f"l{layer}{end}")
            values |= {f"{k}_l{layer}{end}": v for k, v in taken.items()}
    ours.load_state_dict(values)
    return theirs, ours


def without_indices(packed):
    """As made by hand: rows that are sorted already."""
    return PackedSequence(packed.data, packed.batch_sizes)


def with_one_index(packed):
    return PackedSequence(packed.data, packed.batch_sizes, packed.sorted_indices)


def assert_same_index(found, expected):
    assert (found is None) == (expected is None)
    if expected is not None:
        assert_bits(found, expected)


# more than 16 rows, from where on torch's sort moves what is equal
LENGTHS = {
    "all equal": torch.full((70,), 4),
    "few equal": torch.arange(70) % 7 + 1,
    "three": torch.tensor([1, 9, 6]),
}


@pytest.mark.parametrize("made", [None, without_indices, with_one_index], ids=lambda f: str(f)[:24])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("name", "how"), [("gru", {}), ("gru", STACKED), ("lstm", STACKED)])
def test_what_comes_back_is_ordered_as_what_came(name, how, lengths, made):
    theirs, ours = pair(name, **how)
    lengths = LENGTHS[lengths]
    u = torch.randn(len(lengths), int(lengths.max()), 3, dtype=DOUBLE, requires_grad=True)
    packed = pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=False)
    packed = packed if made is None else made(packed)
    h = torch.randn(4 if how else 1, len(lengths), 5, dtype=DOUBLE, requires_grad=True)
    for start in (None, h if name == "gru" else (h, h.tanh())):
        expected, expected_end = theirs(packed, start)
        found, end = ours(packed, start)
        assert_close(found.data, expected.data, 1e-12)
        assert_bits(found.batch_sizes, packed.batch_sizes)
        assert_same_index(found.sorted_indices, expected.sorted_indices)
        assert_same_index(found.unsorted_indices, expected.unsorted_indices)
        ends = zip(*([end], [expected_end]) if name == "gru" else (end, expected_end), strict=True)
        for a, e in ends:
            assert_close(a, e, 1e-12)
    # word by word, as a loss compares them
    asked = [u, h]
    targets = torch.randn_like(expected.data)
    a, e = (
        torch.autograd.grad(
            ((out.data - targets) ** 2).sum() + last.sum(), asked, retain_graph=True
        )
        for out, last in (
            (found, end if name == "gru" else end[0]),
            (expected, expected_end if name == "gru" else expected_end[0]),
        )
    )
    for x, y in zip(a, e, strict=True):
        assert_close(x, y, 1e-11)


def test_sorted_sequences_stay_without_indices():
    theirs, ours = pair("gru")
    lengths = torch.tensor([5] * 40 + [3] * 40)
    packed = pack_padded_sequence(torch.randn(80, 5, 3, dtype=DOUBLE), lengths, batch_first=True)
    found, expected = ours(packed)[0], theirs(packed)[0]
    assert found.sorted_indices is None
    assert found.unsorted_indices is None
    assert_close(found.data, expected.data, 1e-12)
    assert_bits(pad_packed_sequence(found)[1], lengths)


@pytest.mark.long
def test_under_compile():
    _, ours = pair("gru", **STACKED)
    lengths = torch.arange(70) % 3 + 2
    u = torch.randn(70, 4, 3, dtype=DOUBLE)
    packed = pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=False)
    torch._dynamo.reset()
    try:
        torch.compile(pad_packed_sequence, backend="eager")(packed)
    except torch._dynamo.exc.TorchRuntimeError:  # 2.10 for one
        pytest.skip(f"PyTorch {torch.__version__} does not compile its own pad_packed_sequence")
    found, end = torch.compile(ours, backend="eager")(packed)
    expected, expected_end = ours(packed)
    assert_close(found.data, expected.data, 1e-14)
    assert_bits(found.sorted_indices, packed.sorted_indices)
    assert_close(end, expected_end, 1e-14)


def test_initial_state_of_another_batch_is_refused_by_its_shape():
    _, ours = pair("gru")
    u = torch.randn(5, 4, 3, dtype=DOUBLE)
    packed = pack_padded_sequence(u, [1, 2, 3, 4, 4], batch_first=True, enforce_sorted=False)
    for rows in (3, 7):
        with pytest.raises(ValueError, match=r"hx: expected .* of shape \(1, 5, 5\)"):
            ours(packed, torch.zeros(1, rows, 5, dtype=DOUBLE))


def test_a_device_without_values():
    lengths = torch.tensor([2, 4, 4])
    u = torch.randn(3, 4, 3)
    packed = pack_padded_sequence(u, lengths, batch_first=True, enforce_sorted=False).to("meta")
    found, end = RNN("gru", 3, 5, device="meta")(packed)
    assert found.data.shape == (10, 5)
    assert end.shape == (1, 3, 5)
    assert found.data.device.type == found.sorted_indices.device.type == "meta"
