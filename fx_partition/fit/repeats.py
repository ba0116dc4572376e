"""Put the blocks back that a capture has left out, into the memory of its graph.

Before: blocks 0, 1, 2 and 125 of 126. Each step of block 2 touches what the same step of block 1 touches, with two
        differences: values and weights are its own block's, and block 2 reads values of block 1 where block 1 reads
        those of block 0
After:  the steps of block 2 are there 122 times more, each time with their own values and weights; block 125 reads the
        values of the last

Where blocks of several kinds alternate (a sliding window, then full attention), a *group* of them takes the place of a
block. A weight that is made before all blocks, one for each (a counter in a cache), is there for the blocks that are
missing too; they touch theirs.

That is checked, not assumed: a graph whose blocks do not follow one another in this way is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..passes.footprint.graph_memory import ActivationStorage, GraphMemory, NodeMemory
from .hugging_face import Shortened
from .module_graph import Matrix, ModuleGraph


class NotRepeatedError(Exception):
    """The blocks of a graph do not repeat, so none can be put back."""


def lengthened(graph: ModuleGraph, shortened: Shortened) -> ModuleGraph:
    """Return the graph with all blocks of a list.

    Raises:
        NotRepeatedError: two blocks that follow one another differ in more than their own values and weights.
    """
    numbers, period = shortened.numbers, shortened.period
    graph = _renamed(graph, shortened)
    for place in range(len(numbers) - 1, 0, -1):
        missing = (numbers[place] - numbers[place - 1] - 1) // period
        if missing:
            pattern = _Pattern(shortened.path, numbers[place - 3 * period : place + period], period)
            graph = _repeated(graph, pattern, missing)
    return graph


def _renamed(graph: ModuleGraph, shortened: Shortened) -> ModuleGraph:
    """Return the graph with the numbers that its blocks have in the whole list."""
    names = {f"{shortened.path}.{place}": f"{shortened.path}.{n}" for place, n in enumerate(shortened.numbers)}

    def whole(path: str) -> str:
        depth = shortened.path.count(".") + 2
        head = ".".join(path.split(".")[:depth])
        return names[head] + path.removeprefix(head) if head in names else path

    memory = graph.memory
    memory = replace(
        memory,
        steps=[replace(step, path=whole(step.path)) for step in memory.steps],
        weight_names=[whole(name) for name in memory.weight_names],
    )
    return replace(graph, memory=memory, labels=tuple(map(whole, graph.labels)))


@dataclass(frozen=True)
class _Pattern:
    """Three groups of ``period`` blocks that follow one another, and the group behind the blocks that are missing.

    Attributes:
        path: the list's.
        numbers: the number in the whole list of each block.
    """

    path: str
    numbers: tuple[int, ...]
    period: int

    @property
    def labels(self) -> list[str]:
        return [f"{self.path}.{number}" for number in self.numbers]

    @property
    def third(self) -> tuple[int, ...]:
        """The numbers of the blocks of the third group, which is repeated."""
        return self.numbers[2 * self.period : 3 * self.period]

    def name_of(self, text: str, copy: int) -> str:
        """Return the name in a copy of what has a name in the third group."""
        for number in self.third:
            label = f"{self.path}.{number}"
            if text == label or text.startswith(f"{label}."):
                return f"{self.path}.{number + copy * self.period}{text.removeprefix(label)}"
        return text


class _Blocks:
    """The four groups of a pattern.

    Attributes:
        spans: first and end of the steps of each group.
        made: the values that each makes.
        own: the weights that each touches and nothing else does, in the order of their first touch.
        prepared: the weights that each touches, and otherwise steps before all groups only; in the same order.
    """

    def __init__(self, graph: ModuleGraph, pattern: _Pattern) -> None:
        each = [_span(graph, label) for label in pattern.labels]
        if [end for _, end in each[:-1]] != [first for first, _ in each[1:]]:
            raise NotRepeatedError(f"steps are between the blocks {', '.join(pattern.labels)}")
        size = pattern.period
        self.spans = [(each[at][0], each[at + size - 1][1]) for at in range(0, len(each), size)]
        self.made: list[list[int]] = [
            [v for v, value in enumerate(graph.memory.values) if first <= value.made_at < end]
            for first, end in self.spans
        ]
        self.own, self.prepared = list[list[int]](), list[list[int]]()
        start = self.spans[0][0]
        before = _weights(graph.memory.steps[:start])
        for first, end in self.spans:
            inside = _weights(graph.memory.steps[first:end])
            outside = _weights([*graph.memory.steps[start:first], *graph.memory.steps[end:]])
            alone = [weight for weight in inside if weight not in outside]
            self.own.append([weight for weight in alone if weight not in before])
            self.prepared.append([weight for weight in alone if weight in before])

    def prepared_for(self, copy: int) -> dict[int, int]:
        """Return for the prepared weights of the third group those of a copy of it: their numbers go up evenly."""
        pairs = zip(self.prepared[1], self.prepared[2], strict=True)
        return {weight: weight + copy * (weight - earlier) for earlier, weight in pairs}


def _span(graph: ModuleGraph, label: str) -> tuple[int, int]:
    pieces = [piece for piece, found in enumerate(graph.labels) if found == label]
    if not pieces or pieces != list(range(pieces[0], pieces[-1] + 1)):
        raise NotRepeatedError(f"the steps of {label} are not together")
    return graph.starts[pieces[0]], graph.starts[pieces[-1] + 1]


def _weights(steps: Sequence[NodeMemory]) -> dict[int, None]:
    """Return the weights that steps touch, in the order of their first touch."""
    return dict.fromkeys(weight for step in steps for weight in step.weights)


def _repeated(graph: ModuleGraph, pattern: _Pattern, missing: int) -> ModuleGraph:
    """Return the graph with ``missing`` groups more behind the third of the pattern."""
    memory = graph.memory
    blocks = _Blocks(graph, pattern)
    _check(memory, blocks, missing)
    (_, _), (_, _), (first, end), _ = blocks.spans
    before, made = blocks.made[1], blocks.made[2]
    values, sizes, names = list(memory.values), list(memory.weight_bytes), list(memory.weight_names)
    state, matrices = set(memory.state), dict(graph.matrices)
    moved = missing * (end - first)
    for value, stored in enumerate(values):
        if stored.made_at >= end:
            values[value] = replace(stored, made_at=stored.made_at + moved)
    steps: list[NodeMemory] = []
    last = dict(zip(before, made, strict=True))  # for each value of the block before, its twin in the newest block
    for copy in range(1, missing + 1):
        number = pattern.third[0] + copy * pattern.period
        made_here = {v: len(values) + i for i, v in enumerate(made)}
        for value in made:
            stored = memory.values[value]
            values.append(_again(stored, stored.made_at + copy * (end - first), number))
        weight_here = {w: len(sizes) + i for i, w in enumerate(blocks.own[2])}
        for weight, twin in weight_here.items():
            sizes.append(sizes[weight])
            names.append(pattern.name_of(names[weight], copy))
            if weight in state:
                state.add(twin)
            if weight in matrices:
                matrices[twin] = matrices[weight]
        value_here = made_here | {v: last[v] for v in before}
        weight_here |= blocks.prepared_for(copy)
        for step in memory.steps[first:end]:
            own_path = pattern.name_of(step.path, copy)
            steps.append(_step_again(step, f"{step.node}_of_{number}", own_path, value_here, weight_here))
        last = {v: made_here[made[i]] for i, v in enumerate(before)}
    newest = {v: last[before[i]] for i, v in enumerate(made)}
    rest = [_step_again(step, step.node, step.path, newest, {}) for step in memory.steps[end:]]
    whole = replace(
        memory, steps=[*memory.steps[:end], *steps, *rest], values=values, weight_bytes=sizes, weight_names=names,
        state=frozenset(state),
    )  # fmt: skip
    return _with_pieces(graph, whole, matrices, pattern, missing)


def _with_pieces(
    graph: ModuleGraph, memory: GraphMemory, matrices: Mapping[int, Matrix], pattern: _Pattern, missing: int
) -> ModuleGraph:
    group = {f"{pattern.path}.{number}" for number in pattern.third}
    pieces = [piece for piece, found in enumerate(graph.labels) if found in group]
    first, behind = graph.starts[pieces[0]], graph.starts[pieces[-1] + 1]
    size = behind - first
    inside = [graph.starts[piece] for piece in pieces]
    starts, labels = list(graph.starts[: pieces[-1] + 1]), list(graph.labels[: pieces[-1] + 1])
    for copy in range(1, missing + 1):
        starts += [start + copy * size for start in inside]
        labels += [pattern.name_of(graph.labels[piece], copy) for piece in pieces]
    starts += [start + missing * size for start in graph.starts[pieces[-1] + 1 :]]
    labels += graph.labels[pieces[-1] + 1 :]
    blocks = [*graph.blocks[: pieces[-1] + 1], *[True] * (missing * len(pieces)), *graph.blocks[pieces[-1] + 1 :]]
    return replace(
        graph, memory=memory, starts=tuple(starts), labels=tuple(labels), blocks=tuple(blocks), matrices=matrices
    )


def _again(stored: ActivationStorage, made_at: int, number: int) -> ActivationStorage:
    return replace(stored, name=f"{stored.name}_of_{number}", made_at=made_at)


def _step_again(
    step: NodeMemory, node: str, path: str, value_here: Mapping[int, int], weight_here: Mapping[int, int]
) -> NodeMemory:
    def values(numbers: frozenset[int]) -> frozenset[int]:
        return frozenset(value_here.get(v, v) for v in numbers)

    def weights(numbers: frozenset[int]) -> frozenset[int]:
        return frozenset(weight_here.get(w, w) for w in numbers)

    return replace(
        step, node=node, path=path,
        values=tuple(value_here.get(v, v) for v in step.values),
        weights={weight_here.get(w, w): size for w, size in step.weights.items()},
        given=tuple(weight_here.get(w, w) for w in step.given),
        writes=values(step.writes), reshapes=values(step.reshapes),
        weight_writes=weights(step.weight_writes), weight_reshapes=weights(step.weight_reshapes),
    )  # fmt: skip


def _check(memory: GraphMemory, blocks: _Blocks, missing: int) -> None:
    """Raise an error if the second and the third group are not alike, or if a value is used beyond the next group."""
    spans, made, own = blocks.spans, blocks.made, blocks.own
    if len({len(found) for found in made[:3]}) > 1 or len(own[1]) != len(own[2]):
        raise NotRepeatedError("the blocks have different numbers of values or weights")
    if spans[1][1] - spans[1][0] != spans[2][1] - spans[2][0]:
        raise NotRepeatedError("the blocks have different numbers of steps")
    for a, b in zip(made[1], made[2], strict=True):
        value, other = memory.values[a], memory.values[b]
        if (value.bytes, value.returned, value.role) != (other.bytes, other.returned, other.role):
            raise NotRepeatedError(f"{value.name} and {other.name} differ")
    twin = dict(zip([*made[0], *made[1]], [*made[1], *made[2]], strict=True))
    _check_prepared(memory, blocks, missing)
    weight_twin = dict(zip([*own[1], *blocks.prepared[1]], [*own[2], *blocks.prepared[2]], strict=True))
    if any(memory.weight_bytes[a] != memory.weight_bytes[b] for a, b in weight_twin.items()):
        raise NotRepeatedError("the blocks have weights of different sizes")
    for mine, its in zip(memory.steps[slice(*spans[1])], memory.steps[slice(*spans[2])], strict=True):
        expected = _step_again(mine, its.node, its.path, twin, weight_twin)
        if replace(expected, scratch=None, estimated=()) != replace(its, scratch=None, estimated=()):
            raise NotRepeatedError(f"{mine.node} and {its.node} differ")
    last_of = {number: spans[place + 1][1] for place in range(3) for number in made[place]}
    for at, step in enumerate(memory.steps):
        for touched in step.values:
            if touched in last_of and at >= last_of[touched]:
                raise NotRepeatedError(f"{step.node} uses a value of an earlier block")


def _check_prepared(memory: GraphMemory, blocks: _Blocks, missing: int) -> None:
    """Raise an error unless each missing group has weights of its own among those that the steps before all touch."""
    if len({len(found) for found in blocks.prepared[1:]}) > 1:
        raise NotRepeatedError("the blocks have different numbers of weights that are made before them")
    if list(blocks.prepared_for(missing + 1).values()) != blocks.prepared[3]:
        raise NotRepeatedError("the weights that are made before the blocks are not in the order of these")
    start = blocks.spans[0][0]
    before, behind = _weights(memory.steps[:start]), _weights(memory.steps[start:])
    for copy in range(1, missing + 1):
        for weight, twin in blocks.prepared_for(copy).items():
            is_free = twin in before and twin not in behind
            if not is_free or memory.weight_bytes[twin] != memory.weight_bytes[weight]:
                raise NotRepeatedError("a weight that is made before the blocks is missing for some of them")
