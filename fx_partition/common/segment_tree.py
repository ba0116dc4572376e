"""A segment tree over a row of numbers: set one, add to a whole suffix, ask for the minimum of a suffix."""

from __future__ import annotations


class SegmentTree:
    """Each operation takes O(log n) for n numbers, which it is built from in O(n).

    ``_least[node]`` is the minimum below the node, with what was added to the node as a whole (``_added``)
    and without what was added above it. A suffix [i, n) consists of leaf i and the right siblings on its way
    to the root.

    Example::

        tree = SegmentTree([5, 3, 4])
        tree.add_from(1, 10)     # 5, 13, 14
        tree.min_from(0)         # 5
        tree.min_from(1)         # 13
    """

    def __init__(self, numbers: list[int]) -> None:
        assert numbers
        self._leaves = 1 << (len(numbers) - 1).bit_length()
        # The unused leaves on the right repeat the last number, so no minimum changes.
        least = [0] * self._leaves + numbers + numbers[-1:] * (self._leaves - len(numbers))
        for node in range(self._leaves - 1, 0, -1):
            left, right = least[2 * node], least[2 * node + 1]
            least[node] = left if left < right else right
        self._least = least
        self._added = [0] * len(least)

    def set(self, i: int, number: int) -> None:
        """Make ``number`` the number at index ``i``, whatever was added to it."""
        least, added = self._least, self._added
        node = self._leaves + i
        parent = node >> 1
        while parent:
            number -= added[parent]
            parent >>= 1
        least[node] = number
        while node > 1:
            node >>= 1
            left, right = least[2 * node], least[2 * node + 1]
            least[node] = (left if left < right else right) + added[node]

    def add_from(self, i: int, amount: int) -> None:
        """Add ``amount`` to every number from index ``i`` on."""
        least, added = self._least, self._added
        node = self._leaves + i
        least[node] += amount
        while node > 1:
            if not node & 1:
                least[node + 1] += amount
                added[node + 1] += amount
            node >>= 1
            left, right = least[2 * node], least[2 * node + 1]
            least[node] = (left if left < right else right) + added[node]

    def min_from(self, i: int) -> int:
        """The minimum of the numbers from index ``i`` on."""
        least, added = self._least, self._added
        node = self._leaves + i
        result = least[node]
        while node > 1:
            if not node & 1 and least[node + 1] < result:
                result = least[node + 1]
            node >>= 1
            result += added[node]
        return result
