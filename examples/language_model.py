"""A GPT-2-sized language model, cut into partitions of 96 MiB and run at two batch sizes and lengths.

Shows what a larger model needs of a plan: dynamic batch and length (compiled once), and tied weights (the
first partition gathers rows of the token embedding, the last multiplies by all of it; each counts what it
touches). The output layer alone exceeds the default budget: it gets its own partition, and the report
says what it spills. Weights are random, nothing is downloaded, and the check is against eager mode.

    python examples/language_model.py                  # 124M parameters
    python examples/language_model.py --small          # a small one of the same form
    python examples/language_model.py --cache 192MiB   # room for the output layer: nothing spills

Exits with 1 if the compiled model's logits differ from eager ones.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings

import torch

import fx_partition


class Logits(torch.nn.Module):
    """Token ids to logits, without the key-value cache of generation."""

    def __init__(self, small: bool) -> None:
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"n_layer": 2, "n_embd": 128, "n_head": 4, "vocab_size": 2048} if small else {}
        self.model = GPT2LMHeadModel(GPT2Config(use_cache=False, bos_token_id=0, eos_token_id=0, **sizes))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).logits


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A GPT-2-sized model cut to fit a cache.")
    parser.add_argument("--small", action="store_true", help="a small model, for a quick run")
    parser.add_argument("--cache", help="on-chip bytes of a device (default: 96MiB; 1.2MiB with --small)")
    args = parser.parse_args(argv)
    cache = args.cache or ("1.2MiB" if args.small else "96MiB")

    torch.manual_seed(0)
    model = Logits(args.small).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count / 1e6:.1f}M parameters, {4 * count / 2**20:.0f} MiB, cut at {cache}\n")

    warnings.filterwarnings("error", message="this graph runs as one partition")  # else this shows nothing
    compiled = torch.compile(model, backend="l2partition", options={"cache_bytes": cache})
    same = True
    with torch.inference_mode():
        for batch, length in ((2, 32), (3, 48)):
            ids = torch.randint(model.model.config.vocab_size, (batch, length))
            torch._dynamo.mark_dynamic(ids, (0, 1))
            start = time.perf_counter()
            found = compiled(ids)
            seconds = time.perf_counter() - start
            difference = (found - model(ids)).abs().max().item()
            print(f"batch {batch}, length {length}: {seconds:.1f} s, eager differs by {difference:.1e}")
            same = same and difference <= 1e-3
    print(f"\n{fx_partition.report(compiled)}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
