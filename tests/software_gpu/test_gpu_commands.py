"""Commands of benchmarks/gpu go through as dry runs, on the software GPU or a real one."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
import torch._inductor.config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, or a software GPU")

#: Sections that a command has; others have figures in their names.
SECTIONS = {
    "check": {"install", "to the host, ['cuda:0', 'cpu']", "round trip, ['cuda', 'cuda:0'], pipeline"},
    "curve": {"launch gap", "inductor, 2 MiB", "copies", "hop", "two stages on one GPU", "gains"},
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_command_goes_through(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The software GPU lets streams lag by itself, and has no such kernel.
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    with torch._inductor.config.patch("triton.autotune_pointwise", True):  # a dry run changes it
        code = importlib.import_module(f"benchmarks.gpu.{name}").main(["--dry-run", "--out", str(tmp_path)])
    written = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert written["failures"] == [] and code == 0
    assert SECTIONS[name] <= written["sections"].keys()
    assert written["dry_run"] is True and written["verdict"] is None
    assert written["note"] in capsys.readouterr().out
