"""Models of sound, of several kinds of input, and of series of numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from .hf_common import CALM, VOCAB, WIDTH, hf, ids, padded, pixels, sizes, sound, sub_config

SPEECH = {
    "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128,
    "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 8, 4), "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4, "apply_spec_augment": False, "layerdrop": 0.0, "hidden_dropout": 0.0,
    "activation_dropout": 0.0, "attention_dropout": 0.0, "feat_proj_dropout": 0.0, "final_dropout": 0.0,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "projection_dim": 32,
}  # fmt: skip
IMAGE = {
    "image_size": 32, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "projection_dim": 32,
}  # fmt: skip


def captioned(rng: Generator) -> dict[str, Any]:
    return {**padded(rng), **pixels()(rng)}


def encoder_ids(rng: Generator) -> dict[str, Any]:
    return {"input_ids": ids(rng), **pixels()(rng), "use_cache": False}


def pictured(rng: Generator) -> dict[str, Any]:
    """Tokens with room for the 16 patches of an image."""
    text = ids(rng, length=24)
    text[:, 2:18] = 3
    return {"input_ids": text, "attention_mask": torch.ones_like(text), **pixels()(rng), "use_cache": False}


def pad_nothing(model: nn.Module) -> None:
    """Every length here is a multiple of the strides: convolutions need not compute it from numbers in buffers."""
    for module in model.modules():
        if hasattr(module, "_get_extra_padding_for_conv1d"):
            total = int(module.padding_total)
            del module.padding_total
            module.padding_total = total
            module._get_extra_padding_for_conv1d = lambda hidden_states: 0


def series(length: int, channels: int) -> Any:
    return lambda rng: {"past_values": torch.randn(2, length, channels, generator=rng)}


def trajectory(rng: Generator) -> dict[str, Any]:
    return {
        "states": torch.randn(2, 5, 7, generator=rng), "actions": torch.randn(2, 5, 3, generator=rng),
        "rewards": torch.randn(2, 5, 1, generator=rng), "returns_to_go": torch.randn(2, 5, 1, generator=rng),
        "timesteps": torch.arange(5).expand(2, 5).contiguous(), "attention_mask": torch.ones(2, 5, dtype=torch.long),
    }  # fmt: skip


def forecast(rng: Generator) -> dict[str, Any]:
    return {
        "past_values": torch.randn(2, 14, generator=rng), "past_time_features": torch.randn(2, 14, 2, generator=rng),
        "past_observed_mask": torch.ones(2, 14), "future_values": torch.randn(2, 4, generator=rng),
        "future_time_features": torch.randn(2, 4, 2, generator=rng), "use_cache": False,
    }  # fmt: skip


FAMILIES = [
    hf("wavlm", "WavLMModel", {**SPEECH, "num_buckets": 8, "max_bucket_distance": 16}, sound()),
    hf("wav2vec2_conformer", "Wav2Vec2ConformerModel", {
        **SPEECH, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5,
        "conformer_conv_dropout": 0.0,
    }, sound()),
    hf("speech_to_text", "Speech2TextForConditionalGeneration", {
        "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_source_positions": 64,
        "max_target_positions": 64, "conv_channels": 32, "input_feat_per_channel": 16, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    }, lambda rng: {
        "input_features": torch.randn(2, 40, 16, generator=rng), "decoder_input_ids": ids(rng, length=7),
        "use_cache": False,
    }),
    hf("mimi", "MimiModel", {
        "hidden_size": 32, "num_filters": 8, "upsampling_ratios": [4, 2], "codebook_size": 128, "codebook_dim": 16,
        "num_quantizers": 8, "vector_quantization_hidden_dimension": 16, "upsample_groups": 32, "num_hidden_layers": 2,
        "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 128,
        "sliding_window": 8, "sampling_rate": 8000, "frame_rate": 500.0,
    }, lambda rng: {"input_values": torch.randn(2, 1, 512, generator=rng)}, by_inductor=True, by_pipeline=True,
       change=pad_nothing),
    hf("encodec", "EncodecModel", {
        "hidden_size": 32, "num_filters": 8, "upsampling_ratios": [4, 2], "codebook_size": 32, "num_lstm_layers": 1,
        "sampling_rate": 8000, "target_bandwidths": [20.0],
    }, lambda rng: {"input_values": torch.randn(2, 1, 512, generator=rng)}, change=pad_nothing,
       settings={"allow_rnn": True}),
    hf("univnet", "UnivNetModel", {
        "model_in_channels": 8, "model_hidden_channels": 8, "num_mel_bins": 10, "resblock_stride_sizes": [4, 2],
        "resblock_kernel_sizes": [3, 3], "resblock_dilation_sizes": [[1, 3], [1, 3]], "kernel_predictor_num_blocks": 1,
        "kernel_predictor_hidden_channels": 8,
    }, lambda rng: {
        "input_features": torch.randn(2, 20, 10, generator=rng), "noise_sequence": torch.randn(2, 20, 8, generator=rng),
    }),
    hf("moonshine", "MoonshineForConditionalGeneration", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 128, "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 2, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
        "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }, lambda rng: {**sound(2000)(rng), "decoder_input_ids": ids(rng, length=7), "use_cache": False}),
    hf("clip", "CLIPModel", {"text_config": TEXT, "vision_config": IMAGE, "projection_dim": 32}, captioned),
    hf("clipseg", "CLIPSegForImageSegmentation", {
        "text_config": TEXT, "vision_config": {**IMAGE, "num_hidden_layers": 3}, "projection_dim": 32,
        "extract_layers": [0, 1, 2], "reduce_dim": 16, "decoder_num_attention_heads": 4,
        "decoder_intermediate_size": 32, "conditional_layer": 0,
    }, captioned),
    hf("git", "GitModel", {
        **sizes(**CALM), "vision_config": {**IMAGE}, "num_image_with_embedding": None,
    }, encoder_ids),
    hf("llava", "LlavaForConditionalGeneration", {
        "vision_config": sub_config("CLIPVisionConfig", **IMAGE), "image_token_index": 3, "image_token_id": 3,
        "text_config": sub_config("LlamaConfig", **sizes(num_key_value_heads=2)), "image_seq_length": 16,
    }, pictured),
    hf("perceiver", "PerceiverModel", {
        "num_latents": 8, "d_latents": 32, "d_model": 24, "num_blocks": 2, "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4, "num_cross_attention_heads": 4, "attention_probs_dropout_prob": 0.0,
    }, lambda rng: {"inputs": torch.randn(2, 20, 24, generator=rng)}),
    hf("decision_transformer", "DecisionTransformerModel", {
        "state_dim": 7, "act_dim": 3, "hidden_size": WIDTH, "max_ep_len": 32, "n_positions": 64, "n_layer": 3,
        "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }, trajectory),
    hf("patchtst", "PatchTSTForPrediction", {
        "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 4, "d_model": 32,
        "ffn_dim": 64, "prediction_length": 6, "distribution_output": "normal", "loss": "mse", "num_hidden_layers": 3,
    }, series(32, 3), by_aot_eager=False, by_inductor=True, by_pipeline=True,
       why="aot_eager itself stops: batch_norm of a transposed input has other strides than its fake kernel says"),
    hf("patchtsmixer", "PatchTSMixerForPrediction", {
        "num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16,
        "prediction_length": 6, "num_layers": 3, "dropout": 0.0, "head_dropout": 0.0, "mode": "mix_channel",
        "gated_attn": True,
    }, series(32, 3)),
    hf("time_series_transformer", "TimeSeriesTransformerModel", {
        "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3, 6], "num_time_features": 2,
        "d_model": 32, "dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
    }, forecast, fixed=(2,)),
]
