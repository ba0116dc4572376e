"""Find the buffers that inductor makes for the calls of a graph, and the kernels that make them.

Terms
-----
deferred
    A pointwise result that is not a buffer: each reader computes it again from its *sources*, the buffers that it is
    finally computed from. A residual stream ``x + a + b`` is deferred, and so keeps x, a and b alive.
realised
    A result that is a buffer (see `kernels`).

Realisation follows torch/_inductor (graph.py, run_node; ir.py, StorageBox). Fusion follows its scheduler: a result
joins the kernel of its latest source if that is a loop of the same extent. Else it joins a loop of the same extent that
reads one of its sources and runs after all of them are made. A result that only its own kernel reads is not a buffer.

Before: ``addmm -> buffer 0;  gelu reads 0;  addmm reads gelu;  add reads x and addmm;  layer_norm reads add``
After:  ``addmm: 0 | loop: 1 = gelu(0) | addmm: 2 | loop: 3 = mean, 4 = deviation, 5 = norm(x + 2)``
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..capture.symbolic_sizes import Size
from .kernels import Buffer, Kernel, Kernels
from .op_kinds import Call, Kind
from .op_trace import Trace

# torch/_inductor/config.py: realize_reads_threshold, realize_cpu_acc_reads_threshold, realize_cpu_opcount_threshold.
READS_IF_REUSED = 4
READS = 12
OPERATIONS = 50
# scheduler.py, are_long_distant_nodes: loops this many kernels apart are not fused for a buffer that both read.
FAR = 64
# ir.py, should_realize_on_reuse: results of these are not computed twice on a CPU.
_HEAVY = {
    f"aten::{name}"
    for name in (
        "exp", "log", "log10", "log1p", "log2", "sigmoid", "tanh", "silu", "softplus", "expm1", "mish", "logsigmoid",
    )
}  # fmt: skip
# Their decompositions read the first operand more than once.
_TWICE = {Kind.NORM, Kind.SOFTMAX}
# Results of these have their elements in another order than their operands, so that none is written in place.
_MOVING = {
    f"aten::{name}"
    for name in (
        "clone", "roll", "flip", "index", "index_select", "gather", "embedding", "repeat", "constant_pad_nd",
        "max_pool2d_with_indices", "avg_pool2d", "pixel_shuffle", "pixel_unshuffle",
    )
}  # fmt: skip
# External kernels that write into memory that inductor allocates for them.
_OUT = {f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "dot")}
# A product of batches that is a sum on a CPU. It is lowered from an external kernel, so its operands are buffers.
_THIN = "aten::bmm"
_ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


@dataclass(frozen=True)
class Deferred:
    """A result that is not realised: its sources, its number of operations, whether one is heavy or moves elements."""

    sources: dict[int, None]
    operations: int
    heavy: bool
    moved: bool
    channels_last: bool
    bytes: Size
    extent: Size
    step: int


def lower(trace: Trace, *, planned: bool) -> Kernels:
    """Simulate inductor's lowering and scheduling; linear in reads.

    Args:
        planned: whether the trace is that of one partition of a plan. Before there are boundaries, a concatenation
            is allocated at its own step; in a partition, where its first operand is made, which may be long before.
    """
    return _Lowering(trace, planned=planned).run()


class _Lowering:
    def __init__(self, trace: Trace, *, planned: bool) -> None:
        self._trace, self._planned = trace, planned
        self._kernels: list[Kernel] = []
        self._buffers: list[Buffer] = []
        self._realised: dict[int, int] = {}
        self._readers: dict[tuple[int, Size], int] = {}  # the last loop of an extent that reads a buffer
        self._deferred: dict[int, Deferred] = {}
        self._copies: dict[int, list[int]] = {}  # deferred storage: a buffer for each attention kernel that reads it
        self._uses: dict[int, int] = {}
        self._external: set[int] = set()  # storages that external kernels read; those used more than once are realised
        self._attended: dict[int, int] = {}  # how many attention kernels read a storage
        for _, call in trace.calls:
            for storage in call.reads:
                self._uses[storage] = self._uses.get(storage, 0) + (2 if call.kind in _TWICE else 1)
                if call.kind is Kind.EXTERNAL or call.name == _THIN:
                    self._external.add(storage)
                if call.name == _ATTENTION:
                    self._attended[storage] = self._attended.get(storage, 0) + 1
        for storage in sorted(trace.inputs):
            self._realised[storage] = self._new(0, -1, given=True)

    def run(self) -> Kernels:
        for step, call in self._trace.calls:
            match call.kind:
                case Kind.EXTERNAL:
                    self._call_external(step, call)
                case Kind.CAT:
                    self._call_cat(step, call)
                case Kind.REDUCTION | Kind.NORM | Kind.SOFTMAX:
                    self._call_reduction(step, call)
                case Kind.POINTWISE:
                    self._defer(step, call, {}, 2)
        for storage in sorted(self._trace.returned):
            number = self._buffer_of(storage)
            if number is not None:
                self._buffers[self._as_returned(storage, number)].returned = True
        return Kernels(self._kernels, self._buffers, self._realised)

    # ---- buffers

    def _new(self, size: Size, kernel: int, *, given: bool = False) -> int:
        self._buffers.append(Buffer(size, kernel, kernel, given=given))
        return len(self._buffers) - 1

    def _sources(self, storages: Iterable[int]) -> dict[int, None]:
        """Return the buffers that a computation from these storages reads."""
        found: dict[int, None] = {}
        for storage in storages:
            if storage in self._deferred:
                found |= self._deferred[storage].sources
            elif storage in self._realised:
                found[self._realised[storage]] = None
        return found

    def _buffer_of(self, storage: int) -> int | None:
        """Return the buffer of a storage, realising it now if it is deferred; None for a constant."""
        deferred = self._deferred.pop(storage, None)
        if deferred is not None:
            dense = storage in self._trace.returned and storage in self._trace.dense
            number = self._loop(deferred.step, deferred.extent, deferred.sources, deferred.bytes)
            self._buffers[number].moved = deferred.moved or (dense and deferred.channels_last)
            self._buffers[number].channels_last = deferred.channels_last and not dense
            self._realised[storage] = number
        return self._realised.get(storage)

    def _as_returned(self, storage: int, number: int) -> int:
        """Return the buffer to return: a contiguous copy of a channels-last one if eager returns a contiguous one."""
        buffer = self._buffers[number]
        if not buffer.channels_last or storage not in self._trace.dense:
            return number
        copy = self._loop(self._kernels[buffer.kernel].step, buffer.bytes, {number: None}, buffer.bytes)
        self._buffers[copy].moved = True
        return copy

    def _read(self, kernel: int, sources: Iterable[int]) -> None:
        for number in sources:
            self._kernels[kernel].reads[number] = None
            if (extent := self._kernels[kernel].extent) is not None:
                self._readers[number, extent] = kernel
            buffer = self._buffers[number]
            buffer.last = max(buffer.last, kernel)
            buffer.only_inside &= buffer.kernel == kernel

    def _loop(self, step: int, extent: Size, sources: dict[int, None], size: Size) -> int:
        """Add a buffer that a fused kernel makes, and return its number."""
        kernel = self._kernel_for(step, extent, sources)
        self._read(kernel, sources)
        number = self._new(size, kernel)
        self._buffers[number].sources = frozenset(sources)
        self._kernels[kernel].makes.append(number)
        return number

    def _kernel_for(self, step: int, extent: Size, sources: dict[int, None]) -> int:
        """Return the loop that a result is fused into, a new one if there is none."""
        latest = max((self._buffers[number].kernel for number in sources), default=-1)
        if latest >= 0 and self._kernels[latest].extent == extent:
            return latest
        # Else a loop that reads one of the sources too, and runs after all of them are made.
        sharing = max((self._readers.get((number, extent), -1) for number in sources), default=-1)
        if sharing > latest and sharing >= len(self._kernels) - FAR:
            return sharing
        self._kernels.append(Kernel(step, extent))
        return len(self._kernels) - 1

    # ---- calls

    def _defer(self, step: int, call: Call, made: dict[int, None], operations: int) -> None:
        """Defer the first result of a call: a function of its operands and of the buffers ``made`` on the way."""
        sources = self._sources(call.reads) | made
        inner = [self._deferred[s] for s in call.reads if s in self._deferred]
        heavy = call.name.rstrip("_") in _HEAVY or any(d.heavy for d in inner)
        operations += sum(d.operations for d in inner)
        moved = call.name in _MOVING or any(d.moved for d in inner)
        last = self._is_channels_last(call, sources)
        for storage, size in call.makes[:1]:
            self._place(storage, Deferred(sources, operations, heavy, moved, last, size, call.extent, step))
        for storage in call.writes:
            # A buffer, or the caller's tensor, is written by a kernel; a deferred result becomes another expression.
            if storage in self._trace.inputs or storage not in self._deferred:
                touched = sources if storage not in self._realised else {**sources, self._realised[storage]: None}
                self._read(self._kernel_for(step, call.extent, touched), touched)
            else:
                size, extent = self._deferred[storage].bytes, self._deferred[storage].extent
                self._place(storage, Deferred(sources, operations, heavy, moved, last, size, extent, step))

    def _is_channels_last(self, call: Call, sources: dict[int, None]) -> bool:
        return call.spatial and any(self._buffers[number].channels_last for number in sources)

    def _place(self, storage: int, result: Deferred) -> None:
        """Record a deferred result, and realise it at once where inductor finds it too costly to compute again."""
        self._deferred[storage] = result
        uses, reads = self._uses.get(storage, 0), len(result.sources)
        costly = result.heavy or reads > READS_IF_REUSED or result.operations > OPERATIONS
        hinted = uses > 1 and reads > 1 and storage in self._external
        if (uses > 1 and costly) or hinted or reads > READS or result.operations > OPERATIONS:
            self._buffer_of(storage)

    def _call_reduction(self, step: int, call: Call) -> None:
        sources = self._sources(call.reads)
        if call.name == _THIN:  # its operands stay buffers, even those that its own kernel makes
            for storage in call.reads:
                if storage in self._realised:
                    self._buffers[self._realised[storage]].only_inside = False
        if call.kind is Kind.REDUCTION:
            for storage, size in call.makes:
                self._realised[storage] = self._reduced(step, call, sources, size)
            return
        small: dict[int, None] = {}
        for size in call.statistics:
            small[self._reduced(step, call, sources, size)] = None
        for (storage, _), number in zip(call.makes[1:], small, strict=False):
            self._realised[storage] = number
        self._defer(step, call, small, 8)

    def _reduced(self, step: int, call: Call, sources: dict[int, None], size: Size) -> int:
        number = self._loop(step, call.extent, sources, size)
        self._buffers[number].only_inside = False
        return number

    def _call_cat(self, step: int, call: Call) -> None:
        """Add a concatenation: in a partition, the loop that makes an operand writes it into the result."""
        ((storage, size),) = call.makes
        places: list[int] = []
        last = False
        for operand in call.reads:
            sources = self._sources([operand])
            kernel = max((self._buffers[s].kernel for s in sources), default=-1)
            if not self._planned or kernel < 0 or self._kernels[kernel].extent is None:
                kernel = self._kernel_for(step, call.extent, sources)
            self._read(kernel, sources)
            places.append(kernel)
            last = last or self._is_channels_last(call, sources)
        first = min(places)
        number = self._new(size, first)
        buffer = self._buffers[number]
        buffer.last, buffer.only_inside = max(places), False
        buffer.moved, buffer.channels_last = True, last
        self._kernels[first].makes.append(number)
        self._realised[storage] = number

    def _call_external(self, step: int, call: Call) -> None:
        operands: dict[int, None] = {}
        for storage in call.reads:
            number = self._operand(step, call, storage)
            if number is not None:
                operands[number] = None
        kernel = len(self._kernels)
        self._kernels.append(
            Kernel(step, None, workspace=call.workspace + call.copies, takes_results=call.name in _OUT)
        )
        self._read(kernel, operands)
        for storage, size in call.makes:
            self._realised[storage] = self._new(size, kernel)
            self._kernels[kernel].makes.append(self._realised[storage])
            self._buffers[self._realised[storage]].channels_last = call.relayouts is not None

    def _operand(self, step: int, call: Call, storage: int) -> int | None:
        """Return the buffer that an external kernel reads for one of its operands."""
        if call.name == _ATTENTION and self._attended[storage] > 1:
            # Inductor gives each attention kernel that reads a deferred value its own copy of it.
            if storage in self._deferred and storage not in self._copies:
                deferred = self._deferred[storage]
                self._copies[storage] = [
                    self._loop(step, deferred.extent, deferred.sources, deferred.bytes)
                    for _ in range(self._attended[storage])
                ]
            if self._copies.get(storage):
                return self._copies[storage].pop()
        number = self._buffer_of(storage)
        if number is None or not call.relayouts or call.relayouts[0] != storage:
            return number
        if self._buffers[number].channels_last or self._is_fresh_loop(number):
            self._buffers[number].channels_last = True
            return number
        copy = self._loop(step, call.relayouts[1], {number: None}, call.relayouts[1])
        self._buffers[copy].channels_last = self._buffers[copy].moved = True
        return copy

    def _is_fresh_loop(self, number: int) -> bool:
        """Return whether a loop makes a buffer that nothing has read yet, so that its layout is still free."""
        buffer = self._buffers[number]
        is_loop = buffer.kernel >= 0 and self._kernels[buffer.kernel].extent is not None
        return is_loop and buffer.last == buffer.kernel and buffer.only_inside and not buffer.moved
