"""What is done to series before a model sees them, and the same for new data later."""

import json

import numpy as np
import pytest

from parnl.learn import preparation
from parnl.learn.preparation import Preparation, learn
from parnl.learn.readers import Collection, read

NAN = np.nan
SERIES = [
    np.array([[1.0, 10, 0], [NAN, 20, 1], [3, 30, NAN]]),
    np.array([[5.0, 40, 1], [7, NAN, 0]]),
    np.array([[NAN, 60, 2], [NAN, 80, 2]]),
]
TIMES = [np.array([0.0, 1, 4]), np.array([0.0, 2]), np.array([3.0, 5])]


def made(**changes):
    whole = dict(
        source="a.csv", channels=("x", "y", "mood"), series=SERIES,
        categories={"mood": ("bad", "fine", "good")}, times=TIMES, unit="s",
    )  # fmt: skip
    return Collection(**whole | changes)


ROWS = np.array([0, 1])  # of the training part


def test_means_and_deviations_of_the_training_part():
    found = learn(made(), ROWS)
    x, y = np.array([1, 3, 5, 7.0]), np.array([10, 20, 30, 40.0])
    np.testing.assert_allclose(found.mean, [x.mean(), y.mean(), 0])
    np.testing.assert_allclose(found.deviation, [x.std(), y.std(), 1])
    assert (found.time_step, found.time_unit) == (2, "s")


def test_gaps_are_interpolated_in_time_and_names_are_channels():
    found = learn(made(), ROWS, standardise=False)
    inputs, lengths, dt = found.apply(made())
    assert found.inputs == ("x", "y", "mood=bad", "mood=fine", "mood=good")
    assert (inputs.shape, inputs.dtype, lengths.tolist()) == ((3, 3, 5), np.float32, [3, 2, 2])
    np.testing.assert_allclose(inputs[0], [[1, 10, 1, 0, 0], [1.5, 20, 0, 1, 0], [3, 30, 0, 0, 0]])
    np.testing.assert_allclose(inputs[1, :, 1], [40, 40, 0])  # the nearest value, then padding
    np.testing.assert_allclose(inputs[2, :2, 0], [4, 4])  # the mean, where there is no value at all
    np.testing.assert_allclose(dt, [[1, 0.5, 1.5], [1, 1, 1], [1, 1, 1]])
    assert dt.dtype == np.float32


def test_times_that_a_model_would_not_see_are_refused():
    regular = [np.array([0.0, 2, 4]), np.array([1.0, 3]), np.array([0.0, 2])]
    found = learn(made(times=regular), ROWS)
    assert (found.time_step, found.regular) == (None, 2)
    assert found.apply(made(times=regular)).dt is None
    again = Preparation.from_dict(json.loads(json.dumps(found.to_dict())))
    for times, message in (
        (TIMES, "series 0, step 1: got a time 1 after the one before, expected 2, as between"),
        ([regular[0], np.array([1.0, 4]), regular[2]], "series 1, step 1: got a time 3 after"),
    ):
        with pytest.raises(ValueError, match=f"data: a.csv: {message}"):
            again.apply(made(times=times))
    assert again.apply(made(times=None)).dt is None
    held = found.to_dict()
    del held["regular"]  # as an older model has it
    assert Preparation.from_dict(held).apply(made(times=TIMES)).dt is None


def test_gaps_have_the_value_before_them():
    found = learn(made(), ROWS, standardise=False, missing="previous")
    inputs = found.apply(made()).inputs
    np.testing.assert_allclose(inputs[0, :, :2], [[1, 10], [1, 20], [3, 30]])
    np.testing.assert_allclose(inputs[1, :2, 1], [40, 40])
    np.testing.assert_allclose(inputs[2, :2, 0], [4, 4])  # the mean, where there is none before


