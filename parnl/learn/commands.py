"""The command `parnl`: list, train, check and diagnose cells; show the cache of kernels."""

import inspect
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

from parnl.learn.progress import count, describe, further, heading, plot, row, shown

EXTRAS = {
    "torch": ["torch"],
    "jax": ["jax", "jaxlib"],
    "testing": ["hypothesis", "pytest"],
    "train": "aeon equinox matplotlib optax pandas pyarrow rich safetensors typer".split(),
}


def main() -> None:
    """Entry point. A missing optional package is answered with the command that installs it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal cannot show becomes "?"
            stream.reconfigure(errors="replace")
    try:
        build()()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        for extra, packages in EXTRAS.items():
            if package in packages:
                sys.exit(f"parnl: {package} is not installed: pip install 'parnl[{extra}]'")
        raise


def build() -> Any:
    """The typer application."""
    import typer

    from parnl.learn.training import Config

    app = typer.Typer(
        help="Train and check nonlinear recurrent networks that run in parallel over time.",
        epilog="Example: parnl train --help",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    # An option that is not given stays None: a resumed run takes it from its checkpoint.
    def option(text: str, default: Any, *names: str) -> Any:
        return typer.Option(*names, help=text, show_default=str(default))

    def show_version(asked: bool) -> None:
        if asked:
            import parnl

            print(f"parnl {parnl.__version__}")
            raise typer.Exit

    @app.callback()
    def before_the_command(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                callback=show_version,
                is_eager=True,
                help="Print the version of parnl.",
            ),
        ] = False,
    ) -> None:
        """What comes before a subcommand."""

    @app.command(epilog="Example: parnl cells")
    def cells() -> None:
        """List the cells that parnl and the installed packages bring."""
        show_cells()

    @app.command(epilog="Example: parnl train --data JapaneseVowels --cell gru --epochs 20")
    def train(
        task: Annotated[
            str | None,
            option(
                "What is learned of a series: its class (classify) or numbers (regress).",
                Config.task,
            ),
        ] = None,
        best: Annotated[
            str | None,
            option(
                "The metric that decides which epoch is the best and when to stop.",
                "accuracy of classify, mse of regress",
            ),
        ] = None,
        cell: Annotated[
            str | None, option("The recurrent cell, a name from `parnl cells`.", Config.cell)
        ] = None,
        data: Annotated[
            str | None,
            option(
                "The name of a data set that aeon knows, or a file: csv, tsv, parquet, feather, "
                "npz, npy, ts, arff. Or a folder with one series a file.",
                Config.data,
            ),
        ] = None,
        id_: Annotated[
            str | None,
            option("The column that tells the series of a table apart.", "by its name", "--id"),
        ] = None,
        time: Annotated[
            str | None, option("The column of time stamps: numbers or dates.", "by its name")
        ] = None,
        label: Annotated[
            str | None, option("The column of the classes, or a file of them.", "by its name")
        ] = None,
        columns: Annotated[
            str | None, option("The columns that the model reads: NAME,NAME,...", "all others")
        ] = None,
        layout: Annotated[
            str | None,
            option("Whether a row of a table is a step (long) or a series (wide).", "auto"),
        ] = None,
        missing: Annotated[
            str | None,
            option("What missing values become: interpolate, mean, mask.", "interpolate"),
        ] = None,
        standardise: Annotated[
            bool | None,
            option(
                "Bring each channel to mean 0 and deviation 1, or take the values as they are.",
                "standardise",
                "--standardise/--raw",
            ),
        ] = None,
        patch: Annotated[
            int | None, option("How many time steps are joined into one.", Config.patch)
        ] = None,
        backend: Annotated[
            str | None, option("The framework, torch or jax.", Config.backend)
        ] = None,
        blocks: Annotated[int | None, option("How many blocks the model has.", Config.blocks)] = (
            None
        ),
        loops: Annotated[
            int | None, option("How many times the blocks are run through.", Config.loops)
        ] = None,
        width: Annotated[
            int | None, option("How many features go from block to block.", Config.width)
        ] = None,
        state: Annotated[int | None, option("The hidden size of the cell.", Config.state)] = None,
        dropout: Annotated[
            float | None, option("The dropout rate in each block's MLP.", Config.dropout)
        ] = None,
        epochs: Annotated[int | None, option("The most epochs to train.", Config.epochs)] = None,
        batch: Annotated[int | None, option("How many series make a batch.", Config.batch)] = None,
        learning_rate: Annotated[
            float | None, option("Adam's learning rate.", Config.learning_rate, "--lr")
        ] = None,
        patience: Annotated[
            int | None,
            option("Stop when validation has not improved for so many epochs.", Config.patience),
        ] = None,
        seed: Annotated[
            int | None,
            option("The seed of the weights, the order of series and dropout.", Config.seed),
        ] = None,
        chunks: Annotated[
            int | None,
            option("How many chunks the parallel solve cuts a series into.", "the solver chooses"),
        ] = None,
        out: Annotated[
            Path | None, option("The folder of the run.", "runs/DATA-CELL-BACKEND")
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Continue the run in --out with the options it had."),
        ] = False,
        overwrite: Annotated[
            bool,
            typer.Option("--overwrite", help="Begin anew where --out holds a run, which is lost."),
        ] = False,
    ) -> None:
        """Train a model of series; print what it makes of the test part, and how exact it is."""
        given = {n.rstrip("_"): value for n, value in locals().items() if value is not None}
        del given["resume"], given["overwrite"]
        if columns is not None:
            given["columns"] = [name.strip() for name in columns.split(",")]
        run_training(given, given.pop("out", None), resume, overwrite)

    @app.command(epilog="Example: parnl check my_cells.py:MyCell")
    def check(
        target: Annotated[
            str,
            typer.Argument(
                metavar="MODULE:CELL",
                help="The class of the cell and its module or file: FILE.py:CELL. "
                "CELL(dt=0.1) sets an option.",
            ),
        ],
    ) -> None:
        """Test a cell of your own: its parallel answer, its gradients and other properties."""
        run_check(target)

    @app.command(epilog="Example: parnl diagnose lrc --hidden 64 --steps 4096")
    def diagnose(
        name: Annotated[str, typer.Argument(help="The cell, a name from `parnl cells`.")],
        inputs: Annotated[
            int, option("How many inputs it has; they are random numbers.", 8, "--input")
        ] = 8,
        hidden: Annotated[int, option("How many channels it has.", 16)] = 16,
        steps: Annotated[int, option("The length of the sequence.", 1024)] = 1024,
        seed: Annotated[int, option("The seed of the weights and inputs.", 0)] = 0,
        budget: Annotated[
            int, option("The most boxes that the proof for a channel may take.", 1000)
        ] = 1000,
        out: Annotated[
            Path | None, option("Also save the report as this image.", "no image")
        ] = None,
    ) -> None:
        """Report how stable a cell with fresh weights is, and how fast its solve converges."""
        show_diagnosis(name, inputs, hidden, steps, seed, budget, out)

    @app.command(epilog="Example: parnl cache --clear")
    def cache(
        clear: Annotated[
            bool,
            typer.Option("--clear", help="Remove all kernels. Running programs are not disturbed."),
        ] = False,
    ) -> None:
        """Show the folder of compiled kernels, how many it holds and when they were used.

        A kernel that is gone is compiled again when it is needed.
        When there are too many, parnl removes those that were not used for the longest time.
        The environment variable PARNL_CACHE names another folder.
        """
        show_cache(clear)

    return app


@contextmanager
def plain_errors() -> Iterator[None]:
    """Answer a user's mistake with its message alone."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"parnl: {error}")


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


