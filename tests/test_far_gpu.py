"""Kernels at the far end of arrays too large to be worked through: 64-bit indices, executed.

Every array has more than 2^31 elements, and lies in memory that the stand-in makes where it is
touched. The last blocks of a launch run, at the last pixels of the second of two images, whose
neighbourhood is all that there is; so the oracle needs no more than the corner of an image.
"""

from functools import cache

import numpy as np
import pytest
from directions import slope
from emulated_cupy import configure
from emulator import Crime
from far import (
    COLUMNS,
    CORNER,
    INT32,
    INT64,
    LAST,
    LAYERS,
    ROWS,
    WIDE,
    Far,
    height_below,
    last,
)
from libraries import dcn

from cupy_dcn import Tangents, _columns_gpu, _kernels, _launch_gpu, _oracle, _tangent_gpu
from cupy_dcn._columns_gpu import empty_columns, locate, part_of_columns
from cupy_dcn._cut import Cut, Tile
from cupy_dcn._cut_gpu import MOST_NUMBERS, copy_cells
from cupy_dcn._launch_gpu import (
    element_strides,
    from_channels_last,
    order_launch,
    sampling_launch,
    to_channels_last,
)
from cupy_dcn._order_gpu import Order
from cupy_dcn._specialisation import Wants, direct_backward_macros, is_planar, sampling_macros

PREPARED = (sampling_launch, order_launch, to_channels_last, from_channels_last)


@pytest.fixture(autouse=True, scope="module")
def cupy():
    with dcn.running_on("emulated"), configure(total_memory=2**46):
        yield dcn.array_module


def check_im2col(far):
    image, _ = far.copies(far.near["x"], far.dtype)
    columns, rows = far.columns()
    far.launch("deform_im2col", columns, image, "offset", "mask", columns)
    check_columns(far, rows)


def check_columns(far, rows, expected=None):
    expected = far.sampled() if expected is None else expected
    expected = expected[0][:, LAST].reshape(far.case.groups, ROWS, COLUMNS, 9, -1)
    for row, ours in enumerate(rows):
        far.close(ours, expected[:, row])


def given_columns(far, name="columns"):
    columns, rows = far.columns()
    put_columns(far, rows, name)
    return columns, rows


def put_columns(far, rows, name="columns"):
    near = far.near[name][0][:, LAST].reshape(far.case.groups, ROWS, COLUMNS, 9, -1)
    for row, part in enumerate(rows):
        part[...] = dcn.to_device(near[:, row].copy())


def check_col2im(far):
    columns, _ = given_columns(far)
    sums, corner = far.copies(np.zeros_like(far.near["x"]), np.result_type(far.dtype, np.float32))
    arrays = columns, "offset", "mask", sums
    far.launch("deform_col2im", columns, *arrays, wants=Wants(grad_x=True))
    check_sums(far, corner)


def check_sums(far, corner, grad_x=None):
    grad_x = far.pulled()[0] if grad_x is None else grad_x
    grad_x = grad_x.reshape(far.case.deformable_groups, -1, CORNER, CORNER)
    far.close(corner, grad_x.transpose(2, 3, 0, 1))


def check_coord_grad(far):
    image, _ = far.copies(far.near["x"], far.dtype)
    columns, _ = given_columns(far)
    grads = far.output("offset"), far.output("mask")
    arrays = columns, image, "offset", "mask", *grads
    wants = Wants(grad_offset=True, grad_mask=True)
    far.launch("deform_coord_grad", columns, *arrays, wants=wants)
    check_coordinates(far, grads)


def check_coordinates(far, grads, expected=None):
    expected = far.pulled()[1:] if expected is None else expected
    for ours, exact in zip(grads, expected, strict=True):
        far.close(ours[1, :, -ROWS:, -COLUMNS:], last(exact))


def check_backward(far):
    image, _ = far.copies(far.near["x"], far.dtype)
    sums, corner = far.copies(np.zeros_like(far.near["x"]), np.result_type(far.dtype, np.float32))
    columns, rows = given_columns(far)
    grads = far.output("offset"), far.output("mask")
    arrays = columns, image, "offset", "mask", sums, *grads
    far.launch("deform_backward", columns, *arrays, wants=Wants(True, True, True, True))
    check_columns(far, rows)
    check_sums(far, corner)
    check_coordinates(far, grads)


def given_direction(far):
    """Return strides, images, those of the direction, offset, mask, and how these move."""
    images = [far.copies(far.near[name], far.dtype)[0] for name in ("x", "x_tangent")]
    moves = far.output("offset_tangent"), far.output("mask_tangent")
    strides = _tangent_gpu.direction_strides(Tangents(offset=moves[0], mask=moves[1]), far.index)
    return strides, (*images, "offset", "mask", *moves)


