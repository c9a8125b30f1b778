"""The array: shape, strides and a pointer into device memory, with CuPy's methods and refusals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from . import _conversion, _host, _indexing, _layout, _linalg, _memory, _reductions, _ufuncs
from ._devices import CUDA, get_device_id, set_device_id
from ._dtypes import supported_dtype
from ._layout import Shape
from ._log import Operation, record
from ._streams import STREAM_LEGACY, Stream, current_pointer, synchronize_stream
from ._views import Views, normalize_order


def _operators(cls: type) -> type:
    """Give a class Python's operators: CuPy's own for arrays, NumPy's protocol for the rest."""
    arithmetic = {
        "add": _ufuncs.add,
        "sub": _ufuncs.subtract,
        "mul": _ufuncs.multiply,
        "truediv": _ufuncs.true_divide,
        "lt": _ufuncs.less,
        "le": _ufuncs.less_equal,
        "eq": _ufuncs.equal,
        "ne": _ufuncs.not_equal,
        "gt": _ufuncs.greater,
        "ge": _ufuncs.greater_equal,
    }
    for name, operation in arithmetic.items():
        numpy_operation = getattr(np, operation.name.removeprefix("cupy_"))
        setattr(cls, f"__{name}__", _operator(name, operation, numpy_operation))
        if len(name) > 2:
            setattr(cls, f"__r{name}__", _reflected(operation))
            setattr(cls, f"__i{name}__", _in_place(operation))
    return cls


def _operator(name: str, operation: Any, numpy_operation: Any) -> Any:
    def method(self: Any, other: Any) -> Any:
        if isinstance(other, ndarray):
            return operation(self, other)
        if getattr(type(other), "__array_ufunc__", ...) is None:
            return NotImplemented
        if name in ("eq", "ne") and (other is None or type(other).__eq__ is object.__eq__):
            return _filled(self.shape, np.bool_, name == "ne")
        return numpy_operation(self, other)

    return method


def _reflected(operation: Any) -> Any:
    def method(self: Any, other: Any) -> Any:
        return operation(other, self)

    return method


def _in_place(operation: Any) -> Any:
    def method(self: Any, other: Any) -> Any:
        return operation(self, other, self)

    return method


def _filled(shape: Shape, dtype: Any, value: Any) -> ndarray:
    array = ndarray(shape, dtype)
    array.fill(value)
    return array


