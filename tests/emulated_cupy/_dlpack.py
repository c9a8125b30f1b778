"""DLPack between the stand-in and others of Python: its capsules hold an array, and no C struct."""

from __future__ import annotations

from typing import Any

from . import _array
from ._devices import CUDA, get_device_id, set_device_id
from ._streams import STREAM_LEGACY, get_current_stream

CPU, CUDA_MANAGED = 1, 13


class Capsule:
    """What ``__dlpack__`` returns, to be consumed once."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def consume(self) -> Any:
        """Return the array, a view of it."""
        array, self._array = self._array, None
        if array is None:
            raise ValueError("A DLPack tensor object cannot be consumed multiple times")
        return array


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> Any:
    """Return a view of another library's array, which is told the current stream."""
    if device is not None:
        raise NotImplementedError("from_dlpack() does not support device yet.")
    kind, number = array.__dlpack_device__()
    if kind == CPU:
        raise TypeError("CPU arrays cannot be directly imported to CuPy.")
    if kind not in (CUDA, CUDA_MANAGED):
        raise TypeError(f"Unsupported array type: {kind}")
    current = get_device_id()
    try:
        set_device_id(number)
        stream = get_current_stream().ptr or STREAM_LEGACY
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 0), copy=copy)
        except TypeError:
            if copy is not None:
                raise
            capsule = array.__dlpack__(stream=stream)
    finally:
        set_device_id(current)
    given = capsule.consume()
    return _array.ndarray(given.shape, given.dtype, given.data, given.strides)


def to_dlpack(array: Any, stream: Any, dl_device: Any) -> Capsule:
    """Export an array to a consumer that will use it on a stream."""
    if dl_device not in (None, (CUDA, array.data.device_id)):
        raise NotImplementedError("an export to another device is not emulated")
    stream = STREAM_LEGACY if stream is None else stream
    if stream < -1 or stream == 0:
        raise ValueError(f"a stream is -1, 1, 2 or larger for DLPack, but {stream} was provided")
    return Capsule(array)
