"""The page of figures on paper: what it shows is what the examples print and draw."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import paper_h100
import scale_on_paper

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
PLANNED = [block for block in BLOCKS if "planned / formula" in block]


def test_blocks_are_what_the_examples_print(capsys: pytest.CaptureFixture[str]) -> None:
    paper_h100.main([])
    first = capsys.readouterr().out
    scale_on_paper.main([])
    printed = [block.strip("\n") for block in f"{first}\n{capsys.readouterr().out}".strip().split("\n\n")]
    assert [block for block in BLOCKS if block not in PLANNED] == printed


@pytest.mark.slow
def test_the_planned_block_is_what_the_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    scale_on_paper.main(["--plan"])
    assert [capsys.readouterr().out.strip("\n")] == PLANNED


def test_figures_are_drawn_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for folder in ("first", "second"):
        paper_h100.figures(tmp_path / folder)
    drawn = sorted((tmp_path / "first").iterdir())
    assert [path.name for path in drawn] == ["paper_bound.svg", "paper_step.svg"]
    assert all(path.read_bytes() == (tmp_path / "second" / path.name).read_bytes() for path in drawn)
    assert not any(b"<dc:date>" in path.read_bytes() for path in drawn)


def test_figures_of_the_page_exist() -> None:
    shown = re.findall(r"!\[[^]]+\]\((figures/\w+\.svg)\)", PAGE)
    assert len(shown) == 4 and all((ROOT / "docs" / path).is_file() for path in shown)


def test_figures_without_matplotlib_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"fx-partition\[plot\]"):
        paper_h100.figures(tmp_path)
