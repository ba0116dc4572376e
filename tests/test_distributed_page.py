"""The page about ranks: its scripts run as it says, and print what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "distributed.md").read_text(encoding="utf-8")
SCRIPTS = {name: text for text, name in re.findall(r"```python\n(# (\S+\.py)\n.*?)```", PAGE, re.DOTALL)}
# Each command on a script of the page, with what it shows to be printed.
RUNS = re.findall(r"^    (python|torchrun --nproc-per-node 2) (\S+\.py)\n\n```text\n(.*?)```", PAGE, re.DOTALL | re.M)


def test_every_script_is_run_by_a_command() -> None:
    assert {name for _, name, _ in RUNS} == set(SCRIPTS) == {"stages.py", "weights.py", "train.py"}
    assert [command for command, name, _ in RUNS if name == "stages.py"] == ["python", "torchrun --nproc-per-node 2"]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name", "shown"), RUNS, ids=[f"{c.split()[0]}-{n}" for c, n, _ in RUNS])
def test_a_script_prints_what_the_page_shows(command: str, name: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SCRIPTS[name], encoding="utf-8")
    # A file for each rank: what two processes write to one pipe may be mixed within a line.
    apart = ["--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    module = [] if command == "python" else ["-m", "torch.distributed.run", "--nproc-per-node", "2", *apart]
    done = subprocess.run(
        [sys.executable, *module, name], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    logs = "".join(path.read_text(encoding="utf-8") for path in sorted(tmp_path.rglob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    printed = {line.strip() for line in (done.stdout + logs).splitlines()}
    missing = [line for line in shown.splitlines() if line.strip() not in {*printed, "..."}]
    assert not missing, done.stdout + logs
