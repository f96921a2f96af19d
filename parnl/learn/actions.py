"""What the subcommands of `parnl` do, and what they print."""

import inspect
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from parnl.learn.progress import describe, further, heading, plot, row, shown, things
from parnl.learn.readers.collection import counted

WRITTEN = (".csv", ".tsv", ".parquet")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Answer a user's mistake with its message alone; options are named as in a terminal."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"parnl: {as_options(str(error))}")


def as_options(message: str) -> str:
    """Write `label=` as --label, and `id='my walk'` as --id 'my walk'; what is quoted stays."""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        return f"--{name}" + (f" {shlex.quote(value)}" if value else "")

    return re.sub(r"(?<![\w'-])(id|time|label|columns|layout)=(?:'([^']*)')?", option, message)


def import_modules(names: list[str]) -> None:
    """`parnl --import MODULE`: run what registers cells of the user's own."""
    if names:
        from parnl.testing.suite import imported

        with plain_errors():
            for name in names:
                imported(name)


def show_cells(input_size: int = 64, hidden_size: int = 64) -> None:
    """A table of the registered cells; parameters are counted at the given sizes."""
    from math import prod

    from rich.console import Console
    from rich.table import Table

    import parnl

    console = Console(highlight=False, markup=False)
    note = (
        f"parameters: at input {input_size}, hidden {hidden_size}; "
        "operations: of one channel, a transcendental function counts ten"
    )
    table = Table(caption=note)
    for column in ("name", "states", "linear"):
        table.add_column(column, overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("operations\nper step", justify="right")
    table.add_column("description", overflow="fold")
    narrow = console.width < 75  # too narrow for a table: a paragraph for each cell
    for name in parnl.list_cells():
        cell = parnl.get_cell(name, input_size=input_size, hidden_size=hidden_size)
        states, kind = ", ".join(cell.states), "yes" if cell.linear else "no"
        size = f"{sum(prod(shape) for shape in cell.parameter_shapes.values()):,}"
        description = (inspect.getdoc(type(cell)) or "").partition("\n")[0]
        if narrow:
            console.print(f"{name}: {description}")
            kind = "linear" if cell.linear else "nonlinear"
            console.print(f"{states}; {kind}; {size} parameters; {cell.cost} operations\n")
        else:
            table.add_row(name, states, kind, size, str(cell.cost), description)
    console.print(note if narrow else table)


def run_seeds(
    given: dict[str, Any], out: Path | None, resume: bool, overwrite: bool = False
) -> None:
    """`parnl train`, of one seed or of several: "seed" in `given` is a text such as 0,1,2."""
    from parnl.learn import seeds

    with plain_errors():
        wanted = seeds.parsed(given.pop("seed")) if "seed" in given else []
        folder = out or _folder(given)
        listed = resume and (folder / seeds.SEEDS).exists()
        if len(wanted) > 1 or listed:
            return seeds.train_seeds(
                given, wanted, folder, resume, overwrite, train=run_training, say=print
            )
    one = {"seed": wanted[0]} if wanted else {}
    run_training(given | one, folder, resume, overwrite)


def _folder(given: dict[str, Any]) -> Path:
    """The folder of a run without --out."""
    from parnl.learn import training

    known = asdict(training.Config()) | given
    return Path("runs", f"{Path(known['data']).stem}-{known['cell']}-{known['backend']}")


def run_training(
    given: dict[str, Any], out: Path | None, resume: bool, overwrite: bool = False
) -> None:
    """`parnl train` of one seed with the options that were given on the command line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from parnl.learn import judging, kept, training
    from parnl.learn.events import writing
    from parnl.learn.seeds import Stopped
    from parnl.memory import keep_memory

    keep_memory()
    # Torch reads it on import. Measured: a second thread gains 1.3 times at T = 1460 and nothing at
    # T = 29, and loses up to 100 times where another process keeps its core busy.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with plain_errors():
        folder, before, history = out or _folder(given), {}, []
        if resume:
            _, header = training.read_checkpoint(folder / training.CHECKPOINT)
            before, history = header["config"], header["history"]
        config = replace(training.Config(**before), **given)
        dataset = training.dataset_of(config)
    console.print(describe(dataset))
    task, scale = training.task_of(config, dataset), training.scale_of(config, dataset)
    metric = config.best or task.best

    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn())
    live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    events = writing(folder, history, config.tensorboard)
    with events as add_events, live as progress, plain_errors():
        bar = progress.add_task("", total=None, epoch=1)

        def on_step(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(record: dict[str, Any]) -> None:
            progress.update(bar, completed=0, epoch=record["epoch"] + 1)
            console.print(row(record, metric))
            add_events(record)

        console.print(heading(metric))
        try:
            result = training.fit(
                config,
                dataset,
                folder,
                resume=resume,
                overwrite=overwrite,
                on_step=on_step,
                on_epoch=on_epoch,
            )
        except KeyboardInterrupt:
            raise Stopped(
                "parnl: stopped; with --resume it goes on after the last finished epoch"
            ) from None
    with plain_errors():
        test = judging.compare(
            result.trainer, dataset.test, config.batch, config.chunks, task=task, scale=scale
        )
    plot(result.history, metric, folder / "training.png")
    kept.keep(folder, config, dataset, result.history, test, scale)
    seconds = sum(record["seconds"] for record in result.history)
    console.print(
        f"\n{f'test {task.best}':<17} {shown(task.best, test.metrics)}   "
        f"({counted(len(dataset.test.labels), things(dataset.ahead))}, "
        f"weights of epoch {result.best['epoch']})\n"
        f"{' ' * 18}{further(task.best, test.metrics)}\n"
        f"training          {seconds:.1f} s   ({len(result.history)} epochs, "
        f"{counted(result.best['chunks'], 'chunk')})\n"
        f"parallel solve    {test.gap:.1e} from the sequential one at most, in answers up to "
        f"{test.scale:.1f}\n"
        f"                  ({counted(test.chunks, 'chunk')}, Newton iterations of the blocks: "
        f"{', '.join(map(str, test.iterations))})\n"
        f"written           {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}"
    )


def run_evaluation(folder: Path, data: str, label: str | None, backend: str | None) -> None:
    """`parnl evaluate`."""
    from parnl.learn import continued, trained

    with plain_errors():
        model = trained.load_run(folder, backend)
        if model.ahead is None:
            found = trained.answer(model, data, label=label)
            metrics, count = trained.judge(model, found), len(found.ids)
        elif label is not None:
            raise ValueError(f"label: got {label!r}, expected none: the labels are later steps")
        else:
            metrics, count = continued.judged(model, data)
    print(counted(count, things(model.ahead)))
    for name in metrics:
        print(f"{name:<10} {shown(name, metrics)}")
    trained_on = Path(model.config.data)
    if trained_on.exists() and trained_on.samefile(data):
        print(
            "the model was trained on a part of this file; `parnl report` shows the test part alone"
        )


def run_prediction(folder: Path, data: str, out: Path, backend: str | None) -> None:
    """`parnl predict`."""
    from parnl.learn import continued, trained

    with plain_errors():
        check_table(out)
        model = trained.load_run(folder, backend)
        if model.ahead is None:
            columns, unit = trained.columns(model, trained.answer(model, data)), "series"
        else:
            columns, unit = continued.predicted(model, data), "step"
        rows = write_table(columns, out)
    print(f"{counted(rows, unit)} to {out}")


def run_generation(
    folder: Path,
    prompt: str | None,
    data: str | None,
    steps: int,
    temperature: float,
    seed: int,
    out: Path | None,
    backend: str | None,
) -> None:
    """`parnl generate`: of a text after a prompt, of series after those in a file."""
    from parnl.learn import continued, trained

    with plain_errors():
        model = trained.load_run(folder, backend)
        if data is None:
            start = ("\n" if prompt is None else prompt).encode()
            found = start + continued.generated(
                model, start, steps, temperature=temperature, seed=seed
            )
            if out is None:
                print(found.decode(errors="replace"))
            else:
                out.write_bytes(found)
            return
        if prompt is not None:
            raise ValueError(f"prompt: got {prompt!r}, expected none where --data gives series")
        if out is None:
            raise ValueError(f"out: expected a name that ends in {', '.join(WRITTEN)}")
        check_table(out)
        rows = write_table(continued.continued(model, data, steps), out)
    print(f"{counted(rows, 'step')} to {out}")


def check_table(out: Path) -> None:
    """Raise ValueError for a name of no kind of table."""
    if out.suffix.lower() not in WRITTEN:
        raise ValueError(f"out: got {out}, expected a name that ends in {', '.join(WRITTEN)}")


def write_table(columns: dict[str, Any], out: Path) -> int:
    """Write columns, name -> values, as a table; return how many rows it has."""
    import pandas as pd

    table = pd.DataFrame(columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix.lower() == ".parquet":
        table.to_parquet(out, index=False)
    else:
        table.to_csv(out, index=False, sep="\t" if out.suffix.lower() == ".tsv" else ",")
    return len(table)


def write_report(folder: Path, out: Path | None) -> None:
    """`parnl report`."""
    from parnl.learn import report

    with plain_errors():
        print(f"written {report.write(folder, out)}")


def export_model(folder: Path, to: str, out: Path) -> None:
    """`parnl export`."""
    from parnl.export.runs import write

    with plain_errors():
        print(f"written {', '.join(write(folder, to, out))} in {out}")


def show_diagnosis(
    name: str, inputs: int, hidden: int, steps: int, seed: int, budget: int, out: Path | None
) -> None:
    """`parnl diagnose`: the report on a cell with fresh weights and normal inputs."""
    import numpy as np
    from rich.console import Console

    import parnl

    with plain_errors():
        cell = parnl.get_cell(name, input_size=inputs, hidden_size=hidden)
        u = np.random.default_rng(seed).normal(size=(steps, inputs)).astype(np.float32)
        report = parnl.diagnose(cell, cell.init(seed), u, budget=budget)
    Console(highlight=False, markup=False, soft_wrap=True).print(str(report))
    if out is not None:
        report.plot(out)


def show_cache(clear: bool) -> None:
    """`parnl cache`: what is kept in the cache of compiled kernels; `clear` removes it."""
    from parnl import kernel_cache

    try:
        with plain_errors():
            folder = kernel_cache.location()
            kernels = kernel_cache.clear(folder) if clear else kernel_cache.kernels(folder)
    except RuntimeError as error:
        sys.exit(f"parnl: {error}; set PARNL_CACHE to a folder of your own")
    size = sum(kernel.size for kernel in kernels) / 1e6
    if clear:
        print(f"removed {counted(len(kernels), 'kernel')}, {size:.1f} MB, from {folder}")
        return
    most = kernel_cache.MOST_BYTES / 1e6
    print(f"folder      {folder}")
    print(f"kernels     {len(kernels)} of at most {kernel_cache.MOST_KERNELS}")
    print(f"size        {size:.1f} MB of at most {most:.0f} MB")
    if kernels:
        first, last = (
            datetime.fromtimestamp(kernel.used).strftime("%Y-%m-%d %H:%M")
            for kernel in (kernels[0], kernels[-1])
        )
        print(f"last used   from {first} to {last}")


def run_check(target: str) -> None:
    """`parnl check`: put the cell that `target` names through `parnl.testing.check_cell`."""
    os.environ.setdefault("JAX_ENABLE_X64", "1")  # float64 tells a mistake from rounding
    from parnl import Cell, StepError
    from parnl.testing import NotApplicable, check_property, find
    from parnl.testing.suite import items

    with plain_errors():
        cell = find(target)
    try:
        _ = cell if isinstance(cell, Cell) else cell(2, 3)
    except Exception as error:  # whatever a user's class raises
        sys.exit(f"parnl: {target} cannot be made: {type(error).__name__}: {error}")
    for backend, name in items():
        print(f"{backend}: {name}", flush=True)
        try:
            with suppress(NotApplicable):
                check_property(name, cell, backend)
        except (AssertionError, NotImplementedError, StepError) as error:
            sys.exit(f"parnl: {target} fails: {error}")
    print(f"{target} passes")
