"""Read the arguments of a training step in the first stage: check them against the example, return the tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError
from fx_partition.passes.capture.capture_model import ExampleInputs, split_inputs


class ArgumentReader:
    """Reads the arguments of one microbatch.

    Args:
        example: one microbatch: positional arguments as a sequence (or one tensor), or keyword arguments as a mapping.

    Attributes:
        leaves: the tensors, numbers and other leaves of the example, in the order of the graph's inputs.
        positional: the tensors among its positional arguments.
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
        """Free the tensors of the example."""
        self.leaves, self.positional = [], []

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """Return the tensors of one microbatch.

        Raises:
            PartitionError: the arguments differ from those of the example, or have other sizes, dtypes or values.
        """
        unknown = set(kwargs) ^ set(self._keywords)
        if unknown:
            raise PartitionError(
                f"a step must have the keyword arguments of example_inputs, and differs in {sorted(unknown)}"
            )
        leaves, tree = pytree.tree_flatten((tuple(args), {name: kwargs[name] for name in self._keywords}))
        if tree != self._tree:
            raise PartitionError(f"a step must have arguments like example_inputs, {self._tree}, and was given {tree}")
        return [tensor for i, leaf in enumerate(leaves) if (tensor := self._check(i, leaf)) is not None]

    def _check(self, index: int, leaf: Any) -> torch.Tensor | None:
        facts = self._facts[index]
        if facts is None:
            if leaf != self._constants[index]:
                raise PartitionError(
                    f"input {index} is {leaf!r}, and the stages were made for {self._constants[index]!r}; make new "
                    "stages for it"
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
                f"input {index} requires a gradient, and that of example_inputs did not, so it would get none; make "
                "the stages with an input that requires a gradient"
            )
        return leaf
