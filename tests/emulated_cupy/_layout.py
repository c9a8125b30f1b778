"""Shapes and strides, as CuPy computes them: contiguity, bounds, views, broadcasting."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]

# numpy.exceptions came with NumPy 1.25.
AxisError = np.exceptions.AxisError


def normalize_shape(shape: Any) -> Shape:
    """Return a shape as a tuple; an int is one axis."""
    if isinstance(shape, Iterable):
        found = tuple(operator.index(length) for length in shape)
    else:
        found = (operator.index(shape),)
    if any(length < 0 for length in found):
        raise ValueError("Negative dimensions are not allowed")
    if len(found) > 64:
        raise ValueError(f"maximum supported dimension for an ndarray is 64, found {len(found)}")
    return found


def contiguous_strides(shape: Shape, itemsize: int, order: str = "C") -> Shape:
    """Return the strides of a new array; without elements, CuPy's are zeros."""
    if 0 in shape:
        return (0,) * len(shape)
    strides = [0] * len(shape)
    step = itemsize
    for axis in reversed(range(len(shape))) if order == "C" else range(len(shape)):
        strides[axis] = step
        step *= shape[axis]
    return tuple(strides)


def is_c_contiguous(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Tell whether the elements lie one after another, last axis fastest."""
    if 0 in shape:
        return True
    step = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1:
            if stride != step:
                return False
            step *= length
    return True


def is_f_contiguous(shape: Shape, strides: Shape, itemsize: int) -> bool:
    """Tell whether the elements lie one after another, first axis fastest."""
    return is_c_contiguous(shape[::-1], strides[::-1], itemsize)


def byte_range(shape: Shape, strides: Shape, itemsize: int) -> tuple[int, int]:
    """Return the first byte and the one past the last, relative to the first element."""
    if 0 in shape:
        return 0, 0
    spans = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    return sum(span for span in spans if span < 0), itemsize + sum(
        span for span in spans if span > 0
    )


def strides_keeping_order(shape: Shape, like: Shape, itemsize: int) -> Shape:
    """Return dense strides whose axes rank as those of ``like`` do (order "K")."""
    ranked = sorted((abs(stride), -axis) for axis, stride in enumerate(like))
    strides = [0] * len(shape)
    step = itemsize
    for _, axis in ranked:
        strides[-axis] = step
        step *= shape[-axis]
    return tuple(strides)


def broadcast_shape(shapes: Sequence[Shape]) -> Shape:
    """Return the common shape of arrays."""
    ndim = max(map(len, shapes), default=0)
    common = []
    for axis in range(-ndim, 0):
        lengths = {shape[axis] for shape in shapes if -axis <= len(shape)} - {1}
        if len(lengths) > 1:
            raise ValueError(
                "operands could not be broadcast together with shapes "
                + " ".join(str(shape) for shape in shapes)
            )
        common.append(lengths.pop() if lengths else 1)
    return tuple(common)


def broadcast_strides(shape: Shape, strides: Shape, target: Shape) -> Shape:
    """Return the strides of a view of ``target``, which ``shape`` must broadcast to."""
    lead = len(target) - len(shape)
    steps = (
        stride if length == wanted else 0
        for length, stride, wanted in zip(shape, strides, target[lead:], strict=True)
    )
    return (0,) * lead + tuple(steps)


def infer_shape(shape: Shape, size: int) -> Shape:
    """Fill in the one length given as -1."""
    unknown = [axis for axis, length in enumerate(shape) if length < 0]
    if len(unknown) > 1:
        raise ValueError("can only specify one unknown dimension")
    known = math.prod(length for length in shape if length >= 0)
    if not unknown and known == size:
        return shape
    if not unknown or known == 0 or size % known:
        raise ValueError(f"cannot reshape array of size {size} into shape {shape}")
    return tuple(size // known if length < 0 else length for length in shape)


def merged_axes(shape: Shape, strides: Shape) -> list[list[int]]:
    """Join neighbouring axes that one step runs through, as [length, stride]; drop axes of 1."""
    merged: list[list[int]] = []
    for length, stride in zip(shape, strides, strict=True):
        if length == 1:
            continue
        if merged and merged[-1][1] == length * stride:
            merged[-1] = [merged[-1][0] * length, stride]
        else:
            merged.append([length, stride])
    return merged


def reshaped_strides(shape: Shape, strides: Shape, itemsize: int, new: Shape) -> Shape | None:
    """Return the strides of a reshaping view, None where only a copy will do."""
    size = math.prod(shape)
    if size == 0:
        return contiguous_strides(new, itemsize)
    if size == 1:
        return (itemsize,) * len(new)
    merged = merged_axes(shape, strides)
    found = []
    step = merged[0][0] * merged[0][1]
    for length in new:
        if length > 1:
            if not merged or merged[0][0] % length:
                return None
            merged[0][0] //= length
            step = merged[0][0] * merged[0][1]
            if merged[0][0] == 1:
                del merged[0]
        found.append(step)
    return tuple(found)


def normalize_axis(axis: Any, ndim: int) -> int:
    """Return an axis counted from the front."""
    number = operator.index(axis)
    if not -ndim <= number < ndim:
        raise AxisError(number, ndim)
    return number % ndim


def normalize_axes(axis: Any, ndim: int) -> Shape:
    """Return the axes of a reduction, in order; None is all."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, Sequence) else (axis,)
    found = sorted(normalize_axis(each, ndim) for each in axes)
    if len(set(found)) != len(found):
        raise ValueError("duplicate value in 'axis'")
    return tuple(found)
