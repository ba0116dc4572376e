"""Functions that tests run on every rank."""

from __future__ import annotations

import copy
import importlib
import os
import signal
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from forks import in_a_child
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from zoo import FAMILIES, mark_batch

import fx_partition
from fx_partition.backends.process_group import transports
from fx_partition.backends.process_group.rank_team import Team
from fx_partition.backends.ranks import compile as compile_module
from fx_partition.backends.weights.lazy_weights import is_lazy
from fx_partition.report import compiled_plans
from fx_partition.report.compiled_plans import compiled_graphs


class Skips(nn.Module):
    """Layers with a skip over all of them, a second input that the last layer takes, and two results."""

    def __init__(self, layers: int = 6, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        first = hidden = torch.relu(self.layers[0](x))
        for layer in self.layers[1:]:
            hidden = torch.relu(layer(hidden))
        return (hidden + first) * scale, first.mean()


class Rows(nn.Module):
    """Treats each row alone."""

    def __init__(self, layers: int = 4, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        hidden = x
        for layer in self.layers:
            hidden = torch.relu(layer(hidden)).softmax(-1)
        return hidden + x.mean(1, keepdim=True)


class Counter(nn.Module):
    """Writes a state, the caller's ``cache``, and passes a scalar and a size between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        self.calls.add_(1)
        hidden = torch.relu(self.up(x)) + self.calls
        steps = int(x.argmax())
        cache[:, 0] += hidden.sum()
        return self.down(hidden) * steps + cache.sum() + x.shape[0]


# Seconds that a rank waits for another: longer than any compilation takes, and short where a test waits for the end.
PATIENT = 250
BRIEF = 10


def on_ranks(model: nn.Module, **options: Any) -> Any:
    """Compile the model for all ranks."""
    return torch.compile(model, backend="l2partition", options={"devices": "ranks", "timeout": PATIENT, **options})


def start_together() -> None:
    """Return on all ranks at about the same time, with all imported that a first compilation imports.

    A rank shows signs of life only from its first graph on, so what it does before counts against the others' timeout.
    """
    torch.compile(nn.ReLU(), backend="eager")(torch.zeros(2))
    importlib.import_module("torch._inductor.compile_fx")
    dist.barrier()


def like(rank: int, *tensors: Tensor) -> list[Tensor]:
    """The tensors on rank 0; the same shapes without the contents elsewhere."""
    return [tensor.clone() if rank == 0 else torch.zeros_like(tensor) for tensor in tensors]


def close(found: Any, expected: Any) -> bool:
    """Whether results are right; those that this rank does not return count as right."""
    pairs = zip(found, expected, strict=True)
    return all(f is None or torch.allclose(f, e, rtol=1e-4, atol=1e-5) for f, e in pairs)


def skips(rank: int, size: int, output: str, options: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Skips().eval()
    x, scale = torch.randn(4, 64), torch.randn(64)
    run = on_ranks(model, output=output, **options)
    with torch.no_grad():
        expected = model(x, scale)
        found = [run(*like(rank, x, scale)) for _ in range(3)][-1]
    (graph,) = compiled_graphs(run)
    return {
        "right": close(found, expected),
        "returned": [result is not None for result in found],
        "report": fx_partition.report(run),
        "stages": [code_of(stage.graph()) for stage in graph.stages],
    }


def code_of(gm: torch.fx.GraphModule) -> str:
    """The code of a graph with its types, without its comments."""
    lines = gm.print_readable(print_output=False).splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def in_a_group(rank: int, size: int) -> dict[str, Any]:
    """Ranks 1 and 2 work together, count themselves 0 and 1, and rank 0 goes its own way."""
    pair = dist.new_group([1, 2])
    torch.manual_seed(0)
    model, x = Rows().eval(), torch.randn(4, 64)
    run = on_ranks(model, group=pair)
    with torch.no_grad():
        if rank == 0:
            return {"said": error_of(run, x)}
        right = [close([run(*like(rank - 1, x))], [model(x)]) for _ in range(2)]
        said = error_of(on_ranks(model, group=pair, cache_bytes=f"{20 * rank}KiB"), x)
    (graph,) = compiled_graphs(run)
    return {"right": right, "devices": [p.device for p in graph.plan.partitions], "said": said}


def in_overlapping_groups(rank: int, size: int) -> list[bool]:
    """Ranks 0 and 1, then 0 and 2; rank 0 is in more groups than the others are."""
    groups = [dist.new_group([0, 1]), dist.new_group([0, 2])]
    torch.manual_seed(0)
    model, x = Rows().eval(), torch.randn(4, 64)
    with torch.no_grad():
        return [
            close([on_ranks(model, group=groups[i])(*like(dist.get_rank(groups[i]), x))], [model(x)])
            for i, ranks in enumerate([(0, 1), (0, 2)])
            if rank in ranks
        ]


def dynamic(rank: int, size: int) -> dict[str, Any]:
    """Shapes change within range; a rank's own sizes do not count, and nothing is compiled again."""
    torch.manual_seed(0)
    model = Skips().eval()
    run = on_ranks(model)
    scale = torch.randn(64)
    right = []
    with torch.no_grad():
        for rows in (6, 9, 4):
            x = torch.randn(rows, 64)
            given = x if rank == 0 or rows == 6 else torch.zeros(5, 64)
            torch._dynamo.mark_dynamic(given, 0)
            right.append(close(run(given, scale), model(x, scale)))
    return {"right": right, "graphs": len(compiled_graphs(run))}


def microbatches(rank: int, size: int) -> dict[str, Any]:
    """A batch in flight in parts, whole batches of other sizes after it, and one of fewer rows than microbatches."""
    torch.manual_seed(0)
    model = Rows().eval()
    run = on_ranks(model, microbatches=4)
    right = []
    with torch.no_grad():
        for rows in (8, 11, 3):
            x = torch.randn(rows, 5, 64)
            given = x if rank == 0 else torch.zeros(8, 5, 64)
            torch._dynamo.mark_dynamic(given, 0)
            right.append(close([run(given)], [model(x)]))
    return {"right": right, "graphs": len(compiled_graphs(run))}


def checkpoint(rank: int, size: int, path: str) -> dict[str, Any]:
    """A model without memory reads the weights of this rank's stages, and no others."""
    torch._dynamo.reset()  # code compiled for another model of this class serves this one too, and reads nothing
    with torch.device("meta"):
        model = Skips().eval()
    fx_partition.load_stage_weights(model, path)
    whole = Skips().eval()
    whole.load_state_dict(torch.load(path, weights_only=True))
    run = on_ranks(model)
    x, scale = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)), torch.ones(64)
    with torch.no_grad():
        right = close(run(*like(rank, x, scale)), whole(x, scale))
    read = [name for name, weight in model.named_parameters() if not is_lazy(weight)]
    return {"right": right, "read": read, "weights": len(list(model.parameters()))}


