"""A stream of requests through stage threads: results, order, exceptions and the end."""

import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import fx_partition
import fx_partition.hardware.cores
from fx_partition import PartitionError, PartitionWarning

WIDTH = 64


class Layers(nn.Module):
    """Four layers; keyword input, two results, one of them a dictionary's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x, *, scale):
        first = None
        for layer in self.layers:
            x = torch.relu(layer(x)) * scale
            first = x if first is None else first
        return {"last": x, "rest": (first, scale)}


def run_eager(model, *args, **kwargs):
    with torch.no_grad():
        return model(*args, **kwargs)


def stage_threads():
    return [t.name for t in threading.enumerate() if t.name.startswith("fx_partition")]


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    model = Layers().eval()
    inputs = {"x": torch.randn(4, WIDTH), "scale": torch.ones(4, 1)}
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "scale": {0: batch}}
    with fx_partition.pipeline(model, inputs, dynamic_shapes=shapes, inflight=4) as pipe:
        yield model, pipe


def request(batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, WIDTH, generator=generator),
        "scale": torch.rand(batch, 1, generator=generator),
    }


def test_the_model_is_spread_over_the_groups_of_cores(layers):
    _, pipe = layers
    groups = fx_partition.hardware.cores.core_groups()
    assert pipe.plan.num_partitions == min(len(groups), 4)
    assert len({p.device for p in pipe.plan.partitions}) == pipe.plan.num_partitions


@pytest.mark.parametrize("batch", [2, 4, 7, 64])
def test_a_call_gives_what_the_model_gives_at_any_batch(layers, batch):
    model, pipe = layers
    inputs = request(batch)
    result, expected = pipe(**inputs), run_eager(model, **inputs)
    torch.testing.assert_close(result, expected)
    assert list(result) == ["last", "rest"]


@pytest.mark.slow
def test_a_graph_without_shapes_is_taken():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    x = torch.randn(4, 64)
    with fx_partition.pipeline(torch.fx.symbolic_trace(model), x, cache_bytes="20KiB") as pipe:
        assert pipe.plan.num_partitions == 2
        torch.testing.assert_close(pipe(x), run_eager(model, x))


def test_inputs_of_other_strides_are_taken(layers):
    model, pipe = layers
    inputs = request(8)
    inputs["x"] = torch.randn(WIDTH, 8).t()
    torch.testing.assert_close(pipe(**inputs), run_eager(model, **inputs))


def test_map_keeps_the_order_and_takes_no_more_than_is_in_flight(layers):
    model, pipe = layers
    taken = []

    def stream():
        for i in range(40):
            taken.append(i)
            yield request(2 + i % 5, seed=i)

    for i, result in enumerate(pipe.map(stream(), inflight=3)):
        torch.testing.assert_close(result["last"], run_eager(model, **request(2 + i % 5, seed=i))["last"])
        assert len(taken) <= i + 1 + 3


def test_futures_from_several_threads(layers):
    model, pipe = layers
    failures = []

    def client(seed):
        futures = [(i, pipe.submit(**request(3, seed=seed * 100 + i))) for i in range(30)]
        for i, future in futures:
            expected = run_eager(model, **request(3, seed=seed * 100 + i))["last"]
            if not torch.allclose(future.result(timeout=30)["last"], expected, atol=1e-6):
                failures.append((seed, i))

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for client_thread in clients:
        client_thread.start()
    for client_thread in clients:
        client_thread.join()
    assert not failures


def test_an_abandoned_map_leaves_the_pipeline_usable(layers):
    model, pipe = layers
    for _ in pipe.map(request(2, seed=i) for i in range(100)):
        break
    torch.testing.assert_close(pipe(**request(5)), run_eager(model, **request(5)))


def test_a_map_that_is_not_read_on_blocks_no_other_request(layers):
    model, pipe = layers
    results = pipe.map(request(2, seed=i) for i in range(100))
    next(results)
    torch.testing.assert_close(pipe(**request(5)), run_eager(model, **request(5)))


@pytest.mark.parametrize("inflight", [0, -1])
def test_a_map_that_lets_no_request_in_is_refused_at_the_call(layers, inflight):
    _, pipe = layers
    with pytest.raises(PartitionError, match=f"inflight={inflight}.*at least 1"):
        pipe.map([request(2)], inflight=inflight)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.randn(4, WIDTH + 1)}, ValueError, "x.*shape"),
        ({"x": torch.randn(4, WIDTH, dtype=torch.float64)}, ValueError, "x.*float64"),
        ({"x": torch.randn(65, WIDTH), "scale": torch.ones(65, 1)}, ValueError, "65.*64"),
        ({"scale": torch.ones(5, 1)}, ValueError, "scale.*shape"),
        ({"scale": 1.0}, TypeError, "scale.*float"),
        ({"other": 1.0}, TypeError, "other"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_named(layers, change, error, words):
    model, pipe = layers
    with pytest.raises(error, match=words):
        pipe.submit(**(request(4) | change))
    torch.testing.assert_close(pipe(**request(4)), run_eager(model, **request(4)))


class Lookup(nn.Module):
    """An embedding in the first of its stages, so that an index out of range is an error of a stage."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, WIDTH)
        self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, ids):
        return self.layers(self.table(ids))


