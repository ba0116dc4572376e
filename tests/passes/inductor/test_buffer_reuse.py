"""Each buffer takes over the memory of the buffer that inductor reuses."""

from __future__ import annotations

from collections.abc import Iterable

from fx_partition.passes.inductor.buffer_reuse import runs, takers
from fx_partition.passes.inductor.kernels import Buffer, Kernel, Kernels


def chain(sizes: Iterable[int]) -> Kernels:
    """Kernel i makes buffer i and reads buffer i - 1."""
    buffers = [Buffer(size, i, i + 1, frozenset({i - 1}), only_inside=False) for i, size in enumerate(sizes)]
    buffers[-1].last, buffers[-1].returned = len(buffers) - 1, True
    return Kernels([Kernel(0, None, makes=[i]) for i in range(len(buffers))], buffers, {})


def found(kernels: Kernels) -> dict[int, int]:
    return takers(kernels, [int(buffer.bytes) for buffer in kernels.buffers])


def test_a_buffer_takes_what_died_in_the_kernel_before() -> None:
    assert found(chain([8, 8, 8, 8])) == {2: 0, 3: 1}


def test_only_what_has_its_size() -> None:
    assert found(chain([8, 9, 10, 11])) == {}


def test_memory_is_held_for_later_if_the_peak_allows_it() -> None:
    # Buffer 0 dies in kernel 1 and has the size of buffer 3; in between 20 bytes are alive.
    assert found(chain([8, 10, 11, 8, 100])) == {3: 0}
    assert found(chain([8, 10, 11, 8])) == {}


def test_a_loop_writes_in_place() -> None:
    kernels = chain([8, 8])
    kernels.kernels[1].extent = 2
    assert found(kernels) == {1: 0}
    kernels.buffers[1].moved = True
    assert found(kernels) == {}
    kernels.buffers[1].moved = False
    kernels.buffers[1].sources = frozenset()  # it reads it by way of another buffer
    assert found(kernels) == {}


def test_nothing_takes_what_the_caller_gave_or_keeps() -> None:
    kernels = chain([8, 8])
    kernels.kernels[1].extent = 2
    kernels.buffers[0].returned = True
    assert found(kernels) == {}


def test_external_kernels_that_allocate_take_nothing() -> None:
    kernels = chain([8, 8, 8])
    for kernel in kernels.kernels:
        kernel.takes_results = False
    assert found(kernels) == {}


def test_loops_without_an_external_kernel_between_are_one_run() -> None:
    kernels = chain([8] * 6)
    for place in (1, 2, 5):
        kernels.kernels[place].extent = 4
    assert runs(kernels) == [0, 1, 1, 2, 3, 4]
