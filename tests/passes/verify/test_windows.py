"""The checker's own footprints, sweeps and cut bytes against the definition and all plans of small graphs."""

from __future__ import annotations

import random
from itertools import combinations, pairwise

import pytest

from fx_partition.passes.verify.cuts import Cuts
from fx_partition.passes.verify.figures import figures
from fx_partition.passes.verify.ledger import Ledger
from fx_partition.passes.verify.windows import Stretches, Window, farthest


def draw_ledger(draw: random.Random) -> tuple[Ledger, list[int]]:
    """A few steps that share activations and weights in every way, and where atoms begin."""
    count, activations, weights = draw.randint(1, 8), draw.randint(1, 8), draw.randint(0, 3)
    made = [draw.randint(-1, count - 1) for _ in range(activations)]
    touched: list[list[int]] = [[] for _ in range(count)]
    for memory, at in enumerate(made):
        for step in range(max(at, 0), count):
            if step == at or draw.random() < 0.4:
                touched[step].append(memory)

    def reads() -> list[tuple[int, int]]:
        return [(activations + w, draw.choice([3, 5, 20])) for w in range(weights) if draw.random() < 0.4]

    ledger = Ledger(
        names=[f"n{step}" for step in range(count)],
        sizes=[draw.randint(0, 6) for _ in made] + [10] * weights,
        activations=touched,
        weights=[reads() for _ in touched],
        moments=[(draw.randint(0, 5),) for _ in touched],
        made_at=made + [-1] * weights,
        returned=[draw.random() < 0.2 for _ in made] + [False] * weights,
        state=(),
        memory_names=[f"m{memory}" for memory in range(activations + weights)],
    )
    return ledger, [0, *sorted(draw.sample(range(1, count), draw.randint(0, count - 1))), count]


def footprint(ledger: Ledger, first: int, end: int) -> int:
    """Straight from the definition: for each step, whatever is resident at it."""
    peak = 0
    touched = {memory for step in range(first, end) for memory in ledger.activations[step]}
    for step in range(first, end):
        held = 0
        for memory in touched:
            uses = [t for t in range(len(ledger)) if memory in ledger.activations[t]]
            until = end - 1 if ledger.returned[memory] or uses[-1] >= end else max(t for t in uses if t < end)
            if max(ledger.made_at[memory], first) <= step <= until:
                held += ledger.sizes[memory]
        peak = max(peak, held + ledger.workspace[step])
    read: dict[int, int] = {}
    for step in range(first, end):
        for weight, size in ledger.weights[step]:
            read[weight] = read.get(weight, 0) + size
    return peak + sum(min(size, ledger.sizes[weight]) for weight, size in read.items())


@pytest.mark.parametrize("block", range(4))
def test_all_plans_of_small_graphs(block: int) -> None:
    for seed in range(100 * block, 100 * block + 100):
        draw = random.Random(seed)
        ledger, starts = draw_ledger(draw)
        stretches = Stretches(ledger, starts)
        n = stretches.count
        pairs = list(combinations(range(n + 1), 2))
        size = {(a, b): footprint(ledger, starts[a], starts[b]) for a, b in pairs}
        received = {(a, b): figures(ledger, starts[a], starts[b]).recv_bytes for a, b in pairs}
        assert size == {(a, b): figures(ledger, starts[a], starts[b]).total_bytes for a, b in pairs}
        assert size == {pair: stretches.footprint(*pair) for pair in pairs}
        slide(Window(ledger, starts), size, draw)
        budget = draw.choice([0, *size.values()])
        limit = min(budget, draw.choice([0, *size.values()]))
        plans = [(0, *cut, n) for k in range(n) for cut in combinations(range(1, n), k)]

        regular = [s for s in stretches.alone if s <= budget]
        cuts = Cuts(stretches, budget)
        of_each = cuts.fewest_of_each(range(1, n + 1), limit)
        for count in range(1, n + 1):
            within = [p for p in plans if len(p) - 1 == count and fits(p, size, limit, budget)]
            least = min((sum(received[part] for part in pairwise(p)) for p in within), default=None)
            assert cuts.fewest(count, limit) == of_each[count - 1] == least
            limits = [
                most for most in sorted({0, *size.values()})
                if most >= max(regular, default=0)
                and any(len(p) - 1 <= count and fits(p, size, most, -1) for p in plans)
            ]  # fmt: skip
            assert stretches.smallest_maximum(count, budget) == limits[0]
        spread(stretches, cuts, size, received, budget, draw)


def fits(plan: tuple[int, ...], size: dict[tuple[int, int], int], most: int, budget: int) -> bool:
    """Whether every partition is within ``most``, or is a single atom above the budget."""
    return all(size[part] <= most or (part[1] - part[0] == 1 and size[part] > budget) for part in pairwise(plan))


def slide(window: Window, size: dict[tuple[int, int], int], draw: random.Random) -> None:
    last = max(b for _, b in size)
    for _ in range(30):
        if window.end < last and (window.first == window.end or draw.random() < 0.6):
            window.extend()
        elif window.first < window.end:
            window.shrink()
        if window.first < window.end:
            assert window.footprint == size[window.first, window.end]


def spread(
    stretches: Stretches,
    cuts: Cuts,
    size: dict[tuple[int, int], int],
    received: dict[tuple[int, int], int],
    widest: int,
    draw: random.Random,
) -> None:
    """Devices of different sizes: the fewest bytes over all ways to place boundaries, some of them at one place."""
    limits = [draw.choice([0, *size.values()]) for _ in range(draw.randint(1, 3))]

    def holds(part: tuple[int, int], most: int) -> bool:
        return part[0] == part[1] or size[part] <= most or (part[1] - part[0] == 1 and size[part] > widest)

    n = stretches.count
    ways = [(0, *cut, n) for cut in combinations(sorted([*range(n + 1)] * (len(limits) - 1)), len(limits) - 1)]
    within = [way for way in set(ways) if all(map(holds, pairwise(way), limits))]
    least = min((sum(received.get(part, 0) for part in pairwise(way)) for way in within), default=None)
    assert cuts.fewest_spread(limits) == least
    reach = farthest(stretches, limits, widest)
    assert (reach[-1] == n) == bool(within)
