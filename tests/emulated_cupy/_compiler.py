"""From CUDA source to the emulator's module, with the options CuPy compiles a RawModule with."""

from __future__ import annotations

import importlib.machinery
import threading
from pathlib import Path
from typing import Any

import emulator

from ._devices import get_device_id
from ._settings import settings


class CompileException(Exception):
    """The source was refused."""

    def __init__(self, msg: str, source: str, name: str, options: Any, backend: str = "nvrtc"):
        super().__init__()
        self._msg, self.source, self.name, self.options = msg, source, name, options
        self.backend = backend

    def __str__(self) -> str:
        return self._msg

    def get_message(self) -> str:
        """Return the compiler's log."""
        return str(self)


_modules: dict[Any, emulator.Module] = {}
_lock = threading.Lock()


def compiled(code: str | None, path: str | None, options: tuple[str, ...]) -> emulator.Module:
    """Return the module of a source or a PTX file for the current device; compiled once."""
    key = get_device_id(), settings.compute_capability, code, path, options
    with _lock:
        if key not in _modules:
            _modules[key] = _load(path) if code is None else _compile(code, options)
        return _modules[key]


def _compile(code: str, options: tuple[str, ...]) -> emulator.Module:
    # The emulator adds the rest of CuPy's: -std=c++17, -ftz=true and CUDA's headers.
    all_options = (*bundled_includes(), *options)
    try:
        ptx = emulator.compile_ptx(
            code, all_options, arch=f"sm_{settings.compute_capability}", name="kern.cu"
        )
    except emulator.CompileError as error:
        raise CompileException(str(error), code, "kern.cu", all_options, "nvrtc") from None
    return emulator.Module(ptx)


def _load(path: str | None) -> emulator.Module:
    if path is None or not path.endswith(".ptx"):
        raise NotImplementedError("only PTX files can be loaded, no cubin")
    return emulator.Module(Path(path).read_text())


def bundled_includes() -> tuple[str, ...]:
    """Return the folders of headers inside CuPy's wheel, none where CuPy is not installed."""
    # Past sys.modules, where the stand-in may have CuPy's name.
    spec = importlib.machinery.PathFinder.find_spec("cupy")
    if spec is None or spec.origin is None:
        return ()
    include = Path(spec.origin).parent / "_core" / "include"
    bundled = [include / "cupy" / "_cccl" / part for part in ("cub", "thrust", "libcudacxx")]
    return tuple(f"-I{folder}" for folder in [*bundled, include])
