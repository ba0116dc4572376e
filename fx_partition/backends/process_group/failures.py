"""When a rank fails, every other rank ends with an error that names it.

A rank that fails writes the reason on a board in the group's store and closes its connections, which ends the transfers
that others wait for. A rank whose transfer ended reads the board and follows it to the cause: rank 3 waited for rank 2,
which wrote that it waited for rank 1, which raised ValueError in stage 1 (or wrote nothing: its process ended or
hangs).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping

from ..lowering.torch_internals import Store

#: Seconds that a rank gets to write why it failed, before it counts as lost.
GRACE = 2.0


class RankError(RuntimeError):
    """Another rank failed; the message names it, its stage and the reason."""


class FailureBoard:
    """The failures that ranks have written into the store.

    Args:
        store: the store of the group.
        rank: this rank.
        timeout: seconds that a rank waits for another.
    """

    def __init__(self, store: Store, rank: int, timeout: float) -> None:
        self._store, self._rank, self._timeout = store, rank, timeout

    def raised(self, where: str, error: BaseException) -> None:
        """Write that this rank raised an error."""
        self._write({"raised": f"rank {self._rank} raised in {where}: {type(error).__name__}: {error}"})

    def waited(self, peer: int) -> None:
        """Write that a transfer between this rank and ``peer`` ended early."""
        self._write({"waited": peer})

    def cause(self, peer: int, stages: Mapping[int, str], error: BaseException) -> str:
        """Return the reason why ``peer`` ended a transfer, as far as ranks have written it.

        Args:
            stages: by rank, a description of its stages.
            error: the error of the connection.
        """
        deadline = time.monotonic() + min(GRACE, self._timeout)
        while True:
            rank, said = self._follow(peer)
            if "raised" in said:
                return str(said["raised"])
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        reason = str(error).splitlines()[0].split(". ")[0] if str(error) else type(error).__name__
        return (
            f"rank {rank} ({stages.get(rank, 'without a stage')}) is lost: its process has ended, or it did not call "
            f"the model within {self._timeout:g} s; rank {self._rank} waited for rank {peer} ({reason})"
        )

    def _follow(self, peer: int) -> tuple[int, dict[str, object]]:
        """Follow the ranks that waited for one another; return the first that waited for none, and its entry."""
        seen = {self._rank}
        while peer not in seen:
            seen.add(peer)
            said = self._read(peer)
            waited = said.get("waited")
            if not isinstance(waited, int):
                return peer, said
            if waited in seen:
                return peer, {}  # ranks that wait for one another in a circle
            peer = waited
        return peer, {}

    def _write(self, said: dict[str, object]) -> None:
        with contextlib.suppress(RuntimeError):  # the store ends with the process that serves it
            self._store.set(f"fault/{self._rank}", json.dumps(said))

    def _read(self, rank: int) -> dict[str, object]:
        with contextlib.suppress(RuntimeError):
            if self._store.check([f"fault/{rank}"]):
                said = json.loads(self._store.get(f"fault/{rank}"))
                assert isinstance(said, dict)
                return said
        return {}
