"""Plan and split a model with int8 weights of torchao: each weight counts by what it holds, a quarter of float32.

In eager mode a layer makes its weight in float32 before it multiplies, and that counts too; compiled code may not.
The model is an MLP of random weights; quantise your own model in the same way.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

import fx_partition

WIDTH = 512
CACHE = "2.5MiB"


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))).eval()
    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8WeightOnlyConfig())
    x = torch.randn(4, WIDTH)

    for name, each in (("float32", model), ("int8", quantised)):
        plan = fx_partition.plan(each, x, cache_bytes=CACHE)
        fused = fx_partition.plan(each, x, cache_bytes=CACHE, footprint="fused")
        weights = sum(partition.weight_bytes for partition in plan.partitions)
        print(
            f"{name}: {weights:,} bytes of weights, {plan.num_partitions} partitions of {CACHE} in eager mode, "
            f"{fused.num_partitions} compiled"
        )

    split = fx_partition.split(quantised, x, cache_bytes=CACHE)
    with torch.no_grad():
        print("split equals eager bit by bit:", torch.equal(split(x), quantised(x)))


if __name__ == "__main__":
    main()
