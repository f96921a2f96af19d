"""JavaScript in tests: by Node, or else in Chromium without a window."""

import functools
import html
import json
import re
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

SEE = Path(__file__).parents[1] / "docs" / "see"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NODE = shutil.which("node") or shutil.which("nodejs")


def opened(file, folder, *flags):
    """Open a page in Chromium, whose files go to `folder`: the document, and the console's words.

    These are lines of stderr with CONSOLE.
    """
    base = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    base += ["--log-level=0", f"--user-data-dir={folder / 'browser'}", "--dump-dom"]
    return subprocess.run(
        [BROWSER, *base, *flags, f"file://{file}"], capture_output=True, text=True, timeout=120
    )


def by_node(script):
    """Return what `result`, a string that the script sets, is at its end."""
    script += "\nprocess.stdout.write(result);"
    done = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def by_browser(script):
    """Return the same."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        script += "\ndocument.getElementById('result').textContent = result;"
        page.write_text(f"<!doctype html><pre id=result></pre><script>{script}</script>")
        done = opened(page, Path(folder))
    assert "CONSOLE" not in done.stderr, done.stderr[-4000:]
    return html.unescape(re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)[1])


def run(script):
    """Return the same of whichever is there."""
    if NODE is None and BROWSER is None:
        pytest.skip("there is neither Node nor Chromium")
    return by_node(script) if NODE else by_browser(script)


@functools.cache
def writer():
    """Return what docs/see/cells.py defines."""
    if not SEE.is_dir():
        pytest.skip("there is no documentation")
    return runpy.run_path(str(SEE / "cells.py"))


def evaluated(program, states, operands, kind="step", run=run):
    """Return what `kind` computes in JavaScript: for each group of results, an array (N, n).

    states, operands: (N, k) and (N, number of operands); kind: step or stepJacobian.
    """
    made = writer()
    pairs = zip(states, operands, strict=True)
    rows = [[list(map(float, x)), list(map(float, q))] for x, q in pairs]
    found = run(f"""
{made["JavaScript"]().definitions()}
const cell = {{ {made["functions"](program)} }};
const rows = {json.dumps(rows)};
const texts = (values) => values.map((v) => (Array.isArray(v) ? texts(v) : String(v)));
const result = JSON.stringify(rows.map(([x, q]) => texts(cell.{kind}(x, q))));
""")
    parsed = json.loads(found)
    groups = [parsed] if kind == "step" else list(zip(*parsed, strict=True))
    return [np.array([[float(v) for v in row] for row in group]) for group in groups]
