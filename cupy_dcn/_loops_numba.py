"""The compiled loops of the Numba twin; _columns_numba.py prepares what they take.

A sampling point is worked out once for all channels of its deformable group, a block of points at
a time, into a small table: the cell of corner 00 in a zero-bordered window (_windows_cpu.py), the
fraction of the location, and the mask. Cell 0 has zeros for corners: it serves points outside the
open box, and those whose cell this window doesn't hold. Loops over the channels follow, for one
point after the other: side by side in "rows" order, which the compiler makes vector instructions
of, a plane apart in "planes" order.

What the compiler wants: indices into arrays unsigned (signed ones are tested for counting from
the end); few arrays in a loop that writes, as each pair is tested for overlap; a table of one
array and constant size (6 times faster than four arrays). Sums may be contracted (a*b + c rounded
once), which keeps NaN and infinities; reordered they are in the dot products alone.

All of it is one file that imports no constants: a compiled function on disk is taken for stale
only when its own file has changed.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
from numba import from_dtype, njit, types

KEEPS_NAN = {"contract"}
REORDERS = {"contract", "reassoc"}

unsigned = np.uint64

# The table: lines of POINTS values, one array with constant distances, and not of a power of two
# lest all lines share one set of the cache.
POINTS = 1040
LOW_Y, LOW_X, FACTOR = unsigned(0), unsigned(POINTS), unsigned(2 * POINTS)
WEIGHT, VALUE, DOT = unsigned(3 * POINTS), unsigned(7 * POINTS), unsigned(11 * POINTS)  # 4 each
LINE = unsigned(POINTS)
GRAD = unsigned(15 * POINTS)
TABLE, GRID = 16 * POINTS, 2 * POINTS
LONGEST_SUM = unsigned(4096)  # see _matmul_cpu.py


class Loop:
    """A function compiled at its first call with a pair of dtypes, and kept on disk."""

    def __init__(self, function, *arguments):
        self._function, self._arguments = function, arguments
        self._compiled, self._lock = {}, threading.Lock()

    def __call__(self, location, data, *values):
        """Run on locations of one dtype and everything else of another.

        Threads that are the first to do so wait for a single compilation.
        """
        compiled = self._compiled.get((location, data))
        if compiled is None:
            with self._lock:
                compiled = self._compiled.get((location, data))
                if compiled is None:
                    compiled = self._compiled[location, data] = self._compile(location, data)
        compiled(*values)

    def _compile(self, location, data):
        where, what = from_dtype(location), from_dtype(data)
        kinds = {
            "locations": types.Array(where, 1, "C", readonly=True),
            "values": types.Array(what, 1, "C", readonly=True),
            "results": types.Array(what, 1, "C"),
            "cells": types.Array(types.int32, 1, "C"),
            "tile": types.UniTuple(types.int64, 13),
            "grid": types.Array(where, 1, "C"),
            "strides": types.UniTuple(types.int64, 2),
            "window": types.UniTuple(types.float64, 8),
            "flag": types.boolean,
            "box": types.Array(types.int64, 1, "C"),
        }
        signature = types.void(*(kinds[argument] for argument in self._arguments))
        compiled = functools.partial(njit, signature, nogil=True, fastmath=KEEPS_NAN)
        try:
            return compiled(cache=True)(self._function)
        except (RuntimeError, OSError):  # no folder to keep it in can be written
            return compiled()(self._function)


@njit(nogil=True)
def _place(grid, tile, first, count):
    """Write where the kernel's first tap lies, undeformed, at ``count`` pixels of an image."""
    width = tile[2]
    first_y, first_x, stride_y, stride_x = tile[7:11]
    real = grid.dtype.type
    y, x = divmod(first, width)
    for p in range(unsigned(count)):
        grid[p] = real(first_y + y * stride_y)
        grid[LINE + p] = real(first_x + x * stride_x)
        x += 1
        if x == width:
            y, x = y + 1, 0


