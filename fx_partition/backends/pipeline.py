"""From a model to a running pipeline: plan, split, compile each stage for its device, start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from fx_partition.common.errors import PartitionError
from fx_partition.hardware.cores import core_groups, format_group, is_group, parse_group
from fx_partition.passes.capture.capture_model import ExampleInputs, Model, capture, split_inputs
from fx_partition.passes.capture.captured_graph import CapturedGraph, annotated
from fx_partition.passes.capture.metadata_changes import changed_inputs
from fx_partition.passes.capture.module_members import all_tensors
from fx_partition.passes.footprint.analyze import analyze_memory
from fx_partition.passes.footprint.graph_memory import GraphMemory
from fx_partition.passes.plan.make_plan import make_plan
from fx_partition.passes.plan.plan_range import PlanRange
from fx_partition.passes.plan.records import Partition
from fx_partition.passes.plan.request import CacheBytes, Request

from .cuda.resident_budget import resident_request
from .cuda.runtime import CudaRuntime, own_graphs_only
from .devices.home_device import home_of, moves, warn_of_what_stays
from .lowering.dedup_compile import first_with_same_key
from .lowering.states_together import plan_states_together
from .measure.stage_allocation import zeros_of
from .options.backend_options import STAGE_THREADS, check_device
from .streaming.pipeline import Pipeline, check_inflight
from .streaming.program import make_program
from .streaming.request_signature import RequestSignature
from .streaming.session_plan import plan_for_sessions, request_for_sessions, warn_if_beyond
from .streaming.sessions import Sessions, check_sessions
from .threads.aoti_compile import compile_steps
from .threads.build_extension import stage_loop
from .threads.runtime import Cores, LocalRuntime
from .weights.lazy_weights import materialize


def pipeline(
    model: Model,
    example_inputs: ExampleInputs | None = None,
    *,
    cache_bytes: CacheBytes | None = None,
    devices: str | Sequence[str] | None = None,
    dynamic_shapes: Any = None,
    inflight: int | None = None,
    replicate: bool = True,
    sessions: int | None = None,
    inductor: Mapping[str, Any] | None = None,
    cuda_graphs: bool | Sequence[ExampleInputs] = True,
    l2_persistence: bool = True,
    move: bool = False,
    **options: Any,
) -> Pipeline:
    """Split a model into stages, compile each for its device, and start them.

    Args:
        model, example_inputs, cache_bytes, dynamic_shapes, options: see `fx_partition.plan`. Without ``cache_bytes``
            the model is spread over all devices as evenly as possible.
        devices: "cpu:threads": a thread on each group of cores that share a cache (see `hardware.cores.core_groups`);
            or groups by name, ``["cores:0-3", "cores:4-7"]``; or GPUs, ``["cuda:0", "cuda:1"]``, where a GPU may be
            named more than once. None: all visible GPUs; "cpu:threads" where there is no GPU.
        inflight: how many requests may be in flight, at most 65536; ``submit`` waits beyond that. Default: four for
            each stage thread, and at least one for each session.
        replicate: run copies of the largest partitions on devices that are left over.
        sessions: the number of sequences that each have their own state: a copy of all buffers that the model writes,
            such as KV caches. Each request names its session, from 0: ``pipe(token, session=3)``. A stage holds the
            state of all sessions, and all of it counts against its budget. None: all requests share the model's own
            buffers.
        inductor: options of inductor.
        cuda_graphs: capture a request, through all stages, in one CUDA graph, on GPUs. It serves requests of the sizes
            of ``example_inputs``; with ``dynamic_shapes`` a list of further example inputs captures their sizes too,
            and requests of other sizes run without. Where a stage uses the host, stages of static shapes have graphs
            of their own. False: none.
        l2_persistence: keep the weights of stages in L2, on GPUs; needs the package cuda-bindings. A device's name in
            ``cache_bytes`` then stands for no more than the part of its L2 that can be set aside.
        move: have each weight in memory once, on the GPU of its stage. The model's parameters and buffers become the
            tensors that the stages read, so the model is spread over the GPUs, as a model placed by hand, and eager
            calls of it fail; ``state_dict()`` and ``model.to(...)`` work. A weight of several stages is on the GPU of
            the first, and later stages on other GPUs have copies; a weight that no stage reads, or that the model
            returns, stays where it is.

    Returns:
        A running `Pipeline` for inference; use it as a context manager, or close it.

    Raises:
        PartitionError (a ValueError): the model cannot be planned or split, a device does not exist, ``inflight`` is
            not a number from 1 to 65536, the cache directory cannot be used, there are ``sessions`` and the model
            writes no buffer, writes a parameter, or has a keyword argument ``session``, or ``move`` would part tensors
            that share memory.
        ValueError: example inputs in ``cuda_graphs`` do not fit the pipeline's sizes.

    Warns:
        PartitionWarning: the state of all sessions does not fit the budget together with the weights, or a stage runs
            under Python's lock, as it returns a state or calls an operator that only Python knows.

    Example::

        >>> model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(8)))
        >>> with fx_partition.pipeline(model, torch.randn(4, 256), cache_bytes="1MiB") as pipe:  # doctest: +SKIP
        ...     future = pipe.submit(torch.randn(4, 256))
        ...     results = list(pipe.map(torch.randn(4, 256) for _ in range(100)))
    """
    names = _names(devices)
    check_inflight(inflight)
    check_sessions(sessions)
    request = Request.check(cache_bytes, names, replicate=replicate, **options)
    on_gpus = names[0].startswith("cuda")
    if move and not on_gpus:
        raise PartitionError("move=True is for GPUs; stages on cores read the model's own weights, so leave it out")
    sizes = [] if isinstance(cuda_graphs, bool) else list(cuda_graphs)
    patches = dict(inductor or {})
    if on_gpus:
        patches = own_graphs_only(patches)
        if l2_persistence:
            request = resident_request(request, cache_bytes)
    else:
        stage_loop()  # fail before the work of planning where the extension cannot be compiled or kept on disk
    captured = annotated(capture(model, example_inputs, dynamic_shapes))
    home = home_of(captured)
    if home.type != "cpu" and not on_gpus:
        raise PartitionError(
            f"the model is on {home}, and groups of cores run only models on the CPU; call model.cpu() first, or name "
            'GPUs, as in devices=["cuda:0"]'
        )
    for held, node in changed_inputs(captured.gm.graph):
        raise PartitionError(
            f"{node.name} changes the metadata of {captured.names.get(held, held.name)} in place, so the next request "
            "would see another shape; let the model use an operator that returns a new view, such as t() for t_()"
        )
    memory = analyze_memory(captured)
    examples = _examples(model, example_inputs)
    if sessions is not None:
        request = request_for_sessions(captured, memory, request, sessions, examples)
    make = make_plan if sessions is None else plan_for_sessions
    traced = captured
    plan, captured, partitions = plan_states_together(
        traced, memory, request, lambda asked: make(traced, memory, asked), lambda partition: partition.index
    )
    if sessions is not None:
        warn_if_beyond(plan)
    _read_weights(captured, on_gpus)
    program = make_program(captured, partitions, memory.written, sessions=sessions is not None)
    limits = PlanRange.of(plan, "make a pipeline with example inputs of such sizes, or with bind=")
    signature = RequestSignature(captured, program, examples, limits)
    if on_gpus:
        limit = inflight or 4 * plan.num_partitions
        for step in program.steps:
            if step.written:
                raise PartitionError(
                    f"stage {step.index} writes a state (a buffer, a cache), and on a GPU it would write a copy; run "
                    "this model with torch.compile, or on groups of cores"
                )
        targets = [torch.device(partition.device) for partition in plan.partitions]
        if moves(captured, targets):
            warn_of_what_stays(captured)
        gpus = CudaRuntime(
            program,
            targets,
            home,
            limit,
            patches,
            graphs=cuda_graphs is not False,
            persist=l2_persistence,
            examples=[
                *_example_requests(model, example_inputs, captured, memory, signature),
                *((signature.numbers, signature.read(*split_inputs(more))[0]) for more in sizes),
            ],
            move=_movable(model, captured) if move else None,
        )
        return Pipeline(plan, signature, gpus, limit)
    groups = list(map(parse_group, names))
    cores = [
        _cores_of(partition, groups, replicated=not step.written)  # copies would need one state in common
        for partition, step in zip(plan.partitions, program.steps, strict=True)
    ]
    threads = [min(map(len, copies)) for copies in cores]
    codes = compile_steps(program.steps, threads, patches, memory.symbols.bind(request.bind))
    plan = plan.with_code(tuple(first_with_same_key(codes)))
    limit = inflight or max(4 * sum(map(len, cores)), sessions or 0)
    states = None if sessions is None else Sessions(program.states, sessions)
    return Pipeline(plan, signature, LocalRuntime(program, codes, cores, limit), limit, states)


def _read_weights(captured: CapturedGraph, on_gpus: bool) -> None:
    """Read the lazy weights; stages on GPUs read theirs themselves, except those of leaf modules."""
    own = set(map(id, captured.weights.values())) if on_gpus else set()
    tensors = (*captured.weights.values(), *all_tensors(captured.gm).values())
    materialize(tensor for tensor in tensors if id(tensor) not in own)


def _movable(model: Model, captured: CapturedGraph) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a model by all their names."""
    leaves = [str(node.target) for node in captured.gm.graph.find_nodes(op="call_module")]
    if leaves:
        raise PartitionError(
            f"move=True cannot move the weights of {', '.join(leaves)}, which the graph calls as modules; trace the "
            "model with torch.export, or leave move= out"
        )
    if isinstance(model, ExportedProgram):
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return all_tensors(model, every_name=True)


