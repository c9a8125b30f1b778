"""Sums and tests along axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _array, _ufuncs
from ._devices import get_device_id
from ._dtypes import accumulator
from ._layout import Shape, normalize_axes
from ._log import Operation, record
from ._streams import current_pointer


def sum(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Return the sum along axes; half types are summed in float32 and rounded once."""
    _array.require_ndarray("a", a)
    if dtype is not None:
        result = np.dtype(dtype)
    elif a.dtype.kind in "biu":
        result = np.add.reduce(np.empty(0, a.dtype)).dtype
    else:
        result = a.dtype

    def compute(values: Any, axes: Shape) -> Any:
        return np.add.reduce(values.astype(accumulator(result)), axes, keepdims=True)

    return _reduce("cupy_sum", a, axis, out, keepdims, result, compute)


def any(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Tell whether any element along axes is true."""
    return _test("cupy_any", a, axis, out, keepdims, np.logical_or)


def all(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
    """Tell whether all elements along axes are true."""
    return _test("cupy_all", a, axis, out, keepdims, np.logical_and)


def _test(name: str, a: Any, axis: Any, out: Any, keepdims: bool, operation: Any) -> Any:
    _array.require_ndarray("a", a)

    def compute(values: Any, axes: Shape) -> Any:
        return operation.reduce(values != 0, axes, keepdims=True)

    return _reduce(name, a, axis, out, keepdims, np.dtype(np.bool_), compute)


def _reduce(
    name: str,
    array: Any,
    axis: Any,
    out: Any,
    keepdims: bool,
    dtype: np.dtype[Any],
    compute: Any,
) -> Any:
    _ufuncs.on_this_device(array)
    axes = normalize_axes(axis, array.ndim)
    kept = tuple(1 if each in axes else length for each, length in enumerate(array.shape))
    shape = (
        kept
        if keepdims
        else tuple(length for each, length in enumerate(array.shape) if each not in axes)
    )
    if out is None:
        out = _array.ndarray(shape, dtype)
    elif not isinstance(out, _array.ndarray):
        raise TypeError("Output arguments type must be cupy.ndarray")
    elif out.shape != shape:
        raise ValueError("Out shape is mismatched")
    else:
        _ufuncs.require_cast(dtype, out.dtype, "unsafe")
    if out.size:
        with np.errstate(all="ignore"):
            values = compute(array._read(name), axes).reshape(shape)
            out._write(values.astype(dtype).astype(out.dtype))
        record(Operation(name, array.nbytes, out.nbytes, get_device_id(), current_pointer()))
    return out
