"""Workspace rules of matrix products (copies of operands BLAS cannot read, oneDNN's packed blocks) and of linalg."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace

import torch

from fx_partition.hardware.processor import cpu_capabilities

from ..capture.op_call import Bytes, LeafCall, likely, nbytes, product, round_up, smallest
from .layout_copies import merges
from .workspace_rule import WorkspaceRule, always


def has_amx() -> bool:
    """Whether the CPU multiplies tiles of bfloat16 (Sapphire Rapids and later)."""
    return bool(cpu_capabilities().get("amx_bf16", False))


def narrow(tensor: torch.Tensor) -> bool:
    """Whether the elements are 16-bit floats, which oneDNN multiplies by kernels of its choice, and not BLAS."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _by_choice_of_onednn(tensor: torch.Tensor) -> bool:
    """Whether oneDNN may multiply a tensor: narrow floats, and float32 on ARM or where a user lets it be rounded."""
    if narrow(tensor):
        return True
    matmul = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009  # made at import, unknown to mypy
    rounded = matmul.fp32_precision not in ("none", "ieee")
    return tensor.dtype == torch.float32 and (rounded or platform.machine().lower() not in ("x86_64", "amd64"))


def without_mkl(call: LeafCall) -> bool:
    """Whether torch lacks MKL, to whose LAPACK and FFT the rules were fitted."""
    return not torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]


def _l2_bytes() -> int:
    size = cpu_capabilities().get("l2_cache_size")
    return size if isinstance(size, int) and size > 0 else 2**21


def _operand(tensor: torch.Tensor) -> Bytes:
    """Return the bytes of an operand's copy; 0 if rows or columns are dense, as BLAS reads either."""
    sizes, strides = tensor.shape[-2:], tensor.stride()[-2:]
    dense = any(
        likely(strides[i] == 1) and (likely(strides[1 - i] >= sizes[i]) or likely(sizes[1 - i] == 1)) for i in (0, 1)
    )
    return 0 if dense else nbytes(tensor)


def _packed(a: torch.Tensor, b: torch.Tensor, threads: int) -> Bytes:
    """Return an upper bound on the bytes that oneDNN packs, as it searches for the sizes of its blocks."""
    rows = 1 if a.dim() == 1 else a.size(-2)
    inner, columns = round_up(a.size(-1), 64), 64 if b.dim() == 1 else round_up(b.size(-1), 64)
    if not has_amx() and not cpu_capabilities().get(f"avx512_{'bf16' if a.dtype == torch.bfloat16 else 'fp16'}", False):
        # Without instructions for narrow floats each thread sums the products of one matrix in float32.
        return (threads if a.dim() == 3 else 1) * rows * (1 if b.dim() == 1 else b.size(-1)) * 4 + 128
    size = _packed_on_amx(b, rows, inner, columns) if has_amx() else _packed_on_avx512(b, rows, inner)
    if not likely(a.stride(-1) == 1):
        size = size + inner * round_up(rows, 64) * a.element_size()
    return threads * size


def _packed_on_avx512(b: torch.Tensor, rows: Bytes, inner: Bytes) -> Bytes:
    """Return the bytes of a block of 64 columns, its sums in float32, and a constant.

    Measured on Zen. It is too low for many rows of more than about 4,000 columns in the first operand.
    """
    cache = _l2_bytes() // 16 if likely(rows == 1) else _l2_bytes() // 8
    return smallest(inner * 64 * b.element_size(), cache) + smallest(rows, 256) * 64 * 4 + 1024


