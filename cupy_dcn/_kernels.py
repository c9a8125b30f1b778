"""The CUDA kernels: found, put together, compiled at first use and kept.

A kernel is named after its file in cuda/ (channels_last.cu holds two). Its source is one text:
the local headers are put in their place here, because CuPy's cache on disk knows a kernel by its
text and options alone, and would serve an old binary after a change in a header. ``#line`` makes
compile errors point into cuda/, by a relative name, so that the cached binary fits any machine.
Where CUPY_DCN_KERNELS names a folder of kernels built ahead, these are preferred (_prebuilt.py).
"""

from __future__ import annotations

import functools
import re
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from . import _prebuilt
from ._nvrtc import why_not_nvrtc
from ._progress import logger
from ._specialisation import Macros, command

# name of the kernel -> its file
FILES = {
    "to_channels_last": "channels_last.cu",
    "from_channels_last": "channels_last.cu",
    "copy_elements": "channels_last.cu",
    "deform_im2col": "deform_im2col.cu",
    "deform_direct": "deform_direct.cu",
    "deform_direct_backward": "deform_direct_backward.cu",
    "deform_col2im": "deform_col2im.cu",
    "deform_col2im_ordered": "deform_col2im_ordered.cu",
    "deform_coord_grad": "deform_coord_grad.cu",
    "deform_backward": "deform_backward.cu",
    "deform_backward_sorted": "deform_backward_sorted.cu",
    "deform_im2col_tangent": "deform_im2col_tangent.cu",
    "deform_double_backward": "deform_double_backward.cu",
    "count_samples": "sample_order.cu",
    "start_cells": "sample_order.cu",
    "order_samples": "sample_order.cu",
    "rank_samples": "sample_order.cu",
}

_INCLUDE = re.compile(r'#include "(\w+\.cuh)"')


@functools.cache
def folder() -> Path:
    """Return where the sources are: in the package as installed, or beside it in a checkout."""
    package = Path(__file__).parent
    for found in (package / "cuda", package.parent / "cuda"):
        if (found / "bilinear.cuh").is_file():  # other packages have a folder of this name too
            return found
    raise FileNotFoundError(
        f"the CUDA sources of cupy_dcn are missing: expected bilinear.cuh in {package / 'cuda'};"
        " install the package again"
    )


@functools.cache
def source(file: str) -> str:
    """Return a file of cuda/ with the headers it includes in their place, each once."""
    return "\n".join(_lines(file, set())) + "\n"


def _lines(file: str, included: set[str]) -> list[str]:
    included.add(file)
    lines = [f'#line 1 "cuda/{file}"']
    for number, line in enumerate((folder() / file).read_text("utf-8").splitlines(), 1):
        include = _INCLUDE.match(line)
        if include and include[1] not in included:
            lines += [*_lines(include[1], included), f'#line {number + 1} "cuda/{file}"']
        else:
            lines.append("" if include or line.startswith("#pragma once") else line)
    return lines


def text(name: str, macros: Macros) -> str:
    """Return what is compiled for a kernel.

    The macros are lines of it, not options: for every new set of options CuPy compiles an empty
    file before it looks into its cache, 24 to 43 ms a layer at the start of every process.
    """
    return macros.definitions() + source(FILES[name])


@functools.cache
def sources_digest() -> str:
    """Return a digest of all sources, which kernels that were built ahead must be of."""
    files = sorted({*FILES.values()})
    return _prebuilt.digest_of("\0".join(name + "\0" + source(name) for name in files).encode())


_lock = threading.Lock()
_compiled: dict[tuple[ModuleType, str, Macros, str], Any] = {}


def kernel(cupy: ModuleType, name: str, macros: Macros) -> Any:
    """Return a kernel specialised by macros; another device compiles it at its first launch.

    Threads that ask for one at the same time wait for a single compilation.
    """
    # What was built ahead is for one kind of GPU; other modules compile for each by themselves.
    built = _prebuilt.chosen()
    key = (cupy, name, macros, _capability(cupy) if built else "")
    found = _compiled.get(key)
    if found is None:
        with _lock:
            found = _compiled.get(key)
            if found is None:
                start = time.perf_counter()
                found = _compiled[key] = _load(cupy, name, macros, built).get_function(name)
                seconds = time.perf_counter() - start
                logger.debug("%s loaded in %.3f s, with %s", name, seconds, macros)
    return found


def _load(cupy: ModuleType, name: str, macros: Macros, built: Path | None) -> Any:
    code = text(name, macros)
    if built is not None:
        ready = _prebuilt.opened(built, _version(), sources_digest())
        file = ready.file(code, _capability(cupy))
        if file is not None:
            return cupy.RawModule(path=str(file))
    if reason := why_not_nvrtc(cupy):
        lacking = f", which {built} lacks," if built else ""
        raise RuntimeError(
            f"{name} for this layer and GPU{lacking} must be compiled, but CuPy finds no NVRTC"
            f" ({reason}); {command(name, macros, _capability(cupy))}, where there is one, makes"
            f" the kernels of usual calls, and {_prebuilt.VARIABLE}=DIR names them here"
        )
    return cupy.RawModule(code=code, options=("-std=c++17",))


def _capability(cupy: ModuleType) -> str:
    return str(cupy.cuda.device.get_compute_capability())


def _version() -> str:
    from . import __version__  # which is there when the package is

    return __version__


def compiled() -> list[tuple[str, Macros]]:
    """Return the kernels this process has loaded so far."""
    return [(name, macros) for _, name, macros, _ in list(_compiled)]
