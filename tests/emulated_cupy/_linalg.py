"""matmul and dot as CuPy does them: which cuBLAS call, after which copies.

What costs time on a device is decided here: two-dimensional products go to gemmEx with their
transposes as flags; with three dimensions or more, operands are copied to be C-contiguous, float16
is cast to float32, and a broadcast batch takes arrays of pointers. All of it shows in the log.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from . import _array, _creation, _cublas, _ufuncs
from ._devices import get_compute_capability, get_cublas_handle, get_device_id
from ._dtypes import is_bfloat16
from ._layout import broadcast_shape
from ._log import Operation, record
from ._streams import current_pointer

COMPUTE_TYPE_TBD = 0
COMPUTE_TYPE_DEFAULT = 1
COMPUTE_TYPE_PEDANTIC = 2
COMPUTE_TYPE_FP16 = 3
COMPUTE_TYPE_FP32 = 4
COMPUTE_TYPE_FP64 = 5
COMPUTE_TYPE_BF16 = 6
COMPUTE_TYPE_TF32 = 7

_compute_types = [COMPUTE_TYPE_TBD] * 4

_CUDA_TYPES = {"f": 0, "d": 1, "e": 2}
_CUDA_BFLOAT16 = 14


def to_compute_type_index(dtype: Any) -> int:
    """Return the place of a dtype among the compute types."""
    dtype = np.dtype(dtype)
    if is_bfloat16(dtype):
        return 0
    places = {"e": 1, "f": 2, "d": 3}
    if dtype.char not in places:
        raise TypeError(f"dtype is not supported: {dtype}")
    return places[dtype.char]


def get_compute_type(dtype: Any) -> int:
    """Return how products of a dtype are to be computed; CUPY_TF32 is read once."""
    index = to_compute_type_index(dtype)
    if _compute_types[index] == COMPUTE_TYPE_TBD:
        tf32 = np.dtype(dtype).char == "f" and int(os.getenv("CUPY_TF32", "0")) > 0
        set_compute_type(dtype, COMPUTE_TYPE_TF32 if tf32 else COMPUTE_TYPE_DEFAULT)
    return _compute_types[index]


def set_compute_type(dtype: Any, compute_type: int) -> None:
    """Say how products of a dtype are to be computed."""
    if not COMPUTE_TYPE_TBD <= compute_type <= COMPUTE_TYPE_TF32:
        raise ValueError(f"Unknown compute type: {compute_type}")
    _compute_types[to_compute_type_index(dtype)] = compute_type


def _cuda_type(dtype: np.dtype[Any]) -> int:
    return _CUDA_BFLOAT16 if is_bfloat16(dtype) else _CUDA_TYPES[dtype.char]


class _GUFunc:
    """matmul as a generalised ufunc, without its keywords for axes and dtypes."""

    __name__ = "matmul"

    def __call__(
        self,
        *args: Any,
        axes: Any = None,
        axis: Any = None,
        keepdims: Any = False,
        casting: Any = "same_kind",
        dtype: Any = None,
        signature: Any = None,
        order: Any = "K",
        out: Any = None,
    ) -> Any:
        given = axes, axis, keepdims, casting, dtype, signature, order
        if given != (None, None, False, "same_kind", None, None, "K"):
            raise NotImplementedError("only out= of matmul's keywords is emulated")
        if len(args) == 3 and out is None:
            *args, out = args
        a, b = args
        for name, value in zip("ab", (a, b), strict=True):
            _array.require_ndarray(name, value)
        if out is not None:
            _require_output(a, b, out)
            if not out.dtype == a.dtype == b.dtype:
                a, b = _broadcast_batches(a, b)
        return matmul_core(a, b, out)


matmul = _GUFunc()


def _require_output(a: Any, b: Any, out: Any) -> None:
    if not isinstance(out, _array.ndarray):
        raise TypeError("`out` must be a tuple or `cupy.ndarray`")
    dtype = np.promote_types(a.dtype, b.dtype)
    _ufuncs.require_cast(dtype, out.dtype, "same_kind", "out dtype")


def _broadcast_batches(a: Any, b: Any) -> tuple[Any, Any]:
    """Broadcast the batches beforehand, as CuPy does where the output's dtype differs."""
    if min(a.ndim, b.ndim) < 2:
        return a, b
    batch = broadcast_shape([a.shape[:-2], b.shape[:-2]])
    first, second = (
        each if each.shape[:-2] == batch else _creation.broadcast_to(each, batch + each.shape[-2:])
        for each in (a, b)
    )
    return first, second


