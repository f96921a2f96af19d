"""The registered cells, one file each."""

from parnl.cells import gru, lrc, lstm, ltc

__all__ = ["gru", "lrc", "lstm", "ltc"]
