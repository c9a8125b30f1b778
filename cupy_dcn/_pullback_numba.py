"""The backward of sampling by compiled loops: one pass over a tile's grad_columns for all of it.

Tiles, threads and windows are those of _pullback_cpu.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np

from ._arrays import Array
from ._columns_numba import Flat, Samples, im2col, locate, pull_back
from ._cut import Tile
from ._pullback_cpu import Pullback as OnNumPy
from ._windows_cpu import Image, Window
from ._workspace import Sum, Workspace


class Pullback(OnNumPy):
    """Sources of one backward and the arrays it fills; None for what is not asked for."""

    def _locate(self, tile: Tile, workspace: Workspace) -> Samples:  # type: ignore[override]
        return locate(self.offset, self.mask, self.cut, tile, self.dtype, workspace)

    def _tile(
        self,
        tile: Tile,
        workspace: Workspace,
        images: slice,
        image: Image | None,
        window: Window | None,
        grad_weight: Sum | None,
    ) -> None:
        """Add one tile to ``window`` and ``grad_weight``, write its coordinate gradients."""
        samples = self._locate(tile, workspace)
        columns = None
        if self._wants_coordinates or window is not None:
            grad_columns = self.grad_columns_of(tile, workspace)
            into = None if window is None else window.of_images(tile.images, images.start)
            columns = self._through_windows(samples, grad_columns, image, into)
        if self.add_grad_weight is not None and image is not None and grad_weight is not None:
            if columns is None:
                columns = im2col(image, samples)
            self.add_grad_weight(tile, columns, workspace, grad_weight)

    def _through_windows(
        self, samples: Samples, grad_columns: Array, image: Image | None, into: Window | None
    ) -> Array | None:
        """Fill the coordinate gradients of a tile and ``into``; return its columns if wanted."""
        workspace, tile = samples.workspace, samples.tile
        if image is None:
            assert into is not None
            pull_back(samples, grad_columns, into, image=into.values)
            return None
        columns = None
        if self.add_grad_weight is not None:  # in place where no second window needs what was there
            columns = grad_columns
            if not self.cut.holds_whole:
                columns = workspace.empty(samples.columns_shape, samples.dtype)
        with ExitStack() as results:
            by_offset, by_mask = (
                None if grad is None else results.enter_context(_written(grad, samples))
                for grad in (self.grad_offset, self.grad_mask)
            )
            first = True
            for window in image.windows(tile.images, samples.bounds, workspace):
                pull_back(
                    samples, grad_columns, window, first=first, values=window.values,
                    image=None if into is None else into.values, columns=columns,
                    grad_offset=by_offset, grad_mask=by_mask,
                )  # fmt: skip
                first = False
        return columns

    def _scatter(self, tiles: Iterable[Tile], window: Window, workspace: Workspace) -> None:
        """Add the samples of some tiles that lie in a window to it."""
        for tile in tiles:
            with workspace.scope():
                samples = self._locate(tile, workspace)
                if window.box.meets(samples.bounds):
                    grad_columns = self.grad_columns_of(tile, workspace)
                    pull_back(samples, grad_columns, window, image=window.values)


@contextmanager
def _written(array: Array, samples: Samples) -> Iterator[Flat]:
    """Lend a tile of an array to be written, by way of a copy if its dtype is another."""
    tile = samples.tile
    place = Flat.in_place(array, tile, samples.dtype)
    if place is not None:
        yield place
        return
    part = array[tile.images, :, tile.rows, tile.columns]
    copy = samples.workspace.empty(part.shape, samples.dtype)
    yield Flat.whole(copy)
    np.copyto(part, copy, casting="same_kind")
