"""The page "See it move": its cells are parnl's, its updates those of `parnl.solve`."""

import html
import json
import re

import javascript
import numpy as np
import pytest

import parnl
from parnl.frameworks import get_backend
from parnl.inputs import computed_features, feature_operands

EPSILON = np.finfo(np.float64).eps
# Gains at which no cell of the page is chaotic, so that rounding does not decide on updates.
SETTINGS = [
    (name, gain, steps, chunks)
    for name in ("gru", "mgu", "lstm", "lem", "lrc", "cfc", "indrnn", "lru")
    for gain, steps, chunks in [(0.5, 256, 16), (1, 512, 8), (2, 96, 64), (3, 256, 32), (1, 64, 1)]
]
# And some where small gaps do not settle a start, for the cell amplifies what is left there.
SETTINGS += [("gru", 6, 128, 8), ("mgu", 4, 256, 16)]


@pytest.mark.parametrize("name", [n for n in parnl.list_cells() if not n.startswith("test-")])
def test_a_cells_step_and_jacobian_are_those_of_numpy(name):
    """Each tanh or exp may differ by a unit or two, and a step has up to twenty of them."""
    cell, rng, numpy = parnl.get_cell(name, 1, 8), np.random.default_rng(0), get_backend("numpy")
    program, inputs = cell.program, rng.normal(0, 2, (50, 1))
    params = {n: 2 * p for n, p in cell.init(seed=0, dtype="float64").items()}
    p, features, *_ = computed_features(numpy, cell, params, inputs)
    dt = rng.uniform(0, 2, 50) if cell.time_aware else None
    given = feature_operands(numpy, cell, p, features, dt, inputs)
    operands = np.stack([np.broadcast_to(a, (1, 50, 8)).ravel() for a in given], axis=1)
    states = rng.normal(0, 1.5, (400, len(program.states)))
    step = program.function("step_jacobian", numpy)
    with np.errstate(all="ignore"):
        results = step(*states.T, *operands.T)
    expected = np.stack([np.broadcast_to(r, (400,)) for r in results], axis=1)
    new, jacobian = javascript.evaluated(program, states, operands, "stepJacobian")
    (alone,) = javascript.evaluated(program, states, operands, "step")
    np.testing.assert_array_equal(new, alone)
    found = np.concatenate([new, jacobian], axis=1)
    np.testing.assert_allclose(found, expected, rtol=16 * EPSILON, atol=16 * EPSILON)
    assert np.isfinite(expected).all()


@pytest.mark.skipif(javascript.BROWSER is None, reason="there is no Chromium")
def test_chromium_and_node_run_the_same():
    if javascript.NODE is None:
        pytest.skip("there is no Node")
    program = parnl.get_cell("lstm", 1, 1).program
    rows = np.random.default_rng(1).normal(0, 2, (50, len(program.operands) + 2))
    ways = (javascript.by_node, javascript.by_browser)
    a, b = (javascript.evaluated(program, rows[:, :2], rows[:, 2:], run=way)[0] for way in ways)
    np.testing.assert_allclose(a, b, rtol=4 * EPSILON, atol=4 * EPSILON)


class Steep(parnl.Cell):
    """Products of its Jacobians overflow."""

    def features(self, p, u):
        return dict(f=u)

    def step(self, p, x, f):
        return parnl.ops.sin(1e4 * x + f.f)


class Growing(Steep):
    """Linear, and amplifies each rounding error."""

    def step(self, p, x, f):
        return 1.7 * x + f.f


@pytest.mark.parametrize("wild", [1.0, np.nan, np.inf])
@pytest.mark.parametrize("kind", [Steep, Growing])
def test_updates_on_hostile_cells_are_those_of_solve(kind, wild):
    """wild: an input, chunks before the last one."""
    cell, inputs = kind(1, 1), np.sin(np.arange(512.0))[:, None]
    inputs[200] = wild
    out = parnl.solve(cell, {}, inputs, method="newton", chunks=4, max_iterations=4)
    functions = javascript.writer()["functions"](cell.program)
    found = javascript.run(f"""
{(javascript.SEE / "newton.js").read_text()}
const inputs = {json.dumps(inputs[:, 0].tolist())};
const cell = {{ linear: {json.dumps(cell.linear)}, {functions} }};
const {{ frames }} = newton(cell, (t) => [inputs[t]], [0], 512, 4);
const exact = loop(cell, (t) => [inputs[t]], [0], 512);
const same = frames.at(-1).states.every(([x], t) => Object.is(x, exact[t][0]));
const result = JSON.stringify([frames.length - 1, frames.at(-1).settled.every(Boolean), same]);
""")
    assert json.loads(found) == [out.info.iterations, bool(out.info.converged), True]


