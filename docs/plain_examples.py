"""For `make docs`: examples in docstrings are written for Sphinx (``Example::``); write them for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example::\n\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)


class PlainExamples(griffe.Extension):
    """Rewrite each docstring as it is read, before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return a docstring with ``Examples:`` sections, without the marks of doctest and the double colons of Sphinx."""
    text = re.sub(r" *# doctest: .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", _EXAMPLE.sub(r"Examples:\n\1", text), flags=re.MULTILINE)
