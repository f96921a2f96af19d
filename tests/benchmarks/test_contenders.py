"""Models of equal size: their parameters, what they may see, and how ncps is called."""

import sys

import pytest
import torch


@pytest.fixture
def contenders(experiment):
    return experiment("contenders")


def own(contenders):
    """The models that do not need ncps."""
    return [name for name in contenders.MODELS if not name.startswith("ncps")]


@pytest.mark.parametrize("shape", [(18, 17), (82, 1)])
def test_models_have_as_many_parameters(contenders, shape):
    sizes = contenders.Sizes(*shape)
    for name in own(contenders):
        model = contenders.build(name, contenders.matched_state(name, sizes), sizes, 0)
        assert abs(contenders.count(model) / contenders.wanted(sizes) - 1) <= 0.02, name


def test_models_of_ncps_have_those_parameters_and_a_dt_for_each_sequence(contenders):
    pytest.importorskip("ncps")
    sizes = contenders.Sizes(5, 2, units=6)
    assert contenders.matched_state("ncps cfc", sizes) == 6
    model = contenders.build("ncps cfc", 6, sizes, 0)
    assert contenders.count(model) == contenders.wanted(sizes)
    # as many sequences as units: here ncps would take one for the other
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 5, 5, generator=generator, dtype=torch.float64)
    inputs[..., -1] = inputs[..., -1].abs()  # time does not run backward
    for name in ("ncps cfc", "ncps ltc"):
        # in float64: products of one sequence and of many are rounded differently
        model = contenders.build(name, 6, sizes, 0).double()
        whole = model(inputs)
        alone = torch.cat([model(row[None]) for row in inputs])
        torch.testing.assert_close(whole, alone)


def test_the_seed_decides_every_weight_and_nothing_else_does(contenders):
    sizes = contenders.Sizes(5, 2, width=4, block_width=4)
    for name in own(contenders):
        torch.manual_seed(1)
        one = contenders.build(name, 5, sizes, 0).state_dict()
        after = torch.rand(())
        torch.manual_seed(1)
        assert torch.rand(()) == after
        two, other = (contenders.build(name, 5, sizes, seed).state_dict() for seed in (0, 1))
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)


def test_no_model_sees_what_it_predicts(contenders):
    sizes = contenders.Sizes(5, 2, width=4, block_width=4)
    for name in own(contenders):
        model = contenders.build(name, 5, sizes, 0)
        inputs = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
        inputs[..., -1] = 1.0
        changed = inputs.clone()
        changed[:, 5] += 1.0
        same, other = model(inputs), model(changed)
        assert same.shape == (2, 8, 2)
        torch.testing.assert_close(same[:, :5], other[:, :5])
        assert (same[:, 5:] - other[:, 5:]).abs().max() > 0


def test_cells_that_take_dt_get_it_beside_the_channel(contenders):
    sizes = contenders.Sizes(3, 1, width=4, block_width=4)
    inputs = torch.ones(1, 4, 3)
    later = inputs.clone()
    later[..., -1] = 3.0
    for name in own(contenders):
        model = contenders.build(name, 5, sizes, 0)
        first = model.model.lift if name in ("cfc", "ltc", "gru") else None
        first = model.encoder if name == "cfc plain" else first
        if first is None:
            continue
        with torch.no_grad():
            first.weight[:, -1] = 0.0  # blind to the channel
        differs = not torch.equal(model(inputs), model(later))
        assert differs == (name != "gru"), name


def test_without_ncps_the_script_says_what_to_install(contenders, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncps", None)
    monkeypatch.setitem(sys.modules, "ncps.torch", None)
    with pytest.raises(SystemExit, match="pip install ncps=="):
        contenders.build("ncps cfc", 6, contenders.Sizes(5, 2), 0)
