"""Work on many stages of which some are alike: each distinct one once, with a progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def first_alike(keys: Sequence[Hashable]) -> list[int]:
    """For each position the first one with an equal key.

    Example::

        >>> first_alike(["a", "b", "a", "b", "c"])
        [0, 1, 0, 1, 4]
    """
    firsts: dict[Hashable, int] = {}
    return [firsts.setdefault(key, position) for position, key in enumerate(keys)]


def compile_each_once(keys: Sequence[Hashable], compile_one: Callable[[int], T], title: str) -> list[T]:
    """Compile the first stage of each key, in order, and give its code to all that have the key.

    Args:
        keys: of each stage; stages whose keys are equal can share their code.
        compile_one: compiles the stage of an index, in the caller's thread and under its modes.
        title: who compiles, for the progress bar.

    Returns:
        The code of each stage.

    Raises:
        Whatever ``compile_one`` raises.

    Example::

        >>> compile_each_once(["a", "b", "a"], lambda stage: f"code of {stage}", "example")
        ['code of 0', 'code of 1', 'code of 0']
    """
    firsts = first_alike(keys)
    made: dict[int, T] = {}
    with tqdm(total=len(set(firsts)), desc=f"{title}: compiling stages", disable=None, leave=False) as bar:
        for first in dict.fromkeys(firsts):
            bar.set_postfix_str(f"stage {first} for {firsts.count(first)} of {len(firsts)}")
            made[first] = compile_one(first)
            bar.update()
    return [made[first] for first in firsts]
