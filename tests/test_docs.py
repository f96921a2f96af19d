"""The code of every page of the documentation runs, and draws the pictures that the page shows.

`make test` runs the first pages, `make test-docs` all: it sets PARNL_DOCS.
"""

import os
import re
import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
RUN = runpy.run_path(str(DOCS / "run.py")) if DOCS.is_dir() else {}
PAGES = [
    page.relative_to(DOCS).as_posix()
    for page in sorted(DOCS.rglob("*.md"))
    if RUN["blocks"](page) and ("PARNL_DOCS" in os.environ or page.name in ("index.md", "cell.md"))
]


@pytest.mark.usefixtures("own_cells")
@pytest.mark.parametrize("page", PAGES)
def test_a_pages_code_runs_and_draws_its_pictures(page, tmp_path):
    for framework in ("torch", "jax"):
        pytest.importorskip(framework)
    page = DOCS / page
    RUN["run"](page, tmp_path)
    drawn = {picture.name for picture in tmp_path.glob("*.svg")}
    shown = set(re.findall(r"!\[[^]]*\]\(([\w-]+\.svg)\)", page.read_text(encoding="utf-8")))
    assert drawn <= shown
    # others that are shown are looked for by the strict build, which draws some itself
    assert all((page.parent / name).is_file() for name in drawn)
