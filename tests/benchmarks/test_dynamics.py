"""Dynamics: systems and measures against independent ones, free runs, and what a run leaves."""

import json

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import entropy


@pytest.fixture
def dynamics(experiment, tmp_path, monkeypatch):
    module = experiment("dynamics")

    def results_of(name):
        results = module.Results(name, settings=["rate"])
        results.path = tmp_path / f"{name}.jsonl"
        return results

    small = dict(results_of=results_of, WIDTH=6, STATE=5, TRAINED=4, STEPS=12, BATCH=3, SETTLE=50)
    small |= dict(EPOCHS=2, READ=8, SKIPPED=4, VALIDATED=(3, 48), TESTED=(4, 68))
    small |= dict(SEEDS=(0, 1), TIMED=("gru",), LENGTHS=(20,), ROUNDS=1, TURN=1)
    small |= dict(SYSTEMS={k: v._replace(updates=2) for k, v in module.SYSTEMS.items()})
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def slope(name):
    """d/dt of one state, number by number."""

    def lorenz63(t, s):
        x, y, z = s
        return [10 * y - 10 * x, 28 * x - x * z - y, x * y - 8 * z / 3]

    def lorenz96(t, s):
        n = len(s)
        return [s[i - 1] * (s[(i + 1) % n] - s[i - 2]) - s[i] + 8 for i in range(n)]

    return lorenz96 if name == "lorenz96" else lorenz63


