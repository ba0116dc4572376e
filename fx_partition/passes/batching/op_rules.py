"""A table of the ATen operators that keep the rows of a batch separate. See `batch_dim` for the terms.

A rule returns the position of the batch in the results, or raises `NotSeparable` with what the operator does to it. An
operator that torch tags as pointwise needs no rule; any other without a rule is refused. What a rule returns is
compared with the shapes of the results, so a wrong rule refuses a graph instead of cutting it wrongly.

==========================  =========================================  ======================================
operators                   rows stay apart where                      they mix
==========================  =========================================  ======================================
pointwise, where, copy_     all operands have the batch in one place   a row meets another by broadcasting
sum, mean, amax, norm ...   other dimensions are reduced               the batch is: a loss, a statistic
softmax, cumsum, sort ...   they run along another dimension           along the batch; over flattened tokens
mm, bmm, addmm, linear      the batch is free, or a batch of products  it is contracted
convolution, pooling        it is dimension 0                          it is a channel or a place
layer, group, rms norm      it is not normalised over
batch norm                  with running statistics                    in training
attention                   all of q, k, v have it as dimension 0      dropout
==========================  =========================================  ======================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from . import view_rules as views
from .batch_dim import Batched, NotSeparable, Place, RowCall, lacks, tensors
from .view_rules import wrap

Rule: TypeAlias = "Callable[[RowCall], Place | Sequence[Place]]"


TOGETHER = "brings rows of the batch together with others"


def pointwise(call: RowCall) -> Place:
    rank = call.result.dim()
    operands = [t for argument in (*call.args, *call.kwargs.values()) for t in tensors(argument)]
    places = {place.at(place.dim + rank - t.dim()) for t in operands if (place := call.place(t)) is not None}
    (place, *others) = places
    if others or not all(call.place(t) or lacks(t, place.dim, rank) for t in operands):
        raise NotSeparable(TOGETHER)
    return place


def reduction(call: RowCall) -> Place:
    place, rank = call.batched("self"), call.first.dim()
    dims = call["dim"]
    chosen = {wrap(d, rank) for d in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if place.dim in chosen:
        raise NotSeparable("reduces over the batch")
    return place if call["keepdim"] else place.at(place.dim - sum(d < place.dim for d in chosen))


# ---- Products: (rows of the first operand, contracted), (contracted, columns of the second)


def mm(call: RowCall, a: str = "self", b: str = "mat2") -> Place:
    left, right = call.of(a), call.of(b)
    batched = call.rank(a) == 3
    if batched and left and right and left == right and left.dim == 0:
        return left
    if left and not right and left.dim == call.rank(a) - 2:
        return left
    if right and not left and right.dim == call.rank(b) - 1:
        return right.at(call.rank(a) - 1)
    raise NotSeparable("multiplies rows of the batch with each other, or sums over them")


def addmm(call: RowCall) -> Place:
    a, b = ("batch1", "batch2") if call["batch1"] is not None else ("mat1", "mat2")
    place = mm(call, a, b)
    assert place is not None
    bias, rank = call.of("self"), call.result.dim()
    if bias.at(bias.dim + rank - call.rank("self")) != place if bias else not lacks(call["self"], place.dim, rank):
        raise NotSeparable(TOGETHER)
    return place


def mv(call: RowCall) -> Place:
    call.only("self")
    place = call.batched("self")
    if place.dim != 0:
        raise NotSeparable("sums over the batch")
    return place


def linear(call: RowCall) -> Place:
    call.only("input")
    place = call.batched("input")
    if place.dim == call.rank("input") - 1:
        raise NotSeparable("sums over the batch")
    return place


# ---- Layers


def leading(*names: str) -> Rule:
    """Require the batch at dimension 0 of every tensor that has it; only the arguments ``names`` may have it."""

    def rule(call: RowCall) -> list[Place]:
        call.only(*names)
        places = {place for name in names if (place := call.of(name)) is not None}
        if len(places) != 1 or next(iter(places)).dim != 0:
            raise NotSeparable("has the batch in a dimension that it works over")
        (place,) = places
        shared = [t for name in names if call.of(name) is None for t in tensors(call[name])]
        if not all(lacks(t, 0, call.first.dim()) for t in shared):
            raise NotSeparable(TOGETHER)
        return [_where(call, t, place) for t in tensors(call.out)]

    return rule


def _where(call: RowCall, result: torch.Tensor, place: Batched) -> Place:
    """Return dimension 0 for a result that has the batch; some results (a seed, an empty statistic) do not."""
    return place if result.dim() and views.made(_of(call, result)) is not None else None


def _of(call: RowCall, result: torch.Tensor) -> RowCall:
    return RowCall(call.func, call.args, call.kwargs, result, 0, call.batch, call.place)


def attention(call: RowCall) -> list[Place]:
    if call["dropout_p"]:
        raise NotSeparable("draws random numbers (dropout), in another order for microbatches")
    shared = {name for name in ("query", "key", "value") if call.of(name) is None}
    if shared:
        raise NotSeparable(f"has no batch in {', '.join(sorted(shared))}")
    result = leading("query", "key", "value", "attn_mask", "attn_bias")(call)
    assert isinstance(result, list)
    return result


def spatial(dims: int) -> Rule:
    """Return the rule of an operator that works over the last ``dims`` dimensions."""

    def rule(call: RowCall) -> Place:
        name = "self" if call["self"] is not None else "input"
        call.only(name)
        place = call.batched(name)
        if place.dim >= call.rank(name) - dims:
            raise NotSeparable("has the batch in a dimension that it works over")
        return place

    return rule


def layer_norm(call: RowCall) -> Place:
    return spatial(len(call["normalized_shape"]))(call)  # type: ignore[return-value]


def batch_norm(call: RowCall) -> list[Place]:
    place = call.batched("input")
    training = call["training"] if call["training"] is not None else call["train"]
    if place.dim == 0 and training in (None, False):
        call.only("input")
        return [place, *(None for _ in call.out[1:])]
    if place.dim == 1 and call["running_mean"] is None and training:  # instance norm, which is per row
        weights = [call.of(name) for name in ("weight", "bias")]
        if all(w in (None, place.at(0)) for w in weights):
            return [place, place.at(0), place.at(0), *(None for _ in call.out[3:])]
    raise NotSeparable("takes mean and variance over the batch (batch norm in training)")


def lstm_layer(call: RowCall) -> list[Place]:
    """Apply the rule of oneDNN's LSTM: input [T, B, D], states [1 or none, B, D]; results: output, both states."""
    place = call.batched("input")
    call.only("input", "hx_", "cx_")
    states = [call.of("hx_"), call.of("cx_")]
    if place.dim != 1 or call["batch_first"] or any(s is None or s.dim != call.rank("hx_") - 2 for s in states):
        raise NotSeparable("has the batch in a dimension that it works over")
    if call["train"]:
        raise NotSeparable("keeps a workspace for training, whose layout is oneDNN's")
    return [place, *states, None]


