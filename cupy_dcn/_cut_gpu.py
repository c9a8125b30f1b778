"""Stage 3 on the GPU: chunks under a byte budget, and how wide an index has to be.

Temporary memory is one chunk of columns, used again by the resampled columns in the backward, and
the channels-last copies of the images being sampled (backward: and the sums of their gradients):

    chunk:  pixels * itemsize * (K*C_in + C_out); a backward that orders its sampling points:
            + pixels * 12 * K*DG + images * (H + 3) * (W + 1) * 4 * DG (deterministic: 16, not 12)
    copies: images * (H + 3) * (W + 1) * C_in * itemsize (backward: + the itemsize of the sums),
            C_in rounded up as _specialisation.copy_channels says; only what the gradients asked
            for need

Both stay under the budget, except that one image's copies may come on top of half of it: an image
cannot be sampled in part. Worked examples at 64 MiB, float32: x (2, 64, 56, 56) -> 64, 3x3: both
images in one chunk; x (8, 256, 64, 64) -> 256, 3x3: one image a chunk, 38 MB of columns beside a
copy of 4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ._arguments import GRADIENTS
from ._arrays import Array
from ._chunk_gpu import Chip, chunk_pixels
from ._cut import BlockSums, Cut
from ._geometry import Geometry
from ._specialisation import copy_channels
from ._workspace import ALIGNMENT

# The limits of a launch: blocks along y and z; the fewest output rows of a block (geometry.cuh).
MOST_BLOCKS = 2**16 - 1
LEAST_TILE_HEIGHT = 2
# Of sampling points that are ordered: a place of two numbers, and the order, twice where it is
# reproducible; and of cells: a count, and where each stretch of them ends.
POINT_BYTES, RANK_BYTES, CELL_BYTES = 12, 4, 4
STRETCH = 1024  # cells, as in order.cuh
MOST_POINTS = 2**20  # of an image and deformable group of a chunk, see rank_samples
# Of points and cells: kernels count those of a chunk in 32 bits, behind the counts of all cells the
# ends of their stretches, and a few beyond the last point.
MOST_NUMBERS = 2**31 - 2**22
# Blocks that sum the gradient of a weight without columns: several rounds of any device.
MOST_SUMS = 4096
LARGEST_DIMENSION = 2**31 - 1  # cuBLAS takes the sizes of matrices as int


def copy_cells(geometry: Geometry) -> int:
    """Return the cells of an image's channels-last copy, its border included."""
    return (geometry.height + 3) * (geometry.width + 1)


