"""A Llama of random weights, and one greedy step of its decoding over a static cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache


@dataclass(frozen=True)
class Case:
    """One model and the sequences to generate.

    Attributes:
        hidden, layers: the width of the model, and how many layers it has.
        tokens: the tokens that each sequence gets after its prompt of one token.
    """

    hidden: int
    layers: int
    tokens: int

    @property
    def name(self) -> str:
        return f"hidden {self.hidden}, {self.layers} layers"

    def model(self) -> Any:
        """Return the model, with the same weights at each call."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            "llama", hidden_size=self.hidden, intermediate_size=3 * self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=512, max_position_embeddings=1024,
            initializer_range=0.2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config).eval()
        settings = model.generation_config
        settings.eos_token_id, settings.pad_token_id = None, 0  # random weights know no end of a text
        settings.use_cache, settings.cache_implementation = True, "static"
        return model

    def prompts(self, count: int) -> list[int]:
        """Return ``count`` first tokens, one for each sequence."""
        return [1 + 7 * i % 511 for i in range(count)]


def weight_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


#: What a layer of the cache holds: its keys and values, and how many there are. Each layer counts for itself, so that
#: the layers may be in different stages.
_HELD = ("keys", "values", "cumulative_length")


class Step(nn.Module):
    """The token after ``token``; the keys and values of those before are in buffers."""

    def __init__(self, model: Any, length: int) -> None:
        super().__init__()
        config = model.config
        cpu = torch.device("cpu")
        self.model, self._cache = model, StaticCache(config=config, max_cache_len=length)
        self._cache.early_initialization(1, config.num_key_value_heads, config.head_dim, torch.float32, cpu)
        for i, layer in enumerate(self._cache.layers):
            for name in _HELD:
                self.register_buffer(f"{name}_{i}", getattr(layer, name), persistent=False)

    def forward(self, token: Tensor) -> Tensor:
        for i, layer in enumerate(self._cache.layers):  # else torch.export would take the cache for constants
            for name in _HELD:
                setattr(layer, name, getattr(self, f"{name}_{i}"))
        logits: Tensor = self.model(input_ids=token, past_key_values=self._cache, use_cache=True).logits
        return logits[:, -1:].argmax(-1)

    def begin(self) -> None:
        """Begin another sequence; what is behind the length is masked."""
        for i in range(len(self._cache.layers)):
            getattr(self, f"cumulative_length_{i}").zero_()
