"""Results of a command as JSON, written again after each section: a command that is stopped keeps what it has.

Terms. A *section* is one part of a command. A section that raises is recorded with its error, and the next ones run. A
*dry run* goes through all sections at the smallest sizes, on any device that torch takes for a GPU. Its figures mean
nothing: the file says so, and it has no verdict.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DRY = "dry run: no figure here is a measurement, and there is no verdict"


class Results:
    """The results of one command.

    Args:
        command: its name; the file is ``<command>.json``.
        folder: where the file is written; it is made if it does not exist.
        dry_run: whether this is a dry run.
        environment: what ran where.

    Attributes:
        failures: what has gone wrong so far; with any, the command's exit code is 1.
    """

    def __init__(self, command: str, folder: Path, dry_run: bool, environment: dict[str, Any]) -> None:
        self.path = folder / f"{command}.json"
        self.dry_run = dry_run
        self.failures: list[str] = []
        self._data: dict[str, Any] = {"command": command, "dry_run": dry_run, "environment": environment}
        if dry_run:
            self._data["note"] = DRY
        self._sections: dict[str, Any] = {}
        self._data |= {"sections": self._sections, "failures": self.failures, "verdict": None}
        folder.mkdir(parents=True, exist_ok=True)
        self._write()

    def section(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Run a section, record what it returns and its seconds, and print both; return None if it raised."""
        begin = time.monotonic()
        found: dict[str, Any] | None = None
        try:
            found = run()
            recorded = found
        except Exception as error:  # whatever it is, the other sections are still worth their time
            recorded = {"error": f"{type(error).__name__}: {error}"}
            self.failures.append(f"{name}: {recorded['error']}")
        seconds = round(time.monotonic() - begin, 3)
        self._sections[name] = {**recorded, "seconds": seconds}
        self._write()
        print(f"== {name} ({seconds:.1f} s)\n{json.dumps(_plain(recorded), indent=1)}", flush=True)
        return found

    def finish(self, verdict: Callable[[], str] | None = None) -> int:
        """Record and print the verdict, if there is one and this is no dry run; return the exit code."""
        if self.dry_run:
            print(DRY)
        elif verdict is not None:
            try:
                self._data["verdict"] = verdict()
                print(self._data["verdict"])
            except KeyError as error:
                self.failures.append(f"no verdict: {error} was not measured")
        for failure in self.failures:
            print(f"FAILED {failure}")
        self._write()
        print(f"written to {self.path}")
        return int(bool(self.failures))

    def _write(self) -> None:
        whole = self.path.with_suffix(".tmp")
        whole.write_text(json.dumps(_plain(self._data), indent=1) + "\n", encoding="utf-8")
        whole.replace(self.path)  # a reader, or a stop in between, never sees half a file


def _plain(found: Any) -> Any:
    """Return the same with "nan" and "inf" as text: JSON has no such numbers, and a wrong result must stay visible."""
    if isinstance(found, dict):
        return {name: _plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_plain(value) for value in found]
    return str(found) if isinstance(found, float) and not math.isfinite(found) else found
