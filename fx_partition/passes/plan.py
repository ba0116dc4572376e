"""The plan: which nodes make which partition, what each holds, and why no plan is better.

A plan is plain data. It is immutable, it is the same for the same graph and options, and it goes to JSON and back
without loss: sizes stay symbolic, so a plan answers for other batches than the one it was made for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import sympy

from .errors import PartitionError
from .pareto import Tradeoff
from .slice_graph import Slicing
from .symbols import Size, Symbols, evaluate, from_text, to_text

VERSION = 1


@dataclass(frozen=True)
class Moment:
    """A step at which a partition can be fullest: bytes resident and allocated there, symbolic."""

    node: str
    activation: Size
    workspace: Size


@dataclass(frozen=True)
class Partition:
    """One contiguous run of nodes; every ``*_bytes`` is a number of bytes under the plan's binding.

    Attributes:
        index: its place in the plan, from 0.
        slot: the place of its device among the devices, counted on through rounds where they take turns; devices that
            are left out count.
        device: where it is to run, or "" where no devices were named.
        budget_bytes: usable on-chip bytes of that device.
        nodes: names of its nodes, in the order in which they run.
        first, last: module path (else name) of its first and last node.
        weight_bytes: weights that it reads, without state.
        state_bytes: inputs and buffers that it writes (a KV cache).
        activation_bytes, workspace_bytes: what is resident and allocated at its peak step.
        own_bytes: the most that it allocates itself at one time: results and workspace, without what it receives.
        total_bytes: weight + state + activation + workspace: its footprint.
        spill_bytes: what of that exceeds the budget of its device.
        peak_node: the step at which it is fullest.
        resident: (value, bytes) at that step, largest first.
        recv_bytes: distinct tensors that it takes from other partitions.
        send_bytes: distinct tensors that it makes and others take.
        inputs, outputs: names of the values that it receives (graph inputs too) and hands on or returns.
        weight, state: symbolic bytes of both.
        moments: the steps that can be its peak for some binding.
        replicas: places of further devices that hold a copy of it.
        allocated_bytes: what ``own_bytes`` was when the compiled stage ran; None if that was not measured.
        code: the first partition whose compiled code it shares, itself where that is its own; None until compiled.
    """

    index: int
    slot: int
    device: str
    budget_bytes: int
    nodes: tuple[str, ...]
    first: str
    last: str
    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    workspace_bytes: int
    own_bytes: int
    total_bytes: int
    spill_bytes: int
    peak_node: str
    resident: tuple[tuple[str, int], ...]
    recv_bytes: int
    send_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight: Size
    state: Size
    moments: tuple[Moment, ...]
    replicas: tuple[int, ...] = ()
    allocated_bytes: int | None = None
    code: int | None = None

    def footprint(self, numbers: Mapping[sympy.Symbol, int]) -> int:
        """Its bytes under another binding."""
        peak = max(evaluate(m.activation, numbers) + evaluate(m.workspace, numbers) for m in self.moments)
        return evaluate(self.weight, numbers) + evaluate(self.state, numbers) + peak

    @property
    def total_text(self) -> str:
        """The symbolic footprint, as text: the maximum stays unevaluated, as it would take sympy long to build."""
        totals = [to_text(self.weight + self.state + m.activation + m.workspace) for m in self.moments]
        distinct = list(dict.fromkeys(totals))
        return distinct[0] if len(distinct) == 1 else f"Max({', '.join(distinct)})"


@dataclass(frozen=True)
class Witness:
    """Nodes ``first`` to ``rejected`` hold ``bytes`` together: too many for one partition."""

    first: str
    rejected: str
    bytes: int


@dataclass(frozen=True)
class Proof:
    """Why a plan is best (see `certificate`), in the names of the graph; about the order in which the plan runs.

    A plan with ``footprint="fused"`` has no proof: there are no witnesses, and nothing is claimed.

    Attributes:
        min_partitions, witnesses: no plan has fewer partitions; no boundary can cut two witnesses.
        max_bytes_lower_bound, max_witnesses: no plan of as many partitions has a smaller maximum.
        orders_tried: how many topological orders (or sets of nodes that may come first) were searched; 1 means trace
            order alone.
        exhaustive: whether no topological order at all has a better plan.
    """

    min_partitions: int
    witnesses: tuple[Witness, ...]
    max_bytes_lower_bound: int
    max_witnesses: tuple[Witness, ...]
    orders_tried: int = 1
    exhaustive: bool = False


@dataclass(frozen=True)
class Oversize:
    """An atom that exceeds the budget by itself, and of what it is made; ``why_whole``: why it was not sliced."""

    nodes: tuple[str, ...]
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    workspace_bytes: int
    total_bytes: int
    why_whole: str = ""


@dataclass(frozen=True)
class Plan:
    """Where the boundaries of a graph are.

    Attributes:
        graph: fingerprint of the graph it was made for.
        algorithm: "dp" or "greedy".
        objective, max_slack: what was minimised; see `request.Request`.
        footprint: weights + the most that is resident and allocated at any step, for inference: by eager ("peak") or
            by compiled code ("fused").
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
        devices: the devices asked for, in order; empty if none were named.

    Example::

        >>> plan = fx_partition.plan(model, cache_bytes="6MiB", example_inputs=(x,))   # doctest: +SKIP
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
    devices: tuple[str, ...] = ()

    @property
    def num_partitions(self) -> int:
        return len(self.partitions)

    @property
    def num_distinct(self) -> int | None:
        """How many pieces of code run the partitions; fewer where some are alike. None until compiled."""
        codes = {p.code for p in self.partitions}
        return None if None in codes else len(codes)

    @property
    def max_bytes(self) -> int:
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
        return sum(p.spill_bytes for p in self.partitions)

    def fits(self, bind: Mapping[str, int] | None = None) -> bool:
        """Whether every partition stays within the budget; ``bind`` overrides the plan's own bindings.

        Raises:
            ValueError: ``bind`` names no symbol of the graph.
        """
        numbers = self._numbers(bind)
        return all(p.footprint(numbers) <= p.budget_bytes for p in self.partitions)

    def _numbers(self, bind: Mapping[str, int] | None) -> dict[sympy.Symbol, int]:
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

    # ---- JSON

    def to_json(self, indent: int | None = 1) -> str:
        """The plan as JSON text; DESIGN: the schema's ``version`` is 1."""
        return json.dumps(self.to_dict(), indent=indent)

    def to_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "graph": self.graph,
            "algorithm": self.algorithm,
            "objective": self.objective,
            "max_slack": self.max_slack,
            "footprint": self.footprint,
            "budget_bytes": self.budget_bytes,
            "budget_is_smallest": self.budget_is_smallest,
            "device_budgets": list(self.device_budgets),
            "num_devices": self.num_devices,
            "symbols": _symbols_to_dict(self.symbols),
            "bindings": dict(self.bindings),
            "num_partitions": self.num_partitions,
            "max_bytes": self.max_bytes,
            "cut_bytes": self.cut_bytes,
            "certificate": {
                "min_partitions": self.certificate.min_partitions,
                "witnesses": [[w.first, w.rejected, w.bytes] for w in self.certificate.witnesses],
                "max_bytes_lower_bound": self.certificate.max_bytes_lower_bound,
                "max_witnesses": [[w.first, w.rejected, w.bytes] for w in self.certificate.max_witnesses],
                "orders_tried": self.certificate.orders_tried,
                "exhaustive": self.certificate.exhaustive,
            },
            "partitions": [_partition_to_dict(p) for p in self.partitions],
            "pareto": [row._asdict() for row in self.tradeoffs],
            "oversize": [_shallow(o) for o in self.oversize],
            "slicings": [_shallow(s) for s in self.slicings],
            "keep_together": [group if isinstance(group, str) else list(group) for group in self.keep_together],
            "unknown_workspace": list(self.unknown_workspace),
            "devices": list(self.devices),
        }

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            PartitionError: the text is no plan, or one of another version.
        """
        try:
            data = json.loads(text)
            if not isinstance(data, dict) or "version" not in data:
                raise PartitionError("this JSON is no plan: it has no version")
            if data["version"] != VERSION:
                raise PartitionError(f"this is a plan of version {data['version']}; this release reads {VERSION}")
            return _plan_from_dict(cls, data)
        except PartitionError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PartitionError(f"this text is no plan: {type(error).__name__}: {error}") from error

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


def _shallow(record: Any) -> dict[str, Any]:
    result = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in result.items()}


_SYMBOLIC = ("weight", "state", "moments")


def _partition_to_dict(partition: Partition) -> dict[str, Any]:
    data = {name: value for name, value in _shallow(partition).items() if name not in _SYMBOLIC}
    data["resident"] = [list(pair) for pair in partition.resident]
    peak = next((m for m in partition.moments if m.node == partition.peak_node), partition.moments[0])
    data["symbolic"] = {
        "weight": to_text(partition.weight),
        "state": to_text(partition.state),
        "activation": to_text(peak.activation),
        "workspace": to_text(peak.workspace),
        "total": partition.total_text,
        "moments": [[m.node, to_text(m.activation), to_text(m.workspace)] for m in partition.moments],
    }
    return data


def _symbols_to_dict(symbols: Symbols) -> dict[str, Any]:
    names: dict[str, list[str]] = {}
    for name, symbol in symbols.dims.items():
        names.setdefault(symbol.name, []).append(name)
    return {
        symbol.name: {
            "hint": symbols.hints.get(symbol),
            "names": names.get(symbol.name, []),
            "assumptions": dict(sorted(symbol._assumptions_orig.items())),
        }
        for symbol in [*symbols.hints, *sorted(symbols.unbacked, key=str)]
    }


_ASSUMPTIONS = {"integer", "positive", "nonnegative", "real"}


def _symbols_from_dict(data: dict[str, Any]) -> Symbols:
    hints: dict[sympy.Symbol, int] = {}
    dims: dict[str, sympy.Symbol] = {}
    unbacked: set[sympy.Symbol] = set()
    for name, entry in data.items():
        assumptions = entry["assumptions"]
        if not set(assumptions) <= _ASSUMPTIONS or not all(isinstance(v, bool) for v in assumptions.values()):
            raise PartitionError(f"the symbol {name} of this plan has assumptions that no size has: {assumptions}")
        symbol = sympy.Symbol(name, **assumptions)
        if entry["hint"] is None:
            unbacked.add(symbol)
        else:
            hints[symbol] = int(entry["hint"])
        dims |= dict.fromkeys(entry["names"], symbol)
    return Symbols(hints, dims, frozenset(unbacked))


def _witnesses(rows: list[list[Any]]) -> tuple[Witness, ...]:
    return tuple(Witness(str(first), str(rejected), int(size)) for first, rejected, size in rows)


def _plan_from_dict(cls: type[Plan], data: dict[str, Any]) -> Plan:
    symbols = _symbols_from_dict(data["symbols"])
    known = [*symbols.hints, *symbols.unbacked]

    def partition(entry: dict[str, Any]) -> Partition:
        symbolic = entry["symbolic"]
        plain: dict[str, Any] = {
            f.name: tuple(entry[f.name]) if isinstance(entry[f.name], list) else entry[f.name]
            for f in fields(Partition)
            if f.name not in _SYMBOLIC and (f.name in entry or f.default is MISSING)
        }
        plain["resident"] = tuple((str(name), int(size)) for name, size in entry["resident"])
        moments = tuple(
            Moment(str(node), from_text(activation, known), from_text(workspace, known))
            for node, activation, workspace in symbolic["moments"]
        )
        if not moments:
            raise PartitionError(f"partition {entry['index']} of this plan has no step that could be its peak")
        weight, state = from_text(symbolic["weight"], known), from_text(symbolic["state"], known)
        return Partition(**plain, weight=weight, state=state, moments=moments)

    proof = data["certificate"]
    return cls(
        graph=data["graph"],
        algorithm=data["algorithm"],
        objective=data["objective"],
        max_slack=data["max_slack"],
        footprint=data["footprint"],
        budget_bytes=int(data["budget_bytes"]),
        budget_is_smallest=bool(data["budget_is_smallest"]),
        device_budgets=tuple(map(int, data["device_budgets"])),
        num_devices=int(data["num_devices"]),
        symbols=symbols,
        bindings={str(k): int(v) for k, v in data["bindings"].items()},
        partitions=tuple(map(partition, data["partitions"])),
        certificate=Proof(
            min_partitions=int(proof["min_partitions"]),
            witnesses=_witnesses(proof["witnesses"]),
            max_bytes_lower_bound=int(proof["max_bytes_lower_bound"]),
            max_witnesses=_witnesses(proof["max_witnesses"]),
            orders_tried=int(proof["orders_tried"]),
            exhaustive=bool(proof["exhaustive"]),
        ),
        tradeoffs=tuple(Tradeoff(**row) for row in data["pareto"]),
        oversize=tuple(
            Oversize(**{**entry, "nodes": tuple(entry["nodes"])}) for entry in data["oversize"]
        ),
        slicings=tuple(Slicing(**entry) for entry in data["slicings"]),
        keep_together=tuple(group if isinstance(group, str) else tuple(group) for group in data["keep_together"]),
        unknown_workspace=tuple(data["unknown_workspace"]),
        devices=tuple(data["devices"]),
    )
