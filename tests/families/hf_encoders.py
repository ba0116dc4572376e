"""Encoders of text, and encoders with decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from .hf_common import CALM, VOCAB, WIDTH, hf, padded, pair, sizes, tokens

BART = {
    "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip


def characters(rng: Generator) -> dict[str, Any]:
    return {"input_ids": torch.randint(5, 1000, (2, 32), generator=rng)}


FAMILIES = [
    hf("albert", "AlbertModel", sizes(**CALM, embedding_size=32), padded),
    hf("deberta_v2", "DebertaV2Model", sizes(
        **CALM, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
        share_att_key=True, position_biased_input=False, conv_kernel_size=3,
    ), padded, by_inductor=True),
    hf("xlnet", "XLNetModel", {
        "vocab_size": VOCAB, "d_model": WIDTH, "n_layer": 3, "n_head": 4, "d_inner": 128, "dropout": 0.0,
    }, tokens),
    hf("funnel", "FunnelModel", {
        "vocab_size": VOCAB, "d_model": WIDTH, "n_head": 4, "d_head": 16, "d_inner": 128, "block_sizes": [1, 1, 1],
        "num_decoder_layers": 1, "hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
    }, tokens),
    hf("fnet", "FNetModel", sizes(hidden_dropout_prob=0.0), tokens),
    hf("convbert", "ConvBertModel", sizes(**CALM, embedding_size=32, conv_kernel_size=3), tokens),
    hf("squeezebert", "SqueezeBertModel", sizes(**CALM, embedding_size=WIDTH), padded),
    hf("mobilebert", "MobileBertModel", sizes(
        **CALM, embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32, num_feedforward_networks=2,
        classifier_activation=True,
    ), padded),
    hf("mpnet", "MPNetModel", sizes(**CALM), padded),
    hf("roformer", "RoFormerModel", sizes(**CALM, embedding_size=32), padded),
    hf("canine", "CanineModel", sizes(
        **CALM, num_hash_buckets=64, num_hash_functions=4, downsampling_rate=4, local_transformer_stride=16,
        upsampling_kernel_size=3,
    ), characters),
    hf("modernbert", "ModernBertModel", sizes(local_attention=4, global_attn_every_n_layers=2), padded),
    hf("bart", "BartForConditionalGeneration", BART, pair, by_inductor=True, by_pipeline=True),
    hf("prophetnet", "ProphetNetModel", {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "num_encoder_layers": 2, "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4, "num_decoder_attention_heads": 4, "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128, "max_position_embeddings": 64, "ngram": 2, "num_buckets": 8,
        "relative_max_distance": 16, "pad_token_id": 0,
    }, pair),
]
