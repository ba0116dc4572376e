"""The verb `fit`: does a model fit, where to cut it, on how many devices."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fx_partition.common.errors import PartitionError
from fx_partition.common.units import format_bytes, shown

from ..passes.capture.capture_model import ExampleInputs, capture
from ..passes.capture.captured_graph import CapturedGraph
from ..passes.capture.meta_models import is_on_meta, to_fake_cpu
from ..passes.constraints.module_boundaries import Boundaries, read_boundaries
from ..passes.footprint.analyze import analyze_memory
from ..passes.partitioner.chain import Chain
from ..passes.partitioner.interval_footprint import interval
from . import hugging_face
from .devices import Devices, DeviceSizes, read_devices
from .largest import LIMIT, largest
from .module_graph import ModuleGraph, module_graph
from .placing import Placing, place, used
from .precision import QUANTISED, fewest_quantised, savings
from .repeats import NotRepeatedError, lengthened
from .result import DeviceFit, Fit, Precision
from .stages import device_stages

#: Names of dtypes that people write.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"}
#: The length without a length, where the model allows it.
LENGTH = 4096


@dataclass(frozen=True)
class _Question:
    """A captured model, and the sizes that are asked for.

    Attributes:
        graph: its module graph.
        captured: the graph as it was captured.
        root: the path of the user's model in it.
        shortened: the lists of which it has only some blocks.
        name, dtype: the model in words, and the precision of most weights.
        bind: the sizes of its symbolic dimensions.
        dims: a name for each size, with the dimension; empty where sizes are fixed.
        sizes: the sizes by these names.
        longest: the greatest length that the model allows.
    """

    graph: ModuleGraph
    captured: CapturedGraph
    root: str
    shortened: tuple[hugging_face.Shortened, ...]
    name: str
    dtype: str
    bind: Mapping[str, int]
    dims: Mapping[str, str]
    sizes: Mapping[str, int]
    longest: int


def fit(
    model: torch.nn.Module | ExportedProgram | str | Path,
    example_inputs: ExampleInputs | None = None,
    *,
    devices: Devices,
    dtype: str | torch.dtype | None = None,
    batch: int = 1,
    length: int | None = None,
    margin: float | str | Fraction = 0,
    weights: Sequence[str] = (),
    boundaries: Boundaries = "modules",
    dynamic_shapes: Any = None,
    bind: Mapping[str, int] | None = None,
) -> Fit:
    """Say whether a model fits devices, where to cut it, and what to give up first; nothing is loaded or compiled.

    Each device holds all weights and state of its modules from the start to the end of a call, and at the worst moment
    the activations and the workspace of one step. For a causal language model the call is a prefill: ``batch``
    sequences of ``length`` tokens without padding, with a KV cache of these tokens; it needs more than any decode step
    with the same cache.

    Args:
        model: a ``config.json`` of Hugging Face or a folder that has one (needs transformers); or an nn.Module, which
            may be on "meta", a GraphModule or an ExportedProgram.
        example_inputs: as for `plan`, for a module.
        devices: "2x80GiB", "24GiB,24GiB,16GiB" (in the order in which they run), "80GiB" for as many as needed, or a
            number (2) for the smallest size that suffices.
        dtype: the precision of the weights and activations of a configuration: "bf16"; without it, the
            configuration's own.
        batch, length: sequences, and tokens of each, for a configuration; without a length, 4096 or the most that the
            model allows.
        margin: the share of each device that stays empty: "10%" or 0.1.
        weights: precisions to try, "int8" and "int4" in addition to the model's own. For each, the answer has the
            fewest blocks that must be quantised.
        boundaries: where the model may be cut: "modules" (blocks of a list, such as decoder layers, stay whole),
            "nodes", or a list of classes and paths of modules that stay whole.
        dynamic_shapes, bind: as for `plan`, for a module.

    Raises:
        PartitionError (a ValueError): the model cannot be captured, or an option cannot be read; the message names the
            way out.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8))).to("meta")
        >>> answer = fx_partition.fit(model, torch.zeros(4, 256, device="meta"), devices="2x1200KiB")
        >>> answer.fits, [len(device.modules) for device in answer.devices]
        (True, [4, 4])
    """
    sizes = read_devices(devices, margin)
    tried = _precisions(weights)
    between = read_boundaries(boundaries)
    if isinstance(model, (str, Path)) or (example_inputs is None and _has_config(model)):
        question = _ask_config(model, dtype, batch, length, between)
    else:
        question = _ask_module(model, example_inputs, dynamic_shapes, bind, between)
    return _answer(question, sizes, tried)


def _precisions(weights: Sequence[str]) -> tuple[str, ...]:
    return tuple(DTYPES.get(name, name) for name in ([weights] if isinstance(weights, str) else weights))


def _has_config(model: Any) -> bool:
    return isinstance(model, torch.nn.Module) and hasattr(getattr(model, "config", None), "num_hidden_layers")


def _ask_config(
    model: Any, dtype: Any, batch: int, length: int | None, boundaries: str | tuple[str, ...]
) -> _Question:
    config = hugging_face.read_config(Path(model)) if isinstance(model, (str, Path)) else model.config
    longest = int(getattr(config, "max_position_embeddings", 0) or 2**20)
    length = min(LENGTH, longest) if length is None else length
    for name, number in (("batch", batch), ("length", length)):
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 2**31:
            raise PartitionError(f"{name}={shown(number)} is not a whole number of at least 1")
    if length > longest:
        raise PartitionError(f"length={length} is more than the {longest} tokens that the model allows")
    kind = _dtype(dtype, config)
    # Where blocks are left out, the others have other numbers.
    names = () if isinstance(boundaries, str) else boundaries
    numbered = any(part.isdecimal() for name in names for part in name.split("."))
    graph, prefill = _prefill_graph(config, kind, batch, length, boundaries, whole=numbered)
    bind = {prefill.dims[name]: n for name, n in (("batch", batch), ("length", length)) if name in prefill.dims}
    name = getattr(config, "_name_or_path", "") or type(config).__name__.removesuffix("Config")
    if isinstance(model, (str, Path)):
        path = Path(model)
        name = path.parent.name if path.name == "config.json" and path.parent.name else path.name
    return _Question(
        graph, prefill.captured, hugging_face.ROOT, prefill.shortened, name, str(kind).removeprefix("torch."), bind,
        prefill.dims, {"batch": batch, "length": length}, longest,
    )  # fmt: skip


def _prefill_graph(
    config: Any, kind: torch.dtype, batch: int, length: int, boundaries: str | tuple[str, ...], *, whole: bool
) -> tuple[ModuleGraph, hugging_face.Prefill]:
    prefill = hugging_face.capture_prefill(hugging_face.build(config, kind), batch, length, whole=whole)
    memory = analyze_memory(prefill.captured)
    kept = hugging_face.cache_values(prefill, memory)
    graph = module_graph(prefill.captured, memory, boundaries, hugging_face.ROOT, kept)
    try:
        for shortened in prefill.shortened:
            graph = lengthened(graph, shortened)
    except NotRepeatedError:
        return _prefill_graph(config, kind, batch, length, boundaries, whole=True)
    return graph, prefill


def _dtype(dtype: str | torch.dtype | None, config: Any) -> torch.dtype:
    if dtype is None:
        dtype = getattr(config, "dtype", None) or torch.float32
    found = getattr(torch, DTYPES.get(dtype, dtype), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise PartitionError(f"dtype={shown(dtype)} is not a floating point dtype of torch; write bf16, fp16 or fp32")
    return found


def _ask_module(
    model: Any, example_inputs: ExampleInputs | None, dynamic_shapes: Any, bind: Any, boundaries: str | tuple[str, ...]
) -> _Question:
    name = type(model).__name__
    if isinstance(model, torch.nn.Module) and is_on_meta(model):
        model = copy.deepcopy(model)
        example_inputs = to_fake_cpu(model, example_inputs)
    with torch.no_grad():
        captured = capture(model, example_inputs, dynamic_shapes)
    graph = module_graph(captured, analyze_memory(captured), boundaries)
    dims = {dim: dim for dim in captured.dims}
    numbers = graph.memory.symbols.known_numbers(bind)
    by_dim = {dim: numbers[symbol] for dim, symbol in graph.memory.symbols.dims.items() if symbol in numbers}
    floating = [tensor for tensor in captured.weights.values() if tensor.is_floating_point()]
    kind = max(floating, key=lambda tensor: tensor.numel()).dtype if floating else torch.float32
    dtype = str(kind).removeprefix("torch.")
    return _Question(graph, captured, "", (), name, dtype, by_dim, dims, by_dim, 2**31)


def _answer(question: _Question, sizes: DeviceSizes, tried: Sequence[str]) -> Fit:
    graph = question.graph
    known = (*QUANTISED, question.dtype)
    if unknown := [name for name in tried if name not in known]:
        raise PartitionError(f"weights names {shown(unknown[0])}; choose from {', '.join(known)}, the model's own")
    numbers = graph.memory.symbols.bind(question.bind)
    graph = graph.measured_at(numbers)
    question = replace(question, graph=graph)
    chain = graph.chain(numbers)
    placing = place(chain, sizes)
    budgets = [sizes.usable(size) for size in placing.sizes]
    precisions: list[Precision] = []
    blocks = len({label for label, block in zip(graph.labels, graph.blocks, strict=True) if block})
    taken: tuple[int, ...] = ()
    saved = [0] * len(graph.labels)
    runs = placing.runs
    for name in tried:
        if name not in QUANTISED:
            precisions.append(Precision(name, placing.fits, 0, blocks))
            continue
        each = savings(graph, name)
        found = fewest_quantised(chain, each, budgets)
        precisions.append(Precision(name, found is not None, len(found.pieces) if found else blocks, blocks))
        if found and not placing.fits and not taken:
            taken, saved, runs = found.pieces, each, found.runs
    fits = placing.fits or bool(taken)
    most = _largest(question, budgets, saved if taken else ())
    devices = tuple(
        _device(graph, chain, size, sizes.usable(size), runs[i], runs[i + 1], taken, saved)
        for i, size in enumerate(placing.sizes)
    )
    return Fit(
        fits=fits,
        model=question.name,
        dtype=question.dtype,
        sizes=dict(question.sizes),
        margin=float(sizes.margin),
        devices=devices,
        largest=most,
        precisions=tuple(precisions),
        give_up=() if fits else _ways(graph, chain, sizes, placing, budgets, most),
        note=_note(graph),
        modules=device_stages(question.captured, graph, runs, question.root, question.shortened),
    )


def _device(
    graph: ModuleGraph, chain: Chain, size: int, usable: int, first: int, end: int, taken: Sequence[int],
    saved: Sequence[int],
) -> DeviceFit:  # fmt: skip
    if first == end:
        return DeviceFit(size, usable, 0, 0, 0, 0, 0, ())
    held = interval(chain, graph.starts[first], graph.starts[end])
    less = sum(saved[piece] for piece in taken if first <= piece < end)
    state = sum(size for weight, size in held.weights if weight in graph.memory.state)
    return DeviceFit(
        budget_bytes=size,
        usable_bytes=usable,
        weight_bytes=held.weight - state - less,
        state_bytes=state,
        activation_bytes=held.activation,
        workspace_bytes=held.workspace,
        total_bytes=held.total - less,
        modules=tuple(dict.fromkeys(graph.labels[first:end])),
        quantised=tuple(graph.labels[piece] for piece in taken if first <= piece < end),
    )


def _largest(question: _Question, budgets: Sequence[int], saved: Sequence[int]) -> dict[str, int]:
    return {
        name: largest(
            question.graph, dim, question.bind, budgets, saved, most=question.longest if name == "length" else LIMIT
        )
        for name, dim in question.dims.items()
    }


def _ways(
    graph: ModuleGraph, chain: Chain, sizes: DeviceSizes, placing: Placing, budgets: Sequence[int],
    most: Mapping[str, int],
) -> tuple[str, ...]:  # fmt: skip
    """Return what each alone makes a model fit: sizes first, then precision, then more devices."""
    ways = [f"{name} {number}" for name, number in most.items() if number]
    for name in QUANTISED:
        found = fewest_quantised(chain, savings(graph, name), budgets)
        if found and found.pieces:
            ways.append(f"{len(found.pieces)} blocks with weights in {name}")
            break
    largest_size = max(placing.sizes)
    if placing.oversize is None:
        more = place(chain, DeviceSizes((largest_size,), 0, sizes.margin))
        if more.fits:
            ways.append(f"{len(used(more.runs))} devices of {format_bytes(largest_size)}")
    same = place(chain, DeviceSizes((), len(placing.sizes), sizes.margin))
    ways.append(f"{len(placing.sizes)} devices of {format_bytes(same.sizes[0])}")
    return tuple(ways)


def _note(graph: ModuleGraph) -> str:
    unknown = dict.fromkeys(name for step in graph.memory.steps for name in step.unknown)
    return f"No rule describes the workspace of {', '.join(unknown)}: it counts as none." if unknown else ""
