"""``make test-software-gpu`` where torch's CUDA build cannot be installed: one line, and no failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from page_blocks import ROOT


@pytest.mark.slow
def test_without_torchs_cuda_build_it_says_so_and_ends_well(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.software_gpu", "--venv", str(tmp_path / "venv")],
        cwd=ROOT, env={**os.environ, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}, capture_output=True,
        text=True, check=False, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("software GPU: not run, as torch's CUDA build is not at hand: ERROR: No matching")
