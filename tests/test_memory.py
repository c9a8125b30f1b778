"""Temporary memory: bounded by workspace_bytes plus a documented rest, measured, not computed.

NumPy reports every array to tracemalloc. What a call may take beside its results is the budget,
the weight's copy, 1 MiB a thread, and for the weight's gradient another copy a thread and 4 MiB.
"""

import tracemalloc

import numpy as np
import pytest

import cupy_dcn
from cupy_dcn import _cpu
from cupy_dcn._arguments import GRADIENTS
from cupy_dcn._columns_cpu import BLOCK_BYTES
from cupy_dcn._cut_cpu import BACKWARD_WORDS, FORWARD_WORDS
from cupy_dcn._parallel import thread_count
from cupy_dcn._twins import twin_of
from cupy_dcn._workspace import Workspace

MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def compiled(host):
    """Have Numba's loops compiled, or loaded, before anything is traced."""
    for dtype in (np.float32, np.float64):
        for channels, budget in ((1, 50_000), (16, None)):  # the first through windows
            x, offset, weight, mask, grad_output = arrays(1, channels, (64, 64), dtype=dtype)
            settings = {"padding": 1, "mask": mask, "workspace_bytes": budget}
            cupy_dcn.deform_conv2d(x, offset, weight, **settings)
            cupy_dcn.deform_conv2d_backward(grad_output, x, offset, weight, **settings)


def peak_beside_results(function, *args, **kwargs):
    """Return the results of a call and its peak of traced memory less those arrays."""
    tracemalloc.start()
    try:
        results = function(*args, **kwargs)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    arrays = results if isinstance(results, tuple) else (results,)
    return results, peak - sum(array.nbytes for array in arrays if array is not None)


