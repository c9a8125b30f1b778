"""The cut: a pure function of integers, whose parts must fit together whatever the numbers."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_dcn._corners_cpu import index_dtype
from cupy_dcn._cut import Parts, allocate_block
from cupy_dcn._cut_cpu import SMALLEST_WINDOW, cut_tiles
from cupy_dcn._geometry import Geometry
from cupy_dcn._windows_cpu import Box, boxes, owning_boxes, window_size


def geometry_of(images, channels, size, kernel=3, groups=1):
    return Geometry(images, channels, *size, kernel, kernel, *size, 1, 1, 1, 1, 1, 1, groups, 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 12))
def test_parts_cover_a_range_evenly(start, length, at_most):
    parts = list(Parts.of(start, start + length, at_most))
    assert [i for part in parts for i in range(part.start, part.stop)] == [
        *range(start, start + length)
    ]
    sizes = [part.stop - part.start for part in parts]
    assert not sizes or (max(sizes) <= at_most and max(sizes) - min(sizes) <= 1)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 5),
    st.sampled_from([1, 3, 8, 64]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(1, 4),
    st.integers(100_000, 3_000_000),
    st.booleans(),
)
def test_tiles_cover_every_output_pixel_once(images, channels, size, workers, budget, backward):
    cut = cut_tiles(geometry_of(images, channels, size), 8, 4, budget, workers, backward)
    seen = np.zeros((images, *size), int)
    for group in cut.image_groups():
        for tile in iter_tiles(cut, group):
            assert tile.pixels <= cut.tile_pixels
            assert group.start <= tile.images.start
            assert tile.images.stop <= group.stop
            seen[tile.images, tile.rows, tile.columns] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_what_is_allocated_stays_under_the_budget(workers, backward):
    sizes = [(1, 1), (7, 300), (56, 56), (512, 512), (4096, 4096), (1, 10**7)]
    for images, channels, size in itertools.product((1, 1000), (1, 3, 64, 512), sizes):
        for budget in (2**22, 2**26, 2**30):
            cut = cut_tiles(geometry_of(images, channels, size), 64, 4, budget, workers, backward)
            assert 1 <= cut.workers <= workers
            assert cut.image_bytes + cut.workers * cut.worker_bytes <= budget


def test_many_workers_leave_small_images_whole():
    # 4.1 MiB a copy, seven of which fit half of the budget: one is read, the others added to.
    geometry = geometry_of(1, 16, (256, 256))
    assert (260 * 260 * 16 * 4 * 7) // 2**25 == 0 < (260 * 260 * 16 * 4 * 8) // 2**25
    cut = {n: cut_tiles(geometry, 16, 4, 2**26, n, True) for n in (1, 2, 6, 7, 8, 10, 11, 64)}
    assert {n: each.workers for n, each in cut.items() if each.holds_whole} == {
        1: 1, 2: 2, 6: 6, 7: 6, 8: 6, 10: 6
    }  # fmt: skip
    # Where so few workers would be left, windows keep all of them.
    assert {n: each.workers for n, each in cut.items() if not each.holds_whole} == {11: 11, 64: 64}
    # Forward they all read the same copy.
    assert cut_tiles(geometry, 16, 4, 2**26, 64, False).holds_whole
    # An image of which one copy fits, and not another to add to, is left to windows.
    large = geometry_of(1, 16, (600, 600))
    assert not cut_tiles(large, 16, 4, 2**26, 1, True).holds_whole
    assert cut_tiles(large, 16, 4, 2**26, 1, False).holds_whole


def test_a_block_has_room_for_each_of_its_cuts():
    cuts = [cut_tiles(geometry_of(2, 8, (20, 20)), 8, 4, 2**20, 2, each) for each in (False, True)]
    for memory, cut in zip(allocate_block(cuts, np, 1000), cuts, strict=True):
        own = [memory.shared.empty(cut.image_bytes, np.uint8)]
        each = cut.worker_bytes + cut.weight_bytes + 1000
        own += [workspace.empty(each, np.uint8) for workspace in memory.workspaces]
        assert len(own) == cut.workers + 1
        addresses = sorted((array.ctypes.data, array.nbytes) for array in own)
        assert addresses[-1][0] + addresses[-1][1] - addresses[0][0] <= memory.nbytes
        assert all(array.base is not None for array in own)  # parts of the block, none made apart


def test_indices_are_wide_where_they_have_to_be():
    assert index_dtype(2**31 - 1) is np.int32
    assert index_dtype(2**31) is np.int64


def test_worked_examples_of_the_docstring():
    cut = cut_tiles(geometry_of(2, 64, (56, 56)), 64, 4, 2**26, 1, False)
    assert cut.holds_whole
    assert cut.images_held == 2
    assert [t.rows.stop - t.rows.start for t in iter_tiles(cut, slice(0, 2))] == [28] * 4
    cut = cut_tiles(geometry_of(1, 1, (4096, 4096)), 1, 4, 2**26, 1, False)
    assert cut.window_cells == 2**23
    assert len(cut.tiles(slice(0, 1))) == 1366


def iter_tiles(cut, images):
    tiles = cut.tiles(images)
    return map(tiles.__getitem__, range(len(tiles)))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-2, 10), st.integers(1, 30), st.integers(-2, 10), st.integers(1, 30),
    st.integers(SMALLEST_WINDOW, 400),
)  # fmt: skip
def test_windows_cover_their_bounds_once_and_keep_to_their_size(top, height, left, width, cells):
    bounds = Box(top, top + height, left, left + width)
    seen = np.zeros((height, width), int)
    for box in boxes(bounds, cells):
        assert np.prod(window_size(box)) <= cells
        seen[box.top - top : box.bottom - top, box.left - left : box.right - left] += 1
    assert (seen == 1).all()


@settings(max_examples=200, deadline=None)
@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.integers(SMALLEST_WINDOW, 400))
def test_owning_windows_own_every_pixel_once(size, cells):
    seen = np.zeros(size, int)
    for box in owning_boxes(geometry_of(1, 1, size), cells):
        assert np.prod(window_size(box)) <= cells
        seen[box.top + 1 : box.bottom, box.left + 1 : box.right] += 1
    assert (seen == 1).all()
