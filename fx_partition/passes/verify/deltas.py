"""What each step brings to a window that takes it in at its end, and takes from one that leaves it out at its start.

Most of that is the same for every window that holds whatever the step touches and other steps touched before it (or do
behind it), so it is added up once. Else these touches are looked at, the farthest first, as far as they are outside.

Example: step 0 makes a (8 bytes), step 1 reads a and makes b (4 bytes). A window that holds step 0 gains 4 bytes with
step 1; one that begins at step 1 gains 8 more.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

_Link = tuple[int, int, int]


class Touches(Protocol):
    """The fields of a `ledger.Ledger` that are read here."""

    sizes: list[int]
    activations: list[list[int]]
    weights: list[list[tuple[int, int]]]
    made_at: list[int]
    last: dict[int, int]
    previous: list[list[int]]
    following: list[list[int]]


class Arrival(NamedTuple):
    """A step at the end of a window.

    Attributes:
        since: the first of the steps that touched before what it touches; itself if there are none.
        live: bytes of the activations that nothing touches before it.
        enters: those of them that it does not make.
        weights: bytes of the weights that nothing reads before it.
        gone: bytes of the activations that are not needed behind it.
        links: (step, bytes of activations, bytes of weights) that were touched at that step last, the first step first.
    """

    since: int
    live: int
    enters: int
    weights: int
    gone: int
    links: list[_Link]


class Departure(NamedTuple):
    """A step at the start of a window.

    Attributes:
        until: the last of the steps that touch next what it touches; -1 if there are none.
        live: bytes of the activations that no step touches behind it, and that the graph returns.
        weights: bytes of the weights that nothing reads behind it.
        links: (step, bytes of activations, bytes of weights) that are touched at that step next, the last step first.
    """

    until: int
    live: int
    weights: int
    links: list[_Link]


class Deltas:
    """Arrivals and departures of all steps, in one pass.

    Attributes:
        parts: of each step (weight, bytes) for weights of which several steps read parts, which are in no arrival.
    """

    def __init__(self, ledger: Touches) -> None:
        in_parts = _read_in_parts(ledger)
        self.parts = [[pair for pair in found if pair[0] in in_parts] for found in ledger.weights]
        self.arrivals: list[Arrival] = []
        self.departures: list[Departure] = []
        read_at: dict[int, int] = {}
        before: list[list[_Link]] = []
        fresh: list[int] = []
        behind: list[list[_Link]] = [[] for _ in ledger.weights]
        read: dict[int, int] = {}  # the bytes that count of each weight
        for step, found in enumerate(ledger.weights):
            fresh.append(0)
            before.append([])
            for weight, shown in found:
                if weight in in_parts:
                    continue
                size = read[weight] = min(shown, ledger.sizes[weight])
                if weight in read_at:
                    before[step].append((read_at[weight], 0, size))
                    behind[read_at[weight]].append((step, 0, size))
                else:
                    fresh[step] += size
                read_at[weight] = step
        last_read = [0] * len(fresh)
        for weight, step in read_at.items():
            last_read[step] += read[weight]
        for step, touched in enumerate(ledger.activations):
            self.arrivals.append(_arrival(ledger, step, before[step], fresh[step]))
            links, live = behind[step], 0
            for memory, following in zip(touched, ledger.following[step], strict=True):
                if following >= 0:
                    links.append((following, ledger.sizes[memory], 0))
                elif ledger.last[memory] != step:
                    live += ledger.sizes[memory]
            links.sort(reverse=True)
            self.departures.append(Departure(links[0][0] if links else -1, live, last_read[step], links))


def _arrival(ledger: Touches, step: int, links: list[_Link], weights: int) -> Arrival:
    live = enters = gone = 0
    for memory, previous in zip(ledger.activations[step], ledger.previous[step], strict=True):
        size = ledger.sizes[memory]
        if previous >= 0:
            links.append((previous, size, 0))
        else:
            live += size
            enters += 0 if ledger.made_at[memory] == step else size
        gone += size if ledger.last[memory] == step else 0
    links.sort()
    return Arrival(links[0][0] if links else step, live, enters, weights, gone, links)


def _read_in_parts(ledger: Touches) -> set[int]:
    """The weights that several steps read, and one of them not whole."""
    readers: dict[int, int] = {}
    partly: set[int] = set()
    for found in ledger.weights:
        for weight, size in found:
            readers[weight] = readers.get(weight, 0) + 1
            if size < ledger.sizes[weight]:
                partly.add(weight)
    return {weight for weight in partly if readers[weight] > 1}
