"""Sampling points ordered by the cell they start from (GPU): when that pays, and the launches.

The backward adds every column element to four corners, in memory that all threads share. Points of
one cell that follow one another are added together first, and read their corners once. The rule:
the order pays where

- a cell has four points or more on average, K * OH * OW >= 4 * H * W: a 3x3 kernel of stride 1 has
  nine, of stride 2 two; a 1x1 kernel never has any to join;
- a point has 32 channels or more; 16 where four additions are not one instruction, before compute
  capability 9.0 and for double: the order costs about 75 instructions and 24 bytes a point, and
  three quarters of four additions and four reads a channel are saved;
- no group cuts through a deformable group, and indices have 32 bits;
- the counts of an image's cells fit into a quarter of the workspace (_cut_gpu.py).

A deterministic backward always orders them, to sum each cell's in the order of their numbers.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array, cupy_of
from ._cut import Cut, Tile
from ._cut_gpu import copy_cells
from ._geometry import Geometry
from ._kernels import kernel
from ._launch_gpu import element_strides, order_launch
from ._workspace import Workspace

LEAST_CHANNELS = 16
THREADS = 256  # of start_cells and order_samples, in sample_order.cu
CELLS = 4 * THREADS  # of a block of start_cells, STRETCH in order.cuh


def reduces_vectors(cupy: ModuleType) -> bool:
    """Tell whether the current device adds four floats by one instruction."""
    return int(cupy.cuda.device.get_compute_capability()) >= 90


def may_pay(geometry: Geometry) -> bool:
    """Tell whether the order can pay for a layer, whatever the images and the device."""
    return (
        geometry.taps >= 4
        and geometry.deformable_channels >= LEAST_CHANNELS
        and geometry.group_channels % geometry.deformable_channels == 0
    )


def pays(geometry: Geometry, dtype: np.dtype[Any], vectors: bool) -> bool:
    """Tell whether a backward is to order its sampling points; ``vectors``: see reduces_vectors."""
    points = geometry.taps * geometry.out_pixels
    least = 2 * LEAST_CHANNELS if vectors and dtype != np.float64 else LEAST_CHANNELS
    return (
        may_pay(geometry)
        and geometry.deformable_channels >= least
        and points >= 4 * geometry.height * geometry.width
    )


class Order(NamedTuple):
    """The order of sampling points."""

    starts: Array  # where each cell's begin, and what else a Span of order.cuh reads
    samples: Array  # the numbers of the points


def sample_order(
    cut: Cut, offset: Array, tile: Tile, dtype: np.dtype[Any], workspace: Workspace
) -> Order:
    """Return the numbers of a tile's sampling points, those of one cell side by side.

    ``offset`` is the tile's. The number is ((image * DG + group) * K + tap) * pixels + pixel. In
    a deterministic backward those of one cell are in the order of their numbers.
    """
    geometry, cupy = cut.geometry, cupy_of(offset)
    planes = tile.image_count * geometry.deformable_groups
    points, cells = planes * geometry.taps * tile.image_pixels, planes * copy_cells(geometry)
    found = workspace.empty(points, np.int32)
    counts = workspace.zeros(cells + 1 + -(-cells // CELLS), np.int32)
    rows, columns = tile.rows, tile.columns
    rectangle = (
        rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start
    )  # fmt: skip
    launch = order_launch(
        geometry, cut.index, dtype, rectangle, tile.image_count, offset.dtype,
        element_strides(offset),
    )  # fmt: skip

    def run(name: str, size: int, each: int, *arguments: Any) -> None:
        blocks = -(-size // each)
        kernel(cupy, name, launch.macros)((blocks,), (THREADS,), (np.int32(size), *arguments))

    with workspace.scope():
        places = workspace.empty((points, 2), np.int32)
        order = workspace.empty(points, np.int32) if cut.deterministic else found
        launch.run(cupy, "count_samples", (offset, counts, places))
        run("start_cells", cells, CELLS, counts)
        run("order_samples", points, THREADS, counts, places, order)
        if cut.deterministic:
            run("rank_samples", points, THREADS, np.int32(cells), counts, places, order, found)
    return Order(counts, found)
