"""Sampling along a direction, and what pulls it back (CPU); formulas in derivatives.py.

Sampling is a sparse matrix S whose entries are bilinear weights times masks (_columns_cpu.py). When
offsets and masks move, its entries move and no other does: the tangent is a matrix S' of the same
cells, so it needs no loops of its own, only other weights (``TangentCorners``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ._arrays import Array
from ._columns_cpu import bilinear_gradient, by_sample, col2im, gather
from ._corners_cpu import Corners
from ._cut import Cut, Tile
from ._pullback_cpu import Pullback
from ._samples_cpu import Samples, all_finite, in_order
from ._tangents import NO_TANGENTS, Tangents
from ._windows_cpu import Image, Window
from ._workspace import Sum, Workspace


class Moves(NamedTuple):
    """How a tile's samples move: by dy and dx, and their masks, each (samples,); None for 0."""

    y: Array | None
    x: Array | None
    mask: Array | None


NOTHING_MOVES = Moves(None, None, None)


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


@dataclass
class TangentCorners(Corners):
    """Corners whose weights are the tangents of the bilinear weights times the mask."""

    moves: Moves = NOTHING_MOVES

    def write_weights(self, corners: Iterable[Array]) -> None:
        """Write the tangents of the weights of corners 00, 01, 10, 11 into four arrays."""
        low_y, low_x, moves = self.fraction_y, self.fraction_x, self.moves
        with self.workspace.scope():
            left, top, bottom, by_top, by_bottom, product = self.workspace.empty(
                (6, low_y.size), low_y.dtype
            )
            # The mask times the vertical weights, then the tangents of these two.
            mask = 1 if self.factor is None else self.factor
            np.multiply(low_y, mask, out=bottom)
            np.subtract(mask, bottom, out=top)
            by_bottom.fill(0)
            if moves.y is not None:
                np.multiply(moves.y, mask, out=by_bottom)
            np.negative(by_bottom, out=by_top)
            if moves.mask is not None:
                np.multiply(moves.mask, low_y, out=product)
                by_bottom += product
                by_top += moves.mask
                by_top -= product
            np.subtract(1, low_x, out=left)
            rows = (by_top, top), (by_bottom, bottom)
            for corner, weight in enumerate(corners):
                by_row, row = rows[corner // 2]
                np.multiply(by_row, low_x if corner % 2 else left, out=weight)
                if moves.x is not None:
                    np.multiply(row, moves.x, out=product)
                    (np.add if corner % 2 else np.subtract)(weight, product, out=weight)


@dataclass
class TangentSamples(Samples):
    """Samples whose matrix is the tangent S' of S: the functions of _columns_cpu.py take them."""

    moves: Moves = NOTHING_MOVES

    def corners(self, window: Window) -> Corners:
        """Return the samples aimed at a window; the whole image's are kept for the next stage."""
        if window.whole and isinstance(self._aimed, TangentCorners):
            return self._aimed
        aimed = TangentCorners(**_fields(super().corners(window)), moves=self.moves)
        if window.whole:
            self._aimed = aimed
        return aimed


def _fields(corners: Corners) -> dict[str, Any]:
    """Return what a dataclass was made with: not what it has cached since."""
    return {name: getattr(corners, name) for name in Corners.__dataclass_fields__}


def tangent_samples(samples: Samples, tangents: Tangents) -> tuple[Samples, TangentSamples | None]:
    """Return a tile's samples as S and as S', None where neither offset nor mask moves.

    Outside the open box the entries of both are finite: the zeros sampled there stay zeros.
    """
    workspace = samples.workspace

    def ordered(array: Array | None, each: int) -> Array | None:
        if array is None:
            return None
        view = in_order(array, samples.geometry, samples.tile, each, samples.planar)
        copy = workspace.cast(view, samples.dtype)
        if not all_finite(copy, workspace):
            copy[:, samples.outside()] = 0
        return copy.reshape(each, -1)

    if not samples.mask_is_finite:
        assert samples.mask is not None
        mask = workspace.cast(samples.mask, samples.dtype)
        mask[samples.outside()] = 0
        samples = replace(samples, mask=mask, mask_is_finite=True, _aimed=None)
    if tangents.offset is None and tangents.mask is None:
        return samples, None
    by_offset, by_mask = ordered(tangents.offset, 2), ordered(tangents.mask, 1)
    by_y, by_x = (None, None) if by_offset is None else by_offset
    moves = Moves(by_y, by_x, None if by_mask is None else by_mask[0])
    fields = {name: getattr(samples, name) for name in Samples.__dataclass_fields__}
    return samples, TangentSamples(**fields, moves=moves)


def columns_tangent(images: Images, samples: Samples, tangents: Tangents) -> Array:
    """Return the tangent of a tile's columns, S . x's tangent + S' . x."""
    plain, moved = tangent_samples(samples, tangents)
    columns = samples.workspace.zeros(samples.columns_shape, samples.dtype)
    _add_tangent(images, plain, moved, columns)
    return columns


def _add_tangent(
    images: Images, plain: Samples, moved: TangentSamples | None, columns: Array
) -> None:
    if images.tangent is not None:
        gather(images.tangent, plain, columns, None, None)
    if moved is not None and images.x is not None:
        gather(images.x, moved, columns, None, None)


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
        self,
        tile: Tile,
        workspace: Workspace,
        images: slice,
        image: Images,
        window: Window | None,
        grad_weight: Sum | None,
    ) -> None:
        """Add one tile to ``window`` and ``grad_weight``, write its coordinate gradients."""
        samples, moved = tangent_samples(self._locate(tile, workspace), self.tangents)
        if self.add_grad_weight is not None and grad_weight is not None:
            columns = workspace.zeros(samples.columns_shape, samples.dtype)
            _add_tangent(image, samples, moved, columns)
            with workspace.scope():
                self.add_grad_weight(tile, columns, workspace, grad_weight)
        if not self._wants_coordinates and window is None:
            return
        grads, turned = self._grad_columns(tile, workspace)
        if self._wants_coordinates:
            self._write_coordinates(samples, _gradients(image, samples, moved, grads, turned))
        if window is not None:
            into = window.of_images(tile.images, images.start)
            _scatter_both(samples, moved, grads, turned, into)

    def _grad_columns(self, tile: Tile, workspace: Workspace) -> tuple[Array | None, Array | None]:
        """Return the weight's transpose, and its tangent's, times grad_output."""
        turned = self.turned_columns_of
        return (
            self.grad_columns_of(tile, workspace) if self.tangents.moves_columns else None,
            None if turned is None else turned(tile, workspace),
        )

    def _scatter(self, tiles: Iterable[Tile], window: Window, workspace: Workspace) -> None:
        """Add the samples of some tiles that lie in a window to it."""
        for tile in tiles:
            with workspace.scope():
                samples = self._locate(tile, workspace)
                if window.box.meets(samples.bounds):
                    samples, moved = tangent_samples(samples, self.tangents)
                    grads, turned = self._grad_columns(tile, workspace)
                    _scatter_both(samples, moved, grads, turned, window)


