"""The arguments of a step, as the first stage reads them: checked against the example, flat, tensors only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import ExampleInputs, split_inputs


class Entry:
    """Reads what one microbatch is given to the model as.

    Args:
        example: one microbatch: positional arguments as a sequence (or one tensor), or keyword arguments as a mapping.

    Attributes:
        leaves: the example's tensors, numbers and so on, in the order of the graph's inputs.
    """

    def __init__(self, example: ExampleInputs) -> None:
        args, kwargs = split_inputs(example)
        self._keywords = tuple(kwargs)
        self.leaves, self._tree = pytree.tree_flatten((args, kwargs))
        self._facts = [
            (leaf.shape, leaf.dtype, leaf.requires_grad) if isinstance(leaf, torch.Tensor) else None
            for leaf in self.leaves
        ]
        self._constants = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        self.positional = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, torch.Tensor)]

    def forget_tensors(self) -> None:
        """Keep no tensor of the example alive."""
        self.leaves, self.positional = [], []

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of one microbatch.

        Raises:
            PartitionError: not the arguments of the example, or of other sizes, dtypes or values.
        """
        unknown = set(kwargs) ^ set(self._keywords)
        if unknown:
            raise PartitionError(f"a step takes the keyword arguments of example_inputs: see {sorted(unknown)}")
        leaves, tree = pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in self._keywords}))
        if tree != self._tree:
            raise PartitionError(f"a step takes {self._tree}, as example_inputs has it, and was given {tree}")
        return [tensor for i, leaf in enumerate(leaves) if (tensor := self._check(i, leaf)) is not None]

    def _check(self, index: int, leaf: Any) -> torch.Tensor | None:
        facts = self._facts[index]
        if facts is None:
            if leaf != self._constants[index]:
                raise PartitionError(
                    f"input {index} is {leaf!r}, and the stages hold for {self._constants[index]!r} alone"
                )
            return None
        shape, dtype, requires_grad = facts
        if not isinstance(leaf, torch.Tensor) or leaf.shape != shape or leaf.dtype != dtype:
            got = f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else type(leaf).__name__
            raise PartitionError(
                f"input {index} of a microbatch is {got}, and the stages were made for {dtype} {list(shape)}; a step "
                "takes n_microbatches times the batch of example_inputs"
            )
        if leaf.requires_grad and not requires_grad:
            raise PartitionError(
                f"input {index} requires a gradient, and that of example_inputs did not: none would come back"
            )
        return leaf
