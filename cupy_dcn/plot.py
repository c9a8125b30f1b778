"""Draws where kernels sample. Matplotlib is imported when a figure has to be made."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._arrays import AnyArray, Array
from ._attributes import came, integer, is_integer
from ._plot_arguments import check_image, check_layers, check_pixels
from ._receptive_field import Sampling, receptive_field, regular_grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_sampling", "quiver"]

AREA = 60.0  # of a sampling point's marker at most, in square points
DIAMETERS = 3.0, AREA**0.5  # of a marker at least and at most, in points
BETWEEN = 0.5  # diameter of a marker as a share of the distance between two points of a kernel
ARROWS = 20  # along the longer side of a picture


def draw_sampling(
    image: npt.ArrayLike,
    offset: AnyArray | Sequence[AnyArray],
    at: Sequence[int] | Sequence[Sequence[int]],
    kernel_size: int | Sequence[Any] = 3,
    stride: int | Sequence[Any] = 1,
    padding: int | str | Sequence[Any] = 0,
    dilation: int | Sequence[Any] = 1,
    *,
    deformable_group: int | list[int] = 0,
    mask: AnyArray | Sequence[AnyArray | None] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where deformed kernels sample the image for one output pixel or several.

    Each output pixel has a colour. Hollow circles are the regular grid, ``y*stride - pad_top +
    i*dilation`` and likewise along x; filled ones are where the kernel samples, that is the grid
    plus the offset; a line joins the two. Whole numbers on the axes are the centres of pixels.

    Of several layers one above the other it draws the receptive field: a tap of the last layer
    samples the output of the layer below, where each tap samples further down, so three layers of
    3x3 taps reach the image at 729 points.

    Parameters
    ----------
    image : array_like, shape (H, W), (H, W, 3) or (H, W, 4)
        What the kernel samples, as ``imshow`` takes it; the feature map whose H and W the offset
        was made for, or a picture resized to them.
    offset : ndarray, shape (1, 2*deformable_groups*KH*KW, OH, OW), or list of them
        Displacement of every tap in pixels, as `deform_conv2d` takes it. A list has those of
        several layers; the first one samples the image, each other one the output before it.
    at : (int, int) or sequence of (int, int)
        Output pixel (y, x), or several; of the last layer.
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
    For several layers ``kernel_size``, ``stride``, ``padding``, ``dilation`` and
    ``deformable_group`` are the same in all of them, or a list with one value for each; a tuple is
    (vertical, horizontal). ``mask`` is a list. A point's factor is then the product of those on
    its way. A sample between pixels goes on from the mean of its four pixels, weighted as the
    operator weighs them; one outside the output below goes no further. Of coinciding points of the
    regular grids one is drawn, and no lines.

    A sample outside the open box (-1, H) x (-1, W) contributes 0, and so does one at a location
    that is not finite, which is not drawn. The axes grow to show samples outside the image.
    On a large picture zoom in: ``ax.set(xlim=(80, 120), ylim=(120, 80))``.

    Examples
    --------
    >>> import numpy as np, cupy_dcn.plot
    >>> offset = np.random.default_rng(0).normal(size=(1, 18, 8, 8))
    >>> ax = cupy_dcn.plot.draw_sampling(np.eye(8), offset, at=[(2, 2), (6, 5)], padding=1)
    >>> ax.figure.savefig("sampling.png")  # doctest: +SKIP

    Three layers, from one pixel in the middle: 729 points.

    >>> ax = cupy_dcn.plot.draw_sampling(np.eye(8), [offset] * 3, at=(4, 4), padding=1)
    """
    picture = check_image(image)
    settings = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "deformable_group": deformable_group,
    }
    layers = check_layers(picture.shape[:2], offset, mask, settings)
    pixels = check_pixels(at, layers[-1].geometry)
    fields = [receptive_field(layers, pixel) for pixel in pixels]
    grids = [receptive_field(layers, pixel, regular=True)[0] for pixel in pixels]
    shares = _shares([factors for _, factors in fields])

    axes = _new_axes() if ax is None else ax
    axes.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
    points = np.concatenate([*grids, *(sampled for sampled, _ in fields)])
    _show_all(axes, picture.shape, points)
    diameter = _diameter(axes, layers)
    for index, (pixel, grid, (sampled, _)) in enumerate(zip(pixels, grids, fields, strict=True)):
        colour, share = f"C{index % 10}", shares[index]
        if len(layers) == 1:
            axes.plot(*_lines(grid, sampled), color=colour, linewidth=0.15 * diameter)
        else:
            grid = np.unique(grid, axis=0)
        _draw_points(axes, grid, sampled, share, diameter, colour, pixel)
    return axes