def states(rank: int, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Counter().eval()
    single = copy.deepcopy(model)
    x, cache = torch.rand(4, 64), torch.randn(4, 8)
    run = on_ranks(model)
    own = like(rank, x, cache)
    right = []
    with torch.no_grad(), torch._dynamo.config.patch(capture_scalar_outputs=True):
        right += [close([run(*own)], [single(x, cache)]) for _ in range(3)]
    return {"right": right, "cache": rank > 0 or bool(torch.allclose(own[1], cache))}


def refusals(rank: int, size: int) -> dict[str, str]:
    """What every rank says where rank 1 was given something else, or does not come; nothing is compiled."""
    said = {}
    pair = dist.new_group([0, 1])  # the ranks of a group have one timeout
    for what in ("options", "contents", "shape", "version", "gradients", "absent"):
        torch.manual_seed(rank == 1 and what == "contents")
        model = Skips().eval()
        options: dict[str, Any] = {"group": pair, "timeout": BRIEF} if what == "absent" else {}
        run = on_ranks(model, cache_bytes="64KiB" if rank == 1 and what == "options" else "40KiB", **options)
        x = torch.zeros(5 if rank == 1 and what == "shape" else 4, 64)
        version = "1.0" if rank == 1 and what == "version" else torch.__version__
        start_together()
        if rank and what == "absent":
            continue
        with mock.patch.object(torch, "__version__", version), torch.set_grad_enabled(what == "gradients"):
            said[what] = error_of(run, x, torch.zeros(64))
    return said


def faults(rank: int, size: int, how: str) -> dict[str, Any]:
    """What the others say when rank 1 fails in the second call."""
    torch.manual_seed(0)
    model = Skips().eval()
    run = on_ranks(model, timeout=BRIEF)
    x, scale = torch.zeros(4, 64), torch.zeros(64)
    start_together()
    before = held()
    with torch.no_grad():
        if rank == 1 and how == "killed while it compiles":
            compile_module.lower = kill_self
        if how == "killed while it compiles":
            return {"said": [error_of(run, x, scale)]}
        run(x, scale)
        began = time.monotonic()
        if rank == 1 and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == 1 and how == "raises":
            break_stages()
        if rank == 1 and how == "sleeps":
            time.sleep(PATIENT)
        said = [error_of(run, x, scale) for _ in range(2)]
    return {"said": said, "seconds": time.monotonic() - began, "kept": held() - before}


def held() -> set[str]:
    """Sockets of this process that listen or are connected."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return {name for name in map(os.readlink, filter(os.path.islink, links)) if name.startswith("socket:")}


def kill_self(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def family(rank: int, size: int, name: str) -> dict[str, Any]:
    """A model of the zoo at two batches; ranks other than the first get zeros."""
    zoo = FAMILIES[name]
    model = zoo.build()
    run = on_ranks(model)
    errors = []
    with torch.no_grad(), torch._dynamo.config.patch(**zoo.dynamo_config):
        for batch in (3, 2):
            args, kwargs = zoo.inputs(batch)
            expected = zoo.output(model(*args, **kwargs))
            if rank:
                args, kwargs = pytree.tree_map_only(Tensor, torch.zeros_like, (args, kwargs))
            mark_batch((args, kwargs))
            pairs = zip(zoo.output(run(*args, **kwargs)), expected, strict=True)
            errors += [((f - e).abs().max() / e.abs().max().clamp_min(1e-9)).item() for f, e in pairs]
    stages = [len(graph.stages) for graph in compiled_graphs(run)]
    return {"error": max(errors), "stages": stages}


def error_of(run: Any, *inputs: Any) -> str:
    try:
        run(*inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def break_stages() -> None:
    """Let this rank's stages raise."""
    for function in compiled_plans._LIVE:
        for step in function._steps:
            step.code = raise_error


def raise_error(*_: Any) -> Any:
    raise ArithmeticError("no luck")


def together(rank: int, size: int, path: str) -> dict[str, Any]:
    """Several cases in one set of processes, as they take long to start."""
    return {
        "turns": skips(rank, size, "all", {"on_shortage": "wrap", "cache_bytes": "40KiB"}),
        "microbatches": microbatches(rank, size),
        "dynamic": dynamic(rank, size),
        "states": states(rank, size),
        "checkpoint": checkpoint(rank, size, path),
    }


def forked(rank: int, size: int) -> dict[str, Any]:
    """Each rank forks children, which use the team and end; then the ranks talk on."""
    team = Team.current(10, torch.device("cpu"))
    team.connect()
    received, refusals = [], []
    for number in range(2):
        peer, tensor = 1 - rank, torch.empty(1)
        arrival = team.post(tensor, peer, number)
        team.send(torch.tensor([10.0 * rank + number]), peer, number)
        team.finish()
        arrival.wait()
        received.append(tensor.item())
        if number == 0:
            refusals = [in_a_child(lambda: team.begin({})), in_a_child(lambda: Team.current(10, torch.device("cpu")))]
            in_a_child(transports._shut_down)  # which is called when an interpreter ends
    return {"received": received, "refusals": refusals}
