"""The figures of one partition, from the definition of a footprint.

An activation is resident in the steps [first, end) if one of them touches it: from the step that makes it (from
``first`` if that is before) to the last step that touches it (to the end if that is not before the end, or if the graph
returns it). The footprint is the bytes of the weights and the state that the steps touch, of each no more than the
whole, and the most that is resident and allocated at any step. Where the plan adds up, it is these bytes and all that
the steps make and allocate, and the last step stands for the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from .ledger import Ledger


@dataclass(frozen=True)
class Figures:
    """What the steps [first, end) hold; the names are those of `plan.records.Partition`.

    Attributes:
        levels: resident bytes at each step.
        held: (memory, bytes) of what is resident at the peak.
    """

    weight_bytes: int
    state_bytes: int
    activation_bytes: int
    workspace_bytes: int
    own_bytes: int
    peak_node: str
    resident: tuple[tuple[str, int], ...]
    recv_bytes: int
    send_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    levels: tuple[int, ...]
    held: tuple[tuple[int, int], ...]

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.state_bytes + self.activation_bytes + self.workspace_bytes

    @property
    def peak_bytes(self) -> int:
        return self.activation_bytes + self.workspace_bytes


def figures(ledger: Ledger, first: int, end: int) -> Figures:
    """Return the figures of the steps [first, end), which are not empty; linear in these and what they touch."""
    touched: dict[int, None] = {}
    read: dict[int, int] = {}
    for step in range(first, end):
        touched |= dict.fromkeys(ledger.activations[step])
        for memory, size in ledger.weights[step]:
            read[memory] = read.get(memory, 0) + size
    counted = {memory: min(size, ledger.sizes[memory]) for memory, size in read.items()}
    state = sum(size for memory, size in counted.items() if memory in ledger.state)

    spans = {m: (max(ledger.made_at[m], first), min(ledger.last[m], end - 1)) for m in touched}
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for memory, (begin, until) in spans.items():
        begins.setdefault(begin, []).append(memory)
        ends.setdefault(until, []).append(memory)
    held = own = most_own = 0
    peak, at = -1, first
    levels: list[int] = []
    for step in range(first, end):
        for memory in begins.get(step, ()):
            held += ledger.sizes[memory]
            own += ledger.sizes[memory] if ledger.made_at[memory] >= first else 0
        levels.append(held)
        most_own = max(most_own, own + ledger.workspace[step])
        if held + ledger.workspace[step] > peak:
            peak, at = held + ledger.workspace[step], step
        for memory in ends.get(step, ()):
            held -= ledger.sizes[memory]
            own -= ledger.sizes[memory] if ledger.made_at[memory] >= first else 0

    held_at_peak = [(m, ledger.sizes[m]) for m, (begin, until) in spans.items() if begin <= at <= until]
    received = [m for m in touched if ledger.made_at[m] < first]
    made = [m for m in touched if ledger.made_at[m] >= first]
    activation, workspace = levels[at - first], ledger.workspace[at]
    if ledger.adds_up:
        at, held_at_peak = end - 1, [(m, ledger.sizes[m]) for m in made]
        activation, workspace = sum(ledger.makes[first:end]), sum(ledger.workspace[first:end])
    resident = [(ledger.memory_names[memory], size) for memory, size in held_at_peak]
    leaving = [m for m in made if ledger.last[m] >= end]
    return Figures(
        weight_bytes=sum(counted.values()) - state,
        state_bytes=state,
        activation_bytes=activation,
        workspace_bytes=workspace,
        own_bytes=most_own,
        peak_node=ledger.names[at],
        resident=tuple(sorted(resident, key=lambda pair: (-pair[1], pair[0]))),
        recv_bytes=sum(ledger.sizes[m] for m in received if ledger.made_at[m] >= 0),
        send_bytes=sum(ledger.sizes[m] for m in leaving if ledger.last_touch[m] >= end),
        inputs=tuple(sorted(ledger.memory_names[m] for m in received)),
        outputs=tuple(sorted(ledger.memory_names[m] for m in leaving)),
        levels=tuple(levels),
        held=tuple(held_at_peak),
    )