@pytest.mark.parametrize("name", ["lorenz63", "lorenz96"])
def test_trajectories_are_those_of_an_exact_solver(dynamics, name):
    system = dynamics.SYSTEMS[name]
    found = dynamics.simulate(system, 2, 11, np.random.default_rng(0))
    times = dynamics.INTERVAL * np.arange(11)
    for x in found:
        exact = solve_ivp(slope(name), times[[0, -1]], x[0], t_eval=times, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(x, exact.y.T, atol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize("name", ["lorenz63", "lorenz96"])
def test_near_states_part_at_the_rate_of_the_exponent(dynamics, name, monkeypatch):
    monkeypatch.setattr(dynamics, "SETTLE", 1000)
    system = dynamics.SYSTEMS[name]
    here = dynamics.simulate(system, 300, 1, np.random.default_rng(0))[:, 0]
    there = here + 1e-8 * np.random.default_rng(1).normal(size=here.shape)
    grown = []
    for _ in range(600):
        before = np.linalg.norm(there - here, axis=1)
        for _ in range(4):
            here, there = (dynamics.advance(system, s, 0.01) for s in (here, there))
        after = np.linalg.norm(there - here, axis=1)
        grown.append(np.log(after / before))
        there = here + (there - here) * (1e-8 / after)[:, None]
    assert np.mean(grown[100:]) / 0.04 == pytest.approx(system.exponent, rel=0.04)


def test_points_are_states_neighbours_or_values_in_a_row(dynamics):
    rng = np.random.default_rng(0)
    (own,) = dynamics.points(x := rng.normal(size=(2, 9, 3)))
    np.testing.assert_array_equal(own, x.reshape(18, 3))
    ring = list(dynamics.points(x := rng.normal(size=(2, 9, 5))))
    assert len(ring) == 5
    np.testing.assert_array_equal(ring[4], x.reshape(18, 5)[:, [4, 0, 1]])
    lag = dynamics.LAG
    (delayed,) = dynamics.points(x := rng.normal(size=(1, 20, 1)))
    wanted = [[x[0, t, 0], x[0, t - lag, 0], x[0, t - 2 * lag, 0]] for t in range(2 * lag, 20)]
    np.testing.assert_array_equal(delayed, wanted)


def test_divergence_is_that_of_the_counts_of_bins(dynamics, monkeypatch):
    monkeypatch.setattr(dynamics, "BINS", 4)
    rng = np.random.default_rng(0)
    truth, found = rng.uniform(size=(4000, 3)), rng.beta(2, 2, size=(3000, 3))
    truth[:2] = [[0, 0, 0], [1, 1, 1]]

    def shares(x):
        counts = np.full((4, 4, 4), dynamics.SMALL)
        for point in x:
            counts[tuple(np.minimum(4 * point, 3).astype(int))] += 1
        return (counts / counts.sum()).ravel()

    wanted = entropy(shares(truth), shares(found))
    assert wanted > 0.1
    assert dynamics.divergence(truth, found) == pytest.approx(wanted)
    assert dynamics.divergence(truth, truth) == 0.0
    lost = np.concatenate([found, np.full((3000, 3), np.nan)])  # half of it is nowhere
    assert dynamics.divergence(truth, lost) == pytest.approx(wanted + np.log(2), rel=1e-3)


def test_spectra_differ_by_the_hellinger_distance_of_each_number(dynamics, monkeypatch):
    monkeypatch.setattr(dynamics, "SMOOTHING", 1e-9)
    rng = np.random.default_rng(0)
    truth, found = rng.normal(size=(2, 3, 64, 2)).cumsum(axis=2) / 10
    distances = []
    for k in range(2):
        powers = []
        for x in (truth, found):
            t = np.arange(64)
            waves = np.exp(-2j * np.pi * t * np.arange(1, 33)[:, None] / 64)
            power = sum(np.abs(waves @ row[:, k]) ** 2 for row in x)
            powers.append(power / power.sum())
        distances.append(np.linalg.norm(np.sqrt(powers[0]) - np.sqrt(powers[1])) / np.sqrt(2))
    assert dynamics.hellinger(truth, found) == pytest.approx(np.mean(distances))
    assert dynamics.hellinger(truth, truth) == pytest.approx(0.0, abs=1e-7)
    assert dynamics.hellinger(truth, 0 * truth + 0.1) == 1.0
    assert dynamics.hellinger(truth, truth * np.nan) == 1.0
    for gone in (np.nan, 1e30):
        lost = np.concatenate([truth, np.full_like(truth, gone)])
        wanted = np.sqrt(1 - np.sqrt(0.5))
        assert dynamics.hellinger(truth, lost) == pytest.approx(wanted, rel=1e-4)


def test_a_slower_wave_has_another_spectrum(dynamics):
    t = np.linspace(0, 40 * np.pi, 1000)[None, :, None]
    assert dynamics.hellinger(np.sin(t), np.cos(t)) < 0.1
    assert dynamics.hellinger(np.sin(t), np.sin(t / 2)) > 0.9


def test_a_forecast_is_good_until_the_first_error_above_the_tolerance(dynamics):
    truth = np.zeros((3, 10, 4))
    found = truth.copy()
    found[0, 6] = dynamics.TOLERANCE * 1.01
    found[1, 4, 0] = 2.1 * dynamics.TOLERANCE  # one number of four
    found[1, 2, 0] = 1.9 * dynamics.TOLERANCE
    assert dynamics.good_steps(truth, found) == pytest.approx((6 + 4 + 10) / 3)
    found[2, 1:] = np.nan
    assert dynamics.good_steps(truth, found) == pytest.approx((6 + 4 + 1) / 3)


@pytest.mark.parametrize("seen", [1, 3, 10])
def test_models_have_as_many_parameters(dynamics, monkeypatch, seen):
    monkeypatch.undo()
    sizes = dynamics.sizes_of(seen)
    wanted = dynamics.count(dynamics.build("gru", dynamics.STATE, sizes, 0))
    for name in dynamics.MODELS:
        state = dynamics.matched_state(name, sizes)
        found = dynamics.count(dynamics.build(name, state, sizes, 0))
        assert abs(found / wanted - 1) <= 0.1, name


def test_a_free_run_is_the_solve_of_what_was_read_and_made(dynamics):
    sizes = dynamics.sizes_of(3)
    seen = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for name in dynamics.MODELS:
        model = dynamics.build(name, 16, sizes, 0).eval()
        found = dynamics.generate(model, seen, 4, scale=0.5)
        whole = torch.cat([seen, torch.from_numpy(found)], dim=1)
        with torch.no_grad():
            after = whole + 0.5 * model(whole)[0]
        np.testing.assert_allclose(found, after[:, 4:-1].numpy(), atol=1e-5, err_msg=name)
        other = dynamics.generate(model, torch.cat([seen[:, :1] + 1.0, seen[:, 1:]], 1), 4)
        remembers = not np.allclose(other, dynamics.generate(model, seen, 4), atol=1e-7)
        assert remembers == (name != "none"), name


def test_loops_are_the_same_cell(dynamics):
    sizes = dynamics.sizes_of(3)
    x = torch.randn(2, 9, 3, generator=torch.Generator().manual_seed(0))
    model = dynamics.build("gru", 5, sizes, 0)
    for loop in dynamics.LOOPS:
        torch.testing.assert_close(dynamics.build(f"gru, {loop}", 5, sizes, 0)(x)[0], model(x)[0])


def test_a_linear_system_is_found_by_the_autoregression(dynamics):
    rng = np.random.default_rng(0)
    a = np.array([[0.9, 0.3], [-0.3, 0.9]])
    x = [rng.normal(size=(5, 2))]
    for _ in range(30):
        x.append(x[-1] @ a + 0.1)
    whole = torch.from_numpy(np.stack(x, axis=1))
    linear = dynamics.Autoregression(whole[:, :20], 1)
    np.testing.assert_allclose(dynamics.generate(linear, whole[:, :15], 16), whole[:, 15:])


def test_the_parts_are_different_trajectories_and_the_test_has_no_noise(dynamics):
    task, again = (dynamics.Dynamics("lorenz63-x") for _ in range(2))
    assert torch.equal(task.train, again.train)
    assert task.train.shape == (4, 24, 1)
    assert task.validation.shape == (3, 48, 1)
    assert task.observed.shape == task.truth.shape == task.other.shape == (4, 68, 1)
    noise = (task.observed.numpy() - task.truth).std()
    assert noise == pytest.approx(dynamics.NOISE, rel=0.2)
    assert abs(task.truth - task.other).mean() > 0.5
    assert task.train.std() == pytest.approx(1.0, abs=0.01)
    # smooth: without noise the second differences are small
    assert abs(np.diff(task.truth, 3, axis=1)).mean() < dynamics.NOISE
    exact = task.measures(task.truth[:, 8:])
    assert (exact["stsp"], exact["spectrum"]) == (0.0, pytest.approx(0.0, abs=1e-3))
    assert exact["times"] == pytest.approx(60 * 0.04 * 0.906)


def test_a_batch_is_windows_of_training_trajectories(dynamics):
    task = dynamics.Dynamics("lorenz63")
    batches = list(task.batches(np.random.default_rng(0)))
    assert [b.shape for b in batches] == [(3, 13, 3)] * 2
    windows = {row.unfold(0, 13, 1)[i].T.numpy().tobytes() for row in task.train for i in range(12)}
    assert all(np.ascontiguousarray(w).tobytes() in windows for b in batches for w in b.numpy())


def test_runs_are_kept_not_run_again_and_drawn(dynamics, command, capsys, monkeypatch):
    arguments = ["run", "--systems", "lorenz63", "--models", "gru", "none"]
    command(dynamics, *arguments)
    path = dynamics.results_of("lorenz63").path
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = ["gru"] * 3 + ["none"] * 3 + ["linear", "last", "truth"]
    assert [r["model"] for r in lines] == names  # two rates with the first seed, one with the other
    assert np.isfinite([[r["stsp"], r["spectrum"]] for r in lines]).all()
    first = capsys.readouterr().out
    assert "| no recurrence |" in first
    monkeypatch.setattr(dynamics, "build", None)  # nothing is trained again
    command(dynamics, *arguments)
    assert capsys.readouterr().out.count("| other true trajectories |") == 1
    assert path.read_text().count("\n") == len(lines)


def test_loops_are_set_against_the_parallel_cell(dynamics, command, capsys):
    command(dynamics, "time")
    assert "| 20 | gru |" in capsys.readouterr().out
    results = dynamics.results_of("time-20")
    names = ["nn.GRU", "gru", "gru, compiled loop", "gru, Python loop"]
    assert [r["model"] for r in results.records()] == names
    results.path.unlink()
    for name, seconds in zip(names, (3.0, 2.0, 5.0, 40.0), strict=True):
        results.add(kind="time", model=name, epoch=seconds)
    assert list(dynamics.ratios())[-1] == "| 20 | gru | 2.5 | 20.0 | 1.5 |"