@pytest.fixture(scope="module")
def lookup():
    model = Lookup().eval()
    with fx_partition.pipeline(model, torch.zeros(3, dtype=torch.long)) as pipe:
        yield model, pipe


def test_an_exception_is_the_model_s_own_and_comes_to_its_request(lookup, capfd):
    model, pipe = lookup
    good, bad = torch.tensor([1, 2, 3]), torch.tensor([1, 99, 3])
    futures = [pipe.submit(bad if i % 5 == 2 else good) for i in range(20)]
    for i, future in enumerate(futures):
        if i % 5 == 2:
            with pytest.raises(IndexError):
                future.result(timeout=30)
        else:
            torch.testing.assert_close(future.result(timeout=30), run_eager(model, good))
    with pytest.raises(IndexError):
        pipe(bad)


def test_map_raises_at_the_request_that_failed_or_hands_the_exception_on(lookup, capfd):
    model, pipe = lookup
    good, bad = torch.tensor([1, 2, 3]), torch.tensor([-50, 2, 3])
    results = pipe.map([good, good, bad, good])
    next(results)
    next(results)
    with pytest.raises(IndexError):
        next(results)
    kinds = [isinstance(r, IndexError) for r in pipe.map([good, bad, good], return_exceptions=True)]
    assert kinds == [False, True, False]
    torch.testing.assert_close(pipe(good), run_eager(model, good))


def test_one_partition_is_replicated_and_keeps_the_order():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()).eval()
    x = torch.randn(2, WIDTH)
    groups = fx_partition.hardware.cores.core_groups()
    with fx_partition.pipeline(model, x, cache_bytes="1GiB") as pipe:
        assert pipe.plan.num_partitions == 1
        assert 1 + len(pipe.plan.partitions[0].replicas) == len(groups)
        assert sum("stage-0" in name for name in stage_threads()) >= len(groups)
        inputs = [torch.randn(2, WIDTH) for _ in range(50)]
        for x, result in zip(inputs, pipe.map(inputs), strict=True):
            torch.testing.assert_close(result, run_eager(model, x))


def test_stages_that_are_alike_share_their_code():
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(4))).eval()
    x = torch.randn(2, WIDTH)
    with fx_partition.pipeline(model, x, devices=["cores:0", "cores:0"]) as pipe:
        assert (pipe.plan.num_partitions, pipe.plan.num_distinct) == (2, 1)
        torch.testing.assert_close(pipe(x), run_eager(model, x))


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.count.add_(1)
        return torch.relu(self.linear(x)), self.count.clone()


def test_a_state_is_written_once_a_request_in_their_order():
    model = Counter().eval()
    x = torch.randn(2, WIDTH)
    with fx_partition.pipeline(model, x, cache_bytes="1GiB") as pipe:
        before = float(model.count)
        counts = [float(count) for _, count in pipe.map([x] * 20)]
    assert before == 0, "making a pipeline ran the model"
    assert counts == list(range(1, 21))
    assert float(model.count) == 20


@torch.library.custom_op("fx_partition_tests::halve", mutates_args=())
def halve(x: torch.Tensor) -> torch.Tensor:
    if bool((x > 1000).any()):
        raise KeyError("too large")
    return x * 0.5


@halve.register_fake
def _(x):
    return torch.empty_like(x)


class Halver(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return halve(self.linear(x))


def test_an_operator_known_to_python_alone_runs_under_its_lock_and_its_exception_is_kept():
    model = Halver().eval()
    x = torch.randn(2, WIDTH)
    with pytest.warns(PartitionWarning, match="no C interface"):
        pipe = fx_partition.pipeline(model, x, cache_bytes="1GiB")
    with pipe:
        torch.testing.assert_close(pipe(x), run_eager(model, x))
        with pytest.raises(KeyError, match="too large"):
            pipe(x * 1e6)
        torch.testing.assert_close(list(pipe.map([x] * 10)), [run_eager(model, x)] * 10)


def test_weights_that_are_loaded_in_place_are_used():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()).eval()
    x = torch.randn(2, WIDTH)
    with fx_partition.pipeline(model, x, cache_bytes="1GiB") as pipe:
        pipe(x)
        model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
        torch.testing.assert_close(pipe(x), run_eager(model, x))


def test_close_leaves_no_thread_and_refuses_requests():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()).eval()
    x = torch.randn(2, WIDTH)
    before = stage_threads()
    pipe = fx_partition.pipeline(model, x, cache_bytes="1GiB")
    future = pipe.submit(x)
    pipe.close()
    pipe.close()
    assert future.done()
    assert stage_threads() == before
    with pytest.raises(RuntimeError, match="closed"):
        pipe.submit(x)


