"""All names that the backend uses of torch's private modules, in one place.

Tried on torch 2.11.0, 2.13.0 and 2.14.1.

- ``torch._inductor.compile_fx.compile_fx``: inductor's entry point for a graph; ``torch._inductor.compile`` drops the
  distinction between a tuple and a list that Dynamo relies on.
- ``torch._inductor.list_mode_options``: the options of ``mode="reduce-overhead"``.
- ``torch._dynamo.exc.RestartAnalysis``: how inductor asks Dynamo to trace again with other specialisations; a backend
  must let it pass.
- ``torch._inductor.decomposition.select_decomp_table``: inductor's decompositions of operators; their results may have
  other strides than those of the operators.
- ``torch._guards``: each stage gets a tracing context of its own. A shared one overwrites ``fw_metadata``, which the
  lazily compiled backward needs.
- ``torch._inductor.aot_compile``: a shared object with the C interface of AOTInductor from a graph of torch.fx; the
  documented ``aoti_compile_and_package`` takes only an exported program, which a stage is not.
- The ``config`` modules of inductor, AOTAutograd and symbolic shapes, ``torch._inductor.cpp_builder`` and
  ``torch.version.git_version``: what compiled code depends on besides its graph.
- ``torch._C._aoti``: tensors to and from the handles of that interface, as in code that inductor generates.
- ``torch.distributed.distributed_c10d._get_default_store``: the store of the default process group, by which ranks
  reach one another when their connections have failed.
- ``torch.distributed.ProcessGroupGloo`` and ``ProcessGroupNCCL``: transports without a process group, and with NCCL the
  ``_timeout`` of its options (tried on 2.13.0 and 2.14.1, NCCL by reading).
- ``vars(FakeTensor)``: notes of a fake tensor besides its shape, such as memos of symbols.
- ``node._dynamo_source``: the place in the model from which Dynamo read an input: its name for the user.
"""

from __future__ import annotations

import datetime
import difflib
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch._functorch.config as autograd_config
import torch.distributed
import torch.fx
import torch.fx.experimental._config as sizes_config
from torch._C import _aoti
from torch._dynamo.exc import RestartAnalysis
from torch._guards import TracingContext, tracing
from torch._inductor import aot_compile, config, list_mode_options
from torch._inductor.compile_fx import compile_fx
from torch._inductor.cpp_builder import get_compiler_version_info, get_cpp_compiler
from torch._inductor.decomposition import select_decomp_table
from torch.utils._python_dispatch import TorchDispatchMode

from fx_partition.passes.capture.fake_tensors import FakeTensor
from fx_partition.passes.capture.tensor_subclasses import plain_tensors

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # absent in builds without torch.distributed
else:
    Store = Any

CompiledFunction = Callable[..., Any]

__all__ = [
    "InductorDecompositions",
    "RestartAnalysis",
    "Store",
    "binds_addresses",
    "caches_are_off",
    "compile_graph",
    "compile_native",
    "compile_part",
    "compiler_settings",
    "compiler_versions",
    "fake_notes",
    "inductor_options",
    "is_static_input",
    "new_transport",
    "source_name",
    "static_input_type",
    "store_of_world",
    "tensors_of",
    "to_handles",
    "training_patches",
]


def inductor_options(mode: str | None, options: Mapping[str, Any], dynamic: bool) -> dict[str, Any]:
    """Return inductor's configuration for a mode of torch.compile, overlaid with the user's options of inductor.

    Raises:
        ValueError: inductor does not have an option.
    """
    patches: dict[str, Any] = {}
    if mode and mode != "default":
        patches |= list_mode_options(mode, dynamic)
    known = config.get_config_copy()
    for name, value in options.items():
        key = name.replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, 3)
            hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
            raise ValueError(f"inductor has no option {name!r}; {hint}torch._inductor.list_options() names all")
        patches[key] = value
    return patches


def compile_graph(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> CompiledFunction:
    """Compile a whole Dynamo graph, as ``backend="inductor"`` does; ``gm`` belongs to inductor afterwards."""
    compiled = compile_fx(gm, example_inputs, config_patches=dict(patches))
    assert callable(compiled)
    return compiled


def compile_part(
    gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]
) -> CompiledFunction:
    """Compile a part of a Dynamo graph in a tracing context of its own; ``gm`` belongs to inductor afterwards.

    Args:
        example_inputs: fake tensors (with the fake mode of the Dynamo graph), real tensors and SymInts.
    """
    tensors = [plain for t in example_inputs if isinstance(t, torch.Tensor) for plain in plain_tensors(t)]
    modes = [tensor.fake_mode for tensor in tensors if isinstance(tensor, FakeTensor)]
    with tracing(TracingContext(modes[0] if modes else None)):
        return compile_graph(gm, example_inputs, patches)


def compile_native(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], patches: Mapping[str, Any]) -> str:
    """Compile a graph to a shared object without Python, and return its path; ``gm`` belongs to inductor afterwards.

    Args:
        example_inputs: only fake tensors.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*LeafSpec")  # torch's own use of it
        path = aot_compile(gm, tuple(example_inputs), options=dict(patches))
    assert isinstance(path, str)
    return path


class InductorDecompositions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """A mode in which operators run by inductor's decompositions, so that fake results have the strides of its code."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._table = select_decomp_table()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        decomposition = self._table.get(func)
        if decomposition is not None:
            with self:
                result = decomposition(*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))


