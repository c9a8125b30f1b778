"""A matrix product as cuBLAS forms it: column-major operands, checked and multiplied.

A wrong leading dimension, stride or type ends on a device in wrong numbers or in a status; both are
errors here. The sums are formed as the compute type says: half types in float32, TF32 on inputs cut
to 10 bits of mantissa, so that a test can see which one was asked for.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
from emulator import Misaligned, Race

from . import _devices
from ._devices import get_device_id
from ._dtypes import BFLOAT16
from ._host import read, write
from ._log import Product, record
from ._memory import MemoryPointer, UnownedMemory
from ._settings import settings
from ._streams import current_pointer

OP_N, OP_T, OP_C = 0, 1, 2
NOT_INITIALIZED, INVALID_VALUE, EXECUTION_FAILED, NOT_SUPPORTED = 1, 7, 13, 15

_STATUS = {
    NOT_INITIALIZED: "CUBLAS_STATUS_NOT_INITIALIZED",
    INVALID_VALUE: "CUBLAS_STATUS_INVALID_VALUE",
    EXECUTION_FAILED: "CUBLAS_STATUS_EXECUTION_FAILED",
    NOT_SUPPORTED: "CUBLAS_STATUS_NOT_SUPPORTED",
}
DATA_TYPES = {0: "CUDA_R_32F", 1: "CUDA_R_64F", 2: "CUDA_R_16F", 14: "CUDA_R_16BF"}
DTYPES = {
    "CUDA_R_32F": np.dtype(np.float32),
    "CUDA_R_64F": np.dtype(np.float64),
    "CUDA_R_16F": np.dtype(np.float16),
    "CUDA_R_16BF": BFLOAT16,
}

_SINGLE = {"CUDA_R_32F": {"CUDA_R_32F"}}
_COMBINATIONS: dict[str, dict[str, set[str]]] = {
    "CUBLAS_COMPUTE_16F": {"CUDA_R_16F": {"CUDA_R_16F"}},
    "CUBLAS_COMPUTE_32F": {
        "CUDA_R_16F": {"CUDA_R_16F", "CUDA_R_32F"},
        "CUDA_R_16BF": {"CUDA_R_16BF", "CUDA_R_32F"},
        **_SINGLE,
    },
    "CUBLAS_COMPUTE_32F_FAST_16F": _SINGLE,
    "CUBLAS_COMPUTE_32F_FAST_16BF": _SINGLE,
    "CUBLAS_COMPUTE_32F_FAST_TF32": _SINGLE,
    "CUBLAS_COMPUTE_64F": {"CUDA_R_64F": {"CUDA_R_64F"}},
}


class CUBLASError(RuntimeError):
    """What cuBLAS answers, by its number."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_STATUS[status])

    def __reduce__(self) -> Any:
        return type(self), (self.status,)


