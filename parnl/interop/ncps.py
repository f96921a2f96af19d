"""Liquid networks of ncps."""

from __future__ import annotations

from typing import Any

from parnl.interop.source import Imported, check_diagonal, check_layer, class_of, made, readout


def from_ncps(
    module: Any,
    layer: int = 0,
    *,
    take: str | None = None,
    skip_readout: bool = False,
    copy: bool = True,
) -> Imported:
    """Take an `LTC` or `CfC` of ncps (`ncps.torch`; compared with 1.0.1), or the cell in it.

    `layer` picks a layer of a wired `CfC`; all others have one. `timespans` are the `dt` of
    `parnl.solve`. Where a wiring has no synapse, `ltc` has none either and never grows one; `cfc`
    begins with a weight of 0. Refused: `mixed_memory`; in a `CfC` also a backbone, which mixes
    channels, and the modes "pure" and "no_gate".
    """
    wrappers, cells = ("LTC", "CfC"), ("LTCCell", "CfCCell", "WiredCfCCell")
    kind = class_of("from_ncps", module, "ncps.torch", (*wrappers, *cells))
    if kind in wrappers:
        if module.use_mixed:
            raise ValueError(
                "from_ncps: mixed_memory: expected False, got True: its memory mixes the channels"
            )
        if getattr(module, "proj_size", None) is not None and not skip_readout:
            raise readout("from_ncps", "proj_size", "module.fc(outputs)")
        module = module.rnn_cell
        kind = class_of("from_ncps", module, "ncps.torch", cells)
    check_layer("from_ncps", layer, module.num_layers if kind == "WiredCfCCell" else 1)
    if kind == "LTCCell":
        if _has_readout(module) and not skip_readout:
            what = "output_mapping, or fewer outputs than states"
            raise readout("from_ncps", what, "outputs[..., :motor_size] * output_w + output_b")
        return _from_ltc(module, take, copy)
    if kind == "WiredCfCCell":
        module = getattr(module, f"layer_{layer}")
    return _from_cfc(module, take, copy)


def _from_cfc(module: Any, take: str | None, copy: bool) -> Imported:
    if module.mode != "default":
        raise ValueError(f"from_ncps: mode: expected 'default', got {module.mode!r}")
    if module.backbone_layers:
        raise ValueError(
            f"from_ncps: backbone_layers: expected 0, got {module.backbone_layers}: a backbone "
            "mixes the channels"
        )
    names = {"g": "ff1", "h": "ff2", "f": "time_a", "l": "time_b"}
    weights = {net: getattr(module, name).weight for net, name in names.items()}
    if module.sparsity_mask is not None:  # ncps masks the first two alone
        weights |= {net: weights[net] * module.sparsity_mask for net in "gh"}
    n_in = module.input_size
    recurrent = {names[net]: w[:, n_in:] for net, w in weights.items()}
    check_diagonal("from_ncps", "the weight", recurrent, take)
    params = {}
    for net, name in names.items():
        params[f"W_{net}"] = weights[net][:, :n_in].T
        params[f"a_{net}"] = recurrent[name].diagonal()
        params[f"b_{net}"] = getattr(module, name).bias
    return made("from_ncps", "cfc", params, copy)


def _from_ltc(module: Any, take: str | None, copy: bool) -> Imported:
    if module._epsilon != 1e-8:
        raise ValueError(f"from_ncps: epsilon: expected 1e-8, got {module._epsilon!r}")
    masks = {"w": module.sparsity_mask, "w_in": module.sensory_sparsity_mask}
    if any(bool(((mask != 0) & (mask != 1)).any()) for mask in masks.values()):
        raise ValueError("from_ncps: wiring: expected adjacencies of -1, 0 and 1, got others")
    check_diagonal("from_ncps", "w", {"w": module.make_positive_fn(module.w) * masks["w"]}, take)
    masks["w"] = masks["w"].diagonal()
    stored = {"w": module.w.diagonal(), "w_in": module.sensory_w}
    stored |= {"c_m": module.cm, "g_leak": module.gleak}
    positive = "softplus" if module._implicit_param_constraints else "clip"
    for name, value in stored.items():
        if positive == "clip" and bool((value * masks.get(name, 1.0) < 0).any()):
            raise ValueError(
                f"from_ncps: {name}: expected no negative values with implicit_param_constraints="
                "False; call apply_weight_constraints() of the LTCCell first"
            )
    # a synapse that is not there: softplus, or clipping, make 0 of this, and 0 of its gradient
    absent = -1000.0 if positive == "softplus" else -1.0
    stored |= {name: stored[name].masked_fill(mask == 0, absent) for name, mask in masks.items()}
    sigma_in, mu_in = _sensory(module)
    params = stored | {
        "sigma": module.sigma.diagonal(), "mu": module.mu.diagonal(), "e": module.erev.diagonal(),
        "sigma_in": sigma_in, "mu_in": mu_in, "e_in": module.sensory_erev, "v_leak": module.vleak,
    }  # fmt: skip
    unfolds = module._ode_unfolds
    return made("from_ncps", "ltc", params, copy, unfolds=unfolds, positive=positive)


def _sensory(module: Any) -> tuple[Any, Any]:
    """Return sigma_in and mu_in (input, hidden), which take the place of the input mapping too.

    sigma (w u + b - mu) = sigma w (u - (mu - b) / w)
    """
    sigma, mu = module.sensory_sigma, module.sensory_mu
    if module._input_mapping == "affine":
        mu = mu - module.input_b[:, None]
    if module._input_mapping in ("affine", "linear"):
        w = module.input_w[:, None]
        if bool((w == 0).any()):
            raise ValueError("from_ncps: input_w: expected no zeros, got an input that is unread")
        sigma, mu = sigma * w, mu / w
    return sigma, mu


def _has_readout(module: Any) -> bool:
    kind = module._output_mapping
    scaled = kind in ("affine", "linear") and bool((module.output_w != 1).any())
    shifted = kind == "affine" and bool((module.output_b != 0).any())
    return scaled or shifted or module.motor_size < module.state_size
