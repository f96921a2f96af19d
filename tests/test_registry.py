"""Cells that other packages bring."""

import os
import subprocess
import sys

PACKAGE = """
import parnl
from parnl.params import matrix

class Brought(parnl.Cell):
    parameters = dict(W=matrix("input", "hidden"))

    def features(self, p, u):
        return dict(f=u @ p.W)

    def step(self, p, x, f):
        return 0.5 * x + f.f
"""


def test_installed_packages_bring_cells_through_entry_points(tmp_path):
    (tmp_path / "bringer.py").write_text(PACKAGE)
    info = tmp_path / "bringer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bringer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[parnl.cells]\nbrought = bringer:Brought\n")
    code = "import parnl; print('brought' in parnl.list_cells()); parnl.get_cell('brought', 2, 3)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "True"