@njit(nogil=True, fastmath=KEEPS_NAN)
def _locate(
    offset, offset_strides, mask, mask_strides, tile, window, grid, cells, table,
    n, g, tap, first, at, count,
):  # fmt: skip
    """Work out one tap of the pixels in the grid: points ``at`` and on of the table."""
    taps_y, taps_x = tile[3:5]
    dilation_y, dilation_x = tile[11:]
    i, j = divmod(tap, taps_x)
    channel = g * taps_y * taps_x + tap
    by = n * offset_strides[0] + 2 * channel * offset_strides[1] + first
    by_y, by_x = unsigned(by), unsigned(by + offset_strides[1])
    by_mask = unsigned(n * mask_strides[0] + channel * mask_strides[1] + first)
    at, count = unsigned(at), unsigned(count)
    real, value = offset.dtype.type, table.dtype.type
    tap_y, tap_x = real(i * dilation_y), real(j * dilation_x)
    low_y, high_y, low_x, high_x = (
        real(window[0]), real(window[1]), real(window[2]), real(window[3])
    )  # fmt: skip
    top, left, width = real(window[4]), real(window[5]), real(window[6])
    for p in range(count):
        dy, dx = offset[by_y + p], offset[by_x + p]
        floor_y, floor_x = np.floor(dy), np.floor(dx)  # whole numbers add up exactly
        row, column = (grid[p] + tap_y) + floor_y, (grid[LINE + p] + tap_x) + floor_x
        held = (row >= low_y) & (row < high_y) & (column >= low_x) & (column < high_x)  # no NaN
        held &= ((row >= 0) | (dy > floor_y)) & ((column >= 0) | (dx > floor_x))  # above -1
        cell = (row - top) * width + (column - left)
        cells[at + p] = np.int32(cell) if held else 0
        table[LOW_Y + at + p] = value(dy - floor_y) if held else value(0)
        table[LOW_X + at + p] = value(dx - floor_x) if held else value(0)
    if mask.size:
        for p in range(count):
            table[FACTOR + at + p] = mask[by_mask + p]
    else:
        for p in range(count):
            table[FACTOR + at + p] = value(1)


@njit(nogil=True)
def _weights(table, point):
    """Return the weights of the corners 00, 01, 10, 11, and the mask."""
    one = table.dtype.type(1)
    low_y, low_x = table[LOW_Y + point], table[LOW_X + point]
    top, left = one - low_y, one - low_x
    return top * left, top * low_x, low_y * left, low_y * low_x, table[FACTOR + point]


@njit(nogil=True, fastmath=KEEPS_NAN)
def _sample(values, corners, weights, columns, to, count):
    """Write a point's column: the mask times the bilinear mean, of ``count`` channels."""
    w00, w01, w10, w11, factor = weights
    a00, a01, a10, a11 = corners
    for c in range(count):
        above = w00 * values[a00 + c] + w01 * values[a01 + c]
        below = w10 * values[a10 + c] + w11 * values[a11 + c]
        columns[to + c] = factor * (above + below)


@njit(nogil=True, fastmath=REORDERS)
def _dots(values, corners, grad, to, count):
    """Return the dot products of a point's gradient with its four corners."""
    a00, a01, a10, a11 = corners
    zero = values.dtype.type(0)
    s00, s01, s10, s11 = zero, zero, zero, zero
    for c in range(count):
        g = grad[to + c]
        s00 += g * values[a00 + c]
        s01 += g * values[a01 + c]
        s10 += g * values[a10 + c]
        s11 += g * values[a11 + c]
    return s00, s01, s10, s11


