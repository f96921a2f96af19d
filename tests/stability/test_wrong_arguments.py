"""Wrong arguments of `certify` are named."""

import numpy as np
import pytest

import parnl

GRU = parnl.get_cell("gru", 2, 3)

RANGES = {name: (-1.0, 1.0) for name in "rzn"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(feature_ranges=None), "feature_ranges, inputs: expected exactly one"),
        (dict(inputs=np.ones((4, 2))), "feature_ranges, inputs: expected exactly one"),
        (dict(budget=0), "budget: expected a positive integer, got 0"),
        (dict(budget=2.5), "budget: expected a positive integer, got 2.5"),
        (dict(dt=0.5), "dt: expected None"),
        (dict(feature_ranges={"r": (0, 1)}), r"missing \['z', 'n'\]"),
        (dict(feature_ranges=RANGES | {"q": (0, 1)}), r"unknown \['q'\]"),
        (dict(feature_ranges=RANGES | {"r": (1, 0)}), "feature_ranges r: expected low <= high"),
        (dict(feature_ranges=RANGES | {"r": (np.nan, 0)}), "r: expected finite numbers"),
        (dict(feature_ranges=RANGES | {"r": (0, np.inf)}), "r: expected finite numbers"),
        (dict(feature_ranges=RANGES | {"r": 1.0}), r"r: expected a pair \(low, high\), got 1.0"),
        (dict(feature_ranges=RANGES | {"r": (np.zeros(2), 1)}), r"arrays of shape \(3,\)"),
        (dict(state_range=(1, -1)), "state_range h: expected low <= high"),
        (dict(state_range=(0, 1, 2)), "state_range: expected a pair"),
        (dict(state_range=1.0), "state_range: expected a pair"),
        (dict(state_range=[(0, 1), (0, 1)]), "one for each of the states h, got"),
        (dict(inputs=np.ones((0, 2)), feature_ranges=None), "at least one step"),
        (dict(inputs=np.full((4, 2), np.nan), feature_ranges=None), "feature r: expected finite"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(
        cell=GRU, params=GRU.init(0, dtype="float64"), state_range=(-1, 1), feature_ranges=RANGES
    )
    with pytest.raises(ValueError, match=message):
        parnl.certify(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(params=[1.0]), "params: expected a mapping"),
        (dict(feature_ranges=(-1, 1)), "feature_ranges: expected a mapping"),
        (dict(feature_ranges=RANGES | {"r": ("a", "b")}), "feature_ranges r: expected an array"),
        (dict(cell="gru"), "cell: expected a parnl.Cell"),
    ],
)
def test_arguments_of_wrong_types_are_named(change, message):
    arguments = dict(cell=GRU, params=GRU.init(0), state_range=(-1, 1), feature_ranges=RANGES)
    with pytest.raises(TypeError, match=message):
        parnl.certify(**(arguments | change))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_parameters_that_are_no_numbers_are_refused(bad):
    params = GRU.init(0, dtype="float64")
    params["a_z"][1] = bad
    with pytest.raises(ValueError, match="a_z: expected finite numbers"):
        parnl.certify(GRU, params, (-1, 1), RANGES)
    with pytest.raises(ValueError, match="a_z: expected finite numbers"):
        parnl.certify(GRU, params, inputs=np.ones((3, 2)))
