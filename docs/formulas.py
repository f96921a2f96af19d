r"""Formulas between dollars become MathML, which browsers show without a script.

A hook of MkDocs. `pymdownx.arithmatex` has found the formulas and wrapped each in `\(` `\)`, or in
`\[` `\]` where it stands by itself.
"""

import html
import re

from latex2mathml.converter import convert

_WRAPPED = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    tag, bracket, latex = found.groups()
    display = "block" if bracket == "[" else "inline"
    return f'<{tag} class="formula">{convert(html.unescape(latex), display=display)}</{tag}>'


def on_page_content(content: str, **_: object) -> str:
    """Return the page's HTML with every formula as MathML."""
    return _WRAPPED.sub(_mathml, content)