@njit(nogil=True)
def _long_dots(values, corners, grad, to, count):
    """Do as ``_dots`` for many channels: in parts, added up in float64."""
    a00, a01, a10, a11 = corners
    t00, t01, t10, t11 = 0.0, 0.0, 0.0, 0.0
    for part in range((count + LONGEST_SUM - unsigned(1)) // LONGEST_SUM):
        first = unsigned(part) * LONGEST_SUM
        there = a00 + first, a01 + first, a10 + first, a11 + first
        many = min(LONGEST_SUM, count - first)
        s00, s01, s10, s11 = _dots(values, there, grad, to + first, many)
        t00, t01, t10, t11 = t00 + s00, t01 + s01, t10 + s10, t11 + s11
    real = values.dtype.type
    return real(t00), real(t01), real(t10), real(t11)


@njit(nogil=True, fastmath=KEEPS_NAN)
def _add(image, corners, weights, grad, to, count):
    """Add a point's gradient to its four corners, which never overlap.

    One loop and not one a corner: at 16 channels 9.5 against 17 ns.
    """
    w00, w01, w10, w11, factor = weights
    a00, a01, a10, a11 = corners
    for c in range(count):
        g = factor * grad[to + c]
        v00, v01 = image[a00 + c] + w00 * g, image[a01 + c] + w01 * g
        v10, v11 = image[a10 + c] + w10 * g, image[a11 + c] + w11 * g
        image[a00 + c], image[a01 + c], image[a10 + c], image[a11 + c] = v00, v01, v10, v11


@njit(nogil=True, fastmath=KEEPS_NAN)
def _differentiate(dots, table, point):
    """Return the derivatives by y, x and the mask from the four dot products."""
    s00, s01, s10, s11 = dots
    one = table.dtype.type(1)
    low_y, low_x, factor = table[LOW_Y + point], table[LOW_X + point], table[FACTOR + point]
    top, left = one - low_y, one - low_x
    by_y = factor * (left * (s10 - s00) + low_x * (s11 - s01))
    by_x = factor * (top * (s01 - s00) + low_y * (s11 - s10))
    return by_y, by_x, top * (left * s00 + low_x * s01) + low_y * (left * s10 + low_x * s11)


def _im2col_rows(
    offset, offset_strides, mask, mask_strides, tile, window, values, grid, cells, table,
    first_window, columns,
):  # fmt: skip
    """Write a tile's columns (pixels, K, C_in); after the first window only what others hold."""
    images, rows, width, taps_y, taps_x, groups, channels = tile[:7]
    taps, pixels, every = taps_y * taps_x, rows * width, groups * channels
    right, below, many = unsigned(every), unsigned(int(window[6]) * every), unsigned(channels)
    length = min(pixels, max(POINTS // taps, 1))
    together = min(taps, POINTS // length)  # taps in the table
    for n in range(images):
        for first in range(0, pixels, length):
            count = min(length, pixels - first)
            _place(grid, tile, first, count)
            for g in range(groups):
                base = n * int(window[7]) * every + g * channels
                for first_tap in range(0, taps, together):
                    last_tap = min(first_tap + together, taps)
                    for tap in range(first_tap, last_tap):
                        _locate(
                            offset, offset_strides, mask, mask_strides, tile, window, grid, cells,
                            table, n, g, tap, first, (tap - first_tap) * count, count,
                        )  # fmt: skip
                    for p in range(count):
                        for tap in range(first_tap, last_tap):
                            point = unsigned((tap - first_tap) * count + p)
                            if cells[point] == 0 and not first_window:
                                continue
                            at = unsigned(base + cells[point] * every)
                            corners = at, at + right, at + below, at + below + right
                            pixel = n * pixels + first + p
                            to = unsigned((pixel * taps + tap) * every + g * channels)
                            _sample(values, corners, _weights(table, point), columns, to, many)


def _pullback_rows(
    offset, offset_strides, mask, mask_strides, tile, window, values, grid, cells, table,
    first_window, grad, columns, image, grad_offset, grad_offset_strides, grad_mask,
    grad_mask_strides,
):  # fmt: skip
    """Work from the gradient of a tile's columns to all that lies behind it, in one pass.

    Adds what it scatters to ``image``, a window of the same cells as ``values``; writes the
    columns, for which ``grad`` may be given up, and the gradients of offset and mask. Arrays of
    size 0 are not wanted. After the first window it writes only what the others hold.
    """
    images, rows, width, taps_y, taps_x, groups, channels = tile[:7]
    taps, pixels, every = taps_y * taps_x, rows * width, groups * channels
    right, below, many = unsigned(every), unsigned(int(window[6]) * every), unsigned(channels)
    length = min(pixels, max(POINTS // taps, 1))
    together = min(taps, POINTS // length)
    zero = table.dtype.type(0)
    for n in range(images):
        for first in range(0, pixels, length):
            count = min(length, pixels - first)
            _place(grid, tile, first, count)
            for g in range(groups):
                base = n * int(window[7]) * every + g * channels
                for first_tap in range(0, taps, together):
                    last_tap = min(first_tap + together, taps)
                    for tap in range(first_tap, last_tap):
                        _locate(
                            offset, offset_strides, mask, mask_strides, tile, window, grid, cells,
                            table, n, g, tap, first, (tap - first_tap) * count, count,
                        )  # fmt: skip
                    for p in range(count):
                        for tap in range(first_tap, last_tap):
                            point = unsigned((tap - first_tap) * count + p)
                            held = cells[point] != 0
                            if not held and not first_window:
                                continue
                            at = unsigned(base + cells[point] * every)
                            corners = at, at + right, at + below, at + below + right
                            pixel = n * pixels + first + p
                            to = unsigned((pixel * taps + tap) * every + g * channels)
                            weights = _weights(table, point)
                            if grad_offset.size or grad_mask.size:
                                slopes = zero, zero, zero
                                if held:
                                    dots = (
                                        _dots(values, corners, grad, to, many)
                                        if many <= LONGEST_SUM
                                        else _long_dots(values, corners, grad, to, many)
                                    )
                                    slopes = _differentiate(dots, table, point)
                                channel = g * taps + tap
                                if grad_offset.size:
                                    by = n * grad_offset_strides[0] + first + p
                                    by += 2 * channel * grad_offset_strides[1]
                                    grad_offset[unsigned(by)] = slopes[0]
                                    grad_offset[unsigned(by + grad_offset_strides[1])] = slopes[1]
                                if grad_mask.size:
                                    by = n * grad_mask_strides[0] + first + p
                                    by += channel * grad_mask_strides[1]
                                    grad_mask[unsigned(by)] = slopes[2]
                            if image.size and held:
                                _add(image, corners, weights, grad, to, many)
                            if columns.size:
                                _sample(values, corners, weights, columns, to, many)


@njit(nogil=True)
def _any(cells, count):
    """Tell whether the window holds any of the first points."""
    found = np.int32(0)
    for p in range(count):
        found |= cells[p]
    return found != 0


@njit(nogil=True)
def _weigh(table, count):
    """Write the weights of the corners 00, 01, 10, 11 of the first points of the table."""
    one = table.dtype.type(1)
    for p in range(count):
        low_y, low_x = table[LOW_Y + p], table[LOW_X + p]
        top, left = one - low_y, one - low_x
        table[WEIGHT + p] = top * left
        table[WEIGHT + LINE + p] = top * low_x
        table[WEIGHT + LINE + LINE + p] = low_y * left
        table[WEIGHT + LINE + LINE + LINE + p] = low_y * low_x


@njit(nogil=True)
def _gather(values, at, right, below, cells, table, count):
    """Copy the corners of one plane to the table, so that sums over them are vectors."""
    for p in range(count):
        corner = at + unsigned(cells[p])
        table[VALUE + p] = values[corner]
        table[VALUE + LINE + p] = values[corner + right]
        table[VALUE + LINE + LINE + p] = values[corner + below]
        table[VALUE + LINE + LINE + LINE + p] = values[corner + below + right]


@njit(nogil=True, fastmath=KEEPS_NAN)
def _mean(table, p):
    above = table[WEIGHT + p] * table[VALUE + p]
    above += table[WEIGHT + LINE + p] * table[VALUE + LINE + p]
    below = table[WEIGHT + LINE + LINE + p] * table[VALUE + LINE + LINE + p]
    below += table[WEIGHT + LINE + LINE + LINE + p] * table[VALUE + LINE + LINE + LINE + p]
    return table[FACTOR + p] * (above + below)


@njit(nogil=True, fastmath=KEEPS_NAN)
def _write_means(table, cells, first, columns, to, count):
    if first:
        for p in range(count):
            columns[to + p] = _mean(table, p)
    else:
        for p in range(count):
            if cells[p]:
                columns[to + p] = _mean(table, p)


def _im2col_planes(
    offset, offset_strides, mask, mask_strides, tile, window, values, grid, cells, table,
    first_window, columns,
):  # fmt: skip
    """Write a tile's columns (C_in, K, pixels); after the first window only what others hold."""
    images, rows, width, taps_y, taps_x, groups, channels = tile[:7]
    taps, pixels = taps_y * taps_x, rows * width
    right, below, plane = unsigned(1), unsigned(window[6]), int(window[7])
    for n in range(images):
        for first in range(0, pixels, POINTS):
            count = min(POINTS, pixels - first)
            many = unsigned(count)
            _place(grid, tile, first, count)
            for g in range(groups):
                for tap in range(taps):
                    _locate(
                        offset, offset_strides, mask, mask_strides, tile, window, grid, cells,
                        table, n, g, tap, first, 0, count,
                    )  # fmt: skip
                    if not (first_window or _any(cells, many)):
                        continue
                    _weigh(table, many)
                    for c in range(g * channels, g * channels + channels):
                        at = unsigned((n * groups * channels + c) * plane)
                        to = unsigned(((c * taps + tap) * images + n) * pixels + first)
                        _gather(values, at, right, below, cells, table, many)
                        _write_means(table, cells, first_window, columns, to, many)


@njit(nogil=True)
def _clear_dots(table, count):
    for p in range(count):
        table[DOT + p] = 0
        table[DOT + LINE + p] = 0
        table[DOT + LINE + LINE + p] = 0
        table[DOT + LINE + LINE + LINE + p] = 0


@njit(nogil=True, fastmath=KEEPS_NAN)
def _add_dots(table, count):
    for p in range(count):
        g = table[GRAD + p]
        table[DOT + p] += g * table[VALUE + p]
        table[DOT + LINE + p] += g * table[VALUE + LINE + p]
        table[DOT + LINE + LINE + p] += g * table[VALUE + LINE + LINE + p]
        table[DOT + LINE + LINE + LINE + p] += g * table[VALUE + LINE + LINE + LINE + p]


@njit(nogil=True)
def _scatter(image, at, cells, table, line, count):
    """Add a line of the table to one corner of every point, the plane's own zeros aside."""
    for p in range(count):
        image[at + unsigned(cells[p])] += table[line + p]


@njit(nogil=True, fastmath=KEEPS_NAN)
def _scatter_plane(image, at, right, below, cells, table, count):
    """Add a plane of the gradient to the corners; the gathered values are used up."""
    for p in range(count):
        g = table[FACTOR + p] * table[GRAD + p] if cells[p] else table.dtype.type(0)
        table[VALUE + p] = table[WEIGHT + p] * g
        table[VALUE + LINE + p] = table[WEIGHT + LINE + p] * g
        table[VALUE + LINE + LINE + p] = table[WEIGHT + LINE + LINE + p] * g
        table[VALUE + LINE + LINE + LINE + p] = table[WEIGHT + LINE + LINE + LINE + p] * g
    _scatter(image, at, cells, table, VALUE, count)
    _scatter(image, at + right, cells, table, VALUE + LINE, count)
    _scatter(image, at + below, cells, table, VALUE + LINE + LINE, count)
    _scatter(image, at + below + right, cells, table, VALUE + LINE + LINE + LINE, count)


@njit(nogil=True, fastmath=KEEPS_NAN)
def _differentiate_line(table, cells, count):
    """Turn the first points' dot products into the derivatives by y, x and the mask."""
    zero = table.dtype.type(0)
    for p in range(count):
        dots = (
            table[DOT + p], table[DOT + LINE + p], table[DOT + LINE + LINE + p],
            table[DOT + LINE + LINE + LINE + p],
        )  # fmt: skip
        by_y, by_x, by_mask = _differentiate(dots, table, p)
        held = cells[p] != 0  # else 0, whatever the gradient of the columns
        table[DOT + p] = by_y if held else zero
        table[DOT + LINE + p] = by_x if held else zero
        table[DOT + LINE + LINE + p] = by_mask if held else zero


@njit(nogil=True)
def _write_line(table, line, cells, first, into, to, count):
    for p in range(count):
        if first or cells[p]:
            into[to + p] = table[line + p]


def _pullback_planes(
    offset, offset_strides, mask, mask_strides, tile, window, values, grid, cells, table,
    first_window, grad, columns, image, grad_offset, grad_offset_strides, grad_mask,
    grad_mask_strides,
):  # fmt: skip
    """Do as ``_pullback_rows``, plane by plane."""
    images, rows, width, taps_y, taps_x, groups, channels = tile[:7]
    taps, pixels = taps_y * taps_x, rows * width
    right, below, plane = unsigned(1), unsigned(window[6]), int(window[7])
    differentiates = grad_offset.size or grad_mask.size
    for n in range(images):
        for first in range(0, pixels, POINTS):
            count = min(POINTS, pixels - first)
            many = unsigned(count)
            _place(grid, tile, first, count)
            for g in range(groups):
                for tap in range(taps):
                    _locate(
                        offset, offset_strides, mask, mask_strides, tile, window, grid, cells,
                        table, n, g, tap, first, 0, count,
                    )  # fmt: skip
                    if not (first_window or _any(cells, many)):
                        continue
                    _weigh(table, many)
                    _clear_dots(table, many)
                    for c in range(g * channels, g * channels + channels):
                        at = unsigned((n * groups * channels + c) * plane)
                        to = unsigned(((c * taps + tap) * images + n) * pixels + first)
                        for p in range(many):  # columns may take the gradient's place
                            table[GRAD + p] = grad[to + p]
                        if differentiates or columns.size:
                            _gather(values, at, right, below, cells, table, many)
                        if differentiates:
                            _add_dots(table, many)
                        if columns.size:
                            _write_means(table, cells, first_window, columns, to, many)
                        if image.size:
                            _scatter_plane(image, at, right, below, cells, table, many)
                    if differentiates:
                        _differentiate_line(table, cells, many)
                    channel = g * taps + tap
                    if grad_offset.size:
                        by = n * grad_offset_strides[0] + 2 * channel * grad_offset_strides[1]
                        by_y, by_x = unsigned(by + first), unsigned(by + first)
                        by_x += unsigned(grad_offset_strides[1])
                        _write_line(table, DOT, cells, first_window, grad_offset, by_y, many)
                        _write_line(table, DOT + LINE, cells, first_window, grad_offset, by_x, many)
                    if grad_mask.size:
                        by = n * grad_mask_strides[0] + channel * grad_mask_strides[1] + first
                        line = DOT + LINE + LINE
                        _write_line(table, line, cells, first_window, grad_mask, unsigned(by), many)


def _bounds(offset, strides, tile, window, box):
    """Write top, bottom, left, right of the cells that a tile's points lie in; none: as it was."""
    images, rows, width, taps_y, taps_x, groups, _, first_y, first_x = tile[:9]
    stride_y, stride_x, dilation_y, dilation_x = tile[9:]
    real = offset.dtype.type
    low_y, high_y = real(window[0]), real(window[1])
    low_x, high_x = real(window[2]), real(window[3])
    far = np.int32(2**31 - 1)
    top, bottom, left, right = far, -far, far, -far
    for n in range(images):
        for channel in range(groups * taps_y * taps_x):
            i, j = divmod(channel % (taps_y * taps_x), taps_x)
            base_x = real(first_x + j * dilation_x)
            for y in range(rows):
                base_y = real(first_y + y * stride_y + i * dilation_y)
                by_y = unsigned(n * strides[0] + 2 * channel * strides[1] + y * width)
                by_x = by_y + unsigned(strides[1])
                for x in range(unsigned(width)):
                    py = base_y + np.floor(offset[by_y + x])
                    px = base_x + real(stride_x) * real(np.int32(x)) + np.floor(offset[by_x + x])
                    held = (py >= low_y) & (py < high_y) & (px >= low_x) & (px < high_x)
                    row, column = np.int32(py), np.int32(px)
                    top = min(top, row if held else far)
                    bottom = max(bottom, row if held else -far)
                    left = min(left, column if held else far)
                    right = max(right, column if held else -far)
    if top <= bottom:
        box[0], box[1], box[2], box[3] = top, bottom + 1, left, right + 1


_EVERY = (
    "locations", "strides", "values", "strides", "tile", "window", "values", "grid", "cells",
    "results", "flag",
)  # fmt: skip
im2col_rows, im2col_planes = (
    Loop(function, *_EVERY, "results") for function in (_im2col_rows, _im2col_planes)
)
pullback_rows, pullback_planes = (
    Loop(
        function, *_EVERY, "values", "results", "results", "results", "strides", "results",
        "strides",
    )
    for function in (_pullback_rows, _pullback_planes)
)  # fmt: skip
bounds = Loop(_bounds, "locations", "strides", "tile", "window", "box")
