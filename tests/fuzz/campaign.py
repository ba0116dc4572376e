"""Run many programs: choose the roads of each, and collect the outcomes."""

from __future__ import annotations

import logging
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from .check import Verdict, check
from .generate import generate


def prepare() -> None:
    """Make this process one that runs programs: one thread, and no warnings of torch's."""
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")


def roads_of(seed: int) -> tuple[str, ...]:
    """All programs are compiled by the backend and split, of an export or else of a symbolic trace; inductor's stages
    and pipelines take seconds each."""
    roads = ["backend", "symbolic_trace" if seed % 4 == 3 else "export"]
    roads += ["inductor"] * (seed % 100 == 50)
    roads += ["pipeline"] * (seed % 250 == 100)
    return tuple(roads)


#: A seed; the roads and the kinds of statements, where they are not the default.
Task: TypeAlias = tuple[int, tuple[str, ...], tuple[str, ...]]
#: A seed, and what came of its program by each road.
SeedVerdicts: TypeAlias = tuple[int, list[Verdict]]


def try_seed(task: Task) -> SeedVerdicts:
    """Run the program of a seed."""
    seed, roads, kinds = task
    roads = roads or roads_of(seed)
    verdicts = check(generate(seed, kinds), tuple(road for road in roads if road not in SLOW))
    for road in roads:
        if road in SLOW:  # they take their own programs, see `generate.smooth`
            verdicts += check(generate(seed, kinds, smooth=True), (road,))
    return seed, verdicts


SLOW = ("inductor", "pipeline")

#: How a fallback to one partition begins.
FALLBACK = "this graph runs as one partition"


@dataclass
class Outcome:
    """What came of programs so far.

    Attributes:
        faults: by signature, the seeds and roads.
        known: the number of failures of kinds that `check.KNOWN` names.
        fallbacks: the messages of fallbacks to one partition, and how often.
    """

    programs: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    torch_refuses: Counter[str] = field(default_factory=Counter)
    torch_differs: int = 0
    dense: int = 0
    rounded: int = 0
    unlike_compiled: int = 0
    known: Counter[str] = field(default_factory=Counter)
    fallbacks: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, seed: int, verdicts: list[Verdict]) -> list[Verdict]:
        """Count what came of a program; returns what failed."""
        self.programs += 1
        failed = []
        for verdict in verdicts:
            if verdict.refused:
                self.torch_refuses[verdict.road] += 1
                continue
            self.runs[verdict.road] += 1
            self.cut[verdict.road] += verdict.partitions >= 3
            self.torch_differs += bool(verdict.torch_differs)
            self.dense += verdict.dense
            self.rounded += verdict.rounded
            self.unlike_compiled += verdict.unlike_compiled
            self.fallbacks.update(text for text in verdict.warned if text.startswith(FALLBACK))
            if verdict.fault and verdict.known:
                self.known[verdict.signature] += 1
            elif verdict.fault:
                failed.append(verdict)
                self.faults[verdict.signature].append((seed, verdict.road))
        return failed

    def summary(self) -> str:
        """One line, and one more for each kind of fault or fallback."""
        roads = ", ".join(
            f"{road} {count} ({self.cut[road]} in 3 or more partitions, torch refuses {self.torch_refuses[road]} more)"
            for road, count in sorted(self.runs.items())
        )
        failures = sum(map(len, self.faults.values()))
        lines = [
            f"{self.programs} programs, {failures} failures of {len(self.faults)} kinds: {roads}; "
            f"{self.torch_differs} as torch alone and not as eager mode, {self.rounded} but for rounding, "
            f"{self.dense} but for gaps of results, {self.unlike_compiled} but for strides that inductor gives, "
            f"{self.known.total()} known failures, {self.fallbacks.total()} fallbacks to one partition"
        ]
        lines += [f"  fallback, {count} times: {text[:300]}" for text, count in self.fallbacks.most_common()]
        lines += [f"  known, {count} times: {text}" for text, count in self.known.most_common()]
        for signature, found in sorted(self.faults.items(), key=lambda item: -len(item[1])):
            seeds = ", ".join(str(seed) for seed, _ in found[:8])
            lines.append(f"  failure, {len(found)} times: {signature} (seeds {seeds})")
        return "\n".join(lines)
