"""Graph modules that write their code when they are called."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.fx import Graph, GraphModule, symbolic_trace

import fx_partition
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.capture.late_code import late_code


class Shift(nn.Module):
    """A model whose code differs from that of any other."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 3 * y


INPUTS = (torch.tensor([-1.0, 2.0]), torch.tensor([5.0, 7.0]))
EXPECTED = torch.tensor([15.0, 23.0])


def late() -> GraphModule:
    with late_code():
        return symbolic_trace(Shift())


def test_code_is_written_by_the_first_call() -> None:
    module = late()
    assert "relu" not in module.code
    assert torch.equal(module(*INPUTS), EXPECTED)
    assert "relu" in module.code
    assert torch.equal(module(y=INPUTS[1], x=INPUTS[0]), EXPECTED)


def test_a_call_inside_the_context_writes_code_and_later_changes_do_not() -> None:
    with late_code():
        module = symbolic_trace(Shift())
        assert torch.equal(module(*INPUTS), EXPECTED)
        assert "relu" in module.code
        again = symbolic_trace(Shift())
        assert "relu" not in again.code


def test_a_changed_graph_is_called_as_it_is_now() -> None:
    with late_code():
        module = symbolic_trace(Shift())
        module(*INPUTS)
        relu = next(node for node in module.graph.nodes if node.target is torch.relu)
        relu.target = torch.neg
        module.recompile()
    assert torch.equal(module(*INPUTS), torch.tensor([16.0, 19.0]))


def test_recompile_behind_the_context_writes_code_at_once() -> None:
    module = late()
    module.recompile()
    assert "relu" in module.code


def test_a_copy_of_a_late_module_is_whole() -> None:
    assert torch.equal(copy.deepcopy(late())(*INPUTS), EXPECTED)


def test_a_text_to_read_is_the_graphs_own() -> None:
    with late_code():
        module = symbolic_trace(Shift())
        assert "relu" in module.print_readable(print_output=False)


def test_other_threads_write_code_at_once() -> None:
    made: list[GraphModule] = []
    with late_code():
        thread = threading.Thread(target=lambda: made.append(symbolic_trace(Shift())))
        thread.start()
        thread.join()
    assert "relu" in made[0].code


def test_a_second_thread_inside_changes_nothing() -> None:
    made: list[GraphModule] = []
    with late_code():
        thread = threading.Thread(target=lambda: made.append(late()))
        thread.start()
        thread.join()
        assert "relu" not in symbolic_trace(Shift()).code  # the other thread has not ended this one's context
    assert "relu" in made[0].code


def test_a_call_of_another_thread_while_the_context_ends_leaves_torch_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, recompile, module = Graph.python_code, GraphModule.recompile, late()
    begun, ended = threading.Event(), threading.Event()

    def slow(self: GraphModule) -> object:
        begun.set()
        assert ended.wait(60)
        return recompile(self)

    results: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: results.append(module(*INPUTS)))
    with late_code():
        monkeypatch.setattr(GraphModule, "recompile", slow)
        thread.start()
        assert begun.wait(60)
    ended.set()
    thread.join()
    assert torch.equal(results[0], EXPECTED)
    assert Graph.python_code is plain


def test_torch_is_as_it_was_behind_an_error() -> None:
    plain = Graph.python_code
    with pytest.raises(ValueError, match="of the trace"), late_code():
        raise ValueError("of the trace")
    assert Graph.python_code is plain


def test_captured_and_split_modules_compute_what_eager_does() -> None:
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    x = torch.randn(2, 8)
    captured = capture(model, (x,))
    assert torch.equal(captured.gm(x), model(x))
    split = fx_partition.split(model, (x,), cache_bytes=1000)
    assert split.plan.num_partitions > 1
    assert "partition_1" in split.code
    assert torch.equal(split(x), model(x))
