"""Trials: what is searched, kept and not run again, measured in turns and drawn."""

import pytest
import torch


@pytest.fixture
def trials(experiment):
    return experiment("trials")


@pytest.fixture
def results(trials, tmp_path):
    results = trials.Results("toy", settings=["rate", "kind_of_input"])
    results.path = tmp_path / "results" / "toy.jsonl"
    return results


class Toy:
    """The mean output is to be 1; `errors` are what the validation finds, one after the other."""

    def __init__(self, errors=()):
        self.errors, self.weights, self.seen = list(errors), [], []

    def batches(self, rng):
        return iter([torch.full((2, 3, 4), float(i)) for i in range(6)])

    def loss(self, model, batch):
        self.seen.append(float(batch[0, 0, 0]))
        return (model(batch).mean() - 1.0) ** 2

    def error(self, model):
        self.weights.append(model.head.bias.item())
        return self.errors[len(self.weights) - 1]

    def test(self, model):
        return dict(score=model.head.bias.item())


def sized(trials):
    return trials.Sizes(4, 1, units=3, width=3, block_width=4)


def test_a_fit_ends_with_the_best_weights_and_without_patience(trials):
    task = Toy([0.5, 0.2, 0.3, 0.4, 0.1])
    model = trials.build("cfc plain", 3, sized(trials), 0)
    found = trials.fit(model, task, 1e-2, 0, epochs=5, patience=2)
    assert found == dict(epochs=4, best_epoch=2, validation=0.2)
    assert model.head.bias.item() == task.weights[1]
    assert len(set(task.weights)) == 4


def test_a_fit_ends_where_the_validation_is_not_finite(trials):
    task = Toy([0.5, float("nan"), 0.1])
    model = trials.build("cfc plain", 3, sized(trials), 0)
    assert trials.fit(model, task, 1e-2, 0, epochs=3, patience=3)["epochs"] == 2
    assert model.head.bias.item() == task.weights[0]


def test_finished_runs_are_not_run_again(trials, results):
    made = []

    def task(**settings):
        made.append(settings)
        return Toy([0.5])

    here = trials.Trials(results, sized(trials), task, epochs=1, patience=1)
    for _ in range(2):
        here.execute("cfc plain", 0, 1e-2, kind_of_input="x")
    here.execute("cfc plain", 1, 1e-2, kind_of_input="x")
    assert made == [dict(kind_of_input="x")] * 2
    first, second = results.runs()
    assert (first["model"], first["rate"], first["kind_of_input"]) == ("cfc plain", 1e-2, "x")
    assert (first["seed"], second["seed"]) == (0, 1)
    assert first["score"] != second["score"]
    assert first["validation"] == 0.5


def test_settings_are_chosen_turn_by_turn(trials, results, monkeypatch):
    results.settings = ["rate", "input", "last"]
    here = trials.Trials(results, sized(trials), Toy, epochs=1, patience=1)
    errors = {(2, "a", 0): 0.4, (2, "b", 0): 0.5, (2, "b", 1): 0.3, (1, "b", 1): 0.2}
    done = []

    def execute(model, seed, **settings):
        if results.runs(model=model, seed=seed, **settings):
            return
        done.append((seed, *settings.values()))
        # of another seed, better than any: it must not choose
        error = errors.get(tuple(settings.values()), 0.6) if seed == 7 else 0.0
        results.add(kind="run", model=model, seed=seed, **settings, validation=error)

    monkeypatch.setattr(here, "execute", execute)
    other = dict(rate=9, input="c", last=2)
    results.add(kind="run", model="other", seed=7, **other, validation=0.0)
    choices, turns = dict(rate=(1, 2), input="ab", last=(0, 1)), (["rate"], ["input", "last"])
    here.search("gru", choices, (7, 8), (*turns, ["rate"]))
    first = [(7, 1, "a", 0), (7, 2, "a", 0)]
    second = [(7, 2, "a", 1), (7, 2, "b", 0), (7, 2, "b", 1)]
    assert done == [*first, *second, (7, 1, "b", 1), (8, 1, "b", 1)]
    here.search("gru", choices, (7, 8), (*turns, ["rate"]))
    assert len(done) == 7  # the same way again, though the best of all runs is known by now
    assert [r["seed"] for r in results.chosen("gru", 7)] == [7, 8]
    assert results.chosen("lstm", 7) == []


def test_turns_deal_out_the_batches_of_an_epoch(trials, results, monkeypatch):
    task = Toy()
    counted = []
    monkeypatch.setattr(trials.statistics, "median", lambda t: counted.append(len(t)) or t[0])
    here = trials.Trials(results, sized(trials), lambda: task, epochs=1, patience=1)
    here.measure(["gru", "nn.GRU"], 1e-2, rounds=3, turn=9, slow="nn.GRU")
    # the first turn, which does not count, is the first of an epoch once more
    assert task.seen == [0, 3, 0, 1, 4, 1, 2, 5, 2, 0, 3, 0]
    assert counted == [3, 3]
    gru, dense = results.records()
    assert (gru["kind"], gru["model"], gru["turns"]) == ("time", "gru", 3)
    assert (dense["model"], dense["epoch"] > 0) == ("nn.GRU", True)


def test_the_table_is_drawn_from_the_lines(trials, results):
    def keep(model, rate, seed, validation, score, **other):
        other = dict(state=3, parameters=7, epochs=4, kind_of_input=True) | other
        key = dict(model=model, rate=rate, seed=seed, validation=validation, score=score)
        results.add(kind="run", **key, **other, seconds=36.0)

    keep("cfc", 1e-2, 0, 0.2, 0.1)
    keep("cfc", 3e-3, 0, 0.3, 0.05)
    keep("cfc", 1e-2, 1, 0.9, 0.3)
    keep("floor", None, 0, 0.9, 0.3, state=None, epochs=None, kind_of_input=None)
    results.add(kind="time", model="ncps cfc", epoch=4.0, turns=3)
    results.add(kind="time", model="cfc", epoch=9.0, turns=3)
    results.add(kind="time", model="cfc", epoch=1.0, turns=3)  # the last one counts
    shown = {"ncps cfc": "theirs", "gru": "not there", "cfc": "ours", "floor": "bound"}
    head, _, first, second, third, *rest = trials.table(results, shown, 0, {"error": "score"}, 4)
    assert head.startswith("| model | error | seeds | rate | kind_of_input | state | parameters |")
    assert first == "| theirs |  |  |  |  |  |  |  | 4.00 | 1.00 |  |"
    wanted = "| ours | 0.2000 ± 0.1414 | 2 | 0.01 | yes | 3 | 7 | 4 | 1.00 | 0.25 | 0.6 |"
    assert second == wanted
    assert third == "| bound | 0.3000 | 1 |  |  |  | 7 |  |  |  | 0.6 |"
    assert rest == ["", "4 runs, those of the grid too, took 0.04 hours of one core."]


def test_figures_of_others_are_rows_and_nothing_measured_is_no_column(trials, results):
    run = dict(model="cfc", rate=1e-2, seed=0, kind_of_input=True, validation=0.2, score=0.1)
    results.add(kind="run", **run, state=3, parameters=7, epochs=4, seconds=36.0)
    rows = trials.table(results, {"cfc": "ours"}, 0, {"error": "score"}, 4, {"theirs": "0.09"})
    head, _, own, others, *_ = rows
    assert head.endswith("| state | parameters | epochs | minutes a run |")
    assert own == "| ours | 0.1000 | 1 | 0.01 | yes | 3 | 7 | 4 | 0.6 |"
    assert others == "| theirs | 0.09 |  |  |  |  |  |  |  |"
