"""State tracking: the data against plain truth, and what a run leaves and draws."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import parnl

pytest.importorskip("torch")

SOURCE = Path(__file__).parents[2] / "benchmarks" / "state_tracking.py"


@pytest.fixture
def tracking(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("state_tracking", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = dict(RESULTS=tmp_path, WIDTH=8, STATE=12, BATCH=4, SERIES=20, EVERY=2, EXTRA=2)
    small |= dict(TRAINED=6, TESTED=(6, 12), FAR=12, BIN=3, SEEDS=(0, 1))
    small |= dict(STEPS=dict.fromkeys(module.TASKS, 4))
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def apply(p, items):
    """The items rearranged: what stood at i goes to p[i]."""
    moved = [None] * len(items)
    for i, item in enumerate(items):
        moved[p[i]] = item
    return tuple(moved)


def cycles(p):
    """The lengths of the cycles of a permutation."""
    left, found = set(range(len(p))), []
    while left:
        i = start = left.pop()
        found.append(1)
        while p[i] != start:
            i = p[i]
            left.remove(i)
            found[-1] += 1
    return sorted(found)


def test_sums_are_those_of_the_steps_so_far(tracking):
    for task, m in (("parity", 2), ("addition", 5)):
        tokens, targets = tracking.sample(task, 7, 30, np.random.default_rng(0))
        assert tokens.shape == targets.shape == (7, 30)
        assert set(np.unique(tokens)) == set(range(m))
        np.testing.assert_array_equal(targets, tokens.cumsum(axis=1) % m)


@pytest.mark.parametrize(("task", "n", "even"), [("s3", 3, False), ("a5", 5, True)])
def test_products_are_those_of_permutations_applied_in_turn(tracking, task, n, even):
    elements = tracking.permutations(n, even)
    assert (
        len(elements) == len(set(elements)) == len(tracking.TASKS[task]) == dict(s3=6, a5=60)[task]
    )
    # an even permutation has an even number of cycles of even length
    assert not even or all(sum(k % 2 == 0 for k in cycles(p)) % 2 == 0 for p in elements)
    tokens, targets = tracking.sample(task, 5, 40, np.random.default_rng(1))
    for row, states in zip(tokens, targets, strict=True):
        items = tuple("abcde"[:n])
        for token, state in zip(row, states, strict=True):
            items = apply(elements[token], items)
            assert items == apply(elements[state], tuple("abcde"[:n]))


def test_order_matters_in_the_groups(tracking):
    for task, commutes in (("parity", True), ("addition", True), ("s3", False), ("a5", False)):
        table = tracking.TASKS[task]
        assert (table == table.T).all() == commutes
        assert (table[0] == np.arange(len(table))).all()  # the start is the identity
        assert all(len(set(line)) == len(line) for line in (*table, *table.T))


def test_data_follow_the_seed_and_longer_ones_go_on(tracking):
    one, same, other = (tracking.sample("s3", 3, 9, np.random.default_rng(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one[0] != other[0]).any()


def test_models_have_as_many_parameters(tracking, monkeypatch):
    monkeypatch.setattr(tracking, "WIDTH", 32)
    monkeypatch.setattr(tracking, "STATE", 48)
    wanted = tracking.count(tracking.build("s3", "gru", 48, 0))
    for model in tracking.MODELS:
        state = tracking.matched_state("s3", model)
        found = tracking.count(tracking.build("s3", model, state, 0))
        assert abs(found / wanted - 1) <= 0.1, model


def test_eigenvalues_of_the_positive_lru_are_positive(tracking):
    model = tracking.build("parity", "lru positive", 12, 0)
    recurrence = model.blocks[0].recurrence
    assert float(recurrence["theta_log"].exp().max()) < 1e-11
    assert not recurrence["theta_log"].requires_grad


def test_lrc_whose_input_gates_the_elastance_has_weights_for_parity():
    """So what training finds of it is no bound on what it can do."""
    weights = dict(sigma_in=20, mu_in=0.5, W_e=30, e_b=-15, e_w=0)  # a 0 keeps the state
    weights |= dict(W_f=15, g_leak=0, w_f=0, v_leak=1)  # a 1 replaces it by Z,
    weights |= dict(sigma=20, mu=-0.5, W_g=5, w_g=-10)  # of the other sign
    cell = parnl.get_cell("lrc", 1, 1, input_elastance=True)
    start = cell.init(seed=0, dtype="float64")
    parameters = {name: np.full_like(value, weights[name]) for name, value in start.items()}
    bits = np.random.default_rng(0).integers(2, size=(4, 1000))
    states = parnl.solve(cell, parameters, bits[..., None].astype(float)).outputs[..., 0]
    np.testing.assert_array_equal(states < -0.5, bits.cumsum(axis=1) % 2 == 1)


@pytest.mark.long
def test_runs_are_kept_not_run_again_and_drawn(tracking, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    command = "state_tracking run --tasks parity --cells gru s6 nn.GRU"
    monkeypatch.setattr(sys, "argv", command.split())
    tracking.main()
    lines = tracking.table_of("parity").read_text().splitlines()
    assert len(lines) == 3 * (3 + 1)  # three rates with the first seed, and one more seed
    record = json.loads(lines[0])
    assert record["name"] == "parity gru 0.003 0"
    assert set(record["test"]) == {"6", "12"}
    assert record["steps"] == 4
    assert len(record["at_step"]) == 4
    assert record["test"]["12"] == pytest.approx(np.mean(record["at_step"]), abs=1e-3)
    first = (tracking.RESULTS / "tables.md").read_text()
    assert capsys.readouterr().out.endswith(first + "\n")
    assert "| s6 (linear) |" in first
    (tracking.RESULTS / "figure.png").unlink()

    monkeypatch.setattr(tracking, "build", None)  # nothing is trained again
    tracking.main()
    monkeypatch.setattr(sys, "argv", ["state_tracking", "show"])
    tracking.main()
    assert (tracking.RESULTS / "tables.md").read_text() == first
    assert (tracking.RESULTS / "figure.png").is_file()


def test_the_table_is_drawn_from_results_with_the_best_rate(tracking, capsys):
    def keep(rate, seed, validation, test, seconds=36.0):
        record = dict(
            name=tracking.name_of("parity", "gru", rate, seed), task="parity", model="gru",
            rate=rate, seed=seed, state=3, parameters=7, steps=4, validation=validation,
            test={"6": test, "12": test / 2}, at_step=[1.0, 1.0, test, 0.2], seconds=seconds,
        )  # fmt: skip
        with tracking.table_of("parity").open("a") as table:
            table.write(json.dumps(record) + "\n")

    keep(1e-2, 0, 0.9, 0.8)
    keep(3e-3, 0, 0.8, 1.0)
    keep(1e-2, 1, 0.1, 0.6)
    mine = tracking.records()
    assert [r["seed"] for r in tracking.chosen(mine)["gru"]] == [0, 1]
    *_, row = tracking.table("parity", mine)
    assert row == "| gru | 70.0 | 35.0 | 30.0 | 45.0 | 0 of 2 seeds | 0.01 | 3 | 7 | 4 | 0.6 |"
    assert "3 runs" in next(tracking.table("parity", mine))