def compiler_settings() -> dict[str, dict[str, Any]]:
    """Return all settings that a compilation may read, by module and name.

    torch's own list of the settings that matter leaves out custom passes, as torch hashes these apart.
    """
    settings = {
        module.__name__: dict(module.get_config_copy())
        for module in (config, autograd_config, sizes_config)
    }
    # Compilation writes notes here that do not change the code.
    settings[config.__name__].pop("aot_inductor.metadata", None)
    return settings


def compiler_versions() -> tuple[str | None, ...]:
    """Return the versions of torch, of its source, and of the C++ compiler that inductor calls."""
    return str(torch.__version__), torch.version.git_version, get_compiler_version_info(get_cpp_compiler())


def caches_are_off(patches: Mapping[str, Any]) -> bool:
    """Return whether torch's caches of code are off: by ``TORCHINDUCTOR_FORCE_DISABLE_CACHES=1`` or by an option."""
    return bool(patches.get("force_disable_caches", config.force_disable_caches))


def store_of_world() -> Store | None:
    """Return the store of the default process group, or None where there is no group."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    store: Store = torch.distributed.distributed_c10d._get_default_store()
    return store


def new_transport(
    name: str, store: Store, members: Sequence[int], rank: int, kind: str, timeout: datetime.timedelta
) -> Any:
    """Return a transport among some ranks, as `torch.distributed.new_group` makes it for a group.

    Args:
        name: the prefix in the store under which these ranks meet.
        members: the numbers of the ranks in the world, for torch's logs.
        rank: the position of this rank among them.
        kind: "cpu" for gloo, another device type for NCCL.
    """
    apart = torch.distributed.PrefixStore(f"{name}/", store)  # type: ignore[attr-defined]
    if kind == "cpu":
        return torch.distributed.ProcessGroupGloo(apart, rank, len(members), timeout)
    options = torch.distributed.ProcessGroupNCCL.Options()
    options._timeout, options.global_ranks_in_group = timeout, list(members)
    options.group_name = name  # type: ignore[assignment]  # torch's name for a str
    return torch.distributed.ProcessGroupNCCL(apart, rank, len(members), options)


def to_handles(tensors: list[torch.Tensor]) -> list[Any]:
    """Return new handles of tensors, in capsules; the caller must use or delete each handle once."""
    handles: list[Any] = _aoti.unsafe_alloc_void_ptrs_from_tensors(tensors)
    return handles


def tensors_of(handles: list[Any]) -> list[torch.Tensor]:
    """Return the tensors of handles; the handles must not be used afterwards."""
    tensors: list[torch.Tensor] = _aoti.alloc_tensors_by_stealing_from_void_ptrs(handles)
    return tensors


def training_patches(outputs: Sequence[Any], patches: Mapping[str, Any]) -> dict[str, Any]:
    """Return inductor's options with one that keeps a stage's backward right on a CPU, for the results of the stage.

    In torch 2.13 a vectorised scatter (the gradient of an embedding) writes out of bounds when its source is read
    transposed and more than one thread runs (pytorch#191837; plain inductor does it too). A stage that returns a
    tensor with permuted strides makes such a source of its incoming gradient, so its code is not vectorised.
    """
    permuted = any(
        isinstance(value, torch.Tensor)
        and value.requires_grad
        and value.device.type == "cpu"
        and not value.is_contiguous()
        for value in outputs
    )
    if permuted and torch.is_grad_enabled():
        return {"cpp.simdlen": 1, **patches}
    return dict(patches)


def source_name(placeholder: torch.fx.Node) -> str:
    """Return where Dynamo read an input: ``"L['self']._modules['fc']._parameters['weight']"``; "" for its own."""
    source = getattr(placeholder, "_dynamo_source", None)
    if source is None:
        return ""
    name = source.name
    return str(name() if callable(name) else name)  # a method until torch 2.9


def is_static_input(placeholder: torch.fx.Node) -> bool:
    """Return whether Dynamo knows that an input stays at its address: a parameter, a buffer, a static cache."""
    return static_input_type(placeholder) is not None


def static_input_type(placeholder: torch.fx.Node) -> str | None:
    """Return Dynamo's mark of an input that stays at its address, "guarded" or "unguarded"; None for other inputs."""
    mark = placeholder.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
    return None if mark is None else str(mark)


# Attributes that every fake tensor has. Those of memos that say whether they are up to date are skipped below: reading
# a memo checks them.
_OF_EVERY_FAKE = {"fake_mode", "_fake_device", "pytype", "dispatch_keys"}


def fake_notes(value: FakeTensor) -> dict[str, Any]:
    """Return the notes of a fake tensor besides its shape: the symbol of its ``item()``, its constant, marks of Dynamo.

    Most have none: ``{}``.
    """
    notes = {}
    for name, note in vars(value).items():
        if name in _OF_EVERY_FAKE or name.endswith(("_memo_vc", "_memo_epoch")):
            continue
        if name.endswith("_memo"):
            note = getattr(value, name.lstrip("_"))
        if note is not None:
            notes[name] = note
    return notes


def binds_addresses(patches: Mapping[str, Any]) -> bool:
    """Return whether compiled code can run only with the tensors that it was made for.

    CUDA graphs replay addresses, and freezing makes constants of weights.
    """
    return any(
        patches.get(name, operator.attrgetter(name)(config)) for name in ("triton.cudagraphs", "freezing")
    )
