"""The gallery of cells: a page for each registered cell, written when the site is built.

A hook of MkDocs. What a cell can tell, it is asked: states, options, parameters, whether it is
linear, what a step costs. The rest is in `cells.toml`. `gallery_plots` draws the pictures.
"""

import sys
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

import parnl

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))  # a hook is loaded from its file
from gallery_plots import draw  # noqa: E402

ENTRIES: dict[str, dict[str, Any]] = tomllib.loads((DOCS / "cells.toml").read_text("utf-8"))
SIZES = {"input_size": 6, "hidden_size": 64}

_HEAD = """# Cells

parnl has {count} cells. Each name below leads to a page with the equations, the parameters, and
pictures of what the cell remembers. [A cell of your own](../start/cell.md) takes ten lines.

```python
import parnl

cell = parnl.get_cell("lrc", input_size=6, hidden_size=64, dt=0.5)
params = cell.init(seed=0)
```

Recurrent weights are diagonal throughout: a channel of the state reads itself and all of the input.
A *linear* cell is solved by one scan, without iteration.

| name | cell | source | states | linear | stable by construction |
| --- | --- | --- | --- | --- | --- |
"""

_FOOT = """
- *Contracts*: two trajectories under the same input approach each other at every step, though
  perhaps by little. *Bounded*: states stay in a fixed range whatever the inputs, but may be chaotic
  in it. How far a cell with your weights contracts, [`parnl.certify`](../reference/stability.md)
  proves.
- `hidden` counts scalar recurrences: complex ones in `lru` and `s5`, channels times `state_size` in
  `s6`. Outputs have as many. Projections that a paper needs, so that its input has the right size,
  are part of the cell.

`parnl cells` prints what is registered on your machine. Packages add cells through the entry-point
group `parnl.cells`.
"""

_SYMBOLS = """$u$ is the input of a step, all of it; $W$ are matrices. All else is one number for
each channel, and products are taken channel by channel. A prime marks the new state. $s$ is the
logistic sigmoid."""

_CAPTION = """Fresh weights (seed 0), 16 channels.

- *Left*: one input, 1 at one step and 0 else. Shown is the difference that makes to six outputs.
- *Middle*: one input, 0 and then 1. Shown are six outputs.
- *Right*: four inputs, 256 steps of noise, float64. A point is the largest error of a state after
  so many Newton updates, measured against the plain loop. 256 chunks is Newton over all steps."""


def _bars(text: str) -> str:
    return text.replace("|", "\\|")


def overview() -> str:
    """Return the page with all cells, in the order of `cells.toml`."""
    rows = []
    for name, entry in ENTRIES.items():
        cell = parnl.get_cell(name, **SIZES)
        source = f"[{entry['paper']}]({entry['link']})"
        rows.append(
            f"| [`{name}`]({name}.md) | {entry['title']} | {source} | {', '.join(cell.states)} | "
            f"{'yes' if cell.linear else ''} | {_bars(entry['stable'])} |\n"
        )
    return _HEAD.format(count=len(ENTRIES)) + "".join(rows) + _FOOT


def page(name: str) -> str:
    """Return the page of one cell."""
    entry, cell = ENTRIES[name], parnl.get_cell(name, **SIZES)
    facts = [
        ("Source", f"{entry['paper']}, <{entry['link']}>"),
        ("States", ", ".join(f"`{state}`" for state in cell.states)),
        ("Output", "made of the states" if hasattr(cell, "output") else f"`{cell.states[-1]}`"),
        ("Linear in the state", "yes: one scan" if cell.linear else "no: Newton's method"),
        ("Reads time steps, `dt`", "yes" if cell.time_aware else "no"),
        ("Operations of a step", f"{cell.cost} for each channel; a transcendental one counts ten"),
        ("Jacobian of a channel", f"{len(cell.states)} by {len(cell.states)}"),
    ]
    if "from" in entry:
        facts.append(("Weights from elsewhere", entry["from"]))
    lines = [f"# {name}: {entry['title']}", entry["about"].strip()]
    lines += [f"$$\n\\begin{{align*}}\n{entry['equations'].strip()}\n\\end{{align*}}\n$$"]
    lines += [_SYMBOLS, "| property | |\n| --- | --- |"]
    lines[-1] += "".join(f"\n| {left} | {right} |" for left, right in facts)
    lines += ["## Stability", entry["stability"].strip()]
    if cell.options:
        told = entry["options"]
        lines += ["## Options", "| option | default | meaning |\n| --- | --- | --- |"]
        lines[-1] += "".join(
            f"\n| `{n}` | `{value!r}` | {_bars(told[n])} |" for n, value in cell.options.items()
        )
        lines += ["Give them to `parnl.get_cell`, or to `RNN`."]
    lines += ["## Parameters", entry["starts"].strip()]
    lines += [parameters(cell)]
    lines += [
        "Values: `init(seed=0)`, {input_size} inputs and {hidden_size} channels.".format(**SIZES)
    ]
    lines += ["## Responses and Newton iterations", f"![responses of {name}]({name}.svg)"]
    lines += [_CAPTION]
    return "\n\n".join(lines) + "\n"


def parameters(cell: parnl.Cell) -> str:
    """Return a table of a cell's parameters: shape, and the values they start with."""
    drawn = cell.init(seed=0, dtype="float64")
    rows = ["| name | shape | starts |", "| --- | --- | --- |"]
    for name, spec in cell.specs.items():
        low, high = float(drawn[name].min()), float(drawn[name].max())
        values = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        rows.append(f"| `{name}` | ({', '.join(map(str, spec.dims))}) | {values} |")
    return "\n".join(rows).replace(",) |", ") |")


def on_config(config: Any) -> Any:
    """Put the cells' pages into the navigation, after the overview."""
    for section in config.nav:
        if "Cells" in section:
            section["Cells"] = ["cells/index.md", *({n: f"cells/{n}.md"} for n in ENTRIES)]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages and their pictures."""
    files.append(File.generated(config, "cells/index.md", content=overview()))
    for name in ENTRIES:
        files.append(File.generated(config, f"cells/{name}.md", content=page(name)))
        files.append(File.generated(config, f"cells/{name}.svg", content=draw(name)))
    return files
