"""The backward of few channels a group without columns: against the oracle, against columns."""

import numpy as np
import pytest
from cases import Case, assert_close, budgets
from libraries import dcn, libraries
from test_operator import NAMES, oracle_backward

import cupy_dcn
from cupy_dcn import _gpu
from cupy_dcn._cut_gpu import cut_chunks
from cupy_dcn._direct_backward_gpu import block_sums
from cupy_dcn._geometry import Geometry

PAD = (1, 1, 1, 1)


def depthwise(channels, size, kernel, **more):
    return Case(2, channels, size, channels, kernel, groups=channels, **more)


CASES = [
    depthwise(64, (5, 6), (3, 3), padding=PAD),
    depthwise(3, (9, 18), (1, 1)),  # a photograph; several tiles
    depthwise(1, (5, 6), (3, 3), padding=PAD),
    depthwise(20, (6, 9), (3, 2), padding=(1, 0, 2, 1), stride=(2, 1), masked=False),
    depthwise(5, (5, 6), (3, 3), padding=PAD),  # zeros behind five channels
    depthwise(22, (5, 6), (3, 3), padding=PAD, deformable_groups=2, dilation=(1, 2)),
    depthwise(6, (4, 5), (2, 2), deformable_groups=6),
    depthwise(72, (4, 5), (3, 3), padding=PAD),  # more vectors than are held
    depthwise(7, (6, 7), (5, 5), padding=(2, 2, 2, 2), spread=8.0),
    Case(2, 16, (5, 6), 16, (3, 3), groups=8, padding=PAD),  # 2 channels a group
    Case(2, 24, (5, 9), 24, (2, 3), groups=6, deformable_groups=2, padding=PAD),
    Case(1, 36, (6, 9), 36, (3, 3), groups=9, padding=PAD, masked=False),
]


@pytest.fixture(autouse=True, scope="module", params=libraries()[1:])
def device(request):
    """The stand-in and, where there is a GPU, CuPy."""
    with dcn.running_on(request.param):
        yield dcn.array_module


def backward(case, arrays, **settings):
    x, offset, weight, bias, mask, grad_output = arrays
    return dcn.deform_conv2d_backward(
        grad_output, x, offset, weight, bias, mask=mask, **case.attributes, **settings
    )


def expected_gradients(case, arrays):
    exact = [None if array is None else array.astype(np.float64) for array in arrays]
    x, offset, weight, _, mask, grad_output = exact
    return oracle_backward(case, grad_output, x, offset, weight, mask)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradients_are_the_oracles(case, dtype):
    # float32 sums of up to 300 terms; the halves are rounded where they are stored.
    tolerance = {8: 1e-12, 4: 3e-6, 2: 2e-3}[np.dtype(dtype).itemsize]
    arrays = case.arrays(dtype)
    found = backward(case, arrays)
    for name, gradient in expected_gradients(case, arrays).items():
        if getattr(found, name) is not None:
            assert_close(getattr(found, name).astype(np.float64), gradient, tolerance)


@pytest.mark.parametrize(
    "needs", [("x",), ("weight",), ("offset", "mask"), ("weight", "offset"), ("x", "weight")]
)
@pytest.mark.parametrize("case", [CASES[0], CASES[7]], ids=str)
def test_only_the_gradients_asked_for(case, needs):
    arrays = case.arrays(np.float64)
    found = backward(case, arrays, needs=needs)
    for name, gradient in expected_gradients(case, arrays).items():
        if name in needs:
            assert_close(getattr(found, name), gradient, 1e-12)
        else:
            assert getattr(found, name) is None


def test_the_gradients_under_any_budget():
    case = CASES[5]
    arrays = case.arrays(np.float64)
    x, offset, weight, bias, mask, grad_output = arrays
    call = grad_output, x, offset, weight, bias
    settings = {"mask": mask, **case.attributes}
    for workspace in budgets(dcn.deform_conv2d_backward, *call, **settings):
        found = backward(case, arrays, workspace_bytes=workspace)
        for name, gradient in expected_gradients(case, arrays).items():
            assert_close(getattr(found, name), gradient, 1e-12)


@pytest.mark.parametrize("most", [1, 3])
def test_blocks_walk_down_the_image(most, monkeypatch):
    # Fewer blocks than tiles: each sums several, one below the other.
    monkeypatch.setattr("cupy_dcn._cut_gpu.MOST_SUMS", most)
    case = depthwise(9, (23, 9), (3, 3), padding=PAD)
    arrays = case.arrays(np.float64)
    found = backward(case, arrays)
    for name, gradient in expected_gradients(case, arrays).items():
        assert_close(getattr(found, name), gradient, 1e-12)


