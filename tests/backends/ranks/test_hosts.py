"""Two hosts started by torchrun meet at an endpoint and run one model."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from rank_processes.two_hosts import run_on, two_hosts

EXAMPLE = Path(__file__).parents[3] / "examples" / "two_hosts.py"


@pytest.mark.slow
def test_a_model_runs_on_two_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers")
    with two_hosts() as hosts:
        with capsys.disabled():
            print(f"\ntwo hosts are two {hosts[0].kind}: {hosts[0].address}, {hosts[1].address}")
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{hosts[0].address}:29417", "--rdzv-id", "two_hosts"]
        commands = [
            [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meet,
             "--rdzv-conf", f"is_host={int(host is hosts[0])}",  # a namespace does not have the name of this machine
             "--local-addr", host.address, str(EXAMPLE), "--timeout", "200"]
            for host in hosts
        ]  # fmt: skip
        said = run_on(hosts, commands, tmp_path, timeout=400)
    lines = [line for text in said for line in text.splitlines() if "eager differs by" in line]
    assert sorted(line.split(" on ")[0] for line in lines) == ["rank 0 of 2", "rank 1 of 2"], said
    assert any("Needs 2 devices" in text for text in said)


def test_hosts_are_gone_in_the_end() -> None:
    with pytest.raises(ZeroDivisionError), two_hosts() as hosts:
        if hosts[0].enter:
            assert hosts[0].enter[-1] in subprocess.check_output(["ip", "netns", "list"], text=True)
            subprocess.run([*hosts[1].enter, "ping", "-c", "1", hosts[0].address], check=False)
            left = subprocess.Popen([*hosts[0].enter, "sleep", "600"])
            while not subprocess.check_output(["ip", "netns", "pids", hosts[0].enter[-1]]):  # it has yet to enter
                time.sleep(0.01)
        raise ZeroDivisionError
    if hosts[0].enter:
        assert left.wait(timeout=10) != 0
        assert hosts[0].enter[-1] not in subprocess.check_output(["ip", "netns", "list"], text=True)
