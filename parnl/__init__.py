"""Nonlinear recurrent networks, evaluated and trained in parallel over time.

>>> import numpy as np, parnl
>>> cell = parnl.get_cell("lrc", input_size=2, hidden_size=4)
>>> params = cell.init(seed=0)
>>> parnl.solve(cell, params, np.zeros((1, 50, 2), dtype=np.float32)).outputs.shape
(1, 50, 4)
"""

from parnl import ops, params
from parnl.affine import affine_scan
from parnl.cell import Cell
from parnl.check import SolveError
from parnl.export.to_c import to_c
from parnl.graph.nodes import StepError
from parnl.learn.checkpoints import load_params, save_params
from parnl.registry import get_cell, list_cells, register
from parnl.solve import Info, Solution, solve
from parnl.stability.certificates import Certificate, certify
from parnl.stability.reports import Lyapunov, Report, diagnose, lyapunov
from parnl.step import step

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Certificate",
    "Info",
    "Lyapunov",
    "Report",
    "Solution",
    "SolveError",
    "StepError",
    "affine_scan",
    "certify",
    "diagnose",
    "get_cell",
    "list_cells",
    "load_params",
    "lyapunov",
    "ops",
    "params",
    "register",
    "save_params",
    "solve",
    "step",
    "to_c",
]
