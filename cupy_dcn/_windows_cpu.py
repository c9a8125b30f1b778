"""Zero-bordered copies of images, whole or cropped, in the memory order of the samples (CPU).

The border rule without a comparison per corner: an image is copied with two rows and columns of
zeros on every side, so that corners outside the image are read like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._cut import Cut
from ._cut_cpu import BORDER
from ._geometry import Geometry
from ._workspace import Workspace

# Rows against planes, ms forward / backward at x (1, C, 256, 256) -> 8, 5x5: C = 1 23 / 44 against
# 13 / 35, C = 3 32 / 95 against 24 / 59, C = 4 28 / 80 against 30 / 69, C = 6 33 / 109 against
# 43 / 97, C = 8 50 / 135 against 93 / 168.
PLANAR_CHANNELS = 4


def is_planar(geometry: Geometry) -> bool:
    """Tell which of the two memory orders suits the channels of a deformable group."""
    return geometry.deformable_channels <= PLANAR_CHANNELS


class Box(NamedTuple):
    """A range of cells [top, bottom) x [left, right), in pixels of x."""

    top: int
    bottom: int
    left: int
    right: int

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box:
        """Return the smallest box that holds all of some boxes."""
        tops, bottoms, lefts, rights = zip(*boxes, strict=True)
        return cls(min(tops), max(bottoms), min(lefts), max(rights))

    def meets(self, other: Box) -> bool:
        """Tell whether the two share a cell."""
        in_rows = self.top < other.bottom and other.top < self.bottom
        return in_rows and self.left < other.right and other.left < self.right


@dataclass(frozen=True)
class Window:
    """A crop of zero-bordered images around ``box``: the cells a sample's floor may lie in.

    ``values`` is (images, height, width, C_in), or (images, C_in, height, width) in planes. Its
    first two rows are zeros always, so cell 0 serves the samples outside the box.
    """

    box: Box
    values: Array
    planar: bool
    whole: bool  # all of the images, for as long as their tiles are worked on

    @property
    def top(self) -> int:
        """The row of x, perhaps negative, that the window's row 0 stands for."""
        return self.box.top - (0 if self.box.top == -BORDER else BORDER)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in cells, the border and the last samples' neighbours included."""
        return window_size(self.box)

    def holds(self, bounds: Box) -> bool:
        """Tell whether every sample within ``bounds`` has its corners here."""
        return (
            self.box.top <= bounds.top
            and bounds.bottom <= self.box.bottom
            and self.box.left <= bounds.left
            and bounds.right <= self.box.right
        )

    def of_images(self, images: slice, first: int) -> Window:
        """Return the part of some images, this window's own starting with image ``first``."""
        part = self.values[images.start - first : images.stop - first]
        return Window(self.box, part, self.planar, self.whole)

    def has(self, row: Array, column: Array, workspace: Workspace) -> Array:
        """Tell which floors lie in the box."""
        inside: Array
        inside, also = workspace.empty((2, *row.shape), bool)
        np.greater_equal(row, self.box.top, out=inside)
        inside &= np.less(row, self.box.bottom, out=also)
        inside &= np.greater_equal(column, self.box.left, out=also)
        inside &= np.less(column, self.box.right, out=also)
        return inside

    def shared(self, images: Array) -> tuple[Array, Array]:
        """View the same pixels in this window and in images (N, C_in, H, W)."""
        return self._both(images, self.box.top, self.box.left)

    def owned(self, images: Array) -> tuple[Array, Array]:
        """View the pixels all of whose samples have their floor in the box, likewise."""
        return self._both(images, self.box.top + 1, self.box.left + 1, 0)

    def _both(self, images: Array, top: int, left: int, neighbour: int = 1) -> tuple[Array, Array]:
        height, width = images.shape[2:]
        top, left = max(top, 0), max(left, 0)
        bottom = min(self.box.bottom + neighbour, height)
        right = min(self.box.right + neighbour, width)
        planes = self.values if self.planar else self.values.transpose(0, 3, 1, 2)
        here = planes[
            :, :, top - self.top : bottom - self.top, left - self.box.left : right - self.box.left
        ]
        return here, images[:, :, top:bottom, left:right]


def window_size(box: Box) -> tuple[int, int]:
    """Return the cells a window around ``box`` has: two zero rows, the box, one neighbour."""
    border = 0 if box.top == -BORDER else BORDER
    return border + box.bottom - box.top + 1, box.right - box.left + 1


def zero_window(
    box: Box | None, images: int, geometry: Geometry, dtype: np.dtype[Any], workspace: Workspace
) -> Window:
    """Return a window of zeros around ``box``, around everything for None."""
    whole = box is None
    if box is None:
        box = Box(-BORDER, geometry.height + 1, -BORDER, geometry.width + 1)
    planar, channels = is_planar(geometry), geometry.channels
    height, width = window_size(box)
    shape = (channels, height, width) if planar else (height, width, channels)
    return Window(box, workspace.zeros((images, *shape), dtype), planar, whole)


def boxes(bounds: Box, cells: int) -> list[Box]:
    """Cut a box into parts whose windows have at most ``cells`` cells, whole rows if they fit."""
    parts: list[Box] = []
    width = min(bounds.right - bounds.left, max(cells // (BORDER + 2) - 1, 1))
    height = max(cells // (width + 1) - BORDER - 1, 1)
    for top in range(bounds.top, bounds.bottom, height):
        for left in range(bounds.left, bounds.right, width):
            bottom, right = min(top + height, bounds.bottom), min(left + width, bounds.right)
            parts.append(Box(top, bottom, left, right))
    return parts


def owning_boxes(geometry: Geometry, cells: int) -> list[Box]:
    """Return boxes whose windows own every pixel of the image once."""
    inner = boxes(Box(0, geometry.height, 0, geometry.width), max(cells // 2, 1))
    return [Box(box.top - 1, box.bottom, box.left - 1, box.right) for box in inner]


class Image:
    """The images in flight, zero-bordered: one whole copy kept, or crops made as tiles ask."""

    def __init__(
        self,
        x: Array,
        images: slice,
        cut: Cut,
        dtype: np.dtype[Any],
        workspace: Workspace,
    ) -> None:
        self._x, self._first = x[images], images.start
        self._geometry, self._dtype = cut.geometry, dtype
        self._window_cells = cut.window_cells
        if cut.holds_whole:
            self._whole = self._crop(None, self._x, workspace)

    def _crop(self, box: Box | None, x: Array, workspace: Workspace) -> Window:
        window = zero_window(box, len(x), self._geometry, self._dtype, workspace)
        here, there = window.shared(x)
        np.copyto(here, there, casting="unsafe")
        return window

    def windows(self, images: slice, bounds: Box, workspace: Workspace) -> Iterator[Window]:
        """Yield windows of some images that together hold every floor within ``bounds``."""
        if self._window_cells is None:
            yield self._whole.of_images(images, self._first)
            return
        x = self._x[images.start - self._first : images.stop - self._first]
        for box in boxes(bounds, self._window_cells):
            with workspace.scope():
                yield self._crop(box, x, workspace)