@cache
def tangents(layer):
    """Return the tangents of the columns, and of the gradients of x, offset and mask."""
    far = Far(layer)
    sampling, groups = far.case.sampling, far.case.groups
    arrays = {name: far.exact[name] for name in ("x", "offset", "mask")}
    moves = {name: far.exact[f"{name}_tangent"] for name in (*arrays, "columns")}

    def columns(x, offset, mask):
        return _oracle.im2col(x, offset, *sampling, groups, mask)

    def gradients(columns, x, offset, mask):
        pulled = _oracle.backward_of_im2col(columns, x, offset, *sampling, mask)
        return np.concatenate(pulled, 1)

    both = slope(gradients, arrays | {"columns": far.exact["columns"]}, moves)
    ends = np.cumsum([arrays["x"].shape[1], arrays["offset"].shape[1]])
    return slope(columns, arrays, moves), np.split(both, ends, 1)


def check_im2col_tangent(far):
    strides, sources = given_direction(far)
    columns, rows = far.columns()
    far.launch("deform_im2col_tangent", columns, strides, *sources, columns)
    check_columns(far, rows, tangents(far.layer)[0])


def check_double_backward(far):
    # The second derivatives are symmetric: they are how the gradients move along the direction.
    strides, sources = given_direction(far)
    columns, turned = (given_columns(far, name)[0] for name in ("columns", "columns_tangent"))
    sums, corner = far.copies(np.zeros_like(far.near["x"]), np.result_type(far.dtype, np.float32))
    grads = far.output("offset"), far.output("mask")
    arrays = strides, columns, turned, *sources, sums, *grads
    wants = Wants(grad_x=True, grad_offset=True, grad_mask=True)
    far.launch("deform_double_backward", columns, *arrays, wants=wants)
    grad_x, *coordinates = tangents(far.layer)[1]
    check_sums(far, corner, grad_x)
    check_coordinates(far, grads, coordinates)


