"""Sessions of a pipeline: each sequence has a state of its own; the oracle is a copy of the eager model for each."""

from __future__ import annotations

import copy
import dataclasses
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fx_partition
from fx_partition import OversizeError, PartitionError, PartitionWarning, Pipeline, Plan
from fx_partition.backends import pipeline as entry
from fx_partition.backends.streaming.program import ProgramStep
from fx_partition.backends.threads.aoti_compile import Code, _with_handles
from fx_partition.hardware.cores import allowed_cores
from fx_partition.passes.capture.capture_model import capture
from fx_partition.passes.verify.check import find_faults

WIDTH, LENGTH, VOCAB, SESSIONS = 16, 12, 32, 4
STATE = 4 * (LENGTH * WIDTH * 4 + 8)  # four layers, each with keys in float32 and a counter
TOKEN = (torch.tensor([[1]]), torch.tensor([0]), torch.tensor([0]))


class Layer(nn.Module):
    """Attention over keys that it keeps; it counts its calls."""

    keys: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("keys", torch.zeros(1, LENGTH, WIDTH))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        query = self.query(x)
        self.keys.index_copy_(1, position, query)
        self.count.add_(1)
        return x + self.out(torch.softmax(query @ self.keys.transpose(1, 2), -1) @ self.keys)


class Decoder(nn.Module):
    """One token in, logits out; ``style`` is looked up between the second and the third layer, and may be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.styles, self.head = nn.Embedding(VOCAB, WIDTH), nn.Embedding(3, WIDTH), nn.Linear(WIDTH, VOCAB)
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, token: Tensor, position: Tensor, style: Tensor) -> Tensor:
        x = self.embed(token)
        for i, layer in enumerate(self.layers):
            if i == 2:
                x = x + self.styles(style)
            x = layer(x, position)
        return self.head(x)


def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder().eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.keys.normal_()  # what a session starts with, and what no session may write
    return model


class Eager:
    """Stages that run in eager mode on their threads; ``before[i]`` is called before stage i runs."""

    def __init__(self) -> None:
        self.before: dict[int, Callable[[], object]] = {}

    def compile_steps(self, steps: Sequence[ProgramStep], *_: Any) -> list[Code]:
        return [Code(None, _with_handles(self._function(step), step)) for step in steps]

    def _function(self, step: ProgramStep) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            self.before.get(step.index, lambda: None)()
            return step.module(*inputs)

        return call


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Eager:
    found = Eager()
    monkeypatch.setattr(entry, "compile_steps", found.compile_steps)
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The oracle computes with one thread, as each stage does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stages(count: int) -> list[str]:
    cores = allowed_cores()
    return [f"cores:{cores[i % len(cores)]}" for i in range(count)]


def decoding(model: nn.Module | None = None, **options: Any) -> Pipeline:
    made = {"devices": stages(3), "sessions": SESSIONS, **options}
    return fx_partition.pipeline(model or decoder(), TOKEN, **made)


class Oracle:
    """A copy of the eager model for each session, called one request after another."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.copies: dict[int, nn.Module] = defaultdict(lambda: copy.deepcopy(model))

    def __call__(self, *request: Tensor, session: int) -> Tensor | type[Exception]:
        try:
            with torch.no_grad():
                result: Tensor = self.copies[session](*request)
                return result
        except IndexError:
            return IndexError

    def reset(self, session: int) -> None:
        self.copies[session] = copy.deepcopy(self._model)


def same(found: Any, expected: Any) -> bool:
    return found is expected or torch.equal(found, expected)


def outcome(future: Any) -> Tensor | type[Exception]:
    error = future.exception(60)
    return type(error) if error else future.result()


def check_states(pipe: Pipeline, oracle: Oracle) -> None:
    for session in range(SESSIONS):
        expected = dict(oracle.copies[session].named_buffers())
        state = pipe.state(session)
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected), session


@pytest.mark.usefixtures("eager", "one_thread")
@pytest.mark.parametrize("seed", range(4))
def test_sessions_in_any_order_are_copies_of_the_model(seed: int) -> None:
    """Requests with errors in the middle of the model, and resets, among others in flight."""
    draw = random.Random(seed)
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    oracle, found, expected = Oracle(model), [], []
    length = [0] * SESSIONS
    with decoding(model) as pipe:
        assert pipe.plan.num_partitions == 3
        for _ in range(60):
            session = draw.randrange(SESSIONS)
            if length[session] == LENGTH or draw.random() < 0.05:
                pipe.reset(session)
                oracle.reset(session)
                length[session] = 0
            style = 99 if draw.random() < 0.15 else draw.randrange(3)
            request = (torch.tensor([[draw.randrange(VOCAB)]]), torch.tensor([length[session]]), torch.tensor([style]))
            length[session] += 1
            found.append(pipe.submit(*request, session=session))
            expected.append(oracle(*request, session=session))
        assert all(same(outcome(f), e) for f, e in zip(found, expected, strict=True))
        assert IndexError in expected and sum(isinstance(e, Tensor) for e in expected) > 30
        check_states(pipe, oracle)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("one_thread")
