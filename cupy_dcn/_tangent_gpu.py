"""Sampling along a direction, and what pulls it back (GPU): launches; formulas in derivatives.py.

Two kernels: deform_im2col_tangent and deform_double_backward. Both take directions where they
lie, by strides of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._columns_gpu import GradImage, Image, Samples, empty_columns, locate, of_tile
from ._cut import Cut, Tile
from ._launch_gpu import NO_STRIDES, element_strides
from ._pullback_gpu import Pullback
from ._specialisation import Wants
from ._tangents import NO_TANGENTS, Tangents
from ._workspace import Workspace


class Images(NamedTuple):
    """Images in flight and those of their tangent, None where they are not needed."""

    x: Image | None
    tangent: Image | None

    @classmethod
    def of(
        cls,
        x: Array | None,
        tangent: Array | None,
        images: slice,
        cut: Cut,
        dtype: np.dtype[Any],
        workspace: Workspace,
    ) -> Images:
        """Copy some images of both."""
        return cls(
            *(
                None if array is None else Image(array, images, cut, dtype, workspace)
                for array in (x, tangent)
            )
        )


def columns_tangent(images: Images, samples: Samples, tangents: Tangents) -> Array:
    """Return the tangent of a tile's columns."""
    columns = empty_columns(samples.cut.geometry, samples.tile, samples.dtype, samples.workspace)
    arrays = _sources(images, samples, tangents)
    strides = direction_strides(tangents, samples.cut.index)
    samples.launch("deform_im2col_tangent", columns, strides, *arrays, columns)
    return columns


def _sources(images: Images, samples: Samples, tangents: Tangents) -> tuple[Array | None, ...]:
    """Return a tile of x, its tangent, offset, mask, and the tangents of these two."""
    tile = samples.tile
    values = (None if image is None else image.of_images(tile.images) for image in images)
    moves = (None if a is None else of_tile(a, tile) for a in (tangents.offset, tangents.mask))
    return *values, samples.offset, samples.mask, *moves


def direction_strides(tangents: Tangents, index: np.dtype[Any]) -> Array:
    """Return struct DirectionStrides of tangent.cuh."""
    fields = [
        stride
        for array in (tangents.offset, tangents.mask)
        for stride in (NO_STRIDES if array is None else element_strides(array))
    ]
    return np.array(fields, index).view(np.dtype((np.void, len(fields) * index.itemsize)))


@dataclass(frozen=True)
class DoublePullback(Pullback):
    """What pulls the gradients of a backward back: see derivatives.py.

    ``grad_columns_of`` is the weight's transpose times grad_output; ``turned_columns_of`` that of
    the weight's tangent, None where it is 0. ``add_grad_weight`` gets the columns' tangent.
    """

    tangents: Tangents = NO_TANGENTS
    turned_columns_of: Callable[[Tile, Workspace], Array] | None = None

    def _image(self, images: slice) -> Images:  # type: ignore[override]
        """Copy images of x and of its tangent, as far as they are needed."""
        if not (self.add_grad_weight or self._wants_coordinates):
            return Images(None, None)
        both = self.x, self.tangents.x
        return Images.of(*both, images, self.cut, self.dtype, self.shared)

    def _tile(  # type: ignore[override]
        self, tile: Tile, image: Images, grad_image: GradImage | None
    ) -> None:
        (workspace,) = self.workspaces
        samples = locate(self.offset, self.mask, self.cut, tile, self.dtype, workspace)
        if self.add_grad_weight is not None:
            with workspace.scope():
                columns = columns_tangent(image, samples, self.tangents)
                self.add_grad_weight(tile, columns, workspace, self.grad_weights[0])
        if grad_image is not None or self._wants_coordinates:
            with workspace.scope():
                self._pull(tile, samples, image, grad_image)

    def _pull(
        self, tile: Tile, samples: Samples, images: Images, grad_image: GradImage | None
    ) -> None:
        """Add a tile to ``grad_image`` and write its coordinate gradients."""
        tangents, workspace = self.tangents, samples.workspace
        grads = self.grad_columns_of(tile, workspace) if tangents.moves_columns else None
        turned = self.turned_columns_of and self.turned_columns_of(tile, workspace)
        wanted = self.grad_offset, self.grad_mask
        gradients = [None if grad is None else of_tile(grad, tile) for grad in wanted]
        sums = None if grad_image is None else grad_image.of_images(tile.images)
        columns = grads if grads is not None else turned
        if columns is None:
            for gradient in gradients:
                if gradient is not None:
                    gradient[...] = 0
            return
        arrays = _sources(images, samples, tangents)
        strides = direction_strides(tangents, self.cut.index)
        samples.launch(
            "deform_double_backward", columns, strides, grads, turned, *arrays, sums, *gradients,
            wants=Wants(sums is not None, *(grad is not None for grad in gradients)),
        )  # fmt: skip
