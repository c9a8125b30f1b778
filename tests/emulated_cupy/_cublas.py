"""The functions of CuPy's cuBLAS module: handles, and the products in all their spellings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._devices import get_device_id
from ._host import read
from ._numbers import c_int, c_longlong, c_size
from ._product import (
    DATA_TYPES,
    DTYPES,
    EXECUTION_FAILED,
    INVALID_VALUE,
    NOT_INITIALIZED,
    Call,
    CUBLASError,
    Matrices,
    pointer_to,
)
from ._streams import current_pointer, is_capturing

CUBLAS_OP_N = 0
CUBLAS_OP_T = 1
CUBLAS_OP_C = 2
CUBLAS_POINTER_MODE_HOST = 0
CUBLAS_POINTER_MODE_DEVICE = 1
CUBLAS_GEMM_DEFAULT = -1
CUBLAS_GEMM_DEFAULT_TENSOR_OP = 99
CUBLAS_GEMM_DFALT = -1
CUBLAS_GEMM_DFALT_TENSOR_OP = 99
CUBLAS_COMPUTE_16F = 64
CUBLAS_COMPUTE_16F_PEDANTIC = 65
CUBLAS_COMPUTE_32F = 68
CUBLAS_COMPUTE_32F_PEDANTIC = 69
CUBLAS_COMPUTE_32F_FAST_16F = 74
CUBLAS_COMPUTE_32F_FAST_16BF = 75
CUBLAS_COMPUTE_32F_FAST_TF32 = 77
CUBLAS_COMPUTE_64F = 70
CUBLAS_COMPUTE_64F_PEDANTIC = 71
CUBLAS_COMPUTE_32I = 72
CUBLAS_COMPUTE_32I_PEDANTIC = 73

_COMPUTE_TYPES = {
    value: name for name, value in dict(globals()).items() if name.startswith("CUBLAS_COMPUTE_")
}
# The functions choose the older interface, where the compute type is a data type, by its number.
_COMPUTE_TYPES |= {
    0: "CUBLAS_COMPUTE_32F",
    1: "CUBLAS_COMPUTE_64F",
    2: "CUBLAS_COMPUTE_16F",
}


@dataclass
class _Handle:
    device: int
    stream: int = 0
    pointer_mode: int = CUBLAS_POINTER_MODE_HOST


_numbers = itertools.count(0x6000_0000, 0x100)
_handles: dict[int, _Handle] = {}


def create() -> int:
    """Make a handle for the current device."""
    handle = next(_numbers)
    _handles[handle] = _Handle(get_device_id())
    return handle


def destroy(handle: int) -> None:
    """End a handle."""
    _of(handle)
    del _handles[handle]


def _of(handle: Any) -> _Handle:
    found = _handles.get(c_longlong(handle))
    if found is None:
        raise CUBLASError(NOT_INITIALIZED)
    return found


def getPointerMode(handle: int) -> int:
    """Return where alpha and beta lie."""
    return _of(handle).pointer_mode


def setPointerMode(handle: int, mode: int) -> None:
    """Say where alpha and beta lie."""
    if c_int(mode) not in (CUBLAS_POINTER_MODE_HOST, CUBLAS_POINTER_MODE_DEVICE):
        raise CUBLASError(INVALID_VALUE)
    _of(handle).pointer_mode = mode


def setStream(handle: int, stream: int) -> None:
    """Put a handle's work on a stream; every product does it with the current one."""
    if is_capturing(c_size(stream)):
        raise NotImplementedError(
            "calling cuBLAS API during stream capture is currently unsupported"
        )
    _of(handle).stream = stream


def getStream(handle: int) -> int:
    """Return the stream of a handle."""
    return _of(handle).stream


def _data_type(number: Any) -> str:
    name = DATA_TYPES.get(c_int(number))
    if name is None or DTYPES[name] is None:
        raise NotImplementedError(f"products of the data type {number} are not emulated")
    return name


def _compute_type(number: Any) -> str:
    name = _COMPUTE_TYPES.get(c_int(number))
    if name is None:
        raise CUBLASError(INVALID_VALUE)
    if "32I" in name:
        raise NotImplementedError("integer products are not emulated")
    return name


