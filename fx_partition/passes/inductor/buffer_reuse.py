"""Find which buffers take over the memory of others, as inductor's wrapper code does.

Terms
-----
run
    Loops without an external kernel between them. They are one C++ function: all their results are allocated before
    it, and buffers that die in it are freed after it.
in place
    A loop writes a result over an operand of the same size that dies in it, if it reads and writes its elements in the
    same order.
pool
    Dead buffers are kept for later results of the same size, as long as inductor's own estimate of the peak (which
    assumes that nothing is written in place) does not grow. So compiled code may hold memory that nothing needs.

Source: torch/_inductor/codegen/wrapper.py, AllocateLine.should_reuse_buffer and EfficientPeakEstimate; cpp.py,
KernelGroup.
"""

from __future__ import annotations

from fx_partition.common.segment_tree import SegmentTree

from .kernels import Kernel, Kernels

_UNKNOWN = 1 << 62


def runs(kernels: Kernels) -> list[int]:
    """Return the number of each kernel's run, ascending; an external kernel is a run by itself."""
    result: list[int] = []
    for place, kernel in enumerate(kernels.kernels):
        joins = place > 0 and kernel.extent is not None and kernels.kernels[place - 1].extent is not None
        result.append(result[-1] if joins else (result[-1] + 1 if result else 0))
    return result


def takers(kernels: Kernels, sizes: list[int]) -> dict[int, int]:
    """Return {buffer: the buffer whose memory it takes over}; O(n log n).

    Args:
        sizes: the bytes of each buffer. They only decide whether the pool may keep a buffer; two buffers share memory
            if their sizes are equal as expressions.
    """
    return _Reuse(kernels, sizes).run() if kernels.kernels else {}


class _Reuse:
    def __init__(self, kernels: Kernels, sizes: list[int]) -> None:
        self._all, self._sizes = kernels, sizes
        self._dying: dict[int, list[int]] = {}
        for number, buffer in enumerate(kernels.buffers):
            if not (buffer.given or buffer.returned or kernels.inside(buffer)):
                self._dying.setdefault(buffer.last, []).append(number)
        self._estimate = self._estimated()
        self._peak = max(self._estimate)
        # Estimates at the kernels before the present one, negated because the tree finds minima.
        self._tree = SegmentTree([_UNKNOWN] * (len(self._estimate) + 1))
        self._pool: dict[object, list[tuple[int, int]]] = {}  # size: (buffer, the kernel that it died in)
        self._took: dict[int, int] = {}

    def _estimated(self) -> list[int]:
        """Return the bytes alive at each kernel if nothing is written in place."""
        total = 0
        result = []
        for place, kernel in enumerate(self._all.kernels):
            total += sum(self._sizes[n] for n in kernel.makes if not self._all.inside(self._all.buffers[n]))
            result.append(total)
            total -= sum(self._sizes[n] for n in self._dying.get(place, ()))
        return result

    def run(self) -> dict[int, int]:
        run_of = runs(self._all)
        freed: list[int] = []
        for place, kernel in enumerate(self._all.kernels):
            if place and run_of[place] != run_of[place - 1]:
                for number in freed:
                    buffer = self._all.buffers[number]
                    self._pool.setdefault(buffer.bytes, []).append((number, buffer.last))
                freed = []
            dying = [n for n in self._dying.get(place, ()) if self._all.buffers[n].kernel < place]
            for number in kernel.makes:
                if not self._all.inside(self._all.buffers[number]):
                    self._allocate(number, place, kernel, dying)
            freed += [n for n in self._dying.get(place, ()) if n in dying or self._all.buffers[n].kernel == place]
            self._reveal(place)
        return self._took

    def _sources(self, number: int) -> set[int]:
        """Return the buffers that a result is computed from, also through results that stay inside its kernel."""
        found: set[int] = set()
        pending = list(self._all.buffers[number].sources)
        while pending:
            source = pending.pop()
            if self._all.inside(self._all.buffers[source]):
                pending += self._all.buffers[source].sources
            found.add(source)
        return found

    def _reveal(self, place: int) -> None:
        """Replace the placeholder at a kernel by its estimate, now that the kernel has run."""
        self._tree.add_from(place, -_UNKNOWN - self._estimate[place])
        self._tree.add_from(place + 1, _UNKNOWN + self._estimate[place])

    def _allocate(self, number: int, place: int, kernel: Kernel, dying: list[int]) -> None:
        buffer = self._all.buffers[number]
        if kernel.extent is not None and not buffer.moved:
            sources = self._sources(number)
            for source in dying:
                old = self._all.buffers[source]
                if source in sources and old.bytes == buffer.bytes and old.channels_last == buffer.channels_last:
                    dying.remove(source)
                    self._took[number] = source
                    return
        candidates = self._pool.get(buffer.bytes)
        if not candidates or not kernel.takes_results:
            return
        source, died = candidates[-1]
        size = self._sizes[number]
        # To keep the dead buffer until now raises the estimates between its death and this kernel by its size.
        if died + 1 < place:
            if size - self._tree.min_from(died + 1) > self._peak:
                return
            self._tree.add_from(died + 1, -size)
            self._tree.add_from(place, size)
        candidates.pop()
        self._took[number] = source
