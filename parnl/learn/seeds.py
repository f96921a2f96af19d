"""One training for each of several seeds, and how far their results lie apart.

RUN/seed-0, RUN/seed-1, ...      a run each
RUN/seeds.json                   the options, what each seed reached, mean and deviation
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from parnl.learn.checkpoints import read_checkpoint
from parnl.learn.config import Config
from parnl.learn.progress import shown
from parnl.learn.training import CHECKPOINT, MODEL, check_same

SEEDS, REPORT = "seeds.json", "report.json"
FILES = (CHECKPOINT, MODEL, REPORT)


class Stopped(SystemExit):
    """The user has stopped the program, so no other seed is to be tried."""


def parsed(text: str) -> list[int]:
    """The seeds in "0,1,2". Raises ValueError for what is none, or comes twice."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"seed: got {text!r}, expected a whole number, or several as in 0,1,2"
        ) from None
    for place, seed in enumerate(seeds):
        Config(seed=seed)  # it checks the range
        if seed in seeds[:place]:
            raise ValueError(f"seed: got {seed} twice, expected each seed once")
    return seeds


def known(folder: Path) -> dict[str, Any]:
    """What `seeds.json` holds. Raises ValueError where it is missing or something else."""
    path = folder / SEEDS
    if not path.is_file():
        raise ValueError(f"out: {folder} has no {SEEDS}, so it holds no runs of several seeds")
    try:
        found = json.loads(path.read_text())
        found["seeds"] = {int(seed): value for seed, value in found["seeds"].items()}
        Config(**found["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"out: {path} is not what parnl writes ({error})") from error
    return found


def train_seeds(
    given: dict[str, Any],
    seeds: list[int],
    folder: Path,
    resume: bool,
    overwrite: bool,
    *,
    train: Callable[[dict[str, Any], Path, bool, bool], None],
    say: Callable[[str], None],
) -> None:
    """Train with each seed, in a folder of its own.

    given: options, of which a resumed run may lack some. train: of options, folder, resume and
    overwrite; where it fails, the other seeds go on. say: prints a line. With `resume` finished
    seeds are not trained again. `seeds` may name new ones; if it is empty, it means all seeds that
    are there.

    Raises ValueError where the folder holds runs that would be lost, or of other options, and
    SystemExit at the end if a seed has failed.
    """
    results: dict[int, Any] = {}
    if resume:
        before = known(folder)
        results, options = before["seeds"], asdict(Config()) | before["config"]
        config = replace(Config(**options), **given)
        check_same(config, options, f"each run in {folder}")
        seeds = seeds or list(results)
    else:
        config = Config(**given)
        places = [folder / SEEDS]
        places += [_own(folder, seed) / name for seed in seeds for name in FILES]
        if not overwrite and any(place.exists() for place in places):
            raise ValueError(
                f"out: {folder} holds runs of several seeds; give --resume to go on with them, "
                "--overwrite to lose them, or name another folder"
            )
        for place in places:  # all at once: none may look later as if it were of this command
            place.unlink(missing_ok=True)
    results |= {seed: results.get(seed) for seed in seeds}
    _write(folder, config, results)
    for seed in seeds:
        own, options = _own(folder, seed), replace(config, seed=seed)
        if resume and _finished(own, options):
            say(f"seed {seed} is finished")
        else:
            say(f"\nseed {seed}, in {own}")
            try:
                train(asdict(options), own, resume and (own / CHECKPOINT).exists(), overwrite)
            except (Stopped, ModuleNotFoundError):
                raise
            except (SystemExit, Exception) as error:
                if not isinstance(error, SystemExit):  # no mistake of the user
                    traceback.print_exc()
                say(str(error))
                results[seed] = {"error": str(error).removeprefix("parnl: ")}
                _write(folder, config, results)
                continue
        results[seed] = _reached(own)
        _write(folder, config, results)
    say("\n" + table(results))
    say(f"written {SEEDS} in {folder}")
    failed = [str(seed) for seed in seeds if "error" in results[seed]]
    if failed:
        sys.exit(
            f"parnl: no result for seed {', '.join(failed)}; the others are kept, and --resume "
            "tries it again"
        )


def spread(results: dict[int, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sample deviation of each test metric over the seeds that have it.

    A deviation needs two seeds; there is none of fewer.
    """
    done = [value["metrics"] for value in results.values() if value and "metrics" in value]
    columns = {name: [m[name] for m in done if name in m] for m in done for name in m}
    mean = {name: fmean(column) for name, column in columns.items()}
    return mean, {name: stdev(column) for name, column in columns.items() if len(column) > 1}


def table(results: dict[int, Any]) -> str:
    """A line for each seed, then mean and deviation of the test metrics."""
    mean, deviation = spread(results)

    def line(*parts: str) -> str:
        return " ".join(f"{part:<10}" if i == 0 else f"{part:>9}" for i, part in enumerate(parts))

    def metrics(found: dict[str, float]) -> list[str]:
        return [shown(name, found) if name in found else "" for name in mean]

    lines = [line("seed", "epoch", *mean)]
    for seed, value in results.items():
        if value and "metrics" in value:
            lines.append(line(str(seed), str(value["epoch"]), *metrics(value["metrics"])))
        else:
            lines.append(line(str(seed), "failed" if value else "not done"))
    if mean:
        lines.append(line("mean", "", *metrics(mean)))
    if deviation:
        lines.append(line("deviation", "", *metrics(deviation)))
    return "\n".join(part.rstrip() for part in lines)


def _own(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _finished(folder: Path, config: Config) -> bool:
    """Whether the report there is of the run with these options, and of all its epochs."""
    try:
        report = json.loads((folder / REPORT).read_text())
        _, header = read_checkpoint(folder / CHECKPOINT)
        options = asdict(Config()) | report["config"]
        return (options, report["history"]) == (
            json.loads(json.dumps(asdict(config))),
            header["history"],
        )
    except (KeyError, OSError, TypeError, ValueError):
        return False


def _reached(folder: Path) -> dict[str, Any]:
    """The test metrics of a finished run, and the epoch whose weights they are of."""
    report = json.loads((folder / REPORT).read_text())
    best = [record["epoch"] for record in report["history"] if record["best"]]
    return dict(epoch=best[-1], metrics=report["test"]["metrics"])


def _write(folder: Path, config: Config, results: dict[int, Any]) -> None:
    options = {name: value for name, value in asdict(config).items() if name != "seed"}
    mean, deviation = spread(results)
    about = dict(config=options, seeds=results, mean=mean, deviation=deviation)
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f"{SEEDS}.new"
    new.write_text(json.dumps(about, indent=1, allow_nan=False))
    new.replace(folder / SEEDS)
