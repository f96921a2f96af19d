"""The registered cells, one file each."""

from parnl.cells import (
    cfc,
    cornn,
    gru,
    indrnn,
    lem,
    linoss,
    lrc,
    lrc_complex,
    lru,
    lstm,
    ltc,
    mgu,
    mingru,
    minlstm,
    rglru,
    s5,
    s6,
    slstm,
    stc,
    unicornn,
)

__all__ = [
    "cfc", "cornn", "gru", "indrnn", "lem", "linoss", "lrc", "lrc_complex", "lru", "lstm", "ltc",
    "mgu", "mingru", "minlstm", "rglru", "s5", "s6", "slstm", "stc", "unicornn",
]  # fmt: skip
