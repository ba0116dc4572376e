"""Workspace of matrix products: copies of operands BLAS cannot read, oneDNN's packed blocks, and linalg."""

from __future__ import annotations

import functools

import torch

from .workspace_call import Bytes, LeafCall, WorkspaceRule, densified, largest, likely, nbytes, product


@functools.cache
def cpu_capabilities() -> dict[str, object]:
    """What the CPU can do: oneDNN chooses its kernels, and with them its workspace, by it."""
    return dict(torch.cpu.get_capabilities()) if hasattr(torch.cpu, "get_capabilities") else {}


def has_amx() -> bool:
    return bool(cpu_capabilities().get("amx_bf16", False))


def _operand(tensor: torch.Tensor) -> Bytes:
    """A copy, unless rows or columns are dense (BLAS takes either, with a leading dimension)."""
    sizes, strides = tensor.shape[-2:], tensor.stride()[-2:]
    dense = any(
        likely(strides[i] == 1) and (likely(strides[1 - i] >= sizes[i]) or likely(sizes[1 - i] == 1)) for i in (0, 1)
    )
    return 0 if dense else nbytes(tensor)


def _reduced(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)


def _product(a: torch.Tensor, b: torch.Tensor, threads: int) -> Bytes:
    size = _operand(a) + _operand(b)
    return size


def _matmul(first: str, second: str):  # type: ignore[no-untyped-def]
    def rule(call: LeafCall) -> Bytes:
        return _product(call[first], call[second], call.threads)

    return rule


def _square(copies: int, rows: int):  # type: ignore[no-untyped-def]
    """``copies`` of the matrix, and ``rows`` of it."""

    def rule(call: LeafCall) -> Bytes:
        a = call.first
        return copies * nbytes(a) + rows * product(a.shape[:-1]) * a.element_size() + 1024

    return rule


def _real_to_complex(call: LeafCall) -> Bytes:
    x = call["self"]
    last = [d % x.dim() for d in call["dim"]][-1] == x.dim() - 1
    return 0 if last and x.is_contiguous() else nbytes(x)


def _complex_to_real(call: LeafCall) -> Bytes:
    x = call["self"]
    return 2 * nbytes(x) if len(call["dim"]) > 1 else 0 if x.is_contiguous() else nbytes(x)


def _cdist(call: LeafCall) -> Bytes:
    x1, x2 = call["x1"], call["x2"]
    return sum(nbytes(x) // x.size(-1) * (x.size(-1) + 2) for x in (x1, x2))


_BLAS = "ATen/native/LinearAlgebra.cpp: copies of operands with neither dimension dense; bfloat16 by oneDNN's brgemm_matmul"
_LAPACK = "ATen/native/BatchLinearAlgebra.cpp: column-major working copies, pivots and LAPACK's work array"

MATMUL_RULES: dict[str, WorkspaceRule] = {
    "aten::mm": WorkspaceRule(_matmul("self", "mat2"), _BLAS),
    "aten::addmm": WorkspaceRule(_matmul("mat1", "mat2"), _BLAS),
    "aten::bmm": WorkspaceRule(_matmul("self", "mat2"), _BLAS),
    "aten::baddbmm": WorkspaceRule(_matmul("batch1", "batch2"), _BLAS),
    "aten::_cdist_forward": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::_euclidean_dist": WorkspaceRule(_cdist, "ATen/native/Distance.cpp, _euclidean_dist: both padded operands"),
    "aten::linalg_inv_ex": WorkspaceRule(_square(1, 1), _LAPACK),
    "aten::linalg_qr": WorkspaceRule(_square(0, 49), _LAPACK),
    "aten::_linalg_svd": WorkspaceRule(_square(1, 0), _LAPACK),
    "aten::_linalg_eigh": WorkspaceRule(_square(1, 7), _LAPACK),
    "aten::_linalg_det": WorkspaceRule(_square(0, 3), _LAPACK),
    "aten::_linalg_slogdet": WorkspaceRule(_square(0, 3), _LAPACK),
    "aten::_linalg_solve_ex": WorkspaceRule(_square(0, 1), _LAPACK),
    "aten::linalg_pinv": WorkspaceRule(_square(3, 4), "ATen/native/LinearAlgebra.cpp, pinv: the factors of svd"),
    "aten::linalg_matrix_exp": WorkspaceRule(
        _square(10, 1), "ATen/native/LinearAlgebra.cpp, mexp: powers of the matrix for the Taylor polynomial"
    ),
    "aten::cholesky_solve": WorkspaceRule(lambda call: nbytes(call["input2"]) + nbytes(call["self"]), _LAPACK),
    "aten::_fft_r2c": WorkspaceRule(
        _real_to_complex, "ATen/native/mkl/SpectralOps.cpp, _exec_fft: the input with the transformed dimensions last"
    ),
    "aten::_fft_c2r": WorkspaceRule(
        _complex_to_real, "ATen/native/mkl/SpectralOps.cpp, _fft_c2r_mkl: the complex pass before, and a clone of it"
    ),
}
__all__ = ["MATMUL_RULES", "cpu_capabilities", "densified", "has_amx", "largest"]
