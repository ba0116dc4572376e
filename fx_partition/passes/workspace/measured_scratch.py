"""Find an operator's scratch memory where it depends on the processor, by a measurement at given sizes.

Before (`analyze`, no sizes yet; a bfloat16 linear layer over s0 rows)::

    fixed: (0,);  kernels: (0 bytes before aten.mm([s0, 512], [512, 512]))

After `Scratch.at` with the number 4 for s0, on a machine where that product takes 9,216 bytes::

    workspace: FloorDiv(9216 * formula, 67840), where ``formula`` is the rule's own, 67,840 bytes at 4 rows

The expression equals the measurement at these sizes, and is in proportion to the rule at others. If the call cannot be
measured (it is too large to run, or is for a device that this machine lacks), the rule alone counts and the operator is
listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sympy

from ..capture.fake_tensors import torch_functions
from ..capture.symbolic_sizes import Size, to_expr, undominated
from .kernel_call import KernelCall
from .kernel_memory import peak_bytes


@dataclass(frozen=True)
class Scratch:
    """The moments of an operator at which its memory can be at its peak.

    Attributes:
        fixed: bytes at the moments whose memory is known by rules alone.
        kernels: (bytes, call) of each moment when a kernel runs whose memory is to be measured; without that memory.
        unmeasurable: names of operators whose memory depends on the processor, but whose calls cannot run as data.
    """

    fixed: tuple[Size, ...]
    kernels: tuple[tuple[Size, KernelCall], ...]
    unmeasurable: tuple[str, ...] = ()

    @property
    def varies(self) -> bool:
        """Whether anything depends on the processor."""
        return bool(self.kernels or self.unmeasurable)

    def less(self, own: Size) -> Scratch:
        """Return the same moments with ``own`` bytes less."""
        return Scratch(
            undominated(_less(size, own) for size in self.fixed),
            tuple((_less(before, own), call) for before, call in self.kernels),
            self.unmeasurable,
        )

    def by_rules(self) -> tuple[Size, ...]:
        """Return the bytes of all moments by rules alone."""
        return undominated([*self.fixed, *(before + call.scratch for before, call in self.kernels)])

    def at(self, numbers: Mapping[sympy.Symbol, int]) -> tuple[tuple[Size, ...], tuple[str, ...]]:
        """Return the bytes of all moments, measured at these sizes, and the operators that could not be measured."""
        moments: list[Size] = list(self.fixed)
        estimated = dict.fromkeys(self.unmeasurable)
        for before, call in self.kernels:
            found = measured(call, numbers)
            if found is None:
                estimated[call.func.name()] = None
            moments.append(before + (call.scratch if found is None else found))
        return undominated(moments), tuple(estimated)


def measured(call: KernelCall, numbers: Mapping[sympy.Symbol, int]) -> Size | None:
    """Return a call's scratch memory: measured at ``numbers``, and in proportion to the rule at other sizes."""
    bound = call.at(numbers)
    peak = peak_bytes(bound)
    if peak is None:
        return None
    found = max(0, peak - bound.results)
    if isinstance(call.scratch, int):
        return found
    if bound.scratch <= 0:
        return to_expr(call.scratch + found)
    return to_expr(torch_functions.FloorDiv(call.scratch * found, bound.scratch))


def _less(size: Size, own: Size) -> Size:
    return to_expr(sympy.expand(size - own))


class Moments:
    """A collector of an operator's moments while it runs on fake tensors."""

    def __init__(self) -> None:
        self._fixed: dict[Size, None] = {}
        self._before: dict[str, dict[Size, None]] = {}
        self._calls: dict[str, KernelCall] = {}
        self._unmeasurable: dict[str, None] = {}

    def add(self, before: Size, scratch: Size, kernel: KernelCall | None, unmeasurable: str = "") -> None:
        """Add the moment when a kernel runs.

        Args:
            before: bytes that the operator has allocated before.
            scratch: the kernel's own bytes by its rule.
            kernel: the call to measure; None if the rule is exact or the call cannot be measured.
            unmeasurable: the name of a kernel that cannot be measured.
        """
        if unmeasurable:
            self._unmeasurable[unmeasurable] = None
        if kernel is None:
            self._fixed[before + scratch] = None
            return
        self._calls[kernel.text] = kernel
        self._before.setdefault(kernel.text, {})[before] = None

    def scratch(self) -> Scratch:
        """Return the moments that can be the peak."""
        kernels = [(size, self._calls[text]) for text, sizes in self._before.items() for size in undominated(sizes)]
        return Scratch(undominated(self._fixed), tuple(kernels), tuple(self._unmeasurable))


