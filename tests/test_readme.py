"""The README's code runs as it stands there, and what it shows and links to is there."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from optional import jax, torch

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="installed without the repository")


@pytest.mark.usefixtures("own_cells")
def test_every_python_block_runs():
    pytest.importorskip("flax")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 4
    scope = {"__name__": "__main__", "inputs": torch.randn(2, 50, 6), "input_t": torch.randn(2, 6)}
    scope["sequences"] = jax.random.normal(jax.random.key(0), (2, 50, 6))
    for block in blocks:
        exec(compile(block, str(README), "exec"), scope)
    assert scope["out"].outputs.shape == (2, 50, 64)
    assert scope["y"].shape == (2, 64)
    assert scope["proof"].rho.shape == (64,)
    assert scope["output"].shape == (2, 50, 64)
    assert scope["hidden"].shape == (2, 50, 64)


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text())
    own = [link for link in links if "://" not in link]
    assert len(own) > 20
    assert not [link for link in own if not (README.parent / link).exists()]


def test_the_picture_shows_what_was_measured():
    results = README.parent / "benchmarks" / "results" / "cpu-c.json"
    shown = (README.parent / "docs" / "speed.svg").read_text(encoding="utf-8")
    found = json.loads(results.read_text(encoding="utf-8"))
    (torch_times,) = [v for k, v in found.items() if k.startswith("torch, diagonal GRU")]
    (jax_times,) = [v for k, v in found.items() if k.startswith("JAX, LRC") and "2 threads" in k]
    times = list(torch_times["forward + backward"].values())
    times += list(jax_times["value and gradient"].values())
    drawn = {int(ms) for ms in re.findall(r" (\d+) ms", shown)}
    assert len(drawn) == 5
    assert drawn <= {round(ms) for ms in times}


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 900


def test_the_page_on_installing_names_the_oldest_versions():
    page = (README.parent / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    shown = {"".join(found) for found in re.findall(r"([a-z]+)( >= )([\d.]+)", page)}
    with (README.parent / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"].values()
    needed = [*project["dependencies"], *(need for extra in extras for need in extra)]
    declared = {need.partition(";")[0].replace(">=", " >= ") for need in needed}
    assert len(shown) > 9
    assert shown <= declared
