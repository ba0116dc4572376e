"""The site of `make docs`: it has every page and every public name, builds without a warning, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import ROOT

import fx_partition

DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation_once() -> None:
    listed = re.findall(r": (\w+\.md)$", CONFIG, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


def test_every_public_name_is_in_the_reference() -> None:
    reference = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^(?:::: |      heading: )fx_partition\.(\w+)$", reference, re.MULTILINE)
    assert sorted(named) == sorted(fx_partition.__all__)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)], cwd=ROOT, capture_output=True,
        text=True, timeout=400, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "api" / "index.html").read_text(encoding="utf-8")
    assert {name for name in fx_partition.__all__ if f"fx_partition.{name}" not in page} == set()
    assert "Example::" not in page and "doctest:" not in page
    assert not re.search(r"<p>\s*(?:Args|Attributes|Example|Raises|Returns|Yields):", page), "a section is plain text"
    assert not re.search(r"<code>\w+(?:, \w+)+</code>", page), "arguments share an entry without a type"
    pages = {str(path.relative_to(tmp_path)): path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//")
    assert {name for name, text in pages.items() if loads.search(text)} == set()
