"""Between device arrays and NumPy: copies in both directions, and NumPy's protocols."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _array, _ufuncs
from ._devices import get_device_id, set_device_id
from ._dtypes import supported_dtype
from ._streams import Stream, get_current_stream


def counterpart(name: str) -> Any:
    """Return the function of the stand-in that has the name of one of NumPy's, or None."""
    from ._namespace import public_names

    return public_names().get(name)


def to_host(array: Any, stream: Stream | None, order: str, out: Any, blocking: bool) -> Any:
    """Return an array as a NumPy array, waiting for the stream unless told not to."""
    stream = get_current_stream() if stream is None else stream
    if out is not None:
        _require_output(array, out)
    elif array.size == 0:
        return np.ndarray(array.shape, array.dtype)
    order = _host_order(array, order) if out is None else _order_of(out)
    source = array
    current = get_device_id()
    try:
        set_device_id(array.data.device_id)
        if not (array.flags.c_contiguous if order == "C" else array.flags.f_contiguous):
            source = _array.ndarray(array.shape, array.dtype, order=order)
            _ufuncs.elementwise_copy(array, source)
        if out is None:
            out = np.empty(array.shape, array.dtype, order)
        source.data.copy_to_host_async(out.ctypes.data, source.nbytes, stream)
        if blocking:
            stream.synchronize()
    finally:
        set_device_id(current)
    return out


def _require_output(array: Any, out: Any) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError("Only numpy.ndarray can be obtained fromcupy.ndarray")
    if array.dtype != out.dtype:
        raise TypeError(f"{out.dtype} array cannot be obtained from {array.dtype} array")
    if array.shape != out.shape:
        raise ValueError(
            f"Shape mismatch. Expected shape: {array.shape}, actual shape: {out.shape}"
        )
    if not out.flags.forc:
        raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")


def _order_of(out: Any) -> str:
    return "C" if out.flags.c_contiguous else "F"


def _host_order(array: Any, order: str) -> str:
    order = order.upper()
    if order == "A":
        return "F" if array.flags.f_contiguous else "C"
    if order not in ("C", "F"):
        raise ValueError(f"unsupported order: {order}")
    return order


def set_from_host(array: Any, arr: Any, stream: Stream | None) -> None:
    """Copy a NumPy array into a device array."""
    if not isinstance(arr, np.ndarray):
        raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
    if array.dtype != arr.dtype:
        raise TypeError(f"{arr.dtype} array cannot be set to {array.dtype} array")
    if array.shape != arr.shape:
        raise ValueError(f"Shape mismatch. Old shape: {array.shape}, new shape: {arr.shape}")
    if not array.flags.forc:
        raise RuntimeError("Cannot set to non-contiguous array")
    host = np.asarray(arr, order="C" if array.flags.c_contiguous else "F")
    array.data.copy_from_host_async(host.ctypes.data, array.nbytes, stream)


def from_host(obj: Any, dtype: Any, order: str, ndmin: int, blocking: bool) -> Any:
    """Return a new device array of what NumPy makes an array of."""
    if order in ("K", "A"):
        order = "F" if isinstance(obj, np.ndarray) and obj.flags.fnc else "C"
    host = np.array(obj, dtype=dtype, order=order, ndmin=ndmin)
    made = _array.ndarray(host.shape, supported_dtype(host.dtype), order=order)
    if host.ndim == 0:
        made.fill(host)
        return made
    if made.size:
        made.data.copy_from_host_async(host.ctypes.data, made.nbytes)
    if blocking:
        get_current_stream().synchronize()
    return made
