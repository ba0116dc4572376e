"""The buffers and kernels that inductor makes for a graph, as plain records.

Terms
-----
buffer
    A separate block of memory: the result of a reduction, the operands and results of an external kernel, the results
    that the graph returns, and results that are costly to compute again.
kernel
    An external kernel, or a *loop*: realised results of the same extent, fused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capture.symbolic_sizes import Size


@dataclass
class Buffer:
    """A buffer that a kernel makes, or that the caller passes in.

    Attributes:
        bytes, kernel, last: its size, the kernel that makes it (-1: the caller), the last kernel that reads it.
        sources: the buffers that it is computed from.
        channels_last: whether its channels are the innermost dimension in memory.
        moved: whether its elements are in another order than in its sources.
        only_inside: whether only its own kernel reads it; false for reductions and concatenations, which are always
            buffers.
        returned, given: whether the graph returns it, or the caller passes it in.
    """

    bytes: Size
    kernel: int
    last: int
    sources: frozenset[int] = frozenset()
    channels_last: bool = False
    moved: bool = False
    only_inside: bool = True
    returned: bool = False
    given: bool = False


@dataclass
class Kernel:
    """A kernel: its step, the buffers that it reads and makes, its workspace; a loop has an extent."""

    step: int
    extent: Size | None
    reads: dict[int, None] = field(default_factory=dict)
    makes: list[int] = field(default_factory=list)
    workspace: Size = 0
    takes_results: bool = True  # inductor allocates its results, and the kernel writes into them


@dataclass
class Kernels:
    """All kernels in the order in which they run, and all buffers; ``realised`` maps a storage to its buffer."""

    kernels: list[Kernel]
    buffers: list[Buffer]
    realised: dict[int, int]

    def is_buffer(self, storage: int) -> bool:
        """Return whether a storage of the trace has its own buffer."""
        number = self.realised.get(storage)
        return number is not None and not self.inside(self.buffers[number])

    @staticmethod
    def inside(buffer: Buffer) -> bool:
        """Return whether a result stays inside the kernel that makes it, and so takes no memory."""
        return buffer.only_inside and buffer.last == buffer.kernel and not buffer.returned
