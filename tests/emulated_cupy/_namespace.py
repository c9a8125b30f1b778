"""Which name is where: the modules the stand-in puts in place of CuPy's."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import emulator
import numpy as np

from . import (
    _array,
    _compiler,
    _creation,
    _cublas,
    _devices,
    _dlpack,
    _linalg,
    _memory,
    _pool,
    _product,
    _raw,
    _reductions,
    _runtime,
    _streams,
    _ufuncs,
)

VERSION = "14.2.0"

_API, _LIBS = "cupy_backends.cuda.api", "cupy_backends.cuda.libs"
_PACKAGES = (
    "cupy",
    "cupy.cuda",
    "cupy._core",
    "cupy_backends",
    "cupy_backends.cuda",
    _API,
    _LIBS,
)


class _Module(ModuleType):
    """A module that says of a missing name that it is the stand-in that lacks it."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the emulated {self.__name__} has no {name!r}; if CuPy has, add it to emulated_cupy"
        )


def _from(source: Any, names: str) -> dict[str, Any]:
    return {name: getattr(source, name) for name in names.split()}


@functools.cache
def modules() -> dict[str, ModuleType]:
    """Return every module by the name it is imported under."""
    found: dict[str, ModuleType] = {}
    for name, names in _contents().items():
        found[name] = module = _Module(name)
        vars(module).update(names)
        if name in _PACKAGES:
            module.__path__ = []  # importing what it lacks fails as a missing module does
        parent, _, child = name.rpartition(".")
        if parent:
            vars(found[parent])[child] = module
    # Attributes of cupy.cuda that are no modules of their own there.
    vars(found["cupy.cuda"]).update(
        cublas=found[f"{_LIBS}.cublas"],
        nvrtc=found[f"{_LIBS}.nvrtc"],
        driver=found[f"{_API}.driver"],
    )
    return found


def _contents() -> dict[str, dict[str, Any]]:
    """Return the names of every module, a package before what is in it."""
    compute_types = {"get_compute_type": _linalg.get_compute_type} | _from(
        _linalg, "set_compute_type to_compute_type_index"
    )
    runtime = _own(_runtime) | {"CUDARuntimeError": _devices.CUDARuntimeError}
    return {
        "cupy": _cupy(),
        "cupy._core": {"elementwise_copy": _ufuncs.elementwise_copy}
        | _from(_linalg, "get_compute_type set_compute_type"),
        "cupy._core._routines_linalg": compute_types | _compute_type_constants(),
        "cupy.cuda": _cuda(),
        "cupy.cuda.compiler": {"CompileException": _compiler.CompileException},
        "cupy.cuda.device": _from(
            _devices, "Device get_compute_capability get_cublas_handle get_device_id"
        ),
        "cupy.cuda.memory": _from(
            _memory,
            "BaseMemory Memory MemoryPointer UnownedMemory OutOfMemoryError alloc get_allocator"
            " set_allocator _malloc",
        )
        | _from(_pool, "MemoryPool PooledMemory"),
        "cupy.cuda.runtime": runtime,
        "cupy.cuda.stream": _from(_streams, "Stream Event get_current_stream"),
        "cupy_backends": {},
        "cupy_backends.cuda": {},
        _API: {},
        f"{_API}.driver": {"CUDADriverError": _raw.CUDADriverError},
        f"{_API}.runtime": runtime,
        _LIBS: {},
        f"{_LIBS}.cublas": _own(_cublas) | {"CUBLASError": _product.CUBLASError},
        f"{_LIBS}.nvrtc": {"getVersion": emulator.nvrtc.version},
    }


def _own(module: Any) -> dict[str, Any]:
    """Return the public functions, classes and constants that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (isinstance(value, int) or getattr(value, "__module__", None) == module.__name__)
    }


def _compute_type_constants() -> dict[str, Any]:
    return {name: value for name, value in vars(_linalg).items() if name.startswith("COMPUTE_TYPE")}


def _cupy() -> dict[str, Any]:
    return {
        "__version__": VERSION,
        "ndarray": _array.ndarray,
        "ufunc": _ufuncs.ufunc,
        "abs": _ufuncs.absolute,
        "divide": _ufuncs.true_divide,
        "get_default_memory_pool": _pool.get_default_memory_pool,
        **_from(_raw, "RawKernel RawModule"),
        **_from(_dlpack, "from_dlpack"),
        **_from(_linalg, "matmul dot"),
        **_from(_reductions, "sum any all"),
        **_from(
            _creation,
            "empty empty_like zeros zeros_like ones ones_like full full_like arange asarray array"
            " ascontiguousarray asnumpy broadcast_to concatenate stack copyto may_share_memory"
            " shares_memory get_array_module",
        ),
        **_from(
            _ufuncs,
            "add subtract multiply true_divide negative absolute exp minimum isnan less less_equal"
            " equal not_equal greater greater_equal",
        ),
        **_from(
            np,
            "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
            " intp uintp dtype newaxis inf nan pi",
        ),
    }


def _cuda() -> dict[str, Any]:
    return {
        "is_available": _is_available,
        "MemoryPool": _pool.MemoryPool,
        **_from(_devices, "Device get_cublas_handle get_device_id"),
        **_from(_streams, "Event Stream get_current_stream"),
        **_from(
            _memory,
            "BaseMemory Memory MemoryPointer UnownedMemory alloc get_allocator set_allocator"
            " using_allocator",
        ),
    }


def _is_available() -> bool:
    return _runtime.getDeviceCount() > 0


def cupy_module() -> ModuleType:
    """Return the stand-in of ``cupy``."""
    return modules()["cupy"]


def public_names() -> dict[str, Any]:
    """Return the names in the stand-in of ``cupy``."""
    return vars(cupy_module())
