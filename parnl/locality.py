"""Whether the features of a cell can be computed for a part of the time steps at a time.

They can if those of a step depend on that step's inputs alone. Those of a convolution, a difference
or a normalisation over time do not, and neither do random numbers.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from parnl.frameworks import get_backend
from parnl.params import Values

# Features that look back further than so many stretches are not found out.
_TRIED = 4
# Two products of the same matrices, with more rows or fewer, differ by less, relative to the
# largest numbers; what comes from other steps is larger.
_SAME = 1e-3


def said(kind: type) -> bool | None:
    """Return what a class says by its attribute `time_local`, None if nothing.

    A class that defines features or an output of its own has to say it anew.
    """
    for each in kind.__mro__:
        if vars(each).get("time_local") is not None:
            return bool(vars(each)["time_local"])
        if {"features", "output"} & vars(each).keys():
            return None
    return None


def cuts(steps: int, length: int, reverse: bool) -> list[slice]:
    """Return the stretches of `length` steps, the last one shorter, in the order they are run."""
    found = [slice(a, min(a + length, steps)) for a in range(0, steps, length)]
    return found[::-1] if reverse else found


# What was found out of a cell, by the other arguments of `_agree`.
_known: WeakKeyDictionary[Any, dict[tuple, bool]] = WeakKeyDictionary()


def tried(
    cell: Any, framework: str, device: str | None, dtype: str, steps: int, length: int
) -> bool:
    """Return whether features and outputs of the whole equal those of its stretches.

    They are tried on random numbers, once for each cell. Also False if they cannot be tried.
    """
    found = _known.setdefault(cell, {})
    how = framework, device, dtype, min(steps, _TRIED * length), length
    if how not in found:
        found[how] = _agree(cell, *how)
    return found[how]


def _agree(
    cell: Any, framework: str, device: str | None, dtype: str, steps: int, length: int
) -> bool:
    backend = get_backend(framework)
    rng = np.random.default_rng(0)

    def array(values: Any) -> Any:
        return backend.asarray(values, dtype, device)

    # off the initial values: what is multiplied by a parameter that begins at 0 must show
    drawn = {n: v + 0.1 * rng.standard_normal(v.shape) for n, v in cell.draw(rng).items()}
    inputs = rng.standard_normal((1, steps, cell.input_size))
    states = [rng.standard_normal((1, steps, cell.hidden_size)) for _ in cell.states]

    def found(cut: slice) -> dict[str, np.ndarray]:
        p = Values("parameter", {n: array(v) for n, v in drawn.items()})
        features = dict(cell.features(p, array(inputs[:, cut])))
        if hasattr(cell, "output"):
            s = [array(x[:, cut]) for x in states]
            features["the output"] = cell.output(p, *s, Values("feature", features))
        return {n: backend.to_numpy(v) for n, v in features.items()}

    def same(whole: dict[str, np.ndarray], cut: slice) -> bool:
        of_part = found(cut)
        for name, a in whole.items():
            there = a if a.ndim < 2 or a.shape[-2] == 1 else a[..., cut, :]
            b, allowed = of_part[name], _SAME * np.max(np.abs(a), initial=0.0)
            if b.shape != there.shape or not np.max(np.abs(b - there), initial=0.0) <= allowed:
                return False  # as where there is a NaN
        return True

    try:
        with backend.values(), np.errstate(all="ignore"):
            whole = found(slice(0, steps))
            return all(same(whole, cut) for cut in cuts(steps, length, False))
    except Exception:  # whatever a cell does that needs its caller's own arrays
        return False
