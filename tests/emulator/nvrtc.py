"""CUDA C++ to PTX with NVRTC, which needs no driver and no GPU.

It goes through ctypes and not through CuPy's binding, because tests put a stand-in under CuPy's
name. The options are those CuPy compiles a RawModule with. Compiling takes 0.1 to 2 s, so the PTX
of every source is kept on disk, for all processes of a test run and for the next run.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

CACHE_VARIABLE = "CUPY_DCN_PTX_CACHE"
DEFAULTS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")


class NvrtcMissing(RuntimeError):
    """No NVRTC library is installed."""


class CompileError(RuntimeError):
    """NVRTC refused the source; the message is its log."""


def compile_ptx(
    source: str, options: Sequence[str] = (), arch: str = "sm_90", name: str = "kernel.cu"
) -> str:
    """Return the PTX of a CUDA C++ source."""
    options = _complete(tuple(options), arch)
    key = "\0".join([source, name, *options, str(version())])
    path = cache_folder() / f"{hashlib.sha256(key.encode()).hexdigest()}.ptx"
    if path.exists():
        return path.read_text()
    ptx = _compile(source, options, name)
    _store(path, ptx)
    return ptx


def cache_folder() -> Path:
    """Return the folder of the PTX kept."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "cupy_dcn" / "ptx"


@functools.cache
def version() -> tuple[int, int]:
    """Return NVRTC's version."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


@functools.cache
def include_folders() -> tuple[str, ...]:
    """Return the folders with CUDA's headers: those of NVIDIA's wheels, or of a toolkit."""
    candidates = [folder / "include" for folder in _wheels()]
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        if os.environ.get(variable):
            candidates.append(Path(os.environ[variable]) / "include")
    candidates.append(Path("/usr/local/cuda/include"))
    return tuple(str(folder) for folder in candidates if (folder / "cuda_fp16.h").exists())[:1]


def _complete(options: tuple[str, ...], arch: str) -> tuple[str, ...]:
    given = {option.lstrip("-").partition("=")[0] for option in options}
    defaults = [option for option in DEFAULTS if option.lstrip("-").partition("=")[0] not in given]
    includes = [f"-I{folder}" for folder in include_folders()]
    return (*options, *defaults, *includes, f"-arch={arch.replace('sm_', 'compute_')}")


def _wheels() -> list[Path]:
    """Return the folders of NVIDIA's wheels: one for all since CUDA 13, one a library before."""
    spec = importlib.util.find_spec("nvidia")
    if spec is None or spec.submodule_search_locations is None:
        return []
    roots = [Path(location) for location in spec.submodule_search_locations]
    return sorted(
        (folder for root in roots if root.is_dir() for folder in root.iterdir() if folder.is_dir()),
        reverse=True,
    )


@functools.cache
def _library() -> ctypes.CDLL:
    patterns = ("lib/libnvrtc.so.*", "bin/nvrtc64_*.dll", "bin/x86_64/nvrtc64_*.dll")
    found = [
        str(path)
        for folder in _wheels()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if "builtins" not in path.name and "alt" not in path.name
    ]
    elsewhere = ctypes.util.find_library("nvrtc")
    for path in [*found, *([elsewhere] if elsewhere else [])]:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path)
    raise NvrtcMissing("NVRTC was not found: pip install nvidia-cuda-nvrtc")


def _compile(source: str, options: tuple[str, ...], name: str) -> str:
    library = _library()
    program = ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), name.encode(), 0, None, None
    )
    if made != 0:
        raise CompileError(f"NVRTC could not begin ({made})")
    try:
        flags = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), flags) != 0:
            raise CompileError(_text(library, "ProgramLog", program))
        return _text(library, "PTX", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, f"nvrtcGet{what}")(program, buffer)
    return buffer.value.decode()


def _store(path: Path, ptx: str) -> None:
    """Write beside and rename: another process sees all of it or nothing."""
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(ptx)
        os.replace(file.name, path)
