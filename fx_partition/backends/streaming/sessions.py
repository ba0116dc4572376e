"""Sessions: sequences that go through one pipeline at the same time, each with a state of its own.

A session is, for example, a sequence of tokens that is being generated: its KV caches are the buffers that the model
writes. Each session has its own copy of them. A request brings the tensors of its session as values of its table, by
reference: no stage copies a state, and a stage's code does not know whose state it writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from fx_partition.common.errors import PartitionError

from .program import ResidentState

#: Each session is a copy of all state; far fewer keep all stages busy.
MOST_SESSIONS = 1 << 16


class Sessions:
    """The state of each session.

    The model's own buffers are what a session starts with, and what `reset` puts back; they are never written.

    Args:
        states: the state of the model.
        count: the number of sessions.

    Attributes:
        numbers: for each tensor that `tensors` returns, the number of its value in the program.
    """

    def __init__(self, states: Sequence[ResidentState], count: int) -> None:
        self._states = states
        self.numbers = tuple(state.number for state in states)
        self._held = [self._fresh() for _ in range(count)]

    def tensors(self, session: Any) -> list[torch.Tensor]:
        """Return the tensors of a session, for the stages to write.

        Raises:
            PartitionError: there is no such session.
        """
        return self._held[self._check(session)]

    def by_name(self, session: Any) -> dict[str, torch.Tensor]:
        """Return the tensors of a session by their names in the model.

        Raises:
            PartitionError: there is no such session.
        """
        return {state.name: held for state, held in zip(self._states, self.tensors(session), strict=True)}

    def reset(self, session: Any) -> None:
        """Give a session the state that the model's buffers hold; requests in flight keep the tensors that they have.

        Raises:
            PartitionError: there is no such session.
        """
        self._held[self._check(session)] = self._fresh()

    def _fresh(self) -> list[torch.Tensor]:
        """Return copies of the model's buffers; those that share a storage share its copy."""
        copies: dict[int, torch.UntypedStorage] = {}
        fresh = []
        with torch.inference_mode(False), torch.no_grad():  # a tensor of inference mode could not be written outside
            for state in self._states:
                own = state.tensor
                storage = own.untyped_storage()
                if storage.data_ptr() not in copies:
                    copies[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
                copy = copies[storage.data_ptr()]
                like = torch.empty(0, dtype=own.dtype, device=own.device)
                fresh.append(like.set_(copy, own.storage_offset(), own.shape, own.stride()))
        return fresh

    def _check(self, session: Any) -> int:
        is_number = isinstance(session, Integral) and not isinstance(session, bool)
        if not is_number or not 0 <= int(session) < len(self._held):
            raise PartitionError(
                f"session={session!r} is not a session of this pipeline; they are numbered from 0 to "
                f"{len(self._held) - 1}, as many as sessions= said"
            )
        return int(session)


def check_sessions(sessions: int | None) -> None:
    """Check ``sessions=``, the number of sessions; None stands for a pipeline whose requests share one state.

    Raises:
        PartitionError: it is not a number from 1 to ``MOST_SESSIONS``.
    """
    if sessions is None:
        return
    if isinstance(sessions, bool) or not isinstance(sessions, Integral) or not 1 <= sessions <= MOST_SESSIONS:
        raise PartitionError(
            f"sessions={sessions!r} must be a whole number from 1 to {MOST_SESSIONS}: how many sequences have a state "
            "of their own; leave it out where all requests share the model's state"
        )
