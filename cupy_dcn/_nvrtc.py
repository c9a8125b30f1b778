"""NVRTC, the compiler, as CuPy finds it: whether it is there, and compiling ahead for any GPU."""

from __future__ import annotations

import functools
import re
from types import ModuleType
from typing import Any, NamedTuple

# What CuPy compiles a RawModule with, so that a kernel built ahead is the one of a first call.
OPTIONS = ("-std=c++17", "-ftz=true", "--device-as-default-execution-space")


class Binary(NamedTuple):
    """A compiled source: for one architecture, and as text that newer drivers can finish."""

    cubin: bytes
    ptx: bytes


@functools.cache  # without it every answer would be a search of the disk
def why_not_nvrtc(cupy: ModuleType) -> str:
    """Return why CuPy has no NVRTC to compile with, "" if it has."""
    try:
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # it is loaded at its first use, by CuPy or by cuda.pathfinder
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return ""


def compiler() -> Any:
    """Return CuPy's binding of NVRTC, which needs no GPU."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"kernels are compiled through CuPy, which could not be imported"
            f" ({' '.join(str(error).split())}); pip install 'cupy_dcn[cuda13x-ctk]' brings both"
        ) from error
    if reason := why_not_nvrtc(cupy):
        raise RuntimeError(
            f"CuPy finds no NVRTC ({reason}); pip install 'cupy_dcn[cuda13x-ctk]' brings one"
        )
    return cupy.cuda.nvrtc


def architectures(nvrtc: Any) -> list[str]:
    """Return the architectures that this NVRTC compiles for and the kernels are written for."""
    return [f"sm_{number}" for number in sorted(nvrtc.getSupportedArchs()) if number >= 75]


def compile_ahead(nvrtc: Any, source: str, architecture: str) -> Binary:
    """Compile down to machine code."""
    program = nvrtc.createProgram(source, "kern.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={architecture}"))
        # CuPy takes a cubin for a C string, and its last byte for the end.
        cubin, ptx = nvrtc.getCUBIN(program) + b"\0", nvrtc.getPTX(program).rstrip(b"\0")
    except nvrtc.NVRTCError as error:
        log = re.sub(r"\s+", " ", nvrtc.getProgramLog(program)).strip()
        raise RuntimeError(f"NVRTC failed for {architecture} ({error}): {log[:500]}") from error
    finally:
        nvrtc.destroyProgram(program)
    return Binary(cubin, ptx)
