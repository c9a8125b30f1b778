"""The forward without columns: against the oracle, against columns, and when it is chosen."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import Case, assert_close
from libraries import dcn, libraries
from test_operator import oracle_forward

import cupy_dcn
from cupy_dcn import _direct_gpu, _gpu, _kernels
from cupy_dcn._direct_gpu import is_direct
from cupy_dcn._geometry import Geometry

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # behind tests/, with its cases.py

import counters
import roofline
import shapes

PAD = (1, 1, 1, 1)


def depthwise(channels, size, kernel, **more):
    return grouped(channels, 1, size, kernel, 1, **more)


def grouped(channels, per_group, size, kernel, outputs, **more):
    groups = channels // per_group
    return Case(2, channels, size, groups * outputs, kernel, groups=groups, **more)


RGB = grouped(3, 3, (9, 18), (3, 3), 8, padding=PAD)  # a thread has all channels
FOURS = grouped(40, 4, (4, 5), (3, 2), 4, padding=PAD, deformable_groups=2)
CASES = [
    depthwise(64, (5, 6), (3, 3), padding=PAD),
    depthwise(3, (9, 18), (1, 1)),  # a photograph; several tiles
    depthwise(1, (5, 6), (3, 3), padding=PAD),
    depthwise(20, (6, 9), (3, 2), padding=(1, 0, 2, 1), stride=(2, 1), masked=False),
    depthwise(5, (5, 6), (3, 3), padding=PAD),  # zeros behind five channels
    depthwise(22, (5, 6), (3, 3), padding=PAD, deformable_groups=2, dilation=(1, 2)),
    depthwise(6, (4, 5), (2, 2), deformable_groups=6),
    depthwise(72, (4, 5), (3, 3), padding=PAD),  # more vectors than are held
    depthwise(28, (6, 7), (5, 5), padding=(2, 2, 2, 2), spread=8.0),
    RGB,
    grouped(1, 1, (5, 6), (2, 3), 3, masked=False),
    grouped(3, 3, (3, 4), (5, 7), 16, padding=(2, 2, 3, 3)),
    grouped(4, 2, (5, 6), (3, 2), 3, dilation=(2, 1)),
    grouped(6, 1, (4, 5), (2, 2), 2, deformable_groups=2),
    grouped(24, 1, (5, 6), (3, 3), 3, padding=PAD),  # several results a channel
    grouped(30, 1, (6, 9), (5, 3), 2, padding=(2, 2, 1, 1)),
    grouped(36, 2, (5, 6), (3, 3), 5, padding=PAD, stride=(1, 2)),
    grouped(12, 2, (4, 5), (3, 3), 1, padding=PAD, deformable_groups=2),  # zeros for a group
    FOURS,
    grouped(144, 4, (3, 4), (2, 2), 4),  # a tap has more weights than a block threads
]


@pytest.fixture(autouse=True, scope="module", params=libraries()[1:])
def device(request):
    """The stand-in and, where there is a GPU, CuPy."""
    with dcn.running_on(request.param):
        yield dcn.array_module


def forward(case, arrays):
    x, offset, weight, bias, mask, _ = arrays
    return dcn.deform_conv2d(x, offset, weight, bias, mask=mask, **case.attributes)


def geometry_of(case):
    (height, width), (top, _, left, _) = case.size, case.padding
    out = case.arrays()[5].shape[2:]
    return Geometry(
        case.images, case.channels, height, width, *case.kernel, *out, *case.stride, top, left,
        *case.dilation, case.groups, case.deformable_groups,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_output_is_the_oracles(case, dtype):
    # A thread's sums of doubles take more registers.
    assert is_direct(geometry_of(case), case.out_channels, np.dtype(dtype)) or dtype == np.float64
    # Sums of up to 105 terms in float32; the halves are rounded where they are stored.
    tolerance = {8: 1e-13, 4: 1e-6, 2: 1e-3}[np.dtype(dtype).itemsize]
    arrays = case.arrays(dtype)
    exact = [None if array is None else array.astype(np.float64) for array in arrays]
    expected = oracle_forward(case, *exact[:5])
    assert_close(forward(case, arrays).astype(np.float64), expected, tolerance)
    without = (*arrays[:3], None, *arrays[4:])
    exact[3] = np.zeros(case.out_channels)
    expected = oracle_forward(case, *exact[:5])
    assert_close(forward(case, without).astype(np.float64), expected, tolerance)


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1]], ids=["every second", "reversed"])
def test_a_bias_may_be_a_view(view, device):
    case = CASES[0]
    x, offset, weight, bias, mask, _ = case.arrays(np.float32)
    whole = np.concatenate([bias, 1 - bias])[: 2 * len(bias) if view.step == 2 else len(bias)]
    given = [device.asarray(array) for array in (x, offset, weight, whole, mask)]
    given[3] = given[3][view]
    found = cupy_dcn.deform_conv2d(*given[:4], mask=given[4], **case.attributes)
    expected = oracle_forward(case, x, offset, weight, whole[view], mask)
    assert_close(device.asnumpy(found).astype(np.float64), expected, 1e-5)


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("case", [CASES[0], CASES[8], RGB, FOURS], ids=str)
def test_broken_masks_and_pixels_are_as_with_columns(case, value, monkeypatch):
    arrays = case.arrays(np.float32)
    arrays[4][0, :, ::2, 1] = value
    arrays[0][1, 0, 2, 3] = value
    direct = forward(case, arrays)
    monkeypatch.setattr(_gpu, "is_direct", lambda *_: False)
    columns = forward(case, arrays)
    assert np.isnan(columns).any()
    np.testing.assert_array_equal(np.isnan(direct), np.isnan(columns))
    np.testing.assert_allclose(direct, columns, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [CASES[0], RGB, FOURS], ids=str)
def test_two_kernels_and_no_columns(case, monkeypatch):
    emulated_cupy = pytest.importorskip("emulated_cupy")
    monkeypatch.setattr(_kernels, "_compiled", {})
    with dcn.running_on("emulated"):
        x, offset, weight, bias, mask, _ = map(dcn.array_module.asarray, case.arrays(np.float32))
        plan = cupy_dcn.Plan(x.shape, weight, bias, **case.attributes)
        assert len(_kernels.compiled()) == 2
        layer = {"groups": case.groups, "deformable_groups": case.deformable_groups}
        count = cupy_dcn.warmup(
            case.channels, case.kernel, out_channels=case.out_channels, **layer, backward=False
        )
        assert count == 1  # sampling alone: the others are the plan's
        before = _kernels.compiled()
        with emulated_cupy.recorded() as log:
            cupy_dcn.deform_conv2d(x, offset, weight, bias, mask=mask, **case.attributes)
        assert [each.name for each in log.launches] == ["to_channels_last", "deform_direct"]
        assert not log.products
        assert _kernels.compiled() == before
        (height, width), channels = case.size, case.channels + case.channels % 4
        copies = 2 * (height + 3) * (width + 1) * channels * 4
        assert plan.nbytes < copies + weight.nbytes + bias.nbytes + 4096


def test_the_rule():
    def layer(channels, kernel=3, groups=None, deformable_groups=1):
        pad = kernel // 2
        return Geometry(
            2, channels, 56, 56, kernel, kernel, 56, 56, 1, 1, pad, pad, 1, 1, groups or channels,
            deformable_groups,
        )  # fmt: skip

    single, half, double = map(np.dtype, (np.float32, np.float16, np.float64))
    for geometry, out_channels, dtype in (
        (layer(64), 64, single),
        (layer(64), 256, single),
        (layer(64), 256, half),  # 8 channels, 32 sums
        (layer(64), 256, double),
        (layer(64, groups=16), 64, single),
        (layer(64, groups=8), 64, half),
        (layer(128, groups=32), 128, single),  # 18 KiB of weights
        (layer(512), 512, single),
        (layer(1024, deformable_groups=4), 1024, single),
        (layer(64, kernel=6), 64, single),  # 9 KiB of weights, beside 27 of sampling points
        (layer(3, groups=1), 16, single),
        (layer(3, kernel=5, groups=1), 8, half),
        (layer(8, groups=1), 16, half),
        (layer(6, groups=2, deformable_groups=2), 8, single),
    ):
        assert is_direct(geometry, out_channels, dtype), (geometry, out_channels, dtype)
    for geometry, out_channels, dtype in (
        (layer(64), 0, single),  # the stages alone
        (layer(64), 320, single),  # 20 sums
        (layer(64), 320, half),
        (layer(64), 320, double),
        (layer(64, groups=8), 64, single),  # a group is two vectors
        (layer(60, groups=20), 60, single),  # or parts of two
        (layer(64, groups=16, deformable_groups=32), 64, single),  # or has offsets of two kinds
        (layer(256, groups=64), 256, single),  # 36 KiB of weights
        (layer(1024), 1024, single),
        (layer(64, kernel=11), 64, single),  # 121 points a pixel
        (layer(3, groups=1), 17, single),
        (layer(8, groups=1), 32, half),
        (layer(5, groups=1), 2, single),
    ):
        assert not is_direct(geometry, out_channels, dtype), (geometry, out_channels, dtype)


EXAMPLES = (
    (shapes.COUNTED["S4"].of(height=32, width=32), "float32"),
    (shapes.Case("fours", 1, 64, 32, 32, 64, 3, 1, version=2, groups=16), "float32"),
    (shapes.Case("eight", 1, 8, 32, 32, 16, 3, 1, version=2), "float16"),
)


@pytest.mark.parametrize("example", range(len(EXAMPLES)))
def test_worked_examples(example, device, monkeypatch):
    """The model's times with columns and without, as they are counted now."""
    emulated_cupy = pytest.importorskip("emulated_cupy")
    case, dtype = EXAMPLES[example]
    found = {name: [] for name in roofline.DEVICES}
    for rule in (lambda *_: False, is_direct):
        monkeypatch.setattr(_gpu, "is_direct", rule)
        for capability, names in (("90", ["H100"]), ("80", ["V100", "A100", "RTX 4090"])):
            machine = {"compute_capability": capability, "count": True, "check": False}
            with dcn.running_on("emulated"), emulated_cupy.configure(**machine):
                asarray = dcn.array_module.asarray
                arrays = {name: asarray(each) for name, each in case.arrays_of(dtype).items()}
                with emulated_cupy.recorded() as log:
                    cupy_dcn.deform_conv2d(**arrays, **case.settings)
            for name in names:
                seconds = roofline.estimate(counters.steps_of(log), roofline.DEVICES[name])
                found[name].append(1e12 * seconds / case.column_elements)
    for name, (columns, direct) in found.items():
        row = re.search(rf"{name} +(.*)", _direct_gpu.__doc__)[1]
        stated = [float(value) for value in re.findall(r"[\d.]+", row)]
        # Another NVRTC compiles other instructions.
        assert [columns, direct] == pytest.approx(stated[2 * example : 2 * example + 2], rel=0.1)
        assert direct < columns