def _packed_on_amx(b: torch.Tensor, rows: Bytes, inner: Bytes, columns: Bytes) -> Bytes:
    if likely(rows <= 32) and (b.dim() == 1 or not likely(b.stride(-1) == 1)):
        columns = 64 if likely(rows == 1) else 32
    # Packed columns take little more than the L2 cache.
    size = smallest(inner * columns * b.element_size(), 9 * _l2_bytes() // 4)
    return size + (5120 if b.dtype == torch.bfloat16 else 10240)


def _whole(tensor: torch.Tensor) -> Bytes:
    """Return the bytes of a batch's copy; 0 if it is dense, or dense once each matrix is transposed."""
    return 0 if tensor.is_contiguous() or tensor.mT.is_contiguous() else nbytes(tensor)


def _by_onednn(a: torch.Tensor) -> bool:
    """Whether oneDNN multiplies a tensor (use_mkldnn_matmul): bfloat16 and float16 where the CPU has instructions."""
    if a.dtype == torch.bfloat16:
        return all(cpu_capabilities().get(f"avx512_{part}", False) for part in ("bw", "vl", "dq"))
    return a.dtype == torch.float16 and bool(cpu_capabilities().get("avx512_fp16", False))


def _product(first: str, second: str) -> Callable[[LeafCall], Bytes]:
    def rule(call: LeafCall) -> Bytes:
        a, b = call[first], call[second]
        if _by_onednn(a):
            copies = [_whole(t) if t.dim() == 3 else _operand(t) if t.dim() == 2 else 0 for t in (a, b)]
            return sum(copies, _packed(a, b, call.threads))
        if a.dim() == 3:  # one matrix of the batch after another
            return (_operand(a) + _operand(b)) // a.size(0)
        return sum(_operand(t) for t in (a, b) if t.dim() == 2)

    return rule


def _multiplies(first: str, second: str, bytes: Callable[[LeafCall], Bytes] | None = None) -> WorkspaceRule:
    """Return the rule of a product of two arguments."""
    return WorkspaceRule(
        bytes or _product(first, second),
        _BLAS,
        varies=lambda call: _by_choice_of_onednn(call[first]),
        flops=lambda call: 2 * call.result.numel() * call[first].size(-1) * slowness(call[first]),
    )


def slowness(tensor: torch.Tensor) -> int:
    """Return about how many times as long as float32 a product takes: more where the CPU has no instructions for it.
    """
    return 16 if narrow(tensor) and not _by_onednn(tensor) else 1


def _all_rows(call: LeafCall) -> Bytes:
    """Return the end of each group where the first group has all rows, which allocates the most."""
    a, b = call["self"], call["mat2"]
    return a.size(0) if (a.dim(), b.dim()) == (2, 3) else b.size(-1) if a.dim() == 3 else a.size(-1)


def _bilinear(call: LeafCall) -> Bytes:
    """Return the bytes for one output feature: the first operand times a matrix of the weight, and the result."""
    a, weight, b = call["i1"], call["i2"], call["i3"]
    rows = b.numel() // b.size(-1)
    return nbytes(b) + rows * b.element_size() + (_packed(a, weight[0], call.threads) if _by_onednn(a) else 0)


def _float32_copies(call: LeafCall) -> Bytes:
    return (call["self"].numel() + call["mat2"].numel() + call.result.numel()) * 4


def _integers(bytes: Callable[[LeafCall], Bytes], source: str) -> WorkspaceRule:
    """Return the rule of a product of narrow integers or 8-bit floats, for which processors differ in instructions."""
    return WorkspaceRule(
        bytes, source, varies=always, flops=lambda call: 2 * call.result.numel() * call["self"].size(-1)
    )


def _nothing(call: LeafCall) -> Bytes:
    return 0


def _factors(bytes: Callable[[LeafCall], Bytes], source: str = "") -> WorkspaceRule:
    """Return the rule of a factorisation, with MKL's work arrays."""
    return WorkspaceRule(
        bytes, source or _LAPACK, varies=without_mkl, flops=lambda call: 32 * call.first.numel() * call.first.size(-1)
    )


def _transform(bytes: Callable[[LeafCall], Bytes], source: str) -> WorkspaceRule:
    return WorkspaceRule(bytes, source, varies=without_mkl, flops=lambda call: 64 * call.first.numel())


def _square(copies: int, rows: int) -> Callable[[LeafCall], Bytes]:
    """Return a rule for ``copies`` of the matrix, ``rows`` of its rows, and one conversion to column-major order."""

    def rule(call: LeafCall) -> Bytes:
        a = call.first
        turned = 3616 if a.dim() == 2 else 256
        return copies * nbytes(a) + (rows * product(a.shape[:-1]) + turned) * a.element_size()

    return rule


def _qr(call: LeafCall) -> Bytes:
    a = call.first
    return (product(a.shape[:-1]) + 97 * a.size(-1)) * a.element_size() + 64


def _matrix_exp(call: LeafCall) -> Bytes:
    a = call.first
    return (12 if a.dim() == 2 else 10) * nbytes(a) + 64 * product(a.shape[:-1]) + 1024


def _eigh(call: LeafCall) -> Bytes:
    n = call.first.size(-1)
    return (2 * n * n + 11 * n) * call.first.element_size() + 1024


def _batched_fft(call: LeafCall) -> Bytes:
    """Return the bytes of a copy, which is made if the dimensions that are not transformed do not merge into one."""
    x = call.first
    transformed = {d % x.dim() for d in call["dim"]}
    return 0 if merges(x, [d for d in range(x.dim()) if d not in transformed]) else nbytes(x)


def _complex_to_real(call: LeafCall) -> Bytes:
    x = call["self"]
    return 2 * nbytes(x) if len(call["dim"]) > 1 else 0 if x.is_contiguous() else nbytes(x)


def _cdist(call: LeafCall) -> Bytes:
    x1, x2 = call["x1"], call["x2"]
    if call["p"] not in (None, 2.0):
        return 0
    return sum(nbytes(x) // x.size(-1) * (x.size(-1) + 2) for x in (x1, x2))


_BLAS = (
    "ATen/native/LinearAlgebra.cpp: copies of operands with neither dimension dense; "
    "bfloat16: oneDNN's brgemm_matmul packs columns of the second (an upper bound)"
)
_LAPACK = "ATen/native/BatchLinearAlgebra.cpp: column-major working copies, pivots and LAPACK's work array"

MATMUL_RULES: dict[str, WorkspaceRule] = {
    "aten::mm": _multiplies("self", "mat2"),
    "aten::addmm": _multiplies("mat1", "mat2"),
    "aten::bmm": _multiplies("self", "mat2"),
    "aten::baddbmm": _multiplies("batch1", "batch2"),
    "aten::mv": _multiplies("self", "vec"),
    "aten::dot": _multiplies("self", "tensor"),
    "aten::_grouped_mm": replace(_multiplies("self", "mat2"), contents={"offs": _all_rows}),
    "aten::addbmm": _multiplies("batch1", "batch2"),
    "aten::addmv": _multiplies("mat", "vec"),
    "aten::_addmm_activation": _multiplies("mat1", "mat2"),
    "aten::_trilinear": WorkspaceRule(
        _bilinear,
        "ATen/native/Linear.cpp, _trilinear: two sumproduct_pair an output feature",
        varies=lambda call: _by_choice_of_onednn(call["i1"]),
        flops=lambda call: 2 * call["i1"].numel() * call["i2"].numel() // call["i1"].size(-1) * slowness(call["i1"]),
    ),
    "aten::_int_mm": _integers(_nothing, "ATen/native/mkldnn/Matmul.cpp, mkldnn_matmul_i8i8i32, with VNNI"),
    "aten::_weight_int8pack_mm": _integers(_nothing, "ATen/native/cpu/int8mm_kernel.cpp, with AVX2 or AVX-512"),
    "aten::_weight_int4pack_mm_for_cpu": _integers(_nothing, "ATen/native/cpu/int4mm_kernel.cpp, with AVX2 or AVX-512"),
    "aten::_scaled_mm": _integers(_float32_copies, "ATen/native/Blas.cpp, _scaled_mm_out_cpu_emulated: all in float32"),
    "aten::_cdist_forward": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::_euclidean_dist": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::linalg_inv_ex": _factors(_square(1, 1)),
    "aten::linalg_qr": _factors(_qr),
    "aten::_linalg_svd": _factors(_square(1, 0)),
    "aten::_linalg_eigh": _factors(_eigh),
    "aten::_linalg_det": _factors(_square(0, 3)),
    "aten::_linalg_slogdet": _factors(_square(0, 3)),
    "aten::_linalg_solve_ex": _factors(_square(0, 1)),
    "aten::linalg_pinv": _factors(_square(3, 4), "ATen/native/LinearAlgebra.cpp, pinv: the factors of svd"),
    "aten::linalg_matrix_exp": WorkspaceRule(
        _matrix_exp, "ATen/native/LinearAlgebra.cpp, mexp: powers of the matrix for the Taylor polynomial"
    ),
    "aten::linalg_cholesky_ex": _factors(_square(0, 0)),
    "aten::linalg_lu_factor_ex": _factors(_square(0, 0)),
    "aten::cholesky_inverse": _factors(_square(0, 0)),
    "aten::cholesky_solve": _factors(lambda call: nbytes(call["input2"]) + 64),
    "aten::_fft_r2c": _transform(
        _batched_fft, "ATen/native/mkl/SpectralOps.cpp, _exec_fft: the input with the transformed dimensions last"
    ),
    "aten::_fft_c2c": _transform(
        _batched_fft, "ATen/native/mkl/SpectralOps.cpp, _exec_fft: the input with the transformed dimensions last"
    ),
    "aten::_fft_c2r": _transform(
        _complex_to_real, "ATen/native/mkl/SpectralOps.cpp, _fft_c2r_mkl: the complex pass before, and a clone of it"
    ),
}
