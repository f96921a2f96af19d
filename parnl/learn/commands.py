"""The command `parnl`: its subcommands and options. What they do is in `parnl.learn.actions`."""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

from parnl.learn import actions

EXTRAS = {
    "torch": ["torch"],
    "jax": ["jax", "jaxlib"],
    "testing": ["hypothesis", "pytest"],
    "tensorboard": ["tensorboard"],
    "train": "aeon equinox matplotlib optax pandas pyarrow rich safetensors sklearn typer".split(),
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

    from parnl.learn.config import Config

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
        modules: Annotated[
            list[str] | None,
            typer.Option(
                "--import",
                metavar="MODULE",
                help="First import this module or FILE.py, which registers cells of your own.",
            ),
        ] = None,
    ) -> None:
        """What comes before a subcommand."""
        actions.import_modules(modules or [])

    @app.command(epilog="Example: parnl cells")
    def cells() -> None:
        """List the cells that parnl and the installed packages bring."""
        actions.show_cells()

    @app.command(epilog="Example: parnl train --data JapaneseVowels --cell gru --epochs 20")
    def train(
        task: Annotated[
            str | None,
            option(
                "What to learn of each series: its class (classify), numbers (regress), its next "
                "steps (forecast), or at each step the next one (next).",
                Config.task,
            ),
        ] = None,
        best: Annotated[
            str | None,
            option(
                "The metric that decides which epoch is the best and when to stop.",
                "accuracy for classify, bits for next on text, else mse",
            ),
        ] = None,
        cell: Annotated[
            str | None, option("The recurrent cell, a name from `parnl cells`.", Config.cell)
        ] = None,
        data: Annotated[
            str | None,
            option(
                "A file (csv, tsv, parquet, feather, npz, npy, ts, arff; for next also text), a "
                "folder with one series in each file, or the name of a data set that aeon knows.",
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
            option(
                "What missing values become: interpolate, previous, mean, mask.",
                "interpolate; previous for forecast and next",
            ),
        ] = None,
        validation: Annotated[
            float | None,
            option("The share of the data to validate on; or a number of steps or series.", "0.2"),
        ] = None,
        test: Annotated[
            float | None,
            option("The share of the data to test on; or a number of steps or series.", "0.2"),
        ] = None,
        context: Annotated[
            int | None,
            option("How many steps the model reads.", "96 for forecast, 256 for next"),
        ] = None,
        horizon: Annotated[int | None, option("How many steps a forecast has.", "24")] = None,
        target: Annotated[
            str | None,
            option("The columns to forecast: NAME,NAME,...", "all that hold numbers"),
        ] = None,
        clock: Annotated[
            str | None,
            option(
                "Where the time between steps goes: to the model as one more channel (channel), "
                "or also to the cell, if it takes dt (cell).",
                Config.clock,
            ),
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
            int | None, option("How many times the blocks are applied.", Config.loops)
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
        schedule: Annotated[
            str | None,
            option(
                "How the learning rate falls until the last epoch: constant, cosine, linear.",
                Config.schedule,
            ),
        ] = None,
        warmup: Annotated[
            int | None,
            option("The learning rate rises during this many first epochs.", Config.warmup),
        ] = None,
        weight_decay: Annotated[
            float | None,
            option("AdamW's weight decay, apart from the gradient.", Config.weight_decay),
        ] = None,
        accumulate: Annotated[
            int | None,
            option("How many batches make one optimizer step.", Config.accumulate),
        ] = None,
        class_weights: Annotated[
            str | None,
            option("The weights of classes in the loss: balanced counts rare ones more.", "none"),
        ] = None,
        precision: Annotated[
            str | None,
            option("The dtype of products in training steps: float32, bfloat16.", "float32"),
        ] = None,
        patience: Annotated[
            int | None,
            option("Stop when validation has not improved for this many epochs.", Config.patience),
        ] = None,
        seed: Annotated[
            str | None,
            option(
                "The seed of the weights, the order of series and dropout. With several, as in "
                "0,1,2, each makes a run of its own in --out.",
                Config.seed,
            ),
        ] = None,
        chunks: Annotated[
            int | None,
            option("How many chunks the parallel solve cuts a series into.", "the solver chooses"),
        ] = None,
        out: Annotated[
            Path | None, option("The folder of the run.", "runs/DATA-CELL-BACKEND")
        ] = None,
        tensorboard: Annotated[
            bool | None,
            option(
                "Also write the numbers of each epoch for TensorBoard.",
                "no-tensorboard",
                "--tensorboard/--no-tensorboard",
            ),
        ] = None,
        resume: Annotated[
            bool,
            typer.Option("--resume", help="Continue the run in --out with the options it had."),
        ] = False,
        overwrite: Annotated[
            bool,
            typer.Option("--overwrite", help="Begin anew even if --out holds a run. It is lost."),
        ] = False,
    ) -> None:
        """Train a model on series; print how well it does on the test part, and how exact it is."""
        given = {n.rstrip("_"): value for n, value in locals().items() if value is not None}
        del given["resume"], given["overwrite"]
        for name in ("columns", "target"):
            if name in given:
                given[name] = [one.strip() for one in given[name].split(",")]
        actions.run_seeds(given, given.pop("out", None), resume, overwrite)

    run = typer.Argument(metavar="RUN", help="The folder of the run that trained the model.")
    new = typer.Option(help="A file or folder of new series, in a format that train reads.")
    backend_of_model = option("The framework, torch or jax.", "the run's own")

    @app.command(epilog="Example: parnl predict runs/walks-lrc-torch --data new.csv --out out.csv")
    def predict(
        folder: Annotated[Path, run],
        data: Annotated[str, new],
        out: Annotated[
            Path,
            typer.Option(
                help="The file to write: .csv, .tsv or .parquet. It has a row for each series, or "
                "for each step that is predicted."
            ),
        ],
        backend: Annotated[str | None, backend_of_model] = None,
    ) -> None:
        """Write the answers of a trained model to new series."""
        actions.run_prediction(folder, data, out, backend)

    @app.command(epilog="Example: parnl generate runs/plays-gru-torch --prompt ROMEO:")
    def generate(
        folder: Annotated[Path, run],
        prompt: Annotated[str | None, option("The text to go on from.", "a new line")] = None,
        data: Annotated[
            str | None, option("A file of series to go on from, in place of a prompt.", "none")
        ] = None,
        steps: Annotated[int, typer.Option(help="How many steps to write; of text, bytes.")] = 500,
        temperature: Annotated[
            float,
            typer.Option(help="With text: below 1 favours likely bytes, 0 takes the likeliest."),
        ] = 1.0,
        seed: Annotated[int, typer.Option(help="The seed for drawing text.")] = 0,
        out: Annotated[
            Path | None, option("The file to write, a table of series.", "text is printed")
        ] = None,
        backend: Annotated[str | None, backend_of_model] = None,
    ) -> None:
        """Go on from a text or from series, with a model of the task next."""
        actions.run_generation(folder, prompt, data, steps, temperature, seed, out, backend)

    @app.command(epilog="Example: parnl evaluate runs/walks-lrc-torch --data more.csv")
    def evaluate(
        folder: Annotated[Path, run],
        data: Annotated[str, new],
        label: Annotated[
            str | None,
            option("The column of the labels, or a file of them.", "as in the training data"),
        ] = None,
        backend: Annotated[str | None, backend_of_model] = None,
    ) -> None:
        """Print how well a trained model does on series whose answers are known."""
        actions.run_evaluation(folder, data, label, backend)

    @app.command(epilog="Example: parnl report runs/JapaneseVowels-lrc-torch --out vowels.html")
    def report(
        folder: Annotated[Path, run],
        out: Annotated[Path | None, option("The file to write.", "RUN/report.html")] = None,
    ) -> None:
        """Write a web page on a run: its results, curves, data, model and how stable it is.

        The page is one file. It needs no network, and the data is not read again.
        """
        actions.write_report(folder, out)

    @app.command(epilog="Example: parnl export runs/walks-lrc-torch --to c --out board")
    def export(
        folder: Annotated[Path, run],
        to: Annotated[str, typer.Option(help="What to write: c, onnx, torch or jax.")],
        out: Annotated[Path, typer.Option(help="The folder for the files.")],
    ) -> None:
        """Write a trained model for use elsewhere; it takes values as they stand in a file."""
        actions.export_model(folder, to, out)

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
        actions.run_check(target)

    @app.command(epilog="Example: parnl diagnose lrc --hidden 64 --steps 4096")
    def diagnose(
        name: Annotated[
            str, typer.Argument(metavar="CELL", help="The cell, a name from `parnl cells`.")
        ],
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
        actions.show_diagnosis(name, inputs, hidden, steps, seed, budget, out)

    @app.command(epilog="Example: parnl cache --clear")
    def cache(
        clear: Annotated[
            bool,
            typer.Option("--clear", help="Remove all kernels. Running programs are not disturbed."),
        ] = False,
    ) -> None:
        """Show the folder of compiled kernels, how many it holds and when they were used.

        A removed kernel is compiled again when it is needed.
        When there are too many, parnl removes those that were unused for the longest time.
        The environment variable PARNL_CACHE names another folder.
        """
        actions.show_cache(clear)

    return app
