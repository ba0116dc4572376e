"""`fit` on small modules: the answers are those that can be counted by hand, or found by trying everything."""

from __future__ import annotations

import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fx_partition
from fx_partition.cli import main
from fx_partition.fit.devices import read_devices
from fx_partition.fit.precision import fewest_quantised
from fx_partition.passes.partitioner.chain import Chain
from fx_partition.passes.partitioner.interval_footprint import interval

WIDTH = 256
LAYER = (WIDTH * WIDTH + WIDTH) * 4


class Layers(nn.Module):
    def __init__(self, count: int, rows: int = 4096) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.table(ids)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def on_meta(count: int) -> tuple[nn.Module, torch.Tensor]:
    with torch.device("meta"):
        return Layers(count).eval(), torch.zeros(4, dtype=torch.long)


def test_a_device_holds_the_whole_table_and_not_only_its_rows() -> None:
    model, ids = on_meta(2)
    answer = fx_partition.fit(model, ids, devices=1)
    (device,) = answer.devices
    assert device.weight_bytes == 4096 * WIDTH * 4 + 2 * LAYER
    assert device.total_bytes == device.budget_bytes
    assert device.modules == ("table", "layers.0", "layers.1")
    assert next(model.parameters()).is_meta  # the model is as it was
    plan = fx_partition.plan(Layers(2), torch.zeros(4, dtype=torch.long), cache_bytes="1GiB")
    assert plan.partitions[0].weight_bytes == 4 * WIDTH * 4 + 2 * LAYER


@pytest.mark.parametrize(
    ("devices", "fits", "number"),
    [("3MiB,5MiB", False, 2), ("5MiB,3MiB", True, 2), ("5MiB", True, 2), ("1MiB", False, 0)],
)
def test_devices_hold_a_model_in_their_order(devices: str, fits: bool, number: int) -> None:
    model, ids = on_meta(8)
    answer = fx_partition.fit(model, ids, devices=devices)
    assert answer.fits is fits
    assert not number or len(answer.devices) == number
    assert answer.fits is all(d.total_bytes <= d.usable_bytes for d in answer.devices)
    listed = [module for device in answer.devices for module in device.modules]
    assert listed == ["table", *(f"layers.{i}" for i in range(8))]
    assert bool(answer.give_up) is not fits


def test_the_smallest_size_is_the_smallest_and_the_margin_stays_empty() -> None:
    model, ids = on_meta(8)
    size = fx_partition.fit(model, ids, devices=2, margin="10%").devices[0].budget_bytes
    answer = fx_partition.fit(model, ids, devices=f"2x{size}", margin=0.1)
    assert answer.fits and max(d.total_bytes for d in answer.devices) <= 0.9 * size
    assert not fx_partition.fit(model, ids, devices=[size - 2, size - 2], margin="10%").fits


def test_the_largest_size_of_a_dimension_fits_and_one_more_does_not() -> None:
    model, ids = on_meta(8)
    shapes = ({0: torch.export.Dim("tokens")},)
    answer = fx_partition.fit(model, ids, devices="2x4MiB", dynamic_shapes=shapes)
    assert not answer.fits and answer.largest == {"ids.0": 0}
    answer = fx_partition.fit(model, ids, devices="2x5MiB", dynamic_shapes=shapes)
    most = answer.largest["ids.0"]
    assert answer.sizes == {"ids.0": 4} and most > 4
    fits = [
        fx_partition.fit(model, ids, devices="2x5MiB", dynamic_shapes=shapes, bind={"ids.0": n}).fits
        for n in (most, most + 1)
    ]
    assert fits == [True, False]


def test_the_fewest_blocks_are_quantised() -> None:
    model, ids = on_meta(8)
    whole = fx_partition.fit(model, ids, devices=1).devices[0].total_bytes
    each = WIDTH * WIDTH * 4 - (WIDTH * WIDTH + WIDTH * 4)  # a byte a number, and a scale a row
    answer = fx_partition.fit(model, ids, devices=[whole - 2 * each - 1], weights=["fp32", "int8"])
    assert answer.fits
    assert [(p.weights, p.fits, p.quantised, p.blocks) for p in answer.precisions] == [
        ("float32", False, 0, 8), ("int8", True, 3, 8)
    ]  # fmt: skip
    assert len(answer.devices[0].quantised) == 3
    assert answer.devices[0].total_bytes == whole - 3 * each
    assert not fx_partition.fit(model, ids, devices=[whole - 8 * each - 1], weights=["int8"]).fits


