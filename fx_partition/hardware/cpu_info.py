"""A CPU as its operating system describes it: caches, cores that this process may use, clock, memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cache:
    """One data cache.

    Attributes:
        level: 2 or 3.
        bytes: the size of one such cache.
        sharers: how many cores share it, whether or not this process may use them.
        cores: how many of the sharers this process may use.
        common: whether all cores that this process may use share it.
    """

    level: int
    bytes: int
    sharers: int
    cores: int
    common: bool


@dataclass(frozen=True)
class CpuFacts:
    """A CPU as this process may use it.

    Attributes:
        name: the system's name of the model; "" if it has none.
        caches: levels 2 and 3 where the CPU has them; where cores have different caches, the smallest of each level.
        cores: how many cores' time this process may use; a quota may allow a fraction.
        hertz: the clock; 0.0 if the system does not say.
        memory_bytes: None if the system does not say.
        source: where these facts come from.
        clock: which clock ``hertz`` is: the highest, or that of the moment.
    """

    name: str
    caches: tuple[Cache, ...]
    cores: float
    hertz: float
    memory_bytes: int | None
    source: str
    clock: str = "as the system says"

    def by_preference(self) -> list[Cache]:
        """Return the caches, first the outermost that not all cores share: a stage's own (see `cores.core_groups`).

        If this process may use one core only, or several around one cache, all caches are common. Then the caches that
        it shares least with other processes come first: fifteen sixteenths of an L3 may be theirs.
        """

        def rank(cache: Cache) -> tuple[bool, float, int]:
            return cache.common, -cache.cores / cache.sharers if cache.common else 0.0, -cache.level

        return sorted(self.caches, key=rank)
