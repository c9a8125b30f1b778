"""Which arrays the library takes: their library, dtypes and memory, asked in one place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SUPPORTED = "float64, float32, float16 or bfloat16"


def describe(value: object) -> str:
    """Name what came, for an error message: a shape and dtype, or the type."""
    if isinstance(value, np.ndarray):
        return f"shape {value.shape}, dtype {value.dtype}"
    kind = type(value)
    return (
        "None"
        if value is None
        else f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
    )


def require_array(name: str, value: object, axes: str) -> Array:
    """Return ``value`` if it is a NumPy array of the rank and a dtype the library computes with.

    ``axes`` spells the expected shape, e.g. ``"(N, C_in, H, W)"``.
    """
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name} must be a NumPy array {axes}, got {describe(value)};"
            " numpy.asarray(...) converts lists and CPU tensors"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain NumPy array {axes}, got a masked array;"
            " fill its holes first with .filled(value)"
        )
    if not is_supported(value.dtype):
        raise TypeError(
            f"{name} has dtype {value.dtype}, expected {SUPPORTED} in native byte order;"
            f" convert it with {name}.astype(numpy.float32)"
        )
    rank = axes.count(",") + (0 if axes.endswith(",)") else 1)
    if value.ndim != rank:
        raise ValueError(
            f"{name} has {value.ndim} dimensions (shape {value.shape}), expected {rank}: {axes};"
            " add or drop axes with reshape"
        )
    return np.asarray(value)  # of a subclass, the plain array


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
    try:
        return np.shares_memory(a, b, max_work=10**6)  # type: ignore[arg-type]
    except RuntimeError:  # numpy's TooHardError, which moved between versions
        return True
