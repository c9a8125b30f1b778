"""A kernel's arguments as the bytes of its parameters.

CuPy passes the driver a host pointer for each argument, and the driver reads as many bytes as the
parameter has. A value of another size is therefore read past its end, or cut: silently on a device,
an error here.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from emulator import BadLaunch

from . import _array
from ._memory import MemoryPointer
from ._scalars import Scalar


def packed(name: str, parameters: list[tuple[str, int, int]], args: Any) -> list[bytes]:
    """Return the bytes of every argument, which must have the parameters' sizes."""
    values = [_bytes_of(each) for each in args]
    if len(values) != len(parameters):
        raise BadLaunch(f"{name} takes {len(parameters)} arguments, got {len(values)}")
    for number, (value, (_, size, _), given) in enumerate(
        zip(values, parameters, args, strict=True)
    ):
        if len(value) != size:
            raise BadLaunch(
                f"argument {number} of {name} has {size} bytes, got {len(value)} of"
                f" {type(given).__name__}"
            )
    return values


def _bytes_of(value: Any) -> bytes:
    if value is None:
        return bytes(8)
    if isinstance(value, (_array.ndarray, MemoryPointer)):
        pointer = value.data.ptr if isinstance(value, _array.ndarray) else value.ptr
        return struct.pack("<Q", pointer)
    if isinstance(value, np.ndarray):
        if value.size != 1:
            raise TypeError(
                f"You are trying to pass a numpy.ndarray of shape {value.shape} as a kernel"
                " parameter. Only numpy.ndarrays of size one can be passed by value. If you meant"
                " to pass a pointer to __global__ memory, you need to pass a cupy.ndarray instead."
            )
        return value.tobytes()
    return Scalar(value).to_bytes()
