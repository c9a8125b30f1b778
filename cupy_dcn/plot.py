"""Draws where the kernel samples. Matplotlib is imported when a figure has to be made."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._arguments import check_mask, check_offset
from ._arrays import Array, on_host, require_array
from ._attributes import came, geometry_of, is_integer, pair
from ._geometry import Geometry

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_sampling"]

AREA = 60.0  # of a sampling point's marker, in square points


def draw_sampling(
    image: npt.ArrayLike,
    offset: Array,
    at: Sequence[int] | Sequence[Sequence[int]],
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    deformable_group: int = 0,
    mask: Array | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where the deformed kernel samples the image for one output pixel or several.

    Each output pixel has a colour. Hollow circles are the regular grid, ``y*stride - pad_top +
    i*dilation`` and likewise along x; filled ones are where the kernel samples, that is the grid
    plus the offset; a line joins the two. Whole numbers on the axes are the centres of pixels.

    Parameters
    ----------
    image : array_like, shape (H, W), (H, W, 3) or (H, W, 4)
        What the kernel samples, as ``imshow`` takes it; the feature map whose H and W the offset
        was made for, or a picture resized to them.
    offset : ndarray, shape (1, 2*deformable_groups*KH*KW, OH, OW)
        Displacement of every tap in pixels, as `deform_conv2d` takes it.
    at : (int, int) or sequence of (int, int)
        Output pixel (y, x), or several.
    kernel_size : int or (int, int), optional
        KH and KW.
    stride, padding, dilation : optional
        As in `deform_conv2d`.
    deformable_group : int, optional
        The deformable group whose samples are drawn, counted from 0.
    mask : ndarray, shape (1, deformable_groups*KH*KW, OH, OW), optional
        The area of a filled circle is in proportion to the size of its factor; the full area is
        1, or the largest factor drawn if that is more.
    ax : matplotlib Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    matplotlib Axes
        The filled circles of every output pixel are labelled for ``ax.legend()``.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    ImportError
        If a figure has to be made and matplotlib is not installed.

    Notes
    -----
    A sample outside the open box (-1, H) x (-1, W) contributes 0, and so does one at a location
    that is not finite, which is not drawn. The axes grow to show samples outside the image.
    On a large picture zoom in: ``ax.set(xlim=(80, 120), ylim=(120, 80))``.

    Examples
    --------
    >>> import numpy as np, cupy_dcn.plot
    >>> offset = np.random.default_rng(0).normal(size=(1, 18, 8, 8))
    >>> ax = cupy_dcn.plot.draw_sampling(np.eye(8), offset, at=[(2, 2), (6, 5)], padding=1)
    >>> ax.figure.savefig("sampling.png")  # doctest: +SKIP
    """
    image, offset, mask = on_host(image), on_host(offset), on_host(mask)
    picture = _check_image(image)
    geometry = _geometry(picture, offset, kernel_size, stride, padding, dilation)
    pixels = _check_pixels(at, geometry)
    channel = _first_channel(deformable_group, geometry)
    areas = np.full((len(pixels), geometry.taps), AREA)
    if mask is not None:
        mask = check_mask(mask, geometry, getattr(mask, "dtype", offset.dtype), "offset")
        areas = _areas(mask[0, channel : channel + geometry.taps], pixels)
    regular = _regular_grid(geometry, pixels)
    channels = offset[0, 2 * channel : 2 * (channel + geometry.taps)].astype(np.float64)
    sampled = regular + [channels[:, y, x].reshape(-1, 2) for y, x in pixels]

    axes = _new_axes() if ax is None else ax
    axes.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
    for index, pixel in enumerate(pixels):
        _draw_kernel(axes, regular[index], sampled[index], areas[index], f"C{index % 10}", pixel)
    _show_all(axes, picture.shape, np.concatenate((regular, sampled)).reshape(-1, 2))
    return axes


