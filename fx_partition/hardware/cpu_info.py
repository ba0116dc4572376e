"""What an operating system says of its CPU: caches, cores that this process may use, clock, memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cache:
    """One data cache.

    Attributes:
        level: 2 or 3.
        bytes: of one such cache, all of it.
        sharers: how many cores share it, whether or not this process may use them.
        cores: how many of these this process may use.
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
        name: the model, as the system names it; "" if it does not.
        caches: levels 2 and 3, as far as they are there; of caches that differ, the smallest.
        cores: how many cores' time this process may use.
        hertz: the clock; 0.0 if the system does not say.
        memory_bytes: None if the system does not say.
        source: who says so.
        clock: what kind of clock ``hertz`` is.
    """

    name: str
    caches: tuple[Cache, ...]
    cores: float
    hertz: float
    memory_bytes: int | None
    source: str
    clock: str = "as the system says"

    def by_preference(self) -> list[Cache]:
        """The caches, first the outermost that not all cores share: a stage's own (see `cores.core_groups`).

        Where this process may use one core, or several around one cache, all caches are common. Then those come first
        that it has to itself: of the L3 around one core of sixteen others may take fifteen parts.
        """

        def rank(cache: Cache) -> tuple[bool, float, int]:
            return cache.common, -cache.cores / cache.sharers if cache.common else 0.0, -cache.level

        return sorted(self.caches, key=rank)
