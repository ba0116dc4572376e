"""The map of the package: every room is on it and no other, and the files that it names are there."""

from __future__ import annotations

import re

from page_blocks import ROOT

PACKAGE = ROOT / "fx_partition"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def rooms() -> set[str]:
    """Folders with code, but for those that hold rooms."""
    found = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("[a-z]*.py")}
    return {path.as_posix() for path in found} - {".", "passes", "backends"}


def test_every_room_is_on_the_map() -> None:
    table = PAGE[PAGE.index("## The rooms") : PAGE.index("## Where is")]
    assert set(re.findall(r"^\| `([\w/]+)` \|", table, re.MULTILINE)) == rooms()


def test_files_that_the_map_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert [name for name in named if not ((PACKAGE / name).is_file() or (ROOT / name).is_file())] == []


def test_the_words_of_the_glossary_are_defined_where_it_says() -> None:
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    places = re.findall(r"`((?:passes|backends|simulator)/[\w/]+)`", concepts)
    assert places
    assert [p for p in places if not ((PACKAGE / p).is_dir() or (PACKAGE / f"{p}.py").is_file())] == []
