"""Build a causal language model from its configuration alone, and capture a prefill of it: few blocks of many.

Weights are on the device "meta". Blocks that differ only in their number are captured once or twice each, and
`repeats` puts the others back; so a model of 126 layers takes as long as one of four.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fx_partition.common.errors import PartitionError

from ..passes.capture.capture_model import capture
from ..passes.capture.captured_graph import CapturedGraph
from ..passes.capture.meta_models import to_fake_cpu
from ..passes.capture.repeated_blocks import differences, find_runs
from ..passes.footprint.graph_memory import GraphMemory

#: The path of the user's model in the captured one.
ROOT = "model"
#: The names that `AttentionInterface` of transformers has for attention without a mask.
_ATTENTION = "fx_partition"
# Of a run of blocks these stay: two that follow a block, to compare, and one behind them.
_HEAD, _TAIL = 3, 1
# Blocks of different kinds that alternate repeat after so many at most; Gemma 3 has five and then one of another kind.
_LONGEST_PERIOD = 8
# Plain attributes in which blocks may differ and still compute the same.
_NUMBERS = {"layer_idx"}


@dataclass(frozen=True)
class Shortened:
    """A list of blocks of which only some are left.

    Attributes:
        path: the list's, in the user's model.
        numbers: the number in the whole list of each block that is left.
        period: after how many blocks the list repeats: 2 where blocks of two kinds alternate.
    """

    path: str
    numbers: tuple[int, ...]
    period: int = 1


@dataclass(frozen=True)
class Prefill:
    """A captured prefill.

    Attributes:
        captured: the graph, with the batch and the length as symbols.
        dims: the names of the symbols' dimensions: {"batch": "input_ids.0", "length": "input_ids.1"}; empty if the
            model has no such graph, and the sizes are those asked for.
        shortened: the lists of blocks that are not whole.
    """

    captured: CapturedGraph
    dims: Mapping[str, str]
    shortened: tuple[Shortened, ...]


def read_config(path: Path) -> Any:
    """Return the configuration of a folder, or of a ``config.json``.

    Raises:
        PartitionError: there is no such file, it is not a configuration, or transformers is not installed.
    """
    place = path / "config.json" if path.is_dir() else path
    if not place.is_file():
        raise PartitionError(f"{place} is missing; name a config.json, or a folder that has one")
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise PartitionError("a config.json is read by transformers: pip install transformers") from error
    try:
        json.loads(place.read_text(encoding="utf-8"))
        return AutoConfig.from_pretrained(place, local_files_only=True)
    except Exception as error:  # transformers does not document what a bad configuration raises
        reason = str(error).split("\n")[0][:200]
        raise PartitionError(f"{place} is not a configuration that transformers can read: {reason}") from error


def build(config: Any, dtype: torch.dtype, device: str = "meta") -> torch.nn.Module:
    """Return the causal language model of a configuration, without memory unless another device is named.

    Raises:
        PartitionError: transformers has no causal language model for it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, _no_mask)
    try:
        with torch.device(device):
            try:
                # A copy, as a model writes the attention into its configuration, also where it then refuses it.
                model: torch.nn.Module = make(copy.deepcopy(config), dtype=dtype, attn_implementation=_ATTENTION)
            except (KeyError, ValueError):  # the model takes no attention but its own
                model = make(copy.deepcopy(config), dtype=dtype)
    except Exception as error:
        reason = str(error).split("\n")[0][:200]
        raise PartitionError(
            f"transformers makes no causal language model of this {type(config).__name__} ({reason}); pass the module "
            "itself with example_inputs="
        ) from error
    return model.eval()


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, **options: Any) -> Any:
    """Compute attention over sequences without padding: causal, without a mask in memory.

    What the kernel of torch does not know (a soft cap of the scores, sinks) fused kernels do without memory.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    known = {name: option for name, option in options.items() if name not in ("softcap", "s_aux")}
    return sdpa_attention_forward(module, query, key, value, None, **known)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


class PrefillModule(torch.nn.Module):
    """Returns the logits of the last token, and the tensors of the cache."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        takes = inspect.signature(model.forward).parameters
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def forward(self, input_ids: torch.Tensor) -> Any:
        out = self.model(input_ids=input_ids, use_cache=True, **self._options)
        kept = getattr(out, "past_key_values", None) or getattr(out, "cache_params", None)  # the second: Mamba's
        layers = getattr(kept, "layers", None) or []
        cache = [leaf for layer in layers for leaf in pytree.tree_leaves(dict(vars(layer)))]
        return out.logits, [leaf for leaf in cache if isinstance(leaf, torch.Tensor)]


