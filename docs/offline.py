"""No page asks the network for anything: a hook of MkDocs.

The search of a page that is opened as a file wants a script from another machine. `worker.js`
does what it is for.
"""

import logging
import re
from typing import Any

from mkdocs.utils import get_relative_url

_ELSEWHERE = "https://unpkg.com/iframe-worker/shim"
_ASKED = re.compile(r'<(?:script|img|iframe)[^>]*src="https?://[^"]*|<link[^>]*stylesheet[^>]*http')


def _here(output: str, url: str) -> str:
    output = output.replace(_ELSEWHERE, get_relative_url("worker.js", url))
    for asked in _ASKED.findall(output):  # a warning ends a strict build
        logging.getLogger("mkdocs").warning("%s asks the network: %s", url, asked)
    return output


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Return the page with the script that stands beside it."""
    return _here(output, page.url)


def on_post_template(output_content: str, template_name: str, **_: Any) -> str:
    """Return 404.html likewise."""
    return (
        _here(output_content, template_name) if template_name.endswith("html") else output_content
    )
