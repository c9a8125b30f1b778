"""RawModule and RawKernel over the emulator."""

from __future__ import annotations

import math
from typing import Any

from . import _devices
from ._arguments import packed
from ._compiler import compiled
from ._devices import device_memory, get_device_id
from ._log import Launch, record
from ._numbers import c_int, c_longlong, c_size
from ._settings import settings
from ._streams import Stream, pointer_of

DEFAULT_SHARED_BYTES = 48 * 1024
_MOST_BLOCK = (1024, 1024, 64)
_MOST_GRID = (2**31 - 1, 65535, 65535)


class CUDADriverError(RuntimeError):
    """What the CUDA driver answers, by its number."""

    _TEXTS = {  # noqa: RUF012
        1: "CUDA_ERROR_INVALID_VALUE: invalid argument",
        500: "CUDA_ERROR_NOT_FOUND: named symbol not found",
    }

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(self._TEXTS[status])

    def __reduce__(self) -> Any:
        return type(self), (self.status,)


def _require(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(
            f"Argument '{name}' has incorrect type (expected {kind.__name__}, got"
            f" {type(value).__name__})"
        )


def _require_emulated(
    backend: str, translate_cucomplex: Any, cooperative_groups: Any, jitify: Any
) -> None:
    if backend != "nvrtc":
        raise NotImplementedError(f"the backend {backend!r} is not emulated, only 'nvrtc' is")
    if translate_cucomplex or cooperative_groups or jitify is not None:
        raise NotImplementedError(
            "translate_cucomplex, enable_cooperative_groups and jitify are not emulated"
        )


class RawKernel:
    """A kernel, compiled for a device when it is first used there."""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        *,
        translate_cucomplex: Any = False,
        enable_cooperative_groups: Any = False,
        jitify: Any = None,
    ) -> None:
        if code is not None:
            _require("code", code, str)
        _require("name", name, str)
        _require("options", options, tuple)
        _require_emulated(backend, translate_cucomplex, enable_cooperative_groups, jitify)
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.enable_cooperative_groups = False
        self.file_path: str | None = None
        self.__name__ = name
        self._most_shared: dict[int, int] = {}

    @property
    def kernel(self) -> Any:
        """Return the emulator's kernel on the current device."""
        module = compiled(self.code, self.file_path, self.options)
        if self.name not in module.kernels:
            raise CUDADriverError(500)
        return module.kernels[self.name]

    def compile(self, log_stream: Any = None) -> None:
        """Compile for the current device."""
        assert self.kernel is not None

    def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
        shared_mem = c_size(kwargs.pop("shared_mem", 0))
        stream = kwargs.pop("stream", None)
        if kwargs:
            raise TypeError(f"__call__() got an unexpected keyword argument {next(iter(kwargs))!r}")
        kernel = self.kernel
        grid, block = _sizes("grid", grid), _sizes("block", block)
        if (
            any(size > most for size, most in zip(grid, _MOST_GRID, strict=True))
            or any(size > most for size, most in zip(block, _MOST_BLOCK, strict=True))
            or block[0] * block[1] * block[2] > kernel.max_threads
            or shared_mem > self.max_dynamic_shared_size_bytes
        ):
            raise CUDADriverError(1)
        arguments = packed(self.name, kernel.parameters, args)
        self._launch(grid, block, arguments, shared_mem, stream)

    def _launch(
        self, grid: Any, block: Any, arguments: Any, shared_mem: int, stream: Stream | None
    ) -> None:
        module = compiled(self.code, self.file_path, self.options)
        device = get_device_id()
        counters, first = None, 0
        if settings.last_blocks is not None:
            first = max(math.prod(grid) - settings.last_blocks, 0)
        if settings.execute:
            with _devices.lock:
                counters = module.launch(
                    self.name,
                    grid=grid,
                    block=block,
                    arguments=arguments,
                    memory=device_memory(device),
                    shared_bytes=shared_mem,
                    shared_limit=self.shared_size_bytes + self.max_dynamic_shared_size_bytes,
                    count=settings.count,
                    check=settings.check,
                    first_block=first,
                    schedule=settings.schedule,
                )
        on = device, pointer_of(stream)
        record(Launch(self.name, grid, block, shared_mem, *on, counters, self.code))

    # What a compiler down to machine code would know (registers, local memory) is -1, as CuPy
    # answers for attributes that a toolkit doesn't have.

    @property
    def attributes(self) -> dict[str, int]:
        names = (
            "max_threads_per_block",
            "shared_size_bytes",
            "const_size_bytes",
            "local_size_bytes",
            "num_regs",
            "ptx_version",
            "binary_version",
            "cache_mode_ca",
            "max_dynamic_shared_size_bytes",
            "preferred_shared_memory_carveout",
        )
        return {name: getattr(self, name) for name in names}

    const_size_bytes = local_size_bytes = num_regs = property(lambda self: -1)
    cache_mode_ca = property(lambda self: -1)
    preferred_shared_memory_carveout = property(lambda self: -1)
    max_threads_per_block = property(lambda self: self.kernel.max_threads)
    ptx_version = binary_version = property(lambda self: int(settings.compute_capability))

    @property
    def shared_size_bytes(self) -> int:
        size: int = self.kernel.static_shared
        return size

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        default = DEFAULT_SHARED_BYTES - self.shared_size_bytes
        return self._most_shared.get(get_device_id(), default)

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, bytes: int) -> None:
        if not 0 <= c_int(bytes) <= settings.shared_bytes_optin - self.shared_size_bytes:
            raise CUDADriverError(1)
        self._most_shared[get_device_id()] = bytes


def _sizes(name: str, given: Any) -> tuple[int, ...]:
    _require(name, given, tuple)
    first, *others = (*given, 1, 1)[:3]
    return max(1, c_longlong(first)), *(max(1, c_int(each)) for each in others)


class RawModule:
    """A module; compiled when a kernel is taken from it."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: Any = False,
        enable_cooperative_groups: Any = False,
        name_expressions: Any = None,
        jitify: Any = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        for name, value in {"code": code, "path": path}.items():
            if value is not None:
                _require(name, value, str)
        _require("options", options, tuple)
        _require_emulated(backend, translate_cucomplex, enable_cooperative_groups, jitify)
        if name_expressions is not None:
            raise NotImplementedError("kernels by name expressions are not emulated")
        self.code, self.file_path, self.backend = code, path, backend
        self.options = options if code is not None else ()

    @property
    def module(self) -> Any:
        """Return the emulator's module on the current device."""
        return compiled(self.code, self.file_path, self.options)

    def compile(self, log_stream: Any = None) -> None:
        """Compile for the current device."""
        assert self.module is not None

    def get_function(self, name: str) -> RawKernel:
        """Return a kernel, a new object each time, compiled."""
        _require("name", name, str)
        kernel = RawKernel(self.code, name, self.options, self.backend)
        kernel.file_path = self.file_path
        assert kernel.kernel is not None
        return kernel

    def get_global(self, name: str) -> Any:
        """Refuse: the emulator's globals have no address here."""
        raise NotImplementedError(f"globals such as {name!r} are not emulated")
