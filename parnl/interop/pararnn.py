"""ParaGRU and ParaLSTM of pararnn-torch."""

from __future__ import annotations

from typing import Any

from parnl.interop.source import Imported, check_layer, class_of, made


def from_pararnn(module: Any, layer: int = 0, *, copy: bool = True) -> Imported:
    """Take a `ParaGRU` or `ParaLSTM` of pararnn-torch (compared with 0.17.4; arXiv 2510.21450).

    `layer` picks a layer of a `ParaRNN`. The cell is `gru`, or `lstm` with `coupled` and
    `peephole`. The library clips recurrent weights at `max_recurrent_norm` in every step; parnl
    clips them once. Refused: `ParaGRU(mix="head")`, which mixes channels, and all other cells.
    """
    kind = class_of("from_pararnn", module, "pararnn", ("ParaRNN", "ParaGRU", "ParaLSTM"))
    if kind == "ParaRNN":
        check_layer("from_pararnn", layer, len(module.layers))
        module = module.layers[layer]
        kind = class_of("from_pararnn", module, "pararnn", ("ParaGRU", "ParaLSTM"))
    else:
        check_layer("from_pararnn", layer, 1)
    into, bias = module.W_x.weight.chunk(3), module.W_x.bias.chunk(3)
    params: dict[str, Any] = {}
    if kind == "ParaLSTM":
        a_f, a_g, a_o, p_f, p_o = module.clipped_recurrent()
        params |= {"a_f": a_f, "a_g": a_g, "a_o": a_o, "p_f": p_f, "p_o": p_o}
        for gate, w, b in zip("fgo", into, bias, strict=True):
            params |= {f"W_{gate}": w.T, f"b_{gate}": b}
        return made("from_pararnn", "lstm", params, copy, coupled=True, peephole=True)
    if module.mix != "diag":
        raise ValueError(f"from_pararnn: mix: expected 'diag', got {module.mix!r}")
    for gate, w, b, a in zip("zrn", into, bias, module.clipped_a(), strict=True):
        # its z lets the new value in, PyTorch's and ours keeps the old one: s(-x) = 1 - s(x)
        sign = -1.0 if gate == "z" else 1.0
        params |= {f"W_{gate}": sign * w.T, f"b_{gate}": sign * b, f"a_{gate}": sign * a}
    params["c_n"] = bias[2].new_zeros(len(bias[2]))
    return made("from_pararnn", "gru", params, copy)