def loss(call: RowCall) -> Place | Sequence[Place]:
    if call["reduction"] != 0:
        raise NotSeparable("is a loss that adds up the rows of the batch")
    return pointwise(call)


_SAME = views.keep
RULES: dict[str, Rule] = {
    # layout
    **dict.fromkeys(("alias", "detach", "lift_fresh", "lift_fresh_copy", "_to_copy", "clone", "contiguous"), _SAME),
    **dict.fromkeys(("view_as_real", "view_as_complex", "_conj", "fill", "zero", "bucketize"), _SAME),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), _SAME),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "empty_strided"), views.made),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"), views.made),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape", "view_copy", "_reshape_copy"), views.view),
    **dict.fromkeys(("expand", "expand_copy"), views.expand),
    **dict.fromkeys(("transpose", "t"), views.transpose),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), views.split),
    **dict.fromkeys(("unbind", "select"), views.select),
    **dict.fromkeys(("flip", "roll"), views.along_dims),
    **dict.fromkeys(("tril", "triu"), views.triangle),
    **dict.fromkeys(("index_copy", "index_add"), views.index_write),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), views.scatter),
    **dict.fromkeys(("slice_scatter", "select_scatter"), views.scatter_view),
    **dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), views.index_put),
    **dict.fromkeys(("index", "_unsafe_index"), views.index),
    **dict.fromkeys(("constant_pad_nd", "reflection_pad1d", "reflection_pad2d"), views.pad),
    **dict.fromkeys(("replication_pad1d", "replication_pad2d"), views.pad),
    "arange": views.arange,
    "repeat": views.repeat,
    "permute": views.permute,
    "unsqueeze": views.unsqueeze,
    "squeeze": views.squeeze,
    "slice": views.slice_,
    "unfold": views.unfold,
    "diagonal": views.diagonal,
    "cat": views.cat,
    "stack": views.stack,
    "embedding": views.embedding,
    "index_select": views.index_select,
    "gather": views.gather,
    # pointwise without torch's tag
    **dict.fromkeys(("copy", "complex", "polar", "log_sigmoid_forward"), pointwise),
    **dict.fromkeys(("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"), pointwise),
    **dict.fromkeys(("_thnn_fused_lstm_cell", "_thnn_fused_gru_cell"), pointwise),
    # along a dimension, or over some
    **dict.fromkeys(("sum", "mean", "amax", "amin", "argmax", "argmin", "max", "min", "prod", "any", "all"), reduction),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm", "norm"), reduction),
    **dict.fromkeys(("nansum", "nanmean", "median", "mode", "kthvalue", "count_nonzero", "aminmax"), reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax"), views.along),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "topk"), views.along),
    **dict.fromkeys(("glu",), views.along),
    **dict.fromkeys(("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss"), loss),
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward", "multi_margin_loss"), loss),
    # products
    **dict.fromkeys(("mm", "bmm"), mm),
    **dict.fromkeys(("addmm", "baddbmm", "_addmm_activation"), addmm),
    "mv": mv,
    "linear": linear,
    # layers
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), leading("input")),
    **dict.fromkeys(("mkldnn_convolution", "cudnn_convolution"), leading("self")),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), layer_norm),
    "native_group_norm": leading("input"),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), batch_norm),
    **dict.fromkeys(("_batch_norm_impl_index", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("_batch_norm_no_update", "_batch_norm_with_update", "miopen_batch_norm"), batch_norm),
    "mkldnn_rnn_layer": lstm_layer,
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"), attention),
    **dict.fromkeys(("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"), attention),
    "_scaled_dot_product_fused_attention_overrideable": attention,
    "_transformer_encoder_layer_fwd": leading("src", "mask"),
    "_native_multi_head_attention": leading("query", "key", "value", "mask"),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "upsample_nearest1d", "upsample_linear1d"), spatial(1)),
    **dict.fromkeys(("max_pool2d_with_indices", "adaptive_max_pool2d"), spatial(2)),
    **dict.fromkeys(("avg_pool2d", "_adaptive_avg_pool2d"), spatial(2)),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), spatial(2)),
    **dict.fromkeys(("_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"), spatial(2)),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), spatial(3)),
    **dict.fromkeys(("max_pool3d_with_indices", "avg_pool3d", "_adaptive_avg_pool3d"), spatial(3)),
    "grid_sampler_2d": leading("input", "grid"),
    "_weight_norm_interface": leading(),
}

# Arguments that may be sizes that contain the batch; in any other, a row would depend on the number of rows.
SIZES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape", "view_copy", "expand", "expand_copy"),
                    frozenset(("size", "stride"))),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "empty_strided"), frozenset(("size", "stride"))),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), frozenset(("size",))),
    "new_empty_strided": frozenset(("size", "stride")),
    "arange": frozenset(("end",)),
    "repeat": frozenset(("repeats",)),
    "slice": frozenset(("end",)),
    "native_group_norm": frozenset(("N",)),
}  # fmt: skip

# Operators that accept a numbered tensor, and the argument that may be one.
NUMBERED: dict[str, str] = {
    **dict.fromkeys(("alias", "detach", "clone", "view", "_unsafe_view", "expand", "transpose", "t"), "self"),
    **dict.fromkeys(("permute", "unsqueeze", "squeeze", "slice", "lift_fresh"), "self"),
    **dict.fromkeys(("index", "_unsafe_index", "index_put", "_unsafe_index_put", "_index_put_impl"), "indices"),
}
