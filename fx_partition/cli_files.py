"""Read the files of commands: exported programs and plans. A bad file raises an error of one line."""

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
    """Load a program that ``torch.export.save`` wrote.

    Args:
        path: the file.
        modules: modules to import first, because they register types and operators that the program uses.

    Raises:
        ValueError: there is no such file or module, or torch cannot load the file; the message says why.
    """
    check_file(path)
    for module in modules:
        _import(module)
    logged: list[BaseException] = []
    try:
        with _logged_exceptions(logged):
            return torch.export.load(path)
    except Exception as error:  # torch does not document the errors that a bad file raises
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
        ValueError: there is no such file, or it does not hold a plan.
    """
    check_file(path)
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ValueError: not text, not JSON, or not a plan
        raise ValueError(
            f"{path}: {error}; save a plan with `fx-partition plan MODEL.pt2 --cache SIZE -o PLAN.json`"
        ) from error


def check_file(path: Path) -> None:
    """Raise an error if a path does not name a file.

    Raises:
        ValueError: the message says what the path is instead.
    """
    try:
        if path.is_file():
            return
        what = "a folder" if path.is_dir() else "not a file" if path.exists() else "missing"
    except OSError as error:
        what = f"not a valid file name ({error.strerror})"
    raise ValueError(f"{path} is {what}; name a file that exists")


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # a module may raise anything
        raise ValueError(f"--import {module}: it cannot be imported ({_reason(error)})") from error


def _module_of(reason: str) -> str:
    """Return the module of the type that torch could not find, from its message; "MODULE" if the message has none."""
    named = re.search(r"Deserializing ([\w.]+)\.\w+ in pytree", reason)
    return named[1] if named else "MODULE"


def _reason(error: BaseException) -> str:
    """Return the type and the first sentence of an exception, or of the one that first caused it."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    sentence = str(error).split("\n")[0].split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {sentence[:300]}" if sentence else type(error).__name__


@contextmanager
def _logged_exceptions(found: list[BaseException]) -> Iterator[None]:
    """Collect the exceptions that torch.export logs instead of printing them.

    It logs one for each format that it tries, and then raises another that only refers to the log.
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
