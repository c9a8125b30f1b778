"""The backward of sampling, chunk by chunk (GPU): from grad_columns to every gradient behind them.

grad_x is summed by atomic additions in the channels-last layout of the image's copy, and written
to NCHW once for all chunks of an image; where its bits are to be the same every time, without
atomics, of which the other gradients need none. The columns for the weight's gradient are sampled
again rather than kept: they take the place of grad_columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Array
from ._columns_gpu import GradImage, Image, backward, col2im, coord_grad, im2col, locate
from ._cut import Cut, Tile
from ._direct_backward_gpu import pull_back_directly
from ._progress import Watch
from ._workspace import Sum, Workspace


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
    direct: tuple[Array, Array] | None = None  # weight and grad_output, if there are no columns

    def steps(self) -> int:
        """Return how many chunks a run queues."""
        return self.cut.tile_count

    def run(self, watch: Watch = iter) -> None:
        """Fill the gradients, that of the weight with its sum over all chunks."""
        if self.add_grad_weight is None and self.grad_x is None and not self._wants_coordinates:
            return
        for images in self.cut.image_groups():
            with self.shared.scope():
                image, grad_image = self._image(images), self._grad_image(images)
                for tile in watch(self.cut.tiles(images)):
                    self._tile(tile, image, grad_image)
                if grad_image is not None and self.grad_x is not None:
                    grad_image.write(self.grad_x)

    @property
    def _wants_coordinates(self) -> bool:
        return self.grad_offset is not None or self.grad_mask is not None

    def _image(self, images: slice) -> Image | None:
        if self.x is None or not (self.add_grad_weight or self._wants_coordinates):
            return None
        return Image(self.x, images, self.cut, self.dtype, self.shared)

    def _grad_image(self, images: slice) -> GradImage | None:
        if self.grad_x is None:
            return None
        return GradImage(images, self.cut, self.dtype, self.shared)

    def _tile(self, tile: Tile, image: Image | None, grad_image: GradImage | None) -> None:
        (workspace,) = self.workspaces
        samples = locate(self.offset, self.mask, self.cut, tile, self.dtype, workspace)
        if self.direct is not None:
            total = None if self.add_grad_weight is None else self.grad_weights[0]
            gradients = self.grad_offset, self.grad_mask
            pull_back_directly(*self.direct, image, samples, grad_image, *gradients, total)
            return
        resample = self.add_grad_weight is not None
        with workspace.scope():
            if image is not None and grad_image is None and not self._wants_coordinates:
                columns = im2col(image, samples)  # for the weight alone
            else:
                columns = self.grad_columns_of(tile, workspace)
                gradients = self.grad_offset, self.grad_mask
                if resample or (grad_image is not None and self._wants_coordinates):
                    backward(columns, image, samples, grad_image, *gradients, resample)
                elif grad_image is not None:
                    col2im(columns, samples, grad_image)
                elif image is not None:
                    coord_grad(columns, image, samples, *gradients)
            if self.add_grad_weight is not None:
                self.add_grad_weight(tile, columns, workspace, self.grad_weights[0])