def points(far):
    """Return the numbers and cells of the points of the last pixels that lie in the image.

    Points are numbered, in 32 bits, in a tile of the last rows alone.
    """
    groups, height = far.case.deformable_groups, far.height
    offset = far.exact["offset"][0, :, -ROWS:, -COLUMNS:].reshape(-1, 2, ROWS, COLUMNS)
    plane, row, column = np.indices((groups * 9, ROWS, COLUMNS))
    y = height - ROWS + row + plane % 9 // 3 - 1 + offset[:, 0]
    x = WIDE - COLUMNS + column + plane % 3 - 1 + offset[:, 1]
    numbers = (groups * 9 + plane) * ROWS * WIDE + row * WIDE + WIDE - COLUMNS + column
    rows = (groups + plane // 9) * (height + 3) + 1 + np.floor(y)
    cells = rows * (WIDE + 1) + 1 + np.floor(x)
    inside = (y < height) & (x < WIDE)
    return numbers[inside], cells[inside].astype(np.int64)


def last_cells(far):
    """Return the cells of the second image's last rows, for every deformable group a stretch."""
    cells, groups = copy_cells(far.geometry), far.case.deformable_groups
    first = (far.height + 3 - CORNER - 3) * (WIDE + 1)
    return [slice(p * cells + first, (p + 1) * cells) for p in range(groups, 2 * groups)]


def ordered(far):
    """Return the points as sample_order.cu would leave them, as far as the last cells ask."""
    numbers, cells = points(far)
    count = 2 * far.case.deformable_groups * copy_cells(far.geometry)
    starts = dcn.array_module.empty(count + 1 + -(-count // 1024), np.int32)
    for there in last_cells(far):
        ends = np.searchsorted(np.sort(cells), np.arange(there.start, there.stop), "right")
        starts[there] = dcn.to_device(np.r_[np.sum(cells < there.start), ends[:-1]].astype("i4"))
        stretches = np.arange(there.start // 1024, (there.stop - 1) // 1024 + 1)
        at = np.minimum(stretches * 1024 + 1023, there.stop - 1) - there.start
        first = count + 1 + stretches[0]
        starts[first : first + len(at)] = dcn.to_device(ends[at].astype(np.int32))
    return Order(starts, dcn.to_device(numbers[np.lexsort((numbers, cells))].astype(np.int32)))


def last_tile(far):
    return Tile(slice(0, 2), slice(far.height - ROWS, far.height), slice(0, WIDE))


def columns_of(far, tile):
    """Return a tile of all columns, or one of its own where columns are planes."""
    if is_planar(far.geometry, far.dtype.itemsize):
        return empty_columns(far.geometry, tile, far.dtype, far.workspace)
    part = part_of_columns(far.columns()[0], far.geometry, tile)
    far.demand([part])
    return part


def check_col2im_ordered(far):
    geometry, tile = far.geometry, last_tile(far)
    columns = columns_of(far, tile)
    put_columns(far, [columns[1, :, end - COLUMNS : end] for end in (WIDE, 2 * WIDE)])
    sums, corner = far.copies(np.zeros_like(far.near["x"]), np.result_type(far.dtype, np.float32))
    cut = Cut(geometry, 2, None, 0, 1, 0, 0, index=far.index, deterministic=True)
    samples = locate(far.output("offset"), far.output("mask"), cut, tile, far.dtype, far.workspace)
    far.demand([samples.offset, samples.mask, sums])
    order = ordered(far)
    macros = sampling_macros(geometry, *[far.dtype] * 3, far.index)
    # Of cells whose row and column have a parity each, no points come before the last four rows.
    blocks = 4 * (WIDE // 2 + 1) * macros.lanes // macros.block * far.case.deformable_groups
    with pytest.MonkeyPatch.context() as patch, configure(last_blocks=blocks):
        patch.setattr(_columns_gpu, "sample_order", lambda *_: order)
        samples.add_in_order(columns, sums)
    check_sums(far, corner)


def check_count_samples(far):
    groups, tile = far.case.deformable_groups, last_tile(far)
    offset = _columns_gpu.of_tile(far.output("offset"), tile)
    far.demand([offset])
    counts = dcn.array_module.empty(2 * groups * copy_cells(far.geometry), np.int32)
    for there in last_cells(far):
        counts[there] = 0
    places = dcn.array_module.empty((2 * groups * 9 * tile.image_pixels, 2), np.int32)
    places.fill(-1)
    rectangle = far.height - ROWS, 0, ROWS, WIDE
    arguments = rectangle, 2, offset.dtype, element_strides(offset)
    launch = order_launch(far.geometry, far.index, far.dtype, *arguments)
    with configure(last_blocks=groups):
        launch.run(dcn.array_module, "count_samples", (offset, counts, places))
    numbers, cells = points(far)
    ours = dcn.array_module.asnumpy(places)[numbers]
    np.testing.assert_array_equal(ours[:, 0], cells)
    for there in last_cells(far):
        mine = cells[(cells >= there.start) & (cells < there.stop)] - there.start
        inside = slice(0, -2 * (WIDE + 1))  # before the rows of points outside
        expected = np.bincount(mine, minlength=there.stop - there.start)
        found = dcn.array_module.asnumpy(counts[there])
        np.testing.assert_array_equal(found[inside], expected[inside])
    order = np.lexsort((ours[:, 1], cells))
    starts = np.searchsorted(cells[order], cells[order])
    np.testing.assert_array_equal(ours[order, 1], np.arange(len(cells)) - starts)


def check_direct(far):
    image, _ = far.copies(far.near["x"], far.dtype)
    out = dcn.array_module.empty((2, far.case.channels, far.height, WIDE), far.dtype)
    weight, bias = (dcn.to_device(far.near[name]) for name in ("weight", "bias"))
    far.launch("deform_direct", None, image, "offset", "mask", weight, bias, out, outputs=1)
    exact, case = far.exact, far.case
    expected = _oracle.forward(
        *(exact[name] for name in ("x", "offset", "weight", "bias")), *case.sampling[1:],
        case.groups, exact["mask"],
    )  # fmt: skip
    far.close(out[1, :, -ROWS:, -COLUMNS:], last(expected))


def check_depthwise_backward(far):
    image, _ = far.copies(far.near["x"], far.dtype)
    sums, corner = far.copies(np.zeros_like(far.near["x"]), far.dtype)
    grads, grad_output = (far.output("offset"), far.output("mask")), far.output("grad_output")
    weight = dcn.to_device(far.near["weight"])
    wants = Wants(True, True, True, True)
    macros = direct_backward_macros(far.geometry, *[far.dtype] * 3, far.index, wants)
    blocks = -(-far.height // macros.tile[0]) * -(-WIDE // macros.tile[1])
    partial = dcn.array_module.empty((2 * blocks, 9, far.case.channels), far.dtype)
    arrays = grad_output, weight, image, "offset", "mask", sums, *grads, partial
    far.launch("deform_direct_backward", None, *arrays, wants=wants, planes=grad_output)
    exact, case = far.exact, far.case
    grad_x, grad_offset, grad_weight, _, grad_mask = _oracle.backward(
        *(exact[name] for name in ("grad_output", "x", "offset", "weight")), *case.sampling[1:],
        case.groups, exact["mask"],
    )  # fmt: skip
    far.close(corner[:, :, 0], grad_x[0].transpose(1, 2, 0))
    for ours, expected in zip(grads, (grad_offset, grad_mask), strict=True):
        far.close(ours[1, :, -ROWS:, -COLUMNS:], last(expected))
    far.close(partial[-1], grad_weight.reshape(case.channels, 9).T)


def last_rows(far, channels):
    """Return images (2, C, H, W), and a view of the last one's last row."""
    images = dcn.array_module.empty((2, channels, far.height, WIDE), far.dtype)
    return images, images[1, :, -1]


def check_to_channels_last(far):
    x, row = last_rows(far, far.case.channels)
    values = np.random.default_rng(0).standard_normal(row.shape).astype(far.dtype)
    row[...] = dcn.to_device(values)
    copies, corner = far.copies(np.zeros_like(far.near["x"]), far.dtype)
    launch = to_channels_last(far.geometry, far.index, far.dtype, 2, element_strides(x))
    # The last row of pixels comes before two rows of zeros; the row above is not there.
    far.demand([x, copies])
    blocks = (2 * (WIDE + 1) + CORNER) // launch.macros.pixels + 1
    with configure(last_blocks=blocks):
        launch.run(dcn.array_module, "to_channels_last", (x, copies))
    expected = values[:, -CORNER:].reshape(far.case.deformable_groups, -1, CORNER)
    far.close(corner[-1], expected.transpose(2, 0, 1))


def check_from_channels_last(far):
    x = far.near["x"]
    sums, _ = far.copies(x, np.result_type(far.dtype, np.float32))
    grad_x, row = last_rows(far, far.case.channels)
    launch = from_channels_last(far.geometry, far.index, far.dtype, 2)
    far.demand([sums, grad_x])
    with configure(last_blocks=2):
        launch.run(dcn.array_module, "from_channels_last", (sums, grad_x))
    far.close(row[:, -CORNER:], x[0, :, -1].astype(np.float64))


CHECKS = {
    "deform_im2col": check_im2col,
    "deform_col2im": check_col2im,
    "deform_coord_grad": check_coord_grad,
    "deform_backward": check_backward,
    "deform_im2col_tangent": check_im2col_tangent,
    "deform_double_backward": check_double_backward,
    "deform_col2im_ordered": check_col2im_ordered,
    "count_samples": check_count_samples,
    "to_channels_last": check_to_channels_last,
    "from_channels_last": check_from_channels_last,
    "deform_direct": check_direct,
    "deform_direct_backward": check_depthwise_backward,
}
TRIALS = [
    (name, layer)
    for layer in LAYERS
    for name in CHECKS
    if (name in ("deform_direct", "deform_direct_backward")) == ("depthwise" in layer)
    if (name, layer) != ("deform_direct_backward", "depthwise")  # never alone at a pixel
]


def test_no_kernel_is_left_out():
    # These have arrays of points and cells, which are numbered in 32 bits whatever the index; where
    # it has 64, deform_backward_sorted is not launched.
    numbered = {"start_cells", "order_samples", "rank_samples", "deform_backward_sorted"}
    numbered |= {"copy_elements"}  # see test_build_kernels.py
    assert set(CHECKS) == set(_kernels.FILES) - numbered


@pytest.mark.parametrize(("name", "layer"), TRIALS)
def test_beyond_32_bits(name, layer):
    CHECKS[name](Far(layer))


@pytest.mark.parametrize(("name", "layer"), TRIALS)
def test_up_to_32_bits(name, layer):
    CHECKS[name](Far(layer, INT32, height_below(layer)))


@pytest.mark.parametrize("name", ["deform_col2im_ordered", "count_samples"])
@pytest.mark.parametrize("layer", ["alone", "shared", "cut"])
def test_as_many_cells_as_are_numbered(name, layer):
    rows = MOST_NUMBERS // (2 * LAYERS[layer][0].deformable_groups * (WIDE + 1))
    CHECKS[name](Far(layer, INT64, rows - 3))


@pytest.mark.parametrize(("name", "layer"), TRIALS)
def test_32_bits_are_too_few(name, layer, monkeypatch):
    # As if the host had not noticed: what it packs wraps around, and so does what kernels compute.
    def wrapping(pack):
        def wrapped(*arguments, **more):
            *others, index = arguments
            fields = np.frombuffer(pack(*others, INT64, **more).tobytes(), np.int64)
            return fields.astype(index).view(np.dtype((np.void, fields.size * index.itemsize)))

        return wrapped

    for module, pack in ((_launch_gpu, "launch_geometry"), (_tangent_gpu, "direction_strides")):
        monkeypatch.setattr(module, pack, wrapping(getattr(module, pack)))
    for function in PREPARED:
        function.cache_clear()
    with pytest.raises((Crime, AssertionError)):
        CHECKS[name](Far(layer, INT32))
    for function in PREPARED:
        function.cache_clear()