def test_grad_output_may_be_a_view(device):
    case = CASES[0]
    x, offset, weight, bias, mask, grad_output = case.arrays(np.float32)
    given = [device.asarray(array) for array in (x, offset, weight, bias)]
    wide = device.asarray(np.repeat(grad_output.transpose(0, 2, 3, 1), 2, axis=3))
    found = cupy_dcn.deform_conv2d_backward(
        wide.transpose(0, 3, 1, 2)[:, ::2], *given, mask=device.asarray(mask), **case.attributes
    )
    arrays = x, offset, weight, bias, mask, grad_output
    for name, gradient in expected_gradients(case, arrays).items():
        assert_close(device.asnumpy(getattr(found, name)).astype(np.float64), gradient, 3e-6)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("case", [CASES[0], CASES[7], CASES[8]], ids=str)
def test_gradients_of_broken_masks_and_pixels_are_as_with_columns(case, value, monkeypatch):
    arrays = case.arrays(np.float32)
    arrays[4][0, :, ::2, 1] = value
    arrays[0][1, 0, 2, 3] = value
    direct = backward(case, arrays)
    monkeypatch.setattr(_gpu, "block_sums", lambda *_: None)
    columns = backward(case, arrays)
    assert np.isnan(columns.weight).any()
    for name in NAMES:
        ours, theirs = getattr(direct, name), getattr(columns, name)
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_three_kernels_and_no_columns():
    emulated_cupy = pytest.importorskip("emulated_cupy")
    case = CASES[0]
    with dcn.running_on("emulated"):
        x, offset, weight, bias, mask, _ = map(dcn.array_module.asarray, case.arrays(np.float32))
        grad_output = dcn.array_module.ones_like(x)
        with emulated_cupy.recorded() as log:
            cupy_dcn.deform_conv2d_backward(
                grad_output, x, offset, weight, bias, mask=mask, **case.attributes
            )
        assert [each.name for each in log.launches] == [
            "to_channels_last", "deform_direct_backward", "from_channels_last"
        ]  # fmt: skip
        assert not log.products


def layer(channels, kernel=3, groups=None, deformable_groups=1, size=56):
    pad = kernel // 2
    return Geometry(
        2, channels, size, size, kernel, kernel, size, size, 1, 1, pad, pad, 1, 1,
        groups or channels, deformable_groups,
    )  # fmt: skip


def test_the_rule():
    single, double = np.dtype(np.float32), np.dtype(np.float64)

    def sums(*args, dtype=single, workspace_bytes=2**26, **keywords):
        each = layer(*args, **keywords)
        return block_sums(each, each.channels, dtype, workspace_bytes)

    # 8 x 4 pixels a block, 8 bytes * 4 lanes a point less: 7 blocks across, 14 down.
    assert sums(64) == (7, 14, 9 * 64 * 4)
    assert sums(64, dtype=double) == (7, 28, 9 * 64 * 8)  # half as many threads a block
    assert sums(64, groups=32) == (7, 28, 9 * 2 * 64 * 4)
    assert sums(64, groups=16) is not None
    assert (
        sums(64, groups=16, dtype=np.dtype(np.float16)) is None
    )  # 32 weights of a vector at a tap
    assert sums(64, groups=8) is None
    assert block_sums(layer(64), 128, single, 2**26) is None  # two results a channel
    assert sums(4) is None  # threads alone at a pixel
    assert sums(8) is not None
    assert sums(8, deformable_groups=2) is None
    assert sums(64, workspace_bytes=2 * 7 * 9 * 64 * 4) is not None
    assert sums(64, workspace_bytes=2 * 7 * 9 * 64 * 4 - 1) is None  # no room for one row of blocks


@pytest.mark.parametrize("workspace_bytes", [40_000, 10**6, 2**26])
def test_sums_of_blocks_keep_within_the_budget(workspace_bytes):
    geometry = layer(64, size=256)
    sums = block_sums(geometry, 64, np.dtype(np.float32), 2**26)
    cut = cut_chunks(geometry, 64, 4, 4, workspace_bytes, True, direct=True, sums=sums)
    assert 1 <= cut.block_sums.down <= sums.down
    row = sums.across * sums.nbytes
    assert cut.worker_bytes == cut.images_held * cut.block_sums.down * row
    # An image's copies may come on top of half of the budget, a row of blocks is the least.
    assert cut.worker_bytes <= max(workspace_bytes, row)
    assert cut.images_held == 1 or cut.worker_bytes + cut.image_bytes <= workspace_bytes
