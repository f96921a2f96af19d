"""Run the code of pages, as a reader would who types it in.

    python docs/run.py docs/tutorials/own-cell.md ...     runs them and draws their pictures anew

Blocks marked `python` run in their order, in one namespace; blocks marked `sh` run by bash, which
stops at the first line that fails. All of a page runs in one folder, empty at first. A block marked
`text` right after one that runs is what that one prints: words are compared, numbers are not, and
`...` stands for anything. Commands that are only shown are marked `console`.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

DOCS = Path(__file__).parent
_BLOCK = re.compile(
    r"^( *)```(python|sh)\b[^\n]*\n(.*?)^\1```$(?:\s*?^\1```text\n(.*?)^\1```$)?",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of a page that runs; line: the number of its first one; shown: what it prints."""

    language: str
    code: str
    line: int
    shown: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in _BLOCK.finditer(text):
        indent, language, code, shown = block.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        found.append(Block(language, code, text.count("\n", 0, block.start()) + 2, shown))
    return found


def words(text: str) -> str:
    """Return a text as it is compared: without space, and with `#` for each number."""
    return "".join(re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", text).split())


def run(page: Path, folder: Path) -> dict[str, Any]:
    """Run a page's code in a folder and return the names it defined; errors name page and line."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    # pictures look alike, and the same code draws the same bytes
    look = {"MPLBACKEND": "Agg", "MATPLOTLIBRC": str(DOCS / "matplotlibrc")}
    environment = look | {"PATH": path, "SOURCE_DATE_EPOCH": "0"}
    names: dict[str, Any] = {"__name__": "__main__"}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, environment):
        for language, code, line, shown in blocks(page):
            if language == "python":
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)
                printed = out.getvalue()
            else:
                done = subprocess.run(["bash", "-e", "-c", code], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(f"{page}, line {line}:\n{done.stdout}\n{done.stderr}")
                printed = done.stdout
            parts = map(re.escape, words("..." if shown is None else shown).split("..."))
            if not re.fullmatch(".*".join(parts), words(printed)):
                raise RuntimeError(f"{page}, line {line}: the page does not show this:\n{printed}")
    return names


def main(pages: list[str]) -> None:
    """Run pages and put the pictures they save next to them."""
    for page in (Path(page).resolve() for page in pages):
        with tempfile.TemporaryDirectory() as folder:
            run(page, Path(folder))
            for picture in sorted(Path(folder).glob("*.svg")):
                (page.parent / picture.name).write_bytes(picture.read_bytes())
                print(page.parent / picture.name)


if __name__ == "__main__":
    main(sys.argv[1:])
