"""For each workspace rule, calls of growing size that run its ATen operator; operands are built when a case is called.

Wherever a kernel copies an operand it cannot read, the case passes such an operand, so that the rule says more than 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import sympy
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from fx_partition.passes.capture.fake_tensors import FakeTensorMode, new_fake_mode
from fx_partition.passes.capture.symbolic_sizes import Evaluator, to_expr
from fx_partition.passes.footprint.op_effects import observe

Case: TypeAlias = "tuple[Callable[..., Any], tuple[Any, ...]]"
BFLOAT16 = torch.bfloat16
aten = torch.ops.aten


def sizes(build: Callable[[int], Case], small: int, medium: int, large: int) -> list[Callable[[], Case]]:
    return [functools.partial(build, size) for size in (small, medium, large)]


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, dtype=dtype)


def learned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return rand(*shape, dtype=dtype).requires_grad_()


def strided(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every second element of a tensor twice as wide: no dimension is dense."""
    return torch.rand((*shape, 2), dtype=dtype)[..., 0]


def well_conditioned(n: int) -> Tensor:
    return torch.rand(n, n) + n * torch.eye(n)


def symmetric(n: int) -> Tensor:
    a = well_conditioned(n)
    return a + a.T


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape)


def _lstm(n: int) -> Case:
    steps, batch, inputs = 16, 8, n
    weights = [rand(4 * n, inputs), rand(4 * n, n), rand(4 * n), rand(4 * n)]
    hidden = [rand(1, batch, n), rand(1, batch, n)]
    return torch.lstm, (rand(steps, batch, inputs), hidden, weights, True, 1, 0.0, False, False, False)


def _lstm_of_one(n: int) -> Case:
    weights = [rand(4 * n, n), rand(4 * n, n), rand(4 * n), rand(4 * n)]
    hidden = [rand(1, 1, n), rand(1, 1, n)]
    return torch.lstm, (rand(16, 1, n), hidden, weights, True, 1, 0.0, False, False, False)