def _product(
    function: str,
    handle: Any,
    transposes: tuple[Any, Any],
    sizes: tuple[Any, Any, Any],
    scalars: tuple[Any, Any],
    a: tuple[str, list[int], Any, Any],
    b: tuple[str, list[int], Any, Any],
    c: tuple[str, list[int], Any, Any],
    batch: Any,
    compute_type: str,
) -> None:
    """Run a product of operands given as (type, addresses, leading dimension, stride)."""
    transa, transb = map(c_int, transposes)
    m, n, k = map(c_int, sizes)
    alpha, beta = map(c_size, scalars)
    shapes = [
        (m, k) if transa == CUBLAS_OP_N else (k, m),
        (k, n) if transb == CUBLAS_OP_N else (n, k),
        (m, n),
    ]
    operands = [
        Matrices(
            kind,
            *shape,
            c_int(leading),
            [c_size(address) for address in addresses],
            None if stride is None else c_longlong(stride),
        )
        for (kind, addresses, leading, stride), shape in zip((a, b, c), shapes, strict=True)
    ]
    call = Call(
        function,
        transa,
        transb,
        m,
        n,
        k,
        c_int(batch),
        alpha,
        beta,
        *operands,
        compute_type,
        _of(handle).pointer_mode == CUBLAS_POINTER_MODE_DEVICE,
    )
    if _of(handle).device != get_device_id():
        raise CUBLASError(EXECUTION_FAILED)
    setStream(handle, current_pointer())
    call.run()


def gemmEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb, beta, C, Ctype, ldc,
    computeType, algo,
):  # fmt: skip
    """One product, of any types."""
    c_int(algo)
    _product(
        "gemmEx",
        handle,
        (transa, transb),
        (m, n, k),
        (alpha, beta),
        (_data_type(Atype), [A], lda, None),
        (_data_type(Btype), [B], ldb, None),
        (_data_type(Ctype), [C], ldc, None),
        1,
        _compute_type(computeType),
    )


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB, beta,
    C, Ctype, ldc, strideC, batchCount, computeType, algo,
):  # fmt: skip
    """Products of matrices a stride apart, of any types."""
    c_int(algo)
    _product(
        "gemmStridedBatchedEx",
        handle,
        (transa, transb),
        (m, n, k),
        (alpha, beta),
        (_data_type(Atype), [A], lda, strideA),
        (_data_type(Btype), [B], ldb, strideB),
        (_data_type(Ctype), [C], ldc, strideC),
        batchCount,
        _compute_type(computeType),
    )


def _typed_gemm(prefix: str, kind: str, compute_type: str) -> Any:
    def gemm(handle, transa, transb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc):
        _product(
            f"{prefix}gemm",
            handle,
            (transa, transb),
            (m, n, k),
            (alpha, beta),
            (kind, [A], lda, None),
            (kind, [B], ldb, None),
            (kind, [C], ldc, None),
            1,
            compute_type,
        )

    return gemm


def _typed_strided(prefix: str, kind: str, compute_type: str) -> Any:
    def gemm_strided_batched(
        handle, transa, transb, m, n, k, alpha, A, lda, strideA, B, ldb, strideB, beta, C, ldc,
        strideC, batchCount,
    ):  # fmt: skip
        _product(
            f"{prefix}gemmStridedBatched",
            handle,
            (transa, transb),
            (m, n, k),
            (alpha, beta),
            (kind, [A], lda, strideA),
            (kind, [B], ldb, strideB),
            (kind, [C], ldc, strideC),
            batchCount,
            compute_type,
        )

    return gemm_strided_batched


def _typed_batched(prefix: str, kind: str, compute_type: str) -> Any:
    def gemm_batched(
        handle, transa, transb, m, n, k, alpha, Aarray, lda, Barray, ldb, beta, Carray, ldc,
        batchCount,
    ):  # fmt: skip
        function = f"{prefix}gemmBatched"
        a, b, c = (
            read(pointer_to(c_size(array)), (batchCount,), (8,), np.dtype(np.uint64), function)
            for array in (Aarray, Barray, Carray)
        )
        _product(
            function,
            handle,
            (transa, transb),
            (m, n, k),
            (alpha, beta),
            (kind, a.tolist(), lda, None),
            (kind, b.tolist(), ldb, None),
            (kind, c.tolist(), ldc, None),
            batchCount,
            compute_type,
        )

    return gemm_batched


sgemm = _typed_gemm("s", "CUDA_R_32F", "CUBLAS_COMPUTE_32F")
dgemm = _typed_gemm("d", "CUDA_R_64F", "CUBLAS_COMPUTE_64F")
sgemmStridedBatched = _typed_strided("s", "CUDA_R_32F", "CUBLAS_COMPUTE_32F")
dgemmStridedBatched = _typed_strided("d", "CUDA_R_64F", "CUBLAS_COMPUTE_64F")
sgemmBatched = _typed_batched("s", "CUDA_R_32F", "CUBLAS_COMPUTE_32F")
dgemmBatched = _typed_batched("d", "CUDA_R_64F", "CUBLAS_COMPUTE_64F")