def quiver(
    image: npt.ArrayLike,
    offset: AnyArray,
    kernel_size: int | Sequence[int] = 3,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    deformable_group: int = 0,
    tap: int | None = None,
    every: int | None = None,
    scale: float = 1.0,
    ax: Axes | None = None,
) -> Axes:
    """Draw offsets as arrows over the image, from the regular grid to where the kernel samples.

    The arrow of output pixel (y, x) starts at ``y*stride - pad_top + i*dilation`` and likewise
    along x; its colour is its length in pixels, which a colour bar beside it explains.

    Parameters
    ----------
    image : array_like, shape (H, W), (H, W, 3) or (H, W, 4)
        What the kernel samples, as for `draw_sampling`.
    offset : ndarray, shape (1, 2*deformable_groups*KH*KW, OH, OW)
        Displacement of every tap in pixels, as `deform_conv2d` takes it.
    kernel_size, stride, padding, dilation : optional
        As in `deform_conv2d`; a displacement field has ``kernel_size=1``.
    deformable_group : int, optional
        The deformable group whose offsets are drawn, counted from 0.
    tap : int, optional
        The tap k = i*KW + j whose offsets are drawn; by default the mean of all taps.
    every : int, optional
        Draw each such pixel along either axis; by default as many as make 20 arrows along the
        longer side.
    scale : float, optional
        Draw the arrows so many times as long.
    ax : matplotlib Axes, optional
        Where to draw; a new figure's by default.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.
    ImportError
        If a figure has to be made and matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, cupy_dcn.plot
    >>> dy, dx = np.mgrid[-8:8, -8:8][:, None, None] / 4.0  # a magnifying glass
    >>> offset = cupy_dcn.pack_offset(-dy, -dx)
    >>> ax = cupy_dcn.plot.quiver(np.eye(16), offset, kernel_size=1, every=3)
    >>> ax.figure.savefig("offsets.png")  # doctest: +SKIP
    """
    picture = check_image(image)
    settings = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "deformable_group": deformable_group,
    }
    if isinstance(offset, (list, tuple)):
        raise TypeError(f"offset must be one array, got {came(offset)}; draw each layer's alone")
    [layer] = check_layers(picture.shape[:2], offset, None, settings)
    geometry = layer.geometry
    taps = _chosen_taps(tap, geometry.taps)
    longer = max(geometry.out_height, geometry.out_width)
    step = max(-(-longer // ARROWS), 1) if every is None else integer("every", every, 1)
    if not (isinstance(scale, (int, float, np.number)) and 0 < scale < np.inf):
        raise ValueError(f"scale is {came(scale)}, expected a number above 0; 1 is true to scale")

    y, x = np.mgrid[step // 2 : geometry.out_height : step, step // 2 : geometry.out_width : step]
    y, x = y.ravel(), x.ravel()
    starts = regular_grid(geometry, np.stack((y, x), axis=1))[:, taps].mean(axis=1)
    arrows = layer.offset[taps][:, :, y, x].mean(axis=0)
    axes = _new_axes() if ax is None else ax
    axes.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
    drawn = axes.quiver(
        starts[:, 1], starts[:, 0], arrows[1], arrows[0], np.hypot(*arrows), cmap="plasma",
        angles="xy", scale_units="xy", scale=1 / scale, width=0.0045, headwidth=4, headlength=4,
        headaxislength=3.5, edgecolor="white", linewidth=0.4,
    )  # fmt: skip
    times = "" if scale == 1 else f", drawn {scale:g} times as long"
    axes.figure.colorbar(drawn, ax=axes, label=f"length of the offset in pixels{times}")
    _show_all(axes, picture.shape, np.concatenate((starts, starts + scale * arrows.T)))
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


def _chosen_taps(tap: int | None, taps: int) -> slice:
    """Return the tap asked for, or all of them."""
    if tap is None:
        return slice(taps)
    if not is_integer(tap):
        raise TypeError(f"tap must be an int, got {came(tap)}; None draws the mean of all taps")
    if not 0 <= tap < taps:
        raise ValueError(f"tap is {tap}, expected 0 <= tap < KH*KW = {taps}; tap k is i*KW + j")
    return slice(tap, tap + 1)


def _shares(factors: Sequence[Array]) -> list[Array]:
    """Return the areas of markers, as a share of the full one."""
    finite = [np.nan_to_num(np.abs(each), nan=0.0, posinf=0.0) for each in factors]
    largest = max((each.max() for each in finite if len(each)), default=1.0)
    return [each / max(1.0, largest) for each in finite]


def _diameter(axes: Axes, layers: Sequence[Sampling]) -> float:
    """Return the diameter of a full marker in points, so that those of a kernel stay apart."""
    extent = axes.get_window_extent()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    dots = min(extent.width / abs(right - left), extent.height / abs(top - bottom))
    pixel = 72 * dots / axes.figure.dpi
    geometry = layers[0].geometry
    apart = min(geometry.dilation_y, geometry.dilation_x) * pixel
    return float(np.clip(BETWEEN * apart / len(layers), *DIAMETERS))


def _lines(grid: Array, sampled: Array) -> tuple[Array, Array]:
    """Return the lines from the grid to the samples as plot takes them, x and y."""
    rows, columns = np.stack((grid, sampled)).transpose(2, 0, 1)
    return columns, rows


def _draw_points(
    axes: Axes,
    grid: Array,
    sampled: Array,
    shares: Array,
    diameter: float,
    colour: str,
    pixel: tuple[int, int],
) -> None:
    """Draw the circles of one output pixel: hollow ones of the grid, then filled ones."""
    axes.scatter(
        grid[:, 1], grid[:, 0], s=diameter**2 / 2, facecolors="none", edgecolors=colour,
        linewidths=0.19 * diameter, zorder=3,
    )  # fmt: skip
    axes.scatter(
        sampled[:, 1], sampled[:, 0], s=shares * diameter**2, color=colour, edgecolors="white",
        linewidths=0.1 * diameter, zorder=4, label=f"output pixel y={pixel[0]}, x={pixel[1]}",
    )  # fmt: skip


def _show_all(axes: Axes, size: tuple[int, ...], points: Array) -> None:
    """Fit the axes to the image and the points, at most an image's size beyond it."""
    height, width = size[:2]
    finite = points[np.isfinite(points).all(axis=1)]
    near = np.clip(finite, (-height, -width), (2 * height, 2 * width))
    top, left = np.minimum(near.min(axis=0, initial=0) - 0.5, -0.5)
    bottom, right = np.maximum(near.max(axis=0, initial=0) + 0.5, (height - 0.5, width - 0.5))
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="x", ylabel="y")
