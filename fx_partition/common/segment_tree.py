"""A segment tree over a list of numbers: set one, add to a suffix, return the minimum of a suffix."""

from __future__ import annotations


class SegmentTree:
    """A list of n numbers, built in O(n), with set, add and minimum in O(log n) each.

    ``_least[node]`` is the minimum below the node. It includes what was added to the node as a whole (``_added``), but
    not what was added to the nodes above it. A suffix [i, n) consists of leaf i and the right siblings on its way to
    the root.

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
        """Set the number at index ``i``; earlier additions no longer count for it."""
        least, added = self._least, self._added
        node = self._leaves + i
        parent = node >> 1
        while parent:  # the nodes above still add to this leaf, so take off what they add
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
            if not node & 1:  # a left child: its right sibling is a part of the suffix
                least[node + 1] += amount
                added[node + 1] += amount
            node >>= 1
            left, right = least[2 * node], least[2 * node + 1]
            least[node] = (left if left < right else right) + added[node]

    def min_from(self, i: int) -> int:
        """Return the minimum of the numbers from index ``i`` on."""
        least, added = self._least, self._added
        node = self._leaves + i
        result = least[node]
        while node > 1:
            if not node & 1 and least[node + 1] < result:
                result = least[node + 1]
            node >>= 1
            result += added[node]
        return result
