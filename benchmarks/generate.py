"""Measure tokens a second of several sequences: decoding through a pipeline, and other ways to use two cores.

    python benchmarks/generate.py --quick
    python benchmarks/generate.py [--hidden 128 256] [--layers 8] [--sequences 2 4 8] [--tokens 64] [--rounds 5]
                                  [--markdown]

The model is a Llama of random weights with a static cache. `decoding.ways` says what the ways are: a pipeline with a
session for each sequence, ``generate`` of transformers with inductor (sequences one after another, or in one batch),
and the pipeline's own step compiled by inductor. All generate greedily from prompts of one token, and must give eager
mode's tokens. They run in turn, one at a time, round after round, on the same two cores with one thread each in all.
A figure is the median over the rounds, a ratio the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from decoding.models import Case, weight_bytes
from decoding.ways import PIPELINE, WAYS, Crew
from runtimes.cache import nominal_l2
from runtimes.processes import two_cores
from tabulate import tabulate
from tqdm import tqdm

ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),  # memory once had is kept, in every process
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "OMP_NUM_THREADS": "2",
    "KMP_BLOCKTIME": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of compilers stays behind
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Row:
    """A case as measured: tokens a second of each way in each round."""

    case: Case
    sequences: int
    weight_bytes: int
    rates: Mapping[str, Sequence[float]]

    def ratio(self, other: str) -> float:
        """Return the pipeline's rate over that of another way: the median of the ratios within a round."""
        return statistics.median(
            ours / theirs for ours, theirs in zip(self.rates[PIPELINE], self.rates[other], strict=True)
        )


def measure(crew: Crew, case: Case, sequences: int, rounds: int) -> Row:
    """Run all ways in turn, round after round, after a run of each that is checked and not timed."""
    crew.build(case, sequences)
    prompts = case.prompts(sequences)
    crew.check(prompts)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds):
        for name in list(WAYS) if turn % 2 == 0 else list(reversed(WAYS)):
            rates[name].append(sequences * case.tokens / crew.seconds(name, prompts))
    return Row(case, sequences, weight_bytes(case.model()), rates)


def show(rows: Sequence[Row], style: str) -> None:
    """Print tokens a second of each way, and the ratios of the pipeline to the others."""
    heads = ("model", "weights, MiB", "sequences")
    first = [(row.case.name, f"{row.weight_bytes / 2**20:.1f}", row.sequences) for row in rows]
    print("\nTokens a second, of all sequences together\n")
    table = [(*head, *(f"{statistics.median(row.rates[name]):.0f}" for name in WAYS))
             for head, row in zip(first, rows, strict=True)]  # fmt: skip
    print(tabulate(table, headers=(*heads, *WAYS), tablefmt=style, disable_numparse=True))
    others = [name for name in WAYS if name != PIPELINE]
    print("\nThe pipeline over the others\n")
    table = [(*head, *(f"{row.ratio(name):.2f}" for name in others)) for head, row in zip(first, rows, strict=True)]
    print(tabulate(table, headers=(*heads, *(f"/ {name}" for name in others)), tablefmt=style, disable_numparse=True))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two sequences of a small model, eight tokens each")
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 256])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--sequences", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="tables for a page")
    options = parser.parse_args()
    if options.quick:
        options.hidden, options.layers, options.sequences, options.tokens, options.rounds = [64], 2, [2], 8, 1
    return options


def main() -> int:
    options = parse()
    cores = two_cores()
    os.sched_setaffinity(0, cores)  # for all that follows, on a machine of more
    os.environ.update(ENVIRONMENT)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, cores {cores}, ", end="")
    print(f"L2 of a core {nominal_l2(cores[0]) / 2**20:.2f} MiB")
    print(", ".join(f"{name}={value}" for name, value in ENVIRONMENT.items()))
    asked = list(itertools.product(options.hidden, options.sequences))
    with Crew(cores) as crew:
        rows = [
            measure(crew, Case(hidden, options.layers, options.tokens), sequences, options.rounds)
            for hidden, sequences in tqdm(asked, disable=None)
        ]
    show(rows, "github" if options.markdown else "simple")
    return 0


if __name__ == "__main__":
    sys.exit(main())
