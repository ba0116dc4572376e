"""Edits of a plan's JSON: each leaf in turn, changed to something else that its place may hold."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

# The other words that a field may have; a leaf that is not here is text of its own, or a number.
WORDS = {
    "algorithm": ("dp", "greedy"),
    "objective": ("balanced", "traffic", "throughput", "latency"),
    "footprint": ("peak", "fused"),
    "memory": ("on-chip", "device"),
    "boundaries": ("nodes", "modules"),
    "axis": ("outputs", "inputs"),
}


class Edit(NamedTuple):
    """A plan with one leaf changed."""

    path: str
    before: Any
    after: Any
    data: dict[str, Any]


def edits(data: dict[str, Any]) -> Iterator[Edit]:
    """Yield the plan with each leaf changed, in each way that makes sense for it."""
    for keys, value in _leaves(data, ()):
        for other in _others(str(keys[-1]), value, data):
            edited = copy.deepcopy(data)
            place = edited
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = other
            yield Edit(path_of(keys), value, other, edited)


def path_of(keys: tuple[str | int, ...]) -> str:
    """The path of a leaf, as errors and reasons write it."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)
    return text.removeprefix(".")


def _leaves(value: Any, keys: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, (*keys, key))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _leaves(part, (*keys, place))
    else:
        yield keys, value


def _others(name: str, value: Any, data: dict[str, Any]) -> Iterator[Any]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
        if value:
            yield value - 1
        if value > 2:
            yield 0
    elif isinstance(value, float):
        yield value * 2
    elif value is None:
        yield 0 if name in ("code", "allocated_bytes") else 3
    elif name in WORDS and value in WORDS[name]:
        yield from (word for word in WORDS[name] if word != value)
    elif name == "max_slack":
        yield 0.5
    else:
        yield f"{value} + 1" if _is_size(value) else f"{value}x"
        nodes = [node for partition in data["partitions"] for node in partition["nodes"]]
        if value in nodes:  # a name that there is
            yield nodes[nodes.index(value) - 1]


def _is_size(text: str) -> bool:
    return any(character.isdigit() for character in text) and not text[0].isalpha()
