"""Two hosts on one machine: two network namespaces that a veth pair joins, or two loopback addresses.

Namespaces need root and ``ip``. What is in one has its own interface, addresses and ports, and meets the other
through the pair alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "10.111.7"


@dataclass(frozen=True)
class Host:
    """Where a node runs.

    Attributes:
        kind: "network namespaces" or "loopback addresses".
        address: its own.
        interface: the network interface that has the address.
        enter: the words before a command that is to run there.
    """

    kind: str
    address: str
    interface: str
    enter: tuple[str, ...] = ()


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Both hosts; what runs in them is ended, and they are gone, at the end."""
    with contextlib.ExitStack() as stack:
        if os.geteuid() == 0 and shutil.which("ip"):
            names = [f"fxp{os.getpid()}{end}" for end in "ab"]
            stack.callback(_remove, names)
            with contextlib.suppress(subprocess.CalledProcessError):
                yield _join(names)
                return
        yield (
            Host("loopback addresses", "127.0.0.1", "lo"),
            Host("loopback addresses", "127.0.0.2", "lo"),
        )


def run_on(hosts: Sequence[Host], commands: Sequence[Sequence[str]], folder: Path, timeout: float) -> list[str]:
    """Run one command on each host at the same time; what each printed.

    Raises:
        AssertionError: one failed, or not all ended in time; the message shows what all printed.
    """
    logs = [folder / f"host_{i}" for i in range(len(hosts))]
    running = []
    for host, command, log in zip(hosts, commands, logs, strict=True):
        own = {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with open(log, "wb") as out:
            running.append(subprocess.Popen([*host.enter, *command], stdout=out, stderr=out, env=os.environ | own))
    try:
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            if any(process.poll() for process in running):
                break
            time.sleep(0.1)
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            _end(process)
    said = [log.read_text(errors="replace") for log in logs]
    assert codes == [0] * len(hosts), "\n".join(
        f"--- {host.address} ended with {code}:\n{text[-6000:]}"
        for host, code, text in zip(hosts, codes, said, strict=True)
    )
    return said


def _join(names: Sequence[str]) -> tuple[Host, Host]:
    links = [f"{name}v" for name in names]
    for name in names:
        _ip("netns", "add", name)
    _ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
    addresses = [f"{_PREFIX}.{i + 1}" for i in range(2)]
    for name, link, address in zip(names, links, addresses, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
        for up in ("lo", link):
            _ip("-n", name, "link", "set", up, "up")
    first, second = (
        Host("network namespaces", address, link, ("ip", "netns", "exec", name))
        for name, link, address in zip(names, links, addresses, strict=True)
    )
    return first, second


def _remove(names: Sequence[str]) -> None:
    """End what is left in the namespaces, and delete them; the pair goes with them."""
    existing = {line.split()[0] for line in _said("ip", "netns", "list").splitlines()}
    for name in existing & set(names):
        for process in _said("ip", "netns", "pids", name).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        _ip("netns", "delete", name)


def _end(process: subprocess.Popen[bytes]) -> None:
    """torchrun ends its workers when it is told to end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _said(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
