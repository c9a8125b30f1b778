"""Which arrays the library takes: their library, dtypes and memory, asked in one place."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _hints as hints
from ._foreign import ByArrayInterface, ByCudaInterface, ByDLPack, kind_of, view_of

Array = npt.NDArray[Any]  # or a CuPy array, whose methods are the same
AnyArray = Array | ByDLPack | ByCudaInterface | ByArrayInterface | memoryview  # what is taken

MOST_BYTES = 2**63 - 1  # CuPy's sizes are such integers, and wrap
SUPPORTED = "float64, float32, float16 or bfloat16"


def library_of(value: object) -> str | None:
    """Return "NumPy" or "CuPy", or None for anything but their arrays.

    CuPy is not imported for this: who has an array of it has imported it.
    """
    if isinstance(value, np.ndarray):
        return "NumPy"
    cupy_array = getattr(sys.modules.get("cupy"), "ndarray", None)
    return "CuPy" if cupy_array is not None and isinstance(value, cupy_array) else None


def cupy_of(array: Array) -> ModuleType:
    """Return the module that a CuPy array is from."""
    del array
    return sys.modules["cupy"]


def describe(value: object) -> str:
    """Name what came, for an error message: a shape and dtype, or the type."""
    if library_of(value) is not None:
        return f"shape {value.shape}, dtype {value.dtype}"  # type: ignore[attr-defined]
    kind = type(value)
    return (
        "None"
        if value is None
        else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    )


def require_array(name: str, value: object, axes: str, besides: str = "") -> Array:
    """Return ``value`` if it is an array of the rank and a dtype the library computes with.

    ``axes`` spells the expected shape, e.g. ``"(N, C_in, H, W)"``; ``besides`` ends the hint where
    it is no array, or its rank is wrong.
    """
    library = library_of(value)
    if library is None:
        value = as_array(name, value)
        library = library_of(value)
    if library is None:
        raise TypeError(
            f"{name} must be a NumPy or CuPy array {axes}, got {describe(value)};"
            f" {hints.for_no_array(value)}{besides}"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array {axes}, got a masked array;"
            " fill its holes first with .filled(value)"
        )
    array: Array = value  # type: ignore[assignment]
    if not is_supported(array.dtype):
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {SUPPORTED} in native byte order;"
            f" convert it with {name}.astype(numpy.float32), as all arrays of the call"
        )
    rank = axes.count(",") + (0 if axes.endswith(",)") else 1)
    if array.ndim != rank:
        raise ValueError(
            f"{name} has {array.ndim} dimensions (shape {array.shape}), expected {rank}: {axes};"
            f" {hints.for_dimensions(name, array.shape, rank)}{besides}"
        )
    if library == "NumPy":
        return np.asarray(array)  # of a subclass, the plain array
    if any(step % array.itemsize for step in (address_of(array), *array.strides)):
        raise ValueError(
            f"{name} is not aligned: its address and strides {array.strides} must be multiples of"
            f" {array.itemsize} bytes on a GPU; a copy into cupy.empty is"
        )
    require_bytes(name, array.shape, array.itemsize)  # NumPy has no larger ones
    return array


def require_bytes(name: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Demand that the bytes of an array can be counted; axes of length 0 as if they were 1."""
    nbytes = math.prod(length or 1 for length in shape) * itemsize
    if nbytes > MOST_BYTES:
        raise ValueError(
            f"{name} of shape {shape} would take {nbytes} bytes, expected at most 2^63 - 1 ="
            f" {MOST_BYTES}; larger sizes overflow index arithmetic"
        )


def of_one_library(arrays: Mapping[str, object]) -> tuple[Any, ...]:
    """Return the arrays, foreign ones as NumPy's or CuPy's; they must be one's, on one device.

    What is no array, such as None, is returned as it is, and left to its own check.
    """
    if all(value is None or isinstance(value, np.ndarray) for value in arrays.values()):
        return tuple(arrays.values())
    given = arrays
    arrays = {name: as_array(name, value) for name, value in given.items()}
    libraries = {name: found for name, value in arrays.items() if (found := library_of(value))}
    if len(set(libraries.values())) > 1:
        came = ", ".join(f"{name} is {_origin(given[name], arrays[name])}" for name in libraries)
        raise TypeError(
            f"expected all arrays from one library, but {came};"
            " cupy.asarray(...) moves one to the GPU, cupy.asnumpy(...) to the CPU"
        )
    if "CuPy" in libraries.values():
        devices = {name: arrays[name].device.id for name in libraries}  # type: ignore[attr-defined]
        if len(set(devices.values())) > 1:
            came = ", ".join(f"{name} is on device {device}" for name, device in devices.items())
            raise ValueError(
                f"expected all arrays on one device, but {came};"
                " cupy.asarray(...) under `with cupy.cuda.Device(...)` copies one over"
            )
    return tuple(arrays.values())


def as_array(name: str, value: object) -> Any:
    """Return an array of another library, called ``name``, as NumPy's or CuPy's in its memory.

    Anything else is returned as it is.
    """
    return value if value is None or library_of(value) else view_of(name, value)


def _origin(value: object, array: Any) -> str:
    """Name the library of what came, and where a foreign array lies."""
    library = library_of(array)
    if array is value:
        return f"a {library} array"
    place = "the CPU" if library == "NumPy" else f"device {array.device.id}"
    return f"{kind_of(value)} on {place}"


def is_supported(dtype: np.dtype[Any]) -> bool:
    """Tell whether the library computes with ``dtype``; bfloat16 is ml_dtypes' NumPy dtype."""
    return dtype in (np.float64, np.float32, np.float16) or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell bfloat16 by its name, so that ml_dtypes need not be importable."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def is_half(dtype: np.dtype[Any]) -> bool:
    """Tell a storage-only dtype: float16 or bfloat16."""
    return dtype.itemsize == 2


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of coordinates, weights and sums: float32 for the half types."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def overlaps(a: Array, b: Array) -> bool:
    """Tell whether two arrays share memory; where that is too hard to tell, say they do."""
    if library_of(a) == "CuPy":  # by their bounds: an exact answer takes kernels and a wait
        return bool(cupy_of(a).may_share_memory(a, b))
    try:
        return np.shares_memory(a, b, max_work=10**6)  # type: ignore[arg-type]
    except RuntimeError:  # numpy's TooHardError, which moved between versions
        return True


def module_of(array: Array) -> Any:
    """Return numpy or cupy, whichever an array is from."""
    return np if isinstance(array, np.ndarray) else cupy_of(array)


def on_host(value: Any) -> Any:
    """Return a CuPy array's copy in NumPy, anything else as it is."""
    return cupy_of(value).asnumpy(value) if library_of(value) == "CuPy" else value


def address_of(array: Array) -> int:
    """Return the address of an array's first element."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return array.data.ptr  # type: ignore[no-any-return]


def on_device(array: Array) -> AbstractContextManager[object]:
    """Make a CuPy array's device the current one, for a while; a NumPy array has none."""
    if isinstance(array, np.ndarray):
        return nullcontext()
    device: AbstractContextManager[object] = array.device  # type: ignore[unreachable]
    return device