@dataclass
class Matrices:
    """One operand in all batches: one address and a stride in elements, or many addresses."""

    type: str
    rows: int
    columns: int
    leading: int
    pointers: list[int]
    stride: int | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype = DTYPES[self.type]
        assert dtype is not None
        return dtype

    def layout(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        size = self.dtype.itemsize
        count = 1 if self.stride is None else batch
        shape = count, self.rows, self.columns
        return shape, ((self.stride or 0) * size, size, self.leading * size)

    def read(self, batch: int, reader: str) -> Any:
        shape, strides = self.layout(batch)
        parts = [
            read(pointer_to(address), shape, strides, self.dtype, reader)
            for address in self.pointers
        ]
        return np.concatenate(parts)

    def write(self, batch: int, values: Any) -> None:
        _, strides = self.layout(batch)
        each = len(values) // len(self.pointers)
        for number, address in enumerate(self.pointers):
            write(pointer_to(address), strides, values[number * each : (number + 1) * each])

    def starts(self, batch: int) -> list[int]:
        """Return the address of every matrix."""
        count = 1 if self.stride is None else batch
        step = (self.stride or 0) * self.dtype.itemsize
        return [address + number * step for address in self.pointers for number in range(count)]

    def bounds(self, batch: int) -> tuple[int, int]:
        """Return the first byte of all matrices and the one past the last."""
        starts = self.starts(batch)
        span = ((self.columns - 1) * self.leading + self.rows) * self.dtype.itemsize
        return min(starts), max(starts) + span

    def pairs(self, batch: int) -> Any:
        """Return the address of every pair of bytes of all matrices, a common unit of all types."""
        size = self.dtype.itemsize
        inside = [np.arange(self.rows) * size, np.arange(self.columns) * self.leading * size]
        starts = np.array(self.starts(batch), np.int64)
        parts = np.ix_(starts, *inside, np.arange(0, size, 2))
        return sum(parts[1:], parts[0]).ravel()

    def distinct_bytes(self, batch: int) -> int:
        """Return the bytes of the matrices, one shared by all batches counted once."""
        return len(set(self.starts(batch))) * self.rows * self.columns * self.dtype.itemsize


def _meet(one: Matrices, other: Matrices, batch: int) -> bool:
    return bool(np.intersect1d(one.pairs(batch), other.pairs(batch)).size)


def pointer_to(address: int) -> MemoryPointer:
    """Return an address of the current device as a pointer."""
    return MemoryPointer(UnownedMemory(address, 0, None, get_device_id()), 0)


@dataclass
class Call:
    """A product of any of the functions, in the terms they share; alpha and beta are addresses."""

    function: str
    transa: int
    transb: int
    m: int
    n: int
    k: int
    batch: int
    alpha: int
    beta: int
    a: Matrices
    b: Matrices
    c: Matrices
    compute_type: str
    device_scalars: bool = False

    def run(self) -> None:
        self._validate()
        if 0 in (self.m, self.n, self.batch):
            return
        with _devices.lock:
            alpha, beta = self._factors()
            if settings.execute:
                self._compute(alpha, beta)
            self._record(float(alpha), float(beta))

    def _validate(self) -> None:
        if min(self.m, self.n, self.k, self.batch) < 0:
            raise CUBLASError(INVALID_VALUE)
        if not {self.transa, self.transb} <= {OP_N, OP_T, OP_C}:
            raise CUBLASError(INVALID_VALUE)
        if any(each.leading < max(1, each.rows) for each in (self.a, self.b, self.c)):
            raise CUBLASError(INVALID_VALUE)
        kinds = _COMBINATIONS[self.compute_type.removesuffix("_PEDANTIC")]
        if self.a.type != self.b.type or self.c.type not in kinds.get(self.a.type, ()):
            raise CUBLASError(NOT_SUPPORTED)
        if 0 not in (self.m, self.n, self.batch) and settings.execute:
            self._validate_places()

    def _validate_places(self) -> None:
        for name, operand in {"A": self.a, "B": self.b, "C": self.c}.items():
            if any(address % operand.dtype.itemsize for address in operand.pointers):
                raise Misaligned(f"{self.function}: {name} is not aligned to its elements")
        if self.batch > 1:
            written = self.c.pairs(self.batch)
            if np.unique(written).size < written.size:
                raise Race(f"{self.function}: matrices of C overlap")
        first, end = self.c.bounds(self.batch)
        for name, operand in {"A": self.a, "B": self.b}.items():
            other_first, other_end = operand.bounds(self.batch)
            near = self.k and first < other_end and other_first < end
            if near and _meet(self.c, operand, self.batch):
                raise Race(f"{self.function}: C overlaps {name}")

    def _factors(self) -> tuple[Any, Any]:
        scale = self._scale_dtype()
        return self._scalar(self.alpha, scale), self._scalar(self.beta, scale)

    def _compute(self, alpha: Any, beta: Any) -> None:
        scale = self._scale_dtype()
        accumulate = np.float32 if scale == np.float16 else scale
        result = np.zeros((self.batch, self.m, self.n), accumulate)
        if alpha != 0 and self.k:
            a = self._operand("A", self.a, self.transa, accumulate)
            b = self._operand("B", self.b, self.transb, accumulate)
            with np.errstate(all="ignore"):
                result = np.matmul(a, b).astype(scale) * alpha
        if beta != 0:
            with np.errstate(all="ignore"):
                before = self.c.read(self.batch, f"{self.function} (C)").astype(scale)
                result = result + before * beta
        with np.errstate(all="ignore"):
            self.c.write(self.batch, result.astype(self.c.dtype))

    def _scale_dtype(self) -> np.dtype[Any]:
        if "_16F" in self.compute_type and "32F" not in self.compute_type:
            return np.dtype(np.float16)
        return np.dtype(np.float64 if "64F" in self.compute_type else np.float32)

    def _scalar(self, address: int, dtype: np.dtype[Any]) -> Any:
        if self.device_scalars:
            return read(pointer_to(address), (1,), (0,), dtype, f"{self.function} (scalar)")[0]
        return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]

    def _operand(self, name: str, operand: Matrices, transposed: int, dtype: Any) -> Any:
        values = operand.read(self.batch, f"{self.function} ({name})")
        if self.compute_type.endswith("FAST_TF32"):
            values = to_tf32(values)
        elif self.compute_type.endswith("FAST_16F"):
            values = values.astype(np.float16)
        elif self.compute_type.endswith("FAST_16BF"):
            values = values.astype(BFLOAT16)
        values = values.astype(dtype)
        return values if transposed == OP_N else values.swapaxes(1, 2)

    def _record(self, alpha: float, beta: float) -> None:
        read = [self.a, self.b] if alpha and self.k else []
        read += [self.c] if beta else []
        record(
            Product(
                function=self.function,
                transa=self.transa,
                transb=self.transb,
                m=self.m,
                n=self.n,
                k=self.k,
                batch=self.batch,
                a_type=self.a.type,
                b_type=self.b.type,
                c_type=self.c.type,
                compute_type=self.compute_type,
                alpha=alpha,
                beta=beta,
                bytes_read=sum(each.distinct_bytes(self.batch) for each in read),
                bytes_written=self.c.distinct_bytes(self.batch),
                device=get_device_id(),
                stream=current_pointer(),
            )
        )


def to_tf32(values: Any) -> Any:
    """Round float32 to 10 bits of mantissa, to nearest and to even between."""
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0xFFF + ((bits >> np.uint64(13)) & np.uint64(1))) & ~np.uint64(0x1FFF)
    found = rounded.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), found, values)
