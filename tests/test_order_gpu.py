"""The backward over sampling points ordered by cell: the order itself, the gradients, the rule."""

import itertools

import numpy as np
import pytest
from cases import Case, assert_close, budgets
from libraries import dcn, libraries
from test_operator import NAMES, oracle_backward

import cupy_dcn
from cupy_dcn import _gpu, _order_gpu
from cupy_dcn._cut import Tile
from cupy_dcn._cut_gpu import copy_cells, cut_chunks
from cupy_dcn._geometry import Geometry
from cupy_dcn._workspace import Workspace

PAD = (1, 1, 1, 1)
CASES = [
    Case(2, 32, (6, 7), 4, (3, 3), padding=PAD),
    Case(1, 20, (5, 6), 3, (3, 2), padding=(1, 0, 2, 1), masked=False),  # two lanes, three steps
    Case(1, 6, (5, 4), 2, (3, 3), padding=PAD),  # zeros behind six channels
    Case(2, 68, (4, 5), 4, (3, 3), padding=PAD, deformable_groups=2, groups=2),
    Case(1, 48, (5, 5), 4, (3, 3), padding=PAD, deformable_groups=2, stride=(2, 1)),
    Case(1, 160, (4, 5), 3, (3, 3), padding=PAD),  # walked three times
    Case(1, 32, (6, 6), 2, (3, 3), padding=(3, 3, 3, 3), spread=8.0),  # many outside
    Case(2, 32, (3, 3), 2, (3, 3), padding=PAD, spread=0.0),
    Case(1, 32, (5, 30), 2, (1, 12), dilation=(1, 2)),
    Case(3, 32, (4, 4), 2, (1, 1)),
]


@pytest.fixture(autouse=True, scope="module", params=libraries()[1:])
def device(request):
    """The stand-in and, where there is a GPU, CuPy."""
    with dcn.running_on(request.param):
        yield dcn.array_module


@pytest.fixture
def sorts(monkeypatch):
    """Order the points wherever the kernels can, not only where it pays."""
    monkeypatch.setattr(
        _gpu, "pays", lambda geometry, dtype, _: geometry.deformable_channels * dtype.itemsize > 16
    )


def backward(case, arrays, **settings):
    x, offset, weight, bias, mask, grad_output = arrays
    return dcn.deform_conv2d_backward(
        grad_output, x, offset, weight, bias, mask=mask, **case.attributes, **settings
    )


def expected(case, arrays):
    exact = [None if array is None else array.astype(np.float64) for array in arrays]
    x, offset, weight, _, mask, grad_output = exact
    return oracle_backward(case, grad_output, x, offset, weight, mask)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_match_the_oracle(case, dtype, sorts):
    # float32 sums of up to 2000 terms; the halves are rounded where they are stored.
    tolerance = {8: 1e-12, 4: 1e-5, 2: 5e-3}[np.dtype(dtype).itemsize]
    arrays = case.arrays(dtype)
    found = backward(case, arrays)
    for name, grad in expected(case, arrays).items():
        if getattr(found, name) is not None:
            assert_close(getattr(found, name).astype(np.float64), grad, tolerance)


def test_under_any_budget(sorts):
    case = CASES[0]
    arrays = case.arrays(np.float64)
    x, offset, weight, bias, mask, grad_output = arrays
    settings = {"mask": mask, **case.attributes}
    call = grad_output, x, offset, weight, bias
    for workspace in budgets(dcn.deform_conv2d_backward, *call, **settings):
        found = backward(case, arrays, workspace_bytes=workspace)
        for name, grad in expected(case, arrays).items():
            assert_close(getattr(found, name), grad, 1e-12)