# What a reader does, and what the page then shows, as JSON in the document.
DRIVER = """
<script>
// without a window nothing asks for frames
window.requestAnimationFrame = (paint) => setTimeout(() => paint(performance.now()), 16);
const wait = (milliseconds) => new Promise((go) => setTimeout(go, milliseconds));
const page = document.getElementById("see");
const pictures = () => $("picture").innerHTML + $("gaps").innerHTML;
const state = () => ({ updates: +page.dataset.updates, at: +page.dataset.at,
  chunks: +$("chunks-value").textContent,
  status: $("status").textContent, code: $("code").textContent });
function put(name, value) {
  const before = pictures(), control = $(name);
  control.value = value;
  control.dispatchEvent(new Event(control.tagName === "SELECT" ? "change" : "input"));
  return pictures() !== before;
}
async function drive() {
  const told = { first: state(), settings: [], moved: {}, presets: [] };
  const controls = [...page.querySelectorAll("input, select")];
  told.labelled = controls.length && controls.every((c) => c.labels.length === 1);
  for (const [name, value] of [["cell", "gru"], ["gain", "7.5"], ["steps", "2"], ["chunks", "3"]]) {
    told.moved[name] = put(name, value);
  }
  const before = pictures();
  $("step").click();
  await wait(3000);
  told.stepped = { ...state(), moved: pictures() !== before };
  for (const setting of SETTINGS) {
    set(`cell=${setting[0]}&gain=${setting[1]}&steps=${setting[2]}&chunks=${setting[3]}`);
    told.settings.push(state());
  }
  for (const button of page.querySelectorAll("[data-set]")) {
    button.click();
    const early = state();
    await wait(60000);
    told.presets.push([early, state()]);
  }
  $("reset").click();
  told.reset = state();
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(told);
  document.body.append(result);
}
drive();
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return the page as MkDocs builds it, and what it does when it is driven."""
    if javascript.BROWSER is None:
        pytest.skip("there is no Chromium")
    if not javascript.SEE.is_dir():
        pytest.skip("there is no documentation")
    pytest.importorskip("material")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("see")
    root = javascript.SEE.parents[1]
    build(load_config(str(root / "mkdocs.yml"), plugins=[], nav=[{"x": "see/index.md"}],
                      site_dir=str(folder / "site"), use_directory_urls=False,
                      strict=False))  # fmt: skip
    file = folder / "site" / "see" / "index.html"
    driven = file.with_name("driven.html")
    script = DRIVER.replace("SETTINGS", json.dumps(SETTINGS))
    driven.write_text(file.read_text().replace("</body>", script + "</body>"))
    done = javascript.opened(driven, folder, "--virtual-time-budget=600000")
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    return folder, file, json.loads(html.unescape(found[1]))


@pytest.mark.long
def test_the_console_is_silent(page):
    folder, file, _ = page
    shown = javascript.opened(file, folder, "--virtual-time-budget=2000")
    assert "starts settled" in shown.stdout
    assert "CONSOLE" not in shown.stderr
    broken = file.with_name("broken.html")
    broken.write_text(file.read_text().replace('src="newton.js"', 'src="nowhere.js"'))
    assert "CONSOLE" in javascript.opened(broken, folder).stderr


@pytest.mark.long
def test_the_picture_follows_every_control(page):
    *_, told = page
    assert told["labelled"]
    assert told["moved"] == dict.fromkeys(("cell", "gain", "steps", "chunks"), True)
    assert (told["first"]["at"], told["stepped"]["at"], told["reset"]["at"]) == (0, 1, 0)
    assert told["stepped"]["moved"]


@pytest.mark.long
def test_the_examples_do_what_they_say(page):
    *_, told = page
    for early, late in told["presets"]:
        assert (early["at"], late["at"]) == (0, late["updates"])  # each has been played to its end
        assert late["status"].startswith(f"Done: {late['updates']} update")
    one, several, chaos = (late["updates"] for _, late in told["presets"])
    assert (one, chaos) == (1, told["presets"][2][1]["chunks"] - 1)
    assert 3 <= several <= 8


@pytest.mark.long
def test_updates_are_those_of_solve(page):
    """By the Python that the page shows, run with all kernels that NumPy has."""
    *_, told = page
    for setting, shown in zip(SETTINGS, told["settings"], strict=True):
        names = {}
        exec(shown["code"], names)
        info = names["out"].info
        assert (info.iterations, info.chunks) == (shown["updates"], shown["chunks"]), setting


@pytest.mark.long
def test_chaos_takes_an_update_for_each_chunk(page):
    *_, told = page
    names = {}
    exec(told["presets"][2][1]["code"], names)
    assert names["out"].info.iterations == told["presets"][2][1]["updates"]
