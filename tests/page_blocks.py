"""A page of the docs as blocks: what is run, what it prints, and what a comment above a block says of it."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: What a comment right above a block may say of it; the reason follows behind a colon.
NOTES = ("not run", "options only", "numbers vary")

_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line in the page."""

    language: str
    text: str
    note: str
    line: int

    @property
    def kind(self) -> str:
        return self.note.partition(":")[0]

    @property
    def reason(self) -> str:
        return self.note.partition(":")[2].strip()


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(found[2], found[3], found[1] or "", text.count("\n", 0, found.start(3)) + 1)
        for found in _BLOCK.finditer(text)
    ]


def run_page(page: Path) -> Iterator[tuple[Block, str]]:
    """Run a page's blocks in order in the current folder, which is empty.

    All Python blocks are one module. Commands find ``examples`` and ``benchmarks`` in the folder.

    Yields:
        Each ``text`` block behind a block that ran, with what that block printed; and each Python block that prints and
        has no ``text`` block behind it.
    """
    for name in ("examples", "benchmarks"):
        Path(name).symlink_to(ROOT / name)
    module = types.ModuleType("page")
    sys.modules["page"] = module  # Dynamo and pickle look a function's module up by its name
    ran: Block | None = None
    printed = ""
    try:
        for block in blocks_of(page):
            if block.language == "text":
                if ran is not None:
                    yield block, printed
                ran = None
                continue
            if ran is not None and ran.language == "python" and printed:
                yield ran, printed
            ran = None
            if block.kind in ("not run", "options only"):
                continue
            if block.language == "python":
                ran, printed = block, _run_python(block, page, module)
            elif block.language == "sh":
                ran, printed = block, _run_shell(block)
        if ran is not None and ran.language == "python" and printed:
            yield ran, printed
    finally:
        del sys.modules["page"]


def _run_python(block: Block, page: Path, module: types.ModuleType) -> str:
    # Blank lines first, so that a traceback names the line of the page.
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, module.__dict__)
    return printed.getvalue()


def _run_shell(block: Block) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], capture_output=True, text=True, timeout=400, check=False,
        env=os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, f"{block.text}{done.stdout}{done.stderr}"
    return done.stdout


def is_shown(printed: str, block: Block) -> bool:
    """Whether a ``text`` block shows what was printed: ``...`` stands for anything, white space may differ, and below
    the note "numbers vary" so may numbers."""
    shown = block.text
    if block.kind == "numbers vary":
        printed, shown = map(_without_numbers, (printed, shown))
    how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return doctest.OutputChecker().check_output(shown.strip() + "\n", printed.strip() + "\n", how)


def _without_numbers(text: str) -> str:
    return re.sub(r"-{3,}", "---", re.sub(r"\d[\d.,]*", "#", text))
