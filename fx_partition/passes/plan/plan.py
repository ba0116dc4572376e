"""The plan: the nodes of each partition, the bytes that it holds, and the proof that no plan is better.

A plan is immutable plain data. It is the same for the same graph and options, and it goes to JSON and back without
loss. Sizes stay symbolic, so a plan also answers questions about other batches than the one it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import sympy

from fx_partition.engines.module_stages import ModuleStages
from fx_partition.engines.registry import to_engine

from ..capture.symbolic_sizes import UNBACKED_FALLBACK, Symbols
from ..constraints.module_boundaries import NODES
from ..partitioner.pareto import Tradeoff
from ..slicing.rewrite import Slicing
from .json_reader import fields_from_json
from .records import Oversize, Partition, Proof
from .request import NO_BUDGET, ON_CHIP
from .serialization import plan_to_dict

#: The size that counts as "any": `Plan.largest` returns it where a size has no bound.
ANY_SIZE = 2**31


@dataclass(frozen=True)
class Plan:
    """The partitions of a graph.

    Attributes:
        graph: the fingerprint of the graph that it was made for.
        algorithm: "dp" or "greedy".
        objective, max_slack: what the planner minimised; see `request.Request`.
        footprint: weights plus the most bytes resident and allocated at any step, for inference: in eager mode ("peak")
            or in compiled code ("fused"); or weights plus the bytes that all steps make and allocate, added up ("sum").
        budget_bytes: usable bytes of one device, of the largest where they differ.
        budget_is_smallest: whether no budget was given, so that this is the smallest for which the devices suffice.
        device_budgets: the bytes of each device in their order, where they differ.
        num_devices: how many devices there are; 0 for as many as are needed.
        symbols: the shape symbols, with hints and names.
        bindings: the number that the plan was made with for each symbol.
        partitions: in execution order.
        certificate: the proof that no plan has fewer or smaller partitions.
        tradeoffs: the measures of other plans, see `pareto`; empty where devices differ.
        oversize: atoms that are larger than the budget by themselves.
        slicings: nodes that are computed in slices; the partitions are of the graph with these slices.
        keep_together: the groups that the caller asked to keep together.
        unknown_workspace: operators whose scratch memory no rule describes; they count as if they needed none.
        estimated_workspace: operators whose scratch memory depends on the processor and was not measured, because they
            are too large to run or for a device that this machine does not have; a formula estimates it.
        devices: the devices asked for, in order; empty if none were named.
        note: a sentence about a decision that the other fields do not show; "" for none.
        sessions: how many copies of the written buffers the state counts, one for each session of a pipeline.
        modules: the partition of each module of the model, which `to` writes for other engines.
        memory: "on-chip", where a gather counts the rows that it reads, or "device", where weights count whole.
        boundaries: where boundaries may be: between "nodes" or "modules", or between modules of which those of these
            paths and classes stay whole.
        follows_weights: whether boundaries are where earlier graphs of the model have its weights on the same devices
            (`follow_weights`); then nothing is proved.

    Example::

        >>> plan = fx_partition.plan(model, x, cache_bytes="6MiB")   # doctest: +SKIP
        >>> plan.num_partitions, plan.max_bytes, plan.cut_bytes                          # doctest: +SKIP
        >>> Plan.from_json(plan.to_json()) == plan                                       # doctest: +SKIP
    """

    graph: str
    algorithm: str
    objective: str
    max_slack: float | None
    footprint: str
    budget_bytes: int
    budget_is_smallest: bool
    device_budgets: tuple[int, ...]
    num_devices: int
    symbols: Symbols
    bindings: Mapping[str, int]
    partitions: tuple[Partition, ...]
    certificate: Proof
    tradeoffs: tuple[Tradeoff, ...] = ()
    oversize: tuple[Oversize, ...] = ()
    slicings: tuple[Slicing, ...] = ()
    keep_together: tuple[str | tuple[str, ...], ...] = ()
    unknown_workspace: tuple[str, ...] = ()
    estimated_workspace: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    note: str = ""
    sessions: int = 1
    modules: ModuleStages = field(default_factory=ModuleStages)
    memory: str = ON_CHIP
    boundaries: str | tuple[str, ...] = NODES
    follows_weights: bool = False

    @property
    def num_partitions(self) -> int:
        """Return the number of partitions."""
        return len(self.partitions)

    @property
    def partition_of(self) -> dict[str, int]:
        """Return the number of the partition of each node, by the node's name."""
        return {name: partition.index for partition in self.partitions for name in partition.nodes}

    @property
    def num_distinct(self) -> int | None:
        """The number of distinct compiled partitions: equal ones share their code. None until compiled."""
        codes = {p.code for p in self.partitions}
        return None if None in codes else len(codes)

    @property
    def max_bytes(self) -> int:
        """Return the footprint of the largest partition."""
        return max((p.total_bytes for p in self.partitions), default=0)

    @property
    def regular_max_bytes(self) -> int:
        """``max_bytes`` without partitions of one oversize atom, which have the same size in every plan."""
        alone = {atom.nodes for atom in self.oversize}
        return max((p.total_bytes for p in self.partitions if p.nodes not in alone), default=0)

    @property
    def cut_bytes(self) -> int:
        """The bytes of the distinct tensors received from other partitions, over all partitions."""
        return sum(p.recv_bytes for p in self.partitions)

    @property
    def spill_bytes(self) -> int:
        """Return the bytes by which partitions exceed the budgets of their devices, added up."""
        return sum(p.spill_bytes for p in self.partitions)

    @property
    def assumed(self) -> dict[str, int]:
        """The guessed sizes, which no input gives and nothing bounds: symbols and their numbers."""
        symbols = self.symbols.assumed({name: number for name, number in self.bindings.items() if number})
        return {symbol.name: UNBACKED_FALLBACK for symbol in symbols}

    @property
    def has_budget(self) -> bool:
        """Whether a budget was set; without one the backend plans with `request.NO_BUDGET`."""
        return self.budget_bytes != NO_BUDGET

    @property
    def has_given_budget(self) -> bool:
        """Whether a user gave the budget; else there is none, or it is the smallest for which the devices suffice."""
        return self.has_budget and not self.budget_is_smallest

    def fits(self, bind: Mapping[str, int] | None = None) -> bool:
        """Return whether every partition is within the budget; ``bind`` overrides the plan's own bindings.

        Raises:
            ValueError: ``bind`` names no symbol of the graph.
        """
        numbers = self.numbers(bind)
        return all(p.footprint(numbers) <= p.budget_bytes for p in self.partitions)

    def numbers(self, bind: Mapping[str, int] | None = None) -> dict[sympy.Symbol, int]:
        """Return the number of each symbol, from ``bind`` or else from the plan's own bindings.

        Raises:
            ValueError: ``bind`` names no symbol of the graph.
        """
        own = {name: number for name, number in self.bindings.items() if number}  # a hint of 0 cannot be bound
        return self.symbols.bind({**own, **(bind or {})})

    def largest(self, dim: str, bind: Mapping[str, int] | None = None, limit: int = ANY_SIZE) -> int:
        """Return the largest size of ``dim`` ("input_ids.0" or a symbol) for which this plan fits; 0 if there is none.

        Footprints do not fall when a size grows, so a bisection finds it; ``limit`` means any size.
        """
        low, high = 0, 1
        while high < limit and self.fits({**(bind or {}), dim: high}):
            low, high = high, high * 2
        if high >= limit:
            return limit
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits({**(bind or {}), dim: middle}) else (low, middle)
        return low

    def to(self, engine: str) -> Any:
        """Return the plan as the value that another engine takes; docs/engines.md says how to use it.

        Args:
            engine: "accelerate" (a device map), "torch.distributed.pipelining" (split points), "torchtitan" (the
                modules of each part), "vllm" and "sglang" (the layers of each stage, as the value of an environment
                variable), or "llama.cpp" (the value of ``--tensor-split``).

        Raises:
            PartitionError: the engine is unknown; or it takes whole modules or layers and a boundary cuts one, which
                the message names.

        Example::

            >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
            >>> fx_partition.plan(model, torch.randn(4, 256), devices=2).to("accelerate")
            {'0': 0, '1': 0, '2': 1, '3': 1}
        """
        count = self.num_devices or len(self.partitions)
        named = any(name != f"device:{number}" for number, name in enumerate(self.devices))  # as --devices 3 does
        return to_engine(engine, self.modules, [p.device if named else p.slot % count for p in self.partitions])

    def to_json(self, indent: int | None = 1) -> str:
        """Return the plan as JSON text (see `serialization`)."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        """Return the data that `to_json` writes."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return plan_to_dict(
            own, num_partitions=self.num_partitions, max_bytes=self.max_bytes, cut_bytes=self.cut_bytes
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back from JSON text, which may be untrusted.

        Raises:
            PartitionError: the text is not JSON, or not a plan, or a plan of another version. It names the field:
                ``partitions[2].symbolic.weight: ...``.

        Example::

            >>> Plan.from_json(Path("plan.json").read_text(encoding="utf-8"))            # doctest: +SKIP
        """
        return cls(**fields_from_json(text))

    def with_devices(self, devices: tuple[str, ...]) -> Plan:
        """Return the same plan on named devices, which take turns where they are fewer than the partitions."""
        partitions = tuple(
            replace(p, device=devices[p.slot % len(devices)] if devices else "") for p in self.partitions
        )
        return replace(self, partitions=partitions, devices=devices)

    def with_allocated(self, allocated: tuple[int | None, ...]) -> Plan:
        """Return the same plan with the bytes that its compiled stages allocated."""
        partitions = tuple(replace(p, allocated_bytes=a) for p, a in zip(self.partitions, allocated, strict=True))
        return replace(self, partitions=partitions)

    def with_code(self, code: tuple[int, ...]) -> Plan:
        """Return the same plan with the partition whose compiled code each partition shares."""
        partitions = tuple(replace(p, code=c) for p, c in zip(self.partitions, code, strict=True))
        return replace(self, partitions=partitions)

    def with_replicas(self, replicas: tuple[tuple[int, ...], ...]) -> Plan:
        """Return the same plan with copies of partition i on the devices ``replicas[i]``."""
        partitions = tuple(replace(p, replicas=r) for p, r in zip(self.partitions, replicas, strict=True))
        return replace(self, partitions=partitions)
