"""deterministic=True: the same bits in any order of blocks and atomics, and the right ones."""

import contextlib
import re

import numpy as np
import pytest
from cases import CASES, Case, assert_close, least_workspace
from libraries import dcn, has_nvrtc, libraries, twins
from test_operator import oracle_backward

import cupy_dcn
from cupy_dcn import _kernels
from cupy_dcn._cut_gpu import MOST_POINTS, STRETCH, cut_chunks
from cupy_dcn._geometry import Geometry
from cupy_dcn._order_gpu import CELLS

NAMES = ("x", "offset", "weight", "bias", "mask")
PAD = (1, 1, 1, 1)
LAYERS = [  # several lanes a point, ordered by default and not; alone; groups that cut; depthwise
    Case(2, 32, (6, 7), 2, (3, 3), padding=PAD),
    Case(1, 16, (6, 7), 2, (3, 3), padding=PAD, deformable_groups=2),
    Case(2, 3, (6, 7), 2, (3, 3), padding=PAD),
    Case(1, 12, (6, 7), 3, (3, 3), padding=PAD, deformable_groups=2, groups=3, masked=False),
    Case(1, 16, (6, 7), 16, (3, 3), padding=PAD, groups=16),
]


@pytest.fixture(params=libraries()[1:])
def device(request):
    """Run on the stand-in and, where there is a GPU, on CuPy."""
    with dcn.running_on(request.param):
        yield request.param


def backward(case, arrays, **settings):
    x, offset, weight, bias, mask, grad_output = arrays
    return dcn.deform_conv2d_backward(
        grad_output, x, offset, weight, bias, mask=mask, **case.attributes, **settings
    )


def assert_right(case, arrays, found, tolerance):
    exact = [None if array is None else array.astype(np.float64) for array in arrays]
    x, offset, weight, _, mask, grad_output = exact
    for name, grad in oracle_backward(case, grad_output, x, offset, weight, mask).items():
        if getattr(found, name) is not None:
            assert_close(getattr(found, name).astype(np.float64), grad, tolerance)


def in_orders(device, call):
    """Return what a call returns, with blocks and atomics in three orders where that is ours."""
    found = []
    for schedule in (None, 1, 2):
        order = contextlib.nullcontext()
        if device == "emulated":
            import emulated_cupy

            order = emulated_cupy.configure(schedule=schedule)
        with order:
            found.append(call())
    return found


def same_bits(found):
    return all(np.array_equal(each, found[0], equal_nan=True) for each in found[1:])


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_bits_do_not_depend_on_the_order(device, case):
    arrays = case.arrays(np.float32)
    least = least_workspace(lambda **more: backward(case, arrays, deterministic=True, **more))
    for budget in (None, 16 * least):  # a chunk, and several of an image
        settings = {"workspace_bytes": budget, "deterministic": True}
        found = in_orders(device, lambda s=settings: backward(case, arrays, **s))
        assert_right(case, arrays, found[0], 1e-5)
        for grads in zip(*found, strict=True):
            assert grads[0] is None or same_bits(grads)


@pytest.mark.parametrize("case", LAYERS[:3], ids=str)
def test_by_default_the_bits_differ(device, case):
    # Or the test above could not fail. On a GPU they may.
    arrays = case.arrays(np.float32)
    found = in_orders(device, lambda: backward(case, arrays))
    assert device == "cupy" or not same_bits([grads.x for grads in found])
    for name in NAMES[1:]:
        assert same_bits([getattr(grads, name) for grads in found])


@pytest.mark.parametrize("number", range(len(CASES)))
def test_gradients_match_the_oracle(device, number):
    case, dtype = CASES[number], (np.float64, np.float32, np.float16)[number % 3]
    arrays = case.arrays(dtype)
    tolerance = {8: 1e-12, 4: 1e-5, 2: 5e-3}[np.dtype(dtype).itemsize]
    assert_right(case, arrays, backward(case, arrays, deterministic=True), tolerance)


