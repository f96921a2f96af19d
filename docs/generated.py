"""Parts of the reference that parnl itself tells: a hook of MkDocs.

The page of the command line is made of what `parnl --help` knows. `{{ name }}` in a page of the
reference is replaced by what is in `TOLD`.
"""

import re
from typing import Any

from mkdocs.structure.files import File

_HEAD = """# Command line

`parnl COMMAND --help` prints the same in a terminal. Commands need `pip install 'parnl[train]'`.
"""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def commands() -> str:
    """Return the page: a section for each command, a table of its options."""
    import typer.main

    from parnl.learn.commands import build

    app: Any = typer.main.get_command(build())
    parts = [_HEAD]
    for name, command in app.commands.items():
        parts.append(f"## parnl {name}\n\n{command.help}")
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        context = command.make_context(name, [], resilient_parsing=True)
        pieces = command.collect_usage_pieces(context)  # options first, then each argument
        parts.append(f"```console\n{' '.join(['parnl', name, *pieces])}\n```")
        for argument, shown in zip(arguments, pieces[-len(arguments) :], strict=False):
            parts.append(f"`{shown}`: {argument.help}")
        rows = []
        for option in options:
            names = ", ".join(f"`{n}`" for n in [*option.opts, *option.secondary_opts])
            shown = option.show_default
            default = shown if isinstance(shown, str) else option.default
            default = "" if default in (None, False) else f"`{_cell(str(default))}`"
            default = "required" if option.required else default
            rows.append(f"| {names} | {_cell(option.help)} | {default} |")
        if rows:
            parts.append(
                "\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows])
            )
        if command.epilog:
            parts.append(command.epilog)
    return "\n\n".join(parts) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the page."""
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def properties() -> str:
    """Return a list of the properties that `parnl.testing` checks."""
    from parnl.testing import PROPERTIES

    return "\n".join(f"- `{p.name}`: {p.summary}" for p in PROPERTIES.values())


def hostile() -> str:
    """Return the kinds of hostile inputs."""
    from parnl.testing import HOSTILE

    return ", ".join(f"`{name}`" for name in HOSTILE)


def tolerances() -> str:
    """Return the tolerances of `parnl.testing`."""
    from parnl.testing import TOLERANCES

    return ", ".join(f"{value:g} in {dtype}" for dtype, value in TOLERANCES.items())


TOLD = {"properties": properties, "hostile": hostile, "tolerances": tolerances}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what parnl tells."""
    if not page.file.src_uri.startswith("reference/"):
        return markdown
    return re.sub(r"\{\{ (\w+) \}\}", lambda found: TOLD[found[1]](), markdown)
