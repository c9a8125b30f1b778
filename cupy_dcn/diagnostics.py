"""What to paste into a bug report, and a quick check that this machine gets the numbers right."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

import cupy_dcn

from . import _kernels, _prebuilt
from . import _oracle as _loops
from ._arrays import Array, is_half, on_host
from ._parallel import thread_count
from ._twins import why_not_numba
from ._warmup import usable_cupy

_oracle: Any = _loops  # it has no type hints

OPTIONAL = ("ml_dtypes", "matplotlib", "tqdm", "threadpoolctl", "safetensors")
# The largest error allowed, as a share of the largest value; for the half types that is twice the
# rounding of a result, and once more as much on a GPU, whose columns are of half precision too.
LIMITS = {"float64": 1e-12, "float32": 5e-6, "float16": 1e-3, "bfloat16": 8e-3}


def info() -> None:
    """Print the versions of everything involved, one a line."""
    lines = {
        "cupy_dcn": cupy_dcn.__version__,
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "NumPy": np.__version__,
        "SciPy": _version("scipy"),
        "Numba": f"{_version('numba')}, {why_not_numba() or 'used for NumPy arrays'}",
        **{name: _version(name) for name in OPTIONAL},
        "CuPy": _cupy_wheels(),
        "BLAS": _blas(),
        "threads": str(thread_count()),
        **_gpu_lines(),
        "CUDA sources": _or_trouble(lambda: _short(_kernels.folder())),
        "built ahead": _or_trouble(_built_ahead),
        "kernel cache": _kernel_cache(),
        "compiled here": _compiled(),
    }
    for name, value in lines.items():
        print(f"{name:14} {value}")


def _gpu_lines() -> dict[str, str]:
    """Describe every GPU and what CUDA runs on it, or say why none is usable."""
    try:
        cupy = usable_cupy()
    except (ImportError, RuntimeError) as error:
        return {"GPU": f"none usable: {error}"}
    runtime = cupy.cuda.runtime

    def describe(device: int) -> str:
        found = runtime.getDeviceProperties(device)
        capability = f"{found['major']}.{found['minor']}"
        memory = f"{found['totalGlobalMem'] / 2**30:.1f} GiB"
        return f"{found['name'].decode()}, compute capability {capability}, {memory}"

    def versions() -> str:
        driver, toolkit = (
            f"{each // 1000}.{each % 1000 // 10}"
            for each in (runtime.driverGetVersion(), runtime.runtimeGetVersion())
        )
        nvrtc = ".".join(map(str, cupy.cuda.nvrtc.getVersion()))
        return f"driver {driver}, runtime {toolkit}, NVRTC {nvrtc}"

    gpus = {
        f"GPU {device}": _or_trouble(lambda device=device: describe(device))  # type: ignore[misc]
        for device in range(runtime.getDeviceCount())
    }
    return {"CUDA": _or_trouble(versions), **gpus}


def _or_trouble(find: Callable[[], str]) -> str:
    """Return what was found, or the error: information must come out of broken machines too."""
    try:
        return find()
    except Exception as error:
        return f"unknown: {type(error).__name__}: {' '.join(str(error).split())}"


def _compiled() -> str:
    """List the kernels that this process has loaded, with their dtype and channels."""
    loaded = (f"{name} ({made.data}, {made.channels})" for name, made in _kernels.compiled())
    return ", ".join(loaded) or "no kernel so far in this process"


def _kernel_cache() -> str:
    """Name the folder of CuPy's compiled kernels and count them, as CuPy chooses it."""
    if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1":
        return "in memory (CUPY_CACHE_IN_MEMORY=1)"
    folder = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    if not folder.is_dir():
        return f"{_short(folder)}, not there yet"
    return (
        f"{_short(folder)}, {sum(1 for _ in folder.glob('*.cubin'))} kernels, CuPy's own included"
    )


def _built_ahead() -> str:
    """Name the folder of kernels that were built ahead, and what it has them for."""
    folder = _prebuilt.chosen()
    if folder is None:
        return f"nothing, {_prebuilt.VARIABLE} is not set"
    ready = _prebuilt.opened(folder, cupy_dcn.__version__, _kernels.sources_digest())
    modules = ready.manifest["modules"]
    architectures = sorted({each for module in modules for each in module["cubin"]})
    return f"{_short(folder)}, {len(modules)} modules for {', '.join(architectures)}"


def _short(path: Path) -> str:
    """Return a path without the user's name in it, as far as that is known."""
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.util.find_spec(distribution) is not None
        return "present, version unknown" if found else "not installed"


def _cupy_wheels() -> str:
    """Name every wheel that brings a ``cupy``: two in one environment break each other."""
    wheels = importlib.metadata.packages_distributions().get("cupy", [])
    return ", ".join(f"{name} {_version(name)}" for name in sorted(set(wheels))) or "not installed"