@_operators
class ndarray(Views):
    """A multi-dimensional array on a device."""

    __array_priority__ = 100
    __hash__ = None

    def __new__(cls, *args: Any, _obj: Any = None, _no_init: bool = False, **kwargs: Any) -> Any:
        self = super().__new__(cls)
        self.base = None
        if _no_init:
            return self
        self._init(*args, **kwargs)
        if cls is not ndarray:
            self.__array_finalize__(_obj)
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: a subclass's arguments went to ``__new__``."""

    def __array_finalize__(self, obj: Any) -> None:
        """Let a subclass take over what it wants from the array this one was made from."""

    def _init(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: _memory.MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        order = normalize_order(order or "C", "CF")
        self._shape = _layout.normalize_shape(shape)
        self.dtype = supported_dtype(dtype)
        self._strides = (
            _layout.contiguous_strides(self._shape, self.itemsize, order)
            if strides is None
            else tuple(strides)
        )
        if len(self._strides) != self.ndim:
            raise ValueError("len(shape) != len(strides)")
        if memptr is None:
            first, end = _layout.byte_range(self._shape, self._strides, self.itemsize)
            if first != 0:
                raise ValueError("ndarray() with strides currently does not allow negative strides")
            memptr = _memory.alloc(end)
        self.data = memptr

    # Copies and conversions

    def astype(
        self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None, copy: Any = True
    ) -> Any:
        """Return the array in another dtype."""
        return self._astype(dtype, order, casting, subok, True if copy else None)

    def _astype(
        self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None, copy: Any = True
    ) -> Any:
        if casting is not None:
            raise TypeError("casting is not supported yet")
        if subok is not None:
            raise TypeError("subok is not supported yet")
        order, dtype, flags = normalize_order(order or "K", "CFAK"), np.dtype(dtype), self.flags
        fits = {"K": True, "A": flags.forc, "C": flags.c_contiguous, "F": flags.f_contiguous}
        if dtype == self.dtype and not copy and fits[order]:
            return self
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        if order == "A":
            order = "F" if flags.fnc else "C"
        if order == "K" and flags.forc:
            order = "C" if flags.c_contiguous else "F"
        if order == "K":
            strides = _layout.strides_keeping_order(self._shape, self._strides, dtype.itemsize)
            made = ndarray(self._shape, dtype, strides=strides)
        else:
            made = ndarray(self._shape, dtype, order=order)
        if self.size:
            _ufuncs.elementwise_copy(self, made)
        return made

    def copy(self, order: str = "C") -> Any:
        """Return a copy on the current device, of an array of any device."""
        if self.size == 0 or self.data.device_id == get_device_id():
            return self.astype(self.dtype, order=order)
        current = get_device_id()
        try:
            set_device_id(self.data.device_id)
            source = self.astype(self.dtype, order=order, copy=False)
        finally:
            set_device_id(current)
        if not source.flags.forc:
            raise NotImplementedError("CuPy cannot copy non-contiguous array between devices.")
        made = ndarray(source.shape, source.dtype, strides=source.strides)
        made.data.copy_from_device_async(source.data, source.nbytes)
        return made

    def fill(self, value: Any) -> None:
        """Set every element to a scalar."""
        array = from_interface(value)
        if array is not None:
            if array.shape != ():
                raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
            _ufuncs.elementwise_copy(array, self)
            return
        scalar = np.asarray(value, dtype=self.dtype)
        if scalar.shape != ():
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        if scalar == 0 and self.flags.c_contiguous:
            self.data.memset_async(0, self.nbytes)
        elif self.size:
            self._write(np.broadcast_to(scalar, self._shape))
            record(Operation("cupy_fill", 0, self.nbytes, self.data.device_id, current_pointer()))

    def get(
        self, stream: Stream | None = None, order: str = "C", out: Any = None, blocking: Any = True
    ) -> Any:
        """Return a copy in host memory."""
        return _conversion.to_host(self, stream, order, out, blocking)

    def set(self, arr: Any, stream: Stream | None = None) -> None:
        """Copy a NumPy array of the same shape and dtype into this one."""
        _conversion.set_from_host(self, arr, stream)

    def item(self) -> Any:
        """Return the only element as a Python scalar; waits for the device."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def tolist(self) -> Any:
        """Return the elements as nested lists; waits for the device."""
        return self.get().tolist()

    def __bool__(self) -> bool:
        if self.size == 0:
            warnings.warn(
                "The truth value of an empty array is ambiguous. Returning False, but in future"
                " this will result in an error. Use `array.size > 0` to check that an array is"
                " not empty.",
                DeprecationWarning,
                stacklevel=2,
            )
            return False
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous."
                " Use a.any() or a.all()"
            )
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    # Other libraries

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self._shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "stream": current_pointer() or STREAM_LEGACY,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self._strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: Any = None,
    ) -> Any:
        from ._dlpack import to_dlpack

        return to_dlpack(self, stream, dl_device)

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.data.device_id

    def __array__(self, dtype: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed."
            " Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        function = _conversion.counterpart(ufunc.__name__)
        if method != "__call__" or function is None:
            return NotImplemented
        out = kwargs.pop("out", None)
        if out is not None:
            (kwargs["out"],) = out
        return function(*inputs, **kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        function = _conversion.counterpart(func.__name__)
        if function is None or not all(issubclass(each, (ndarray, np.ndarray)) for each in types):
            return NotImplemented
        return function(*args, **kwargs)

    # Elements

    def __getitem__(self, slices: Any) -> Any:
        return _indexing.getitem(self, slices)

    def __setitem__(self, slices: Any, value: Any) -> None:
        _indexing.setitem(self, slices, value)

    def _read(self, reader: str) -> Any:
        return _host.read(self.data, self._shape, self._strides, self.dtype, reader)

    def _write(self, values: Any, where: Any = True) -> None:
        _host.write(self.data, self._strides, values, where)

    # Arithmetic

    def __neg__(self) -> Any:
        return _ufuncs.negative(self)

    def __abs__(self) -> Any:
        return _ufuncs.absolute(self)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, ndarray):
            return _linalg.matmul_core(self, other)
        return np.matmul(self, other)

    def dot(self, b: Any, out: Any = None) -> Any:
        """Return the dot product."""
        return _linalg.dot_core(self, b, out)

    def sum(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False
    ) -> Any:
        """Return the sum along axes."""
        return _reductions.sum(self, axis, dtype, out, keepdims)

    def any(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
        """Tell whether any element along axes is true."""
        return _reductions.any(self, axis, out, keepdims)

    def all(self, axis: Any = None, out: Any = None, keepdims: Any = False) -> Any:
        """Tell whether all elements along axes are true."""
        return _reductions.all(self, axis, out, keepdims)


ndarray.__module__ = "cupy"


def bounds(array: ndarray) -> tuple[int, int]:
    """Return the address of the first byte and of the one past the last."""
    first, end = _layout.byte_range(array.shape, array.strides, array.itemsize)
    return array.data.ptr + first, array.data.ptr + end


def may_share_bounds(a: ndarray, b: ndarray) -> bool:
    """Tell whether two arrays of one allocation overlap, judged by their first and last bytes."""
    if a.data.device_id != b.data.device_id or a.data.mem.ptr != b.data.mem.ptr:
        return False
    (first, end), (other_first, other_end) = bounds(a), bounds(b)
    return bool(a.size and b.size) and first < other_end and other_first < end


def from_interface(value: Any) -> ndarray | None:
    """Return a value as an array, itself or by its CUDA array interface; None if it is neither."""
    if isinstance(value, ndarray):
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return None
    if interface.get("mask") is not None:
        raise ValueError("CuPy currently does not support masked arrays.")
    shape, dtype = interface["shape"], np.dtype(interface["typestr"])
    strides = interface.get("strides") or _layout.contiguous_strides(shape, dtype.itemsize)
    end = _layout.byte_range(shape, strides, dtype.itemsize)[1]
    device = -1 if 0 not in shape else get_device_id()  # which an address of 0 does not tell
    memory = _memory.UnownedMemory(interface["data"][0], end, value, device)
    if interface.get("stream") is not None:
        synchronize_stream(interface["stream"])
    return ndarray(shape, dtype, _memory.MemoryPointer(memory, 0), strides)


def require_ndarray(name: str, value: Any) -> None:
    """Raise what CuPy's functions in Cython raise for an argument of another type."""
    if not isinstance(value, ndarray):
        raise TypeError(
            f"Argument '{name}' has incorrect type (expected cupy._core.core._ndarray_base, got"
            f" {type(value).__module__}.{type(value).__qualname__})"
        )
