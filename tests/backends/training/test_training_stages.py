"""The stages that one process makes have the right weights, inputs, outputs and errors."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from quantised import example, quantised
from rank_processes.training_runs import Masked, Skips, mean_square
from torch import nn

import fx_partition
from fx_partition.backends.training.placement import rank_of


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone; all stages are its own."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps_of(stages: fx_partition.PipelineStages, microbatches: int, loss: Any) -> Any:
    from torch.distributed.pipelining import ScheduleInterleaved1F1B

    return ScheduleInterleaved1F1B(list(stages), microbatches, loss_fn=loss)


def test_no_process_group_is_refused() -> None:
    with pytest.raises(fx_partition.PartitionError, match=r"init_process_group\(\) first"):
        fx_partition.to_pipeline_stages(Skips(), torch.randn(2, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_stages": 0}, "0 stages for 1 ranks"),
        ({"num_stages": 999}, "too few for 999 partitions"),
        ({"num_stages": "2"}, "must be a whole number of stages"),
        ({"placement": "w"}, "choose from loop, v"),
        ({"devices": 2}, "set num_stages="),
        ({"compile": 3}, "must be True, False, or a mapping"),
        ({"compile": {"no_such_option": 1}}, "inductor has no option 'no_such_option'"),
        ({"device": "nowhere"}, "not a torch device"),
        ({"cache_bytes": ["1MiB", "2MiB"]}, "cache_bytes is a list"),
        ({"cache_bytes": "H100", "objective": "latency"}, "is for inference"),
    ],
)
def test_what_cannot_be_staged_is_refused(one_rank: None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(fx_partition.PartitionError, match=re.escape(message)):
        fx_partition.to_pipeline_stages(Skips(), torch.randn(2, 8), **options)


def test_an_exported_program_without_an_example_is_refused(one_rank: None) -> None:
    x = torch.randn(2, 8)
    program = torch.export.export(Skips(), (x,))
    with pytest.raises(fx_partition.PartitionError, match=r"program\.example_inputs\[0\]"):
        fx_partition.to_pipeline_stages(program, None)
    assert len(fx_partition.to_pipeline_stages(program, program.example_inputs[0], num_stages=2)) == 2


def test_stages_hold_copies_on_another_device_and_make_constants_there(one_rank: None) -> None:
    model, tokens = Masked(), torch.ones(2, 5, dtype=torch.long)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stages = fx_partition.to_pipeline_stages(model, tokens, num_stages=3, device="meta")
    assert all(tensor.is_meta for tensor in stages.state_dict().values())
    assert [stage.device.type for stage in stages] == ["meta"] * 3
    arriving: Any = (tokens.to("meta"),)
    for module in stages.modules:
        arriving = module(*arriving)
    assert arriving.is_meta and arriving.shape == (2, 5, 12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_budget_gives_as_many_stages_as_it_needs(one_rank: None) -> None:
    x = torch.randn(2, 8)
    needed = fx_partition.plan(Skips(), x, cache_bytes="3KiB").num_partitions
    stages = fx_partition.to_pipeline_stages(Skips(), x, cache_bytes="3KiB")
    assert len(stages) == needed == stages.plan.num_partitions >= 3
    with pytest.warns(fx_partition.PartitionWarning, match="more than cache_bytes") as caught:
        fx_partition.to_pipeline_stages(Skips(), x, cache_bytes="3KiB", num_stages=2)
    assert caught[0].filename == __file__


def test_stages_hold_their_own_weights_under_the_models_names(one_rank: None) -> None:
    model = Masked()
    names = set(model.state_dict())
    unread = weakref.ref(model.blocks[2].norm)
    stages = fx_partition.to_pipeline_stages(model, torch.ones(2, 5, dtype=torch.long), num_stages=3)
    keys = [set(module.state_dict()) for module in stages.modules]
    assert set.union(*keys) == names == set(stages.state_dict())
    assert keys[0] & keys[2] == {"embed.weight", "head.weight"} and not keys[0] & keys[1]
    # One memory, a parameter each, and one of them for the optimizer.
    first, last = (stages.modules[i].get_parameter("head.weight") for i in (0, 2))
    assert first is model.embed.weight and last is not first and last.data_ptr() == first.data_ptr()
    assert len(list(stages.parameters())) == len(list(model.parameters()))
    other = Masked().state_dict()
    stages.load_state_dict(other)
    assert all(torch.equal(value, other[key]) for key, value in stages.state_dict().items())
    model.load_state_dict(stages.state_dict())
    with pytest.raises(fx_partition.PartitionError, match=r"lacks 1 keys .*positions"):
        stages.load_state_dict({key: value for key, value in other.items() if key != "positions"})
    kept = weakref.ref(model.blocks[1].up.weight)
    del model, stages, first, last
    gc.collect()
    assert unread() is None and kept() is None


def test_weights_of_a_checkpoint_are_read_and_the_checkpoint_is_not_written(one_rank: None) -> None:
    checkpoint = Skips().state_dict()
    before = {name: tensor.clone() for name, tensor in checkpoint.items()}
    with torch.device("meta"):
        model = Skips()
    fx_partition.load_stage_weights(model, checkpoint)
    stages = fx_partition.to_pipeline_stages(model, torch.randn(2, 8), num_stages=2)
    with torch.no_grad():
        for parameter in stages.parameters():
            parameter.add_(1)
    assert all(torch.equal(checkpoint[name], tensor) for name, tensor in before.items())
    trained = dict(stages.named_parameters())
    assert trained and all(torch.equal(value, before[name] + 1) for name, value in trained.items())


@pytest.mark.parametrize("rows", [torch.export.Dim("rows"), 2 * torch.export.Dim("half")])
def test_a_size_that_one_stage_makes_is_a_number_in_the_next(one_rank: None, rows: Any) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x))) / x.shape[0]

    model, x = Model(), torch.randn(4, 8)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: rows},))
    first, second = fx_partition.to_pipeline_stages(exported, x, num_stages=2).modules
    assert torch.equal(second(*first(x)), model(x))


def test_modes_are_those_of_the_trace(one_rank: None) -> None:
    stage = fx_partition.to_pipeline_stages(nn.Sequential(nn.Linear(8, 8), nn.Dropout()), torch.randn(2, 8))[0].submod
    assert stage.training and stage.train() is stage
    with pytest.raises(fx_partition.PartitionError, match=r"call eval\(\) on the model and make new stages"):
        stage.eval()


def test_keyword_inputs_constants_and_results_of_several_tensors(one_rank: None) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor, keep: torch.Tensor, flag: bool, extra: Any = None) -> dict[str, Any]:
            a = self.a(x)
            b = torch.where(keep, self.b(a), a)
            return {"first": a, "last": self.c(b) if flag else b, "x": x, "none": None}

    model = Model()
    example = {"x": torch.randn(2, 8), "keep": torch.tensor([[True], [False]]), "flag": True, "extra": None}
    stages = fx_partition.to_pipeline_stages(model, example, num_stages=3)
    schedule = steps_of(stages, 2, lambda output, y: mean_square(output[0] + output[1], y))
    batch = {"x": torch.randn(4, 8), "keep": torch.rand(4, 1) > 0.5, "flag": True, "extra": None}
    y = torch.randn(4, 8)
    first, last, x = schedule.step(**batch, target=y)
    stages.reduce_tied_gradients()
    found = {name: p.grad.clone() for name, p in stages.named_parameters()}
    model.zero_grad()
    expected = model(**batch)
    mean_square(expected["first"] + expected["last"], y).backward()
    for got, want in ((first, expected["first"]), (last, expected["last"]), (x, batch["x"])):
        torch.testing.assert_close(got, want)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.randn(6, 8), r"float32 \[3, 8\], and the stages were made for torch.float32 \[2, 8\]"),
        (torch.randn(4, 8).double(), "is torch.float64"),
        (torch.randn(4, 8, requires_grad=True), "requires a gradient"),
    ],
)
def test_other_microbatches_are_refused(one_rank: None, batch: torch.Tensor, message: str) -> None:
    stages = fx_partition.to_pipeline_stages(Skips(), torch.randn(2, 8), num_stages=2)
    with pytest.raises(RuntimeError) as caught:
        steps_of(stages, 2, mean_square).step(batch, target=torch.randn(len(batch), 4))
    assert re.search(message, str(caught.value.__cause__))


def test_a_schedule_of_another_placement_is_refused(one_rank: None) -> None:
    (stage,) = fx_partition.to_pipeline_stages(Skips(), torch.randn(2, 8))
    stage.stage_index_to_group_rank = {0: 1}  # as a schedule that goes around otherwise sets it
    with pytest.raises(fx_partition.PartitionError, match='take placement="v"'):
        stage.clear_runtime_states()


def test_placements() -> None:
    assert [rank_of(s, 2, "v") for s in range(6)] == [0, 1, 1, 0, 0, 1]
    assert [rank_of(s, 2, "loop") for s in range(6)] == [0, 1, 0, 1, 0, 1]


def test_a_stage_that_sends_what_weights_alone_make_gets_its_gradients(one_rank: None) -> None:
    from torch.distributed.pipelining import ScheduleInterleavedZeroBubble

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
            self.rows = nn.Parameter(torch.randn(2, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.softmax(self.b(torch.tanh(self.a(x))), dim=-1)
            rows = torch.tanh(self.rows)
            return torch.sigmoid(self.c(x + rows) + rows)

    model = Model()
    keep = ["linear_1", "softmax", "tanh_1"]
    stages = fx_partition.to_pipeline_stages(model, torch.randn(2, 8), num_stages=3, keep_together=[keep])
    assert [stage.dw_builder is None for stage in stages] == [True, False, True]
    x, y = torch.randn(4, 8), torch.randn(4, 8)
    ScheduleInterleavedZeroBubble(list(stages), 2, loss_fn=mean_square).step(x, target=y)
    stages.reduce_tied_gradients()
    found = {name: p.grad.clone() for name, p in stages.named_parameters()}
    model.zero_grad()
    mean_square(torch.cat([model(x[:2]), model(x[2:])]), y).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_frozen_stages_pass_no_gradients(one_rank: None) -> None:
    model = Skips()
    for parameter in [*model.first.parameters(), *model.hidden[0].parameters()]:
        parameter.requires_grad_(False)
    stages = fx_partition.to_pipeline_stages(model, torch.randn(2, 8), num_stages=4)
    steps_of(stages, 2, mean_square).step(torch.randn(4, 8), target=torch.randn(4, 4))
    with_gradient = {name for name, p in stages.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, p in model.named_parameters() if p.requires_grad and "unread" not in name}


def test_a_stage_holds_a_quantised_weight_under_its_name(one_rank: None) -> None:
    model, x = quantised("Int8WeightOnly", layers=2), example()
    stages = fx_partition.to_pipeline_stages(model, x, num_stages=2)
    found = [stage.submod.state_dict() for stage in stages]
    assert [list(state) for state in found] == [["0.weight", "0.bias"], ["1.weight", "1.bias"]]
    assert found[0]["0.weight"].qdata.data_ptr() == model[0].weight.qdata.data_ptr()
    (middle,) = stages[0].submod(x)
    assert torch.equal(stages[1].submod(middle), model(x))