def gru_weights(n: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [rand(*shape, dtype=dtype) for shape in ((3 * n, n), (3 * n, n), (3 * n,), (3 * n,))]


def bytes_of(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int8)


def _scaled_mm(n: int) -> Case:
    a, b = rand(32, n).to(torch.float8_e4m3fn), rand(64, n).to(torch.float8_e4m3fn).t()
    return torch._scaled_mm, (a, b, torch.ones(()), torch.ones(()), None, None, BFLOAT16)


def _native_attention(n: int) -> Case:
    width, heads = 64, 4
    x = rand(2, n, width)
    projections = (rand(3 * width, width), rand(3 * width), rand(width, width), rand(width))
    return torch._native_multi_head_attention, (x, x, x, width, heads, *projections, None, False)


def _encoder_layer(n: int) -> Case:
    width, heads, hidden = 64, 4, 256
    attention = (rand(3 * width, width), rand(3 * width), rand(width, width), rand(width))
    norms = (rand(width), rand(width), rand(width), rand(width))
    feed_forward = (rand(hidden, width), rand(hidden), rand(width, hidden), rand(width))
    return torch._transformer_encoder_layer_fwd, (
        *(rand(2, n, width), width, heads),
        *attention,
        *(False, False, 1e-5),
        *norms,
        *feed_forward,
    )


def _batch_norm(n: int) -> Case:
    x = rand(4, 16, n, n, dtype=BFLOAT16)
    return torch.native_batch_norm, (x, rand(16), rand(16), rand(16), rand(16), True, 0.1, 1e-5)


def _batch_norm_legit(n: int) -> Case:
    x = rand(4, 16, n, n, dtype=BFLOAT16)
    return aten._native_batch_norm_legit.default, (x, rand(16), rand(16), rand(16), rand(16), True, 0.1, 1e-5)


def _batch_norm_no_training(n: int) -> Case:
    arguments = (rand(4, 16, n, n), rand(16), rand(16), rand(16), rand(16), 0.1, 1e-5)
    return aten._native_batch_norm_legit_no_training.default, arguments


def _group_norm(n: int) -> Case:
    x = rand(4, 16, n, n).contiguous(memory_format=torch.channels_last)
    return F.group_norm, (x, 4, rand(16), rand(16))


def _scatter(name: str, *more: Any) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        x, source = rand(n, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16)
        return getattr(torch.Tensor, name), (x, 1, integers(n, n, n), source, *more)

    return build


def _index_add(name: str) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        x, source = rand(n, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16)
        return getattr(torch.Tensor, name), (x, 1, integers(n, n), source)

    return build


def _resize(dims: int, mode: str) -> Callable[[int], Case]:
    """To twice the size in each of ``dims`` dimensions."""

    def build(n: int) -> Case:
        align = None if mode.startswith("nearest") else False
        return F.interpolate, (rand(1, 8, *[n] * dims), [2 * n] * dims, None, mode, align)

    return build


def _shrink(mode: str) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        return F.interpolate, (rand(1, 8, n, n), [n // 2, n // 2], None, mode, False, None, True)

    return build


def _pad(dims: int, mode: str) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        return F.pad, (strided(1, 4, *[n] * dims), [2] * (2 * dims), mode)

    return build


def _whole(function: Callable[..., Any]) -> Callable[[int], Case]:
    return lambda n: (function, (strided(n, n),))


def _pool(function: Callable[..., Any], dims: int) -> Callable[[int], Case]:
    return lambda n: (function, (strided(2, 8, *[n] * dims), 2))


def _bool(function: Callable[..., Any]) -> Callable[[int], Case]:
    return lambda n: (function, (rand(n, n),))


CASES: dict[str, list[Callable[[], Case]]] = {
    "aten::addbmm": sizes(
        lambda n: (torch.addbmm, (rand(64, 32), rand(4, 64, 2 * n)[..., ::2], rand(4, n, 32))), 32, 128, 1024
    ),
    "aten::addmv": sizes(lambda n: (torch.addmv, (rand(64), strided(64, n), rand(n))), 64, 256, 1024),
    "aten::_addmm_activation": sizes(
        lambda n: (torch._addmm_activation, (rand(64), strided(32, n), rand(n, 64))), 64, 256, 2048
    ),
    "aten::_trilinear": sizes(lambda n: (F.bilinear, (rand(64, n), rand(64, n), rand(8, n, n))), 32, 128, 320),
    "aten::_int_mm": sizes(lambda n: (torch._int_mm, (bytes_of(32, n), bytes_of(64, n).t())), 64, 256, 1024),
    "aten::_weight_int8pack_mm": sizes(
        lambda n: (
            aten._weight_int8pack_mm.default,
            (rand(16, n, dtype=BFLOAT16), bytes_of(64, n), rand(64, dtype=BFLOAT16)),
        ),
        *(64, 256, 1024),
    ),
    "aten::_weight_int4pack_mm_for_cpu": sizes(
        lambda n: (
            aten._weight_int4pack_mm_for_cpu.default,
            (
                rand(16, n, dtype=BFLOAT16),
                aten._convert_weight_to_int4pack_for_cpu.default(torch.ones(64, n, dtype=torch.int32), 1),
                *(32, rand(n // 32, 64, 2, dtype=BFLOAT16)),
            ),
        ),
        *(64, 256, 1024),
    ),
    "aten::_scaled_mm": sizes(_scaled_mm, 64, 256, 512),
    "aten::convolution": sizes(
        lambda n: (F.conv2d, (rand(2, 16, n, n), rand(32, 16, 3, 3), rand(32), 1, 1)), 16, 64, 160
    ),
    "aten::mm": sizes(lambda n: (torch.mm, (strided(n, n), rand(n, n))), 64, 256, 768),
    "aten::addmm": sizes(lambda n: (torch.addmm, (rand(n), strided(n, n), rand(n, n))), 64, 256, 768),
    "aten::bmm": sizes(lambda n: (torch.bmm, (strided(4, n, n), rand(4, n, n))), 32, 128, 384),
    "aten::baddbmm": sizes(lambda n: (torch.baddbmm, (rand(4, n, n), strided(4, n, n), rand(4, n, n))), 32, 128, 384),
    "aten::_cdist_forward": sizes(lambda n: (torch.cdist, (rand(n, 64), rand(n, 64), 1.0)), 64, 512, 1536),
    "aten::_euclidean_dist": sizes(lambda n: (torch._euclidean_dist, (rand(n, 64), rand(n, 64))), 64, 512, 1536),
    "aten::linalg_inv_ex": sizes(lambda n: (torch.linalg.inv_ex, (well_conditioned(n),)), 32, 128, 384),
    "aten::linalg_qr": sizes(lambda n: (torch.linalg.qr, (rand(n, n),)), 32, 128, 384),
    "aten::_linalg_svd": sizes(lambda n: (torch.linalg.svd, (rand(n, n),)), 32, 96, 256),
    "aten::_linalg_eigh": sizes(lambda n: (torch.linalg.eigh, (symmetric(n),)), 32, 128, 320),
    "aten::_linalg_det": sizes(lambda n: (torch.linalg.det, (well_conditioned(n),)), 32, 128, 512),
    "aten::_linalg_slogdet": sizes(lambda n: (torch.linalg.slogdet, (well_conditioned(n),)), 32, 128, 512),
    "aten::_linalg_solve_ex": sizes(lambda n: (torch.linalg.solve, (well_conditioned(n), rand(n, n))), 32, 128, 512),
    "aten::linalg_pinv": sizes(lambda n: (torch.linalg.pinv, (rand(n, n),)), 32, 96, 256),
    "aten::linalg_matrix_exp": sizes(lambda n: (torch.linalg.matrix_exp, (rand(n, n),)), 32, 128, 320),
    "aten::cholesky_solve": sizes(
        lambda n: (torch.cholesky_solve, (rand(n, n), torch.linalg.cholesky(symmetric(n)))), 32, 128, 512
    ),
    "aten::_fft_r2c": sizes(lambda n: (torch.fft.rfft2, (rand(4, n, n), None, (0, 1))), 32, 128, 512),
    "aten::_fft_c2r": sizes(
        lambda n: (torch.fft.irfft2, (torch.rand(4, n, n // 2 + 1, dtype=torch.complex64),)), 32, 128, 512
    ),
    "aten::_scaled_dot_product_flash_attention_for_cpu": sizes(
        lambda n: (F.scaled_dot_product_attention, (rand(2, 4, n, 64), rand(2, 4, n, 64), rand(2, 4, n, 64))),
        *(64, 256, 1024),
    ),
    "aten::_native_multi_head_attention": sizes(_native_attention, 32, 128, 512),
    "aten::_transformer_encoder_layer_fwd": sizes(_encoder_layer, 32, 128, 512),
    "aten::mkldnn_rnn_layer": sizes(_lstm, 32, 128, 384),
    "aten::_softmax": sizes(lambda n: (torch.softmax, (strided(n, n), 1)), 64, 256, 1024),
    "aten::_log_softmax": sizes(lambda n: (torch.log_softmax, (strided(n, n), 1)), 64, 256, 1024),
    "aten::_safe_softmax": sizes(lambda n: (aten._safe_softmax.default, (strided(n, n), -1)), 64, 256, 1024),
    "aten::native_layer_norm": sizes(
        lambda n: (F.layer_norm, (strided(n, 256), (256,), rand(256), rand(256))), 64, 512, 4096
    ),
    "aten::native_group_norm": sizes(_group_norm, 16, 64, 192),
    "aten::native_batch_norm": sizes(_batch_norm, 16, 64, 192),
    "aten::_native_batch_norm_legit": sizes(_batch_norm_legit, 16, 64, 192),
    "aten::_native_batch_norm_legit_no_training": sizes(_batch_norm_no_training, 16, 64, 160),
    "aten::max_pool2d_with_indices": sizes(_pool(aten.max_pool2d_with_indices.default, 2), 32, 128, 384),
    "aten::max_pool3d_with_indices": sizes(_pool(aten.max_pool3d_with_indices.default, 3), 8, 24, 48),
    "aten::avg_pool2d": sizes(_pool(F.avg_pool2d, 2), 32, 128, 384),
    "aten::avg_pool3d": sizes(_pool(F.avg_pool3d, 3), 8, 24, 48),
    "aten::_adaptive_avg_pool2d": sizes(_pool(F.adaptive_avg_pool2d, 2), 32, 128, 384),
    "aten::adaptive_max_pool2d": sizes(_pool(F.adaptive_max_pool2d, 2), 32, 128, 384),
    "aten::upsample_nearest2d": sizes(_resize(2, "nearest"), 16, 48, 192),
    "aten::_upsample_nearest_exact2d": sizes(_resize(2, "nearest-exact"), 16, 48, 192),
    "aten::upsample_nearest3d": sizes(_resize(3, "nearest"), 8, 16, 32),
    "aten::upsample_bilinear2d": sizes(_resize(2, "bilinear"), 16, 48, 192),
    "aten::upsample_trilinear3d": sizes(_resize(3, "trilinear"), 8, 16, 32),
    "aten::upsample_bicubic2d": sizes(_resize(2, "bicubic"), 16, 64, 192),
    "aten::_upsample_bilinear2d_aa": sizes(_shrink("bilinear"), 32, 128, 512),
    "aten::_upsample_bicubic2d_aa": sizes(_shrink("bicubic"), 32, 128, 512),
    "aten::pixel_shuffle": sizes(lambda n: (F.pixel_shuffle, (strided(2, 16, n, n), 2)), 16, 64, 256),
    "aten::pixel_unshuffle": sizes(lambda n: (F.pixel_unshuffle, (strided(2, 4, n, n), 2)), 32, 128, 512),
    "aten::channel_shuffle": sizes(lambda n: (F.channel_shuffle, (strided(2, 16, n, n), 4)), 16, 64, 256),
    "aten::native_channel_shuffle": sizes(
        lambda n: (torch.native_channel_shuffle, (strided(2, 16, n, n), 4)), 16, 64, 256
    ),
    "aten::reflection_pad1d": sizes(_pad(1, "reflect"), 256, 16384, 524288),
    "aten::reflection_pad2d": sizes(_pad(2, "reflect"), 32, 128, 512),
    "aten::reflection_pad3d": sizes(_pad(3, "reflect"), 8, 32, 80),
    "aten::replication_pad1d": sizes(_pad(1, "replicate"), 256, 16384, 524288),
    "aten::replication_pad2d": sizes(_pad(2, "replicate"), 32, 128, 512),
    "aten::replication_pad3d": sizes(_pad(3, "replicate"), 8, 32, 80),
    "aten::im2col": sizes(lambda n: (F.unfold, (strided(2, 8, n, n), 3)), 16, 64, 192),
    "aten::log_sigmoid_forward": sizes(lambda n: (F.logsigmoid, (strided(n, n),)), 64, 256, 1024),
    "aten::sort": sizes(lambda n: (torch.sort, (rand(4, n),)), 1024, 16384, 262144),
    "aten::kthvalue": sizes(lambda n: (torch.kthvalue, (rand(16, n), n // 2)), 256, 4096, 65536),
    "aten::median": sizes(lambda n: (torch.median, (rand(n, n),)), 64, 256, 1024),
    "aten::nanmedian": sizes(lambda n: (torch.nanmedian, (rand(n, n), 0)), 64, 256, 1024),
    "aten::multinomial": sizes(lambda n: (torch.multinomial, (rand(16, n), n // 8)), 256, 4096, 65536),
    "aten::roll": sizes(lambda n: (torch.roll, (rand(n, n), (1, 2), (0, 1))), 64, 256, 1024),
    "aten::index": sizes(lambda n: (torch.ops.aten.index.Tensor, (rand(n, 4), [rand(n) < 0.5])), 256, 16384, 524288),
    "aten::masked_select": sizes(lambda n: (torch.masked_select, (rand(n, n), rand(n, n) < 0.5)), 64, 256, 1024),
    "aten::gather": sizes(lambda n: (torch.gather, (rand(n, n, dtype=BFLOAT16), 1, integers(n, n, n))), 64, 256, 1024),
    "aten::scatter": sizes(_scatter("scatter"), 64, 256, 1024),
    "aten::scatter_": sizes(_scatter("scatter_"), 64, 256, 1024),
    "aten::scatter_add": sizes(_scatter("scatter_add"), 64, 256, 1024),
    "aten::scatter_add_": sizes(_scatter("scatter_add_"), 64, 256, 1024),
    "aten::scatter_reduce": sizes(_scatter("scatter_reduce", "amax"), 64, 256, 1024),
    "aten::index_add": sizes(_index_add("index_add"), 64, 256, 1024),
    "aten::index_add_": sizes(_index_add("index_add_"), 64, 256, 1024),
    "aten::searchsorted": sizes(lambda n: (torch.searchsorted, (strided(n), strided(n))), 256, 16384, 262144),
    "aten::cumsum": sizes(lambda n: (torch.cumsum, (integers(2, n, n).int(), 1)), 64, 256, 1024),
    "aten::cumprod": sizes(lambda n: (torch.cumprod, (integers(2, n, n).int(), 1)), 64, 256, 1024),
    "aten::prod": sizes(lambda n: (torch.prod, (integers(2, n, n).int(), 1)), 64, 256, 1024),
    "aten::sum": sizes(lambda n: (torch.sum, (integers(2, n, n).int(), 1)), 64, 256, 1024),
    "aten::mean": sizes(lambda n: (torch.mean, (rand(n, n, dtype=BFLOAT16), 1)), 64, 256, 1024),
    "aten::logsumexp": sizes(lambda n: (torch.logsumexp, (rand(n, n), 1)), 64, 256, 1024),
    "aten::any": sizes(_bool(torch.any), 128, 512, 2048),
    "aten::all": sizes(_bool(torch.all), 128, 512, 2048),
    "aten::count_nonzero": sizes(lambda n: (torch.count_nonzero, (rand(n, n), 1)), 64, 256, 1024),
    "aten::max": sizes(_whole(torch.max), 64, 256, 1024),
    "aten::min": sizes(_whole(torch.min), 64, 256, 1024),
    "aten::argmax": sizes(_whole(torch.argmax), 64, 256, 1024),
    "aten::argmin": sizes(_whole(torch.argmin), 64, 256, 1024),
    "aten::isinf": sizes(lambda n: (torch.isinf, (rand(n, n),)), 64, 256, 1024),
    "aten::mse_loss": sizes(lambda n: (F.mse_loss, (rand(n, n), rand(n, n))), 64, 256, 1024),
    "aten::smooth_l1_loss": sizes(lambda n: (F.smooth_l1_loss, (rand(n, n), rand(n, n))), 64, 256, 1024),
    "aten::huber_loss": sizes(lambda n: (F.huber_loss, (rand(n, n), rand(n, n))), 64, 256, 1024),
    "aten::aminmax": sizes(_whole(torch.aminmax), 64, 256, 1024),
    "aten::mv": sizes(lambda n: (torch.mv, (strided(n, n), rand(n))), 64, 256, 1024),
    "aten::dot": sizes(lambda n: (torch.dot, (rand(n), rand(n))), 64, 4096, 65536),
    "aten::_grouped_mm": sizes(
        lambda n: (torch._grouped_mm, (rand(4, n, 64, dtype=BFLOAT16), rand(4, 128, 64, dtype=BFLOAT16).mT)),
        32,
        128,
        512,
    ),
    "aten::_fft_c2c": sizes(
        lambda n: (torch.fft.fft, (torch.rand(4, n, n, dtype=torch.complex64), None, 1)), 32, 128, 512
    ),
    "aten::_embedding_bag_forward_only": sizes(
        lambda n: (functools.partial(F.embedding_bag, mode="mean"), (integers(64, n, 10), rand(64, 256))), 16, 256, 4096
    ),
    "aten::linalg_cholesky_ex": sizes(lambda n: (torch.linalg.cholesky, (symmetric(n),)), 32, 128, 512),
    "aten::linalg_lu_factor_ex": sizes(lambda n: (torch.linalg.lu_factor, (well_conditioned(n),)), 32, 128, 512),
    "aten::cholesky_inverse": sizes(
        lambda n: (torch.cholesky_inverse, (torch.linalg.cholesky(symmetric(n)),)), 32, 128, 512
    ),
    "aten::_unique2": sizes(lambda n: (torch.unique, (integers(n, n, n),)), 64, 256, 1024),
    "aten::nansum": sizes(lambda n: (torch.nansum, (rand(n, n),)), 64, 256, 1024),
    "aten::var": sizes(lambda n: (torch.var, (rand(n, n),)), 64, 256, 1024),
    "aten::std": sizes(lambda n: (torch.std, (rand(n, n),)), 64, 256, 1024),
    "aten::repeat": sizes(lambda n: (Tensor.repeat, (rand(n, n), 2, 1, 1)), 64, 256, 1024),
    "aten::floor_divide": sizes(lambda n: (torch.floor_divide, (rand(n, n), 3)), 64, 256, 1024),
}


def last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return rand(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def _conv2d(make: Callable[..., Tensor], inputs: int, outputs: int, kernel: int, **more: Any) -> Callable[[int], Case]:
    """``batch`` images of n by n; what else F.conv2d takes by name."""
    batch, groups = more.pop("batch", 2), more.get("groups", 1)

    def build(n: int) -> Case:
        x, w = make(batch, inputs, n, n), make(outputs, inputs // groups, kernel, kernel)
        return functools.partial(F.conv2d, **more), (x, w, rand(outputs, dtype=x.dtype))

    return build


def _transposed(make: Callable[..., Tensor], kernel: int, **more: Any) -> Callable[[int], Case]:
    groups = more.get("groups", 1)

    def build(n: int) -> Case:
        x, w = make(2, 32, n, n), rand(32, 32 // groups, kernel, kernel)
        return functools.partial(F.conv_transpose2d, **more), (x, w, rand(32))

    return build


def _attention(dtype: torch.dtype, **more: Any) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        q, k, v = (rand(2, n, 4, 64, dtype=dtype).transpose(1, 2) for _ in range(3))
        return functools.partial(F.scaled_dot_product_attention, **more), (q, k, v)

    return build


# Other layouts, dtypes and paths of the same operators.
MORE_CASES: dict[str, list[Callable[[], Case]]] = {
    "index by int32": sizes(
        lambda n: (torch.ops.aten.index.Tensor, (rand(8, 16), [integers(8, n).int(), integers(16, n, 1).int()])),
        64, 256, 1024,
    ),
    "index by int32 and int64": sizes(
        lambda n: (torch.ops.aten.index.Tensor, (rand(8, 2, 16), [integers(8, n, 1).int(), None, integers(16, n)])),
        64, 256, 1024,
    ),
    "conv channels last": sizes(_conv2d(last, 16, 32, 3, padding=1), 16, 64, 160),
    "conv one image": sizes(_conv2d(rand, 16, 32, 3, batch=1), 16, 32, 160),
    "conv first layer": sizes(_conv2d(rand, 3, 64, 7, stride=2, padding=3), 32, 96, 224),
    "conv patches": sizes(_conv2d(rand, 3, 192, 16, stride=16), 32, 128, 224),
    "conv 1x1": sizes(_conv2d(rand, 48, 40, 1), 16, 64, 128),
    "conv 1x1 channels last": sizes(_conv2d(last, 48, 40, 1), 16, 64, 128),
    "conv 1x1 strided": sizes(_conv2d(rand, 64, 64, 1, stride=2), 16, 64, 128),
    "conv 1x1 one image": sizes(_conv2d(rand, 16, 24, 1, batch=1), 8, 32, 128),
    "conv strided": sizes(_conv2d(rand, 64, 128, 3, stride=2, padding=1), 16, 32, 96),
    "conv dilated": sizes(_conv2d(rand, 32, 32, 3, dilation=2), 16, 64, 128),
    "conv dilated, one image": sizes(_conv2d(rand, 16, 36, 3, dilation=2, batch=1), 16, 24, 128),
    "conv grouped": sizes(_conv2d(rand, 64, 64, 3, groups=4), 16, 32, 96),
    "conv grouped channels last": sizes(_conv2d(last, 60, 60, 3, groups=3), 16, 32, 96),
    "conv depthwise": sizes(_conv2d(rand, 60, 60, 3, groups=60), 16, 64, 128),
    "conv depthwise channels last": sizes(_conv2d(last, 64, 64, 3, groups=64), 16, 64, 128),
    "conv depthwise doubled": sizes(_conv2d(rand, 32, 64, 3, groups=32), 16, 64, 128),
    "conv few channels": sizes(_conv2d(rand, 5, 7, 3), 16, 64, 160),
    "conv double": sizes(_conv2d(functools.partial(rand, dtype=torch.float64), 8, 16, 3), 16, 32, 64),
    "conv double grouped": sizes(
        _conv2d(functools.partial(rand, dtype=torch.float64), 16, 32, 3, groups=4), 16, 32, 64
    ),
    "conv one image, channels last": sizes(_conv2d(last, 16, 32, 3, batch=1), 16, 32, 160),
    "conv 3d one image": sizes(lambda n: (F.conv3d, (rand(1, 4, 8, n, n), rand(8, 4, 3, 3, 3), rand(8))), 8, 16, 48),
    "conv 1d": sizes(lambda n: (F.conv1d, (rand(2, 80, n), rand(128, 80, 3), rand(128), 1, 1)), 128, 1024, 4096),
    "conv 1d transposed input": sizes(
        lambda n: (F.conv1d, (rand(2, n, 80).mT, rand(128, 80, 3), rand(128), 1, 1)), 128, 1024, 4096
    ),
    "conv 3d": sizes(lambda n: (F.conv3d, (rand(2, 16, 8, n, n), rand(32, 16, 3, 3, 3), rand(32))), 8, 24, 48),
    "conv transposed": sizes(_transposed(rand, 3), 16, 32, 96),
    "conv transposed strided": sizes(_transposed(rand, 4, stride=2, padding=1), 16, 32, 96),
    "conv transposed channels last": sizes(_transposed(last, 4, stride=2, padding=1), 16, 32, 96),
    "conv transposed depthwise": sizes(_transposed(rand, 3, groups=32), 16, 32, 96),
    "attention bfloat16": sizes(_attention(BFLOAT16), 64, 256, 1024),
    "attention causal": sizes(_attention(torch.float32, is_causal=True), 100, 777, 2000),
    "softmax bfloat16": sizes(lambda n: (torch.softmax, (rand(n, n, dtype=BFLOAT16).mT, 0)), 64, 256, 1024),
    "layer_norm mixed": sizes(
        lambda n: (F.layer_norm, (rand(n, 256, dtype=BFLOAT16), (256,), rand(256), rand(256))), 64, 512, 4096
    ),
    "mean float32 from int": sizes(
        lambda n: (functools.partial(torch.mean, dtype=torch.float32), (integers(9, n, n), 0)), 64, 256, 1024
    ),
    "sum bfloat16 around a dimension": sizes(
        lambda n: (torch.sum, (rand(n, 64, n, dtype=BFLOAT16), (0, 2))), 8, 32, 96
    ),
    "sort a column": sizes(lambda n: (torch.sort, (rand(n, 64), 0)), 64, 1024, 16384),
    "median of a column": sizes(lambda n: (torch.median, (rand(n, 64), 0)), 64, 1024, 16384),
    "roll three": sizes(lambda n: (torch.roll, (rand(n, n, 4), (1, 1, 1), (0, 1, 2))), 32, 128, 512),
    "add mixed": sizes(lambda n: (torch.add, (rand(n, n, dtype=BFLOAT16), rand(n, n))), 64, 256, 1024),
    "exp of int": sizes(lambda n: (torch.exp, (integers(9, n, n),)), 64, 256, 1024),
    "where mixed": sizes(lambda n: (torch.where, (rand(n, n) < 0.5, rand(n, n), integers(9, n, n))), 64, 256, 1024),
    "linear bfloat16, few rows": sizes(
        lambda n: (F.linear, (rand(16, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16))), 64, 512, 2048
    ),
    "lstm one item": sizes(_lstm_of_one, 32, 128, 512),
    # Composites that do in place in eager what they do out of place under a dispatch mode (see `eager_paths`).
    "linear of a permuted input": sizes(
        lambda n: (F.linear, (rand(64, 4, n).transpose(0, 1), rand(n, n), rand(n))), 64, 256, 1024
    ),
    "linear of a permuted input, learned": sizes(
        lambda n: (F.linear, (rand(64, 4, n).transpose(0, 1), learned(n, n), learned(n))), 64, 256, 1024
    ),
    "linear of permuted heads": sizes(
        lambda n: (F.linear, (rand(2, 4, n, 64).transpose(1, 2), rand(256, 64), rand(256))), 64, 256, 1024
    ),
    "linear of every second feature": sizes(
        lambda n: (F.linear, (rand(4, 64, 2 * n)[..., ::2], rand(n, n), rand(n))), 64, 256, 1024
    ),
    "attention by separate operators, with a mask": sizes(
        lambda n: (
            F.scaled_dot_product_attention,
            (rand(2, 4, n, 32), rand(2, 4, n, 32), rand(2, 4, n, 16), rand(n, n)),
        ),
        *(32, 128, 512),
    ),
    "attention double": sizes(_attention(torch.float64), 64, 256, 1024),
    "gru of a permuted input": sizes(
        lambda n: (torch.gru, (rand(4, 16, n), rand(1, 4, n), gru_weights(n), True, 1, 0.0, *(False,) * 2, True)),
        *(32, 128, 256),
    ),
    "matmul of permuted heads": sizes(
        lambda n: (torch.matmul, (rand(2, n, 4, 32).transpose(1, 2), rand(2, n, 4, 32).permute(0, 2, 3, 1))),
        *(32, 128, 512),
    ),
    "baddbmm of permuted operands": sizes(
        lambda n: (torch.baddbmm, (rand(4, n, 64), rand(n, 4, 32).transpose(0, 1), rand(32, 4, 64).transpose(0, 1))),
        *(32, 128, 512),
    ),
}


def _recurrent(kind: str, dtype: torch.dtype) -> Callable[[int], Case]:
    def build(n: int) -> Case:
        gates, states = {"gru": (3, 1), "lstm": (4, 2)}[kind]
        weights = [rand(*shape, dtype=dtype) for shape in ((gates * n, n), (gates * n, n), (gates * n,), (gates * n,))]
        hidden = [rand(1, 4, n, dtype=dtype) for _ in range(states)]
        x = rand(16, 4, n, dtype=dtype)
        return getattr(torch, kind), (x, hidden if states > 1 else hidden[0], weights, True, 1, 0.0, *(False,) * 3)

    return build


def _bfloat16(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *shape: make(*shape).bfloat16()


# Calls of kernels that each processor has its own of: no rule was fitted to them, and planning measures them.
MEASURED_CASES: dict[str, list[Callable[[], Case]]] = {
    "linear bfloat16": sizes(
        lambda n: (F.linear, (rand(256, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16))), 64, 512, 1024
    ),
    "linear bfloat16, one row": sizes(
        lambda n: (F.linear, (rand(1, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16))), 64, 512, 2048
    ),
    "linear bfloat16, permuted": sizes(
        lambda n: (F.linear, (rand(64, 4, n, dtype=BFLOAT16).transpose(0, 1), rand(n, n, dtype=BFLOAT16))),
        *(64, 128, 512),
    ),
    "linear bfloat16, permuted, learned": sizes(
        lambda n: (F.linear, (rand(64, 4, n, dtype=BFLOAT16).transpose(0, 1), learned(n, n, dtype=BFLOAT16))),
        *(64, 128, 512),
    ),
    "gru bfloat16 of a permuted input, learned": sizes(
        lambda n: (
            torch.gru,
            (
                *(rand(4, 16, n, dtype=BFLOAT16), rand(1, 4, n, dtype=BFLOAT16)),
                [w.requires_grad_() for w in gru_weights(n, BFLOAT16)],
                *(True, 1, 0.0, False, False, True),
            ),
        ),
        *(32, 64, 128),
    ),
    "linear float16": sizes(
        lambda n: (F.linear, (rand(16, n, dtype=torch.float16), rand(n, n, dtype=torch.float16))), 64, 128, 256
    ),
    "bmm bfloat16, one matrix for all": sizes(
        lambda n: (torch.bmm, (rand(4, 32, n, dtype=BFLOAT16), rand(n, n, dtype=BFLOAT16).expand(4, n, n))),
        *(64, 128, 512),
    ),
    "grouped_mm with offsets": sizes(
        lambda n: (
            torch._grouped_mm,
            (rand(n, 64, dtype=BFLOAT16), rand(2, 64, 128, dtype=BFLOAT16), torch.tensor([n, n], dtype=torch.int32)),
        ),
        *(32, 128, 512),
    ),
    "conv bfloat16": sizes(_conv2d(_bfloat16(rand), 3, 16, 7, padding=3), 16, 64, 96),
    "conv bfloat16 channels last": sizes(_conv2d(_bfloat16(last), 16, 32, 3), 16, 32, 64),
    "conv 1x1 bfloat16 strided": sizes(_conv2d(_bfloat16(rand), 32, 64, 1, stride=2), 16, 32, 64),
    "conv float16": sizes(_conv2d(lambda *shape: rand(*shape).half(), 8, 16, 3), 16, 24, 32),
    "gru": sizes(_recurrent("gru", torch.float32), 32, 64, 128),
    "gru bfloat16": sizes(_recurrent("gru", BFLOAT16), 32, 64, 128),
    "lstm bfloat16": sizes(_recurrent("lstm", BFLOAT16), 32, 64, 128),
    "attention float16": sizes(_attention(torch.float16), 64, 256, 512),
}


def as_fake(args: Any, mode: FakeTensorMode, *, dynamic: bool = False) -> Any:
    def convert(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        kind = DimDynamic.DYNAMIC if dynamic else DimDynamic.STATIC
        context = StatelessSymbolicContext(dynamic_sizes=[kind] * leaf.dim()) if mode.shape_env else None
        return mode.from_tensor(leaf, symbolic_context=context)

    return pytree.tree_map(convert, args)


def peak_of(
    case: Case,
    mode: FakeTensorMode,
    bind: Callable[[sympy.Symbol], int],
    *,
    dynamic: bool = False,
    measure: bool = True,
) -> int:
    """The highest peak that `observe` sees, with sizes that are symbols bound.

    ``measure``: kernels whose memory depends on the processor are measured, as planning does; else by rules alone.
    """
    function, args = case
    fakes = as_fake(args, mode, dynamic=dynamic)
    scratch = observe(function, fakes, {}, mode).scratch
    peaks = scratch.by_rules()
    sizes = [size for leaf in pytree.tree_leaves(fakes) if isinstance(leaf, Tensor) for size in leaf.shape]
    found = [sympy.sympify(size) for size in (*peaks, *map(to_expr, sizes))]
    numbers = {symbol: bind(symbol) for size in found for symbol in size.free_symbols}
    if measure:
        peaks, estimated = scratch.at(numbers)
        assert not estimated
    return max(Evaluator(peaks)(numbers))


def predicted(case: Case, *, measure: bool = True) -> int:
    """A size that only the data decides is the real result's."""
    function, args = case
    return peak_of(case, new_fake_mode(ShapeEnv()), lambda _: int(function(*args).size(0)), measure=measure)
