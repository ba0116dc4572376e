"""Compute the distance of a touch: the bytes that a cache must hold so that a tensor is still there.

Terms
-----
distance
    The bytes of distinct tensors touched since the same tensor was touched last, itself included. A cache that evicts
    the least recently used data serves a touch whose distance is at most its size (R. L. Mattson et al., "Evaluation
    techniques for storage hierarchies", 1970). A working set of W bytes that is swept again and again has the distance
    W at every touch; the hit curves of devices were measured like this.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence


class ReuseStack:
    """A stack of tensors in the order of their last touch.

    The bytes above a tensor are found in the logarithm of the number of touches, by a Fenwick tree (P. M. Fenwick, "A
    new data structure for cumulative frequency tables", 1994).

    Example::

        >>> stack = ReuseStack()
        >>> stack.touch("a", 4), stack.touch("b", 2), stack.touch("b", 2), stack.touch("a", 4)
        (None, None, 2, 6)
    """

    def __init__(self) -> None:
        self._tree = [0] * 1025
        self._now = 0
        self._at: dict[Hashable, tuple[int, int]] = {}  # position of the last touch, and bytes; ascending

    def touch(self, key: Hashable, size: int) -> int | None:
        """Bring a tensor to the top; return the distance of this touch, None for the first one."""
        if self._now + 1 == len(self._tree):
            self.fill(self.order())
        found = self._at.pop(key, None)
        distance = None
        if found is not None:
            place, before = found
            distance = self._upto(self._now) - self._upto(place) + size
            self._add(place, -before)
        self._now += 1
        self._add(self._now, size)
        self._at[key] = (self._now, size)
        return distance

    def order(self) -> tuple[tuple[Hashable, int], ...]:
        """Return all tensors and their bytes, the last touched last."""
        return tuple((key, size) for key, (_, size) in self._at.items())

    def fill(self, order: Sequence[tuple[Hashable, int]]) -> None:
        """Replace the contents by these tensors."""
        self._tree = [0] * max(1025, 4 * len(order) + 1)
        self._now = len(order)
        self._at = {key: (place, size) for place, (key, size) in enumerate(order, 1)}
        for place, size in self._at.values():
            self._add(place, size)

    def _add(self, place: int, size: int) -> None:
        while place < len(self._tree):
            self._tree[place] += size
            place += place & -place

    def _upto(self, place: int) -> int:
        total = 0
        while place:
            total += self._tree[place]
            place -= place & -place
        return total
