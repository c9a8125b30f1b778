"""Making arrays: empty, filled, copied from the host, joined."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _array, _conversion, _layout, _ufuncs
from ._devices import get_device_id, set_device_id
from ._log import Operation, record
from ._streams import Stream, current_pointer


def empty(shape: Any, dtype: Any = float, order: Any = "C") -> Any:
    """Return an array of nothing yet."""
    return _array.ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: Any = "C") -> Any:
    """Return an array of zeros."""
    array = _array.ndarray(shape, dtype, order=order)
    array.data.memset_async(0, array.nbytes)
    return array


def ones(shape: Any, dtype: Any = float, order: Any = "C") -> Any:
    """Return an array of ones."""
    array = _array.ndarray(shape, dtype, order=order)
    array.fill(1)
    return array


def full(shape: Any, fill_value: Any, dtype: Any = None, order: Any = "C") -> Any:
    """Return an array of one value."""
    if dtype is None:
        dtype = (
            np.array(fill_value).dtype
            if _array.from_interface(fill_value) is None
            else (fill_value.dtype)
        )
    array = _array.ndarray(shape, dtype, order=order)
    copyto(array, fill_value, casting="unsafe")
    return array


def empty_like(
    prototype: Any, dtype: Any = None, order: Any = "K", subok: Any = None, shape: Any = None
) -> Any:
    """Return an array of nothing yet, in the shape, dtype and layout of another."""
    return _like(prototype, dtype, order, subok, shape)


def zeros_like(
    a: Any, dtype: Any = None, order: Any = "K", subok: Any = None, shape: Any = None
) -> Any:
    """Return zeros in the shape, dtype and layout of another array."""
    array = _like(a, dtype, order, subok, shape)
    array.data.memset_async(0, array.nbytes)
    return array


def ones_like(
    a: Any, dtype: Any = None, order: Any = "K", subok: Any = None, shape: Any = None
) -> Any:
    """Return ones in the shape, dtype and layout of another array."""
    array = _like(a, dtype, order, subok, shape)
    array.fill(1)
    return array


def full_like(
    a: Any,
    fill_value: Any,
    dtype: Any = None,
    order: Any = "K",
    subok: Any = None,
    shape: Any = None,
) -> Any:
    """Return one value in the shape, dtype and layout of another array."""
    array = _like(a, dtype, order, subok, shape)
    copyto(array, fill_value, casting="unsafe")
    return array


def _like(a: Any, dtype: Any, order: str, subok: Any, shape: Any) -> Any:
    if subok is not None:
        raise TypeError("subok is not supported yet")
    order = order.upper()
    if order not in ("C", "F", "K", "A"):
        raise ValueError(f"order not understood: {order}")
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    new = _layout.normalize_shape(shape) if shape else a.shape
    if order == "K" and len(new) != a.ndim:
        order = "C"
    if order == "A":
        order = "F" if a.flags.fnc else "C"
    if order == "K" and a.flags.forc:
        order = "C" if a.flags.c_contiguous else "F"
    if order != "K":
        return _array.ndarray(new, dtype, order=order)
    strides = _layout.strides_keeping_order(new, a.strides, dtype.itemsize)
    return _array.ndarray(new, dtype, strides=strides)


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: Any = "K",
    subok: Any = False,
    ndmin: int = 0,
    *,
    blocking: Any = False,
) -> Any:
    """Return an array on the current device."""
    if subok:
        raise NotImplementedError
    order = order or "K"
    source = _array.from_interface(obj)
    if source is not None:
        return _from_device(source, dtype, copy, order, ndmin)
    if isinstance(obj, (list, tuple)) and any(isinstance(each, _array.ndarray) for each in obj):
        raise NotImplementedError("arrays from lists of device arrays are not emulated; use stack")
    return _conversion.from_host(obj, dtype, order, ndmin, blocking)


def _from_device(source: Any, dtype: Any, copy: Any, order: str, ndmin: int) -> Any:
    dtype = source.dtype if dtype is None else dtype
    if source.data.device_id == get_device_id():
        made = source._astype(dtype, order=order, copy=copy)
    else:
        made = source.copy(order=order)._astype(dtype, copy=None)
    if ndmin > made.ndim:
        made = made.reshape((1,) * (ndmin - made.ndim) + made.shape)
    return made


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: Any = False
) -> Any:
    """Return an array on the current device, the same one if it is there already."""
    return array(a, dtype, copy, order or "K", blocking=blocking)


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    """Return a C-contiguous array, the same one if it is that; never 0-d."""
    _array.require_ndarray("a", a)
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if dtype == a.dtype and a.flags.c_contiguous:
        return a if a.ndim else a.ravel()
    made = _array.ndarray(a.shape or (1,), dtype)
    _ufuncs.elementwise_copy(a, made)
    return made


def asnumpy(
    a: Any, stream: Stream | None = None, order: Any = "C", out: Any = None, *, blocking: Any = True
) -> Any:
    """Return a NumPy array."""
    source = _array.from_interface(a)
    if source is not None:
        return source.get(stream=stream, order=order, out=out, blocking=blocking)
    host = np.asarray(a, order=order)
    if out is None:
        return host
    out[...] = host
    return out


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Any:
    """Return evenly spaced values."""
    if dtype is None:
        kinds = [np.dtype(type(value)).kind for value in (start, stop, step)]
        dtype = float if "f" in kinds else int
    if stop is None:
        start, stop = 0, start
    step = 1 if step is None else step
    size = max(int(np.ceil((stop - start) / step)), 0)
    made = _array.ndarray((size,), dtype)
    if size:
        values = np.dtype(dtype).type(start) + np.arange(size) * np.dtype(dtype).type(step)
        made._write(values.astype(dtype))
        record(Operation("cupy_arange", 0, made.nbytes, get_device_id(), current_pointer()))
    return made


def broadcast_to(array: Any, shape: Any) -> Any:
    """Return a view of another shape, its new axes with strides of zero."""
    source = _array.from_interface(array)
    if source is None:
        raise TypeError(f"Unsupported type {type(array)}")
    new = tuple(shape) if np.iterable(shape) else (shape,)
    if source.ndim > len(new):
        raise ValueError("input operand has more dimensions than allowed by the axis remapping")
    for length, wanted in zip(source.shape, new[len(new) - source.ndim :], strict=True):
        if length not in (1, wanted):
            raise ValueError(
                f"operands could not be broadcast together with shape {source.shape} and"
                f" requested shape {new}"
            )
    return source._view(new, _layout.broadcast_strides(source.shape, source.strides, new))


def concatenate(
    tup: Sequence[Any],
    axis: Any = 0,
    out: Any = None,
    *,
    dtype: Any = None,
    casting: str = "same_kind",
) -> Any:
    """Join arrays along an axis."""
    arrays = [_ufuncs.as_operand(each) for each in tup]
    if axis is None:
        arrays, axis = [each.ravel() for each in arrays], 0
    shape, axis = _joined_shape(arrays, axis)
    if out is not None and dtype is not None:
        raise TypeError(
            "concatenate() only takes `out` or `dtype` as an argument, but both were provided."
        )
    if out is not None:
        target_dtype = out.dtype
    elif dtype is not None:
        target_dtype = np.dtype(dtype)
    else:
        target_dtype = functools.reduce(np.promote_types, [each.dtype for each in arrays])
    for each in arrays:
        _ufuncs.require_cast(each.dtype, target_dtype, casting)
    if out is None:
        out = _array.ndarray(shape, target_dtype)
    elif out.ndim != len(shape):
        raise ValueError("Output array has wrong dimensionality")
    elif out.shape != shape:
        raise ValueError("Output array is the wrong shape")
    first = 0
    for each in arrays:
        place = [slice(None)] * len(shape)
        place[axis] = slice(first, first + each.shape[axis])
        _ufuncs.elementwise_copy(each, out[tuple(place)], casting=casting)
        first += each.shape[axis]
    return out


def _joined_shape(arrays: list[Any], axis: Any) -> tuple[_layout.Shape, int]:
    if not arrays:
        raise ValueError("Cannot concatenate from empty tuple")
    if not all(isinstance(each, _array.ndarray) for each in arrays):
        raise TypeError("Only cupy arrays can be concatenated")
    if any(each.ndim == 0 for each in arrays):
        raise TypeError("zero-dimensional arrays cannot be concatenated")
    shape = list(arrays[0].shape)
    if any(each.ndim != len(shape) for each in arrays):
        raise ValueError("All arrays to concatenate must have the same ndim")
    axis = _layout.normalize_axis(axis, len(shape))
    for each in arrays[1:]:
        if any(
            length != wanted
            for number, (length, wanted) in enumerate(zip(each.shape, shape, strict=True))
            if number != axis
        ):
            raise ValueError("All arrays must have same shape except the axis to concatenate")
        shape[axis] += each.shape[axis]
    return tuple(shape), axis


def stack(
    tup: Sequence[Any],
    axis: Any = 0,
    out: Any = None,
    *,
    dtype: Any = None,
    casting: str = "same_kind",
) -> Any:
    """Join arrays along a new axis."""
    arrays = []
    for each in tup:
        place = _layout.normalize_axis(axis, each.ndim + 1)
        arrays.append(each[(slice(None),) * place + (None,)])
    return concatenate(arrays, axis, out, dtype=dtype, casting=casting)


def copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Copy values into an array, broadcasting them."""
    source = _array.from_interface(src)
    if source is None:
        src = _scalar_source(dst, src, casting)
    else:
        src = _array_source(dst, source, casting)
    if where is not None:
        _ufuncs.elementwise_copy(src, dst, _where=where)
    elif dst.size == 0:
        return
    elif source is None:
        _ufuncs.elementwise_copy(src, dst)
    elif _is_one_block(dst, src):
        dst.data.copy_from_async(src.data, src.nbytes)
    else:
        _copy_on_its_device(dst, src)