def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Return the dot product of two arrays."""
    return a.dot(b, out)


def matmul_core(a: Any, b: Any, out: Any = None) -> Any:
    """Return the matrix product, batches broadcast."""
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError("Scalar operands are not allowed, use '*' instead")
    if max(a.ndim, b.ndim) > 2:
        return _batched(a, b, out)
    dtype = np.promote_types(a.dtype, b.dtype)
    if out is None or (out.flags.c_contiguous and out.dtype == dtype):
        return dot_core(a, b, out)
    made = _array.ndarray(out.shape, dtype)
    dot_core(a, b, made)
    _ufuncs.elementwise_copy(made, out)
    return out


def dot_core(a: Any, b: Any, out: Any = None) -> Any:
    """Return the product of arrays of one or two dimensions."""
    _array.require_ndarray("b", b)
    if out is not None:
        if np.result_type(a.dtype, b.dtype) != out.dtype:
            raise ValueError("Not supported dtype combination.")
        if not out.flags.c_contiguous:
            raise ValueError("Output array must be C-contiguous")
    if not (1 <= a.ndim <= 2 and 1 <= b.ndim <= 2):
        raise NotImplementedError("dot of other than one or two dimensions is not emulated")
    if a.shape[-1] != b.shape[0]:
        raise ValueError("Axis dimension mismatch")
    shape = a.shape[:-1] + b.shape[1:]
    left = a if a.ndim == 2 else a.reshape(1, -1)
    right = b if b.ndim == 2 else b.reshape(-1, 1)
    if out is not None and left.shape[1] and out.size != left.shape[0] * right.shape[1]:
        raise ValueError("Output array has an invalid size")
    return _two_dimensional(left, right, out, shape)


def _two_dimensional(a: Any, b: Any, out: Any, shape: Any) -> Any:
    dtype = np.promote_types(a.dtype, b.dtype)
    if a.size == 0 or b.size == 0:
        made = _array.ndarray(shape, dtype) if out is None else out
        made.fill(0)
        return made
    if a.shape[0] == 1 and b.shape[1] == 1:
        made = _array.ndarray(shape, dtype) if out is None else out
        return _inner(a, b, made)
    if dtype.kind in "biu":
        raise NotImplementedError("products of integers are not emulated")
    a, b = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    # Along their shared axis first, as CuPy hands them on.
    a, transa, lda = _leading(a.transpose(), _cublas.CUBLAS_OP_N)
    b, transb, ldb = _leading(b, _cublas.CUBLAS_OP_T)
    shares = out is not None and any(_array.may_share_bounds(out, each) for each in (a, b))
    target = _array.ndarray(shape, dtype) if out is None or shares else out
    _gemm_ex(b, transb, ldb, a, transa, lda, target)
    if shares:
        _ufuncs.elementwise_copy(target, out)
        return out
    return target


def _inner(a: Any, b: Any, out: Any) -> Any:
    """One number: CuPy multiplies and sums, in a kernel of its own, without cuBLAS."""
    left, right = a.ravel()._read("dot"), b.ravel()._read("dot")
    wide = np.float64 if out.dtype.char == "d" else np.float32
    if out.dtype.kind in "biu":
        wide = out.dtype
    total = np.sum(left.astype(wide) * right.astype(wide), dtype=wide)
    out._write(np.full(out.shape, total).astype(out.dtype))
    record(
        Operation(
            "_tensordot_core_mul_sum",
            a.nbytes + b.nbytes,
            out.nbytes,
            get_device_id(),
            current_pointer(),
        )
    )
    return out


def _leading(matrix: Any, flag: int) -> tuple[Any, int, int]:
    """Return a matrix as cuBLAS can read it, its transposition, and its leading dimension.

    To cuBLAS a C-contiguous matrix is its transpose; ``flag`` is for one that is F-contiguous.
    """
    if matrix.flags.f_contiguous:
        return matrix, flag, max(matrix.strides[1] // matrix.itemsize, matrix.shape[0])
    if not matrix.flags.c_contiguous:
        matrix = matrix.copy()
    return matrix, 1 - flag, matrix.strides[0] // matrix.itemsize


def _gemm_ex(a: Any, transa: int, lda: int, b: Any, transb: int, ldb: int, c: Any) -> None:
    """Multiply operands of shapes (inner, rows) and (inner, columns)."""
    (inner, rows), columns = a.shape, b.shape[1]
    dtype = c.dtype
    scale = np.array([1, 0], np.float64 if dtype.char == "d" else np.float32)
    algorithm = _cublas.CUBLAS_GEMM_DEFAULT
    capability = int(get_compute_capability())
    if capability >= 80 or (capability >= 70 and dtype.char == "e"):
        algorithm = _cublas.CUBLAS_GEMM_DEFAULT_TENSOR_OP
    one, kind = scale.ctypes.data, _cuda_type(dtype)
    _cublas.gemmEx(
        get_cublas_handle(), transa, transb, rows, columns, inner, one,
        a.data.ptr, kind, lda, b.data.ptr, kind, ldb, one + scale.itemsize,
        c.data.ptr, kind, rows, _cublas_compute_type(dtype), algorithm,
    )  # fmt: skip


def _cublas_compute_type(dtype: np.dtype[Any]) -> int:
    compute_type = get_compute_type(dtype)
    if dtype.char == "d":
        pedantic = compute_type == COMPUTE_TYPE_PEDANTIC
        return _cublas.CUBLAS_COMPUTE_64F_PEDANTIC if pedantic else _cublas.CUBLAS_COMPUTE_64F
    if compute_type == COMPUTE_TYPE_PEDANTIC:
        return _cublas.CUBLAS_COMPUTE_32F_PEDANTIC
    if compute_type == COMPUTE_TYPE_TF32 and dtype.char == "f":
        return _cublas.CUBLAS_COMPUTE_32F_FAST_TF32
    return _cublas.CUBLAS_COMPUTE_32F


def _batched(a: Any, b: Any, out: Any) -> Any:
    """Three dimensions or more: everything C-contiguous first, float16 as float32."""
    result_dtype = np.promote_types(a.dtype, b.dtype)
    dtype = np.dtype(np.float32) if result_dtype.char == "e" else result_dtype
    if dtype.char not in "fd":
        raise _not_batched(dtype)
    left = a.reshape(1, -1) if a.ndim == 1 else a
    right = b.reshape(-1, 1) if b.ndim == 1 else b
    ndim = max(a.ndim, b.ndim)
    left, right = (
        _creation.ascontiguousarray(each.reshape((1,) * (ndim - each.ndim) + each.shape), dtype)
        for each in (left, right)
    )
    batch = broadcast_shape([left.shape[:-2], right.shape[:-2]])
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"shapes ({','.join(map(str, a.shape))}) and ({','.join(map(str, b.shape))})"
            " not aligned"
        )
    full = (*batch, left.shape[-2], right.shape[-1])
    shape = batch + full[-2:-1] * (a.ndim > 1) + full[-1:] * (b.ndim > 1)
    if out is not None and out.shape != shape:
        raise ValueError("Output array has an invalid size")
    if left.size == 0 or right.size == 0:
        if out is None:
            return _creation.zeros(shape, result_dtype)
        out.fill(0)
        return out
    target = _batched_target(out, shape, dtype, left, right)
    _multiply_batches(left, right, target.reshape(full), batch)
    if out is None:
        out = target if dtype == result_dtype else _array.ndarray(shape, result_dtype)
    if out is not target:
        _ufuncs.elementwise_copy(target, out)
    return out


def _not_batched(dtype: np.dtype[Any]) -> Exception:
    if is_bfloat16(dtype):
        return TypeError(f"data type {dtype.char!r} not understood")
    return NotImplementedError("products of integers are not emulated")


def _batched_target(out: Any, shape: Any, dtype: Any, left: Any, right: Any) -> Any:
    direct = (
        out is not None
        and out.dtype == dtype
        and out.flags.c_contiguous
        and not any(_array.may_share_bounds(out, each) for each in (left, right))
    )
    return out if direct else _array.ndarray(shape, dtype)


def _multiply_batches(left: Any, right: Any, target: Any, batch: Any) -> None:
    rows, columns = right.shape[-1], left.shape[-2]
    inner = left.shape[-1]
    count = target.size // (rows * columns)
    scale = np.array([1, 0], target.dtype)
    one, zero = scale.ctypes.data, scale.ctypes.data + scale.itemsize
    handle = get_cublas_handle()
    if left.shape[:-2] == right.shape[:-2] == batch:
        kind = _cuda_type(target.dtype)
        _cublas.gemmStridedBatchedEx(
            handle, 0, 0, rows, columns, inner, one,
            right.data.ptr, kind, rows, inner * rows,
            left.data.ptr, kind, inner, columns * inner, zero,
            target.data.ptr, kind, rows, columns * rows, count, kind,
            _cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
        return
    multiply = _cublas.sgemmBatched if target.dtype.char == "f" else _cublas.dgemmBatched
    pointers = [
        _matrix_pointers(_creation.broadcast_to(each, batch + each.shape[-2:]))
        for each in (right, left, target)
    ]
    multiply(
        handle, 0, 0, rows, columns, inner, one,
        pointers[0].data.ptr, rows, pointers[1].data.ptr, inner, zero,
        pointers[2].data.ptr, rows, count,
    )  # fmt: skip


def _matrix_pointers(array: Any) -> Any:
    """Return a device array of the address of every matrix, made axis by axis as CuPy makes it."""
    addresses = np.array([array.data.ptr], np.uint64)
    made = None
    for length, stride in zip(array.shape[:-2], array.strides[:-2], strict=True):
        steps = (np.arange(length) * stride).astype(np.uint64)
        addresses = (addresses[:, None] + steps).ravel()
        before, made = made, _array.ndarray(addresses.shape, np.uint64)
        made._write(addresses)
        read = 0 if before is None else before.nbytes
        record(Operation("cupy_mat_ptrs", read, made.nbytes, get_device_id(), current_pointer()))
    return made
