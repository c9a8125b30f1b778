"""Stage 4 on the CPU: im2col, col2im and the coordinate gradient of one tile.

Sampling is a sparse matrix S: a row per sampling point, four entries, the bilinear weights of its
corners times its mask. With the image as rows of channels (cells, C_in/DG),

    columns = S @ image        grad_image = S^T @ grad_columns

and the coordinate gradients follow from s_ab = <grad_columns, image[corner ab]>, four dot
products over channels. Where a deformable group has few channels ("planes") the image is gathered
plane by plane instead: rows of a few floats waste most of a sparse product's inner loop.

Columns of a tile: "rows" order (pixels, K, C_in), "planes" order (C_in, K, pixels).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ._arrays import Array
from ._corners_cpu import Corners
from ._cut import Cut, Tile
from ._geometry import Geometry
from ._samples_cpu import Samples, all_finite
from ._windows_cpu import Image, Window, is_planar
from ._workspace import Workspace

# Corner dot products gather so much at a time, to stay in the second-level cache.
BLOCK_BYTES = 2**18
# einsum's short loops beat one BLAS dot a row below this (4.3 against 8.1 ns at 16 channels).
VECDOT_CHANNELS = 48
# Longer dots in parts, added up in float64: einsum, for a NumPy without vecdot, is off by 8e-7 of
# equal terms' sum at so many, by 1.4e-5 at 4096.
LONGEST_DOT = 1024


def im2col(image: Image, samples: Samples) -> Array:
    """Return the tile's columns: mask * the bilinear mean of the four corners."""
    columns = samples.workspace.zeros(samples.columns_shape, samples.dtype)
    gather(image, samples, columns, None, None)
    if not samples.mask_is_finite:
        times_mask(columns, samples)
    return columns


def gather(
    image: Image,
    samples: Samples,
    columns: Array | None,
    grad_columns: Array | None,
    dots: Array | None,
) -> None:
    """Add what is sampled to the columns, and to the corner dot products with a gradient."""
    add = _gather_planes if samples.planar else _gather_rows
    for window in image.windows(samples.tile.images, samples.bounds, samples.workspace):
        add(window, samples, columns, grad_columns, dots)


def write_columns(image: Image, samples: Samples, columns: Array) -> None:
    """Sample a tile into its part of (N, G, OH*OW, K, C_in/G)."""
    part = part_of_columns(columns, samples.geometry, samples.tile)
    np.copyto(part, im2col(image, samples).reshape(part.shape), casting="same_kind")


