"""Write reports in one of three formats, and to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from .document import Document
from .markdown import to_markdown
from .text import to_text

FORMATS = ("text", "markdown", "json")


def written(document: Callable[[], Document], as_json: Callable[[], str], format: str) -> str:
    """Return a report in the given format; only the document or the JSON that it needs is made.

    Args:
        document: makes the document for the text and Markdown formats.
        as_json: makes the JSON text.
        format: "text" for a terminal, "markdown" or "json".

    Raises:
        ValueError: the format is unknown; the message lists the formats.

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


def check_place(path: Path, option: str, inputs: Sequence[Path] = ()) -> None:
    """Raise an error if a file cannot be written, before the work whose result goes there; change nothing.

    Args:
        path: the file that `write` will write.
        option: the command's option that names it, for the error.
        inputs: files that the command reads and must not overwrite.

    Raises:
        ValueError: the file cannot be written; the message names the option.
    """
    try:
        reason = _why_not(path, inputs)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
    if reason:
        raise ValueError(f"cannot write {path}: {reason}; name another file with {option}")


def _why_not(path: Path, inputs: Sequence[Path]) -> str:
    if not path.name or path.is_dir():
        return "it is a folder"
    try:
        path.stat()  # unlike exists(), it raises an error for a name that is too long
    except FileNotFoundError:
        if not path.parent.is_dir():
            return f"there is no folder {path.parent}"
        return "" if os.access(path.parent, os.W_OK | os.X_OK) else f"nothing may be written to {path.parent}"
    for given in inputs:
        if given.exists() and path.samefile(given):
            return "it is read by this command"
    return "" if os.access(path, os.W_OK) else "it may not be written"


def write(text: str, path: Path, option: str) -> None:
    """Write a text to the file that an option of a command names.

    Raises:
        ValueError: the file cannot be written; the message names the option.
    """
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}; name another file with {option}") from error