def _blas() -> str:
    """Name the BLAS libraries of this process, which only threadpoolctl can tell."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "unknown without threadpoolctl: pip install 'cupy_dcn[threads]'"
    libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
    names = (f"{each['internal_api']} {each['version'] or ''}".strip() for each in libraries)
    return ", ".join(dict.fromkeys(names)) or "none that threadpoolctl knows"


def selftest() -> bool:
    """Compare every stage with plain loops in float64 and print a table.

    On NumPy arrays and, where there is a usable GPU, on CuPy arrays. An error is the largest
    difference as a share of the largest value, over all results of all cases.

    Returns
    -------
    bool
        Whether every error is within its limit.
    """
    libraries, without = _libraries()
    print(f"{'arrays':8}{'stage':24}{'dtype':10}{'error':>8}{'limit':>9}  ok")
    agreed = [_check(name, cupy, dtype) for name, cupy in libraries.items() for dtype in _dtypes()]
    if importlib.util.find_spec("ml_dtypes") is None:
        print(f"{'all':8}{'every stage':24}{'bfloat16':10}not checked: ml_dtypes is not installed")
    for name, reason in without.items():
        print(f"{name:8}not checked: {reason}")
    print("all agree" if all(agreed) else "SOME DISAGREE: please report this table and the info")
    return all(agreed)


def _libraries() -> tuple[dict[str, ModuleType | None], dict[str, str]]:
    """Return the libraries whose arrays can be checked here, and why others can't."""
    try:
        return {"NumPy": None, "CuPy": usable_cupy()}, {}
    except (ImportError, RuntimeError) as error:
        return {"NumPy": None}, {"CuPy": str(error)}


def _check(library: str, cupy: ModuleType | None, dtype: np.dtype[Any]) -> bool:
    """Print a line for every stage; return whether all are within their limit."""
    cases = [_make_case(dtype, *sizes) for sizes in _SIZES]
    if cupy is not None:
        try:
            cases = [case._replace(arrays=case.arrays.moved(cupy)) for case in cases]
        except Exception as refusal:  # CuPy before 14 has no bfloat16
            print(f"{library:8}{'every stage':24}{dtype.name:10}not checked: {refusal}")
            return dtype.name == "bfloat16"
    limit = LIMITS[dtype.name] * (2 if cupy is not None and is_half(dtype) else 1)
    all_agree = True
    for name, results in _STAGES.items():
        error, trouble = _largest_error(results, cases)
        agrees = error <= limit  # false for a NaN
        all_agree &= agrees
        verdict = "yes" if agrees else f"NO {trouble}".rstrip()
        print(f"{library:8}{name:24}{dtype.name:10}{error:8.1e}{limit:9.1e}  {verdict}")
    return all_agree


def _dtypes() -> list[np.dtype[Any]]:
    dtypes: list[np.dtype[Any]] = [np.dtype(f"float{bits}") for bits in (64, 32, 16)]
    if importlib.util.find_spec("ml_dtypes") is not None:
        import ml_dtypes

        dtypes.append(np.dtype(ml_dtypes.bfloat16))
    return dtypes


class _Arrays(NamedTuple):
    x: Array
    offset: Array
    weight: Array
    bias: Array
    mask: Array | None
    grad_output: Array
    grad_columns: Array

    def astype(self, dtype: DTypeLike) -> _Arrays:
        return _Arrays(*(None if each is None else each.astype(dtype) for each in self))  # type: ignore[arg-type]

    def moved(self, cupy: ModuleType) -> _Arrays:
        """Copy them to the GPU."""
        return _Arrays(*(None if each is None else cupy.asarray(each) for each in self))  # type: ignore[arg-type]


class _Case(NamedTuple):
    """One call: its arrays, the same values in float64 for the loops, and its attributes."""

    arrays: _Arrays
    exact: _Arrays
    kernel: tuple[int, int]
    sides: dict[str, Any]  # stride, padding, dilation, deformable_groups
    groups: int


# x's shape, C_out, kernel, stride, padding on four sides, dilation, deformable_groups, groups, mask
_SIZES = (
    ((2, 1, 5, 6), 2, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 1, False),
    ((1, 3, 6, 5), 2, (2, 3), (1, 1), (0, 1, 2, 0), (1, 1), 1, 1, True),
    ((2, 8, 5, 4), 4, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 2, True),
    ((1, 12, 7, 6), 4, (3, 2), (2, 1), (1, 2, 1, 0), (1, 2), 2, 4, True),
    ((1, 6, 6, 6), 3, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 3, 3, False),
)


