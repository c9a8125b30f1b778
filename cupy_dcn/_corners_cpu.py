"""A tile's samples in one window: which cells their corners are, and with what weights (CPU).

The corners 00, 01, 10, 11 of a sample are a first cell and three at constant distances from it.
As a sparse matrix, a row per sample and its four weights at those cells, they are im2col itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import Array
from ._sparse_cpu import FourPerRow
from ._windows_cpu import Window
from ._workspace import Workspace

if TYPE_CHECKING:
    from ._samples_cpu import Samples


@dataclass
class Corners:
    """A tile's samples aimed at one window: the flat index of corner 00 and the four weights.

    In rows order an index counts rows of C_in/DG channels, in planes order values from the first
    plane of the sample's deformable group; ``steps`` leads on to the corners 00, 01, 10, 11.
    """

    fraction_y: Array
    fraction_x: Array
    factor: Array | None  # the mask, where it belongs in the weights
    workspace: Workspace
    index: Array
    lowest: int
    span: int
    steps: tuple[int, int, int, int]

    @classmethod
    def of(cls, samples: Samples, window: Window) -> Corners:
        """Number the cells of ``window`` and find each sample's."""
        height, width = window.size
        workspace = samples.workspace
        index = workspace.empty(samples.row.shape, index_dtype(window.values.size))
        with workspace.scope():
            cell = workspace.empty(samples.row.shape, samples.row.dtype)
            np.subtract(samples.row, window.top, out=cell)
            cell *= width
            cell += samples.column
            cell -= window.box.left
            if not window.holds(samples.bounds):
                cell *= window.has(samples.row, samples.column, workspace)
            np.copyto(index, cell, casting="unsafe")
        groups, channels = samples.geometry.deformable_groups, samples.geometry.channels
        step, pitch = (1, width) if samples.planar else (groups, width * groups)
        image = np.arange(window.values.shape[0], dtype=index.dtype)
        group = np.arange(groups, dtype=index.dtype)
        if samples.planar:
            image *= channels * height * width
            group *= channels // groups * height * width
            index += image[:, None, None] + group[:, None, None, None, None]
        else:
            image *= height * pitch
            if groups > 1:
                index *= groups
                line = index.reshape(-1, index[0, 0].size)
                line += np.tile(group, line.shape[1] // groups)
            if len(image) > 1:
                index += image[:, None, None, None, None]
        index = index.reshape(-1)
        lowest = int(index.min())
        index -= lowest
        span = int(index.max()) + pitch + step + 1
        factor = samples.mask.reshape(-1) if samples.mask is not None else None
        return cls(
            samples.fraction_y.reshape(-1), samples.fraction_x.reshape(-1),
            factor if samples.mask_is_finite else None, workspace,
            index, lowest, span, (0, step, pitch, pitch + step),
        )  # fmt: skip

    def write_weights(self, corners: Iterable[Array]) -> None:
        """Write the weights of corners 00, 01, 10, 11 into four arrays, mask included."""
        low_y, low_x = self.fraction_y, self.fraction_x
        with self.workspace.scope():
            top, left, bottom = self.workspace.empty((3, low_y.size), low_y.dtype)
            np.subtract(1, low_x, out=left)
            if self.factor is None:
                np.copyto(bottom, low_y)
                np.subtract(1, low_y, out=top)
            else:
                np.multiply(low_y, self.factor, out=bottom)
                np.subtract(self.factor, bottom, out=top)
            pairs = ((top, left), (top, low_x), (bottom, left), (bottom, low_x))
            for (vertical, horizontal), weight in zip(pairs, corners, strict=True):
                np.multiply(vertical, horizontal, out=weight)

    @cached_property
    def weights(self) -> Array:
        """The weights (4, samples)."""
        weights = self.workspace.empty((4, self.index.size), self.fraction_y.dtype)
        self.write_weights(weights)
        return weights

    @cached_property
    def gather(self) -> Array:
        """The index as ``take`` wants it."""
        return self.workspace.cast(self.index, np.intp)

    @cached_property
    def matrix(self) -> FourPerRow:
        """The sparse matrix S (samples, span)."""
        workspace, count = self.workspace, self.index.size
        kind = index_dtype(max(4 * count, self.span))
        starts = workspace.empty(count + 1, kind)
        starts.fill(4)
        starts[0] = 0
        np.add.accumulate(starts, out=starts)  # 0, 4, 8, ...: arange would be memory of its own
        indices = workspace.empty((count, 4), kind)
        data = workspace.empty((count, 4), self.fraction_y.dtype)
        for corner, step in enumerate(self.steps):
            np.add(self.index, step, out=indices[:, corner], casting="same_kind")
        self.write_weights(data.T)
        return FourPerRow(starts, indices, data, self.span)


def index_dtype(count: int) -> type[np.signedinteger[Any]]:
    """Return the narrowest dtype that numbers ``count`` things: half the memory to read."""
    return np.int32 if count < 2**31 else np.int64
