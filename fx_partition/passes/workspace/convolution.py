"""Workspace rules of convolution: oneDNN's blocked copies of source, weight and result, or im2col's columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fx_partition.hardware.processor import cpu_capabilities

from ..capture.op_call import Bytes, LeafCall, largest, likely, nbytes, product, round_up
from .layout_copies import channels_last, copy_as_last, densified
from .matmul import has_amx, narrow, slowness
from .workspace_rule import WorkspaceRule


@dataclass(frozen=True)
class _Convolution:
    """One call; a 1-d convolution is 2-d with height 1, as in ATen."""

    x: torch.Tensor
    w: torch.Tensor
    y: torch.Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    biased: bool
    groups: int
    threads: int

    @classmethod
    def of(cls, call: LeafCall) -> _Convolution:
        x, w, y = call["input"], call["weight"], call.result
        sizes = {}
        spatial = x.dim() - 2
        for name in ("stride", "padding", "dilation", "output_padding"):
            values = list(call[name])
            sizes[name] = values * spatial if len(values) == 1 else values
        if x.dim() == 3:
            x, w, y = (t.unsqueeze(2) for t in (x, w, y))
            fill = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}
            sizes = {name: [fill[name], *values] for name, values in sizes.items()}
        return cls(
            x=x,
            w=w,
            y=y,
            transposed=call["transposed"],
            biased=call["bias"] is not None,
            groups=call["groups"],
            threads=call.threads,
            **{name: tuple(values) for name, values in sizes.items()},
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(self.w.shape[2:])

    @property
    def pointwise(self) -> bool:
        return all(k == 1 for k in self.kernel)

    @property
    def strided(self) -> bool:
        return any(s != 1 for s in self.stride)

    @property
    def dilated(self) -> bool:
        return any(d != 1 for d in self.dilation)

    @property
    def channels(self) -> tuple[int, int]:
        """Return the number of channels of the source and of the result."""
        return self.x.shape[1], self.y.shape[1]

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.channels == (self.groups, self.groups)


def _convolution(call: LeafCall) -> Bytes:
    # ATen makes a permuted 3-d input dense before it looks for channels last.
    permuted = call["input"].dim() == 3 and not call["input"].is_contiguous()
    conv = _Convolution.of(call)
    last = not permuted and (channels_last(conv.x) or channels_last(conv.w))
    in_rows = copy_as_last(conv.x) + copy_as_last(conv.w) if last else 0
    dense = densified(conv.x) + densified(conv.w)
    if not _by_onednn(conv):
        return (in_rows if last and conv.x.dim() == 4 else dense) + _by_columns(conv)
    return in_rows + _in_rows(conv) if last else dense + _blocked(conv)


def _by_onednn(conv: _Convolution) -> bool:
    """Whether oneDNN runs the convolution: ConvParams::use_mkldnn in ATen/native/Convolution.cpp."""
    x, dtype = conv.x, conv.x.dtype
    if conv.transposed and any(p >= s for p, s in zip(conv.output_padding, conv.stride, strict=True)):
        return False
    if dtype == torch.bfloat16:
        return bool(cpu_capabilities().get("avx512_bw", False))
    if dtype == torch.float16:
        return bool(cpu_capabilities().get("avx512_fp16", False))
    if dtype != torch.float32:
        return False
    if not (conv.strided or conv.dilated or likely(x.size(0) >= 16) or not conv.pointwise or conv.threads > 1):
        return False
    return (
        conv.groups > 1
        or all(k > 3 for k in conv.kernel[-2:])
        or likely(x.size(0) > 1)
        or likely(product(x.shape[:4]) > 20480)
    )


def _by_columns(conv: _Convolution) -> Bytes:
    """Return the bytes of the columns that im2col writes for a matrix product."""
    x, y = conv.x, conv.y
    itemsize = x.element_size()
    inputs, taps, image = x.size(1) // conv.groups, product(conv.kernel), product(y.shape[2:])
    if conv.transposed:
        return y.size(1) // conv.groups * taps * product(x.shape[2:]) * itemsize
    if conv.dilated:  # one image after another
        columns = inputs * taps * image * itemsize
    elif conv.pointwise and not conv.strided and not any(conv.padding):
        columns = 0
    else:
        columns = x.size(0) * inputs * taps * image * itemsize
    if conv.groups > 1:  # one group after another, each sliced from the source; then their results are concatenated
        return largest(columns + nbytes(x) // conv.groups, nbytes(y))
    return columns


def _simd() -> int:
    return 16 if cpu_capabilities().get("avx512_bw", True) else 8


def _row_weight(conv: _Convolution) -> Bytes:
    """Return the bytes of the weight, reordered to blocks of 16 to 64 output channels: Acdb64a and its like."""
    source, result = conv.channels
    taps = product(conv.kernel) * conv.w.element_size()
    if conv.depthwise:
        return round_up(result, _simd()) * taps
    inputs: Bytes = source // conv.groups
    outputs = result // conv.groups
    if conv.groups > 1 and inputs == 1:
        return conv.groups * round_up(outputs, 16) * 16 * taps
    if narrow(conv.w):  # one instruction multiplies groups of four
        inputs = round_up(inputs, 4)
    if conv.groups > 1:
        return conv.groups * (outputs if outputs in (4, 8) else round_up(outputs, 16)) * inputs * taps
    block = 16 if outputs <= 32 else 48 if outputs > 64 or not conv.pointwise else 64
    return largest(round_up(outputs, block), round_up(outputs, 16)) * inputs * taps


def _in_rows(conv: _Convolution) -> Bytes:
    """Return the bytes for channels-last operands: the reordered weight, and brgemm_convolution's scratch a thread."""
    if conv.depthwise:
        return _row_weight(conv) + (nbytes(conv.y) + 256 if conv.transposed else 0)
    return _row_weight(conv) + conv.threads * _thread_scratch(conv) + _narrow_pointwise(conv) + 4352