def capture_prefill(model: torch.nn.Module, batch: int, length: int, *, whole: bool = False) -> Prefill:
    """Capture a prefill of ``batch`` sequences of ``length`` tokens.

    Args:
        model: as `build` returns it; it is changed.
        batch, length: the sizes; symbolic in the graph, if the model has such a graph.
        whole: whether all blocks are captured.

    Raises:
        PartitionError: torch.export cannot trace the model.
    """
    shortened = () if whole else tuple(_shorten(model))
    module = PrefillModule(model)
    free = torch.export.Dim.DYNAMIC
    # A dimension of 1 would not be symbolic; its number is bound later.
    ids = torch.zeros(max(2, batch), max(2, length), dtype=torch.long, device="meta")
    ids = to_fake_cpu(module, ids)
    dims = {"batch": "input_ids.0", "length": "input_ids.1"}
    with torch.no_grad():
        try:
            captured = capture(module, (ids,), {"input_ids": {0: free, 1: free}})
        except Exception:  # the model computes with its sizes as numbers
            dims = {}
            try:
                captured = capture(module, (ids[:batch, :length].clone(),))
            except Exception as error:
                raise PartitionError(
                    f"torch.export cannot trace a prefill of {type(model).__name__}: {type(error).__name__}: "
                    f"{str(error).splitlines()[0][:200] if str(error) else ''}"
                ) from error
    return Prefill(captured, dims, shortened)


def _shorten(model: torch.nn.Module) -> list[Shortened]:
    """Drop the blocks in the middle of every run of blocks, or groups of blocks, that differ in their number only."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    found = []
    runs = [run.blocks for run in find_runs(model) if set().union(*run.watched.values()) <= _NUMBERS]
    for path, blocks in lists:
        numbers, period = list(range(len(blocks))), 1
        places = {id(block): place for place, block in enumerate(blocks)}
        for run in runs:
            if id(run[0]) in places and len(run) > _HEAD + _TAIL:
                first = places[id(run[0])]
                del numbers[numbers.index(first + _HEAD) : numbers.index(first + len(run) - _TAIL)]
        if len(numbers) == len(blocks) and (found_period := _period(list(blocks))):
            period = found_period
            groups = len(blocks) // period
            del numbers[_HEAD * period : (groups - _TAIL) * period]
        if len(numbers) < len(blocks):
            kept = [blocks[number] for number in numbers]
            del blocks[:]
            blocks.extend(kept)
            found.append(Shortened(path, tuple(numbers), period))
    return found


def _period(blocks: Sequence[torch.nn.Module]) -> int:
    """Return after how many blocks a list of several kinds repeats; 0 if it does not, or has too few to leave any out.

    The last group may be incomplete.
    """
    most = min(_LONGEST_PERIOD, len(blocks) // (_HEAD + _TAIL + 1))
    return next((n for n in range(2, most + 1) if all(map(_are_alike, blocks, blocks[n:]))), 0)


def _are_alike(block: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Return whether two blocks differ in their number only."""
    found = differences(block, other)
    return found is not None and set().union(*found.values()) <= _NUMBERS


def cache_values(prefill: Prefill, memory: GraphMemory) -> dict[int, str]:
    """Return the values that a captured prefill keeps as cache, each with the name of the module that makes it."""
    output = next(iter(reversed(prefill.captured.gm.graph.nodes)))
    logits, *kept = output.all_input_nodes
    own = set(memory.holds.get(logits.name, ()))
    values = {value for node in kept for value in memory.holds.get(node.name, ()) if value not in own}
    return {value: f"{memory.steps[memory.values[value].made_at].path}.cache" for value in values}