@pytest.mark.parametrize("needs", [("x", "offset"), ("x", "mask"), ("x", "weight"), ("x",)])
def test_only_what_is_asked_for(needs, sorts):
    case = CASES[0]
    arrays = case.arrays(np.float64)
    found = backward(case, arrays, needs=needs)
    for name, grad in expected(case, arrays).items():
        if name in needs:
            assert_close(getattr(found, name), grad, 1e-12)
        else:
            assert getattr(found, name) is None


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_factor_that_is_no_number_is_as_without_order(value, sorts, monkeypatch):
    case = CASES[6]
    arrays = case.arrays(np.float32)
    arrays[4][0, :, ::2, 1] = value
    found = backward(case, arrays)
    monkeypatch.setattr(_gpu, "pays", lambda *_: False)
    plain = backward(case, arrays)
    for name in NAMES:
        ours, theirs = getattr(found, name), getattr(plain, name)
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_points_of_a_cell_follow_one_another(device):
    images, groups, taps, size = 2, 3, 4, (5, 6)
    geometry = Geometry(images, 6, *size, 2, 2, *size, 1, 1, 0, 0, 1, 1, 1, groups)
    rng = np.random.default_rng(0)
    offset = rng.normal(0, 2, (images, 2 * groups * taps, *size)).astype(np.float32)
    cut = cut_chunks(geometry, 4, 4, 4, 2**26, backward=True, sorts=True)
    tile = Tile(slice(0, images), slice(0, size[0]), slice(0, size[1]))
    workspace = Workspace.of(2**16, device)
    found = _order_gpu.sample_order(
        cut, device.asarray(offset), tile, np.dtype(np.float32), workspace
    )
    order = device.asnumpy(found.samples)
    assert sorted(order) == list(range(images * groups * taps * size[0] * size[1]))
    pixel, plane = order % (size[0] * size[1]), order // (size[0] * size[1])
    tap, image, group = plane % taps, plane // taps // groups, plane // taps % groups
    row, column = pixel // size[1], pixel % size[1]
    by_tap = offset.reshape(images, groups, taps, 2, *size)
    y = row + tap // 2 + by_tap[image, group, tap, 0, row, column]
    x = column + tap % 2 + by_tap[image, group, tap, 1, row, column]
    inside = (y > -1) & (y < size[0]) & (x > -1) & (x < size[1])
    cell = np.floor(y) * 100 + np.floor(x)
    keys = list(zip(image[inside], group[inside], cell[inside], strict=True))
    changes = sum(first != second for first, second in itertools.pairwise(keys))
    assert changes == len(set(keys)) - 1
    assert copy_cells(geometry) * images * groups * 4 + len(order) * 12 < 2**16


def test_the_order_is_within_the_memory_of_a_plan():
    emulated_cupy = pytest.importorskip("emulated_cupy")
    # One output channel: next to nothing is reserved that could stand in for the order's share.
    case = Case(1, 64, (20, 20), 1, (3, 3), padding=PAD, deformable_groups=2)
    with dcn.running_on("emulated"):
        x, offset, weight, bias, mask, grad_output = map(
            dcn.array_module.asarray, case.arrays(np.float32)
        )
        plan = cupy_dcn.Plan(x.shape, weight, bias, **case.attributes, backward=True)
        grads = plan.backward(grad_output, x, offset, mask)
        with emulated_cupy.recorded() as log:
            plan.backward(grad_output, x, offset, mask, out=grads)
        assert "deform_backward_sorted" in [each.name for each in log.launches]
        assert not log.allocations
        assert len(log.launches) + len(log.operations) + len(log.products) <= 16


def test_the_rule():
    def layer(channels, kernel=3, stride=1, groups=1, deformable_groups=1):
        out = 56 // stride
        return Geometry(
            2, channels, 56, 56, kernel, kernel, out, out, stride, stride, kernel // 2,
            kernel // 2, 1, 1, groups, deformable_groups,
        )  # fmt: skip

    single, double = np.dtype(np.float32), np.dtype(np.float64)
    assert _order_gpu.pays(layer(64), single, vectors=True)
    assert not _order_gpu.pays(layer(64, kernel=1), single, vectors=True)
    assert not _order_gpu.pays(layer(64, stride=2), single, vectors=True)
    assert not _order_gpu.pays(layer(16), single, vectors=True)
    assert _order_gpu.pays(layer(16), single, vectors=False)
    assert _order_gpu.pays(layer(16), double, vectors=True)
    assert not _order_gpu.pays(layer(64, deformable_groups=8), single, vectors=True)
    assert not _order_gpu.pays(layer(64, groups=2), single, vectors=True)
