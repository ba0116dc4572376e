"""The graphs that every planner is given: real layer shapes, random weights, fewer layers and smaller vocabularies.

Each comes with three budgets. They are round numbers above the largest atom, such that the exact planner needs about
3, 6 and 12 partitions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from zoo.plain import UNet, lively

MIB = 1 << 20
Inputs = tuple[Tensor, ...] | dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """One graph: how to make its model and the inputs of one call, and three budgets in MiB."""

    name: str
    shape: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    budgets: tuple[float, float, float]

    def budget_bytes(self) -> list[int]:
        return [int(budget * MIB) for budget in self.budgets]


@dataclass(frozen=True)
class Graph:
    """A model, and the graph that torch.export makes of one call of it."""

    spec: Spec
    model: nn.Module
    gm: torch.fx.GraphModule


def build(spec: Spec) -> Graph:
    """Make and export; two calls, in whatever process, give graphs with the same node names."""
    torch.manual_seed(0)
    model = spec.make().eval()
    inputs = spec.inputs()
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs)
    gm = program.module(check_guards=False)
    assert isinstance(gm, torch.fx.GraphModule)
    return Graph(spec, model, gm)


def copied(gm: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The same graph over the same parameters, for a planner that writes on the graph it is given."""
    graph = torch.fx.Graph()
    output = graph.graph_copy(gm.graph, {})
    graph.output(output)
    return torch.fx.GraphModule(gm, graph)


def example_inputs(graph: Graph) -> list[Any]:
    """Inputs for the graph, in the order of its placeholders."""
    inputs = graph.spec.inputs()
    return list(inputs if isinstance(inputs, tuple) else inputs.values())


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=4096, n_layer=8, bos_token_id=1, eos_token_id=1))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
        num_key_value_heads=4, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=4096, num_hidden_layers=8))


def resnet50() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000))


def mobilenetv2() -> nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    return MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=100))


def unet() -> nn.Module:
    model: nn.Module = lively(UNet(widths=(64, 128, 256, 256, 256, 256), bottom=256))
    return model


def swin() -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig(depths=[2, 2, 4, 2], drop_path_rate=0.0))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4, num_local_experts=8, max_position_embeddings=512, experts_implementation="grouped_mm",
    )  # fmt: skip
    return MixtralForCausalLM(config)


def tokens(batch: int, length: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(1, 4096, (batch, length)), "use_cache": False}


def padded(batch: int, length: int) -> dict[str, Any]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, -length // 4 :] = 0
    return {"input_ids": torch.randint(1, 4096, (batch, length)) * mask, "attention_mask": mask}


def pixels(size: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(1, 3, size, size)}


SPECS = [
    Spec("GPT-2", "8 layers of 768, vocabulary 4096 tied, 4 x 64", gpt2, lambda: tokens(4, 64), (96, 58, 32)),
    Spec("Llama", "6 layers of 1024, vocabulary 4096, 4 x 64", llama, lambda: tokens(4, 64), (104, 60, 36)),
    Spec("BERT", "8 layers of 768, vocabulary 4096, padded, 4 x 64", bert, lambda: padded(4, 64), (84, 48, 28)),
    Spec("ResNet-50", "whole, 224 x 224", resnet50, lambda: pixels(224), (48, 32, 20)),
    Spec("MobileNetV2", "whole, 100 classes, 96 x 96", mobilenetv2, lambda: pixels(96), (4.25, 2.25, 2)),
    Spec("UNet", "7 levels of 64 to 256, 64 x 64", unet, lambda: (torch.randn(1, 3, 64, 64),), (26, 14, 10.5)),
    Spec("Swin", "tiny, depths 2 2 4 2, 224 x 224", swin, lambda: pixels(224), (40, 20, 12)),
    Spec("Mixtral", "6 layers of 512, 8 experts, 2 x 16", mixtral, lambda: tokens(2, 16), (112, 60, 36)),
]
