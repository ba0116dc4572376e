"""Compare the number of devices by formula with plans of real graphs on the meta device."""

from __future__ import annotations

import math
import warnings

import torch
from tabulate import tabulate

import fx_partition
from fx_partition import PartitionWarning

from .decode import Model, Stage
from .layouts import on_chip
from .shapes import BF16, LLAMA_8B, LLAMA_70B, Shape

CASES = (
    (LLAMA_8B, ("IPU-GC200", "MI300X", "GroqLPU1", "B200", "H100-SXM")),
    (LLAMA_70B, ("IPU-GC200", "GroqLPU1")),
)  # fmt: skip


def graph(shape: Shape) -> torch.export.ExportedProgram:
    """Return one token through a model of this shape in bf16, without a cache; no memory is allocated."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head, use_cache=False, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).bfloat16().eval()
    inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long, device="meta")}
    return torch.export.export(model, (), inputs, strict=False)


def partitions(program: torch.export.ExportedProgram, device: str) -> int:
    """Return the number of partitions that the planner makes for a device; operators that are too large are sliced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        return fx_partition.plan(program, cache_bytes=device, oversize="slice", order="trace").num_partitions


def planned() -> str:
    """Return bytes over usable bytes, the formula's devices, and the planner's, for whole models."""
    rows = []
    for shape, names in CASES:
        program = graph(shape)
        for name in names:
            model = Model(shape, BF16, fx_partition.device(name), 1)
            size = model.weight_bytes(Stage(shape.layers, True, 1))
            formula = sum(stage.devices for stage in on_chip(model, 0))
            count = partitions(program, name)
            least = math.ceil(size / model.device.usable_bytes)
            rows.append((shape.name, name, f"{least:,}", f"{formula:,}", f"{count:,}", f"{count / formula:.2f}"))
    headers = ("model", "device", "bytes / usable", "by formula", "planned", "planned / formula")
    title = "Devices for the weights in bf16: formula, and the plan of the real graph, one token, no cache"
    return f"{title}\n{tabulate(rows, headers, disable_numparse=True, stralign='right')}"
