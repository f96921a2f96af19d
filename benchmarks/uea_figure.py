"""The accuracy of every split, and LrcSSM's Newton iterations by block, as one image."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, str, int, tuple[int, int]]  # task, model, steps joined, budget


def draw(groups: Mapping[Key, list[dict[str, Any]]], seed: int, path: Path) -> None:
    """Write the image to `path`; `seed`: of the split whose Newton iterations are drawn."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    tasks = sorted({task for task, *_ in groups})
    image = Figure(figsize=(5 * len(tasks), 9), layout="constrained")
    for task, (top, bottom) in zip(
        tasks, image.subplots(2, len(tasks), squeeze=False).T, strict=True
    ):
        mine = {key[1:]: runs for key, runs in groups.items() if key[0] == task}
        models = [model for model, *_ in mine]
        labels = [
            m if models.count(m) == 1 else f"{m}, {patch} joined, {budget[0]} epochs"
            for m, patch, budget in mine
        ]
        for place, runs in enumerate(mine.values()):
            values = [100 * r["test"] for r in runs]
            top.plot(values, [place] * len(values), "o", alpha=0.5, color="C0")
            top.plot(statistics.mean(values), place, "|", markersize=18, color="C3")
        top.set_yticks(range(len(mine)), labels)
        top.invert_yaxis()
        top.set(title=task, xlabel="test accuracy, % (bar: mean)")
        of_lrc = [
            (label, run)
            for label, (key, runs) in zip(labels, mine.items(), strict=True)
            for run in runs
            if key[0] == "lrc" and run["config"]["seed"] == seed
        ]
        for i, (label, run) in enumerate(of_lrc):
            for when, style, name in (("before", "o--", None), ("after", "s-", label)):
                counts = run["iterations"][when]["T"]
                bottom.plot(range(1, len(counts) + 1), counts, style, color=f"C{i}", label=name)
        for axis in (bottom.xaxis, bottom.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        bottom.set(xlabel="block (dashed: before training)", ylim=(0, None))
        bottom.set(ylabel="Newton iterations, C = T")
        bottom.legend()
    image.savefig(path, dpi=110)
