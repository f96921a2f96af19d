"""Linear recurrences: minGRU-pytorch and s5-pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parnl.interop.source import Imported, class_of, made, readout


def from_mingru(module: Any, *, skip_readout: bool = False, copy: bool = True) -> Imported:
    """Take a `minGRU` or `minLSTM` of minGRU-pytorch (compared with 0.2.1).

    The cell is `mingru` or `minlstm` with `positive=True`, and biases of 0, which the library does
    not have. With an `expansion_factor` there is a `to_out`, see `skip_readout`.
    """
    kind = class_of("from_mingru", module, "minGRU_pytorch", ("minGRU", "minLSTM"))
    gates = {"minGRU": "nz", "minLSTM": "nfi"}[kind]
    if type(module.to_out).__name__ != "Identity" and not skip_readout:
        raise readout("from_mingru", "to_out", "module.to_out(outputs)")
    linear = module.to_hidden_and_gate if kind == "minGRU" else module.to_hidden_and_f_i_gate
    params: dict[str, Any] = {}
    for gate, w in zip(gates, linear.weight.chunk(len(gates)), strict=True):
        params |= {f"W_{gate}": w.T, f"b_{gate}": w.new_zeros(w.shape[0])}
    return made("from_mingru", kind.lower(), params, copy, positive=True)


def from_s5(module: Any, *, copy: bool = True) -> Imported:
    """Take an `S5` or `S5SSM` of s5-pytorch (compared with 0.2.1), with a step scale of 1.

    With fewer states than channels, the cell's further states are 0 and stay so. Refused: more
    states than channels, `bidir`, `liquid`, a `degree` other than 1, and the bilinear
    discretisation.
    """
    if class_of("from_s5", module, "s5", ("S5", "S5SSM")) == "S5":
        module = module.seq
        class_of("from_s5", module, "s5", ("S5SSM",))
    rule = module.discretize.__name__.removeprefix("discretize_")
    wanted = {"bidir": False, "liquid": False, "degree": 1, "discretization": "zoh"}
    for name, expected in wanted.items():
        found = rule if name == "discretization" else getattr(module, name)
        if found != expected:
            raise ValueError(f"from_s5: {name}: expected {expected!r}, got {found!r}")
    states, width = len(module.Lambda), len(module.D)
    if states > width:
        raise ValueError(
            f"from_s5: state_width: expected at most the width, {width}, got {states}: a cell has "
            "as many outputs as states"
        )
    b, c = module.get_BC_tilde()
    # parnl keeps one of each conjugate pair and doubles it, the library keeps what it is given
    params = {"B_re": b.real.T, "B_im": b.imag.T, "C_re": 0.5 * c.real.T, "C_im": 0.5 * c.imag.T}
    params = {name: _widened(value, (width, width)) for name, value in params.items()}
    values = module.Lambda
    params |= {"Lambda_re": _widened(values.real, (width,), -1.0)}
    params |= {"Lambda_im": _widened(values.imag, (width,)), "D": module.D.diag()}
    params |= {"log_step": _widened(module.log_step.to(values.real.dtype), (width,))}
    return made("from_s5", "s5", params, copy)


def _widened(values: Any, shape: Sequence[int], fill: float = 0.0) -> Any:
    wide = values.new_full(shape, fill)
    wide[tuple(slice(size) for size in values.shape)] = values
    return wide
