"""The backward of sampling, tile by tile (CPU): from grad_columns to every gradient behind them.

Each worker adds what its tiles scatter into a zero-bordered window of its own, and the windows
are summed in a fixed order: no two threads write one cell, and no bit depends on timing. Images
too large to copy whole are gathered window by window instead, each window owning the pixels it
writes; only tiles whose samples reach a window take part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from ._arrays import Array
from ._columns_cpu import col2im, coord_grad, im2col
from ._cut import Cut, Parts, Tile, Tiles
from ._parallel import spread
from ._progress import Watch
from ._samples_cpu import Samples, locate
from ._windows_cpu import Box, Image, Window, owning_boxes, zero_window
from ._workspace import Sum, Workspace

# Tiles are remembered by what they reach in so many runs at most, however many tiles there are.
MOST_RUNS = 4096


@dataclass(frozen=True)
class Pullback:
    """Sources of one backward and the arrays it fills; None for what is not asked for."""

    cut: Cut
    dtype: np.dtype[Any]
    shared: Workspace
    workspaces: Sequence[Workspace]
    x: Array | None
    offset: Array
    mask: Array | None
    grad_columns_of: Callable[[Tile, Workspace], Array]
    add_grad_weight: Callable[[Tile, Array, Workspace, Sum], None] | None = None
    grad_weights: Sequence[Sum] = ()  # one a workspace; the first gets them all
    grad_x: Array | None = None
    grad_offset: Array | None = None
    grad_mask: Array | None = None
    direct: tuple[Array, Array] | None = None  # of the GPU

    def steps(self) -> int:
        """Return how many tiles a run goes through, and windows where it gathers grad_x."""
        cut, gathered = self.cut, 0
        if self.grad_x is not None and cut.window_cells is not None:
            gathered = len(owning_boxes(cut.geometry, cut.window_cells)) * cut.geometry.images
        return cut.tile_count + gathered

    def run(self, watch: Watch = iter) -> None:
        """Fill the gradients, that of the weight with its sum over all tiles."""
        cut = self.cut
        if self.add_grad_weight is None and self.grad_x is None and not self._wants_coordinates:
            return
        scatter = self.grad_x is not None and cut.holds_whole
        workers = list(zip_longest(self.workspaces, self.grad_weights))
        for images in cut.image_groups():
            tiles = cut.tiles(images)
            with ExitStack() as scopes:
                for workspace in (self.shared, *self.workspaces):
                    scopes.enter_context(workspace.scope())
                work = partial(
                    self._tiles,
                    images=images,
                    image=self._image(images),
                    scatter=scatter,
                    watch=watch,
                )
                windows = spread(work, tiles, workers)
                if scatter:
                    self._write_grad_x(images, [window for window in windows if window])
            if self.grad_x is not None and not cut.holds_whole:
                self._gather_grad_x(images, tiles, watch)
        for other in self.grad_weights[1:]:
            if not other.empty:
                self.grad_weights[0].array += other.array

    @property
    def _wants_coordinates(self) -> bool:
        return self.grad_offset is not None or self.grad_mask is not None

    def _image(self, images: slice) -> Image | None:
        if self.x is None or not (self.add_grad_weight or self._wants_coordinates):
            return None
        return Image(self.x, images, self.cut, self.dtype, self.shared)

    def _locate(self, tile: Tile, workspace: Workspace) -> Samples:
        return locate(self.offset, self.mask, self.cut, tile, self.dtype, workspace)

    def _zero_window(self, box: Box | None, images: slice, workspace: Workspace) -> Window:
        count = images.stop - images.start
        return zero_window(box, count, self.cut.geometry, self.dtype, workspace)

    def _tiles(
        self,
        tiles: Iterable[Tile],
        worker: tuple[Workspace, Sum | None],
        images: slice,
        image: Image | None,
        scatter: bool,
        watch: Watch,
    ) -> Window | None:
        """Work through some tiles; return the window they scattered into."""
        workspace, grad_weight = worker
        window = self._zero_window(None, images, workspace) if scatter else None
        for tile in watch(tiles):
            with workspace.scope():
                self._tile(tile, workspace, images, image, window, grad_weight)
        return window

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
            if self._wants_coordinates and image is not None:
                if self.add_grad_weight is not None:
                    columns = workspace.zeros(samples.columns_shape, samples.dtype)
                gradients = coord_grad(grad_columns, image, samples, columns)
                self._write_coordinates(samples, gradients)
            if window is not None:
                col2im(grad_columns, samples, window.of_images(tile.images, images.start))
        if self.add_grad_weight is None or grad_weight is None or image is None:
            return
        if columns is None:
            columns = im2col(image, samples)
        self.add_grad_weight(tile, columns, workspace, grad_weight)

    def _write_coordinates(self, samples: Samples, gradients: tuple[Array, ...]) -> None:
        by_y, by_x, by_mask = gradients
        if self.grad_offset is not None:
            into = samples.view(self.grad_offset, 2)
            np.copyto(into[0], by_y, casting="same_kind")
            np.copyto(into[1], by_x, casting="same_kind")
        if self.grad_mask is not None:
            np.copyto(samples.view(self.grad_mask, 1)[0], by_mask, casting="same_kind")

    def _write_grad_x(self, images: slice, windows: Sequence[Window]) -> None:
        """Write the sum of some windows to the pixels that they own."""
        assert self.grad_x is not None
        for other in windows[1:]:
            np.add(windows[0].values, other.values, out=windows[0].values)
        gathered, pixels = windows[0].owned(self.grad_x[images])
        np.copyto(pixels, gathered, casting="same_kind")

    def _gather_grad_x(self, images: slice, tiles: Tiles, watch: Watch) -> None:
        """Fill grad_x window by window, every window on one thread."""
        cut = self.cut
        assert cut.window_cells is not None
        runs = Parts(0, len(tiles), min(len(tiles), MOST_RUNS))
        reach = [
            box
            for part in spread(partial(self._reach, tiles), runs, self.workspaces)
            for box in part
        ]

        def gather(boxes: Iterable[Box], workspace: Workspace) -> None:
            for box in watch(boxes):
                with workspace.scope():
                    window = self._zero_window(box, images, workspace)
                    for run, bounds in zip(runs, reach, strict=True):
                        if box.meets(bounds):
                            self._scatter(
                                map(tiles.__getitem__, range(run.start, run.stop)),
                                window,
                                workspace,
                            )
                    self._write_grad_x(images, [window])

        spread(gather, owning_boxes(cut.geometry, cut.window_cells), self.workspaces)

    def _reach(self, tiles: Tiles, runs: Iterable[slice], workspace: Workspace) -> list[Box]:
        """Return for each run of tiles the box that holds what its samples read."""
        found = []
        for run in runs:
            boxes = []
            for index in range(run.start, run.stop):
                with workspace.scope():
                    boxes.append(self._locate(tiles[index], workspace).bounds)
            found.append(Box.around(boxes))
        return found

    def _scatter(self, tiles: Iterable[Tile], window: Window, workspace: Workspace) -> None:
        """Add the samples of some tiles that lie in a window to it."""
        for tile in tiles:
            with workspace.scope():
                samples = self._locate(tile, workspace)
                if window.box.meets(samples.bounds):
                    col2im(self.grad_columns_of(tile, workspace), samples, window)
