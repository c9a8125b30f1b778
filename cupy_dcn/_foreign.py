"""Arrays of other libraries, read where they lie: by DLPack, else by the array interfaces.

No library is known by name or imported for this: an array says itself what it holds and where, by
``__dlpack__`` and ``__dlpack_device__``, ``__cuda_array_interface__``, ``__array_interface__`` or
Python's buffer protocol. What lies on the CPU becomes a NumPy array, on a GPU a CuPy array; nothing
is copied. CuPy hands its current stream to the producer, which lets it wait for pending work; where
an array interface names a stream, CuPy waits for it. DLPack keeps the producer's memory until the
array made of it is gone, but not until the work queued on it is done: that is for the user to see
to, by holding on to arguments until a result has been used.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np


class ByDLPack(Protocol):
    """An array that exports itself by DLPack; JAX does not declare all that it has of it."""

    def __dlpack__(self) -> Any:
        """Return a capsule; arguments say for which stream."""


class ByCudaInterface(Protocol):
    """An array that exports itself by the CUDA array interface."""

    @property
    def __cuda_array_interface__(self) -> Any:
        """Address, shape, strides, dtype and stream."""


class ByArrayInterface(Protocol):
    """An array that exports itself by NumPy's array interface."""

    @property
    def __array_interface__(self) -> Any:
        """Address, shape, strides and dtype."""


CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # DLPack's device types
ON_HOST, ON_GPU = (CPU, CUDA_HOST), (CUDA, CUDA_MANAGED)


def view_of(name: str, value: object) -> Any:
    """Return a NumPy or CuPy array in the memory of a foreign array.

    Anything else, such as a list, is returned as it is: to say what is wrong with it is left to
    the checks of arrays. ``name`` is the argument's, for errors.
    """
    if isinstance(value, (type, np.generic)):
        return value
    if getattr(value, "is_neg", bool)():  # torch's DLPack passes its memory on without the sign
        raise TypeError(
            f"{name} is {kind_of(value)} whose memory has the opposite sign, expected its own"
            f" numbers there; {name}.resolve_neg() puts them into memory"
        )
    dlpack = hasattr(value, "__dlpack__")
    try:
        place = int(value.__dlpack_device__()[0]) if dlpack else _place_of(value)  # type: ignore[attr-defined]
        if place is None:
            return value
        if place in ON_GPU:
            return _on_gpu(value, dlpack)
        if place in ON_HOST:
            return _on_host(value, dlpack)
    except (ImportError, MemoryError):  # no CuPy, or no room
        raise
    except Exception as error:  # whatever the other library raises
        raise TypeError(_refused(name, value, error)) from error
    raise TypeError(
        f"{name} is {kind_of(value)} on a device of DLPack's type {place}, expected the CPU or a"
        " CUDA device; copy it there first"
    )


def kind_of(value: object) -> str:
    """Name the type of a foreign array, with its article."""
    return f"a {type(value).__module__}.{type(value).__qualname__}"


def is_read_only(value: object) -> bool:
    """Tell a GPU array that must not be written to: CuPy's arrays forget it."""
    interface = getattr(value, "__cuda_array_interface__", None)
    return interface is not None and bool(interface["data"][1])


def _place_of(value: object) -> int | None:
    """Return where an array lies that knows nothing of DLPack; None if it is none."""
    if getattr(value, "__cuda_array_interface__", None) is not None:
        return CUDA
    if getattr(value, "__array_interface__", None) is not None:
        return CPU
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        return None
    # Bytes are no numbers of ours, but a message about their type says so better than one about
    # their dtype.
    return CPU if view.ndim and view.format[-1] in "efd" else None


def _on_host(value: Any, dlpack: bool) -> Any:
    if not dlpack:
        return np.asarray(value)
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError):  # NumPy's DLPack knows no bfloat16, in old or new words
        if not _says_bfloat16(value):
            raise
        array = np.asarray(value)  # JAX makes ml_dtypes' of it, without a copy
        if array.dtype.name != "bfloat16":
            raise
        return array


def _on_gpu(value: Any, dlpack: bool) -> Any:
    from ._warmup import usable_cupy

    cupy = usable_cupy()
    if dlpack:
        return cupy.from_dlpack(value)
    pointer = value.__cuda_array_interface__["data"][0]
    # `asarray` copies to the current device what is on another; an empty array is on none.
    runtime = cupy.cuda.runtime
    own = runtime.pointerGetAttributes(pointer).device if pointer else runtime.getDevice()
    with cupy.cuda.Device(own):
        return cupy.asarray(value)


def _refused(name: str, value: Any, error: Exception) -> str:
    """Say why a foreign array could not be read."""
    kind = kind_of(value)
    # torch's and Paddle's names for the same.
    if getattr(value, "requires_grad", False) or not getattr(value, "stop_gradient", True):
        return (
            f"{name} is {kind} that requires gradients, expected one that does not, for none would"
            f" reach it; pass {name}.detach(), or make the call a function of its autograd"
        )
    if _says_bfloat16(value):
        return (
            f"{name} is {kind} of bfloat16, expected ml_dtypes' bfloat16, the only one of NumPy;"
            " view it as int16, that as NumPy's, and that .view(ml_dtypes.bfloat16)"
        )
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return (
        f"{name} is {kind} whose memory cannot be read ({said}), expected numbers on the CPU or a"
        " CUDA device; a dense copy has them, a value being traced only in a callback"
    )


def _says_bfloat16(value: object) -> bool:
    return "bfloat16" in str(getattr(value, "dtype", ""))