def arrays(images, channels, size, out_channels=None, groups=1, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = (images, channels, *size)
    x = rng.standard_normal(shape, np.float32).astype(dtype)
    offset = rng.standard_normal((images, 18, *size), np.float32).astype(dtype)
    offset *= np.array(1.5, dtype)
    weight = np.ones((out_channels or channels, channels // groups, 3, 3), dtype)
    mask = np.ones((images, 9, *size), dtype)
    grad_output = np.ones((images, len(weight), *size), dtype)
    return x, offset, weight, mask, grad_output


def assert_bounded(budget, x, offset, weight, mask, grad_output, groups=1):
    settings = {"padding": 1, "groups": groups, "mask": mask, "workspace_bytes": budget}
    limit = (64 * MIB if budget is None else budget) + thread_count() * MIB
    copy = weight.size * 4
    y, forward = peak_beside_results(cupy_dcn.deform_conv2d, x, offset, weight, **settings)
    assert forward <= limit + copy
    gradients, backward = peak_beside_results(
        cupy_dcn.deform_conv2d_backward, grad_output, x, offset, weight, **settings
    )
    assert backward <= limit + copy + thread_count() * (copy + min(copy, 4 * MIB))
    return y, gradients


@pytest.mark.parametrize("budget", [4 * MIB, 16 * MIB, None])
@pytest.mark.parametrize(
    ("images", "channels", "size"),
    [(1, 64, (32, 32)), (64, 16, (32, 32)), (1, 3, (512, 512)), (2, 32, (128, 128))],
)
def test_peak_stays_under_the_budget(images, channels, size, budget):
    assert_bounded(budget, *arrays(images, channels, size))


def test_peak_with_groups():
    assert_bounded(8 * MIB, *arrays(2, 64, (48, 48), groups=8), groups=8)


NEEDS = [(name,) for name in GRADIENTS] + [("x", "offset"), ("x", "weight"), ("offset", "mask")]
LARGE = [
    (2, 16, (96, 97), 1), (1, 512, (7, 8), 1),
    *[
        pytest.param(*shape, marks=pytest.mark.memory)
        for shape in (
            (64, 64, (56, 56), 1), (2, 1024, (14, 14), 1), (64, 3, (224, 224), 3),
            (1, 4, (2048, 2048), 1), (1, 12, (1024, 1024), 12),
        )
    ],
]  # fmt: skip


@pytest.mark.parametrize(("images", "channels", "size", "groups"), LARGE)
def test_peak_of_some_gradients(images, channels, size, groups):
    made = arrays(images, channels, size, groups=groups)
    x, offset, weight, mask, grad_output = made
    assert_bounded(None, *made, groups)
    sums = thread_count() * (weight.nbytes + min(weight.nbytes, 4 * MIB))
    for needs in NEEDS:
        _, peak = peak_beside_results(
            cupy_dcn.deform_conv2d_backward, grad_output, x, offset, weight, padding=1,
            groups=groups, mask=mask, needs=needs,
        )  # fmt: skip
        limit = 64 * MIB + weight.nbytes + thread_count() * MIB
        assert peak <= limit + (sums if "weight" in needs else 0), needs


@pytest.mark.parametrize(("images", "channels", "size", "groups"), LARGE)
def test_peak_of_a_plan(images, channels, size, groups):
    x, offset, weight, mask, grad_output = arrays(images, channels, size, groups=groups)
    settings = {"padding": 1, "groups": groups, "backward": True}
    tracemalloc.start()
    try:
        plan = cupy_dcn.Plan(x.shape, weight, **settings)
        made = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    limit = 64 * MIB + weight.nbytes + thread_count() * MIB
    limit += thread_count() * (weight.nbytes + min(weight.nbytes, 4 * MIB))
    assert plan.nbytes <= made <= limit
    out = plan(x, offset, mask)
    grads = plan.backward(grad_output, x, offset, mask)
    for call in (
        lambda: plan(x, offset, mask, out=out),
        lambda: plan.backward(grad_output, x, offset, mask, out=grads),
    ):
        tracemalloc.start()
        try:
            call()
            assert tracemalloc.get_traced_memory()[1] <= thread_count() * MIB / 2
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("images", "channels", "size", "groups"), LARGE)
def test_peak_of_the_stages(images, channels, size, groups):
    x, offset, _, mask, _ = arrays(images, channels, size, groups=groups)
    settings = {"padding": 1, "mask": mask, "workspace_bytes": 16 * MIB}
    calls = [(cupy_dcn.deform_im2col, (x, offset, 3), {"groups": groups})]
    shape = images, groups, size[0] * size[1], 9, channels // groups
    columns = np.ones(shape, np.float32)
    calls += [(cupy_dcn.deform_col2im, (columns, offset, size, 3), {})]
    calls += [(cupy_dcn.deform_coord_grad, (columns, x, offset, 3), {})]
    for function, arguments, more in calls:
        _, peak = peak_beside_results(function, *arguments, **settings, **more)
        assert peak <= 16 * MIB + thread_count() * MIB


@pytest.mark.parametrize("budget", [16 * MIB, None])
@pytest.mark.parametrize(("images", "channels", "size", "groups"), LARGE)
def test_peak_of_the_derivatives(images, channels, size, groups, budget):
    x, offset, weight, mask, grad_output = arrays(images, channels, size, groups=groups)
    direction = cupy_dcn.Tangents(x, offset, weight, None, mask)
    settings = {"padding": 1, "groups": groups, "mask": mask, "workspace_bytes": budget}
    # A backward's, with the weight's direction beside it.
    limit = (budget or 64 * MIB) + thread_count() * MIB + 2 * weight.nbytes
    _, peak = peak_beside_results(
        cupy_dcn.deform_conv2d_jvp, x, offset, weight, tangents=direction, **settings
    )
    assert peak <= limit
    _, peak = peak_beside_results(
        cupy_dcn.deform_conv2d_double_backward, grad_output, x, offset, weight,
        cotangents=direction, **settings,
    )  # fmt: skip
    assert peak <= limit + thread_count() * (weight.nbytes + min(weight.nbytes, 4 * MIB))


@pytest.mark.parametrize("channels", [2, 16])
def test_peak_of_half_precision_images_too_large_to_copy(channels):
    assert_bounded(2 * MIB, *arrays(1, channels, (256, 256), dtype=np.float16))


@pytest.mark.memory
def test_an_image_of_16_million_pixels_runs_in_the_default_budget():
    x, offset, weight, _, grad_output = arrays(1, 1, (4096, 4096))
    offset[...] = 0  # then it is a sum of shifted images, which needs no oracle
    y, gradients = assert_bounded(None, x, offset, weight, None, grad_output)
    padded = np.pad(x[0, 0], 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    np.testing.assert_allclose(
        y[0, 0], rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:], atol=2e-5, rtol=0
    )
    inside = gradients.x[0, 0, 1:-1, 1:-1]
    assert (inside == 9).all()
    corner = np.float64(x[0, 0, :-1, :-1]).sum()  # tap (0, 0) sees all but the last row and column
    np.testing.assert_allclose(gradients.weight[0, 0, 0, 0], corner, atol=1e-4 * 4096)


@pytest.mark.parametrize("channels", [4, 8])
def test_windows_give_what_whole_images_give(channels):
    # The same call under a budget that holds the image and under one that holds only windows.
    made = arrays(2, channels, (20, 25), 3)
    x, offset, weight, mask, grad_output = (array.astype(float) for array in made)
    offset *= 4
    settings = {"padding": 1, "mask": mask}
    y = cupy_dcn.deform_conv2d(x, offset, weight, **settings)
    gradients = cupy_dcn.deform_conv2d_backward(grad_output, x, offset, weight, **settings)
    for budget in (20_000, 50_000):
        small = {**settings, "workspace_bytes": budget}
        again = cupy_dcn.deform_conv2d(x, offset, weight, **small)
        np.testing.assert_allclose(again, y, atol=1e-12 * np.abs(y).max())
        others = cupy_dcn.deform_conv2d_backward(grad_output, x, offset, weight, **small)
        for one, other in zip(gradients, others, strict=True):
            if one is not None:
                np.testing.assert_allclose(other, one, atol=1e-12 * np.abs(one).max())


class Meter(Workspace):
    """A workspace that knows the most it handed out at a time."""

    most = 0

    def empty(self, shape, dtype):
        array = super().empty(shape, dtype)
        assert np.shares_memory(array, self._block), "more than there is was asked for"
        self.most = max(self.most, self._used)
        return array


each_setting = pytest.mark.parametrize("setting", ["plain", "v1", "infinite mask", "far"])


def run_both(made, setting, **more):
    """Call forward and backward."""
    x, offset, weight, mask, grad_output = made
    far = 2**25 if setting == "far" else 1  # cancels out, and takes locations in float64
    mask = None if setting == "v1" else mask
    if setting == "infinite mask":
        mask = np.full_like(mask, np.inf)
    more |= {"padding": far, "dilation": far, "mask": mask}
    with np.errstate(all="ignore"):
        cupy_dcn.deform_conv2d(x, offset, weight, **more)
        cupy_dcn.deform_conv2d_backward(grad_output, x, offset, weight, **more)


@each_setting
@pytest.mark.parametrize("channels", [1, 4, 5, 16])
def test_words_that_live_at_once(monkeypatch, channels, setting):
    twin = twin_of(np.empty(0))
    taken, allocate = [], twin.allocate

    def metered(cuts, like):
        (memory,) = allocate(cuts, like)
        taken.append((cuts[0], Meter.of(2**26)))  # more than there is, so that all is counted
        return [memory._replace(workspaces=[taken[-1][1]])]

    monkeypatch.setattr(twin, "allocate", metered)
    monkeypatch.setattr(_cpu, "thread_count", lambda: 1)
    run_both(arrays(1, channels, (64, 64), 4), setting, workspace_bytes=2**25)
    for (cut, meter), bound in zip(taken, (FORWARD_WORDS, BACKWARD_WORDS), strict=True):
        backward = bound == BACKWARD_WORDS
        columns = cut.tile_pixels * 4 * ((2 if backward else 1) * 9 * channels + 2 * 4)
        window = cut.image_bytes if backward else 0
        gathered = BLOCK_BYTES if backward else 0  # of the fixed part
        besides = meter.most - window - columns - cut.weight_bytes - gathered
        assert cut.tile_pixels * cut.tile_count >= 64 * 64
        words = besides / (4 * 9 * cut.tile_pixels)
        assert words <= bound
        if twin is _cpu:  # compiled loops keep few words a sample, but are cut as NumPy's are
            assert words > bound / 4


@each_setting
@pytest.mark.parametrize("budget", [2**25, 400_000])
@pytest.mark.parametrize(
    ("channels", "groups", "dtype"),
    [(3, 1, np.float32), (4, 2, np.float16), (12, 2, np.float64), (16, 1, np.float16)],
)
def test_workers_get_all_they_ask_for(monkeypatch, channels, groups, dtype, budget, setting):
    assert_enough(monkeypatch, channels, groups, dtype, budget, setting)


def test_workers_get_copies_of_many_columns_by_group(monkeypatch):
    assert_enough(monkeypatch, 64, 4, np.float32, 2**25, "plain")


def assert_enough(monkeypatch, channels, groups, dtype, budget, setting):
    empty, asked = Workspace.empty, []

    def within(workspace, shape, kind):
        array = empty(workspace, shape, kind)
        asked.append(array.nbytes == 0 or np.may_share_memory(array, workspace._block))
        return array

    monkeypatch.setattr(Workspace, "empty", within)
    made = arrays(1, channels, (64, 64), 4, groups, dtype)
    run_both(made, setting, groups=groups, workspace_bytes=budget)
    assert len(asked) > 10
    assert all(asked)