def test_gaps_are_marked():
    found = learn(made(), ROWS, missing="mask")
    assert found.inputs[-2:] == ("x is missing", "y is missing")
    inputs = found.apply(made()).inputs
    np.testing.assert_allclose(inputs[0, :, 0], [-1.3416407, 0, -0.4472136])
    np.testing.assert_array_equal(inputs[0, :, -2:], [[0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(inputs[2, :, -2:], [[1, 0], [1, 0], [0, 0]])
    assert learn(made(channels=("y", "x", "mood")), ROWS, missing="mean").masked == ()


def test_channels_are_chosen():
    found = learn(made(), ROWS, channels=("mood", "y"))
    assert (found.channels, found.deviation[0]) == (("mood", "y"), 1)
    assert found.apply(made()).inputs.shape == (3, 3, 4)
    assert learn(made(), ROWS, channels=("y",)).categories == {}


def test_regular_times_need_no_dt():
    times = [np.array([0.0, 2, 4]), np.array([0.0, 2]), np.array([3.0, 5])]
    found = learn(made(times=times), ROWS)
    assert (found.time_step, found.apply(made(times=times)).dt) == (None, None)
    assert preparation.said(found, made(times=times))[-1] == "the times are regular: dt is not used"
    said = preparation.said(learn(made(), ROWS), made())
    assert said == ["4 of 14 values are missing: interpolated", "dt = 1 is the median step, 2 s"]


def test_it_is_plain_data():
    found = learn(made(), ROWS, missing="mask")
    text = json.dumps(found.to_dict())
    again = Preparation.from_dict(json.loads(text))
    assert again == found
    np.testing.assert_array_equal(again.apply(made()).inputs, found.apply(made()).inputs)


@pytest.mark.parametrize(
    "change",
    [dict(mean=[0, 1]), dict(missing="guess"), dict(mean=["a", 1, 1]), dict(other=1),
     dict(deviation=[NAN, 1, 1]), dict(categories=[1]), dict(time_step="x"), dict(mean=None),
     dict(masked=["z"]), dict(standardise="yes"), dict(deviation=[0, 1, 1])],
    ids=str,
)  # fmt: skip
def test_data_that_is_no_preparation(change):
    held = learn(made(), ROWS).to_dict() | change
    with pytest.raises(ValueError, match="preparation: got"):
        Preparation.from_dict(held)


def test_new_data_is_found_by_the_names_of_columns(tmp_path):
    found = learn(made(times=None), ROWS, standardise=False)
    (tmp_path / "new.csv").write_text("mood,extra,y,x\ngood,0,1,2\nbad,0,3,\n")
    inputs, lengths, dt = found.apply(read(tmp_path / "new.csv"))
    np.testing.assert_array_equal(inputs, [[[2, 1, 0, 0, 1], [2, 3, 1, 0, 0]]])
    assert (lengths, dt) == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,mood\n1,bad\n", "lacks the columns 'y'; it has 'x', 'mood'"),
        ("x,y,mood\n1,2,sad\n", "column 'mood' holds 'sad', expected 'bad', 'fine', 'good'"),
        ("x,y,mood\n1,2,3\n", "column 'mood' holds numbers, expected 'bad', 'fine', 'good'"),
        ("x,y,mood\na,2,bad\n", "column 'x' holds text, expected numbers"),
        ("x,y,mood\n1,2,bad\n", "has no times, expected them as in the training data; time="),
    ],
)
def test_new_data_that_does_not_fit(tmp_path, text, message):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(ValueError, match=f"data: .*new.csv:? {message}"):
        learn(made(), ROWS).apply(read(tmp_path / "new.csv"))


def test_values_that_float32_cannot_hold_once_they_are_standardised():
    series = [np.array([[0.0], [1e-30]]), np.array([[1e20], [0]])]
    whole = Collection("a.csv", ("x",), series)
    message = r"data: a.csv: series 1, column 'x': got values .*e\+50 deviations from the training"
    with pytest.raises(ValueError, match=message):
        learn(whole, np.array([0])).apply(whole)


def test_the_largest_values_are_standardised():
    whole = Collection("a.csv", ("x",), [np.array([[-3e38], [3e38]])] * 3)
    inputs = learn(whole, np.array([0, 1])).apply(whole).inputs
    np.testing.assert_allclose(inputs[0, :, 0], [-1, 1])


def test_what_cannot_be_learned():
    with pytest.raises(
        ValueError, match="missing: got 'guess', expected 'interpolate', 'previous'"
    ):
        learn(made(), ROWS, missing="guess")
    with pytest.raises(
        ValueError, match=r"data: a.csv: the columns 'x' have no value in any train"
    ):
        learn(made(), np.array([2]))
    alike = [np.array([0.0, 0, 0]), np.array([0.0, 0]), np.array([3.0, 5])]
    with pytest.raises(
        ValueError, match=r"data: a.csv: times do not differ in any training series"
    ):
        learn(made(times=alike), ROWS)


def test_marks_are_those_of_the_chosen_channels():
    whole = Collection("a.csv", ("x", "y"), [np.array([[1.0, NAN], [2, 3]])] * 2)
    chosen = [learn(whole, ROWS, channels=[name], missing="mask").masked for name in "xy"]
    assert chosen == [(), ("y",)]


def test_the_usual_step_is_the_median():
    times = [np.array([0.0, 1, 2, 12]), np.array([0.0, 90])]
    whole = Collection("a.csv", ("x",), [np.zeros((4, 1)), np.zeros((2, 1))], times=times)
    assert learn(whole, np.array([0])).time_step == 1
