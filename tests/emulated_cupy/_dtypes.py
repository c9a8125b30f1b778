"""Which dtypes arrays hold, and the type codes that CuPy's tables of loops use."""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

# CuPy leaves bfloat16 out on NumPy releases that crash on its loops.
HAS_BFLOAT16 = ml_dtypes is not None and np.lib.NumpyVersion(np.__version__) >= "2.1.2"

BFLOAT16 = np.dtype(ml_dtypes.bfloat16) if HAS_BFLOAT16 else None

_KNOWN = frozenset("?bhilqBHILQefd")
_NOT_EMULATED = frozenset("FDV")


def supported_dtype(dtype: Any) -> np.dtype[Any]:
    """Return the dtype of a new array, if CuPy has such arrays."""
    found = np.dtype(dtype)
    if found.byteorder == ">":
        raise ValueError(f"Unsupported dtype {found} with big-endian byte-order")
    if is_bfloat16(found):
        if not HAS_BFLOAT16:
            raise ValueError(f"Unsupported dtype {found}")
    elif found.char in _NOT_EMULATED:
        raise NotImplementedError(f"arrays of {found} are not emulated")
    elif found.char not in _KNOWN:
        raise ValueError(f"Unsupported dtype {found}")
    return found


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell bfloat16 by its name."""
    return dtype.name == "bfloat16"


def from_code(code: str) -> np.dtype[Any] | None:
    """Return the dtype of a type code; "E" is bfloat16, None where there is none."""
    return BFLOAT16 if code == "E" else np.dtype(code)


def accumulator(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype sums are formed in: float32 for the half types."""
    half = dtype.char == "e" or is_bfloat16(dtype)
    return np.dtype(np.float32) if half else dtype
