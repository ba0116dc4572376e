"""Helpers for families of the transformers library, which is imported when a model is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from .family import Family, Missing

VOCAB = 128
WIDTH = 64
TOKENS = 12


def hf(
    name: str,
    model: str,
    config: dict[str, Any],
    example: Any,
    *,
    config_class: str = "",
    change: Callable[[nn.Module], None] | None = None,
    **fields: Any,
) -> Family:
    """A family by the name of its class in transformers.

    Args:
        model: the class of the model.
        config: arguments of its configuration; values that are functions are called when the model is built.
        config_class: the class of the configuration, where it is not the one that the model names.
        change: changes the model after it was built.
    """

    def make() -> nn.Module:
        import transformers

        found = getattr(transformers, model, None)
        if found is None:
            raise Missing(f"transformers {transformers.__version__} has no {model}")
        make_config = getattr(transformers, config_class) if config_class else found.config_class
        built = found(make_config(**{key: v() if callable(v) else v for key, v in config.items()}))
        assert isinstance(built, nn.Module)
        if change is not None:
            change(built)
        return built

    return Family(name, make, example, source=model, **fields)


def sub_config(name: str, **values: Any) -> Any:
    """A function that makes a configuration within another one."""

    def make() -> Any:
        import transformers

        return getattr(transformers, name)(**{key: v() if callable(v) else v for key, v in values.items()})

    return make


def ids(rng: Generator, batch: int = 2, length: int = TOKENS, vocab: int = VOCAB) -> Tensor:
    """Random tokens above the special ones."""
    return torch.randint(5, vocab, (batch, length), generator=rng)


def tokens(rng: Generator) -> dict[str, Any]:
    return {"input_ids": ids(rng)}


def no_cache(rng: Generator) -> dict[str, Any]:
    return {"input_ids": ids(rng), "use_cache": False}


def padded(rng: Generator) -> dict[str, Any]:
    """Tokens and a mask: the second row ends in padding."""
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, -3:] = 0
    return {"input_ids": ids(rng) * mask, "attention_mask": mask}


def padded_no_cache(rng: Generator) -> dict[str, Any]:
    return {**padded(rng), "use_cache": False}


def pair(rng: Generator) -> dict[str, Any]:
    """What an encoder and a decoder read."""
    return {**padded(rng), "decoder_input_ids": ids(rng, length=7), "use_cache": False}


def pixels(size: int = 32, batch: int = 2, channels: int = 3) -> Any:
    """A function that makes images."""
    return lambda rng: {"pixel_values": torch.randn(batch, channels, size, size, generator=rng)}


def sound(length: int = 800, name: str = "input_values") -> Any:
    """A function that makes samples of sound."""
    return lambda rng: {name: torch.randn(2, length, generator=rng)}


def sizes(**others: Any) -> dict[str, Any]:
    """The usual sizes of a text model, in the names that most configurations use."""
    return {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, **others,
    }  # fmt: skip


#: Dropouts of encoders off, in the names that most configurations use.
CALM = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
