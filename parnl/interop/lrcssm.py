"""The recurrence of the LrcSSM authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parnl.interop.source import Imported, made

_LRC = {
    "sigma_in": "weight_sensory_sigma", "mu_in": "weight_sensory_mu", "W_f": "weight_sensory_w",
    "W_g": "weight_sensory_h", "sigma": "weight_sigma", "mu": "weight_mu", "w_f": "weight_w",
    "w_g": "weight_h", "g_leak": "weight_gleak", "v_leak": "weight_vleak",
    "e_w": "weight_elastance_kernel", "e_b": "weight_elastance_bias",
}  # fmt: skip


def from_lrcssm(recurrence: Any) -> Imported:
    """Take one recurrence of the LrcSSM authors' code (arXiv 2505.21717; compared with 5581972).

    recurrence: their `LRCU`, which is `model.grus[layer][channel].gru` of a loaded model, or a
    mapping with its attributes: the arrays `weight_*`, `use_symmetric` and `dt`. Arrays of any
    framework. The cell is `lrc`. Refused: the `LRCU` with complex weights, whose outputs are
    complex.
    """
    given = recurrence if isinstance(recurrence, Mapping) else getattr(recurrence, "__dict__", {})
    if "weight_mure" in given:
        raise ValueError("from_lrcssm: recurrence: expected real weights, got a complex LRCU")
    names = dict(_LRC)
    if given.get("use_symmetric"):
        names["e_shift"] = "weight_elastance_shift"
    missing = [name for name in (*names.values(), "use_symmetric", "dt") if name not in given]
    if missing:
        found = type(recurrence).__name__
        raise TypeError(
            f"from_lrcssm: recurrence: expected an LRCU or its attributes, got a {found} without "
            f"{', '.join(missing)}"
        )
    params = {name: given[theirs] for name, theirs in names.items()}
    params |= {name: params[name].T for name in ("W_f", "W_g")}
    options = {"symmetric": bool(given["use_symmetric"]), "dt": float(given["dt"])}
    return made("from_lrcssm", "lrc", params, True, **options)
