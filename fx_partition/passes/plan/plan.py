"""The plan: which nodes make which partition, what each holds, and why no plan is better.

A plan is plain data. It is immutable, it is the same for the same graph and options, and it goes to JSON and back
without loss: sizes stay symbolic, so a plan answers for other batches than the one it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import sympy

from ..capture.symbolic_sizes import UNBACKED_FALLBACK, Symbols
from ..partitioner.pareto import Tradeoff
from ..slicing.rewrite import Slicing
from .json_reader import fields_from_json
from .records import Oversize, Partition, Proof
from .serialization import plan_to_dict


@dataclass(frozen=True)
class Plan:
    """Where the boundaries of a graph are.

    Attributes:
        graph: fingerprint of the graph it was made for.
        algorithm: "dp" or "greedy".
        objective, max_slack: what was minimised; see `request.Request`.
        footprint: weights + the most that is resident and allocated at any step, for inference: by eager ("peak") or
            by compiled code ("fused"); or weights + what all steps make and allocate, added up ("sum").
        budget_bytes: usable on-chip bytes of one device, of the largest where they differ.
        budget_is_smallest: whether no budget was given, and this is the least for which the devices suffice.
        device_budgets: the bytes of each device in their order, where they differ.
        num_devices: how many devices there are; 0 for as many as are needed.
        symbols: the shape symbols, with hints and names.
        bindings: the number that stood for each symbol.
        partitions: in execution order.
        certificate: why no plan has fewer or smaller partitions.
        tradeoffs: what other plans offer, see `pareto`; empty where devices differ.
        oversize: atoms that no budget of this size can hold.
        slicings: nodes that are computed in parts; the partitions are those of the graph that has them so.
        keep_together: what the caller asked to stay together.
        unknown_workspace: operators whose scratch memory no rule describes; they count as none.
        estimated_workspace: operators whose scratch memory depends on the processor, and which were not run to measure
            it at these sizes: too large, or on a device that is not here. A formula stands for it.
        devices: the devices asked for, in order; empty if none were named.
        note: what was decided beside the boundaries, as a sentence; "" for nothing.

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

    @property
    def num_partitions(self) -> int:
        """Return the number of partitions."""
        return len(self.partitions)

    @property
    def num_distinct(self) -> int | None:
        """How many pieces of code run the partitions; fewer where some are alike. None until compiled."""
        codes = {p.code for p in self.partitions}
        return None if None in codes else len(codes)

    @property
    def max_bytes(self) -> int:
        """Return the footprint of the largest partition."""
        return max((p.total_bytes for p in self.partitions), default=0)

    @property
    def regular_max_bytes(self) -> int:
        """``max_bytes`` without oversize atoms on their own, which are as large in every plan."""
        alone = {atom.nodes for atom in self.oversize}
        return max((p.total_bytes for p in self.partitions if p.nodes not in alone), default=0)

    @property
    def cut_bytes(self) -> int:
        """Over all partitions, the bytes of the distinct tensors received from other partitions."""
        return sum(p.recv_bytes for p in self.partitions)

    @property
    def spill_bytes(self) -> int:
        """Return the bytes by which partitions exceed the budgets of their devices, added up."""
        return sum(p.spill_bytes for p in self.partitions)

    @property
    def assumed(self) -> dict[str, int]:
        """The sizes that are guessed, as nothing tells or bounds them: symbols and their numbers."""
        symbols = self.symbols.assumed({name: number for name, number in self.bindings.items() if number})
        return {symbol.name: UNBACKED_FALLBACK for symbol in symbols}

    def fits(self, bind: Mapping[str, int] | None = None) -> bool:
        """Whether every partition stays within the budget; ``bind`` overrides the plan's own bindings.

        Raises:
            ValueError: ``bind`` names no symbol of the graph.
        """
        numbers = self.numbers(bind)
        return all(p.footprint(numbers) <= p.budget_bytes for p in self.partitions)

    def numbers(self, bind: Mapping[str, int] | None = None) -> dict[sympy.Symbol, int]:
        """A number for each symbol: of ``bind``, else the plan's own.

        Raises:
            ValueError: ``bind`` names no symbol of the graph.
        """
        own = {name: number for name, number in self.bindings.items() if number}  # a hint may be 0; nobody binds that
        return self.symbols.bind({**own, **(bind or {})})

    def largest(self, dim: str, bind: Mapping[str, int] | None = None, limit: int = 2**31) -> int:
        """Up to which size of ``dim`` ("input_ids.0" or a symbol) this plan still fits; 0 if it fits for none.

        Footprints do not fall when a size grows, so a bisection finds it; ``limit`` stands for "any".
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

    def to_json(self, indent: int | None = 1) -> str:
        """The plan as JSON text (see `serialization`)."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return plan_to_dict(
            own, num_partitions=self.num_partitions, max_bytes=self.max_bytes, cut_bytes=self.cut_bytes
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back from JSON, which may come from anyone.

        Raises:
            PartitionError: the text is not JSON, or not a plan, or a plan of another version. It names the field:
                ``partitions[2].symbolic.weight: ...``.

        Example::

            >>> Plan.from_json(Path("plan.json").read_text(encoding="utf-8"))            # doctest: +SKIP
        """
        return cls(**fields_from_json(text))

    def with_devices(self, devices: tuple[str, ...]) -> Plan:
        """The same plan on named devices, which take turns where they are fewer than the partitions."""
        partitions = tuple(
            replace(p, device=devices[p.slot % len(devices)] if devices else "") for p in self.partitions
        )
        return replace(self, partitions=partitions, devices=devices)

    def with_allocated(self, allocated: tuple[int | None, ...]) -> Plan:
        """The same plan, with what its compiled stages allocated."""
        partitions = tuple(replace(p, allocated_bytes=a) for p, a in zip(self.partitions, allocated, strict=True))
        return replace(self, partitions=partitions)

    def with_code(self, code: tuple[int, ...]) -> Plan:
        """The same plan, with which partitions share their compiled code."""
        partitions = tuple(replace(p, code=c) for p, c in zip(self.partitions, code, strict=True))
        return replace(self, partitions=partitions)

    def with_replicas(self, replicas: tuple[tuple[int, ...], ...]) -> Plan:
        """The same plan with copies of partition i on the devices ``replicas[i]``."""
        partitions = tuple(replace(p, replicas=r) for p, r in zip(self.partitions, replicas, strict=True))
        return replace(self, partitions=partitions)