def test_requests_of_two_sessions_are_in_flight_at_once(eager: Eager) -> None:
    model = decoder()
    oracle, second = Oracle(model), threading.Event()
    starts = iter([lambda: None, second.set])
    eager.before = {0: lambda: next(starts)(), 1: lambda: second.wait(60)}
    with decoding(model) as pipe:
        # The first request cannot leave the second stage before the other session's is in the first.
        futures = [pipe.submit(*TOKEN, session=session) for session in (0, 1)]
        assert all(same(outcome(f), oracle(*TOKEN, session=s)) for s, f in enumerate(futures))
    assert second.is_set()


@pytest.mark.usefixtures("one_thread")
def test_a_reset_leaves_requests_in_flight_their_state(eager: Eager) -> None:
    model = decoder()
    oracle, go = Oracle(model), threading.Event()
    requests = [(torch.tensor([[token]]), torch.tensor([token]), torch.tensor([0])) for token in range(3)]
    with decoding(model) as pipe:
        assert same(pipe(*requests[0], session=2), oracle(*requests[0], session=2))
        eager.before = {1: lambda: go.wait(60)}
        going = pipe.submit(*requests[1], session=2)
        pipe.reset(2)
        fresh = pipe.submit(*requests[2], session=2)
        go.set()
        assert same(outcome(going), oracle(*requests[1], session=2))
        oracle.reset(2)
        assert same(outcome(fresh), oracle(*requests[2], session=2))
        check_states(pipe, oracle)


@pytest.mark.usefixtures("eager", "one_thread")
def test_a_state_that_is_written_from_outside_goes_on_from_there() -> None:
    """As after a prompt that ran elsewhere."""
    model = decoder()
    oracle = Oracle(model)
    tokens = [(torch.tensor([[token]]), torch.tensor([token]), torch.tensor([1])) for token in range(5)]
    with decoding(model) as pipe:
        for request in tokens[:4]:
            oracle(*request, session=1)
        for name, tensor in oracle.copies[1].named_buffers():
            pipe.state(1)[name].copy_(tensor)
        assert same(pipe(*tokens[4], session=1), oracle(*tokens[4], session=1))
        check_states(pipe, oracle)
        results = list(pipe.map(tokens, session=3))
    assert all(same(y, oracle(*request, session=3)) for request, y in zip(tokens, results, strict=True))


@pytest.mark.usefixtures("eager")
def test_state_of_inference_mode_may_be_written_outside_of_it() -> None:
    with torch.inference_mode():
        pipe = decoding()
        pipe.reset(0)
    with pipe:
        first = pipe(*TOKEN, session=0)
        assert same(pipe(*TOKEN, session=1), first)


class Returned(nn.Module):
    """Returns its state, a view of it, and what two buffers of one storage say of each other."""

    count: Tensor
    second: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(2, WIDTH))
        self.register_buffer("second", self.count[1])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.second.add_(1)
        counted = self.count.add_(x)
        return self.linear(self.count), self.count, counted.t(), self.second


@pytest.mark.usefixtures("eager", "one_thread")
def test_a_state_that_is_returned_is_that_of_its_request_and_session() -> None:
    model, x = Returned().eval(), torch.randn(2, WIDTH)
    with torch.no_grad():
        copies = [copy.deepcopy(model) for _ in range(2)]
        for twin in copies:
            twin.second = twin.count[1]
        order = (0, 1, 0, 0, 1)
        expected = [[leaf.clone() for leaf in copies[session](x * (session + 1))] for session in order]
    with fx_partition.pipeline(model, x, devices=stages(2), sessions=2) as pipe:
        futures = [pipe.submit(x * (session + 1), session=session) for session in order]
        for future, leaves in zip(futures, expected, strict=True):
            assert all(map(torch.equal, future.result(60), leaves))
    assert not model.count.any()


def without_session(pipe: Pipeline) -> object:
    return pipe(*TOKEN)


@pytest.mark.usefixtures("eager")
def test_a_session_that_is_none_starts_nothing() -> None:
    model = decoder()
    oracle = Oracle(model)
    with decoding(model) as pipe:
        for session in (-1, SESSIONS, True, 1.0, "0", None):
            with pytest.raises(PartitionError, match="not a session of this pipeline; they are numbered from 0 to 3"):
                pipe(*TOKEN, session=session)
            with pytest.raises(PartitionError, match="not a session"):
                pipe.reset(session)  # type: ignore[arg-type]
            with pytest.raises(PartitionError, match="not a session"):
                pipe.state(session)  # type: ignore[arg-type]
        for use in (without_session, lambda pipe: pipe.submit(*TOKEN), lambda pipe: list(pipe.map([TOKEN]))):
            with pytest.raises(TypeError, match="says with session="):
                use(pipe)
        for session in range(SESSIONS):
            oracle.reset(session)
        check_states(pipe, oracle)


