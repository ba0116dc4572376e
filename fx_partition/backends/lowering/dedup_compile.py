"""Compile each distinct stage once, with a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def first_with_same_key(keys: Sequence[Hashable]) -> list[int]:
    """Return for each position the first position with an equal key.

    Example::

        >>> first_with_same_key(["a", "b", "a", "b", "c"])
        [0, 1, 0, 1, 4]
    """
    firsts: dict[Hashable, int] = {}
    return [firsts.setdefault(key, position) for position, key in enumerate(keys)]


def compile_deduplicated(keys: Sequence[Hashable], compile_one: Callable[[int], T], title: str) -> list[T]:
    """Compile the first stage of each key, in order, and use its code for all stages with that key.

    Args:
        keys: the key of each stage; stages with equal keys can share their code.
        compile_one: compiles the stage at a position, in the caller's thread and under its modes.
        title: the name of the caller, for the progress bar.

    Returns:
        The code of each stage.

    Raises:
        Exception: of any kind, from ``compile_one``.

    Example::

        >>> compile_deduplicated(["a", "b", "a"], lambda stage: f"code of {stage}", "example")
        ['code of 0', 'code of 1', 'code of 0']
    """
    firsts = first_with_same_key(keys)
    made: dict[int, T] = {}
    with tqdm(total=len(set(firsts)), desc=f"{title}: compiling stages", disable=None, leave=False) as bar:
        for first in dict.fromkeys(firsts):
            bar.set_postfix_str(f"stage {first} for {firsts.count(first)} of {len(firsts)}")
            made[first] = compile_one(first)
            bar.update()
    return [made[first] for first in firsts]
