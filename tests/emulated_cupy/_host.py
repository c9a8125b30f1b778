"""Device arrays as NumPy sees them: values and the shadow that tells which bytes were written.

Every operation of the host's side goes through `read` and `write`, so that none can use bytes that
nothing has written, and each marks as written exactly the bytes of its result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from emulator import Misaligned

from . import _devices
from ._layout import Shape, byte_range
from ._memory import MemoryPointer, require_written
from ._settings import settings


def read(
    pointer: MemoryPointer, shape: Shape, strides: Shape, dtype: np.dtype[Any], reader: str
) -> Any:
    """Return a copy of the elements; ``reader`` is named if some were never written."""
    if 0 in shape:
        return np.empty(shape, dtype)
    with _devices.lock:
        values, written = _views(pointer, shape, strides, dtype)
        if settings.execute:
            require_written(written, reader)
        return values.copy()


def write(pointer: MemoryPointer, strides: Shape, values: Any, where: Any = True) -> None:
    """Write elements, those of a mask only, and mark them as written."""
    if values.size == 0:
        return
    with _devices.lock:
        target, written = _views(pointer, values.shape, strides, values.dtype)
        np.copyto(target, values, where=where)
        written[where] = True


def _views(
    pointer: MemoryPointer, shape: Shape, strides: Shape, dtype: np.dtype[Any]
) -> tuple[Any, Any]:
    steps = [step for step, length in zip(strides, shape, strict=True) if length > 1]
    if any(place % dtype.itemsize for place in (pointer.ptr, *steps)):
        raise Misaligned(f"elements of {dtype} at {pointer.ptr:#x} with steps of {steps} bytes")
    first, end = byte_range(shape, strides, dtype.itemsize)
    memory = _devices.device_memory(pointer.device_id)
    data = memory.data(pointer.ptr + first, end - first)
    shadow = memory.written(pointer.ptr + first, end - first)
    values = np.ndarray(shape, dtype, data.data, -first, strides)
    bytes_of = (*shape, dtype.itemsize), (*strides, 1)
    written = np.ndarray(bytes_of[0], np.bool_, shadow.data, -first, bytes_of[1])
    return values, written
