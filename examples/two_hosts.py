"""A small GPT-2 whose stages run on several processes, of one host or of several.

    torchrun --nproc-per-node 2 examples/two_hosts.py

and on two hosts, the same on both but for the address of the host itself:

    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.0.0.1:29400 --rdzv-id demo \\
        --local-addr 10.0.0.1 examples/two_hosts.py

Every rank builds the model with the same random weights and compiles its own stages; rank 0 has the inputs, and all
ranks compare the result with eager. With ``--fault 1`` rank 1 ends before the second call: see what the others say.
Exits with 1 if a result differs from eager, or another rank was lost.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

import torch
import torch.distributed as dist
from language_model import Logits

import fx_partition


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A small GPT-2 on the ranks of torchrun.")
    parser.add_argument("--cache", help="on-chip bytes of a rank (default: what the model needs on all ranks)")
    parser.add_argument("--fault", type=int, metavar="RANK", help="this rank ends before the second call")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait for another rank")
    args = parser.parse_args(argv)

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)
    model = Logits(small=True).eval()
    ids = torch.randint(model.model.config.vocab_size, (2, 32))
    options = {"devices": "ranks", "timeout": args.timeout}
    if args.cache:
        options["cache_bytes"] = args.cache
    compiled = torch.compile(model, backend="l2partition", options=options)
    with torch.inference_mode():
        expected = model(ids)
        given = ids if rank == 0 else torch.zeros_like(ids)  # the shape counts, the contents are rank 0's
        compiled(given)
        if args.fault == rank:
            os._exit(3)
        try:
            found = compiled(given)
        except RuntimeError as error:
            print(f"rank {rank} says: {error}", flush=True)
            os._exit(1)  # the group of a lost rank does not end well
    difference = (found - expected).abs().max().item()
    print(f"rank {rank} of {dist.get_world_size()} on {socket.gethostname()}: eager differs by {difference:.1e}")
    if rank == 0:
        print(f"\n{fx_partition.report(compiled)}")
    sys.stdout.flush()
    dist.destroy_process_group()
    return 0 if difference <= 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
