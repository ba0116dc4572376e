"""Workspace rules of attention, of the transformer fast path and of oneDNN's LSTM."""

from __future__ import annotations

import torch

from ..capture.op_call import Bytes, LeafCall, largest, likely, nbytes, round_up, smallest
from .matmul import has_amx, narrow, slowness
from .workspace_rule import WorkspaceRule, always

_FLOAT = 4


def _flash_attention(call: LeafCall) -> Bytes:
    query, key = call["query"], call["key"]
    batch, _, q_len, head_size = query.shape
    kv_len = key.size(2)
    q_block = smallest(256 if likely(q_len >= 768) else 64 if likely(q_len >= 192) else 32, q_len)
    kv_block = smallest(512, kv_len)
    # Each thread has a buffer: for each query a row of scores, its running maximum and sum, and its part of the output.
    itemsize = query.element_size()
    size = call.threads * (q_block * kv_block + 2 * q_block + q_block * head_size) * max(itemsize, _FLOAT)
    if itemsize >= _FLOAT:
        return size
    size = size + call.threads * q_block * round_up(kv_block, 2) * itemsize
    gemms_pay = 4 * call.threads * kv_len
    if has_amx() and likely(kv_len >= 64) and likely(q_len >= 64) and likely(q_len * kv_len >= gemms_pay):
        packed = batch * key.size(1) * (round_up(kv_len, 2) + kv_len) * round_up(head_size, 2)
        size = size + (packed + call.threads * kv_block * head_size) * itemsize
    return size


def _attention(x: torch.Tensor, heads: int, *, weights: bool, mask: torch.Tensor | None) -> Bytes:
    """Return the peak of the fast path's self-attention from q, k and v to its projected result, result included."""
    rows, batch = nbytes(x), x.size(0)
    scores = batch * heads * x.size(1) * x.size(1) * x.element_size()
    masked = 0 if mask is None else scores + nbytes(mask)
    held = scores if weights else 0
    return largest(6 * rows, 3 * rows + scores + masked, 5 * rows + held)


def _native_attention(call: LeafCall) -> Bytes:
    x, weights = call["query"], call["need_weights"]
    peak = _attention(x, call["num_head"], weights=weights, mask=call["mask"])
    if weights:  # the mean over heads is an output
        peak = largest(peak, 5 * nbytes(x) + 2 * (nbytes(call.out[1]) if not call["average_attn_weights"] else 0))
    return largest(0, peak - sum((nbytes(t) for t in call.out if t is not None), 0))


def _encoder_layer(call: LeafCall) -> Bytes:
    x, norm_first = call["src"], call["norm_first"]
    rows = nbytes(x)
    hidden = rows // x.size(-1) * call["ffn_weight_1"].size(0)
    statistics = 2 * (rows // x.size(-1))
    attention = _attention(x, call["num_heads"], weights=False, mask=call["mask"]) + (rows if norm_first else 0)
    # At the first linear layer: its input, its result, the second layer's result, and the operand of the residual.
    feed_forward = (3 if norm_first else 2) * rows + hidden
    return largest(attention, feed_forward, 3 * rows + statistics) - rows


def _lstm(call: LeafCall) -> Bytes:
    x, hidden = call["input"], call["hidden_size"]
    steps, batch, inputs = x.shape
    weights = (nbytes(call["weight0"]) + nbytes(call["weight1"])) // hidden * round_up(hidden, 32)
    # For every step, the hidden states of this layer and the one before and the cell states; twice at batch 1.
    wide, narrow = _leading_dim(largest(inputs, hidden)), _leading_dim(hidden)
    states = 2 * (steps + 1) * batch * (wide + hidden) * _FLOAT
    if likely(batch == 1):
        states = states + 2 * (steps + 1) * (narrow + hidden) * _FLOAT
    gates = 5 * batch * hidden * _FLOAT
    return weights + nbytes(call["weight2"]) + states + gates + 24576


def _leading_dim(size: Bytes) -> Bytes:
    """Return oneDNN's get_good_ld: whole cache lines, but not a multiple of 1 KiB."""
    padded = round_up(size, 16)
    return padded + 16 if likely(padded % 256 == 0) else padded


def _lstm_flops(call: LeafCall) -> Bytes:
    x = call["input"]
    return 2 * x.size(0) * x.size(1) * (call["weight0"].numel() + call["weight1"].numel()) * slowness(x)


def _attention_flops(x: torch.Tensor) -> Bytes:
    """Return the operations of four products with weights, and of two products of all tokens with all tokens."""
    return x.numel() * (8 * x.size(-1) + 4 * x.size(1)) * slowness(x)


ATTENTION_RULES: dict[str, WorkspaceRule] = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": WorkspaceRule(
        _flash_attention,
        "ATen/native/cpu/FlashAttentionKernel.cpp, cpu_flash_attention: buf (scores, max, sum, dst a thread), "
        "buf_reduced, and on AMX key_reorder, value_reorder and a transpose buffer a thread",
        varies=lambda call: narrow(call["query"]),
        flops=lambda call: 4 * call["query"].numel() * call["key"].size(2),
    ),
    "aten::_native_multi_head_attention": WorkspaceRule(
        _native_attention,
        "ATen/native/transformers/attention.cpp, native_multi_head_attention_cpu: qkv, its split copy, scores, context",
        varies=lambda call: narrow(call["query"]),
        flops=lambda call: _attention_flops(call["query"]),
    ),
    "aten::_transformer_encoder_layer_fwd": WorkspaceRule(
        _encoder_layer,
        "ATen/native/transformers/transformer.cpp, transformer_encoder_layer_forward: attention, both linear layers",
        varies=lambda call: narrow(call["src"]),
        flops=lambda call: _attention_flops(call["src"]) + 4 * call["src"].numel() * call["ffn_weight_1"].size(0),
    ),
    "aten::mkldnn_rnn_layer": WorkspaceRule(
        _lstm,
        "ATen/native/mkldnn/RNN.cpp and oneDNN's brgemm rnn: both weights in blocks of 32, the bias sum, "
        "states of all steps",
        varies=always,
        flops=_lstm_flops,
    ),
}
