"""Compare what ranks were given before they work together: a difference is an error that names it.

Every rank writes a document, a mapping of texts, into the group's store and reads those of the others. A rank that is
working writes heartbeats, so that a long compilation is not taken for a failure.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from fx_partition.common.errors import PartitionError

from ..lowering.torch_internals import Store
from .failures import RankError

_POLL = 0.01
_SHORT = 120

Document = Mapping[str, str]


class ConsistencyCheck:
    """Compares the documents of all ranks.

    Args:
        store: the store of the group.
        rank, size: this rank, and the number of ranks.
        timeout: seconds without a heartbeat after which a rank counts as lost.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float) -> None:
        self._store, self._rank, self._size, self._timeout = store, rank, size, timeout
        self._rounds = 0
        self._beats = 0

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """Write heartbeats inside the ``with`` block."""
        stop = threading.Event()
        self._beat()
        thread = threading.Thread(target=self._beat_until, args=(stop,), name="fx_partition-alive", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def exchange(self, document: Document, doing: str) -> list[Document]:
        """Write this rank's document and return those of all ranks, by rank.

        Args:
            document: this rank's document.
            doing: the step that a missing rank did not finish, for the message: "compile graph 1".

        Raises:
            RankError: ranks wrote no heartbeat for too long; the message names them.
        """
        self._rounds += 1
        prefix = f"round/{self._rounds}/"
        self._store.set(f"{prefix}{self._rank}", json.dumps(dict(document)))
        self._wait(prefix, doing)
        return [json.loads(self._store.get(f"{prefix}{rank}")) for rank in range(self._size)]

    def _wait(self, prefix: str, doing: str) -> None:
        missing = [rank for rank in range(self._size) if rank != self._rank]
        beats: dict[int, bytes] = {}
        deadlines = dict.fromkeys(missing, time.monotonic() + self._timeout)
        pause = _POLL
        while missing := [rank for rank in missing if not self._store.check([f"{prefix}{rank}"])]:
            now = time.monotonic()
            for rank in missing:
                beat = self._read_beat(rank)
                if beat != beats.get(rank, b""):
                    beats[rank], deadlines[rank] = beat, now + self._timeout
            late = [rank for rank in missing if deadlines[rank] < now]
            if late:
                raise RankError(
                    f"{_ranks(late)} did not {doing} within {self._timeout:g} s: all {self._size} ranks have to call "
                    "the model, with inputs of the same shapes; to wait longer, set options={'timeout': seconds}"
                )
            time.sleep(pause)
            pause = min(2 * pause, self._timeout / 20, 0.25)

    def _read_beat(self, rank: int) -> bytes:
        key = f"alive/{rank}"
        return self._store.get(key) if self._store.check([key]) else b""

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"alive/{self._rank}", str(self._beats))

    def _beat_until(self, stop: threading.Event) -> None:
        while not stop.wait(min(5.0, self._timeout / 4)):
            self._beat()


def refuse_differences(documents: Sequence[Document]) -> None:
    """Check that the documents of all ranks are equal.

    Raises:
        PartitionError: they differ; the message has the first difference and the ranks with each value.
    """
    for field in dict.fromkeys(field for document in documents for field in document):
        held: dict[str, list[int]] = {}
        for rank, document in enumerate(documents):
            held.setdefault(document.get(field, "none"), []).append(rank)
        if len(held) > 1:
            sides = "; ".join(f"{_ranks(ranks)}: {_shortened(value)}" for value, ranks in held.items())
            raise PartitionError(f"the ranks were not given the same {field}: {sides}")


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."
