"""Classifiers: the same in both frameworks, and as their description says."""

import numpy as np
import pytest
from toy_runs import BACKENDS, toy, trainer_of

from parnl.learn import training


@pytest.mark.parametrize("backend", BACKENDS)
def test_parallel_logits_equal_sequential_ones(backend):
    dataset = toy()
    trainer = trainer_of(backend, dataset, blocks=2)
    batch = dataset.train.inputs, dataset.train.lengths
    sequential, nothing = trainer.predict(*batch, method="sequential")
    parallel, iterations = trainer.predict(*batch, method="newton", chunks=12)
    assert nothing == [0, 0]
    assert len(iterations) == 2
    assert min(iterations) >= 1
    np.testing.assert_allclose(parallel, sequential, atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_not_reach_the_logits(backend):
    dataset = toy(count=4)
    trainer = trainer_of(backend, dataset)
    inputs, _, lengths = dataset.train[:3]
    expected, _ = trainer.predict(inputs, lengths)
    noisy = np.where((np.arange(12) < lengths[:, None])[..., None], inputs, np.float32(1e6))
    np.testing.assert_array_equal(trainer.predict(noisy, lengths)[0], expected)
    for row, length in enumerate(lengths):
        alone, _ = trainer.predict(inputs[row : row + 1, :length], None)
        np.testing.assert_allclose(alone[0], expected[row], atol=2e-6)


@pytest.mark.parametrize("lengths", [True, False])
def test_torch_and_jax_are_the_same_model(lengths):
    dataset = toy(lengths=lengths)
    torch, jax = (trainer_of(backend, dataset, cell="gru", blocks=2) for backend in BACKENDS)
    state = torch.export_state()
    weights = {name: value for name, value in state.items() if name.startswith("model.")}
    assert "model.blocks.1.recurrence.a_r" in weights
    assert weights["model.blocks.0.back.weight"].shape == (6, 4)
    training.check_arrays(
        weights, {n: v for n, v in jax.export_state().items() if n.startswith("model.")}
    )
    jax.import_state(weights)
    batch = dataset.test.inputs, dataset.test.lengths
    np.testing.assert_allclose(jax.predict(*batch)[0], torch.predict(*batch)[0], atol=5e-6)


def test_torch_classifier_follows_its_description():
    """Against a plain composition: norm, recurrence, residual, norm, MLP, residual, head, mean."""
    import torch
    from torch.nn.functional import gelu, layer_norm, linear

    import parnl
    from parnl.learn.torch_model import Classifier

    model = Classifier(2, 3, cell="lrc", width=4, state=4, blocks=1, seed=5)
    w = dict(model.named_parameters())
    inputs = torch.randn(3, 9, 2)
    x = gelu(linear(inputs, w["lift.weight"], w["lift.bias"]))
    x = linear(x, w["encoder.weight"], w["encoder.bias"])
    cell = parnl.get_cell("lrc", input_size=4, hidden_size=4)
    params = {n.split(".")[-1]: v for n, v in w.items() if ".recurrence." in n}
    x = x + parnl.solve(cell, params, layer_norm(x, (4,)), method="sequential").outputs
    hidden = gelu(
        linear(layer_norm(x, (4,)), w["blocks.0.expand.weight"], w["blocks.0.expand.bias"])
    )
    x = x + linear(hidden, w["blocks.0.contract.weight"], w["blocks.0.contract.bias"])
    logits = linear(x, w["head.weight"], w["head.bias"]).mean(dim=1)
    torch.testing.assert_close(model(inputs)[0], logits, atol=1e-6, rtol=1e-6)


def test_attention_is_torch_nn_s_with_sinusoidal_positions():
    """A pre-norm encoder layer of torch.nn at the same weights, after positions from the paper."""
    import torch
    from torch import nn

    from parnl.learn.torch_model import Classifier

    model = Classifier(2, 3, cell="attention", width=8, blocks=1, seed=5).eval()
    block = model.blocks[0]
    layer = nn.TransformerEncoderLayer(
        8, 4, dim_feedforward=8, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).eval()
    layer.self_attn = block.attention
    layer.linear1, layer.linear2 = block.expand, block.contract
    lengths = torch.tensor([9, 4, 1])
    inputs = torch.randn(3, 9, 2)
    t, i = np.arange(9)[:, None], np.arange(4)
    angle = t / 10000 ** (2 * i / 8)
    where = np.stack([np.sin(angle), np.cos(angle)], -1).reshape(9, 8).astype(np.float32)
    padding = torch.arange(9) >= lengths[:, None]
    x = model.encoder(nn.functional.gelu(model.lift(inputs))) + torch.from_numpy(where)
    x = model.head(layer(x, src_key_padding_mask=padding))
    expected = torch.stack([row[:n].mean(dim=0) for row, n in zip(x, lengths, strict=True)])
    found, infos = model(inputs, lengths)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=2e-6)
    assert infos == [None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_loops_apply_the_same_blocks_again(backend):
    """One block, looped: as many parameters; two blocks of equal weights: the same logits."""
    dataset = toy(count=8)
    batch = dataset.test.inputs, dataset.test.lengths
    looped = trainer_of(backend, dataset, loops=2)
    double = trainer_of(backend, dataset, blocks=2)
    state = looped.export_state()
    state |= {
        name.replace("blocks.0", "blocks.1"): value
        for name, value in state.items()
        if name.startswith("model.blocks.0")
    }
    double.import_state({n: v for n, v in state.items() if n.startswith("model.")})
    expected, _ = double.predict(*batch)
    found, iterations = looped.predict(*batch)
    np.testing.assert_array_equal(found, expected)
    assert len(iterations) == 2
    once, _ = trainer_of(backend, dataset).predict(*batch)
    assert np.abs(once - found).max() > 1e-3


def test_building_a_torch_model_leaves_the_random_numbers_alone():
    import torch

    from parnl.learn.torch_model import Classifier

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (Classifier(2, 3, seed=seed) for seed in (0, 0, 1))
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    torch.testing.assert_close(first.head.weight, second.head.weight, rtol=0, atol=0)
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.parametrize(("cell", "loops"), [("lrc", 1), ("lstm", 2)])
def test_a_classifier_step_by_step(cell, loops):
    import torch

    from parnl.learn.torch_model import Classifier

    options = dict(cell=cell, width=4, state=6, blocks=2, loops=loops, dropout=0.5, seed=5)
    model = Classifier(2, 3, **options).eval().double()
    inputs = torch.randn(5, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = None
    with torch.no_grad():
        for t in range(9):
            logits, state = model.step(inputs[:, t], state)
            whole, _ = model(inputs[:, : t + 1], method="sequential")
            np.testing.assert_allclose(logits, whole, rtol=1e-12, atol=1e-12)
        alone, _ = model.step(inputs[0, 0])
        np.testing.assert_allclose(alone, model(inputs[:1, :1])[0][0], rtol=1e-12, atol=1e-12)
    assert len(state.blocks) == 2 * loops
    assert float(state.steps) == 9.0


def test_what_a_classifier_cannot_do_step_by_step():
    import torch

    from parnl.learn.torch_model import Block, Classifier

    class Other(Block):
        def mix(self, x, lengths, **solver):
            return x, None

    x = torch.zeros(2)
    with pytest.raises(ValueError, match="eval mode"):
        Classifier(2, 3, width=4, state=4).step(x)
    for keywords, name in (({"cell": "attention"}, "attention"), ({"block": Other}, "Other")):
        with pytest.raises(NotImplementedError, match=f"step: {name} lacks mix_step"):
            Classifier(2, 3, width=4, state=4, **keywords).eval().step(x)


def in_all_libraries(how, like):
    """Models with the weights of `like`, a model in torch, and what makes arrays for each."""
    import jax
    import jax.numpy as jnp
    import torch
    from flax import nnx

    import parnl.equinox
    import parnl.flax
    import parnl.torch

    weights = {name: value.numpy() for name, value in like.state_dict().items()}
    of_torch = parnl.torch.Classifier(**how).eval()
    of_torch.load_state_dict(like.state_dict())
    of_equinox = parnl.equinox.Classifier(**how)
    of_equinox = jax.tree_util.tree_map_with_path(
        lambda path, value: (
            jnp.asarray(weights[jax.tree_util.keystr(path, simple=True, separator=".")])
            if isinstance(value, jax.Array) else value
        ), of_equinox,
    )  # fmt: skip
    of_flax = parnl.flax.Classifier(**how, rngs=nnx.Rngs(0))
    known = nnx.to_flat_state(nnx.state(of_flax, nnx.Param))
    found = [(p, nnx.Param(jnp.asarray(weights[".".join(map(str, p))]))) for p, _ in known]
    nnx.update(of_flax, nnx.from_flat_state(found))
    return (of_torch, torch.tensor), (of_equinox, jnp.asarray), (of_flax, jnp.asarray)


@pytest.mark.long
@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("readout", ["mean", "last", "each"])
def test_what_is_read_out(readout, tokens):
    """In all three libraries, whole and step by step: against the answers of each step in torch."""
    import torch

    import parnl.torch

    sizes = dict(channels=5, classes=3, cell="lstm", width=6, state=4, tokens=tokens, loops=2)
    rng, lengths = np.random.default_rng(0), np.array([3, 7])
    inputs = rng.integers(0, 5, (2, 7)) if tokens else rng.normal(size=(2, 7, 5)).astype("f4")
    each = parnl.torch.Classifier(**sizes, readout="each").eval()
    every, _ = each(torch.tensor(inputs))
    every = every.detach().numpy()
    expected = {
        "each": every,
        "last": every[[0, 1], lengths - 1],
        "mean": np.stack([one[:n].mean(axis=0) for one, n in zip(every, lengths, strict=True)]),
    }[readout]
    for model, xp in in_all_libraries(dict(sizes, readout=readout), each):
        whole, _ = model(xp(inputs), xp(lengths))
        whole = whole.detach() if isinstance(whole, torch.Tensor) else whole
        if readout == "each":  # steps after the end are anything
            np.testing.assert_allclose(np.asarray(whole)[0, :3], expected[0, :3], atol=1e-6)
            np.testing.assert_allclose(np.asarray(whole)[1], expected[1], atol=1e-6)
        else:
            np.testing.assert_allclose(np.asarray(whole), expected, atol=1e-6)
        state = None
        for t in range(3):
            answer, state = model.step(xp(inputs[:, t]), state)
        answer = answer.detach() if isinstance(answer, torch.Tensor) else answer
        wanted = every[0, :3].mean(axis=0) if readout == "mean" else every[0, 2]
        np.testing.assert_allclose(np.asarray(answer)[0], wanted, atol=1e-6)


def test_attention_read_out_at_each_step_sees_no_later_one():
    import torch

    from parnl.torch import Classifier

    inputs = torch.randn(2, 9, 5)
    changed = inputs.clone()
    changed[:, 6:] += 1
    how = dict(channels=5, classes=3, cell="attention", width=8)
    one, other = (
        Classifier(**how, readout="each").eval()(x)[0].detach() for x in (inputs, changed)
    )
    torch.testing.assert_close(one[:, :6], other[:, :6])
    assert (one[:, 6:] - other[:, 6:]).abs().min() > 1e-4


@pytest.mark.parametrize("kind", ["torch", "equinox", "flax"])
def test_wrong_readouts_and_tokens(kind):
    from importlib import import_module

    from flax import nnx

    more = {"rngs": nnx.Rngs(0)} if kind == "flax" else {}
    make = import_module(f"parnl.{kind}").Classifier
    with pytest.raises(ValueError, match="readout: got 'first', expected 'mean', 'last', 'each'"):
        make(2, 3, readout="first", **more)
    model = make(5, 3, tokens=True, **more)
    with pytest.raises(
        ValueError, match=r"inputs: expected shape \(N, T\) of tokens, got \(2, 4, 5"
    ):
        model(np.zeros((2, 4, 5)))


@pytest.mark.long
@pytest.mark.parametrize("cell", ["ltc", "lrc"])
def test_the_clock_reaches_the_cell(cell):
    """Against the cell's own option dt, where all steps are alike; and step by step, where not."""
    import torch

    from parnl.torch import Classifier

    sizes = dict(channels=3, classes=2, cell=cell, width=6, state=4)
    like = Classifier(**sizes).eval()
    rng = np.random.default_rng(0)
    inputs, lengths = rng.normal(size=(2, 9, 3)).astype(np.float32), np.array([9, 5])
    for step in (1.0, 0.5):
        inputs[..., 2] = step
        plain = Classifier(**sizes, dt=step).eval()
        plain.load_state_dict(like.state_dict())
        expected = plain(torch.tensor(inputs), torch.tensor(lengths))[0].detach()
        for model, xp in in_all_libraries(dict(sizes, clock=True), like):
            found, _ = model(xp(inputs), xp(lengths))
            found = found.detach() if isinstance(found, torch.Tensor) else found
            np.testing.assert_allclose(np.asarray(found), expected, atol=1e-6)
    inputs[..., 2] = rng.uniform(0.1, 2, (2, 9))
    for model, xp in in_all_libraries(dict(sizes, clock=True), like):
        whole, state = model(xp(inputs))[0], None
        assert abs(np.asarray(whole.tolist()) - expected.numpy()).max() > 1e-4
        for t in range(9):
            answer, state = model.step(xp(inputs[:, t]), state)
        np.testing.assert_allclose(answer.tolist(), whole.tolist(), atol=1e-6)


@pytest.mark.parametrize("kind", ["torch", "equinox", "flax"])
def test_clocks_that_do_not_fit(kind):
    from importlib import import_module

    from flax import nnx

    more = {"rngs": nnx.Rngs(0)} if kind == "flax" else {}
    make = import_module(f"parnl.{kind}").Classifier
    with pytest.raises(ValueError, match="clock: got True with GRU, whose step has no argument dt"):
        make(2, 3, cell="gru", clock=True, **more)
    with pytest.raises(ValueError, match="clock: got True with tokens; expected a cell that takes"):
        make(2, 3, cell="ltc", clock=True, tokens=True, **more)