def cut_chunks(
    geometry: Geometry,
    out_channels: int,
    itemsize: int,
    sum_itemsize: int,
    workspace_bytes: int,
    backward: bool,
    chip: Chip | None = None,
    sorts: bool = False,
    direct: bool = False,
    sums: BlockSums | None = None,
    wanted: Collection[str] = GRADIENTS,
    deterministic: bool = False,
    sets: int = 1,
) -> Cut:
    """Cut a call into chunks of several images, or of one image's rows.

    As large as the budget lets them be, unless ``chip`` is known: see _chunk_gpu.py. A backward is
    for the gradients ``wanted``. Where it ``sorts`` its sampling points, see _order_gpu.py, there
    is room for their order; where a quarter of the budget is too little, they stay as they are,
    unless it is ``deterministic``. A call that is ``direct``, see _direct_gpu.py, has no columns:
    its chunks are whole images. In a backward, its blocks have ``sums``: as many blocks below each
    other as there is room for. There may be several ``sets`` of all temporaries.
    """
    require_int_sizes(geometry, 0 if direct else out_channels, itemsize)
    elements = geometry.taps * geometry.channels
    pixel_bytes = itemsize * (elements + out_channels)
    image_elements = copy_cells(geometry) * copy_channels(geometry, itemsize)
    copy_bytes = image_elements * itemsize
    if backward:
        copy_bytes *= not {"offset", "weight", "mask"}.isdisjoint(wanted)
        copy_bytes += image_elements * sum_itemsize * ("x" in wanted)
    sorts = sorts and order_fits(geometry, pixel_bytes, workspace_bytes)
    ordered, count_bytes = sorts or deterministic, 0  # an image's, of the points in each cell
    if ordered:
        point_bytes = POINT_BYTES + (RANK_BYTES if deterministic else 0)
        pixel_bytes += point_bytes * geometry.taps * geometry.deformable_groups
        cells = copy_cells(geometry) * geometry.deformable_groups
        count_bytes = CELL_BYTES * (cells + cells // STRETCH)
    least = sets * 2 * pixel_bytes
    if workspace_bytes < least and (backward or not direct):
        times = "twice" if sets == 1 else f"{2 * sets} times"
        raise ValueError(
            f"workspace_bytes is {workspace_bytes}, expected at least {least}: {times} one output"
            f" pixel's columns and values ({geometry.channels} channels * {geometry.taps} taps +"
            f" {out_channels}, of {itemsize} bytes{', and their order' if ordered else ''});"
            f" pass workspace_bytes={least} or more"
        )
    workspace_bytes //= sets
    if direct:
        pixel_bytes, chip = 0, None
    image_bytes = copy_bytes + count_bytes
    if sums is not None:
        image_bytes += sums.across * sums.nbytes
    together = workspace_bytes // (geometry.out_pixels * pixel_bytes + image_bytes)
    rows = LEAST_TILE_HEIGHT * MOST_BLOCKS
    # Of several images, too, the pixels may be one size of a product.
    held = min(together, geometry.images, MOST_BLOCKS, LARGEST_DIMENSION // geometry.out_pixels)
    if deterministic:
        held = min(held, countable_images(geometry))
    if held < 1 or geometry.out_height > rows:
        held = 1
    if held > 1:
        tile_pixels = held * geometry.out_pixels
    else:
        half = workspace_bytes // 2 - count_bytes
        available = max(workspace_bytes - image_bytes, half, pixel_bytes)
        tile_pixels = min(
            available // pixel_bytes if pixel_bytes else geometry.out_pixels,
            rows * geometry.out_width,
            geometry.out_pixels,
            LARGEST_DIMENSION,
        )
    if deterministic and geometry.out_pixels > (most := ranked_pixels(geometry)):
        tile_pixels = min(tile_pixels, most)
    if chip is not None and tile_pixels:
        tile_pixels = chunk_pixels(geometry, out_channels, itemsize, tile_pixels, backward, chip)
    weight_bytes = out_channels * geometry.group_channels * geometry.taps * sum_itemsize
    chunk_bytes = sets * tile_pixels * pixel_bytes
    if ordered:  # four arrays more
        chunk_bytes += held * count_bytes + 5 * ALIGNMENT
    if sums is not None:
        room = max(workspace_bytes - held * copy_bytes, 0) // (held * sums.across * sums.nbytes)
        enough = MOST_SUMS // (held * sums.across)
        sums = sums._replace(down=max(min(sums.down, room, enough), 1))
        chunk_bytes += held * sums.across * sums.down * sums.nbytes
        weight_bytes += geometry.deformable_groups * sums.nbytes * 8 // sum_itemsize
    elements = chunk_bytes // sum_itemsize if direct else tile_pixels * elements
    index = index_dtype((elements, held * image_elements), geometry)
    return Cut(
        geometry, held, None, tile_pixels, 1, sets * held * copy_bytes, chunk_bytes,
        weight_bytes if backward and "weight" in wanted else 0, index, direct, sums, sorts,
        deterministic,
    )  # fmt: skip


def order_fits(geometry: Geometry, pixel_bytes: int, workspace_bytes: int) -> bool:
    """Tell whether a quarter of the budget has room for the counts of cells, one for a pixel.

    Each chunk clears the counts and sums them up, which pays no longer where they are many: from
    about 2048 x 2048 pixels on at 64 MiB.
    """
    groups = geometry.deformable_groups
    pixel_bytes += POINT_BYTES * geometry.taps * groups
    count_bytes = CELL_BYTES * copy_cells(geometry) * groups
    return max(count_bytes, pixel_bytes) <= workspace_bytes // 4


def require_int_sizes(geometry: Geometry, out_channels: int, itemsize: int) -> None:
    """Demand that what cuBLAS takes as int, and the kernels count in int, fits; 0: no products."""
    sizes = {"2*deformable_groups*KH*KW": 2 * geometry.deformable_groups * geometry.taps}
    if out_channels:
        sizes["C_in/groups*KH*KW"] = geometry.group_channels * geometry.taps
        sizes["C_out/groups"] = out_channels // geometry.groups
    sizes["C_in, with zeros up to whole loads,"] = copy_channels(geometry, itemsize)
    for formula, size in sizes.items():
        if size > LARGEST_DIMENSION:
            raise ValueError(
                f"{formula} is {size}, expected at most 2^31 - 1 = {LARGEST_DIMENSION} on a GPU,"
                " as cuBLAS and the kernels count in 32 bits here; take a smaller kernel, or cut"
                " the layer into several with fewer channels"
            )


def countable_images(geometry: Geometry) -> int:
    """Return of how many images a chunk can have the points and cells that kernels number."""
    groups = geometry.deformable_groups
    cells, points = groups * copy_cells(geometry), groups * geometry.taps * geometry.out_pixels
    if cells > MOST_NUMBERS:
        raise ValueError(
            f"deterministic=True numbers an image's {cells} cells, deformable_groups * (H + 3) *"
            f" (W + 1), expected at most {MOST_NUMBERS}; deterministic=False has no such limit"
        )
    return max(MOST_NUMBERS // max(cells, points), 1)


def ranked_pixels(geometry: Geometry) -> int:
    """Return of how many output pixels a chunk of one image can rank the sampling points."""
    points = min(MOST_POINTS, MOST_NUMBERS // geometry.deformable_groups)
    return max(points // geometry.taps, 1)


def fit_index(cut: Cut, arrays: Iterable[Array]) -> Cut:
    """Return a cut whose kernels can count the elements that a call's arrays span, too."""
    if cut.index == np.int64:
        return cut
    index = index_dtype(map(extent, arrays), cut.geometry)
    return cut if index == cut.index else replace(cut, index=index)


def extent(array: Array) -> int:
    """Return the elements an array has, or spans in memory if that is more."""
    return _extent(array.shape, array.strides, array.itemsize)


@functools.lru_cache(maxsize=1024)  # asked for every array of every call
def _extent(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    steps = zip(shape, strides, strict=True)
    reach = sum(max(size - 1, 0) * abs(stride) for size, stride in steps)
    return max(math.prod(shape), int(reach) // itemsize + 1)


def index_dtype(sizes: Iterable[int], geometry: Geometry) -> np.dtype[Any]:
    """Return int32 where it counts the elements of every array and every location, else int64."""
    # A location within reach, 2^30 to either side, must not overflow either (bilinear.cuh).
    narrow = max(sizes, default=0) <= 2**31 - 1 and geometry.farthest < 2**30
    return np.dtype(np.int32 if narrow else np.int64)
