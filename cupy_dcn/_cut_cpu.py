"""Stage 3 on the CPU: tiles under a byte budget, one a worker, and what they read from.

Half of the budget goes to the tiles in flight, one a worker, half to zero-bordered copies of the
images they read:

    tile:   pixels * itemsize * (words a sample * K*DG + copies of the columns * K*C_in + 2*C_out)
    image:  (H + 4) * (W + 4) * C_in * itemsize, once forward, 1 + workers times backward

Images too large for that are read through windows (crops around what a tile samples) instead.
Worked examples at the default of 64 MiB, one worker, float32, forward: x (2, 64, 56, 56), 3x3 ->
both images held, 2 tiles an image of 28 rows; (1, 1, 4096, 4096), 3x3 -> windows of at most 8.4
million cells, 1366 tiles of 2 or 3 rows.
"""

from __future__ import annotations

from ._cut import Cut
from ._geometry import Geometry

BORDER = 2  # zero rows and columns around an image, see _samples_cpu.py
# Upper bounds of the words that live at once for one sampling point: what a tile asks for beyond
# its share comes from NumPy, outside the promised block. Measured are 13 to 17 and 21 to 30;
# locations in float64, beside axes that float32 can't count, take up to 23.1 and 36.4.
FORWARD_WORDS, BACKWARD_WORDS = 24, 37
# What a worker needs besides, whatever the shapes: the block of gathered values, small arrays,
# alignment. Half of the documented 1 MiB; the rest is for what NumPy allocates on its own.
FIXED_BYTES = 2**19
# Larger tiles leave the caches, smaller ones pay the fixed 100 microseconds of a tile too often:
# x (2, 64, 56, 56) forward took 9.8, 8.0, 6.8, 6.0 ms at 112, 224, 448, 3136 pixels a tile, and
# (1, 1, 4096, 4096) on two threads 1.4 s at half of these samples, 0.7 s at these.
TILE_SAMPLES = 131_072
TILE_COLUMN_BYTES = 4 * 2**20
# The gradient of a larger weight is added to in parts. For 1024 channels to 1024, a 3x3 kernel of
# 36 MiB, that takes as long, 4 % more or less; parts of 0.5 MiB take 1.5 times as long.
PRODUCT_BYTES = 4 * 2**20
# float32 counts exactly up to 2^24; window cells are numbered in it with a factor to spare.
WINDOW_CELLS = 2**23
# Below this many column elements a second thread costs more than it brings.
PARALLEL_ELEMENTS = 2**18
# Of the workers, this share at least has to be left for images to be held whole in a backward.
FEWEST_WORKERS = 0.6
# A window holds its two zero rows and columns and at least one sampled cell with its neighbours.
SMALLEST_WINDOW = (BORDER + 2) ** 2


def cut_tiles(
    geometry: Geometry,
    out_channels: int,
    itemsize: int,
    workspace_bytes: int,
    workers: int,
    backward: bool,
    sets: int = 1,
) -> Cut:
    """Cut a call so that its temporaries stay under ``workspace_bytes``, so many sets of them."""
    samples = geometry.taps * geometry.deformable_groups
    elements = geometry.taps * geometry.channels
    if geometry.images * geometry.out_pixels * elements < PARALLEL_ELEMENTS:
        workers = 1
    copies = (2 if backward else 1) * (2 if geometry.groups > 1 else 1)
    words = BACKWARD_WORDS if backward else FORWARD_WORDS
    pixel_bytes = itemsize * (words * samples + copies * elements + 2 * out_channels)
    cell_bytes = itemsize * geometry.channels

    # The sum over tiles, and the product to be added to it, or a part of that.
    groups, depth = geometry.groups, geometry.group_channels * geometry.taps
    rows = rows_at_once(groups, out_channels // groups, depth, itemsize)
    weight_bytes = (out_channels + groups * rows) * depth * itemsize if backward else 0
    least = sets * 2 * max(pixel_bytes, cell_bytes * SMALLEST_WINDOW)
    if workspace_bytes < least:
        times = "twice" if sets == 1 else f"{2 * sets} times"
        raise ValueError(
            f"workspace_bytes is {workspace_bytes}, expected at least {least}: {times} the larger"
            f" of one output pixel's columns and one window of x ({geometry.channels} channels,"
            f" {geometry.taps} taps); pass workspace_bytes={least} or more"
        )
    workers = min(workers, workspace_bytes // least)
    half = workspace_bytes // sets // 2
    cells = (geometry.height + 2 * BORDER) * (geometry.width + 2 * BORDER)
    copy_bytes = cells * cell_bytes
    holding = workers_holding(half // copy_bytes, workers, backward) if cells <= WINDOW_CELLS else 0
    workers = holding or workers
    tile_pixels = min(
        half // workers // pixel_bytes,
        max(TILE_SAMPLES // samples, 1),
        max(TILE_COLUMN_BYTES // (itemsize * elements), 1),
        max(geometry.images * geometry.out_pixels, 1),
    )
    tile_bytes = tile_pixels * pixel_bytes
    if holding:
        copies = 1 + workers if backward else 1
        held = max(min(geometry.images, half // (copies * copy_bytes)), 1)
        shared = held * copy_bytes
        tile_bytes += shared if backward else 0
        sizes = sets * shared, sets * tile_bytes, weight_bytes
        return Cut(geometry, held, None, tile_pixels, workers, *sizes)
    window_cells = min(half // workers // cell_bytes, WINDOW_CELLS)
    tile_bytes += window_cells * cell_bytes
    return Cut(geometry, 1, window_cells, tile_pixels, workers, 0, sets * tile_bytes, weight_bytes)


def rows_at_once(groups: int, channels: int, depth: int, itemsize: int) -> int:
    """Return of how many of a group's output channels a product of the weight's gradient is."""
    return min(max(PRODUCT_BYTES // (groups * depth * itemsize), 1), channels)


def workers_holding(copies: int, workers: int, backward: bool) -> int:
    """Return how many workers are best where so many copies of an image fit, 0 for windows.

    Forward all share one. Backward each has one more to add to: fewer workers may do better than
    windows, which cost 1.4 to 1.9 times the work at 8 workers, 1.7 to 2.3 times at 16.
    """
    if not backward:
        return workers if copies else 0
    fitting = min(copies - 1, workers)
    return fitting if fitting >= FEWEST_WORKERS * workers else 0
