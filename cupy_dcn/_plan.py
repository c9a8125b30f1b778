"""Stage 3: how one call is cut into tiles, so that temporary memory stays under a budget.

A tile is a rectangle of output pixels of one image, or all pixels of several small images; its
columns are the largest temporary there is. Half of the budget goes to the tiles in flight, one a
worker, half to zero-bordered copies of the images they read:

    tile:   pixels * itemsize * (words a sample * K*DG + copies of the columns * K*C_in + 2*C_out)
    image:  (H + 4) * (W + 4) * C_in * itemsize, once forward, 1 + workers times backward

Images too large for that are read through windows (crops around what a tile samples) instead.
The plan is a pure function of integers. Worked examples at the default of 64 MiB, one worker,
float32, forward: x (2, 64, 56, 56), 3x3 -> both images held, 2 tiles an image of 28 rows;
(1, 1, 4096, 4096), 3x3 -> windows of at most 8.4 million cells, 1366 tiles of 2 or 3 rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ._geometry import Geometry
from ._workspace import ALIGNMENT, Workspace

BORDER = 2  # zero rows and columns around an image, see _samples_cpu.py
# Upper bounds of the words that live at once for one sampling point: what a tile asks for beyond
# its share comes from NumPy, outside the promised block.
FORWARD_WORDS, BACKWARD_WORDS = 22, 36
# What a worker needs besides, whatever the shapes: the block of gathered values, small arrays,
# alignment. Half of the documented 1 MiB; the rest is for what NumPy allocates on its own.
FIXED_BYTES = 2**19
# Larger tiles leave the caches, smaller ones pay the fixed 100 microseconds of a tile too often:
# x (2, 64, 56, 56) forward took 9.8, 8.0, 6.8, 6.0 ms at 112, 224, 448, 3136 pixels a tile, and
# (1, 1, 4096, 4096) on two threads 1.4 s at half of these samples, 0.7 s at these.
TILE_SAMPLES = 131_072
TILE_COLUMN_BYTES = 4 * 2**20
# float32 counts exactly up to 2^24; window cells are numbered in it with a factor to spare.
WINDOW_CELLS = 2**23
# Below this many column elements a second thread costs more than it brings.
PARALLEL_ELEMENTS = 2**18


class Tile(NamedTuple):
    """Output pixels worked on at once: several whole images, or rows, or a part of one row."""

    images: slice
    rows: slice
    columns: slice

    @property
    def pixels(self) -> int:
        """How many output pixels the tile has, over all of its images."""
        return self.image_count * self.image_pixels

    @property
    def image_count(self) -> int:
        """How many images the tile spans."""
        return int(self.images.stop - self.images.start)

    @property
    def image_pixels(self) -> int:
        """How many output pixels of one image the tile has."""
        rows, columns = self.rows, self.columns
        return int(rows.stop - rows.start) * int(columns.stop - columns.start)


@dataclass(frozen=True)
class Plan:
    """The cut of one call: images held together, windows or whole copies, pixels a tile."""

    geometry: Geometry
    images_held: int
    window_cells: int | None  # None: images are copied whole; else the most cells of a window
    tile_pixels: int
    workers: int
    image_bytes: int  # shared by the workers
    worker_bytes: int  # each
    index: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))  # of kernels

    @property
    def holds_whole(self) -> bool:
        """Tell whether images are copied whole."""
        return self.window_cells is None

    def allocate(self) -> tuple[Workspace, list[Workspace]]:
        """Allocate the temporary memory: what the workers share, and a part for each."""
        each = self.worker_bytes + FIXED_BYTES
        whole = Workspace.of(self.image_bytes + ALIGNMENT + self.workers * each)
        return whole, [whole.part(each - ALIGNMENT) for _ in range(self.workers)]

    @classmethod
    def of(
        cls,
        geometry: Geometry,
        out_channels: int,
        itemsize: int,
        workspace_bytes: int,
        workers: int,
        backward: bool,
    ) -> Plan:
        """Cut a call so that its temporaries stay under ``workspace_bytes``."""
        samples = geometry.taps * geometry.deformable_groups
        elements = geometry.taps * geometry.channels
        if geometry.images * geometry.out_pixels * elements < PARALLEL_ELEMENTS:
            workers = 1
        copies = (2 if backward else 1) * (2 if geometry.groups > 1 else 1)
        words = BACKWARD_WORDS if backward else FORWARD_WORDS
        pixel_bytes = itemsize * (words * samples + copies * elements + 2 * out_channels)
        cell_bytes = itemsize * geometry.channels

        least = 2 * max(pixel_bytes, cell_bytes * SMALLEST_WINDOW)
        if workspace_bytes < least:
            raise ValueError(
                f"workspace_bytes is {workspace_bytes}, expected at least {least}: twice the larger"
                f" of one output pixel's columns and one window of x ({geometry.channels} channels,"
                f" {geometry.taps} taps); pass workspace_bytes={least} or more"
            )
        workers = min(workers, workspace_bytes // least)
        half = workspace_bytes // 2
        tile_pixels = min(
            half // workers // pixel_bytes,
            max(TILE_SAMPLES // samples, 1),
            max(TILE_COLUMN_BYTES // (itemsize * elements), 1),
            max(geometry.images * geometry.out_pixels, 1),
        )
        tile_bytes = tile_pixels * pixel_bytes

        cells = (geometry.height + 2 * BORDER) * (geometry.width + 2 * BORDER)
        copy_bytes = cells * cell_bytes
        copies = 1 + workers if backward else 1
        if copies * copy_bytes <= half and cells <= WINDOW_CELLS:
            held = max(min(geometry.images, half // (copies * copy_bytes)), 1)
            shared = held * copy_bytes
            tile_bytes += shared if backward else 0
            return cls(geometry, held, None, tile_pixels, workers, shared, tile_bytes)
        window_cells = min(half // workers // cell_bytes, WINDOW_CELLS)
        tile_bytes += window_cells * cell_bytes
        return cls(geometry, 1, window_cells, tile_pixels, workers, 0, tile_bytes)

    def image_groups(self) -> Parts:
        """Return the images held at once, group by group."""
        return Parts.of(0, self.geometry.images, self.images_held)

    def tiles(self, images: slice) -> Tiles:
        """Return the tiles of some images, about equal in size, a multiple of the workers."""
        height, width = self.geometry.out_height, self.geometry.out_width
        together = self.tile_pixels // (height * width)
        count = images.stop - images.start
        if together > 1 and count >= self.workers:
            together = min(together, -(-count // self.workers))
            whole = Parts(0, height, 1), Parts(0, width, 1)
            return Tiles(Parts.of(images.start, images.stop, together), *whole)
        at_most = max(self.tile_pixels // width, 1)
        if count % self.workers:  # as many tiles for every worker
            rounds = -(-height // at_most)
            at_most = -(-height // (-(-rounds // self.workers) * self.workers))
        return Tiles(
            Parts(images.start, images.stop, count),
            Parts.of(0, height, at_most),
            Parts.of(0, width, min(self.tile_pixels, width)),
        )


# A window holds its two zero rows and columns and at least one sampled cell with its neighbours.
SMALLEST_WINDOW = (BORDER + 2) ** 2


@dataclass(frozen=True)
class Parts:
    """A range cut into parts that are equal to within one; computed, not stored."""

    start: int
    stop: int
    count: int

    @classmethod
    def of(cls, start: int, stop: int, at_most: int) -> Parts:
        """Cut into the fewest parts of at most ``at_most``."""
        return cls(start, stop, -(-(stop - start) // at_most))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[slice]:
        return map(self.__getitem__, range(self.count))

    def __getitem__(self, part: int) -> slice:
        length = self.stop - self.start
        return slice(
            self.start + length * part // self.count,
            self.start + length * (part + 1) // self.count,
        )


@dataclass(frozen=True)
class Tiles:
    """Every combination of images, rows and columns; computed, not stored."""

    images: Parts
    rows: Parts
    columns: Parts

    def __len__(self) -> int:
        return len(self.images) * len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Tile]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Tile:
        index, column = divmod(index, len(self.columns))
        image, row = divmod(index, len(self.rows))
        return Tile(self.images[image], self.rows[row], self.columns[column])
