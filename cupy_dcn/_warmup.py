"""warmup: compile a layer's kernels before its first call. And which GPU there is to do it for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _kernels
from ._arrays import SUPPORTED, is_half, is_supported
from ._attributes import came, geometry_of, integer, pair
from ._cut import DEFAULT_WORKSPACE
from ._cut_gpu import require_int_sizes
from ._direct_backward_gpu import block_sums
from ._direct_gpu import is_direct
from ._geometry import Geometry
from ._order_gpu import may_pay
from ._specialisation import (
    Macros,
    Wants,
    direct_backward_macros,
    order_macros,
    sampling_macros,
    transpose_macros,
)

FORWARD: tuple[str, ...] = ("to_channels_last", "deform_im2col")
BACKWARD = ("deform_backward", "from_channels_last")
ORDERING = ("count_samples", "start_cells", "order_samples")
SORTED = (*ORDERING, "deform_backward_sorted", "from_channels_last")
DETERMINISTIC = (*ORDERING, "rank_samples", "deform_col2im_ordered", *BACKWARD)
DIRECT_FORWARD = ("to_channels_last", "deform_direct")
DIRECT_BACKWARD = ("deform_direct_backward", "from_channels_last")
INDEX = np.dtype(np.int32)  # wider where an array has 2^31 elements or more


def warmup(
    channels: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    out_channels: int | None = None,
    groups: int = 1,
    deformable_groups: int = 1,
    dtype: npt.DTypeLike = "float32",
    offset_dtype: npt.DTypeLike | None = None,
    mask_dtype: npt.DTypeLike | None = None,
    mask: bool = True,
    backward: bool = True,
    deterministic: bool = False,
) -> int:
    """Compile the CUDA kernels of a layer for the current device, before its first call.

    A layer's kernels are compiled at its first call on a GPU, in some tenths of a second each, and
    kept on disk by CuPy. This does it ahead: when a service starts, or an image is built.

    Parameters
    ----------
    channels : int
        C_in.
    kernel_size : int or (int, int)
        KH and KW.
    out_channels : int, optional
        C_out, by default C_in. It matters where a group has few channels (see Notes).
    groups, deformable_groups : int
        As given to `deform_conv2d`.
    dtype : dtype
        Of x and weight: float64, float32, float16 or bfloat16 (of ml_dtypes; its name will do).
    offset_dtype, mask_dtype : dtype, optional
        x's by default; float32 is possible beside half-precision x.
    mask : bool
        Whether the calls have a mask (v2).
    backward : bool
        Whether to compile the kernels of the gradients, too.
    deterministic : bool
        Whether to compile those of a backward that sums in a fixed order, too.

    Returns
    -------
    int
        How many kernels this process had not loaded yet: 0 if there was nothing to do.

    Raises
    ------
    ImportError
        If there is no CuPy, or bfloat16 is asked for and there is no ml_dtypes.
    RuntimeError
        If CuPy finds no GPU.
    TypeError, ValueError
        If an argument is none that a layer can have; before anything is compiled.

    Notes
    -----
    Nothing else is compiled into a kernel: calls differ in batch, image size, stride, padding and
    dilation without a compilation, and in output channels unless a group has few channels, in and
    out: then the forward is a kernel of its own. An exception are arrays of 2^31 elements or
    more, whose kernels have wider indices; they are compiled at their first call. So are the
    kernels of a backward that is asked for some of the gradients alone (``needs``), and those of
    `deform_col2im`, `deform_coord_grad` and the derivatives along a direction: the one compiled
    here works out all gradients.

    Examples
    --------
    >>> import cupy_dcn
    >>> cupy_dcn.warmup(32, kernel_size=3, dtype="float16")  # on a machine with a GPU
    8
    >>> cupy_dcn.warmup(32, kernel_size=3, dtype="float16")
    0
    """
    wanted = kernels_of(
        channels, kernel_size, out_channels, groups, deformable_groups, dtype, offset_dtype,
        mask_dtype, mask, backward, deterministic,
    )  # fmt: skip
    cupy = usable_cupy()
    before = set(_kernels.compiled())
    load(cupy, wanted)
    return len(set(wanted) - before)


def kernels_of(
    channels: object,
    kernel_size: object,
    out_channels: object,
    groups: object,
    deformable_groups: object,
    dtype: object,
    offset_dtype: object,
    mask_dtype: object,
    mask: object,
    backward: object,
    deterministic: object = False,
    index: np.dtype[Any] = INDEX,
) -> list[tuple[str, Macros]]:
    """Return the names and macros of a layer's kernels; see ``warmup`` for the arguments."""
    flags = {"mask": mask, "backward": backward, "deterministic": deterministic}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(
                f"{name} must be True or False, got {came(value)}; a warmup takes no arrays"
            )
    channels = integer("channels", channels, 1)
    height, width = pair("kernel_size", kernel_size, 1)
    shape = (1, channels, height, width)
    geometry = geometry_of(
        shape, (height, width), 1, 0, 1, deformable_groups, groups, owner="the layer"
    )
    x = dtype_of("dtype", dtype)
    outputs = geometry.group_channels
    if out_channels is not None:
        outputs = check_out_channels(out_channels, geometry) // geometry.groups
    require_int_sizes(geometry, outputs * geometry.groups, x.itemsize)
    offset = x if offset_dtype is None else dtype_beside(x, "offset_dtype", offset_dtype)
    factor = x if mask_dtype is None else dtype_beside(x, "mask_dtype", mask_dtype)
    layer = geometry, x, offset, factor if mask else None, index
    found = layer_kernels(*layer, backward)
    # Whether it pays depends on the images' size and on the device; indices must be narrow.
    if backward and may_pay(geometry) and index == INDEX:
        found += layer_kernels(*layer, True, True)
    if backward and deterministic:
        found += layer_kernels(*layer, True, deterministic=True)
    if is_direct(geometry, outputs * geometry.groups, x):
        sums = block_sums(geometry, outputs * geometry.groups, x, DEFAULT_WORKSPACE)
        found += layer_kernels(*layer, backward and sums is not None, direct=outputs)
    return list(dict.fromkeys(found))


