"""The signature of a pipeline's requests: which inputs it accepts, of which sizes, and the tree of its results.

Dynamo guards a compiled function and compiles again for other inputs. A pipeline is compiled once, so each request is
checked here before it starts. Sizes are checked once: a second request of the same sizes costs one look-up in a
dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import sympy
import torch
import torch.fx
from torch.utils import _pytree as pytree

from fx_partition.passes.capture.capture_model import ExampleInputs
from fx_partition.passes.capture.captured_graph import CapturedGraph
from fx_partition.passes.capture.fake_tensors import shape_env_of
from fx_partition.passes.capture.symbolic_sizes import evaluate, to_expr
from fx_partition.passes.plan.plan_range import PlanRange
from fx_partition.passes.split.input_sizes import InputSizes, Numbers

from .program import Constant, Program

Strides: TypeAlias = "tuple[tuple[int, ...], ...]"


class RequestSignature:
    """Converts the arguments of a request into the graph's inputs, and its results into the model's output.

    Args:
        captured: the graph.
        program: its stages.
        example_inputs: the inputs that the graph was captured with; a mapping names the keyword arguments. None: all
            arguments are positional.
        limits: the sizes for which the plan fits; None where all do.

    Attributes:
        keywords: the names of a request's keyword arguments.
        numbers: for each tensor that `read` returns, the number of its value in the program.
    """

    def __init__(
        self,
        captured: CapturedGraph,
        program: Program,
        example_inputs: ExampleInputs | None,
        limits: PlanRange | None = None,
    ) -> None:
        self._graph = captured.gm.graph
        self._program = program
        self.keywords = tuple(example_inputs) if isinstance(example_inputs, Mapping) else ()
        placeholders = self._graph.find_nodes(op="placeholder")
        self._names = [captured.names.get(node, node.name) for node in placeholders]
        self._sizes, self._limits = InputSizes.of(captured), limits
        self._values: list[Any] = [captured.values.get(node) for node in placeholders]
        self._env = shape_env_of(self._values)
        # `InputSizes` knows the guards of the trace as ranges of sizes. Guards that compiling the stages adds are
        # checked for each new combination of sizes.
        self._guards = 0 if self._env is None else len(self._env.guards)
        self._wanted = [i for i, number in enumerate(program.inputs) if number is not None]
        self.numbers = tuple(number for number in program.inputs if number is not None)
        self._known: dict[tuple[Any, ...], tuple[Strides, Numbers]] = {}
        self._plain = all(isinstance(value, torch.Tensor) for value in self._values) and not self.keywords

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[torch.Tensor], Numbers]:
        """Return the tensors of a request, with the strides that stages were compiled for, and its symbolic sizes.

        Raises:
            TypeError: the arguments are not those of the model.
            ValueError: an input has another shape, dtype or device than the graph was captured for; the message names
                the input.
        """
        is_plain = self._plain and len(args) == len(self._values) and not kwargs
        flat = list(args) if is_plain else self._flatten(args, kwargs)
        key = tuple(x.shape if isinstance(x, torch.Tensor) else x for x in flat)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._check(flat)
        strides, numbers = known
        tensors = []
        for i in self._wanted:
            x, value = flat[i], self._values[i]
            if not isinstance(x, torch.Tensor):
                tensors.append(torch.tensor(x))
                continue
            if x.dtype != value.dtype or x.device.type != value.device.type:
                raise ValueError(
                    f"input {self._names[i]!r} is {x.dtype} on {x.device}; the pipeline was compiled for {value.dtype} "
                    f"on {value.device}"
                )
            if x.stride() != strides[i]:
                x = torch.empty_strided(x.shape, strides[i], dtype=x.dtype, device=x.device).copy_(x)
            tensors.append(x.detach() if x.requires_grad else x)
        return tensors, numbers

    def results(self, tensors: Sequence[torch.Tensor], numbers: Mapping[sympy.Symbol, int]) -> Any:
        """Return the model's output; ``tensors`` are the values that `Program.results` numbers, in their order."""
        given = iter(tensors)
        leaves = [
            _constant(result.value, numbers) if isinstance(result, Constant) else next(given)
            for result in self._program.results
        ]
        return self._graph.process_outputs(pytree.tree_unflatten(leaves, self._program.results_tree))

    def _flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        if set(kwargs) != set(self.keywords):
            wanted = ", ".join(self.keywords) or "none"
            given = ", ".join(kwargs) or "none"
            raise TypeError(
                f"the keyword arguments of a request are {given}, and those of example_inputs are {wanted}; pass the "
                "same ones"
            )
        flat = list(self._graph.process_inputs(*args, *(kwargs[name] for name in self.keywords)))
        if len(flat) != len(self._values):
            raise TypeError(
                f"a request has {len(flat)} inputs, and the model takes {len(self._values)} ({', '.join(self._names)})"
            )
        return flat

    def _check(self, flat: Sequence[Any]) -> tuple[Strides, Numbers]:
        """Return the strides that each input must have, and the values of symbols, for sizes not seen before."""
        numbers = self._sizes.check(flat)
        strides = [
            tuple(evaluate(to_expr(stride), numbers) for stride in value.stride())
            if isinstance(value, torch.Tensor)
            else ()
            for value in self._values
        ]
        self._check_guards(numbers)
        if self._limits is not None:
            self._limits.check(numbers)
        return tuple(strides), numbers

    def _check_guards(self, numbers: Mapping[sympy.Symbol, int]) -> None:
        if self._env is None:
            return
        for guard in self._env.guards[self._guards :]:
            if guard.expr.xreplace(dict(numbers)) is sympy.false:
                raise ValueError(f"sizes {dict(numbers)} do not satisfy {guard.expr}, as the compiled stages assume")


def _constant(value: Any, numbers: Mapping[sympy.Symbol, int]) -> Any:
    return evaluate(to_expr(value), numbers) if isinstance(value, torch.SymInt) else value