@pytest.mark.usefixtures("eager")
def test_a_pipeline_without_sessions_says_how_to_have_them() -> None:
    with decoding(sessions=None) as pipe:
        with pytest.raises(TypeError, match=r"sessions=8"):
            pipe(*TOKEN, session=0)
        for use in (pipe.reset, pipe.state):
            with pytest.raises(PartitionError, match=r"has no sessions; .*sessions=8"):
                use(0)


class Keyword(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *, session: Tensor) -> Tensor:
        self.count.add_(1)
        y: Tensor = self.linear(session) + self.count
        return y


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.add_(1)
        return x * self.scale


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("model", "inputs", "options", "words"),
    [
        (nn.Linear(WIDTH, WIDTH), torch.randn(1, WIDTH), {}, "this model writes none"),
        (Trained(), torch.randn(1, WIDTH), {}, "writes scale, a parameter"),
        (Keyword(), {"session": torch.randn(1, WIDTH)}, {}, "keyword argument session"),
        (Decoder(), TOKEN, {"cache_bytes": "EdgeTPU", "objective": "throughput"}, "leave objective= out"),
        (Decoder(), TOKEN, {"sessions": 0}, "sessions=0 must be"),
        (Decoder(), TOKEN, {"sessions": True}, "sessions=True must be"),
        (Decoder(), TOKEN, {"sessions": 1.5}, "sessions=1.5 must be"),
        (Decoder(), TOKEN, {"sessions": 1 << 17}, "must be a whole number from 1 to 65536"),
    ],
)
def test_sessions_that_cannot_be_are_refused(model: nn.Module, inputs: Any, options: Any, words: str) -> None:
    with pytest.raises(PartitionError, match=words):
        fx_partition.pipeline(model.eval(), inputs, **{"sessions": 2, "devices": stages(2), **options})


@pytest.mark.usefixtures("eager")
def test_a_keyword_of_the_model_called_session_is_the_model_s() -> None:
    model, x = Keyword().eval(), torch.randn(1, WIDTH)
    with fx_partition.pipeline(model, {"session": x}, devices=stages(1)) as pipe:
        assert torch.equal(pipe(session=x), model.linear(x) + 1)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "options",
    [
        {}, {"footprint": "fused"}, {"footprint": "sum"}, {"oversize": "slice"}, {"memory": "device"},
        {"memory": "device", "footprint": "fused"},
    ],
)  # fmt: skip
def test_the_state_of_all_sessions_counts(options: dict[str, Any]) -> None:
    model = decoder()
    for sessions in (1, 5):
        with decoding(model, sessions=sessions, cache_bytes="24KiB", **options) as pipe:
            plan = pipe.plan
        assert sum(partition.state_bytes for partition in plan.partitions) == sessions * STATE
        assert plan.sessions == sessions and Plan.from_json(plan.to_json()) == plan
        captured = capture(model, TOKEN)
        assert find_faults(captured, plan) == []
        assert find_faults(captured, dataclasses.replace(plan, sessions=2))
    assert f"The state is that of 5 sessions: {5 * STATE / 1024:.2f}".rstrip("0") in fx_partition.report(plan)


@pytest.mark.usefixtures("eager")
def test_a_budget_that_the_state_exceeds_is_told() -> None:
    with decoding(cache_bytes="8KiB", sessions=1, devices=stages(4)) as pipe:
        assert not pipe.plan.spill_bytes
    with pytest.warns(PartitionWarning, match=r"exceeds its budget of 8 KiB by .* the state of 64 sessions"):
        decoding(cache_bytes="8KiB", sessions=64, devices=stages(4)).close()
    with pytest.raises(OversizeError, match="the state of 64 sessions counts"):
        decoding(cache_bytes="8KiB", sessions=64, oversize="error")


@pytest.mark.slow
@pytest.mark.filterwarnings("error::fx_partition.PartitionWarning")  # a stage would run under Python's lock
def test_compiled_stages_write_the_state_of_their_session(capfd: pytest.CaptureFixture[str]) -> None:
    model = decoder()
    before = copy.deepcopy(model.state_dict())
    oracle, futures = Oracle(model), []
    with decoding(model, devices=stages(2)) as pipe:
        for position in range(3):
            for session in (2, 0, 1):
                style = 99 if (position, session) == (1, 0) else 0  # looked up in the second stage
                request = (torch.tensor([[position + session]]), torch.tensor([position]), torch.tensor([style]))
                futures.append((pipe.submit(*request, session=session), oracle(*request, session=session)))
        for future, expected in futures:
            found = outcome(future)
            if isinstance(expected, Tensor):
                torch.testing.assert_close(found, expected)
            else:
                assert found is expected
        for session in (1, 2):
            torch.testing.assert_close(pipe.state(session), dict(oracle.copies[session].named_buffers()))
        pipe.reset(0)
        oracle.reset(0)
        torch.testing.assert_close(pipe(*TOKEN, session=0), oracle(*TOKEN, session=0))
    assert "index out of bounds" in capfd.readouterr().err
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