def layer_kernels(
    geometry: Geometry,
    x: np.dtype[Any],
    offset: np.dtype[Any],
    mask: np.dtype[Any] | None,
    index: np.dtype[Any],
    backward: object,
    sorts: bool = False,
    direct: int = 0,
    deterministic: bool = False,
) -> list[tuple[str, Macros]]:
    """Return the names and macros of the kernels of a forward, and of a backward if asked for.

    ``direct``: C_out/G without columns, else 0; ``sorts``: of a backward that orders its sampling
    points; ``deterministic``: of one that sums in a fixed order.
    """
    sampled = geometry, x, offset, mask, index
    transposing = transpose_macros(geometry, x, index)
    wants = Wants(not deterministic, True, mask is not None, True)
    macros: dict[str, Macros] = {
        "deform_im2col": sampling_macros(*sampled),
        "deform_direct": sampling_macros(*sampled, outputs=direct),
        "deform_col2im_ordered": sampling_macros(*sampled),
        "deform_backward": sampling_macros(*sampled, wants),
        "deform_backward_sorted": sampling_macros(*sampled, wants),
        "to_channels_last": transposing,
        "from_channels_last": transposing,
    }
    names = DIRECT_FORWARD if direct else FORWARD
    if backward:
        names += (
            DETERMINISTIC if deterministic else DIRECT_BACKWARD if direct
            else SORTED if sorts else BACKWARD
        )  # fmt: skip
    if "deform_direct_backward" in names:
        pulling = direct_backward_macros(*sampled, wants)
        assert pulling is not None, "it fits into no block, which block_sums should have seen"
        macros["deform_direct_backward"] = pulling
    ordering = order_macros(geometry, x, offset, index)
    return [(name, macros.get(name, ordering)) for name in names]


def load(cupy: ModuleType, wanted: Iterable[tuple[str, Macros]]) -> None:
    """Compile kernels for the current device."""
    for name, macros in wanted:
        # Taken from the process's own table it may be there for another device only.
        _ = _kernels.kernel(cupy, name, macros).kernel


def check_out_channels(value: object, geometry: Geometry) -> int:
    """Return C_out if the layer can have as many."""
    count, groups = integer("out_channels", value, 1), geometry.groups
    if count % groups:
        raise ValueError(
            f"out_channels is {count}, expected a positive multiple of groups = {groups}; it is"
            " C_out, weight.shape[0]"
        )
    return count


def dtype_of(name: str, value: object) -> np.dtype[Any]:
    if isinstance(value, str) and value == "bfloat16":
        try:  # which makes the name known to NumPy
            import ml_dtypes
        except ImportError as error:
            raise ImportError(
                f"bfloat16 needs ml_dtypes, which could not be imported ({error});"
                " pip install ml_dtypes brings it"
            ) from error
        return np.dtype(ml_dtypes.bfloat16)  # type: ignore[no-any-return]
    dtype: np.dtype[Any] | None = None
    with contextlib.suppress(TypeError, ValueError):
        dtype = None if value is None else np.dtype(value)  # type: ignore[call-overload]
    if dtype is None or not is_supported(dtype):
        raise TypeError(f"{name} must be {SUPPORTED}, got {came(value)}; it is that of an array")
    return dtype


def dtype_beside(x: np.dtype[Any], name: str, value: object) -> np.dtype[Any]:
    """Return the dtype of offset or mask beside x's."""
    dtype = dtype_of(name, value)
    if dtype != x and not (is_half(x) and dtype == np.float32):
        also = " or float32" if is_half(x) else ""
        raise TypeError(f"{name} is {dtype}, expected x's dtype {x}{also}; None means x's")
    return dtype


def usable_cupy() -> ModuleType:
    """Return CuPy if it is there and finds a GPU."""
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            f"CuPy could not be imported ({_one_line(error)}); pip install 'cupy_dcn[cuda13x-ctk]'"
            " brings it, cuda12x-ctk where the driver is of CUDA 12"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        reason = "it counts none"
    except Exception as error:  # CuPy's own where there is no driver or no device
        count, reason = 0, _one_line(error)
        with contextlib.suppress(Exception):  # it may need what is missing
            if cupy.cuda.runtime.driverGetVersion() == 0:
                reason = f"no NVIDIA driver is installed: {reason}"
    if count == 0:
        raise RuntimeError(f"CuPy finds no GPU ({reason})")
    return cupy  # type: ignore[no-any-return]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
