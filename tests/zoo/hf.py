"""Models of the transformers library, at toy sizes. The library is imported when a model is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from .family import Family

VOCAB = 256
WIDTH = 128
TOKENS = 16
#: standard deviation of the weights; the usual 0.02 suits far wider layers, and leaves attention uniform
STD = 0.1


def no_dropout(*names: str) -> dict[str, Any]:
    """Keyword arguments that turn the named dropouts off, so that train mode is deterministic too."""
    return dict.fromkeys(names, 0.0)


def ids(batch: int, rng: Generator, length: int = TOKENS) -> Tensor:
    """Random tokens, none of them 0, which some of the models take for padding."""
    return torch.randint(1, VOCAB, (batch, length), generator=rng)


def tokens(batch: int, rng: Generator) -> dict[str, Any]:
    return {"input_ids": ids(batch, rng), "use_cache": False}


def padded(batch: int, rng: Generator) -> dict[str, Any]:
    """Tokens and an attention mask; the rows take turns at having 0, 1, 2 and 3 tokens of padding."""
    length = TOKENS - torch.arange(batch).remainder(4)
    mask = (torch.arange(TOKENS) < length[:, None]).long()
    return {"input_ids": ids(batch, rng) * mask, "attention_mask": mask}


def gpt2() -> nn.Module:
    """GPT-2: learned positions, and an output projection tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=WIDTH, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=1,
        **no_dropout("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        initializer_range=STD,
    )
    return GPT2LMHeadModel(config)


def llama() -> nn.Module:
    """Llama: rotary positions, RMS norm, and grouped-query attention (two query heads to a key head)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=STD,
    )
    return LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    """Mixtral: four experts, two to a token. Experts as a batched matmul, so that there is one graph."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=64, experts_implementation="batched_mm", initializer_range=STD,
    )
    return MixtralForCausalLM(config)


def mamba() -> nn.Module:
    """Mamba: a state-space model, its scan a loop over the tokens, unrolled in the graph."""
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, state_size=8, num_hidden_layers=4, use_associative_scan=False,
        bos_token_id=1, eos_token_id=1, initializer_range=STD,
    )
    return MambaForCausalLM(config)


def t5() -> nn.Module:
    """T5: encoder and decoder, relative position biases shared by the layers of each."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_kv=32, d_ff=256, num_layers=3, num_decoder_layers=3, num_heads=4,
        relative_attention_num_buckets=8, dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config)


def sequence_pair(batch: int, rng: Generator) -> dict[str, Any]:
    return {**padded(batch, rng), "decoder_input_ids": ids(batch, rng, 8), "use_cache": False}


def whisper() -> nn.Module:
    """Whisper: a convolutional stem, an encoder over audio frames, a decoder over tokens."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        vocab_size=VOCAB, num_mel_bins=16, d_model=WIDTH, encoder_layers=3, decoder_layers=3,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256,
        max_source_positions=32, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        **no_dropout("dropout", "attention_dropout", "activation_dropout"),
        init_std=STD,
    )
    return WhisperForConditionalGeneration(config)


def speech_pair(batch: int, rng: Generator) -> dict[str, Any]:
    features = torch.randn(batch, 16, 64, generator=rng)
    return {"input_features": features, "decoder_input_ids": ids(batch, rng, 8), "use_cache": False}


def bert() -> nn.Module:
    """BERT, called with padding."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=256, max_position_embeddings=64,
        **no_dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
        initializer_range=STD,
    )
    return BertModel(config)


def vit() -> nn.Module:
    """ViT on 32x32 images, 16 patches and a class token."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=32, patch_size=8, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=256, num_labels=10,
        **no_dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
        initializer_range=STD,
    )
    return ViTForImageClassification(config)


def swin() -> nn.Module:
    """Swin on 32x32 images: shifted windows, and patches merged between three stages."""
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(
        image_size=32, patch_size=2, embed_dim=32, depths=[2, 2, 4], num_heads=[2, 4, 8], window_size=4,
        mlp_ratio=2.0, num_labels=10, drop_path_rate=0.0,
        **no_dropout("hidden_dropout_prob", "attention_probs_dropout_prob"),
        initializer_range=STD,
    )
    return SwinForImageClassification(config)


def pixels(batch: int, rng: Generator) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=rng)}


def wav2vec2() -> nn.Module:
    """wav2vec 2.0: strided convolutions over samples, a weight-normed position convolution, an encoder."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        vocab_size=32, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        conv_dim=(32, 32, 32), conv_stride=(5, 4, 2), conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4, apply_spec_augment=False, layerdrop=0.0,
        **no_dropout("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"),
        initializer_range=STD,
    )
    return Wav2Vec2Model(config)


def samples(batch: int, rng: Generator) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 800, generator=rng)}


FAMILIES = [
    Family("gpt2", gpt2, tokens),
    Family("llama", llama, tokens),
    Family("mixtral", mixtral, tokens),
    Family("mamba", mamba, tokens),
    Family("t5", t5, sequence_pair),
    Family("whisper", whisper, speech_pair),
    Family("bert", bert, padded),
    Family("vit", vit, pixels),
    Family(
        "swin", swin, pixels,
        why="dynamic=True makes the image size symbolic too, which takes over a minute; mark_batch, seconds",
    ),
    Family("wav2vec2", wav2vec2, samples),
]
