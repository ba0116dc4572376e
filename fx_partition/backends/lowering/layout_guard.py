"""The layout of a tensor that crosses a boundary, and a check at run time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fx_partition.passes.capture.symbolic_sizes import to_expr


@dataclass(frozen=True)
class Layout:
    """The order of a tensor's dimensions in memory.

    Attributes:
        order: the dimensions from the outermost in memory to the innermost, for a tensor without gaps; else None.
        strides: the strides of a view with gaps.

    Example::

        >>> Layout((1, 0)).is_of(torch.zeros(2, 3)), Layout((1, 0)).is_of(torch.zeros(3, 2).t())
        (False, True)
    """

    order: tuple[int, ...] | None
    strides: tuple[int, ...] = ()

    def of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the strides of a tensor of this layout."""
        if self.order is None:
            return self.strides
        strides, step = [0] * len(shape), 1
        for dim in reversed(self.order):
            strides[dim] = step
            step *= shape[dim]
        return tuple(strides)

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor has this layout; the stride of a dimension of one element does not matter."""
        shape = tensor.shape
        if not tensor.numel():
            return True
        return all(
            size == 1 or stride == wanted
            for size, stride, wanted in zip(shape, tensor.stride(), self.of(shape), strict=True)
        )


class LayoutError(RuntimeError):
    """A compiled stage returned a result in another layout than the stage that takes it was compiled for."""


class LayoutGuard:
    """A compiled stage that checks the layouts of its results on the first call with new sizes.

    Args:
        function: the stage; it returns a sequence.
        stage: its index.
        results: the name of each result and its layout; None where nothing depends on the layout.
        takes, makes: the fake values of its arguments and results, which show where sizes vary.
        passed: called after the first check where no size varies: the guard is not needed any more.
    """

    def __init__(
        self,
        function: Callable[..., Sequence[Any]],
        stage: int,
        results: Sequence[tuple[str, Layout | None]],
        takes: Sequence[Any],
        makes: Sequence[Any],
        passed: Callable[[], None] = lambda: None,
    ) -> None:
        self._function, self._stage, self._results, self._passed = function, stage, results, passed
        numbers = {i: to_expr(value) for i, value in enumerate(takes) if isinstance(value, torch.SymInt)}
        self._numbers = tuple(numbers)
        symbols = set(numbers.values())
        # Arguments and results with sizes that the numbers among the arguments do not determine.
        self._taken = tuple(i for i, value in enumerate(takes) if not _symbols(value) <= symbols)
        self._made = tuple(i for i, value in enumerate(makes) if not _symbols(value) <= symbols)
        self._varies = bool(self._numbers or self._taken or self._made)
        self._seen: set[Hashable] = set()

    def __call__(self, *arguments: Any) -> Sequence[Any]:
        made = self._function(*arguments)
        key = (
            *[arguments[i] for i in self._numbers],
            *[arguments[i].shape for i in self._taken],
            *[made[i].shape for i in self._made],
        )
        if key not in self._seen:
            check_layouts(self._stage, self._results, made)
            self._seen.add(key)
            if not self._varies:
                self._passed()
        return made


def _symbols(value: Any) -> set[Any]:
    """Return the symbols in the sizes of a tensor."""
    sizes = map(to_expr, value.shape) if isinstance(value, torch.Tensor) else ()
    return {symbol for size in sizes if not isinstance(size, int) for symbol in size.free_symbols}


def check_layouts(stage: int, results: Sequence[tuple[str, Layout | None]], made: Sequence[Any]) -> None:
    """Refuse results in another layout than the stages that take them were compiled for.

    Raises:
        LayoutError: it names the stage and the result.
    """
    for (name, layout), tensor in zip(results, made, strict=True):
        if layout is not None and not layout.is_of(tensor):
            raise LayoutError(
                f"stage {stage} returned {name} of shape {tuple(tensor.shape)} with strides {tensor.stride()}, and "
                f"the stage that takes it was compiled for {layout.of(tensor.shape)}: an operator returns other "
                f"strides than its fake kernel; keep {name} and its users in one partition with keep_together="
            )
