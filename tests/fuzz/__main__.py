"""``python -m tests.fuzz --graphs 5000``: many programs, in several processes; exits with 1 where one fails.

    python -m tests.fuzz --graphs 500 --seed 20000 --kinds metadata,written,linear
    python -m tests.fuzz --show 1234            # a program, what comes of it, and of a failure the smallest script
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from .campaign import Outcome, prepare, try_seed
from .check import ROADS, check
from .generate import generate
from .kinds import KINDS
from .processes import try_in_processes
from .script import script
from .shrink import shrink


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=5000, help="how many programs")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--roads", default="", help=f"of {', '.join(ROADS)}; default: those of `campaign.roads_of`")
    parser.add_argument("--kinds", default="", help="kinds of statements; default: all")
    parser.add_argument("--scripts", type=Path, help="a folder for a small script of each distinct failure")
    parser.add_argument("--show", type=int, metavar="SEED", help="show one program in place of running many")
    arguments = parser.parse_args()
    roads = tuple(filter(None, arguments.roads.split(",")))
    kinds = tuple(filter(None, arguments.kinds.split(",")))
    unknown = [*({*roads} - ROADS.keys()), *({*kinds} - KINDS.keys())]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; roads: {', '.join(ROADS)}; kinds: {', '.join(KINDS)}")
    prepare()
    if arguments.show is not None:
        return _show(arguments.show, roads, kinds)
    return _run_many(arguments, roads, kinds)


def _run_many(arguments: argparse.Namespace, roads: tuple[str, ...], kinds: tuple[str, ...]) -> int:
    began = time.monotonic()
    seeds = range(arguments.seed, arguments.seed + arguments.graphs)
    tasks = [(seed, roads, kinds) for seed in seeds]
    outcome = Outcome()
    for seed, verdicts in try_in_processes(tasks, arguments.workers):
        for verdict in outcome.add(seed, verdicts):
            print(f"seed {seed}, {verdict.road}: {verdict.signature}\n{verdict.fault[-1500:]}\n", flush=True)
        if outcome.programs % 100 == 0:
            print(f"{outcome.programs} of {len(seeds)} in {time.monotonic() - began:.0f} s", flush=True)
    print(f"{outcome.summary()}\nin {time.monotonic() - began:.0f} s")
    if arguments.scripts and outcome.faults:
        _write_scripts(outcome, arguments.scripts, kinds)
    return 1 if outcome.faults else 0


def _write_scripts(outcome: Outcome, folder: Path, kinds: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for signature, found in outcome.faults.items():
        seed, road = found[0]
        path = folder / f"seed_{seed}_{road}.py"
        text = _smallest(seed, road, kinds) if road in ROADS else ""
        path.write_text(text or f"# not run alone, or passes alone: {signature}\n", encoding="utf-8")
        print(f"{path}: {signature}")


def _smallest(seed: int, road: str, kinds: tuple[str, ...]) -> str:
    program = generate(seed, kinds)
    (verdict,) = check(program, (road,))
    if not verdict.fault:
        return ""
    program = shrink(program, verdict)
    (verdict,) = check(program, (road,))
    return script(program, road, verdict.fault)


def _show(seed: int, roads: tuple[str, ...], kinds: tuple[str, ...]) -> int:
    program = generate(seed, kinds)
    print(program.model_text(), program.inputs_text(), program.settings, sep="\n")
    _, verdicts = try_seed((seed, roads, kinds))
    for verdict in verdicts:
        warned = dict(Counter(verdict.warned)) or ""
        print(f"{verdict.road}: {verdict.partitions} partitions {warned} {verdict.torch_differs}")
    failed = [verdict for verdict in verdicts if verdict.fault]
    for verdict in failed:
        print(f"\n# {verdict.road}: {verdict.signature}\n", _smallest(seed, verdict.road, kinds), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
