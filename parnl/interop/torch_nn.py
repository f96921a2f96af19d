"""`torch.nn.GRU`, `LSTM` and `RNN`."""

from __future__ import annotations

from typing import Any

from parnl.interop.source import Imported, check_diagonal, check_layer, class_of, made

_GATES = {"GRU": "rzn", "LSTM": "ifgo", "RNN": "h"}


def from_torch(
    module: Any,
    layer: int = 0,
    reverse: bool = False,
    *,
    take: str | None = None,
    copy: bool = True,
) -> Imported:
    """Take one layer and direction of `torch.nn.GRU`, `nn.LSTM` or `nn.RNN`.

    The cell is `gru`, `lstm`, or `indrnn` with the activation of the `nn.RNN`. `reverse=True` takes
    the backward direction: give `reverse=True` to `parnl.solve` as well.
    """
    kind = class_of("from_torch", module, "torch.nn.modules.rnn", tuple(_GATES))
    if module.proj_size:
        raise ValueError(
            f"from_torch: proj_size: expected 0, got {module.proj_size}: the projection mixes the "
            "channels within the recurrence"
        )
    check_layer("from_torch", layer, module.num_layers)
    if reverse and not module.bidirectional:
        raise ValueError("from_torch: reverse: expected False, for the module is not bidirectional")
    gates, suffix = _GATES[kind], f"_l{layer}{'_reverse' if reverse else ''}"

    def blocks(name: str) -> dict[str, Any]:
        parts = getattr(module, name + suffix).chunk(len(gates))
        return dict(zip(gates, parts, strict=True))

    into, recurrent = blocks("weight_ih"), blocks("weight_hh")
    check_diagonal("from_torch", "weight_hh" + suffix, recurrent, take)
    params = {}
    for g in gates:
        params[f"W_{g}"], params[f"a_{g}"] = into[g].T, recurrent[g].diagonal()
    if module.bias:
        first, second = blocks("bias_ih"), blocks("bias_hh")
    else:
        first = second = {g: into[g].new_zeros(module.hidden_size) for g in gates}
    params |= {f"b_{g}": first[g] + second[g] for g in gates}
    options = {}
    if kind == "GRU":  # PyTorch keeps this bias inside r * (...)
        params["b_n"], params["c_n"] = first["n"], second["n"]
    if kind == "RNN":
        params = {name.removesuffix("_h"): value for name, value in params.items()}
        options["activation"] = module.nonlinearity
    cell = {"GRU": "gru", "LSTM": "lstm", "RNN": "indrnn"}[kind]
    return made("from_torch", cell, params, copy, **options)


def layers_of(module: Any, *, take: str | None = None, copy: bool = True) -> list[Imported]:
    """Take all layers and directions of `nn.GRU`, `nn.LSTM` or `nn.RNN`.

    In the order in which `parnl.torch.RNN` has them: layer 0 forward, layer 0 backward, layer 1
    forward, and so on. Arguments and errors are those of `from_torch`.
    """
    class_of("layers_of", module, "torch.nn.modules.rnn", tuple(_GATES))
    return [
        from_torch(module, layer, reverse, take=take, copy=copy)
        for layer in range(module.num_layers)
        for reverse in ((False, True) if module.bidirectional else (False,))
    ]
