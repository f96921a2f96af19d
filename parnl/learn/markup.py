"""The tags of a report's page. All text that goes into them is escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:62rem;
margin:0 auto;padding:1rem;overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.25}h2{font-size:1.25rem;margin-top:2.2rem;border-top:1px solid
#ccc;padding-top:.8rem}h3{font-size:1rem}
.scroll{overflow:auto;margin:.8rem 0}.long{max-height:36rem}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:left;vertical-align:top}
th[scope=row]{position:sticky;left:0;background:#fff;max-width:12rem}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
pre{background:#f3f3f3;padding:.7rem;white-space:pre-wrap}
.charts{display:flex;flex-wrap:wrap;gap:1rem}
figure{margin:0;flex:1 1 22rem;max-width:30rem}img{width:100%;height:auto}
figcaption{font-weight:600;font-size:.9rem}
.note{color:#444}
"""


def text(value: Any) -> str:
    """A value as HTML shows it; what it holds cannot become a tag or an attribute."""
    return html.escape("".join(c if c.isprintable() else "?" for c in str(value)))


def p(sentence: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{text(sentence)}</p>"


def h2(words: str) -> str:
    """The title of a section."""
    return f"<h2>{text(words)}</h2>"


def figure(picture: str, caption: str) -> str:
    """A picture from `charts`, and what it shows."""
    words = text(caption)
    return f'<figure><figcaption>{words}</figcaption><img src="{picture}" alt="{words}"></figure>'


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table of plain text that scrolls where it is too wide; numbers stand to the right."""
    numeric = [
        bool(rows) and all(_is_number(row[i]) for row in rows) and i > 0 for i in range(len(heads))
    ]
    kinds = [' class="n"' if yes else "" for yes in numeric]
    lines = [
        "".join(
            f'<th scope="col"{kind}>{text(head)}</th>'
            for head, kind in zip(heads, kinds, strict=True)
        )
    ]
    for first, *others in rows:
        cells = "".join(
            f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(others, kinds[1:], strict=True)
        )
        lines.append(f'<th scope="row">{text(first)}</th>{cells}')
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    kind = "scroll long" if len(rows) > 60 else "scroll"
    return f'<div class="{kind}"><table>{body}</table></div>'


def _is_number(cell: Any) -> bool:
    try:
        float(str(cell).replace(",", "").removesuffix("%"))
    except ValueError:
        return False
    return True
