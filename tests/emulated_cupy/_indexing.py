"""Basic indexing: views by integers, slices, Ellipsis and None; no indexing by arrays."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from . import _array, _ufuncs


def getitem(array: Any, slices: Any) -> Any:
    """Return a view."""
    items = _prepared(array, slices)
    shape: list[int] = []
    strides: list[int] = []
    offset = axis = 0
    for item in items:
        if item is None:
            shape.append(1)
            strides.append(0)
            continue
        length, stride = array.shape[axis], array.strides[axis]
        if isinstance(item, slice):
            start, stop, step = item.indices(length)
            count = len(range(start, stop, step))
            shape.append(count)
            strides.append(stride * step if count else stride)
            offset += stride * start if count else 0
        else:
            offset += stride * _index(item, axis, length)
        axis += 1
    return array._view(tuple(shape), tuple(strides), offset=offset if array.size else 0)


def setitem(array: Any, slices: Any, value: Any) -> None:
    """Assign a scalar or a device array; a NumPy array is refused unless it is 0-d."""
    target = getitem(array, slices)
    source = _array.from_interface(value)
    if source is None:
        target.fill(value)
        return
    while source.ndim > target.ndim and source.shape[0] == 1:
        source = source[0]
    if source.shape == target.shape and source.strides == target.strides:
        if source.data.ptr == target.data.ptr:
            return
        if target.flags.c_contiguous and source.dtype == target.dtype:
            target.data.copy_from_device_async(source.data, source.nbytes)
            return
    _ufuncs.elementwise_copy(source, target)


def _prepared(array: Any, slices: Any) -> list[Any]:
    """Return one item for each axis, beside Nones; the Ellipsis written out."""
    items = list(slices) if isinstance(slices, tuple) else [slices]
    for item in items:
        if isinstance(item, (list, tuple, bool, np.bool_, np.ndarray, _array.ndarray)):
            raise NotImplementedError("indexing by arrays is not emulated")
    if sum(item is Ellipsis for item in items) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    indexed = sum(item is not None and item is not Ellipsis for item in items)
    if indexed > array.ndim:
        raise IndexError(
            f"too many indices for array: array is {array.ndim}-dimensional, but {indexed} were"
            " indexed"
        )
    place = next(number for number, item in enumerate(items) if item is Ellipsis)
    items[place : place + 1] = [slice(None)] * (array.ndim - indexed)
    return items


def _index(item: Any, axis: int, length: int) -> int:
    try:
        index = operator.index(item)
    except TypeError:
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or"
            " boolean arrays are valid indices"
        ) from None
    if not -length <= index < length:
        raise IndexError(f"Index {item} is out of bounds for axis {axis} with size {length}")
    return index % length
