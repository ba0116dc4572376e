"""Workspace rules of softmax, normalisation, pooling, resizing and padding."""

from __future__ import annotations

from collections.abc import Callable

from ..capture.op_call import Bytes, LeafCall, largest, likely, nbytes, product
from .layout_copies import as_suggested, channels_last, densified
from .workspace_rule import WorkspaceRule

_FLOAT = 4


def _first_dense(call: LeafCall) -> Bytes:
    return densified(call.first)


def _first_suggested(call: LeafCall) -> Bytes:
    return as_suggested(call.first)


def _safe_softmax(call: LeafCall) -> Bytes:
    x = call.first
    return largest(densified(x), x.numel() + x.numel() // x.size(-1) + 64)


def _layer_norm(call: LeafCall) -> Bytes:
    x, weight = call["input"], call["weight"]
    size = densified(x) + densified(weight) + densified(call["bias"])
    if weight is not None and weight.dtype != x.dtype:  # float32 statistics, which the fake kernel does not make
        size = size + 2 * (x.numel() // product(call["normalized_shape"])) * _FLOAT
    return size


def _group_norm(call: LeafCall) -> Bytes:
    x = call["input"]
    if not channels_last(x):
        return densified(x)
    return (call.threads * call["N"] * 2 * call["C"] + call["N"] * 2 * call["group"]) * _FLOAT


def _batch_norm(call: LeafCall) -> Bytes:
    x = call["input"]
    size = 16 * x.size(1) * _FLOAT
    if call["training"] and x.element_size() < _FLOAT and not x.is_contiguous() and not channels_last(x):
        size = size + x.numel() * _FLOAT
    return size


def _upsample(taps: int) -> Callable[[LeafCall], Bytes]:
    def rule(call: LeafCall) -> Bytes:
        x, y = call.first, call.result
        spatial = y.shape[2:]
        dense = channels_last(x) and likely(x.size(1) > 3)
        small = len(spatial) == 2 and likely(sum(spatial) <= 128)
        if taps < 4 and (dense or small):
            copies = nbytes(x) if not channels_last(x) else 0
            return copies + (0 if channels_last(y) else nbytes(y))
        return taps * sum(spatial) * (8 + x.element_size())

    return rule


def _antialias(radius: int) -> Callable[[LeafCall], Bytes]:
    def rule(call: LeafCall) -> Bytes:
        x, y = call.first, call.result
        rows = nbytes(x) // x.size(-1) * y.size(-1)  # after the horizontal pass
        taps = [2 * radius * largest(1, (x.size(d) + y.size(d) - 1) // y.size(d)) + 1 for d in (-1, -2)]
        weights = sum(y.size(d) * (4 * 8 + tap * 4) for d, tap in zip((-1, -2), taps, strict=True))
        return rows + weights

    return rule


_POOL = "ATen/native/{}: input.contiguous(suggested memory format)"
_RESIZE = "ATen/native/cpu/UpSampleKernel.cpp: {}"
_VECTORISED = _RESIZE.format("channels-last copies of input and output if vectorised, else indices and weights")
_PAD = "ATen/native/{}: input.contiguous()"

NORM_RULES: dict[str, WorkspaceRule] = {
    "aten::_softmax": WorkspaceRule(_first_dense, "ATen/native/SoftMax.cpp, softmax_cpu_out: input.contiguous()"),
    "aten::_log_softmax": WorkspaceRule(_first_dense, "ATen/native/SoftMax.cpp, log_softmax: input.contiguous()"),
    "aten::_safe_softmax": WorkspaceRule(
        _safe_softmax,
        "ATen/native/transformers/attention.cpp, _safe_softmax: which scores are -inf, and which rows are all so",
    ),
    "aten::native_layer_norm": WorkspaceRule(
        _layer_norm, "ATen/native/layer_norm.cpp, layer_norm_cpu: input, weight and bias .expect_contiguous()"
    ),
    "aten::native_group_norm": WorkspaceRule(
        _group_norm, "ATen/native/cpu/group_norm_kernel.cpp, GroupNormKernelImplChannelsLastInternal: sums a thread"
    ),
    "aten::native_batch_norm": WorkspaceRule(
        _batch_norm, "ATen/native/Normalization.cpp: alpha and beta a channel; bfloat16 statistics cast the input"
    ),
    "aten::_native_batch_norm_legit": WorkspaceRule(
        _batch_norm, "ATen/native/Normalization.cpp: alpha and beta a channel; bfloat16 statistics cast the input"
    ),
    "aten::_native_batch_norm_legit_no_training": WorkspaceRule(
        lambda call: 16 * call.first.size(1) * _FLOAT, "ATen/native/Normalization.cpp: alpha and beta a channel"
    ),
    "aten::max_pool2d_with_indices": WorkspaceRule(_first_suggested, _POOL.format("cpu/MaxPoolKernel.cpp")),
    "aten::max_pool3d_with_indices": WorkspaceRule(_first_suggested, _POOL.format("DilatedMaxPool3d.cpp")),
    "aten::avg_pool2d": WorkspaceRule(_first_suggested, _POOL.format("cpu/AvgPoolKernel.cpp")),
    "aten::avg_pool3d": WorkspaceRule(_first_dense, _POOL.format("AveragePool3d.cpp")),
    "aten::_adaptive_avg_pool2d": WorkspaceRule(_first_suggested, _POOL.format("cpu/AdaptiveAvgPoolKernel.cpp")),
    "aten::adaptive_max_pool2d": WorkspaceRule(_first_suggested, _POOL.format("cpu/AdaptiveMaxPoolKernel.cpp")),
    "aten::upsample_nearest2d": WorkspaceRule(_upsample(1), _VECTORISED),
    "aten::_upsample_nearest_exact2d": WorkspaceRule(_upsample(1), _VECTORISED),
    "aten::upsample_nearest3d": WorkspaceRule(_upsample(1), _VECTORISED),
    "aten::upsample_bilinear2d": WorkspaceRule(_upsample(2), _VECTORISED),
    "aten::upsample_trilinear3d": WorkspaceRule(_upsample(2), _VECTORISED),
    "aten::upsample_bicubic2d": WorkspaceRule(_upsample(4), _RESIZE.format("indices and weights of each output row")),
    "aten::_upsample_bilinear2d_aa": WorkspaceRule(_antialias(1), _RESIZE.format("the horizontal pass, and weights")),
    "aten::_upsample_bicubic2d_aa": WorkspaceRule(_antialias(2), _RESIZE.format("the horizontal pass, and weights")),
    "aten::pixel_shuffle": WorkspaceRule(_first_suggested, _PAD.format("PixelShuffle.cpp")),
    "aten::pixel_unshuffle": WorkspaceRule(_first_suggested, _PAD.format("PixelShuffle.cpp")),
    "aten::channel_shuffle": WorkspaceRule(_first_suggested, _PAD.format("cpu/ChannelShuffleKernel.cpp")),
    "aten::native_channel_shuffle": WorkspaceRule(_first_suggested, _PAD.format("cpu/ChannelShuffleKernel.cpp")),
    "aten::reflection_pad1d": WorkspaceRule(_first_dense, _PAD.format("ReflectionPad.cpp")),
    "aten::reflection_pad2d": WorkspaceRule(_first_suggested, _PAD.format("ReflectionPad.cpp")),
    "aten::reflection_pad3d": WorkspaceRule(_first_suggested, _PAD.format("ReflectionPad.cpp")),
    "aten::replication_pad1d": WorkspaceRule(_first_dense, _PAD.format("ReplicationPadding.cpp")),
    "aten::replication_pad2d": WorkspaceRule(_first_suggested, _PAD.format("ReplicationPadding.cpp")),
    "aten::replication_pad3d": WorkspaceRule(_first_suggested, _PAD.format("ReplicationPadding.cpp")),
    "aten::im2col": WorkspaceRule(
        lambda call: nbytes(call.first) + densified(call.first),
        "ATen/native/Im2Col.cpp: input.contiguous(), and the empty_like(input) that becomes the output",
    ),
    "aten::log_sigmoid_forward": WorkspaceRule(
        _first_dense, "ATen/native/Activation.cpp, log_sigmoid_forward_cpu: input.contiguous()"
    ),
}
