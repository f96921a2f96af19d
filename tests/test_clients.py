"""Libraries that train modules: each must find in parnl's what it finds in any other."""

import copy
import pickle

import numpy as np
import pytest
from optional import jax, jnp, torch
from oracles import assert_close

LR = 0.2


def own_loop(model, batches, epochs, half=False):
    """Train as the libraries are asked to, by a plain loop; return the losses."""
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    losses = []
    for _ in range(epochs):
        for x, labels in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = torch.nn.functional.cross_entropy(model(x), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    return losses


def assert_same(one, other, tolerance=1e-6):
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in mine.items():
        assert parameter.dtype == torch.float32
        assert_close(parameter.detach(), theirs[name].detach(), tolerance, name)


# -- Lightning ------------------------------------------------------------------------------------


def fitted(folder, epochs=3, batch=8, cell="gru", **how):
    """Return the module after a fit on 32 series, and the batches of one process."""
    lightning = pytest.importorskip("lightning")
    from client_lightning import Lit
    from client_models import series
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(*series(32)), batch_size=batch)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **quiet, **how
    )
    module = Lit(cell, LR)
    trainer.fit(module, loader)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module, list(loader)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_lightning_in_mixed_precision(cell, tmp_path):
    module, batches = fitted(
        tmp_path, cell=cell, precision="bf16-mixed", enable_checkpointing=False
    )
    from client_lightning import Lit
    from client_models import Labels

    alone = Labels(cell, num_layers=2)
    losses = own_loop(alone, batches, 3, half=True)
    assert_close(np.array(module.losses), np.array(losses), 1e-6)
    assert_same(module.model, alone)
    whole = Labels(cell, num_layers=2)
    assert losses != own_loop(whole, batches, 3)  # half precision it was
    read = Lit.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert_same(read.model, module.model, 0)
    assert read.hparams.cell == cell


def test_lightning_in_two_processes(tmp_path):
    module, _ = fitted(
        tmp_path, 6, 16, strategy="ddp_spawn", devices=2, enable_checkpointing=False
    )  # both have half of all series, in whatever order
    from client_models import Labels, series

    alone = Labels(num_layers=2)
    losses = own_loop(alone, [series(32)], 6)
    assert losses[-1] < losses[0]
    assert_same(module.model, alone)


def test_lightning_averages_weights(tmp_path):
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    averaging = callbacks.StochasticWeightAveraging(LR, swa_epoch_start=2, annealing_epochs=1)
    module, _ = fitted(tmp_path, epochs=5, callbacks=[averaging], enable_checkpointing=False)
    for name, parameter in module.named_parameters():
        # of the weights that the second epoch and the later ones began with
        mean = torch.stack([e[name] for e in module.epochs[:-1]]).mean(0)
        assert_close(parameter.detach(), mean, 1e-6, name)
        assert (module.epochs[-1][name] - mean).abs().max() > 1e-5, name


# -- skorch ---------------------------------------------------------------------------------------


def test_skorch_in_a_grid_search():
    skorch = pytest.importorskip("skorch")
    from client_models import Labels, series
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    x, labels = (a.numpy() for a in series(48))
    net = skorch.NeuralNetClassifier(
        Labels, lr=LR, max_epochs=15, batch_size=8, train_split=None, verbose=0,
        criterion=torch.nn.CrossEntropyLoss, iterator_train__shuffle=False,
    )  # fmt: skip
    grid = {"module__cell": ["gru", "lstm"], "module__hidden": [8]}
    folds = StratifiedKFold(2)
    search = GridSearchCV(net, grid, n_jobs=2, cv=folds).fit(x, labels)
    assert search.best_score_ > 0.8
    results = search.cv_results_
    for choice, score in zip(results["params"], results["split0_test_score"], strict=True):
        train, test = next(folds.split(x, labels))
        here = clone(net).set_params(**choice).fit(x[train], labels[train])
        assert here.score(x[test], labels[test]) == score  # as in the other process
    read = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(read.predict_proba(x), search.predict_proba(x))


# -- accelerate -----------------------------------------------------------------------------------


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield lambda **how: accelerate.Accelerator(cpu=True, **how)
    reset()


