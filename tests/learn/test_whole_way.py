"""From a file of the UEA archive's kind to a model elsewhere: every command, both frameworks."""

import numpy as np
import pandas as pd
import pytest
from javascript import BROWSER, opened
from toy_runs import BACKENDS

SMALL = ["--blocks", 1, "--width", 6, "--state", 5, "--batch", 8, "--epochs", 3, "--lr", 0.02]


def write_ts(path, count=40, seed=0):
    """Series of two channels and unequal lengths; their classes differ in the mean."""
    rng = np.random.default_rng(seed)
    lines = ["@problemName walks", "@timestamps false", "@univariate false", "@dimensions 2",
             "@equalLength false", "@classLabel true rest run", "@data"]  # fmt: skip
    kinds = ["rest", "run"] * (count // 2)
    for kind in kinds:
        values = rng.normal(3.0 * (kind == "run"), 1, (2, rng.integers(8, 13)))
        lines.append(":".join(",".join(f"{v:.4f}" for v in row) for row in values) + f":{kind}")
    path.write_text("\n".join(lines) + "\n")
    return kinds


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_command_on_a_ts_file(parnl, tmp_path, backend):
    write_ts(tmp_path / "walks.ts")
    kinds = write_ts(tmp_path / "new.ts", seed=1)
    folder, out = tmp_path / "run", tmp_path / "out.csv"
    told = ["--data", tmp_path / "walks.ts", "--backend", backend]
    status, text = parnl("train", *told, *SMALL, "--out", folder)
    assert (status, "test accuracy" in text) == (0, True), text
    status, text = parnl("evaluate", folder, "--data", tmp_path / "new.ts")
    assert status == 0, text
    shares = dict(line.split() for line in text.splitlines()[1:])
    status, text = parnl("predict", folder, "--data", tmp_path / "new.ts", "--out", out)
    assert status == 0, text
    found = pd.read_csv(out)
    hits = np.mean(found["class"] == np.array(kinds))
    assert hits > 0.8
    assert shares["accuracy"] == f"{hits:.1%}"
    for kind in ("c", "onnx", "torch", "jax"):
        status, text = parnl("export", folder, "--to", kind, "--out", tmp_path / kind)
        assert (status, "model.json" in text) == (0, True), text
    status, text = parnl("report", folder)
    assert (status, (folder / "report.html").exists()) == (0, True), text


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_shows_the_page_without_a_word(parnl, tmp_path):
    write_ts(tmp_path / "walks.ts")
    status, text = parnl("train", "--data", tmp_path / "walks.ts", *SMALL, "--out", tmp_path)
    assert status == 0, text
    page, broken = tmp_path / "report.html", tmp_path / "broken.html"
    assert parnl("report", tmp_path)[0] == 0
    broken.write_text(page.read_text().replace("<body>", "<body><script>let</script>"))

    shown = opened(page, tmp_path)
    assert "Confusion" in shown.stdout or "truth" in shown.stdout
    assert "CONSOLE" not in shown.stderr
    # so a word of the console would have been seen
    assert "CONSOLE" in opened(broken, tmp_path).stderr