def run_training(
    given: dict[str, Any], out: Path | None, resume: bool, overwrite: bool = False
) -> None:
    """`parnl train` with the options that were given on the command line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from parnl.learn import training
    from parnl.memory import keep_memory

    keep_memory()
    # Torch reads it on import. Measured: a second thread gains 1.3 times at T = 1460 and nothing at
    # T = 29, and loses up to 100 times where another process keeps its core busy.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    with plain_errors():
        config = training.Config(**given)
        folder = out or Path("runs", f"{Path(config.data).stem}-{config.cell}-{config.backend}")
        if resume:
            _, header = training.read_checkpoint(folder / training.CHECKPOINT)
            config = replace(training.Config(**header["config"]), **given)
        dataset = training.dataset_of(config)
    console.print(describe(dataset))
    metric = config.best or training.TASKS[config.task].best

    columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn())
    live = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with live as progress, plain_errors():
        bar = progress.add_task("", total=None, epoch=1)

        def on_step(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        def on_epoch(record: dict[str, Any]) -> None:
            progress.update(bar, completed=0, epoch=record["epoch"] + 1)
            console.print(row(record, metric))

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
            sys.exit("parnl: stopped; with --resume it goes on after the last finished epoch")
    task, scale = training.TASKS[config.task], training.Scale.of(dataset.train.labels)
    with plain_errors():
        test = training.compare(
            result.trainer, dataset.test, config.batch, config.chunks, task=task, scale=scale
        )
    plot(result.history, config.best or task.best, folder / "training.png")
    report = dict(config=asdict(config), history=result.history, test=test._asdict())
    (folder / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False))
    seconds = sum(record["seconds"] for record in result.history)
    console.print(
        f"\n{f'test {task.best}':<17} {shown(task.best, test.metrics)}   "
        f"({len(dataset.test.labels)} series, weights of epoch {result.best['epoch']})\n"
        f"{' ' * 18}{further(task.best, test.metrics)}\n"
        f"training          {seconds:.1f} s   ({len(result.history)} epochs, "
        f"{count(result.best['chunks'], 'chunk')})\n"
        f"parallel solve    {test.gap:.1e} from the sequential one at most, in answers up to "
        f"{test.scale:.1f}\n"
        f"                  ({count(test.chunks, 'chunk')}, Newton iterations of the blocks: "
        f"{', '.join(map(str, test.iterations))})\n"
        f"written           {', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}"
    )


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
        print(f"removed {count(len(kernels), 'kernel')}, {size:.1f} MB, from {folder}")
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
    from parnl import StepError
    from parnl.testing import check_cell, find

    try:
        with plain_errors():
            cell = find(target)
        check_cell(cell)
    except (AssertionError, NotImplementedError, StepError) as error:
        sys.exit(f"parnl: {target} fails: {error}")
    print(f"{target} passes")
