"""PyTorch's twin of the layers of Flax and Equinox: `RNN` with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from parnl.jax_layers import JaxLayers
from parnl.torch import RNN


def in_torch(model: JaxLayers) -> RNN:
    """Return `parnl.torch.RNN` in eval mode, in float32."""
    layers, weights = model.layers, model._weights()
    first = layers.cells[0]
    how: dict[str, Any] = {name: getattr(first, name) for name in first.chosen}
    how["bias"] = not first.biases or any(name.startswith("bias_") for name in weights)
    how["learn_initial"] = any(name.startswith("initial_") for name in weights)
    made = RNN(
        type(first), first.input_size, first.hidden_size, len(layers.cells), seed=0,
        batch_first=model.batch_first, bidirectional=layers.directions == 2, **how,
    )  # fmt: skip
    made.load_state_dict({n: torch.tensor(np.asarray(w, np.float32)) for n, w in weights.items()})
    return made.eval()
