"""Where a tile samples: locations, their cells and fractions, the masks (CPU).

The offset is split into floor and fraction, not the location: a fraction is as exact beside pixel
4000 as beside pixel 0, and a cell is a sum of whole numbers. Cells are clipped to [-2, H] x
[-2, W]: then their four corners always exist in a zero-bordered window (_windows_cpu.py), and
outside the image they are zeros, whatever x holds at its edge. A NaN is clipped to -2 and so
samples zeros too. Only -1 exactly needs a hand: its inner corner would be inside with weight 0, so
it is moved to -2.

Two memory orders. Several channels a deformable group: "rows", samples as (image, y, x, tap, g),
a sampling point reading rows of C_in/DG channels. Few channels: "planes", samples as
(g, tap, image, y, x), one plane of the image read at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Array
from ._corners_cpu import Corners
from ._cut import Cut, Tile
from ._cut_cpu import BORDER, WINDOW_CELLS
from ._geometry import Geometry
from ._windows_cpu import Box, Window, is_planar
from ._workspace import Workspace


@dataclass
class Samples:
    """The sampling points of one tile: floor of the location, fraction, and mask.

    All arrays have the tile's memory order, five axes. ``bounds`` holds every floor.
    """

    geometry: Geometry
    tile: Tile
    workspace: Workspace
    planar: bool
    row: Array
    column: Array
    fraction_y: Array
    fraction_x: Array
    mask: Array | None
    mask_is_finite: bool  # then it is a factor of the weights; True without a mask
    bounds: Box
    _aimed: Corners | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of weights, columns and sums."""
        return self.fraction_y.dtype

    @property
    def columns_shape(self) -> tuple[int, int, int]:
        """Shape of the tile's columns in its memory order."""
        taps, channels = self.geometry.taps, self.geometry.channels
        if self.planar:
            return channels, taps, self.tile.pixels
        return self.tile.pixels, taps, channels

    def corners(self, window: Window) -> Corners:
        """Return the samples aimed at a window; the whole image's are kept for the next stage."""
        if not window.whole:
            return Corners.of(self, window)
        if self._aimed is None:
            self._aimed = Corners.of(self, window)
        return self._aimed

    def view(self, array: Array, each: int) -> Array:
        """View this tile of an offset-like (each = 2) or mask-like (1) array in its own order."""
        return in_order(array, self.geometry, self.tile, each, self.planar)

    def outside(self) -> Array:
        """Tell which locations lie outside the open box (-1, H) x (-1, W)."""
        height, width = self.geometry.height, self.geometry.width
        inside_y = (self.row >= -1) & (self.row < height)
        return ~(inside_y & (self.column >= -1) & (self.column < width))


def in_order(array: Array, geometry: Geometry, tile: Tile, each: int, planar: bool) -> Array:
    """View a tile of an offset (each = 2) or mask (1) as (each, *the tile's memory order)."""
    part = array[tile.images, :, tile.rows, tile.columns]
    images, _, height, width = part.shape
    shape = (images, geometry.deformable_groups, geometry.taps, each, height, width)
    return part.reshape(shape).transpose((3, 1, 2, 0, 4, 5) if planar else (3, 0, 4, 5, 2, 1))


def locate(
    offset: Array,
    mask: Array | None,
    cut: Cut,
    tile: Tile,
    dtype: np.dtype[Any],
    workspace: Workspace,
) -> Samples:
    """Return where the tile's output pixels sample, py = y*stride - pad + i*dilation + dy."""
    geometry = cut.geometry
    planar = is_planar(geometry)
    # float32 can't count farther; beside such an axis the cost of float64 is small.
    exact = geometry.farthest < WINDOW_CELLS
    location = workspace.cast(
        in_order(offset, geometry, tile, 2, planar), dtype if exact else np.float64
    )
    cell = workspace.empty(location.shape, location.dtype)
    np.floor(location, out=cell)
    with np.errstate(invalid="ignore"):  # infinity less infinity, which _clip puts right
        location -= cell
    with workspace.scope():
        _add_grid(cell, geometry, tile, planar, workspace)
    (top, bottom), (left, right) = (
        _clip(cell[axis], location[axis], size, workspace)
        for axis, size in enumerate((geometry.height, geometry.width))
    )
    fraction = location if exact else workspace.cast(location, dtype)
    bounds = Box(top, bottom + 1, left, right + 1)
    ordered_mask, finite = None, True
    if mask is not None:
        ordered_mask = workspace.cast(in_order(mask, geometry, tile, 1, planar)[0], dtype)
        finite = all_finite(ordered_mask, workspace)
    return Samples(
        geometry, tile, workspace, planar, cell[0], cell[1], fraction[0], fraction[1],
        ordered_mask, finite, bounds,
    )  # fmt: skip


def _add_grid(
    cell: Array, geometry: Geometry, tile: Tile, planar: bool, workspace: Workspace
) -> None:
    """Add the undeformed positions y*stride - pad + i*dilation, and likewise along x."""
    kind, groups = cell.dtype, geometry.deformable_groups
    taps = np.arange(geometry.taps)
    tap_rows = (taps // geometry.kernel_width * geometry.dilation_y).astype(kind)
    tap_columns = (taps % geometry.kernel_width * geometry.dilation_x).astype(kind)
    rows = _positions(tile.rows, geometry.stride_y, geometry.pad_top, kind)
    columns = _positions(tile.columns, geometry.stride_x, geometry.pad_left, kind)
    if planar:
        grid = workspace.empty((geometry.taps, len(rows)), kind)
        cell[0] += np.add.outer(tap_rows, rows, out=grid)[:, None, :, None]
        grid = workspace.empty((geometry.taps, len(columns)), kind)
        cell[1] += np.add.outer(tap_columns, columns, out=grid)[:, None, None, :]
        return
    # Repeated along the row, so that the inner loops are long: 2 to 3 times faster.
    line = workspace.empty((len(columns), geometry.taps, groups), kind)
    line[...] = tap_rows[:, None]
    grid = workspace.empty((len(rows), *line.shape), kind)
    cell[0] += np.add.outer(rows, line, out=grid)
    line[...] = tap_columns[:, None]
    line += columns[:, None, None]
    cell[1] += line


def _positions(part: slice, stride: int, pad: int, kind: np.dtype[Any]) -> Array:
    return (np.arange(part.start, part.stop) * stride - pad).astype(kind)


def _clip(cell: Array, fraction: Array, size: int, workspace: Workspace) -> tuple[int, int]:
    """Clip cells to [-2, size], NaN and exactly -1 to -2 as well; return the least and the most."""
    low, high = float(cell.min()), float(cell.max())
    if not math.isfinite(low + high):
        np.fmax(cell, -BORDER, out=cell)
        np.copyto(fraction, 0, where=~np.isfinite(fraction))
        low = min(float(cell.min()), -BORDER)
        high = float(cell.max())
    if low < -BORDER or high > size:
        np.clip(cell, -BORDER, size, out=cell)
    if low <= -1:
        with workspace.scope():
            edge = np.equal(cell, -1, out=workspace.empty(cell.shape, bool))
            edge &= np.equal(fraction, 0, out=workspace.empty(cell.shape, bool))
            if edge.any():
                cell[edge] = low = -BORDER
    return int(min(max(low, -BORDER), size)), int(max(min(high, size), -BORDER))


def all_finite(array: Array, workspace: Workspace) -> bool:
    """Tell whether there is neither NaN nor infinity."""
    with workspace.scope():
        return bool(np.isfinite(array, out=workspace.empty(array.shape, bool)).all())