def _scatter_both(
    samples: Samples,
    moved: TangentSamples | None,
    grads: Array | None,
    turned: Array | None,
    window: Window,
) -> None:
    """Add S'^T . grads + S^T . turned to a window."""
    if moved is not None and grads is not None:
        col2im(grads, moved, window)
    if turned is not None:
        col2im(turned, samples, window)


def _gradients(
    images: Images,
    samples: Samples,
    moved: TangentSamples | None,
    grads: Array | None,
    turned: Array | None,
) -> tuple[Array, ...]:
    """Return the gradients of dy, dx and the mask, in the order of the samples."""
    workspace = samples.workspace
    dots = workspace.zeros((4, samples.row.size), samples.dtype)
    for image, columns in ((images.tangent, grads), (images.x, turned)):
        if image is not None and columns is not None:
            gather(image, samples, None, columns, dots)
    by_y, by_x, by_mask = bilinear_gradient(dots, samples)
    if samples.mask is not None:
        by_y *= samples.mask.reshape(-1)
        by_x *= samples.mask.reshape(-1)
    if moved is not None and grads is not None and images.x is not None:
        dots = workspace.zeros((4, samples.row.size), samples.dtype)
        gather(images.x, samples, None, grads, dots)
        _add_second(moved.moves, samples, dots, by_y, by_x, by_mask)
    return by_sample(samples, by_y, by_x, by_mask)


def _add_second(
    moves: Moves, samples: Samples, dots: Array, by_y: Array, by_x: Array, by_mask: Array
) -> None:
    """Add the derivatives along ``moves`` of the gradients that ``dots`` make."""
    product, twist = samples.workspace.empty((2, by_y.size), samples.dtype)
    np.subtract(dots[0], dots[1], out=twist)  # by dy and dx both: the others are 0
    twist -= dots[2]
    twist += dots[3]
    if samples.mask is not None:
        twist *= samples.mask.reshape(-1)
    slope_y, slope_x, _ = bilinear_gradient(dots, samples)
    for move, slope, across in ((moves.y, slope_y, by_x), (moves.x, slope_x, by_y)):
        if move is not None:
            by_mask += np.multiply(move, slope, out=product)
            across += np.multiply(move, twist, out=product)
    if moves.mask is not None:
        by_y += np.multiply(moves.mask, slope_y, out=product)
        by_x += np.multiply(moves.mask, slope_x, out=product)
