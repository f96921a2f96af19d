"""A toy data set and small trainers on it."""

from dataclasses import replace

import numpy as np

from parnl.learn import training
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
