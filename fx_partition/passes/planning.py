"""From facts to a plan: lay the graph out as a chain of numbers, place the boundaries, describe the partitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .atoms import Atoms, KeepTogether, find_atoms
from .capture import Captured
from .certificate import Certificate, certify
from .chain import Chain
from .dp import balance, dp
from .errors import OversizeError, PartitionError
from .facts import Facts
from .fingerprint import fingerprint
from .greedy import greedy, oversize_atoms
from .lay_out import lay_out
from .moments import find_moments
from .plan import Oversize, Partition, Plan, Proof, Witness
from .sizes import format_bytes, parse_bytes
from .window import interval, last_touches

ALGORITHMS: Mapping[str, Callable[[Chain, int], list[int]]] = {"dp": dp, "greedy": greedy}
OBJECTIVES = ("balanced",)
FOOTPRINTS = ("peak",)
OVERSIZE = ("stream", "error")
ON_SHORTAGE = ("balance", "wrap", "error")


@dataclass(frozen=True)
class Request:
    """What a caller asks of the planner; every field is checked before any work is done.

    Attributes:
        budget: usable on-chip bytes of one device.
        algorithm: "dp" (exact) or "greedy" (sequential aggregation: the same number of partitions, larger maximum).
        objective: "balanced": fewest partitions, then the smallest maximum, then the fewest cut bytes.
        footprint: "peak".
        oversize: what to do with an atom larger than the budget: "stream" (a partition of its own, the spill is
            reported) or "error".
        keep_together: groups of nodes that must not be separated, by module path or by node names.
        bind: numbers for symbols, by name ("s0") or by input ("input_ids.0"); hints stand for the rest.
        devices: names of devices, in order; empty for one device a partition, whatever their number.
        on_shortage: with fewer devices than partitions, "balance" (as many partitions as devices, the spill is
            reported), "wrap" (partition i on device i mod D) or "error".
    """

    budget: int
    algorithm: str = "dp"
    objective: str = "balanced"
    footprint: str = "peak"
    oversize: str = "stream"
    keep_together: KeepTogether = ()
    bind: Mapping[str, int] | None = None
    devices: tuple[str, ...] = ()
    on_shortage: str = "balance"

    @classmethod
    def options(cls) -> set[str]:
        """Names of what may be asked beside the budget and the devices."""
        return {field.name for field in fields(cls)} - {"budget", "devices"}

    @classmethod
    def check(cls, cache_bytes: int | str, devices: Sequence[str] | None = None, **options: Any) -> Request:
        """A request from a user's words.

        Raises:
            ValueError: a size that is none, or an option or a choice that does not exist; it names those that do.
        """
        unknown = set(options) - cls.options()
        if unknown:
            raise PartitionError(
                f"unknown option {', '.join(sorted(unknown))}; the options are {', '.join(sorted(cls.options()))}"
            )
        request = cls(parse_bytes(cache_bytes), devices=tuple(devices or ()), **options)
        choices = {
            "algorithm": tuple(ALGORITHMS),
            "objective": OBJECTIVES,
            "footprint": FOOTPRINTS,
            "oversize": OVERSIZE,
            "on_shortage": ON_SHORTAGE,
        }
        for name, known in choices.items():
            if getattr(request, name) not in known:
                raise PartitionError(f"{name}={getattr(request, name)!r} is not known; choose from {', '.join(known)}")
        return request


def make_plan(captured: Captured, facts: Facts, request: Request) -> Plan:
    """Place the boundaries of a graph whose facts are known.

    Raises:
        OversizeError: an atom exceeds the budget and ``oversize="error"``.
        PartitionError: ``bind`` or ``keep_together`` names nothing, or devices are short and ``on_shortage="error"``.
    """
    numbers = facts.symbols.bind(request.bind)
    atoms = find_atoms(captured, facts, request.keep_together)
    facts = facts.reordered(atoms.order)
    chain = lay_out(facts, atoms, numbers)
    writer = _Writer(facts, atoms, chain, request)
    oversize = tuple(writer.oversize(a) for a in oversize_atoms(chain, request.budget))
    if oversize and request.oversize == "error":
        raise OversizeError(_explain(oversize[0], request.budget))
    boundaries = _place(chain, request)
    return Plan(
        graph=fingerprint(captured.gm.graph),
        algorithm=request.algorithm,
        objective=request.objective,
        footprint=request.footprint,
        budget_bytes=request.budget,
        symbols=facts.symbols,
        bindings={symbol.name: number for symbol, number in numbers.items()},
        partitions=tuple(writer.partition(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(boundaries))),
        certificate=writer.proof(certify(chain, boundaries, request.budget)),
        oversize=oversize,
        unknown_workspace=tuple(dict.fromkeys(name for step in facts.steps for name in step.unknown)),
    ).with_devices(request.devices)


def _place(chain: Chain, request: Request) -> list[int]:
    boundaries = ALGORITHMS[request.algorithm](chain, request.budget)
    needed, given = len(boundaries) - 1, len(request.devices)
    if not given or needed <= given or request.on_shortage == "wrap":
        return boundaries
    if request.on_shortage == "error":
        raise PartitionError(
            f"{needed} partitions of {format_bytes(request.budget)} are needed and {given} devices are named; "
            f'name more, raise cache_bytes, or set on_shortage to "balance" or "wrap"'
        )
    return balance(chain, given)


def _explain(atom: Oversize, budget: int) -> str:
    return (
        f"{atom.nodes[0]} needs {format_bytes(atom.total_bytes)} by itself and the budget is {format_bytes(budget)}: "
        f"weights {format_bytes(atom.weight_bytes)}, inputs {format_bytes(atom.input_bytes)}, outputs "
        f"{format_bytes(atom.output_bytes)}, workspace {format_bytes(atom.workspace_bytes)}; raise cache_bytes, or set "
        f'oversize="stream" to give it a partition that spills'
    )


class _Writer:
    """Puts the planner's numbers into the graph's names."""

    def __init__(self, facts: Facts, atoms: Atoms, chain: Chain, request: Request) -> None:
        self._facts, self._starts, self._chain, self._request = facts, atoms.starts, chain, request
        self._last_touch = last_touches(chain)

    def partition(self, index: int, first_atom: int, end_atom: int) -> Partition:
        first, end = self._starts[first_atom], self._starts[end_atom]
        facts, budget = self._facts, self._request.budget
        held = interval(self._chain, first, end)
        state_bytes = sum(size for weight, size in held.weights if weight in facts.state)
        received, handed_on = self._crossing(first, end)
        resident = [(facts.values[v].name, int(self._chain.value_bytes[v])) for v in held.resident]
        steps = facts.steps[first:end]
        return Partition(
            index=index,
            device="",
            nodes=tuple(step.node for step in steps),
            first=steps[0].path or steps[0].node,
            last=steps[-1].path or steps[-1].node,
            weight_bytes=held.weight - state_bytes,
            state_bytes=state_bytes,
            activation_bytes=held.activation,
            workspace_bytes=held.workspace,
            total_bytes=held.total,
            spill_bytes=max(0, held.total - budget),
            peak_node=facts.steps[held.peak_step].node,
            resident=tuple(sorted(resident, key=lambda pair: (-pair[1], pair[0]))),
            recv_bytes=held.recv_bytes,
            send_bytes=held.send_bytes,
            inputs=received,
            outputs=handed_on,
            weight=facts.weight_size(first, end, state=False),
            state=facts.weight_size(first, end, state=True),
            moments=find_moments(facts, self._last_touch, first, end, held.peak_step),
        )

    def _crossing(self, first: int, end: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the values that steps [first, end) receive, and of those that they hand on or return."""
        values = self._facts.values
        touched = dict.fromkeys(v for step in self._facts.steps[first:end] for v in step.values)
        received = [v for v in touched if values[v].made_at < first]
        made = [v for v in touched if values[v].made_at >= first]
        handed_on = [v for v in made if values[v].returned or self._last_touch[v] >= end]
        return tuple(values[v].name for v in received), tuple(values[v].name for v in handed_on)

    def oversize(self, atom: int) -> Oversize:
        first, end = self._starts[atom], self._starts[atom + 1]
        held = interval(self._chain, first, end)
        values = self._facts.values
        inputs = sum(int(self._chain.value_bytes[v]) for v in held.resident if values[v].made_at < first)
        return Oversize(
            nodes=tuple(step.node for step in self._facts.steps[first:end]),
            weight_bytes=held.weight,
            input_bytes=inputs,
            output_bytes=held.activation - inputs,
            workspace_bytes=held.workspace,
            total_bytes=held.total,
        )

    def proof(self, certificate: Certificate) -> Proof:
        return Proof(
            min_partitions=certificate.min_partitions,
            witnesses=tuple(map(self._witness, certificate.witnesses)),
            max_bytes_lower_bound=certificate.max_bytes_lower_bound,
            max_witnesses=tuple(map(self._witness, certificate.max_witnesses)),
        )

    def _witness(self, witness: tuple[int, int, int]) -> Witness:
        first, rejected, size = witness
        steps = self._facts.steps
        return Witness(steps[self._starts[first]].node, steps[self._starts[rejected + 1] - 1].node, size)
