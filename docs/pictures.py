"""Pictures of measurements, for the pages that show them: a hook of MkDocs.

    python docs/pictures.py      draws speed.svg anew, from the numbers in benchmarks/results

The README shows it too, so it is kept. The others are shown as the benchmarks have drawn them.
"""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from mkdocs.structure.files import File

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
SHOWN = {
    "cpu-c.png": "cpu-c.png", "block.png": "block.png", "trust.png": "trust.png",
    "uea.png": "uea/figure.png", "tracking.png": "state_tracking/figure.png",
    "text.png": "text/figure.png",
}  # fmt: skip
TORCH = "torch, diagonal GRU with projection, B=4 D=64 T=16384, ms"
JAX = "JAX, LRC with 4 inputs, 2 threads, B=4 D=64 T=16384, ms"


def speed() -> str:
    """Return the picture of the home page, as svg: milliseconds of parnl and of others."""
    found = json.loads((RESULTS / "cpu-c.json").read_text("utf-8"))
    torch, jax = found[TORCH]["forward + backward"], found[JAX]["value and gradient"]
    panels = {
        "GRU in PyTorch, forward and backward": {
            "parnl": torch["parnl"],
            "pararnn-torch": torch["pararnn-torch, Newton"],
            "nn.GRU (dense)": torch["torch.nn.GRU (dense)"],
        },
        "LRC in JAX, value and gradient": {"parnl": jax["parnl"], "lax.scan": jax["jax.lax.scan"]},
    }
    look = mpl.rc_params_from_file(DOCS / "matplotlibrc", use_default_template=False)
    with mpl.rc_context(look):
        figure = Figure(figsize=(9, 2.0))
        figure.subplots_adjust(0.12, 0.22, 0.97, 0.86, wspace=0.35)
        for axes, (title, bars) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            colors = ["#3366cc"] + ["#bbbbbb"] * (len(bars) - 1)
            drawn = axes.barh(list(bars), list(bars.values()), color=colors)
            axes.bar_label(drawn, [f" {value:.0f} ms" for value in bars.values()], fontsize=9)
            axes.set_title(title, fontsize=10)
            axes.set(xticks=[], xlim=(0, 1.25 * max(bars.values())))
            axes.spines["bottom"].set_visible(False)
            axes.invert_yaxis()
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """Add the pictures."""
    for name, source in SHOWN.items():
        picture = (RESULTS / source).read_bytes()
        files.append(File.generated(config, f"benchmarks/{name}", content=picture))
    return files


if __name__ == "__main__":
    (DOCS / "speed.svg").write_text(speed(), encoding="utf-8")
