"""Lines of a text file with their numbers, as formats that are no tables are read."""

from collections.abc import Iterator
from pathlib import Path

from parnl.learn.readers.collection import wrong


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Each line that is not blank, without the space around it, and its number from 1."""
    if not path.stat().st_size:
        raise ValueError(f"data: {path} is empty")
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            try:
                text = content.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise not_utf8(path, line, content, error) from error
            if text:
                yield line, text


def not_utf8(path: Path, line: int, content: bytes, error: UnicodeDecodeError) -> ValueError:
    """The error on a line that is no UTF-8."""
    if line == 1 and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return wrong(path, "line 1", "text in UTF-16", "text in UTF-8")
    return wrong(path, f"line {line}", f"the byte 0x{content[error.start]:02x}", "text in UTF-8")
