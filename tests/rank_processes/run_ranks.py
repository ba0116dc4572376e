"""Run one function on several ranks: processes on this machine, which find each other through a file.

Each is forked from a server that has imported `preloaded` and has done nothing else: the import takes most of the time
of a small test, and every rank needs it.

>>> def add(rank, world_size, number):
...     total = torch.tensor(rank + number)
...     torch.distributed.all_reduce(total)
...     return total.item()
>>> run_ranks(add, 2, 10)
[21, 21]
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

# A rank that waits for one that is gone fails by itself soon after the others are killed.
_STORE_SECONDS = 120
# A rank's own environment is set before the rank does anything.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The environment that the server of forks starts with: it imports by PYTHONPATH alone.
_PATHS = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
_OF_SERVER = _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, _PATHS))}
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["rank_processes.preloaded"])


class RankError(AssertionError):
    """Ranks that failed or were killed; the message shows the standard error of every rank."""


def run_ranks(
    function: Callable[..., Any] | str,
    world_size: int,
    *args: Any,
    timeout: float = 300,
    backend: str | None = "gloo",
    env: dict[str, str] | None = None,
    ok: Sequence[int] | None = None,
) -> list[Any]:
    """Call ``function(rank, world_size, *args)`` on each rank, in its own process.

    Args:
        function: a function at the top of a module that can be imported, or "module:function". It is called once the
            process group is there, and what it returns is pickled; tensors keep no gradients.
        world_size: how many ranks.
        args: more arguments, which can be pickled.
        timeout: seconds until all ranks are killed.
        backend: of the default process group; None: there is none. The function may make it of a ``FileStore`` of the
            file that ``FX_RANKS_STORE`` names; RANK, WORLD_SIZE and their local kin are as torchrun sets them.
        env: more variables of the environment.
        ok: ranks that have to end well; default all. A test that kills a rank names the others.

    Returns:
        What each rank returned, in order of ranks; None for one that is not in ``ok``.

    Raises:
        RankError: a rank failed, or not all ended within ``timeout``. All ranks are dead then.
    """
    name = function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"
    needed = tuple(range(world_size)) if ok is None else tuple(ok)
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        home = Path(folder)
        path = [os.path.abspath(entry) for entry in sys.path]  # ranks run in another folder
        (home / "call").write_bytes(pickle.dumps((name, args, backend, path)))
        ranks = [_Rank(home, rank, world_size, env or {}) for rank in range(world_size)]
        try:
            failure = _wait(ranks, needed, time.monotonic() + timeout, timeout)
        finally:
            for rank in ranks:
                rank.kill()
        if failure:
            raise RankError("\n".join([f"{name}: {failure}", *(rank.story() for rank in ranks)]))
        return [rank.result() if rank.rank in needed else None for rank in ranks]


def _wait(ranks: list[_Rank], needed: Sequence[int], deadline: float, timeout: float) -> str:
    """Until all needed ranks have ended; what went wrong, or ""."""
    waiting = [rank for rank in ranks if rank.rank in needed]
    while waiting:
        for rank in list(waiting):
            code = rank.process.exitcode
            if code:
                return f"rank {rank.rank} ended with {code}"
            if code == 0:
                waiting.remove(rank)
        if waiting and time.monotonic() > deadline:
            return f"rank {', '.join(str(rank.rank) for rank in waiting)} did not end within {timeout:g} s"
        time.sleep(0.01)
    return ""


class _Rank:
    """One process; its output goes to files, so that no pipe fills up."""

    def __init__(self, home: Path, rank: int, world_size: int, env: dict[str, str]) -> None:
        self.rank = rank
        self._home = home
        own = _ONE_THREAD | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "GLOO_SOCKET_IFNAME": "lo",
            "FX_RANKS_STORE": str(home / "store"),
        }
        self.process = _FORKS.Process(target=_main, args=(home, rank, os.environ | own | env))
        was = {name: os.environ.get(name) for name in _OF_SERVER}
        os.environ.update(_OF_SERVER)  # libraries that the server imports read it then
        try:
            self.process.start()
        finally:
            for name, value in was.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def kill(self) -> None:
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def story(self) -> str:
        text = (self._home / f"stderr_{self.rank}").read_text(errors="replace")[-6000:].strip()
        return f"--- rank {self.rank}, ended with {self.process.exitcode}:\n{text or '(no output)'}"

    def result(self) -> Any:
        return pickle.loads((self._home / f"result_{self.rank}").read_bytes())


def _main(home: Path, rank: int, environment: dict[str, str]) -> None:
    errors = os.open(home / f"stderr_{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(errors, stream.fileno())
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the server ignores it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(home)
    name, args, backend, path = pickle.loads((home / "call").read_bytes())
    sys.path[:] = path
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    world_size = int(os.environ["WORLD_SIZE"])
    if backend is not None:
        # The third argument is how many users the file waits for; it makes the file, and the folder's end removes it.
        store = dist.FileStore(os.environ["FX_RANKS_STORE"], world_size)
        limit = timedelta(seconds=_STORE_SECONDS)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=limit)
    module, _, function = name.partition(":")
    result = getattr(importlib.import_module(module), function)(rank, world_size, *args)
    partial = home / f"result_{rank}.partial"
    partial.write_bytes(pickle.dumps(result))
    partial.rename(home / f"result_{rank}")
    if backend is not None:
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of torch now and then abort while the interpreter ends ("terminate called without an active exception").
    os._exit(0)

