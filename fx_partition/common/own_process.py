"""The process that made something: a forked child has its memory, and none of the threads that work on it.

A child that waits for such a thread waits for ever, and one that closes connections which it inherited closes those of
its parent. So whatever has threads or connections remembers where it was made, and refuses all others.
"""

from __future__ import annotations

import os


class OwnProcess:
    """The process in which this was made.

    Example::

        >>> made_here = OwnProcess()
        >>> made_here.is_this
        True
        >>> made_here.check("a pipeline")
    """

    def __init__(self) -> None:
        self._pid = os.getpid()

    @property
    def is_this(self) -> bool:
        """Whether the calling process is that one, and not a child that was forked from it."""
        return os.getpid() == self._pid

    def check(self, what: str) -> None:
        """Refuse ``what`` in another process.

        Raises:
            RuntimeError: it was made in another one.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{what} was made in process {self._pid}, and process {os.getpid()}, which was forked from it, has "
                'none of its threads; make another one here, or start processes by multiprocessing\'s "spawn"'
            )
