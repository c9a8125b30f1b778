"""The functions of cupy.cuda.runtime that a library asks about its machine."""

from __future__ import annotations

import ctypes
from typing import Any

import emulator

from . import _devices, _streams
from ._devices import CUDARuntimeError, get_device_id, set_device_id
from ._log import Synchronisation, record
from ._memory import MemoryPointer, UnownedMemory
from ._numbers import c_int, c_longlong, c_size
from ._settings import settings
from ._streams import Stream

is_hip = False

CUDA_R_32F = 0
CUDA_R_64F = 1
CUDA_R_16F = 2
CUDA_R_16BF = 14
memcpyHostToHost = 0
memcpyHostToDevice = 1
memcpyDeviceToHost = 2
memcpyDeviceToDevice = 3
memcpyDefault = 4
streamDefault = 0
streamNonBlocking = 1
streamLegacy = _streams.STREAM_LEGACY
streamPerThread = _streams.STREAM_PER_THREAD


def getDeviceCount() -> int:
    """Return the number of devices."""
    return settings.devices


def getDevice() -> int:
    """Return the current device."""
    return get_device_id()


def setDevice(device: int) -> None:
    """Make a device current."""
    set_device_id(device)


def runtimeGetVersion() -> int:
    """Return the CUDA version: that of NVRTC."""
    major, minor = emulator.nvrtc.version()
    return 1000 * major + 10 * minor


def driverGetVersion() -> int:
    """Return the CUDA version of the driver, the runtime's own."""
    return runtimeGetVersion()


def deviceSynchronize() -> None:
    """Wait for the current device."""
    record(Synchronisation("device", get_device_id()))


def streamSynchronize(stream: int) -> None:
    """Wait for a stream."""
    _streams.synchronize_stream(c_longlong(stream))


def streamIsCapturing(stream: int) -> bool:
    """Tell whether a CUDA graph is being captured."""
    return _streams.is_capturing(c_longlong(stream))


def memGetInfo() -> tuple[int, int]:
    """Return the free and the total bytes of the current device."""
    return _devices.Device().mem_info


def getDeviceProperties(device: int) -> dict[str, Any]:
    """Return the properties of a device, an H100's unless configured otherwise."""
    if not 0 <= c_int(device) < settings.devices:
        raise CUDARuntimeError(101)
    return {
        "name": b"Emulated device",
        "totalGlobalMem": settings.total_memory,
        "sharedMemPerBlock": 48 * 1024,
        "sharedMemPerBlockOptin": settings.shared_bytes_optin,
        "sharedMemPerMultiprocessor": settings.shared_bytes_optin + 1024,
        "regsPerBlock": 65536,
        "regsPerMultiprocessor": 65536,
        "warpSize": 32,
        "maxThreadsPerBlock": 1024,
        "maxThreadsDim": (1024, 1024, 64),
        "maxGridSize": (2**31 - 1, 65535, 65535),
        "maxThreadsPerMultiProcessor": 2048,
        "multiProcessorCount": settings.multiprocessors,
        "l2CacheSize": settings.l2_bytes,
        "major": int(settings.compute_capability[:-1]),
        "minor": int(settings.compute_capability[-1]),
    }


def deviceGetAttribute(attrib: int, device: int) -> int:
    """Return an attribute of a device, of those that the library asks for."""
    properties = getDeviceProperties(device)
    return int(  # the numbers are cudaDeviceAttr's
        {
            13: settings.clock_khz,
            16: properties["multiProcessorCount"],
            36: settings.memory_khz,
            37: settings.memory_bits,
            38: properties["l2CacheSize"],
            75: properties["major"],
            76: properties["minor"],
        }[attrib]
    )


class PointerAttributes:
    """Where an address is."""

    def __init__(self, device: int, devicePointer: int, hostPointer: int, type: int = -1) -> None:
        self.device, self.devicePointer = device, devicePointer
        self.hostPointer, self.type = hostPointer, type


def pointerGetAttributes(ptr: int) -> PointerAttributes:
    """Return the device of an address."""
    return PointerAttributes(_devices.device_of(ptr), ptr, 0, 2)


def memsetAsync(ptr: int, value: int, size: int, stream: int) -> None:
    """Fill device memory with one byte value."""
    _at(ptr).memset_async(c_int(value), c_size(size), _OfPointer(stream))


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    """Copy between two addresses."""
    kind = c_int(kind)
    if kind == memcpyDefault:
        kind = _kind_of(dst, src)
    if kind == memcpyHostToHost:
        ctypes.memmove(dst, src, size)
    elif kind == memcpyHostToDevice:
        _at(dst).copy_from_host_async(src, size, _OfPointer(stream))
    elif kind == memcpyDeviceToHost:
        _at(src).copy_to_host_async(dst, size, _OfPointer(stream))
    elif kind == memcpyDeviceToDevice:
        _at(dst).copy_from_device_async(_at(src), size, _OfPointer(stream))
    else:
        raise CUDARuntimeError(1)


def _kind_of(dst: int, src: int) -> int:
    # By their addresses, as unified addressing does it.
    return 2 * _is_device(src) + _is_device(dst)


def _is_device(address: int) -> bool:
    with _devices.lock:
        memory = _devices.device_memory(_devices.device_of(address))
        return memory.find(address) is not None


def _at(address: int) -> MemoryPointer:
    return MemoryPointer(UnownedMemory(address, 0, None), 0)


class _OfPointer(Stream):
    """A stream known by its pointer."""

    def __init__(self, pointer: int) -> None:
        self.ptr = c_longlong(pointer)
