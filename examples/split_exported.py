"""Cut an exported program, read its plan, keep the plan as JSON and cut again by it.

Shows `fx_partition.split` on a model exported with a dynamic batch: the partitions are modules of an ordinary
GraphModule, the result is equal bit by bit, and the plan answers up to which batch it still fits.

    python examples/split_exported.py
    python examples/split_exported.py --cache 512KiB --plan plan.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import fx_partition


class Classifier(torch.nn.Module):
    """Six residual layers and a head."""

    def __init__(self, width: int = 256, blocks: int = 6) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(blocks))
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.nn.functional.gelu(block(x))
        return self.head(x)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Cut an exported program; save, load and reuse the plan.")
    parser.add_argument("--cache", default="600KiB", help="on-chip bytes of a device (default: %(default)s)")
    parser.add_argument("--plan", type=Path, help="where to write the plan (default: a temporary file)")
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model, x = Classifier().eval(), torch.randn(8, 256)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))

    cut = fx_partition.split(exported, cache_bytes=args.cache)
    plan = cut.plan
    print(cut.code.strip(), "\n")
    for partition in plan.partitions:
        print(f"partition_{partition.index}: {partition.first} .. {partition.last}")
        print(f"    {len(partition.nodes)} nodes, {partition.total_bytes:,} bytes = {partition.total_text}")
    print(f"\n{fx_partition.report(plan)}\n")

    with tempfile.TemporaryDirectory() as folder:
        path = args.plan or Path(folder) / "plan.json"
        path.write_text(plan.to_json(), encoding="utf-8")
        loaded = fx_partition.Plan.from_json(path.read_text(encoding="utf-8"))
    again = fx_partition.split(exported, plan=loaded)

    largest = plan.largest("x.0")
    print(f"the plan fits up to a batch of {largest}")
    same = loaded == plan and not plan.fits({"x.0": largest + 1})
    with torch.inference_mode():
        for batch in (1, 8, 37):
            x = torch.randn(batch, 256)
            equal = torch.equal(cut(x), model(x)) and torch.equal(again(x), model(x))
            print(f"batch {batch}: {'equal bit by bit' if equal else 'DIFFERENT'}")
            same = same and equal
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