def chain_of(weights: list[int], activation: int) -> Chain:
    """Pieces of these weights in a row, each with a result that the next one reads."""
    n = len(weights)
    array = lambda numbers: torch.tensor(numbers, dtype=torch.int64).numpy()  # noqa: E731
    return Chain(
        array(list(range(n + 1))), array([0] * n), array([activation] * n), array(list(range(n))),
        array([0] * (n - 1) + [1]), array([0, *range(1, 2 * n, 2)]),
        array([0, *(v for i in range(1, n) for v in (i - 1, i))]), array(weights), array(list(range(n + 1))),
        array(list(range(n))), array(weights),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_no_choice_of_boundaries_quantises_fewer(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randint(4, 20, (6,), generator=generator).tolist()
    saved = [int(w * s) for w, s in zip(weights, torch.rand(6, generator=generator).tolist(), strict=True)]
    budgets = torch.randint(8, 45, (3,), generator=generator).tolist()
    chain = chain_of(weights, 2)
    least: int | None = None
    for a, b in product(range(7), repeat=2):
        if a > b:
            continue
        for count in range(7):
            for picked in combinations(range(6), count):
                runs = ((0, a), (a, b), (b, 6))
                totals = [
                    interval(chain, i, j).total - sum(saved[p] for p in picked if i <= p < j) if i < j else 0
                    for i, j in runs
                ]
                if all(total <= budget for total, budget in zip(totals, budgets, strict=True)):
                    least = count if least is None else min(least, count)
    found = fewest_quantised(chain, saved, budgets)
    assert (None if found is None else len(found.pieces)) == least


def test_boundaries_may_be_between_nodes_or_around_named_modules() -> None:
    model, ids = on_meta(4)
    nodes = fx_partition.fit(model, ids, devices="4x3MiB", boundaries="nodes")
    assert sum(len(device.modules) for device in nodes.devices) >= 5
    named = fx_partition.fit(model, ids, devices=2, boundaries=["Layers"])
    assert named.devices[0].modules in ((), ("",)) or len(named.devices[0].modules) == 1
    with pytest.raises(fx_partition.PartitionError, match="boundaries names 'Block'"):
        fx_partition.fit(model, ids, devices=2, boundaries=["Block"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": "much"}, "is not a set of devices"),
        ({"devices": "0x80GiB"}, "whole number from 1"),
        ({"devices": "2", "margin": "100%"}, "leaves nothing"),
        ({"devices": "2", "margin": "some"}, "is not a share"),
        ({"devices": "2", "weights": ["int3"]}, "weights names 'int3'"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], words: str) -> None:
    model, ids = on_meta(2)
    with pytest.raises(fx_partition.PartitionError, match=words):
        fx_partition.fit(model, ids, **options)


def test_devices_are_read_as_people_write_them() -> None:
    assert read_devices("2x1GiB,512MiB").sizes == (2**30, 2**30, 2**29)
    assert read_devices(["1GiB", 5]).sizes == (2**30, 5)
    assert (read_devices("1GiB").count, read_devices("1x1GiB").count, read_devices("3").count) == (0, 1, 3)


def test_the_command_reads_a_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(Layers(4).eval(), (torch.zeros(4, dtype=torch.long),)), path)
    assert main(["fit", str(path), "--devices", "2x5MiB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert set(found["devices"][0]) >= {
        "budget_bytes", "weight_bytes", "state_bytes", "activation_bytes", "workspace_bytes", "total_bytes", "modules"
    }  # fmt: skip
    assert found["devices"][0]["modules"][0] == "table"
    assert main(["fit", str(path), "--devices", "1MiB"]) == 0
    assert "does not fit" in capsys.readouterr().out
    assert main(["fit", str(path), "--devices", "2x5MiB", "--batch", "2"]) == 2
    assert "--batch" in capsys.readouterr().err
    assert main(["fit", str(tmp_path / "none"), "--devices", "2x5MiB"]) == 2
    assert "is missing" in capsys.readouterr().err