def test_points_that_all_meet_in_one_cell(device):
    case = Case(1, 8, (8, 9), 2, (3, 3), padding=PAD)
    x, offset, *others = case.arrays(np.float64)
    offset = np.zeros_like(offset)
    grid = cupy_dcn.sampling_grid(offset, (3, 3), padding=1)
    for axis, at in enumerate((2.25, 5.5)):
        offset[:, axis::2] = at - grid[axis].reshape(1, 9, 8, 9)
    arrays = x, offset, *others
    found = backward(case, arrays, deterministic=True)
    assert np.count_nonzero(found.x) == 8 * 4
    assert_right(case, arrays, found, 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_stage_alone(device, dtype):
    case = LAYERS[1]
    x, offset, _, _, mask, _ = case.arrays(dtype)
    settings = {key: value for key, value in case.attributes.items() if key != "groups"}
    settings["mask"] = mask
    columns = dcn.deform_im2col(x, offset, case.kernel, **settings)
    grad = np.random.default_rng(3).standard_normal(columns.shape).astype(dtype)
    call = grad, offset, case.size, case.kernel
    found = in_orders(device, lambda: dcn.deform_col2im(*call, **settings, deterministic=True))
    assert same_bits(found)
    # The same terms in another order, in float32, and rounded to the dtype at most one step apart.
    assert_close(found[0], dcn.deform_col2im(*call, **settings), 4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("twin", twins())
def test_a_plan_gives_the_bits_of_the_function(twin):
    case = LAYERS[0]
    arrays = case.arrays(np.float32)
    with dcn.running_on(twin):
        moved = [dcn.to_device(each) for each in arrays] if dcn.on_device else arrays
        x, offset, weight, bias, mask, grad_output = moved
        plan = cupy_dcn.Plan(
            x.shape, weight, bias, **case.attributes, backward=True, deterministic=True
        )
        for _ in range(2):
            ours = plan.backward(grad_output, x, offset, mask)
            for one, other in zip(ours, backward(case, arrays, deterministic=True), strict=True):
                one = dcn.array_module.asnumpy(one) if dcn.on_device else one
                np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not has_nvrtc(), reason="there is no NVRTC to compile the kernels")
def test_a_plan_has_all_memory_and_all_kernels():
    import emulated_cupy

    # One output channel: next to nothing is reserved that could stand in for the order's share.
    case = Case(2, 64, (12, 12), 1, (3, 3), padding=PAD, deformable_groups=2)
    with dcn.running_on("emulated"):
        x, offset, weight, bias, mask, grad_output = map(dcn.to_device, case.arrays(np.float32))
        for budget in (None, 2**17):
            plan = cupy_dcn.Plan(
                x.shape, weight, bias, **case.attributes, backward=True, deterministic=True,
                workspace_bytes=budget,
            )  # fmt: skip
            compiled = _kernels.compiled()
            grads = plan.backward(grad_output, x, offset, mask)
            assert _kernels.compiled() == compiled
            with emulated_cupy.recorded() as log:
                plan.backward(grad_output, x, offset, mask, out=grads)
            assert not log.allocations
        names = [launch.name for launch in log.launches]
        assert "deform_backward_sorted" not in names
        assert names.count("deform_col2im_ordered") == 4 * names.count("rank_samples") > 4


def layer(size, kernel, deformable_groups=1, images=2):
    channels = deformable_groups
    return Geometry(
        images, channels, *size, kernel, kernel, *size, 1, 1, 0, 0, 1, 1, 1, deformable_groups
    )


def deterministic_cut(geometry, budget=2**40):
    return cut_chunks(geometry, 1, 4, 4, budget, backward=True, deterministic=True)


def test_chunks_have_as_many_points_as_can_be_ranked_and_counted():
    whole = deterministic_cut(layer((340, 340), 3))
    assert whole.tile_pixels == 2 * 340 * 340  # just below 2^20 points an image
    parts = deterministic_cut(layer((342, 342), 3))
    assert all(9 * tile.image_pixels <= MOST_POINTS for tile in parts.tiles(slice(0, 2)))
    assert parts.tile_count == 2 * 2
    # Nearly 2^31 points and cells in all: two images a chunk, then one.
    assert deterministic_cut(layer((128, 128), 1, 2**15)).images_held == 2
    assert deterministic_cut(layer((200, 200), 1, 2**15)).images_held == 1
    assert deterministic_cut(layer((64, 64), 32, 2**12)).tile_pixels == 2**9 - 1


def test_more_cells_than_kernels_can_number():
    text = (
        "deterministic=True numbers an image's 2149527760 cells, deformable_groups * (H + 3) *"
        " (W + 1), expected at most 2143289344; deterministic=False has no such limit"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        deterministic_cut(layer((23180, 23179), 1, 4))


def test_stretches_are_those_of_the_kernels():
    source = (_kernels.folder() / "order.cuh").read_text("utf-8")
    assert f"constexpr int STRETCH = {STRETCH};" in source
    assert CELLS == STRETCH
