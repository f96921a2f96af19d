"""Toy data, in memory and in a file, and small runs on it."""

import subprocess
from dataclasses import replace

import numpy as np
import pandas as pd

from parnl.learn import trained, training
from parnl.learn.data import Dataset, Split

BACKENDS = ("torch", "jax")

SMALL = training.Config(
    data="toy", blocks=1, width=6, state=4, epochs=4, batch=8, learning_rate=0.02, patience=9
)


def toy(channels=2, classes=3, steps=12, count=60, lengths=True):
    """Noisy series whose class is the sign pattern of their slow drift."""
    rng = np.random.default_rng(0)

    def split(count):
        labels = rng.integers(0, classes, size=count)
        centres = np.linspace(-1.5, 1.5, classes)
        inputs = rng.normal(size=(count, steps, channels)) + centres[labels][:, None, None]
        real = rng.integers(steps // 2, steps + 1, size=count) if lengths else None
        if real is not None:
            inputs[np.arange(steps) >= real[:, None]] = 0
        return Split(inputs.astype(np.float32), labels, real)

    names = tuple(str(k) for k in range(classes))
    return Dataset("toy", names, split(count), split(20), split(count))


def trainer_of(backend, dataset, **changes):
    config = replace(SMALL, backend=backend, **changes)
    return training.build(config, dataset.train.inputs.shape[-1], len(dataset.classes))


def walks(count=40, classes=("rest", "run"), steps=(9, 14), times=True, seed=0):
    """A long table: series of unequal lengths, with gaps, at irregular times, and what they are."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        kind, length = i % len(classes), rng.integers(*steps)
        clock = np.cumsum(rng.uniform(0.5, 2, size=length))
        for t in clock:
            x, y = rng.normal(size=2) + 2 * kind
            row = dict(walk=f"w{i}", t=round(t, 3), x=x, y=np.nan if rng.random() < 0.05 else y)
            rows.append(row | dict(kind=classes[kind], speed=3 * kind + 100))
    table = pd.DataFrame(rows)
    return table if times else table.drop(columns="t")


def waves(count=200):
    """Two waves and their times, by the hour."""
    t = np.arange(count)
    noise = np.random.default_rng(0).normal(0, 0.02, (2, count))
    return pd.DataFrame({
        "date": pd.date_range("2024-03-01", periods=count, freq="h"),
        "x": 10 + 4 * np.sin(t / 3) + noise[0],
        "y": np.cos(t / 5) + noise[1],
    })  # fmt: skip


def trained_on(tmp_path, table, **changes):
    """The dataset and the model of a run on a table in a file."""
    path = tmp_path / "walks.csv"
    table.to_csv(path, index=False)
    config = replace(SMALL, data=str(path), id="walk", **({"label": "kind"} | changes))
    dataset = training.dataset_of(config)
    result = training.fit(config, dataset, tmp_path / "run")
    return dataset, result.trainer, trained.load_model(tmp_path / "run" / training.MODEL)


PROGRAM = """\
#include <stdio.h>
#include "model.h"

int main(void)
{
    float input[MODEL_INPUT_SIZE], output[MODEL_OUTPUT_SIZE];
    model_state state;
    int step;
    for (;;) {
        model_reset(&state);
        for (step = 0; step < %d; step++) {
            if (fread(input, sizeof input, 1, stdin) != 1) return 0;
            model_step(&state, input, output);
            fwrite(output, sizeof output, 1, stdout);
        }
    }
}
"""


def answers_in_c(folder, inputs, program="", more=()):
    """The answers (N, T, k) of an exported model.c to each step of inputs (N, T, channels).

    program, more: a main function and files in place of those that write the answer of each step.
    """
    (folder / "main.c").write_text(program or PROGRAM % inputs.shape[1])
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
    command = ["cc", *flags, "main.c", "model.c", *more, "-o", "program", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run(
        [folder / "program"], input=inputs.tobytes(), capture_output=True, check=True
    )
    found = np.frombuffer(done.stdout, np.float32)
    return found if more else found.reshape(*inputs.shape[:2], -1)
