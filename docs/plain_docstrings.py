"""For `make docs`: docstrings are written for their readers in the code; write them for mkdocstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"^Example::\n\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
# One entry for several arguments, attributes or errors, with the lines that continue it.
_SHARED = re.compile(r"^[ ]{4}(\w+(?:, \w+)+): (.*(?:\n[ ]{8}.*)*)", re.MULTILINE)


class PlainDocstrings(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """Return a docstring as mkdocstrings reads it.

    Examples are in ``Examples:`` sections, without the marks of doctest and the double colons of Sphinx. Each argument
    has its own entry, as only then its type and its default are shown. Names of pages are links to them.
    """
    text = re.sub(r" *# doctest: .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"::$", ":", _EXAMPLE.sub(r"Examples:\n\1", text), flags=re.MULTILINE)
    text = _SHARED.sub(lambda found: "\n".join(f"    {name}: {found[2]}" for name in found[1].split(", ")), text)
    return re.sub(r"\bdocs/(\w+)\.md", r"[docs/\1.md](\1.md)", text)