def test_a_pipeline_that_is_forgotten_stops_its_threads():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()).eval()
    before = stage_threads()
    pipe = fx_partition.pipeline(model, torch.randn(2, WIDTH), cache_bytes="1GiB")
    assert stage_threads() != before
    del pipe
    assert stage_threads() == before


def asleep(threads):
    """For each thread the kernel's word for what it does ("S": it sleeps), and how often it was given the processor."""
    found = []
    for thread in threads:
        status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        switches = [int(fields[f"{kind}_ctxt_switches"]) for kind in ("voluntary", "nonvoluntary")]
        found.append((fields["State"].split()[0], sum(switches)))
    return found


def stays_asleep(threads, looks=40):
    """Whether all threads sleep, and none wakes, from one of so many looks to the next, half a second later."""
    for _ in range(looks):
        before = asleep(threads)
        time.sleep(0.5)
        if {state for state, _ in before} == {"S"} and asleep(threads) == before:
            return True
    return False


def test_an_idle_pipeline_uses_no_processor(layers):
    _, pipe = layers
    pipe(**request(4))
    pipe.submit(**request(4)).result()
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("fx_partition")]
    assert len(threads) > 1
    assert stays_asleep(threads)


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["spins", "looks now and then"])
def test_a_thread_that_is_not_parked_is_told_from_one_that_is(pause):
    ended = threading.Event()

    def body():
        while not ended.is_set():
            if pause:
                time.sleep(pause)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        assert not stays_asleep([thread], looks=2)
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": "cores:0,4096"}, "core 4096"),
        ({"devices": ["gpu"]}, "gpu"),
        ({"devices": []}, "no device"),
        ({"inflight": 0}, "inflight"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_options_that_are_none_are_refused_before_anything_starts(options, words):
    before = stage_threads()
    with pytest.raises(PartitionError, match=words):
        fx_partition.pipeline(nn.Linear(4, 4), torch.randn(2, 4), **options)
    assert stage_threads() == before


def _script(body):
    code = textwrap.dedent(
        """
        import os, signal, threading, torch, fx_partition
        signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background may ignore it
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
        pipe = fx_partition.pipeline(model, torch.randn(2, 64), cache_bytes="1GiB")
        """
    ) + textwrap.dedent(body)
    limit = 600  # for one that hangs
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit)


def test_ctrl_c_ends_a_stream_and_the_process():
    result = _script(
        """
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        def forever():
            while True:
                yield torch.randn(2, 64)
        try:
            for _ in pipe.map(forever()):
                pass
        except KeyboardInterrupt:
            pipe.close()
            left = [t.name for t in threading.enumerate() if t.name.startswith("fx_partition")]
            print("interrupted", left)
        """
    )
    assert result.stdout.strip() == "interrupted []", result.stderr
    assert result.returncode == 0


def test_a_process_ends_with_a_pipeline_that_was_not_closed():
    result = _script('pipe.submit(torch.randn(2, 64)); print("end")')
    assert result.stdout.strip() == "end", result.stderr
    assert result.returncode == 0


def test_making_a_pipeline_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        fx_partition.pipeline(model, torch.randn(8, WIDTH), cache_bytes="1GiB").close()
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(dict(model.state_dict()), state)


def test_a_state_that_is_returned_is_that_of_its_request():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(2, WIDTH))
            self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())

        def forward(self, x):
            counted = self.count.add_(x)
            return self.layers(self.count), self.count, counted, self.count[1:], counted.t()

    model, eager, one = Counter().eval(), Counter().eval(), torch.ones(2, WIDTH)
    expected = [[float(leaf.sum()) for leaf in eager(one)[1:]] for _ in range(12)]
    with pytest.warns(PartitionWarning, match="returns a state"):
        pipe = fx_partition.pipeline(model, one, devices=["cores:0"])
    with pipe:
        results = [future.result(60) for future in [pipe.submit(one) for _ in range(6)]]
        results += list(pipe.map(one for _ in range(6)))
    assert [[float(leaf.sum()) for leaf in result[1:]] for result in results] == expected
    assert torch.equal(model.count, eager.count)


@pytest.mark.slow
def test_an_exported_program_keeps_its_keyword_arguments():
    model = Layers().eval()
    x, scale = torch.randn(4, WIDTH), torch.rand(4, 1)
    exported = torch.export.export(model, (x,), {"scale": scale})
    with fx_partition.pipeline(exported, inflight=2) as pipe:
        found = pipe(x, scale=scale)
        with pytest.raises(TypeError, match="those of example_inputs are scale"):
            pipe(x, scales=scale)
    torch.testing.assert_close(found, run_eager(model, x, scale=scale))
