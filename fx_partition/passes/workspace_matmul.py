"""Workspace of matrix products: copies of operands BLAS cannot read, oneDNN's packed blocks, and linalg."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from .workspace_call import Bytes, LeafCall, WorkspaceRule, likely, merges, nbytes, product, round_up, smallest


@functools.cache
def cpu_capabilities() -> dict[str, object]:
    """What the CPU can do: oneDNN chooses its kernels, and with them its workspace, by it."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def has_amx() -> bool:
    return bool(cpu_capabilities().get("amx_bf16", False))


def _l2_bytes() -> int:
    size = cpu_capabilities().get("l2_cache_size")
    return size if isinstance(size, int) and size > 0 else 2**21


def _operand(tensor: torch.Tensor) -> Bytes:
    """A copy, unless rows or columns are dense (BLAS takes either, with a leading dimension)."""
    sizes, strides = tensor.shape[-2:], tensor.stride()[-2:]
    dense = any(
        likely(strides[i] == 1) and (likely(strides[1 - i] >= sizes[i]) or likely(sizes[1 - i] == 1)) for i in (0, 1)
    )
    return 0 if dense else nbytes(tensor)


def _packed(a: torch.Tensor, b: torch.Tensor, threads: int) -> Bytes:
    """An upper bound on what oneDNN packs, where it searches for its blocks."""
    rows = 1 if a.dim() == 1 else a.size(-2)
    inner, columns = round_up(a.size(-1), 64), 64 if b.dim() == 1 else round_up(b.size(-1), 64)
    size = _packed_on_amx(b, rows, inner, columns) if has_amx() else _packed_on_avx512(b, rows, inner)
    if not likely(a.stride(-1) == 1):
        size = size + inner * round_up(rows, 64) * a.element_size()
    return threads * size


def _packed_on_avx512(b: torch.Tensor, rows: Bytes, inner: Bytes) -> Bytes:
    """A block of 64 columns, its sums in float32, and the code's own; measured on Zen, where it holds for all but
    products of many rows over more than some 4,000 columns of the first operand, which take more."""
    cache = _l2_bytes() // 16 if likely(rows == 1) else _l2_bytes() // 8
    return smallest(inner * 64 * b.element_size(), cache) + smallest(rows, 256) * 64 * 4 + 1024


def _packed_on_amx(b: torch.Tensor, rows: Bytes, inner: Bytes, columns: Bytes) -> Bytes:
    if likely(rows <= 32) and (b.dim() == 1 or not likely(b.stride(-1) == 1)):
        columns = 64 if likely(rows == 1) else 32
    # Packed columns stay in the L2 cache, or not much beyond it.
    size = smallest(inner * columns * b.element_size(), 9 * _l2_bytes() // 4)
    return size + (5120 if b.dtype == torch.bfloat16 else 10240)


def _whole(tensor: torch.Tensor) -> Bytes:
    """oneDNN takes a batch that is dense, or dense once each matrix is transposed; else it is copied."""
    return 0 if tensor.is_contiguous() or tensor.mT.is_contiguous() else nbytes(tensor)


def _by_onednn(a: torch.Tensor) -> bool:
    """use_mkldnn_matmul: bfloat16 and float16 where the CPU multiplies them."""
    if a.dtype == torch.bfloat16:
        return all(cpu_capabilities().get(f"avx512_{part}", False) for part in ("bw", "vl", "dq"))
    return a.dtype == torch.float16 and bool(cpu_capabilities().get("avx512_fp16", False))


def _product(first: str, second: str) -> Callable[[LeafCall], Bytes]:
    def rule(call: LeafCall) -> Bytes:
        a, b = call[first], call[second]
        if _by_onednn(a):
            copies = [_whole(t) if t.dim() == 3 else _operand(t) if t.dim() == 2 else 0 for t in (a, b)]
            return sum(copies, _packed(a, b, call.threads))
        if a.dim() == 3:  # one matrix of the batch after the other
            return (_operand(a) + _operand(b)) // a.size(0)
        return sum(_operand(t) for t in (a, b) if t.dim() == 2)

    return rule


def _square(copies: int, rows: int) -> Callable[[LeafCall], Bytes]:
    """``copies`` of the matrix, ``rows`` of it, and what turning one matrix to column-major order takes."""

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
    """A copy, if the dimensions that are not transformed do not merge into one."""
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
    "aten::mm": WorkspaceRule(_product("self", "mat2"), _BLAS),
    "aten::addmm": WorkspaceRule(_product("mat1", "mat2"), _BLAS),
    "aten::bmm": WorkspaceRule(_product("self", "mat2"), _BLAS),
    "aten::baddbmm": WorkspaceRule(_product("batch1", "batch2"), _BLAS),
    "aten::mv": WorkspaceRule(_product("self", "vec"), _BLAS),
    "aten::dot": WorkspaceRule(_product("self", "tensor"), _BLAS),
    "aten::_grouped_mm": WorkspaceRule(_product("self", "mat2"), _BLAS),
    "aten::_cdist_forward": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::_euclidean_dist": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::linalg_inv_ex": WorkspaceRule(_square(1, 1), _LAPACK),
    "aten::linalg_qr": WorkspaceRule(_qr, _LAPACK),
    "aten::_linalg_svd": WorkspaceRule(_square(1, 0), _LAPACK),
    "aten::_linalg_eigh": WorkspaceRule(_eigh, _LAPACK),
    "aten::_linalg_det": WorkspaceRule(_square(0, 3), _LAPACK),
    "aten::_linalg_slogdet": WorkspaceRule(_square(0, 3), _LAPACK),
    "aten::_linalg_solve_ex": WorkspaceRule(_square(0, 1), _LAPACK),
    "aten::linalg_pinv": WorkspaceRule(_square(3, 4), "ATen/native/LinearAlgebra.cpp, pinv: the factors of svd"),
    "aten::linalg_matrix_exp": WorkspaceRule(
        _matrix_exp, "ATen/native/LinearAlgebra.cpp, mexp: powers of the matrix for the Taylor polynomial"
    ),
    "aten::linalg_cholesky_ex": WorkspaceRule(_square(0, 0), _LAPACK),
    "aten::linalg_lu_factor_ex": WorkspaceRule(_square(0, 0), _LAPACK),
    "aten::cholesky_inverse": WorkspaceRule(_square(0, 0), _LAPACK),
    "aten::cholesky_solve": WorkspaceRule(lambda call: nbytes(call["input2"]) + 64, _LAPACK),
    "aten::_fft_r2c": WorkspaceRule(
        _batched_fft, "ATen/native/mkl/SpectralOps.cpp, _exec_fft: the input with the transformed dimensions last"
    ),
    "aten::_fft_c2c": WorkspaceRule(
        _batched_fft, "ATen/native/mkl/SpectralOps.cpp, _exec_fft: the input with the transformed dimensions last"
    ),
    "aten::_fft_c2r": WorkspaceRule(
        _complex_to_real, "ATen/native/mkl/SpectralOps.cpp, _fft_c2r_mkl: the complex pass before, and a clone of it"
    ),
}
