"""The README and the pages of the docs: what they show runs in order, and prints what they say.

`page_blocks` says how a page is run. `test_distributed_page`, `test_paper_page` and `test_benchmarks_edgetpu` run the
pages that need more than that; `test_options_page` holds the tables of options against the code.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import NOTES, ROOT, Block, blocks_of, is_shown, run_page

DOCS = ROOT / "docs"
PAGES = {path.stem: path for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
ELSEWHERE = {"distributed", "edge_tpu", "paper"}
#: They compile stages and start processes for half a minute.
SLOW = {"engines", "fit", "generate", "pipelines", "tutorial"}
#: Blocks that no test runs, by page, with the reasons that the pages give.
NOT_RUN = {
    "devices": ['it would change what "auto" is for the tests that follow'],
    "pipelines": ["needs two CUDA devices"] * 3,
    "software_gpu": ["needs torch's CUDA build"] * 2,
}
RUN = sorted(set(PAGES) - ELSEWHERE)
WORDS = [
    "atom", "boundary", "budget", "certificate", "chain", "downset", "footprint", "oversize", "partition", "spill",
    "stage", "state", "workspace",
]  # fmt: skip

# Parses the command lines of its input, each with --help behind it, and prints what the help says. All in one process,
# so that torch is imported once.
HELP = """
import contextlib, io, json, runpy, shlex, sys
sys.path[:0] = ["benchmarks", "examples"]
found = []
for command in json.load(sys.stdin):
    program, *options = shlex.split(command)[1:]
    sys.argv = [program, *options, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            assert end.code == 0, (command, end.code)
    found.append(text.getvalue())
json.dump(found, sys.stdout)
"""


def commands(page: str) -> list[str]:
    """The commands of a page that take minutes: in blocks that say so, and within sentences and tables."""
    text = "".join(block.text for block in blocks_of(PAGES[page]) if block.kind == "options only")
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    prose = " ".join(PAGES[page].read_text(encoding="utf-8").split())
    return [*filter(None, lines), *re.findall(r"`(python (?:benchmarks|examples)/[^`]+)`", prose)]


@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in RUN])
def test_a_page_prints_what_it_shows(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block, printed in run_page(PAGES[page]):
        assert block.language == "text", f"{page}, line {block.line} prints and shows nothing:\n{printed}"
        assert is_shown(printed, block), f"{page}, line {block.line} shows\n{block.text}\nand it prints:\n{printed}"


@pytest.mark.parametrize("page", RUN)
def test_every_block_says_what_becomes_of_it(page: str) -> None:
    found = blocks_of(PAGES[page])
    assert {block.language for block in found} <= {"python", "sh", "text", "toml"}
    assert {block.kind for block in found if block.note} <= set(NOTES)
    assert [block.reason for block in found if block.kind == "not run"] == NOT_RUN.get(page, [])


def test_commands_that_take_minutes_have_these_options() -> None:
    found = sorted({command for page in PAGES for command in commands(page)})
    programs = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "parse_args" in path.read_text("utf-8")}
    assert programs <= {Path(command.split()[1]).name for command in found}
    done = subprocess.run(
        [sys.executable, "-c", HELP], cwd=ROOT, input=json.dumps(found), capture_output=True, text=True, timeout=400,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command, text in zip(found, json.loads(done.stdout), strict=True):
        assert set(re.findall(r"--[a-z-]+", command)) <= set(re.findall(r"--[a-z-]+", text)), command


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = PAGES["README"].read_text(encoding="utf-8")
    assert text.count("\n") <= 130
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([\w-]+)", text)) <= targets


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_somewhere(page: str) -> None:
    path = PAGES[page]
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", prose):
        other = (path.parent / target) if target else path
        assert other.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


def test_the_glossary_has_these_words() -> None:
    heads = re.findall(r"^### (.*)$", PAGES["concepts"].read_text(encoding="utf-8"), re.MULTILINE)
    assert heads == WORDS


def test_a_block_that_prints_something_else_is_found() -> None:
    def shown(text: str, note: str = "") -> Block:
        return Block("text", text, note, 1)

    assert is_shown("1.5 us\n", shown("1.5 us\n")) and not is_shown("1.6 us\n", shown("1.5 us\n"))
    assert is_shown("1.6 us\n", shown("... us\n")) and is_shown("1.6 us\n", shown("12 us\n", "numbers vary"))
    assert not is_shown("1.6 ms\n", shown("12 us\n", "numbers vary"))
