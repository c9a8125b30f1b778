"""The cut into chunks for a GPU: a pure function of integers, asked about arrays of any size."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_dcn._cut_gpu import (
    LEAST_TILE_HEIGHT,
    MOST_BLOCKS,
    copy_cells,
    cut_chunks,
    extent,
    fit_index,
    index_dtype,
)
from cupy_dcn._geometry import Geometry
from cupy_dcn._launch_gpu import element_strides
from cupy_dcn._matmul_gpu import LARGEST_DIMENSION
from cupy_dcn._specialisation import sampling_macros

MIB = 2**20
MOST_INT32 = 2**31 - 1


def geometry_of(images, channels, size, out=None, kernel=3, **more):
    out = size if out is None else out
    fields = {"stride_y": 1, "stride_x": 1, "pad_top": 1, "pad_left": 1, **more}
    return Geometry(
        images, channels, *size, kernel, kernel, *out, *fields.values(), 1, 1, 1, 1
    )  # fmt: skip


def cut_of(geometry, budget, backward=False, out_channels=8, itemsize=4):
    return cut_chunks(geometry, out_channels, itemsize, max(itemsize, 4), budget, backward)


def chunks_of(cut):
    for images in cut.image_groups():
        tiles = cut.tiles(images)
        yield images, map(tiles.__getitem__, range(len(tiles)))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 9),
    st.sampled_from([1, 3, 8, 64]),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.integers(0, 2_000_000),
    st.booleans(),
)
def test_chunks_cover_every_output_pixel_once(images, channels, size, out, more, backward):
    geometry = geometry_of(images, channels, size, out)
    least = 2 * 4 * (9 * channels + 8)
    cut = cut_of(geometry, least + more, backward)
    seen = np.zeros((images, *out), int)
    for group, tiles in chunks_of(cut):
        assert group.stop - group.start <= cut.images_held
        for tile in tiles:
            assert 1 <= tile.pixels <= cut.tile_pixels
            assert group.start <= tile.images.start < tile.images.stop <= group.stop
            seen[tile.images, tile.rows, tile.columns] += 1
    assert (seen == 1).all()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 10**6),
    st.integers(1, 600),
    st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_what_is_allocated_stays_under_the_budget(images, channels, size, itemsize, more, backward):
    budget = 2 * itemsize * (9 * channels + 8) + more
    cut = cut_of(geometry_of(images, channels, size), budget, backward, itemsize=itemsize)
    one_image = cut.image_bytes // cut.images_held
    if cut.images_held > 1 or one_image <= budget // 2:
        assert cut.image_bytes + cut.worker_bytes <= budget
    else:  # an image cannot be sampled in part: its copies come on top of half
        assert cut.worker_bytes <= max(budget // 2, budget - one_image)
    sums = max(itemsize, 4) if backward else 0
    copied, rest = divmod(one_image, (size[0] + 3) * (size[1] + 1) * (itemsize + sums))
    # Zeros behind the channels, at most a third as many, up to a multiple of 16 bytes or less.
    assert rest == 0
    assert channels <= copied <= channels * 4 / 3
    assert copied == channels or copied * itemsize % 4 == 0
    if channels * itemsize % 16 == 0:
        assert copied == channels
    assert cut.worker_bytes == cut.tile_pixels * itemsize * (9 * channels + 8)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("channels", "out_channels", "itemsize"), [(1, 1, 2), (6, 0, 4), (64, 9, 8)]
)
def test_least_budget(channels, out_channels, itemsize, backward):
    geometry, least = (
        geometry_of(2, channels, (50, 60)),
        2 * itemsize * (9 * channels + out_channels),
    )
    cut = cut_of(geometry, least, backward, out_channels, itemsize)
    assert cut.tile_pixels >= 1
    with pytest.raises(ValueError, match=f"is {least - 1}, expected at least {least}: "):
        cut_of(geometry, least - 1, backward, out_channels, itemsize)


def test_launches_keep_to_the_limits_of_a_grid():
    # Small images that would all fit, and an image of more rows than blocks along y reach.
    cut = cut_of(geometry_of(200_000, 1, (1, 1)), 2**40)
    assert cut.images_held == MOST_BLOCKS == 65535
    assert [g.stop - g.start for g, _ in chunks_of(cut)] == [50_000] * 4
    rows = LEAST_TILE_HEIGHT * MOST_BLOCKS
    for height in (rows, rows + 1, 3 * rows):
        cut = cut_of(geometry_of(1, 1, (height, 2)), 2**40)
        sizes = [t.rows.stop - t.rows.start for _, tiles in chunks_of(cut) for t in tiles]
        assert sum(sizes) == height
        assert len(sizes) == -(-height // rows)
        assert max(sizes) <= rows


def test_no_kernels_tile_is_lower_than_the_plan_takes_it_to_be():
    dtypes = [np.dtype(t) for t in (np.float16, np.float32, np.float64)]
    heights = set()
    for channels, dtype, kernel in itertools.product(range(1, 70), dtypes, (1, 3, 7)):
        geometry = geometry_of(1, channels, (9, 9), kernel=kernel)
        macros = sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int32))
        heights.add(macros.tile[0])
    assert min(heights) == LEAST_TILE_HEIGHT


def test_products_keep_to_the_sizes_that_cublas_takes():
    # One channel, a 1x1 kernel and a large budget: the pixels of a chunk are a size of a product.
    geometry = geometry_of(1, 1, (50_000, 50_000), kernel=1)
    cut = cut_of(geometry, 2**40, out_channels=1, itemsize=2)
    for _, tiles in chunks_of(cut):
        for tile in tiles:
            assert tile.image_pixels <= LARGEST_DIMENSION


def test_pixels_of_several_images_are_a_size_that_cublas_takes():
    # Half of the limit a picture: two fit, and three would be summed over by one product.
    geometry = geometry_of(5, 1, (2**15, 2**15 - 1), kernel=1)
    cut = cut_of(geometry, 2**50, backward=True, out_channels=1, itemsize=2)
    assert cut.images_held == 2
    assert 2 * geometry.out_pixels <= LARGEST_DIMENSION < 3 * geometry.out_pixels
    assert {tile.pixels for _, tiles in chunks_of(cut) for tile in tiles} <= {
        geometry.out_pixels, 2 * geometry.out_pixels
    }  # fmt: skip


@pytest.mark.parametrize("backward", [False, True])
def test_sizes_that_cublas_does_not_take_are_refused(backward):
    # K*C_in/groups, C_out/groups, the channels of an offset and of a copy: the most, one more.
    def layer(channels, kernel=(1, 1), groups=1, deformable_groups=1):
        return Geometry(
            1, channels, 9, 9, *kernel, 1, 1, 1, 1, 0, 0, 1, 1, groups, deformable_groups
        )

    most, budget = LARGEST_DIMENSION, 2**60
    for geometry, out_channels, refused in (
        (layer(most - 3), 1, None),
        (layer(most), 1, "C_in, with zeros up to whole loads, is 2147483648"),
        (layer(most), 0, "C_in, with zeros up to whole loads, is 2147483648"),
        (layer(most + 1), 1, r"C_in/groups\*KH\*KW is 2147483648"),
        (layer(2**20, (2**5, 2**6)), 1, r"C_in/groups\*KH\*KW is 2147483648"),
        (layer(2**20, (2**5, 2**6), groups=2), 2, None),
        (layer(2**20, (2**5, 2**6)), 0, None),  # the stages have no product
        (layer(1), most, None),
        (layer(2, groups=2), 2 * most, None),
        (layer(2, groups=2), 2 * most + 2, "C_out/groups is 2147483648"),
        (layer(2**10, (2**10, 2**9), 2**10, 2**10), 2**10, None),
        (layer(2**11, (2**10, 2**9), 2**11, 2**11), 0, r"groups\*KH\*KW is 2147483648"),
    ):
        if refused is None:
            cut_of(geometry, budget, backward, out_channels)
        else:
            with pytest.raises(ValueError, match=refused + r", expected at most 2\^31 - 1 = "):
                cut_of(geometry, budget, backward, out_channels)


def test_rows_of_several_images_keep_to_the_blocks_of_a_launch():
    # Tall and narrow: many whole images would fit the budget, but not their rows one launch.
    geometry = geometry_of(2, 1, (300_000, 1), kernel=1)
    cut = cut_of(geometry, 2**34)
    for _, tiles in chunks_of(cut):
        for tile in tiles:
            assert tile.rows.stop - tile.rows.start <= LEAST_TILE_HEIGHT * 65_535


def test_worked_examples_of_the_docstring():
    cut = cut_of(geometry_of(2, 64, (56, 56)), 64 * MIB, out_channels=64)
    assert cut.images_held == 2
    assert [tile.image_count for _, tiles in chunks_of(cut) for tile in tiles] == [2]
    cut = cut_of(geometry_of(8, 256, (64, 64)), 64 * MIB, out_channels=256)
    sizes = [(t.image_count, t.image_pixels) for _, tiles in chunks_of(cut) for t in tiles]
    assert sizes == [(1, 64 * 64)] * 8
    assert round(64 * 64 * 9 * 256 * 4 / 1e6) == 38
    assert round(cut.image_bytes / 1e6) == 4


# How wide an index has to be


@pytest.mark.parametrize(("elements", "expected"), [(MOST_INT32, "int32"), (2**31, "int64")])
def test_index_by_what_an_array_spans(elements, expected):
    geometry = geometry_of(1, 1, (5, 5))
    assert index_dtype([7, elements, 1], geometry) == expected
    cut, long = cut_of(geometry, MIB), spread_out(elements, (1, 1, -1))
    for arrays in ([long, np.zeros(3)], [np.zeros(3), long]):
        fitting = fit_index(cut, arrays)
        assert fitting == replace(cut, index=np.dtype(expected))
        assert fit_index(fitting, arrays[:1]).index == expected  # never narrower


@pytest.mark.parametrize(("pixels", "expected"), [(2**30 - 1, "int32"), (2**30, "int64")])
def test_index_by_a_chunks_columns(pixels, expected):
    # Two channels, a 1x1 kernel: 2 * pixels elements; the output is larger than the chunk.
    geometry = geometry_of(1, 2, (1, 1), (2**16, 2**15), kernel=1)
    budget = 2 * 4 * pixels + copy_cells(geometry) * 2 * 4
    cut = cut_of(geometry, budget, out_channels=0)
    assert cut.tile_pixels == pixels
    assert cut.index == expected


@pytest.mark.parametrize(
    ("size", "channels", "expected"),
    [((2**15 - 3, 2**16 - 1), 1, "int64"), ((2**15 - 3, 2**16 - 2), 1, "int32"),
     ((2**15 - 4, 2**16 - 1), 1, "int32"), ((1, 1), 2**28, "int64"), ((1, 1), 2**28 - 4, "int32"),
     ((1, 1), 2**28 - 3, "int64")],  # three zeros behind its channels
)  # fmt: skip
def test_index_by_the_copy_of_an_image(size, channels, expected):
    geometry = geometry_of(1, channels, size, (1, 1), kernel=1)
    assert cut_of(geometry, 2**40).index == expected


def test_index_by_the_copies_of_all_images_held():
    geometry = geometry_of(2**10, 2**12, (13, 31), (1, 1), kernel=1)  # 2^9 cells an image
    one, each = 2**21, 2**21 * 4 + 4 * (2**12 + 8)
    assert copy_cells(geometry) * geometry.channels == one
    for held, expected in ((2**10, "int64"), (2**10 - 1, "int32")):
        cut = cut_of(geometry, held * each)
        assert cut.images_held == held
        assert cut.index == expected


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 64), st.integers(16, 64),
    st.tuples(st.integers(1, 2**16), st.integers(1, 2**16)), st.integers(2, 7),
)  # fmt: skip
def test_the_order_counts_in_32_bits_only_what_it_can(images, groups, each, size, kernel):
    # Cells and points of a chunk, all deformable groups together, and a block of them beyond.
    fields = (1, 1, 1, 1, 1, 1, 1, groups)
    geometry = Geometry(images, groups * each, *size, kernel, kernel, *size, *fields)
    cut = cut_chunks(geometry, 1, 4, 4, 2**45, backward=True, sorts=True)
    cells = cut.images_held * groups * copy_cells(geometry)
    points = cut.tile_pixels * groups * geometry.taps
    if cut.sorts_here:
        assert max(cells, points) + 1024 <= MOST_INT32
    else:
        assert max(cells, points) * each > MOST_INT32


@pytest.mark.parametrize("field", ["stride_y", "stride_x", "pad_top", "pad_left"])
def test_index_by_the_farthest_location(field):
    # Any location that is reached, 2^30 to either side of the image, has to be an int32 too.
    for value, expected in ((2**30 - 30, "int32"), (2**30, "int64"), (MOST_INT32, "int64")):
        geometry = geometry_of(1, 1, (20, 20), (1, 1), **{field: value})
        assert cut_of(geometry, MIB).index == expected


def spread_out(elements, shape):
    """A view of one number that claims so many elements in one axis, as a size without memory."""
    return np.broadcast_to(np.float32(0), (*shape[:-1], elements // int(np.prod(shape[:-1]))))


def test_views_count_by_what_they_span():
    step = 2**20
    memory = np.broadcast_to(np.float32(0), (2, 2))
    for rows, reach in ((2048, 2047 * step + 1), (2049, 2**31 + 1)):
        for sign in (1, -1):
            view = np.lib.stride_tricks.as_strided(memory, (rows, 1), (sign * 4 * step, 4))
            assert extent(view) == reach
    # One step along an axis of one is never taken.
    view = np.lib.stride_tricks.as_strided(memory, (1, 3), (2**40, 4))
    assert extent(view) == 3
    assert element_strides(view) == (0, 1)
    assert extent(np.zeros((0, 7), np.float32)) <= 7


def test_geometry_fits_its_index_at_the_limits():
    # What goes to a kernel as int32 must not wrap, or NumPy would raise.
    from cupy_dcn._launch_gpu import launch_geometry

    geometry = geometry_of(1, 1, (2**15 - 4, 2**16 - 1), (2**15, 2**16 - 2), kernel=1)
    cut = fit_index(cut_of(geometry, 2**40), [spread_out(MOST_INT32, (1, -1))])
    assert cut.index == "int32"
    strides = (MOST_INT32 - 1, -MOST_INT32, 1, 0)
    packed = launch_geometry(
        geometry,
        4,
        cut.index,
        column_pixels=MOST_INT32,
        planes=strides,
        offset=strides,
        mask=strides,
    )
    fields = np.frombuffer(packed.tobytes(), np.int32)
    assert fields.size == 27
    assert tuple(fields[-12:]) == strides * 3
    assert fields[12] == MOST_INT32
    assert fields[14] == copy_cells(geometry) > 2**30