def _narrow_pointwise(conv: _Convolution) -> Bytes:
    """Return the bytes of a 1x1 convolution of narrow floats without AMX: sums in float32, and a gathered source."""
    if not narrow(conv.x) or has_amx() or not conv.pointwise:
        return 0
    gathered = conv.x.size(0) * conv.x.size(1) * product(conv.y.shape[2:]) if conv.strided else 0
    return conv.y.numel() * 4 + gathered * conv.x.element_size() + 4096


def _thread_scratch(conv: _Convolution) -> Bytes:
    descriptors = 4160
    source, result = conv.channels
    itemsize = conv.x.element_size()
    padded = product(size + k - 1 for size, k in zip(conv.x.shape[2:], conv.kernel, strict=True))
    if itemsize < 4 and has_amx():  # an upper bound, as oneDNN searches for the sizes of its tiles
        taps = conv.kernel[-1] if likely(source < 16) else 1
        image = padded * round_up(source * taps, 32) * itemsize
        return image + product(conv.y.shape[2:]) * round_up(result, 16) * 4 + 16384
    if conv.transposed and conv.strided:  # brgconv_strided copies the padded source of an image
        margins = [size if k == 1 else size + k for size, k in zip(conv.x.shape[2:], conv.kernel, strict=True)]
        lone_row = likely(conv.x.size(-2) == 1)
        image = product(margins) if lone_row else product(margins[:-1]) * (margins[-1] + 1)
        return round_up((2 if lone_row else 1) * source * image * itemsize, 4096) + descriptors + 4096
    if likely(source == 1):  # a single channel is copied to rows of the kernel's width
        row = round_up(conv.x.size(-1), 32) * round_up(conv.kernel[-1], 8) * itemsize
        rows = product(n if k == 1 else n + k for n, k in zip(conv.x.shape[2:-1], conv.kernel[:-1], strict=True))
        return round_up(rows * row, 4096) + descriptors
    return descriptors


def _blocked(conv: _Convolution) -> Bytes:
    """Return the bytes for contiguous operands: blocked copies of all three, then both forms of the result."""
    x, y, simd = conv.x, conv.y, _simd()
    source, result = conv.channels
    itemsize = x.element_size()
    outputs = nbytes(y)
    rows = conv.transposed and conv.strided and conv.groups == 1
    if (rows or itemsize < 4) and not conv.depthwise:  # oneDNN prefers channels last, so ATen copies back, twice
        return largest(nbytes(x) + _in_rows(conv), (2 if conv.transposed else 1) * outputs)
    if conv.groups == 1 or conv.depthwise:
        flat = conv.groups == 1 and source < simd and not conv.pointwise and not conv.transposed
        src = 0 if flat else x.size(0) * round_up(source, simd) * product(x.shape[2:]) * itemsize
        dst = y.size(0) * round_up(result, simd) * product(y.shape[2:]) * itemsize
        inputs = 1 if conv.depthwise else source if flat else round_up(source, simd)
        weight = round_up(result, simd) * inputs * product(conv.kernel) * itemsize
        scratch: Bytes = round_up(largest(source, result), simd) * itemsize + 1536
        if conv.pointwise and conv.strided:  # each thread gathers the source of an image to unit stride
            scratch = scratch + conv.threads * round_up(source, simd) * product(y.shape[2:]) * itemsize
    elif any(source // conv.groups % b == 0 and result // conv.groups % b == 0 for b in (16, 8, 4)):
        src, weight, dst, scratch = nbytes(x), nbytes(conv.w), outputs, 128
    else:  # im2col and gemm on the plain layout
        src, weight, dst = 0, 0, outputs
        scratch = conv.threads * (source // conv.groups * product(conv.kernel) * product(y.shape[2:]) * itemsize) + 128
    if conv.transposed and conv.biased:  # a convolution's backward pass, then the bias on a copy of its result
        scratch = scratch + dst
    return largest(src + weight + dst + scratch - outputs, dst)


def _flops(call: LeafCall) -> Bytes:
    x, w = call["input"], call["weight"]
    swept = x if call["transposed"] else call.result
    return 2 * swept.numel() * (w.numel() // w.size(0)) * slowness(x)


CONV_RULES: dict[str, WorkspaceRule] = {
    "aten::convolution": WorkspaceRule(
        _convolution,
        "ATen/native/mkldnn/Conv.cpp: source, weight and result in oneDNN's blocked formats (aBcd16b, ABcd16b16a), "
        "then mkldnn_to_dense; ATen/native/ConvolutionMM2d.cpp and NaiveDilatedConvolution.cpp: columns",
        varies=lambda call: call["input"].dtype == torch.float32 or narrow(call["input"]),
        flops=_flops,
    ),
}
