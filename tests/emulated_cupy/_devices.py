"""The emulated devices: which is current, and the memory of each.

The current device is a matter of the thread, as in CUDA. Every device has an address range of its
own, so a pointer used on the wrong device points at nothing there.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from emulator import Memory

from ._log import Synchronisation, record
from ._numbers import c_int
from ._settings import settings

# One operation runs at a time, on whichever device: an operation is a call of NumPy or of the
# emulator, and neither expects its memory to change under it.
lock = threading.RLock()

CUDA = 2  # DLPack's number for such a device

_BASE = 0x7F00_0000_0000
_APART = 0x0080_0000_0000

_thread = threading.local()
_memories: dict[int, Memory] = {}
_released: dict[int, deque[int]] = {}

_ERRORS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    1: "cudaErrorInvalidValue: invalid argument",
    101: "cudaErrorInvalidDevice: invalid device ordinal",
    900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
}


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime answers, by its number."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_ERRORS[status])

    def __reduce__(self) -> Any:
        return type(self), (self.status,)


def get_device_id() -> int:
    """Return the current device of this thread."""
    return getattr(_thread, "device", 0)


def set_device_id(device: int) -> None:
    """Make a device current for this thread."""
    device = c_int(device)
    if not 0 <= device < settings.devices:
        raise CUDARuntimeError(101)
    _thread.device = device


def device_memory(device: int) -> Memory:
    """Return the memory of a device, after what was released has been freed; hold the lock."""
    if device not in _memories:
        _memories[device] = Memory(base=_BASE - device * _APART)
        _released[device] = deque()
    memory, released = _memories[device], _released[device]
    while released:
        memory.free(released.popleft())
    return memory


def release(device: int, address: int) -> None:
    """Free memory a little later: a finaliser may run in the middle of any operation."""
    _released[device].append(address)


def device_of(address: int) -> int:
    """Return the device whose range an address lies in."""
    return min(max((_BASE - address + _APART - 1) // _APART, 0), settings.devices - 1)


class Device:
    """A CUDA device."""

    def __init__(self, device: Any = None) -> None:
        self.id = get_device_id() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __enter__(self) -> Device:
        if not hasattr(_thread, "entered"):
            _thread.entered = []
        before = get_device_id()
        set_device_id(self.id)
        _thread.entered.append(before)
        return self

    def __exit__(self, *args: Any) -> None:
        set_device_id(_thread.entered.pop())

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    # CuPy's Device defines comparison and therefore, being an extension type, no hash.
    __hash__ = None

    def use(self) -> Device:
        """Make this device current."""
        set_device_id(self.id)
        return self

    def synchronize(self) -> None:
        """Wait for the device."""
        record(Synchronisation("device", self.id))

    @property
    def compute_capability(self) -> str:
        return settings.compute_capability

    @property
    def mem_info(self) -> tuple[int, int]:
        with lock:
            used = device_memory(self.id).used_bytes
        return settings.total_memory - used, settings.total_memory

    @property
    def cublas_handle(self) -> int:
        from . import _cublas

        handles: dict[int, int] = _thread.__dict__.setdefault("handles", {})
        if self.id not in handles:
            with self:
                handles[self.id] = _cublas.create()
        return handles[self.id]


def get_compute_capability() -> str:
    """Return the compute capability of the current device."""
    return Device().compute_capability


def get_cublas_handle() -> int:
    """Return the cuBLAS handle of the current device and thread."""
    return Device().cublas_handle
