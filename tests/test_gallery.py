"""Every registered cell has its page in the gallery, and the page says what the cell is."""

import runpy
from pathlib import Path

import pytest

import parnl
from parnl.registry import get_class

DOCS = Path(__file__).parents[1] / "docs"
for needed in ("mkdocs", "matplotlib"):
    pytest.importorskip(needed)
GALLERY = runpy.run_path(str(DOCS / "gallery.py")) if DOCS.is_dir() else {"ENTRIES": {}}
ENTRIES = GALLERY["ENTRIES"]


def test_every_cell_of_parnl_has_an_entry():
    own = [n for n in parnl.list_cells() if get_class(n).__module__.startswith("parnl.cells.")]
    assert sorted(ENTRIES) == own


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_names_the_options_and_parameters_of_its_cell(name):
    cell, entry = parnl.get_cell(name, input_size=3, hidden_size=4), ENTRIES[name]
    assert set(entry.get("options", {})) == set(cell.options)
    plain = entry["equations"].replace("mathrm", "").translate(str.maketrans("", "", "{}\\"))
    for parameter in cell.parameter_shapes:
        whole = parameter.removesuffix("_re").removesuffix("_im")  # of complex numbers
        assert parameter in plain or whole in plain, parameter


@pytest.mark.parametrize("name", ENTRIES)
def test_a_page_says_whether_a_cell_is_linear(name):
    page = GALLERY["page"](name)
    cell = parnl.get_cell(name, input_size=3, hidden_size=4)
    assert ("yes: one scan" in page) == cell.linear
    for parameter in cell.parameter_shapes:
        assert f"| `{parameter}` |" in page


def test_errors_of_newton_fall_to_rounding():
    errors = runpy.run_path(str(DOCS / "gallery_plots.py"))["errors"]
    found = errors("gru", chunks=256)
    assert 1e-3 < found[0] < 1.0
    assert found[-1] < 1e-14
    assert len(errors("mingru", chunks=16)) == 1  # linear: one update