def tile_of_columns(
    columns: Array, cut: Cut, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Array:
    """Return a tile of the whole array of columns in the memory order of its samples."""
    geometry = cut.geometry
    part = workspace.cast(part_of_columns(columns, geometry, tile), dtype)
    if is_planar(geometry):
        return part.reshape(geometry.channels, geometry.taps, -1)
    return part.reshape(-1, geometry.taps, geometry.channels)


def part_of_columns(columns: Array, geometry: Geometry, tile: Tile) -> Array:
    """View a tile of (N, G, OH*OW, K, C_in/G) in the memory order of the tile's samples."""
    first = tile.rows.start * geometry.out_width + tile.columns.start
    part = columns[tile.images, :, first : first + tile.image_pixels]
    return part.transpose((1, 4, 3, 0, 2) if is_planar(geometry) else (0, 2, 3, 1, 4))


def _gather_rows(
    window: Window,
    samples: Samples,
    columns: Array | None,
    grad_columns: Array | None,
    dots: Array | None,
) -> None:
    """Add what a window holds to the columns, and to the corner dot products with a gradient."""
    corners, channels = samples.corners(window), samples.geometry.deformable_channels
    rows = window.values.reshape(-1, channels)[corners.lowest :]
    if columns is not None:
        corners.matrix.add_product(rows[: corners.span], columns.reshape(-1, channels))
    if grad_columns is not None and dots is not None:
        _add_row_dots(rows, corners, grad_columns.reshape(-1, channels), dots, samples.workspace)


def _add_row_dots(
    rows: Array, corners: Corners, grad: Array, dots: Array, workspace: Workspace
) -> None:
    channels = grad.shape[1]
    block = min(max(BLOCK_BYTES // (channels * grad.itemsize), 1), len(grad))
    with workspace.scope():
        gathered = workspace.empty((block, channels), grad.dtype)
        dot = workspace.empty(block, grad.dtype)
        for first in range(0, len(grad), block):
            part = slice(first, min(first + block, len(grad)))
            index = corners.index[part].astype(np.intp)
            values, sums = gathered[: index.size], dot[: index.size]
            for corner, step in enumerate(corners.steps):
                rows[step:].take(index, axis=0, out=values, mode="clip")
                _row_dots(values, grad[part], sums)
                dots[corner, part] += sums


def _row_dots(a: Array, b: Array, out: Array) -> None:
    """Write the dot product of each row of a with the same row of b, long ones in parts."""
    if a.shape[1] > LONGEST_DOT:
        parts = range(0, a.shape[1], LONGEST_DOT)
        total = np.zeros(len(a))
        for part in (slice(first, first + LONGEST_DOT) for first in parts):
            _row_dots(a[:, part], b[:, part], out)
            total += out
        np.copyto(out, total, casting="same_kind")
    elif a.shape[1] >= VECDOT_CHANNELS and hasattr(np, "vecdot"):
        np.vecdot(a, b, out=out)
    else:
        np.einsum("sc,sc->s", a, b, out=out)


def _gather_planes(
    window: Window,
    samples: Samples,
    columns: Array | None,
    grad_columns: Array | None,
    dots: Array | None,
) -> None:
    """Do as ``_gather_rows``, plane by plane; each value is gathered once for both."""
    corners, workspace = samples.corners(window), samples.workspace
    index, weights = corners.gather, None if columns is None else corners.weights
    with workspace.scope():
        value, product = workspace.empty((2, index.size), samples.dtype)
        for channel in range(samples.geometry.deformable_channels):
            for corner, plane in enumerate(_planes(window, corners, channel)):
                plane.take(index, out=value, mode="clip")
                if columns is not None and weights is not None:
                    np.multiply(value, weights[corner], out=product)
                    into = _by_group(columns, samples)[:, channel]
                    into += product.reshape(into.shape)
                if grad_columns is not None and dots is not None:
                    grad = _by_group(grad_columns, samples)[:, channel]
                    np.multiply(value.reshape(grad.shape), grad, out=product.reshape(grad.shape))
                    dots[corner] += product


def _planes(window: Window, corners: Corners, channel: int) -> Iterator[Array]:
    """Yield one channel of the window, shifted to the corners 00, 01, 10, 11 of index 0."""
    height, width = window.size
    flat = window.values.reshape(-1)[corners.lowest + channel * height * width :]
    for step in corners.steps:
        yield flat[step:]


def _by_group(columns: Array, samples: Samples) -> Array:
    """View columns in planes order as (DG, C_in/DG, K*pixels)."""
    geometry = samples.geometry
    return columns.reshape(geometry.deformable_groups, geometry.deformable_channels, -1)


def times_mask(columns: Array, samples: Samples) -> None:
    """Multiply columns by a mask kept out of the weights: inf * (0 * v) is not (inf * 0) * v."""
    assert samples.mask is not None
    if samples.planar:
        by_group = _by_group(columns, samples)
        by_group *= samples.mask.reshape(len(by_group), 1, -1)
    else:
        rows = columns.reshape(-1, samples.geometry.deformable_channels)
        rows *= samples.mask.reshape(-1, 1)


def col2im(grad_columns: Array, samples: Samples, grad_window: Window) -> None:
    """Add S^T @ grad_columns to ``grad_window``; may use up ``grad_columns``."""
    if not samples.mask_is_finite:
        times_mask(grad_columns, samples)
    corners = samples.corners(grad_window)
    matrix, first = corners.matrix, corners.lowest
    if not samples.planar:
        channels = samples.geometry.deformable_channels
        rows = grad_window.values.reshape(-1, channels)[first : first + corners.span]
        matrix.add_transposed_product(grad_columns.reshape(-1, channels), rows)
        return
    height, width = grad_window.size
    flat = grad_window.values.reshape(-1, 1)
    by_group = _by_group(grad_columns, samples)
    for channel in range(by_group.shape[1]):
        start = first + channel * height * width
        grad = by_group[:, channel].reshape(-1, 1)
        matrix.add_transposed_product(grad, flat[start : start + corners.span])


def coord_grad(
    grad_columns: Array, image: Image, samples: Samples, columns: Array | None = None
) -> tuple[Array, ...]:
    """Return the gradients of dy, dx and the mask, in the order of the samples.

    With s_ab = sum over channels of grad_columns * corner ab: the derivative of a bilinear mean.
    ``columns`` of zeros, if given, receive what ``im2col`` returns, from the same pass.
    """
    workspace = samples.workspace
    dots = workspace.zeros((4, samples.row.size), samples.dtype)
    gather(image, samples, columns, grad_columns, dots)
    if columns is not None and not samples.mask_is_finite:
        times_mask(columns, samples)
    by_y, by_x, by_mask = bilinear_gradient(dots, samples)
    if samples.mask is not None:
        by_y *= samples.mask.reshape(-1)
        by_x *= samples.mask.reshape(-1)
    return by_sample(samples, by_y, by_x, by_mask)


def bilinear_gradient(dots: Array, samples: Samples) -> tuple[Array, Array, Array]:
    """Return what ``dots`` of the corners give: by dy, by dx, their bilinear mean; uses them up."""
    workspace = samples.workspace
    low_y, low_x = samples.fraction_y.reshape(-1), samples.fraction_x.reshape(-1)
    by_y, by_x, above, below, product = workspace.empty((5, low_y.size), samples.dtype)
    _mix(dots[0], dots[1], low_x, above, product)
    _mix(dots[2], dots[3], low_x, below, product)
    np.subtract(below, above, out=by_y)
    dots[1] -= dots[0]
    dots[3] -= dots[2]
    _mix(dots[1], dots[3], low_y, by_x, product)
    mean = dots[0]
    _mix(above, below, low_y, mean, product)
    return by_y, by_x, mean


def by_sample(samples: Samples, *gradients: Array) -> tuple[Array, ...]:
    """Return gradients in the order of the samples; 0 outside, also where grad_columns is not."""
    for gradient in gradients:
        if not all_finite(gradient, samples.workspace):
            gradient[samples.outside().reshape(-1)] = 0
    return tuple(gradient.reshape(samples.row.shape) for gradient in gradients)


def _mix(low: Array, high: Array, fraction: Array, out: Array, product: Array) -> None:
    """Write (1 - fraction)*low + fraction*high; ``product`` is for intermediate results."""
    np.subtract(1, fraction, out=out)
    out *= low
    np.multiply(fraction, high, out=product)
    out += product
