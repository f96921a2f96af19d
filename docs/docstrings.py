"""Docstrings as the reference shows them: an extension of griffe, which reads them.

Examples (`>>>`) become blocks of code, without a heading of their own. The annotation `Any` says
nothing and goes.
"""

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^(?=\S).*\n?)*", re.MULTILINE)


def _fenced(found: re.Match[str]) -> str:
    return f"```pycon\n{found[0].rstrip()}\n```\n"


class Docstrings(griffe.Extension):
    """Changes docstrings after they were read from the source, before they are parsed."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put fences around the examples of a docstring."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        """Drop annotations that say nothing."""
        for parameter in func.parameters:
            if str(parameter.annotation) == "Any":
                parameter.annotation = None
        if str(func.returns) == "Any":
            func.returns = None

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Drop annotations that say nothing."""
        if str(attr.annotation) == "Any":
            attr.annotation = None
