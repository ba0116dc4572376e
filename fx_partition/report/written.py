"""How anything is written: in one of three formats, to a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .document import Document
from .markdown import to_markdown
from .text import to_text

FORMATS = ("text", "markdown", "json")


def written(document: Callable[[], Document], as_json: Callable[[], str], format: str) -> str:
    """One of the two, whichever the format asks for; the other is not made.

    Args:
        document: for a reader.
        as_json: for a program.
        format: "text" for a terminal, "markdown" or "json".

    Raises:
        ValueError: an unknown format; it names those that there are.

    Example::

        >>> print(written(lambda: Document("Fits one device.", (), "Inference."), lambda: "{}", "markdown"))
        **Fits one device.**
        <BLANKLINE>
        Inference.
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not known; choose from {', '.join(FORMATS)}")
    if format == "json":
        return as_json()
    return to_markdown(document()) if format == "markdown" else to_text(document())


def write(text: str, path: Path, option: str) -> None:
    """Write a text to the file that an option of a command names.

    Raises:
        ValueError: it cannot be written; the way out is the option.
    """
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another file with {option}") from error