def _example_requests(
    model: Model,
    example_inputs: ExampleInputs | None,
    captured: CapturedGraph,
    memory: GraphMemory,
    signature: RequestSignature,
) -> list[tuple[tuple[int, ...], list[torch.Tensor]]]:
    """Return a request with the example inputs, or with zeros of their sizes where there are none."""
    args, kwargs = split_inputs(example_inputs)
    if example_inputs is None and isinstance(model, ExportedProgram) and model.example_inputs:
        args, kwargs = model.example_inputs
    elif example_inputs is None:
        numbers, cpu = memory.symbols.bind(None), torch.device("cpu")
        inputs = [captured.values[node] for node in captured.gm.graph.find_nodes(op="placeholder")]
        args = tuple(zeros_of(value, numbers, getattr(value, "device", cpu)) for value in inputs)
    try:
        tensors, _ = signature.read(args, kwargs)
    except ValueError:  # the plan is for other sizes, by bind=
        return []
    return [(signature.numbers, tensors)]


def _examples(model: Model, example_inputs: ExampleInputs | None) -> ExampleInputs | None:
    """Return the example inputs that name a request's keyword arguments; an exported program has its own."""
    if example_inputs is None and isinstance(model, ExportedProgram) and model.example_inputs:
        _, keywords = model.example_inputs
        return dict(keywords)
    return example_inputs


def _names(devices: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the devices, all GPUs or all groups of cores."""
    if devices is None and torch.cuda.is_available():
        return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    if devices is None or devices == STAGE_THREADS:
        return tuple(map(format_group, core_groups()))
    names = (devices,) if isinstance(devices, str) else tuple(map(str, devices))
    if names and all(name.startswith("cuda") for name in names):
        return tuple(map(check_device, names))
    unknown = [name for name in names if not is_group(name)]
    if unknown or not names:
        raise PartitionError(
            f"devices= names {', '.join(map(repr, unknown)) or 'no device'}; a pipeline runs on \"cpu:threads\", on "
            'groups of cores, ["cores:0-3", "cores:4-7"], or on GPUs, ["cuda:0", "cuda:1"]'
        )
    try:
        return tuple(format_group(parse_group(name)) for name in names)
    except ValueError as error:
        raise PartitionError(str(error)) from error


def _cores_of(partition: Partition, groups: Sequence[Cores], *, replicated: bool) -> list[Cores]:
    """Return the cores of a partition and of each of its copies."""
    slots = (partition.slot, *(partition.replicas if replicated else ()))
    return [groups[slot % len(groups)] for slot in slots]
