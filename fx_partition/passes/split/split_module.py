"""The modules of a split graph: one to call, and one for each partition.

The split module has the model's parameters, buffers and submodules, under their names in the model. A partition holds
no state: the leaf modules that it calls belong to the split module, which saves and loads them.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.fx

from fx_partition.common.errors import PartitionError

from ..capture.capture_model import AlreadySplit
from ..capture.module_members import constants, hand_over, members, set_constants
from .input_sizes import WatchedSizes

if TYPE_CHECKING:
    from ..plan.plan import Plan

PREFIX = "partition_"


class PartitionModule(torch.fx.GraphModule):
    """One partition. Its leaf modules belong to the split module, which saves and loads them."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("destination") is not None:  # called for the split module's state_dict(), which has them already
            return kwargs["destination"]
        return super().state_dict(*args, **kwargs)


class SplitModule(AlreadySplit):
    """A graph cut into ``partition_0 .. partition_{k-1}``; call it like the original, for the same results bit by bit.

    It shares parameters, buffers and submodules with the original.

    Attributes:
        plan: the `Plan` with its boundaries.
    """

    plan: Plan

    def __deepcopy__(self, memo: dict[int, Any]) -> SplitModule:
        result = super().__deepcopy__(memo)
        assert isinstance(result, SplitModule)
        _adopt(result, self, memo)
        result.plan = self.plan
        return result

    def __reduce__(self) -> Any:
        """Save the code with the functions that it names, as fx can save no other (see `input_sizes.WatchedSizes`)."""
        watched = [node for node in self.graph.nodes if isinstance(node.target, WatchedSizes)]
        checks = [node.target for node in watched]
        try:
            for node in watched:
                node.target = node.target.function
            return super().__reduce__()
        finally:
            for node, check in zip(watched, checks, strict=True):
                node.target = check
            self.recompile()  # fx compiles the code that it saves


def refuse_taken_names(gm: torch.fx.GraphModule, count: int) -> None:
    """Raise an error if the model has a member with a name that its split module needs.

    Args:
        gm: the model.
        count: the number of partitions.

    Raises:
        PartitionError: it names the member.
    """
    used = {"plan": "keeps its plan", **{f"{PREFIX}{index}": "keeps a partition" for index in range(count)}}
    reads = (str(node.target).partition(".")[0] for node in gm.graph.nodes if node.op in ("get_attr", "call_module"))
    for name in (*(name for name, _ in members(gm)), *reads):
        if name in used:
            raise PartitionError(
                f"the model has a member {name!r}, and a split module {used[name]} under this name; rename the "
                "parameter, buffer or submodule, or split the original if the model is one that was split before"
            )


def assemble(
    gm: torch.fx.GraphModule, graph: torch.fx.Graph, partitions: list[PartitionModule], plan: Plan
) -> SplitModule:
    """Return the split module of a model.

    Args:
        gm: the model; `refuse_taken_names` has passed it.
        graph: the graph that calls the partitions and reads the model's members.
        partitions: the modules to call, in order.
        plan: the plan that the split module keeps.
    """
    root = torch.nn.Module()
    for index, partition in enumerate(partitions):
        root.add_module(f"{PREFIX}{index}", partition)
        partition.register_load_state_dict_pre_hook(_load_nothing)  # type: ignore[no-untyped-call]
        partition.register_load_state_dict_post_hook(_miss_nothing)  # type: ignore[no-untyped-call]
    hand_over(gm, root)
    result = SplitModule(root, graph, class_name="SplitModule")
    _adopt(result, root, {id(member): member for _, member in members(root)})
    set_constants(result, constants(gm))
    result.meta = dict(gm.meta)
    result.plan = plan
    # Not train(): it would change the mode of the model's submodules, which may differ from the model's.
    result.training = gm.training
    for partition in partitions:
        partition.training = gm.training
    return result


def _adopt(result: SplitModule, source: torch.nn.Module, memo: dict[int, Any]) -> None:
    """Give a split module the members that its graph does not read: GraphModule drops them, state_dict() needs them.

    The partitions come last, so that parameters have the same names as in the model.
    """
    hand_over(source, result, lambda member: copy.deepcopy(member, memo))
    for name, child in list(result.named_children()):
        if isinstance(child, PartitionModule):
            delattr(result, name)
            result.add_module(name, child)


def _load_nothing(module: torch.nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Report each key below a partition as unexpected, and load nothing, because it would be loaded twice.

    With ``prefix`` "" the partition itself is loaded, and loads as usual.
    """
    module.__dict__["_loaded_as"] = prefix
    if prefix:
        unexpected = rest[-2]
        unexpected += state
        state.clear()


def _miss_nothing(module: torch.nn.Module, incompatible: Any) -> None:
    """Drop a partition's missing keys: they are loaded, or reported missing, under their names in the model."""
    prefix = module.__dict__.pop("_loaded_as")
    if prefix:
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.startswith(prefix)]