def test_accelerate_accumulates_saves_and_loads(accelerator, tmp_path):
    pytest.importorskip("safetensors")
    from client_models import Labels, series
    from torch.utils.data import DataLoader, TensorDataset

    given = accelerator(gradient_accumulation_steps=4)
    model = Labels("lstm", num_layers=2)
    optimiser = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.5)
    loader = DataLoader(TensorDataset(*series(32)), batch_size=4)
    model, optimiser, loader = given.prepare(model, optimiser, loader)

    def epoch():
        for x, labels in loader:
            with given.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(x), labels)
                given.backward(loss)
                optimiser.step()
                optimiser.zero_grad()

    epoch()
    given.save_state(tmp_path / "state")
    assert (tmp_path / "state" / "model.safetensors").is_file()
    epoch()
    twice = copy.deepcopy(given.unwrap_model(model))
    given.load_state(tmp_path / "state")
    epoch()  # parameters and momentum are those of the file
    assert_same(given.unwrap_model(model), twice, 0)
    alone = Labels("lstm", num_layers=2)
    own = torch.optim.SGD(alone.parameters(), lr=LR, momentum=0.5)
    for x, labels in zip(*(a.split(16) for a in series(32)), strict=True):
        own.zero_grad()
        torch.nn.functional.cross_entropy(alone(x), labels).backward()
        own.step()
    given.load_state(tmp_path / "state")
    assert_same(given.unwrap_model(model), alone)


def test_accelerate_in_mixed_precision_keeps_named_states(accelerator):
    from client_models import CHANNELS, series

    from parnl.torch import RNN

    given = accelerator(mixed_precision="bf16")
    plain = RNN("lstm", CHANNELS, 8, batch_first=True, seed=0)
    rnn = given.prepare(copy.deepcopy(plain))
    x, _ = series(4)
    output, state = rnn(x)
    with torch.autocast("cpu", torch.bfloat16):
        expected, end = plain(x)
    assert output.dtype == torch.float32
    assert state._fields == ("h", "c")
    assert_close(output.detach(), expected.detach().float(), 0)
    assert_close(state.c.detach(), end.c.detach().float(), 0)
    again, _ = rnn(x, state)  # to go on from
    assert again.shape == output.shape


# -- optax and orbax ------------------------------------------------------------------------------


def jax_training(kind, optimiser):
    """Return parameters, and what makes the next of them and of the optimiser's state."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((12, 3, 2)), jnp.float32)
    target = jnp.roll(x.sum(-1), 1, axis=0)
    if kind == "equinox":
        eqx = pytest.importorskip("equinox")
        import parnl.equinox

        rnn = parnl.equinox.RNN("lstm", 2, 4, key=jax.random.key(0))
        first, rest = eqx.partition(rnn, eqx.is_array)

        def loss(params):
            return jnp.mean((eqx.combine(params, rest)(x)[0].sum(-1) - target) ** 2)
    else:
        nnx = pytest.importorskip("flax.nnx")
        import parnl.flax

        graph, first, rest = nnx.split(
            parnl.flax.RNN("lstm", 2, 4, rngs=nnx.Rngs(0)), nnx.Param, ...
        )

        def loss(params):
            return jnp.mean((nnx.merge(graph, params, rest)(x)[0].sum(-1) - target) ** 2)

    @jax.jit
    def update(params, state):
        changes, state = optimiser.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, c: p + c, params, changes), state

    return first, update


@pytest.mark.parametrize("kind", ["equinox", "flax"])
def test_optax_goes_on_from_what_orbax_kept(kind, tmp_path):
    """Adam with decay of matrices alone: its state is kept, and neither biases nor others decay."""
    optax = pytest.importorskip("optax")
    checkpoint = pytest.importorskip("orbax.checkpoint")

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim == 2, params)

    optimiser = optax.adamw(0.01, weight_decay=0.1, mask=matrices)
    first, update = jax_training(kind, optimiser)
    now = (first, optimiser.init(first))
    for _ in range(2):
        now = update(*now)
    leaves = [[np.asarray(a) for a in jax.tree.leaves(now)]]
    with checkpoint.StandardCheckpointer() as keeper:
        keeper.save((tmp_path / "kept").absolute(), dict(enumerate(jax.tree.leaves(now))))
        keeper.wait_until_finished()
        like = dict(enumerate(jax.tree.leaves((first, optimiser.init(first)))))
        kept = keeper.restore((tmp_path / "kept").absolute(), like)
    read = jax.tree.unflatten(jax.tree.structure(now), [kept[i] for i in range(len(kept))])
    for _ in range(2):
        now, read = update(*now), update(*read)
    for a, b, c in zip(*(jax.tree.leaves(t) for t in (now, read)), leaves[0], strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(np.asarray(a) != c)
