"""Formats and files: only the requested format is made, and an error names the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fx_partition.report.document import Document
from fx_partition.report.output import write, written


def _document() -> Document:
    return Document("Fits one device.", (), "Inference.")


def test_only_what_the_format_asks_for_is_made() -> None:
    assert written(lambda: pytest.fail("made"), lambda: "{}", "json") == "{}"
    assert written(_document, lambda: pytest.fail("made"), "text") == "Fits one device.\n\nInference."
    with pytest.raises(ValueError, match="'html' is not known; choose from text, markdown, json"):
        written(_document, lambda: "{}", "html")


def test_a_file_that_cannot_be_written_names_the_option(tmp_path: Path) -> None:
    write("text", tmp_path / "a.txt", "-o")
    assert (tmp_path / "a.txt").read_text() == "text\n"
    with pytest.raises(ValueError, match=r"cannot write .*; name another file with --trace"):
        write("text", tmp_path, "--trace")