def _copy_on_its_device(dst: Any, src: Any) -> None:
    current = get_device_id()
    try:
        set_device_id(dst.data.device_id)
        _ufuncs.elementwise_copy(src if src.device == dst.device else src.copy(), dst)
    finally:
        set_device_id(current)


def _scalar_source(dst: Any, src: Any, casting: str) -> Any:
    if isinstance(src, np.ndarray):
        if src.size != 1:
            raise ValueError("non-scalar numpy.ndarray cannot be used for copyto")
        src = src.reshape(())[()]
    if isinstance(src, (bool, int, float)) and not isinstance(src, np.generic):
        np.copyto(np.empty((), dst.dtype), src, casting=casting)
    elif not np.can_cast(np.asarray(src).dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast {src} to {dst.dtype} in {casting} casting mode")
    return src


def _array_source(dst: Any, src: Any, casting: str) -> Any:
    if not np.can_cast(src.dtype, dst.dtype, casting):
        raise TypeError(f"Cannot cast {src.dtype} to {dst.dtype} in {casting} casting mode")
    extra = max(src.ndim - dst.ndim, 0)
    kept = src.shape[extra:]
    lead = dst.ndim - len(kept)
    fits = all(length in (1, wanted) for length, wanted in zip(kept, dst.shape[lead:], strict=True))
    if not fits or any(length != 1 for length in src.shape[:extra]):
        raise ValueError(
            f"could not broadcast input array from shape {src.shape} into shape {dst.shape}"
        )
    return src.squeeze(tuple(range(extra))) if extra else src


def _is_one_block(dst: Any, src: Any) -> bool:
    same_order = (dst.flags.c_contiguous and src.flags.c_contiguous) or (
        dst.flags.f_contiguous and src.flags.f_contiguous
    )
    return same_order and dst.dtype == src.dtype and dst.size == src.size


def may_share_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    """Tell whether two arrays may overlap, by their bounds."""
    if max_work is not None:
        raise NotImplementedError("Only supported for `max_work` is `None`")
    return _array.may_share_bounds(a, b)


def shares_memory(a: Any, b: Any, max_work: Any = None) -> bool:
    """Tell whether two arrays overlap; CuPy compares all addresses, and waits for the device."""
    if a is b and a.size:
        return True
    if max_work == "MAY_SHARE_BOUNDS":
        return _array.may_share_bounds(a, b)
    if max_work not in (None, "MAY_SHARE_EXACT"):
        raise NotImplementedError("Not supported for integer `max_work`.")
    shared = np.intersect1d(_addresses(a), _addresses(b)).size > 0
    found = _array.ndarray((), np.bool_)
    found.fill(shared)
    return bool(found)


def _addresses(a: Any) -> Any:
    offsets = np.zeros(a.shape, np.int64)
    for axis, (length, stride) in enumerate(zip(a.shape, a.strides, strict=True)):
        steps = np.arange(length) * stride
        offsets += steps.reshape((-1,) + (1,) * (a.ndim - axis - 1))
    return offsets.ravel() + a.data.ptr


def get_array_module(*args: Any) -> Any:
    """Return this module if any argument is one of its arrays, else NumPy."""
    from ._namespace import cupy_module

    return cupy_module() if any(isinstance(each, _array.ndarray) for each in args) else np
