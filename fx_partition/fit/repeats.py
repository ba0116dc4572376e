"""Put the blocks back that a capture has left out, into the memory of its graph.

Before: blocks 0, 1, 2 and 125 of 126. Each step of block 2 touches what the same step of block 1 touches, with two
        differences: values and weights are its own block's, and block 2 reads values of block 1 where block 1 reads
        those of block 0
After:  the steps of block 2 are there 122 times more, each time with their own values and weights; block 125 reads the
        values of the last

That is checked, not assumed: a graph whose blocks do not follow one another in this way is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
    numbers = shortened.numbers
    graph = _renamed(graph, shortened)
    for place in range(len(numbers) - 1, 0, -1):
        missing = numbers[place] - numbers[place - 1] - 1
        if missing:
            pattern = [f"{shortened.path}.{number}" for number in numbers[place - 3 : place + 1]]
            graph = _repeated(graph, pattern, numbers[place - 1], missing)
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


class _Blocks:
    """Three blocks that follow one another, and the one behind: first and end of their steps."""

    def __init__(self, graph: ModuleGraph, pattern: list[str]) -> None:
        self.spans = [_span(graph, label) for label in pattern]
        ends = [end for _, end in self.spans[:-1]]
        if ends != [first for first, _ in self.spans[1:]]:
            raise NotRepeatedError(f"steps are between the blocks {', '.join(pattern)}")
        self.made: list[list[int]] = [
            [v for v, value in enumerate(graph.memory.values) if first <= value.made_at < end]
            for first, end in self.spans
        ]
        self.own = [_own_weights(graph.memory, first, end) for first, end in self.spans]


def _span(graph: ModuleGraph, label: str) -> tuple[int, int]:
    pieces = [piece for piece, found in enumerate(graph.labels) if found == label]
    if not pieces or pieces != list(range(pieces[0], pieces[-1] + 1)):
        raise NotRepeatedError(f"the steps of {label} are not together")
    return graph.starts[pieces[0]], graph.starts[pieces[-1] + 1]


def _own_weights(memory: GraphMemory, first: int, end: int) -> list[int]:
    """Return the weights that these steps touch and no others, in the order of their first touch."""
    inside = dict.fromkeys(weight for step in memory.steps[first:end] for weight in step.weights)
    outside = {weight for step in (*memory.steps[:first], *memory.steps[end:]) for weight in step.weights}
    return [weight for weight in inside if weight not in outside]


def _repeated(graph: ModuleGraph, pattern: list[str], number: int, missing: int) -> ModuleGraph:
    """Return the graph with ``missing`` blocks more behind the third of the pattern, whose number is ``number``."""
    memory = graph.memory
    blocks = _Blocks(graph, pattern)
    _check(memory, blocks)
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
    label = pattern[2]
    for copy in range(1, missing + 1):
        path = f"{label.rpartition('.')[0]}.{number + copy}"
        made_here = {v: len(values) + i for i, v in enumerate(made)}
        for value in made:
            stored = memory.values[value]
            values.append(_again(stored, stored.made_at + copy * (end - first), number + copy))
        weight_here = {w: len(sizes) + i for i, w in enumerate(blocks.own[2])}
        for weight, twin in weight_here.items():
            sizes.append(sizes[weight])
            names.append(path + names[weight].removeprefix(label))
            if weight in state:
                state.add(twin)
            if weight in matrices:
                matrices[twin] = matrices[weight]
        value_here = made_here | {v: last[v] for v in before}
        for step in memory.steps[first:end]:
            own_path = path + step.path.removeprefix(label) if step.path.startswith(label) else step.path
            steps.append(_step_again(step, f"{step.node}_of_{number + copy}", own_path, value_here, weight_here))
        last = {v: made_here[made[i]] for i, v in enumerate(before)}
    newest = {v: last[before[i]] for i, v in enumerate(made)}
    rest = [_step_again(step, step.node, step.path, newest, {}) for step in memory.steps[end:]]
    whole = replace(
        memory, steps=[*memory.steps[:end], *steps, *rest], values=values, weight_bytes=sizes, weight_names=names,
        state=frozenset(state),
    )  # fmt: skip
    return _with_pieces(graph, whole, matrices, label, number, missing)


def _with_pieces(
    graph: ModuleGraph, memory: GraphMemory, matrices: Mapping[int, Matrix], label: str, number: int, missing: int
) -> ModuleGraph:
    pieces = [piece for piece, found in enumerate(graph.labels) if found == label]
    first, behind = graph.starts[pieces[0]], graph.starts[pieces[-1] + 1]
    size = behind - first
    inside = [graph.starts[piece] for piece in pieces]
    starts, labels, blocks = list(graph.starts[: pieces[-1] + 1]), list(graph.labels[: pieces[-1] + 1]), []
    for copy in range(1, missing + 1):
        starts += [start + copy * size for start in inside]
        labels += [f"{label.rpartition('.')[0]}.{number + copy}"] * len(pieces)
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


def _check(memory: GraphMemory, blocks: _Blocks) -> None:
    """Raise an error if the second and the third block are not alike, or if a value is used beyond the next block."""
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
    weight_twin = dict(zip(own[1], own[2], strict=True))
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