def import_extra(module: str, extra: str) -> Any:
    """Import an optional module, or say which extra of the package brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs {module.partition('.')[0]}, which could not be imported ({error});"
            f" pip install 'cupy_dcn[{extra}]' brings it"
        ) from error


def _new_axes() -> Axes:
    pyplot = import_extra("matplotlib.pyplot", "plot")
    axes: Axes = pyplot.figure(layout="constrained").add_subplot()
    return axes


def _check_image(image: npt.ArrayLike) -> Array:
    picture = np.asarray(image)
    if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4)):
        return picture
    raise ValueError(
        f"image has shape {picture.shape}, expected (H, W), (H, W, 3) or (H, W, 4);"
        " one channel of x is x[n, c], a colour picture is numpy.moveaxis(x[n], 0, -1)"
    )


def _geometry(
    picture: Array,
    offset: Array,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
) -> Geometry:
    """Return the geometry of sampling the picture with this offset, if the two fit together."""
    require_array("offset", offset, "(1, 2*deformable_groups*KH*KW, OH, OW)")
    if offset.shape[0] != 1:
        raise ValueError(
            f"offset has a batch of {offset.shape[0]}, expected 1, that of the image drawn;"
            " pass offset[n : n + 1] for image n"
        )
    kernel = pair("kernel_size", kernel_size, 1)
    deformable_groups = max(offset.shape[1] // (2 * kernel[0] * kernel[1]), 1)
    shape = (1, deformable_groups, *picture.shape[:2])  # a channel for each deformable group
    geometry = geometry_of(shape, kernel, stride, padding, dilation, deformable_groups, 1, "image")
    check_offset(offset, geometry, offset.dtype, "image")
    return geometry


def _check_pixels(at: object, geometry: Geometry) -> list[tuple[int, int]]:
    """Return the output pixels to draw as [(y, x), ...]."""
    size = (geometry.out_height, geometry.out_width)
    try:
        pairs = [tuple(each) for each in at]  # type: ignore[attr-defined]
    except TypeError:
        pairs = [tuple(at)] if isinstance(at, (Sequence, np.ndarray)) else []
    if not pairs or any(len(each) != 2 for each in pairs):
        raise ValueError(
            f"at is {came(at)}, expected an output pixel (y, x) or several of them,"
            " for example at=(4, 7) or at=[(4, 7), (8, 7)]"
        )
    pixels = []
    for each in pairs:
        if not all(is_integer(number) for number in each):
            raise TypeError(
                f"at has {each}, expected two ints (y, x); round a location to a pixel first"
            )
        y, x = int(each[0]), int(each[1])
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ValueError(
                f"at has ({y}, {x}), expected 0 <= y < OH = {size[0]} and 0 <= x < OW = {size[1]};"
                " these are pixels of the output, the size of offset"
            )
        pixels.append((y, x))
    return pixels


def _first_channel(deformable_group: int, geometry: Geometry) -> int:
    """Return the channel of the mask where the deformable group starts."""
    if not is_integer(deformable_group):
        raise TypeError(
            f"deformable_group must be an int, got {came(deformable_group)}; the first one is 0"
        )
    if not 0 <= deformable_group < geometry.deformable_groups:
        raise ValueError(
            f"deformable_group is {deformable_group}, expected 0 <= deformable_group <"
            f" deformable_groups = {geometry.deformable_groups};"
            " offset has 2*deformable_groups*KH*KW channels"
        )
    return deformable_group * geometry.taps


def _areas(mask: Array, pixels: Sequence[tuple[int, int]]) -> Array:
    """Return the marker areas (pixels, K) for the mask (K, OH, OW) of one deformable group."""
    factors = np.array([np.abs(mask[:, y, x].astype(np.float64)) for y, x in pixels])
    finite = np.nan_to_num(factors, nan=0.0, posinf=0.0)
    areas: Array = AREA * finite / max(1.0, finite.max())
    return areas


def _regular_grid(geometry: Geometry, pixels: Sequence[tuple[int, int]]) -> Array:
    """Return where the kernel without offsets samples, (pixels, K, 2), as (y, x)."""
    i, j = np.divmod(np.arange(geometry.taps), geometry.kernel_width)
    taps = np.stack((i * geometry.dilation_y, j * geometry.dilation_x), axis=1)
    starts = np.array(pixels) * (geometry.stride_y, geometry.stride_x)
    starts = starts - (geometry.pad_top, geometry.pad_left)
    grid: Array = (starts[:, None] + taps).astype(np.float64)
    return grid


def _draw_kernel(
    axes: Axes, regular: Array, sampled: Array, areas: Array, colour: str, pixel: tuple[int, int]
) -> None:
    """Draw one output pixel: lines from the grid to the samples, then the circles."""
    rows, columns = np.stack((regular, sampled)).transpose(2, 0, 1)
    axes.plot(columns, rows, color=colour, linewidth=1.2)
    axes.scatter(
        columns[0], rows[0], s=AREA / 2, facecolors="none", edgecolors=colour, linewidths=1.5,
        zorder=3,
    )  # fmt: skip
    axes.scatter(
        columns[1], rows[1], s=areas, color=colour, edgecolors="white", linewidths=0.8, zorder=4,
        label=f"output pixel y={pixel[0]}, x={pixel[1]}",
    )  # fmt: skip


def _show_all(axes: Axes, size: tuple[int, ...], points: Array) -> None:
    """Fit the axes to the image and the points, at most an image's size beyond it."""
    height, width = size[:2]
    finite = points[np.isfinite(points).all(axis=1)]
    near = np.clip(finite, (-height, -width), (2 * height, 2 * width))
    top, left = np.minimum(near.min(axis=0) - 0.5, -0.5)
    bottom, right = np.maximum(near.max(axis=0) + 0.5, (height - 0.5, width - 0.5))
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
