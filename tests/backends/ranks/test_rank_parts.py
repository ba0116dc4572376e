"""Each part of the ranks' runtime: message encoding, comparison of ranks, guards on sizes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sympy
import torch
import torch.distributed as dist
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from fx_partition import PartitionError
from fx_partition.backends.lowering.guard_text import assume_all, guards_from_text, guards_to_text
from fx_partition.backends.options.rank_options import RankOptions
from fx_partition.backends.process_group.consistency import ConsistencyCheck, refuse_differences
from fx_partition.backends.process_group.failures import FailureBoard, RankError
from fx_partition.backends.ranks.message_codec import MessageCodec, decode_number, encode_number
from fx_partition.backends.ranks.schedule import Message
from fx_partition.passes.capture.fake_tensors import ShapeEnv, new_fake_mode

CPU = torch.device("cpu")


class Line:
    """What one rank sends, the other receives."""

    def __init__(self) -> None:
        self.sent: queue.Queue[torch.Tensor] = queue.Queue()

    def send(self, tensor: torch.Tensor, rank: int, tag: int) -> None:
        assert tensor.is_contiguous()
        self.sent.put(tensor)

    def post(self, tensor: torch.Tensor, rank: int, tag: int) -> Receiving:
        return Receiving(self, tensor)


class Receiving:
    def __init__(self, line: Line, tensor: torch.Tensor) -> None:
        self._line, self._tensor = line, tensor

    def wait(self) -> None:
        self._tensor.copy_(self._line.sent.get_nowait())


def env_of(rows: int) -> tuple[ShapeEnv, Any]:
    """A fake tensor of [rows, 8], rows symbolic."""
    env = ShapeEnv()
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    fake = new_fake_mode(env).from_tensor(torch.zeros(rows, 8), symbolic_context=context, source=ConstantSource("x"))
    return env, fake


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "dense": lambda x: x,
    "transposed": lambda x: x.t(),
    "every other column": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 8),
    "empty": lambda x: x[:, :0],
    "number": lambda x: x.sum(),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "strides of the batch": lambda x: x.t()[::2, ::2],
}


@pytest.mark.parametrize("knows_sizes", [True, False])
@pytest.mark.parametrize("view", VIEWS)
def test_a_tensor_arrives_with_its_strides(view: str, knows_sizes: bool) -> None:
    """It does so at sizes other than the traced ones too, whether or not ranks know the symbols of its sizes."""
    _, fake = env_of(4)
    line = Line()
    symbols = [fake.shape[0].node.expr] if knows_sizes else []
    wire = MessageCodec(Message(0, 0, 1, 0, ()), [VIEWS[view](fake)], CPU, 0, symbols)
    assert wire.has_header == (not knows_sizes and view != "number")
    for rows in (4, 7):
        value = VIEWS[view](torch.randn(rows, 8))
        wire.send([value], line)
        (found,) = wire.post(line, [rows] if knows_sizes else []).wait()
        assert torch.equal(found, value) and found.dtype == value.dtype
        assert found.stride() == value.stride() or not value.numel()
        assert line.sent.empty()


def test_shapes_that_are_known_need_no_header() -> None:
    line = Line()
    fake = new_fake_mode(None).from_tensor(torch.zeros(4, 8))
    MessageCodec(Message(0, 0, 1, 0, ()), [fake], CPU, 0).send([torch.zeros(4, 8)], line)
    assert line.sent.qsize() == 1


@pytest.mark.parametrize("value", [0, -3, 2**62, True, False, 0.1, -0.0, float("inf")])
def test_numbers_survive_as_64_bits(value: float) -> None:
    found = decode_number(encode_number(value), type(value))
    assert repr(found) == repr(value)


def test_what_one_rank_assumes_of_sizes_all_do() -> None:
    env, fake = env_of(32)
    before = len(env.guards)
    assert fake.shape[0] >= 16 and fake.shape[0] % 8 == 0
    text = guards_to_text(guard.expr for guard in env.guards[before:])
    other, same = env_of(32)
    assume_all(other, text)
    assert [guard.expr for guard in other.guards] == [guard.expr for guard in env.guards]
    (symbol,) = {s for guard in guards_from_text(text, other) for s in guard.free_symbols}
    assert [guard.subs({symbol: 20}) for guard in guards_from_text(text, other)] == [sympy.true, sympy.false]
    assert same.shape[0].node.expr == symbol


def test_a_guard_that_is_not_a_comparison_is_refused() -> None:
    s = sympy.Symbol("s", positive=True, integer=True)
    with pytest.raises(PartitionError, match="not a comparison"):
        guards_to_text([sympy.Or(s > 3, sympy.Eq(s, 1))])


def test_a_difference_names_the_ranks_and_the_values() -> None:
    documents = [{"torch": "1", "plan": "a"}, {"torch": "1", "plan": "a"}, {"torch": "1", "plan": "b", "x": "3"}]
    with pytest.raises(PartitionError, match=r"not given the same plan: ranks 0, 1: a; rank 2: b"):
        refuse_differences(documents)
    with pytest.raises(PartitionError, match=r"not given the same x: ranks 0, 1: none; rank 2: 3"):
        refuse_differences([{**document, "plan": "a"} for document in documents])
    refuse_differences(documents[:2])


def test_ranks_that_show_signs_of_life_are_waited_for() -> None:
    store = dist.HashStore()
    rolls = [ConsistencyCheck(store, rank, 2, timeout=0.4) for rank in range(2)]
    found: list[Any] = []

    def slow() -> None:
        with rolls[1].alive():
            time.sleep(1.2)
            found.append(rolls[1].exchange({"rank": "1"}, "compile"))

    thread = threading.Thread(target=slow)
    thread.start()
    assert rolls[0].exchange({"rank": "0"}, "compile") == [{"rank": "0"}, {"rank": "1"}]
    thread.join()
    assert found == [[{"rank": "0"}, {"rank": "1"}]]
    with pytest.raises(RankError, match=r"rank 1 did not plan within 0.4 s: all 2 ranks have to call the model"):
        rolls[0].exchange({}, "plan")


def test_the_cause_is_found_along_those_who_waited() -> None:
    store = dist.HashStore()
    boards = [FailureBoard(store, rank, timeout=0.1) for rank in range(4)]
    boards[2].waited(1)
    boards[3].waited(2)
    error = RuntimeError("Connection closed by peer\nand more")
    cause = boards[0].cause(3, {1: "stage 1 (a .. b)"}, error)
    assert cause.startswith("rank 1 (stage 1 (a .. b)) is lost") and "rank 0 waited for rank 3" in cause
    assert "Connection closed by peer" in cause and "more" not in cause
    boards[1].raised("stage 1", ValueError("no"))
    assert boards[0].cause(3, {}, error) == "rank 1 raised in stage 1: ValueError: no"
    boards[0].waited(3)
    store.delete_key("fault/1")
    boards[1].waited(0)  # a ring: nobody is more to blame than who was waited for last
    assert "is lost" in boards[0].cause(3, {}, error)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"devices": "ranks"}, "torchrun"),
        ({"output": "last"}, 'output= is for devices="ranks"'),
        ({"group": "world"}, 'group= is for devices="ranks"'),
        ({"timeout": 3, "devices": ["cpu"]}, 'timeout= is for devices="ranks"'),
    ],
)
def test_options_without_a_process_group(given: dict[str, Any], said: str) -> None:
    with pytest.raises(PartitionError, match=said):
        RankOptions.check(given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"group": "world"}, "'world' is not a process group of this rank"),
        ({"output": "first"}, "choose from all, last"),
        ({"timeout": 0}, "number of seconds"),
        ({"timeout": True}, "number of seconds"),
        ({"replicate": True}, "fx_partition.pipeline"),
    ],
)
def test_options_of_ranks(given: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: 2)
    with pytest.raises(PartitionError, match=said):
        RankOptions.check(given)
    assert RankOptions.check({"devices": "cpu"}) is None
    options = RankOptions.check({})
    assert options and options.names == ("rank 0", "rank 1") and options.timeout == 60
