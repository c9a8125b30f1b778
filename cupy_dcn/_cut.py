"""Stage 3: how one call is cut into tiles, so that temporary memory stays under a budget.

A tile is a rectangle of output pixels of one image, or all pixels of several small images; its
columns are the largest temporary there is. _cut_cpu.py and _cut_gpu.py choose the sizes, pure
functions of integers; what the twins then walk over is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ._arrays import require_bytes
from ._geometry import Geometry
from ._workspace import ALIGNMENT, Workspace

DEFAULT_WORKSPACE = 64 * 2**20  # bytes


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


class BlockSums(NamedTuple):
    """What the blocks of a backward without columns sum of the weight's gradient."""

    across: int  # blocks beside each other at an image, of all deformable groups
    down: int  # below each other
    nbytes: int  # of a block's sums


@dataclass(frozen=True)
class Cut:
    """The cut of one call: images held together, windows or whole copies, pixels a tile."""

    geometry: Geometry
    images_held: int
    window_cells: int | None  # None: images are copied whole; else the most cells of a window
    tile_pixels: int
    workers: int
    image_bytes: int  # shared by the workers
    worker_bytes: int  # each
    weight_bytes: int = 0  # each worker's for the gradient of the weight, beyond the budget
    index: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.int64))  # of kernels
    direct: bool = False  # whether it needs no columns
    block_sums: BlockSums | None = None  # of a backward without columns
    sorts: bool = False  # whether a backward orders its sampling points by cell
    deterministic: bool = False  # whether a backward sums in a fixed order on a GPU, too

    @property
    def holds_whole(self) -> bool:
        """Tell whether images are copied whole."""
        return self.window_cells is None

    @property
    def sorts_here(self) -> bool:
        """Tell whether kernels order the sampling points: they count them in 32 bits."""
        return self.sorts and self.index == np.int32

    @property
    def tile_count(self) -> int:
        """How many tiles there are."""
        return sum(len(self.tiles(images)) for images in self.image_groups())

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


class Memory(NamedTuple):
    """Temporary memory of a cut: what its workers share, and a part for each."""

    shared: Workspace
    workspaces: Sequence[Workspace]
    nbytes: int  # of the whole block


def allocate_block(cuts: Sequence[Cut], library: Any, fixed_bytes: int) -> list[Memory]:
    """Allocate a block for cuts of which one at a time is at work, and part it for each.

    ``fixed_bytes`` is what a worker needs whatever the shapes.
    """
    # A part begins at a multiple of ALIGNMENT, and so do the few arrays handed out from it.
    spare = 4 * ALIGNMENT
    sizes = [
        (
            cut.image_bytes + spare,
            *[cut.worker_bytes + cut.weight_bytes + fixed_bytes + spare] * cut.workers,
        )
        for cut in cuts
    ]
    nbytes = max(map(sum, sizes))
    require_bytes("temporary memory", (nbytes,), 1)
    block = library.empty(nbytes, np.uint8)
    memory = []
    for each in sizes:
        whole = Workspace(block, library)
        shared, *workspaces = map(whole.part, (size - ALIGNMENT for size in each))
        memory.append(Memory(shared, workspaces, block.nbytes))
    return memory
