"""What an array is apart from its elements: its layout, and the views that share its memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import _array, _layout
from ._devices import Device
from ._layout import Shape
from ._memory import MemoryPointer

_class = type  # `type` is a parameter of Views.view


class Flags:
    """How an array lies in memory. CuPy's flags know no writeable."""

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    @property
    def fnc(self) -> bool:
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self) -> bool:
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        if name not in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA"):
            raise KeyError(f"{name} is not defined for cupy.ndarray.flags")
        value: bool = getattr(self, name.lower())
        return value


class Views:
    """The part of an array's methods that never touches an element."""

    data: MemoryPointer
    dtype: np.dtype[Any]
    base: Any
    _shape: Shape
    _strides: Shape

    @property
    def shape(self) -> Shape:
        return self._shape

    @shape.setter
    def shape(self, newshape: Any) -> None:
        shape = tuple(newshape) if isinstance(newshape, (tuple, list)) else (newshape,)
        shape = _layout.infer_shape(shape, self.size)
        strides = _layout.reshaped_strides(self._shape, self._strides, self.itemsize, shape)
        if strides is None:
            raise AttributeError(
                "Incompatible shape for in-place modification. Use `.reshape()` to make a copy"
                " with the desired shape."
            )
        self._shape, self._strides = shape, strides

    @property
    def strides(self) -> Shape:
        return self._strides

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return math.prod(self._shape)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.size * self.itemsize

    @property
    def flags(self) -> Flags:
        layout = self._shape, self._strides, self.itemsize
        return Flags(
            _layout.is_c_contiguous(*layout), _layout.is_f_contiguous(*layout), self.base is None
        )

    @property
    def device(self) -> Device:
        return self.data.device

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError("len() of unsized object")
        return self._shape[0]

    def __iter__(self) -> Iterator[Any]:
        if not self._shape:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(self._shape[0]))

    # Views

    def _view(self, shape: Shape, strides: Shape, cls: Any = None, offset: int = 0) -> Any:
        view = _array.ndarray.__new__(cls or type(self), _no_init=True)
        view._shape, view._strides, view.dtype = shape, strides, self.dtype
        view.data = self.data + offset if offset else self.data
        view.base = self if self.base is None else self.base
        if type(view) is not _array.ndarray:
            view.__array_finalize__(self)
        return view

    def view(self, dtype: Any = None, type: Any = None) -> Any:
        """Return the same memory, of another dtype or class."""
        if isinstance(dtype, _class) and issubclass(dtype, _array.ndarray):
            if type is not None:
                raise ValueError("Cannot specify output type twice.")
            dtype, type = None, dtype
        if type is not None and not (isinstance(type, _class) and issubclass(type, _array.ndarray)):
            raise ValueError("Type must be a sub-type of ndarray type")
        view = self._view(self._shape, self._strides, type)
        if dtype is not None:
            view._reinterpret(np.dtype(dtype))
        return view

    def _reinterpret(self, dtype: np.dtype[Any]) -> None:
        before, self.dtype = self.itemsize, dtype
        if dtype.itemsize == before:
            return
        if not self._shape:
            raise ValueError(
                "Changing the dtype of a 0d array is only supported if the itemsize is unchanged"
            )
        if self._shape[-1] != 1 and self.size != 0 and self._strides[-1] != before:
            raise ValueError(
                "To change to a dtype of a different size, the last axis must be contiguous"
            )
        nbytes = self._shape[-1] * before
        if nbytes % dtype.itemsize:
            raise ValueError(
                "When changing to a larger dtype, its size must be a divisor of the total size in"
                " bytes of the last axis of the array."
            )
        self._shape = (*self._shape[:-1], nbytes // dtype.itemsize)
        self._strides = (*self._strides[:-1], dtype.itemsize)

    @property
    def T(self) -> Any:
        return self if self.ndim < 2 else self._view(self._shape[::-1], self._strides[::-1])

    def transpose(self, *axes: Any) -> Any:
        """Return a view with the axes permuted, by default reversed."""
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))):
            axes = tuple(axes[0] or ())
        if not axes:
            return self._view(self._shape[::-1], self._strides[::-1])
        if len(axes) != self.ndim:
            raise ValueError("axes don't match array")
        order = [_layout.normalize_axis(axis, self.ndim) for axis in axes]
        if len(set(order)) != len(order):
            raise ValueError("repeated axis in transpose")
        return self._view(
            tuple(self._shape[axis] for axis in order),
            tuple(self._strides[axis] for axis in order),
        )

    def swapaxes(self, axis1: int, axis2: int) -> Any:
        """Return a view with two axes exchanged."""
        if not all(-self.ndim <= axis < self.ndim for axis in (axis1, axis2)):
            raise ValueError("Axis out of range")
        order = list(range(self.ndim))
        order[axis1], order[axis2] = order[axis2], order[axis1]
        return self.transpose(*order)

    def squeeze(self, axis: Any = None) -> Any:
        """Return a view without axes of length one."""
        if axis is None:
            axes: Any = [each for each, length in enumerate(self._shape) if length == 1]
        else:
            axes = _layout.normalize_axes(axis, self.ndim)
        if any(self._shape[each] != 1 for each in axes):
            raise ValueError("cannot select an axis to squeeze out which has size not equal to one")
        if not axes:
            return self
        kept = [each for each in range(self.ndim) if each not in axes]
        return self._view(
            tuple(self._shape[each] for each in kept), tuple(self._strides[each] for each in kept)
        )

    def reshape(self, *shape: Any, order: str = "C", copy: Any = None) -> Any:
        """Return a view of another shape, a copy where no view can be had."""
        if isinstance(copy, str):
            raise ValueError(
                "strings are not allowed for 'copy' keyword. Use True/False/None instead."
            )
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = tuple(shape[0])
        if normalize_order(order, "CFA") == "A":
            order = "F" if self.flags.fnc else "C"
        if order.upper() == "F":
            return self.transpose().reshape(shape[::-1], copy=copy).transpose()
        shape = _layout.infer_shape(shape, self.size)
        if shape == self._shape:
            return self.copy() if copy else self.view()
        strides = _layout.reshaped_strides(self._shape, self._strides, self.itemsize, shape)
        if strides is not None:
            view = self._view(shape, strides)
            return view.copy() if copy else view
        if copy is not None and not copy:
            raise ValueError("Unable to avoid creating a copy while reshaping.")
        made = self.copy()
        made.shape = shape
        return made

    def ravel(self, order: str = "C") -> Any:
        """Return a view on one axis, a copy where no view can be had."""
        if normalize_order(order, "CFAK") == "K":
            raise NotImplementedError("ravel with order 'K' is not emulated")
        return self.reshape(-1 if self.size else 0, order=order)


def normalize_order(order: str, allowed: str) -> str:
    """Return the letter of a memory order."""
    letter = order[:1].upper()
    if letter not in allowed or not letter:
        raise ValueError(f"order not understood. order={order}")
    return letter
