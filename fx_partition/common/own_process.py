"""Refuse work in a forked child, which has its parent's memory but none of its parent's threads.

A child that waits for such a thread waits for ever, and a child that closes an inherited connection closes it for its
parent. So an object that owns threads or connections remembers the process that made it, and refuses all others.
"""

from __future__ import annotations

import os


class OwnProcess:
    """The process that made this object.

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
        """Whether the calling process made this object, and is not a child that was forked from the maker."""
        return os.getpid() == self._pid

    def check(self, what: str) -> None:
        """Raise an error in any process but the maker; ``what`` names the object in the message.

        Raises:
            RuntimeError: another process made this object.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{what} was made in process {self._pid}, and process {os.getpid()}, which was forked from it, has "
                'none of its threads; make another one here, or start processes by multiprocessing\'s "spawn"'
            )
