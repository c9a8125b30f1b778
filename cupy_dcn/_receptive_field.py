"""Where one output pixel samples the image: through one layer, or composed through several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._arrays import Array
from ._geometry import Geometry


@dataclass(frozen=True)
class Sampling:
    """A layer as far as its sampling goes: the geometry, and one deformable group of its arrays."""

    geometry: Geometry
    offset: Array  # (K, 2, OH, OW), float64, as (dy, dx)
    mask: Array | None  # (K, OH, OW), float64


def receptive_field(
    layers: Sequence[Sampling], pixel: tuple[int, int], *, regular: bool = False
) -> tuple[Array, Array]:
    """Return where a pixel of the last layer's output samples the image that the first one takes.

    A tap of the last layer samples the output of the layer before it, where each tap samples
    further down. A sample between pixels goes on from the mean of its four pixels, weighted as the
    operator weighs them; one outside goes no further.

    Returns
    -------
    points : ndarray, shape (P, 2)
        Locations (y, x), at most P = K_1 * K_2 * ... of them; those of the regular grids, without
        offsets, if ``regular``.
    factors : ndarray, shape (P,)
        The product of the masks and fading borders on the way to each.
    """
    points, factors = np.array([pixel], np.float64), np.ones(1)
    for layer in reversed(layers):
        points, factors = _enter(points, factors, layer.geometry)
        samples, masks = regular_grid(layer.geometry, points), np.ones(layer.geometry.taps)
        if not regular:
            samples = samples + _between(layer.offset, points)
            masks = masks if layer.mask is None else _between(layer.mask, points)
        points = samples.reshape(-1, 2)
        factors = (factors[:, None] * masks).reshape(-1)
    return points, factors


def regular_grid(geometry: Geometry, points: Array) -> Array:
    """Return where the taps are without offsets, (P, K, 2), for points (P, 2) of the output."""
    i, j = np.divmod(np.arange(geometry.taps), geometry.kernel_width)
    taps = np.stack((i * geometry.dilation_y, j * geometry.dilation_x), axis=1)
    starts = points * (geometry.stride_y, geometry.stride_x)
    grid: Array = (starts - (geometry.pad_top, geometry.pad_left))[:, None] + taps
    return grid


def _enter(points: Array, factors: Array, geometry: Geometry) -> tuple[Array, Array]:
    """Return the points that read the layer's output, moved into it, and what is left of them."""
    size = np.array((geometry.out_height, geometry.out_width))
    inside = ((points > -1) & (points < size)).all(axis=1)  # NaN is outside
    points, factors = points[inside], factors[inside]
    within = np.clip(points, 0, size - 1)
    return within, factors * (1 - np.abs(points - within)).prod(axis=1)


def _between(plane: Array, points: Array) -> Array:
    """Return the bilinear means (P, ...) of an array (..., H, W) at points inside it."""
    first = np.floor(points).astype(np.intp)
    last = np.minimum(first + 1, np.array(plane.shape[-2:]) - 1)
    fraction = points - first
    total = np.zeros((*plane.shape[:-2], len(points)))
    for rows, down in ((first, 1 - fraction[:, 0]), (last, fraction[:, 0])):
        for columns, across in ((first, 1 - fraction[:, 1]), (last, fraction[:, 1])):
            weight = down * across
            values = plane[..., rows[:, 0], columns[:, 1]]
            values = np.where(np.isfinite(values), values, np.nan)
            # Where the weight is 0 it is nothing, not NaN.
            total += np.where(weight > 0, weight * values, 0)
    means: Array = np.moveaxis(total, -1, 0)
    return means
