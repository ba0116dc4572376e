"""Run a pipeline in its own process: print how many stages were compiled, and compare with eager.

The height of the images is symbolic, and only heights of which the convolutions leave seven rows are right: that is
decided while compiling, so a process that takes compiled code from disk must refuse the others as well.
"""

from __future__ import annotations

import json

import torch
from torch import nn

import fx_partition
from fx_partition.backends.threads import aoti_compile

RIGHT, WRONG = (32, 33, 34), (28, 48)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2))
        self.rest = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x):
        return self.rest(self.convolutions(x))


def main() -> None:
    compiled: list[str] = []
    compile_native = aoti_compile.compile_native

    def count(*args):
        compiled.append(compile_native(*args))
        return compiled[-1]

    aoti_compile.compile_native = count
    torch.manual_seed(0)
    model = Images().eval()
    x = torch.randn(2, 3, RIGHT[0], 32)
    shapes = ({2: torch.export.Dim("height", min=16, max=256)},)
    equal, refused = [], []
    pipe = fx_partition.pipeline(model, x, cache_bytes="1GiB", devices=["cores:0"], dynamic_shapes=shapes)
    with pipe, torch.no_grad():
        for height in RIGHT + WRONG:
            x = torch.randn(2, 3, height, 32)
            try:
                result = pipe(x)
            except ValueError as error:
                refused.append((height, str(error).split("do not satisfy ")[1]))
            else:
                equal.append((height, torch.allclose(result, model(x), atol=1e-6, rtol=1e-5)))
    print(json.dumps({"compiled": len(compiled), "equal": equal, "refused": refused}))


if __name__ == "__main__":
    main()
