"""What inductor makes of a graph: buffers, and the kernels that make and read them.

Terms
-----
buffer
    Memory of its own: the result of a reduction or of an external kernel, what one of those reads, what the graph
    returns, and what is costly to compute again.
kernel
    An external kernel, or a *loop*: realised results of the same extent, fused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..capture.symbolic_sizes import Size


@dataclass
class Buffer:
    """A buffer that a kernel makes, or that the caller gives.

    Attributes:
        bytes, kernel, last: its size, the kernel that makes it (-1: the caller), the last one that reads it.
        sources: the buffers that it is computed from.
        channels_last: whether its channels are the innermost dimension in memory.
        moved: it has its elements in another order than what it is computed from.
        only_inside: nobody but its own kernel reads it, and it is no reduction or concatenation, which are always kept.
        returned, given: whether the caller keeps it, or gave it.
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
    """A kernel: the step that it runs in, what it makes and reads, its workspace; a loop has an extent."""

    step: int
    extent: Size | None
    reads: dict[int, None] = field(default_factory=dict)
    makes: list[int] = field(default_factory=list)
    workspace: Size = 0
    takes_results: bool = True  # its results are allocated for it, and not by it


@dataclass
class Kernels:
    """All kernels in the order they run, and all buffers; ``realised`` has the buffer of a storage that is one."""

    kernels: list[Kernel]
    buffers: list[Buffer]
    realised: dict[int, int]

    def is_buffer(self, storage: int) -> bool:
        """Whether a storage of the trace takes memory of its own."""
        number = self.realised.get(storage)
        return number is not None and not self.inside(self.buffers[number])

    @staticmethod
    def inside(buffer: Buffer) -> bool:
        return buffer.only_inside and buffer.last == buffer.kernel and not buffer.returned