def _make_case(
    dtype: np.dtype[Any], shape: tuple[int, int, int, int], out_channels: int,
    kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int],
    dilation: tuple[int, int], deformable_groups: int, groups: int, masked: bool,
) -> _Case:  # fmt: skip
    """Draw the arrays of a case; samples leave the image, and one location is not a number."""
    draw = np.random.default_rng(shape[1]).normal
    taps, per_group = kernel[0] * kernel[1], shape[1] // groups
    out = _oracle.output_shape(np.empty(shape), kernel, stride, padding, dilation)
    arrays = _Arrays(
        x=draw(size=shape),
        offset=draw(size=(shape[0], 2 * deformable_groups * taps, *out), scale=1.5),
        weight=draw(size=(out_channels, per_group, *kernel)),
        bias=draw(size=out_channels),
        mask=draw(size=(shape[0], deformable_groups * taps, *out)) if masked else None,
        grad_output=draw(size=(shape[0], out_channels, *out)),
        grad_columns=draw(size=(shape[0], groups, out[0] * out[1], taps, per_group)),
    ).astype(dtype)
    arrays.offset[0, 0, 0, 0] = np.nan
    sides = {
        "stride": stride, "padding": padding, "dilation": dilation,
        "deformable_groups": deformable_groups,
    }  # fmt: skip
    return _Case(arrays, arrays.astype(np.float64), kernel, sides, groups)


Results = Sequence[Any]  # arrays, or None for what a case without a mask has not


def _im2col(case: _Case) -> tuple[Results, Results]:
    ours, exact, kernel, sides, groups = case
    columns = cupy_dcn.deform_im2col(
        ours.x, ours.offset, kernel, **sides, groups=groups, mask=ours.mask
    )
    return [columns], [
        _oracle.im2col(exact.x, exact.offset, kernel, **sides, groups=groups, mask=exact.mask)
    ]


def _col2im(case: _Case) -> tuple[Results, Results]:
    ours, _, kernel, sides, _ = case
    size = ours.x.shape[2:]
    grad_x = cupy_dcn.deform_col2im(
        ours.grad_columns, ours.offset, size, kernel, **sides, mask=ours.mask
    )
    return [grad_x], _backward_of_im2col(case)[:1]


def _coord_grad(case: _Case) -> tuple[Results, Results]:
    ours, _, kernel, sides, _ = case
    grads = cupy_dcn.deform_coord_grad(
        ours.grad_columns, ours.x, ours.offset, kernel, **sides, mask=ours.mask
    )
    return grads, _backward_of_im2col(case)[1:]


def _backward_of_im2col(case: _Case) -> list[Any]:
    _, exact, kernel, sides, _ = case
    grad_x, grad_offset, grad_mask = _oracle.backward_of_im2col(
        exact.grad_columns, exact.x, exact.offset, kernel, **sides, mask=exact.mask
    )
    return [grad_x, grad_offset, None if exact.mask is None else grad_mask]


def _deform_conv2d(case: _Case) -> tuple[Results, Results]:
    ours, exact, _, sides, groups = case
    output = cupy_dcn.deform_conv2d(*ours[:4], **sides, groups=groups, mask=ours.mask)
    return [output], [_oracle.forward(*exact[:4], **sides, groups=groups, mask=exact.mask)]


def _deform_conv2d_backward(case: _Case) -> tuple[Results, Results]:
    ours, exact, _, sides, groups = case
    grads = cupy_dcn.deform_conv2d_backward(
        ours.grad_output, *ours[:4], **sides, groups=groups, mask=ours.mask
    )
    *others, grad_mask = _oracle.backward(
        exact.grad_output, *exact[:3], **sides, groups=groups, mask=exact.mask
    )
    return grads, [*others, None if exact.mask is None else grad_mask]


_STAGES = {
    "deform_im2col": _im2col,
    "deform_col2im": _col2im,
    "deform_coord_grad": _coord_grad,
    "deform_conv2d": _deform_conv2d,
    "deform_conv2d_backward": _deform_conv2d_backward,
}


def _largest_error(
    stage: Callable[[_Case], tuple[Results, Results]], cases: Sequence[_Case]
) -> tuple[float, str]:
    """Return the largest error of a stage, infinite with a reason where it can't be computed."""
    errors = [0.0]
    for case in cases:
        try:
            ours, expected = stage(case)
        except Exception as error:  # whatever breaks on this machine belongs in the table
            return np.inf, f"{type(error).__name__}: {error}"
        for result, exact in zip(ours, expected, strict=True):
            if (result is None) != (exact is None):
                return np.inf, "a result is missing or was not asked for"
            if exact is None:
                continue
            if result.shape != exact.shape or result.dtype != case.arrays.x.dtype:
                return np.inf, f"a result is {result.dtype} {result.shape}, due {exact.shape}"
            difference = on_host(result).astype(np.float64) - exact
            errors.append(np.abs(difference).max() / np.abs(exact).max())
    return float(np.max(errors)), ""  # a NaN among them is the largest
