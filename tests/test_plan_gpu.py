"""The cut into chunks for a GPU: a pure function of integers, asked about arrays of any size."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cupy_dcn import _gpu, functional
from cupy_dcn._columns_gpu import element_strides
from cupy_dcn._geometry import Geometry
from cupy_dcn._matmul_gpu import LARGEST_DIMENSION
from cupy_dcn._plan_gpu import (
    LEAST_TILE_HEIGHT,
    MOST_BLOCKS,
    copy_cells,
    index_dtype,
    plan_chunks,
)
from cupy_dcn._specialisation import sampling_macros

MIB = 2**20
MOST_INT32 = 2**31 - 1


def geometry_of(images, channels, size, out=None, kernel=3, **more):
    out = size if out is None else out
    fields = {"stride_y": 1, "stride_x": 1, "pad_top": 1, "pad_left": 1, **more}
    return Geometry(
        images, channels, *size, kernel, kernel, *out, *fields.values(), 1, 1, 1, 1
    )  # fmt: skip


def plan_of(geometry, budget, backward=False, out_channels=8, itemsize=4, extents=()):
    return plan_chunks(
        geometry, out_channels, itemsize, max(itemsize, 4), budget, backward, extents
    )


def chunks_of(plan):
    for images in plan.image_groups():
        tiles = plan.tiles(images)
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
    plan = plan_of(geometry, least + more, backward)
    seen = np.zeros((images, *out), int)
    for group, tiles in chunks_of(plan):
        assert group.stop - group.start <= plan.images_held
        for tile in tiles:
            assert 1 <= tile.pixels <= plan.tile_pixels
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
    plan = plan_of(geometry_of(images, channels, size), budget, backward, itemsize=itemsize)
    one_image = plan.image_bytes // plan.images_held
    if plan.images_held > 1 or one_image <= budget // 2:
        assert plan.image_bytes + plan.worker_bytes <= budget
    else:  # an image cannot be sampled in part: its copies come on top of half
        assert plan.worker_bytes <= max(budget // 2, budget - one_image)
    sums = max(itemsize, 4) if backward else 0
    assert one_image == (size[0] + 3) * (size[1] + 1) * channels * (itemsize + sums)
    assert plan.worker_bytes == plan.tile_pixels * itemsize * (9 * channels + 8)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("channels", "out_channels", "itemsize"), [(1, 1, 2), (6, 0, 4), (64, 9, 8)]
)
def test_least_budget(channels, out_channels, itemsize, backward):
    geometry, least = (
        geometry_of(2, channels, (50, 60)),
        2 * itemsize * (9 * channels + out_channels),
    )
    plan = plan_of(geometry, least, backward, out_channels, itemsize)
    assert plan.tile_pixels >= 1
    with pytest.raises(ValueError, match=f"is {least - 1}, expected at least {least}: "):
        plan_of(geometry, least - 1, backward, out_channels, itemsize)


def test_launches_keep_to_the_limits_of_a_grid():
    # Small images that would all fit, and an image of more rows than blocks along y reach.
    plan = plan_of(geometry_of(200_000, 1, (1, 1)), 2**40)
    assert plan.images_held == MOST_BLOCKS == 65535
    assert [g.stop - g.start for g, _ in chunks_of(plan)] == [50_000] * 4
    rows = LEAST_TILE_HEIGHT * MOST_BLOCKS
    for height in (rows, rows + 1, 3 * rows):
        plan = plan_of(geometry_of(1, 1, (height, 2)), 2**40)
        cut = [t.rows.stop - t.rows.start for _, tiles in chunks_of(plan) for t in tiles]
        assert sum(cut) == height
        assert len(cut) == -(-height // rows)
        assert max(cut) <= rows


def test_no_kernels_tile_is_lower_than_the_plan_takes_it_to_be():
    dtypes = [np.dtype(t) for t in (np.float16, np.float32, np.float64)]
    for channels, dtype, kernel in itertools.product(range(1, 70), dtypes, (1, 3, 7)):
        geometry = geometry_of(1, channels, (9, 9), kernel=kernel)
        macros = sampling_macros(geometry, dtype, dtype, None, np.dtype(np.int32))
        assert macros.tile_height >= LEAST_TILE_HEIGHT


def test_products_keep_to_the_sizes_that_cublas_takes():
    # One channel, a 1x1 kernel and a large budget: the pixels of a chunk are a size of a product.
    geometry = geometry_of(1, 1, (50_000, 50_000), kernel=1)
    plan = plan_of(geometry, 2**40, out_channels=1, itemsize=2)
    for _, tiles in chunks_of(plan):
        for tile in tiles:
            assert tile.image_pixels <= LARGEST_DIMENSION


def test_rows_of_several_images_keep_to_the_blocks_of_a_launch():
    # Tall and narrow: many whole images would fit the budget, but not their rows one launch.
    geometry = geometry_of(2, 1, (300_000, 1), kernel=1)
    plan = plan_of(geometry, 2**34)
    for _, tiles in chunks_of(plan):
        for tile in tiles:
            assert tile.rows.stop - tile.rows.start <= LEAST_TILE_HEIGHT * 65_535


def test_worked_examples_of_the_docstring():
    plan = plan_of(geometry_of(2, 64, (56, 56)), 64 * MIB, out_channels=64)
    assert plan.images_held == 2
    assert [tile.image_count for _, tiles in chunks_of(plan) for tile in tiles] == [2]
    plan = plan_of(geometry_of(8, 256, (64, 64)), 64 * MIB, out_channels=256)
    cut = [(t.image_count, t.image_pixels) for _, tiles in chunks_of(plan) for t in tiles]
    assert cut == [(1, 64 * 64)] * 8
    assert round(64 * 64 * 9 * 256 * 4 / 1e6) == 38
    assert round(plan.image_bytes / 1e6) == 4


# How wide an index has to be


@pytest.mark.parametrize(("elements", "expected"), [(MOST_INT32, "int32"), (2**31, "int64")])
def test_index_by_what_an_array_spans(elements, expected):
    geometry = geometry_of(1, 1, (5, 5))
    assert index_dtype([7, elements, 1], geometry) == expected
    assert plan_of(geometry, MIB, extents=(elements, 3)).index == expected
    assert plan_of(geometry, MIB, extents=(3, elements)).index == expected


@pytest.mark.parametrize(("pixels", "expected"), [(2**30 - 1, "int32"), (2**30, "int64")])
def test_index_by_a_chunks_columns(pixels, expected):
    # Two channels, a 1x1 kernel: 2 * pixels elements; the output is larger than the chunk.
    geometry = geometry_of(1, 2, (1, 1), (2**16, 2**15), kernel=1)
    budget = 2 * 4 * pixels + copy_cells(geometry) * 2 * 4
    plan = plan_of(geometry, budget, out_channels=0)
    assert plan.tile_pixels == pixels
    assert plan.index == expected


@pytest.mark.parametrize(
    ("size", "channels", "expected"),
    [((2**15 - 3, 2**16 - 1), 1, "int64"), ((2**15 - 3, 2**16 - 2), 1, "int32"),
     ((2**15 - 4, 2**16 - 1), 1, "int32"), ((1, 1), 2**28, "int64"), ((1, 1), 2**28 - 1, "int32")],
)  # fmt: skip
def test_index_by_the_copy_of_an_image(size, channels, expected):
    geometry = geometry_of(1, channels, size, (1, 1), kernel=1)
    assert plan_of(geometry, 2**40).index == expected


def test_index_by_the_copies_of_all_images_held():
    geometry = geometry_of(2**10, 2**12, (13, 31), (1, 1), kernel=1)  # 2^9 cells an image
    one, each = 2**21, 2**21 * 4 + 4 * (2**12 + 8)
    assert copy_cells(geometry) * geometry.channels == one
    for held, expected in ((2**10, "int64"), (2**10 - 1, "int32")):
        plan = plan_of(geometry, held * each)
        assert plan.images_held == held
        assert plan.index == expected


@pytest.mark.parametrize("field", ["stride_y", "stride_x", "pad_top", "pad_left"])
def test_index_by_the_farthest_location(field):
    # Any location that is reached, 2^30 to either side of the image, has to be an int32 too.
    for value, expected in ((2**30 - 30, "int32"), (2**30, "int64"), (MOST_INT32, "int64")):
        geometry = geometry_of(1, 1, (20, 20), (1, 1), **{field: value})
        assert plan_of(geometry, MIB).index == expected


def spread_out(elements, shape):
    """A view of one number that claims so many elements in one axis, as a size without memory."""
    return np.broadcast_to(np.float32(0), (*shape[:-1], elements // int(np.prod(shape[:-1]))))


@pytest.mark.parametrize("function", ["forward", "backward"])
@pytest.mark.parametrize("name", ["x", "offset", "weight", "mask", "grad_output", "out"])
@pytest.mark.parametrize(("elements", "expected"), [(MOST_INT32, "int32"), (2**31, "int64")])
def test_every_array_of_a_call_counts(monkeypatch, function, name, elements, expected):
    monkeypatch.setattr(functional, "twin_of", lambda array: _gpu)
    arrays = {n: np.zeros((1, 1, 1, 1), np.float32) for n in ("x", "offset", "weight", "mask")}
    grad_output = np.zeros((1, 1, 1, 1), np.float32)
    geometry = geometry_of(1, 1, (1, 1))
    if name == "grad_output":
        grad_output = spread_out(elements, (1, 1, 1, -1))
    elif name == "out":
        monkeypatch.setattr(functional, "out_shape", lambda call: (1, 1, 1, elements))
    else:
        arrays[name] = spread_out(elements, (1, 1, 1, -1))
    call = SimpleNamespace(**arrays, geometry=geometry, workspace_bytes=MIB)
    if function == "forward":
        plan = functional._plan(call, backward=False)
    else:
        plan = functional._plan(call, backward=True, grad_output=grad_output)
    counts = function == "backward" or name != "grad_output"
    assert plan.index == (expected if counts else "int32")


def test_views_count_by_what_they_span():
    step = 2**20
    memory = np.broadcast_to(np.float32(0), (2, 2))
    for rows, reach in ((2048, 2047 * step + 1), (2049, 2**31 + 1)):
        for sign in (1, -1):
            view = np.lib.stride_tricks.as_strided(memory, (rows, 1), (sign * 4 * step, 4))
            assert _gpu.extent(view) == reach
    # One step along an axis of one is never taken.
    view = np.lib.stride_tricks.as_strided(memory, (1, 3), (2**40, 4))
    assert _gpu.extent(view) == 3
    assert element_strides(view) == (0, 1)
    assert _gpu.extent(np.zeros((0, 7), np.float32)) <= 7


def test_geometry_fits_its_index_at_the_limits():
    # What goes to a kernel as int32 must not wrap, or NumPy would raise.
    from cupy_dcn._columns_gpu import launch_geometry

    geometry = geometry_of(1, 1, (2**15 - 4, 2**16 - 1), (2**15, 2**16 - 2), kernel=1)
    plan = plan_of(geometry, 2**40, extents=(MOST_INT32,))
    assert plan.index == "int32"
    strides = (MOST_INT32 - 1, -MOST_INT32, 1, 0)
    packed = launch_geometry(
        geometry, plan.index, column_pixels=MOST_INT32, x=strides, offset=strides, mask=strides
    )
    fields = np.frombuffer(packed.tobytes(), np.int32)
    assert fields.size == 27
    assert tuple(fields[-12:]) == strides * 3
    assert fields[14] == MOST_INT32
