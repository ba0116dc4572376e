"""The files that commands read: exported programs and plans. What is wrong with one is an error in one line."""

from __future__ import annotations

import importlib
import logging
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from .passes.plan.plan import Plan

#: For the help of each command that reads a program.
TRUST = "loading one may run code that it holds, so name only files that you trust"


def load_program(path: Path, modules: Sequence[str] = ()) -> torch.export.ExportedProgram:
    """Load what ``torch.export.save`` wrote.

    Args:
        modules: to import before, for the types and operators that the program is made of.

    Raises:
        ValueError: no such file or module, or torch cannot load it; it says why.
    """
    check_file(path)
    for module in modules:
        _import(module)
    logged: list[BaseException] = []
    try:
        with _logged_exceptions(logged):
            return torch.export.load(path)
    except Exception as error:  # a file that is no program fails in many ways, none of them documented
        reason = _reason(logged[0] if logged else error)
        ways_out = 'save one with torch.export.save(program, "MODEL.pt2")'
        if zipfile.is_zipfile(path):
            ways_out = f"if it lacks types or operators, --import {_module_of(reason)} registers them; else {ways_out}"
        raise ValueError(
            f"{path} is not an exported program that torch {torch.__version__} can load ({reason}); {ways_out}"
        ) from error


def read_plan(path: Path) -> Plan:
    """Read a plan that was saved as JSON.

    Raises:
        ValueError: no such file, or no plan.
    """
    check_file(path)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: no text, no JSON, or JSON that is no plan
        raise ValueError(
            f"{path}: {error}; save a plan with `fx-partition plan MODEL.pt2 --cache SIZE -o PLAN.json`"
        ) from error


def check_file(path: Path) -> None:
    """Refuse a name that is not a file's.

    Raises:
        ValueError: it says what the name is instead.
    """
    try:
        if path.is_file():
            return
        what = "a folder" if path.is_dir() else "not a file" if path.exists() else "missing"
    except OSError as error:
        what = f"no file's name ({error.strerror})"
    raise ValueError(f"{path} is {what}; name a file that exists")


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"--import {module}: it cannot be imported ({_reason(error)})") from error


def _module_of(reason: str) -> str:
    """The module of the type that torch does not know, by its words; if it does not say so, a word for any."""
    named = re.search(r"Deserializing ([\w.]+)\.\w+ in pytree", reason)
    return named[1] if named else "MODULE"


def _reason(error: BaseException) -> str:
    """What an exception says, and where others led to it the first of them: its type, and its first sentence."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    sentence = str(error).split("\n")[0].split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {sentence[:300]}" if sentence else type(error).__name__


@contextmanager
def _logged_exceptions(found: list[BaseException]) -> Iterator[None]:
    """Keep the exceptions that torch.export logs, of each format that it tries, instead of printing them.

    It raises another one in the end, which says to look there.
    """

    def keep(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            found.append(record.exc_info[1])
        return False

    loggers = [
        logger for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and name.startswith(("torch.export", "torch._export"))
    ]  # fmt: skip
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)
