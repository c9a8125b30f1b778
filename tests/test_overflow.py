"""Sizes near 2^31 and 2^63: an error that names the number itself, or the right result.

Arrays are one number in memory, repeated by strides of zero, so a shape may be as large as there
are. What the functions refuse they refuse before any work: nothing here takes memory or time.
"""

import numpy as np
import pytest
from libraries import dcn, has_nvrtc

import cupy_dcn

BIG = 2**31 - 1
needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="no CuPy arrays without NVRTC here")


def ours(*shape):
    """Return float32 zeros of the library whose turn it is, all of them one number in memory."""
    library, number = dcn.array_module, np.zeros(1, np.float32)
    memory = library.asarray(number).data
    return library.ndarray(shape, np.float32, memory, strides=(0,) * len(shape))


# Attributes


def forward(x, offset, mask=None, kernel=(3, 3), **attributes):
    return cupy_dcn.deform_conv2d(x, offset, ours(1, 1, *kernel), mask=mask, **attributes)


def backward(x, offset, mask=None, kernel=(3, 3), **attributes):
    weight = ours(1, 1, *kernel)
    return cupy_dcn.deform_conv2d_backward(x, x, offset, weight, mask=mask, **attributes)


def sample(x, offset, mask=None, kernel=(3, 3), **attributes):
    return cupy_dcn.deform_im2col(x, offset, kernel, mask=mask, **attributes)


def scatter(x, offset, mask=None, kernel=(3, 3), **attributes):
    columns = ours(1, 1, 1, 1, 1)
    return cupy_dcn.deform_col2im(columns, offset, x.shape[2:], kernel, mask=mask, **attributes)


def differentiate(x, offset, mask=None, kernel=(3, 3), **attributes):
    columns = ours(1, 1, 1, 1, 1)
    return cupy_dcn.deform_coord_grad(columns, x, offset, kernel, mask=mask, **attributes)


def plan(x, offset, mask=None, kernel=(3, 3), **attributes):
    made = cupy_dcn.Plan(x.shape, ours(1, 1, *kernel), masked=mask is not None, **attributes)
    return made(x, offset, mask)


CALLS = forward, backward, sample, scatter, differentiate, plan
INTEGERS = int, np.int64, np.int32, np.uint32


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_products_of_attributes_are_whole(library, call, kind):
    x, big = ours(1, 1, 5, 5), kind(BIG)
    # dilation*(kernel - 1) + 1, in the message; 2^32 - 1 is -1 in 32 bits, and would fit.
    with pytest.raises(ValueError, match=rf"\+ 1 = {2 * BIG + 1} is larger than .* 5 \+ 0 \+ 0"):
        call(x, ours(1, 18, 3, 3), dilation=big)
    # The padded size, of which a wrapped sum is negative: a batch is looked at before a size.
    with pytest.raises(ValueError, match=rf"5 \+ {BIG} \+ {BIG} = {5 + 2 * BIG}"):
        call(x, ours(1, 22, 3, 3), kernel=(11, 1), padding=big, dilation=big)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "groups", "deformable_groups"])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_attributes_beyond_31_bits(library, call, name):
    if name == "groups" and call in (scatter, differentiate):
        pytest.skip("reads the groups from the columns")
    x, offset = ours(1, 1, 5, 5), ours(1, 18, 3, 3)
    for value in (BIG + 1, 2**32, 2**63 - 1, 2**63, 2**64 + 1, np.uint64(2**64 - 1)):
        with pytest.raises(ValueError, match=f"{name} must be at most {BIG}, got {value}; larger"):
            call(x, offset, **{name: value})
    for value in (-(2**31), -(2**32) + 1, -(2**63), -(2**64) + 1, np.int64(-(2**63))):
        with pytest.raises(ValueError, match=f"{name} must be at least [01], got {value}; "):
            call(x, offset, **{name: value})
    for value in (10**5000, -(10**5000)):  # too long to be written out
        with pytest.raises(ValueError, match=f"{name} must be at (mo|lea)st .*thousands of digits"):
            call(x, offset, **{name: value})


@pytest.mark.parametrize("kind", INTEGERS, ids=lambda kind: kind.__name__)
def test_channels_of_offset_and_columns_are_whole(library, kind):
    # KH*KW is 1 in 32 bits, 2*DG*KH*KW is 8 - 2^35 in 64 bits with 4 groups.
    x, wide, offset = ours(1, 1, 5, 5), ours(1, 4, 5, 5), ours(1, 2, 1, 1)
    big, taps = kind(BIG), BIG**2
    with pytest.raises(ValueError, match=rf"2\*deformable_groups\*KH\*KW = {2 * taps} "):
        cupy_dcn.deform_im2col(x, offset, big, padding=big)
    with pytest.raises(ValueError, match=rf"deformable_groups\*KH\*KW = {8 * taps} "):
        cupy_dcn.deform_im2col(wide, offset, big, padding=big, deformable_groups=kind(4))
    with pytest.raises(ValueError, match=rf"= \(1, 1, {(BIG + 6) * (BIG + 7)}, {taps}, 1\);"):
        cupy_dcn.deform_col2im(ours(1, 1, 36, 1, 1), offset, (kind(5), 6), big, padding=big)
    with pytest.raises(ValueError, match=rf"multiple of 2\*KH\*KW = {2 * taps} "):
        cupy_dcn.sampling_grid(offset, big)


# Locations


def small():
    """Return x and a 3x3 weight."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((1, 1, 5, 5)), rng.standard_normal((1, 1, 3, 3))


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", INTEGERS[1:3], ids=lambda kind: kind.__name__)
def test_locations_beyond_31_bits_are_right(library, kind):
    # Rows lie at -B, 0, B, the last before its padding is taken off at 2 B. Offsets, whole numbers
    # that float64 holds, bring the outer ones back into the image.
    x, weight = small()[0], np.array([[[[2.0]]]])
    offset = np.zeros((1, 2, 3, 3))
    offset[0, 0], offset[0, 1] = [[BIG + 1], [2], [3 - BIG]], [BIG, 4, 2 - BIG]
    attributes = {"stride": kind(BIG), "padding": kind(BIG)}
    expected = 2 * x[:, :, [1, 2, 3]][:, :, :, [0, 4, 2]]
    assert_same(dcn.deform_conv2d(x, offset, weight, **attributes), expected)
    grads = dcn.deform_conv2d_backward(expected, x, offset, weight, **attributes)
    counts = np.zeros((5, 5))
    counts[np.ix_([1, 2, 3], [0, 4, 2])] = 4
    assert_same(grads.x[0, 0], counts * x[0, 0])
    assert_same(grads.weight, [[[[(expected**2).sum() / 2]]]])
    py, px = dcn.sampling_grid(offset, 1, **attributes)
    assert_same([py[0, 0, :, 0], px[0, 0, 0]], [[1, 2, 3], [0, 4, 2]])


def test_same_padding_beyond_31_bits_is_right(library):
    # All taps but the one in the middle lie in the padding, 2^31 zeros and more.
    x, weight = small()
    offset, grad_output = np.zeros((1, 18, 5, 5)), x + 1
    attributes = {"padding": "SAME", "dilation": np.int32(BIG)}
    middle = weight[0, 0, 1, 1]
    assert_same(dcn.deform_conv2d(x, offset, weight, **attributes), middle * x)
    grads = dcn.deform_conv2d_backward(grad_output, x, offset, weight, **attributes)
    assert_same(grads.x, middle * grad_output)
    expected = np.zeros((1, 1, 3, 3))
    expected[0, 0, 1, 1] = (grad_output * x).sum()
    assert_same(grads.weight, expected)


# Shapes


TOO_LARGE = r"would take {} bytes, expected at most 2\^63 - 1"


def test_results_beyond_63_bits(library):
    half, images = 2**20, 2**17
    x, offset = ours(images, 1, half, half), ours(images, 2, half, half)
    with pytest.raises(ValueError, match="the output of .*" + TOO_LARGE.format(2**90)):
        cupy_dcn.deform_conv2d(x, offset, ours(2**31, 1, 1, 1))
    with pytest.raises(ValueError, match="the output of .*" + TOO_LARGE.format(2**90)):
        cupy_dcn.deform_conv2d_backward(x, x, offset, ours(2**31, 1, 1, 1))
    with pytest.raises(ValueError, match="the columns of .*" + TOO_LARGE.format(2**65)):
        cupy_dcn.deform_im2col(
            ours(2**13, 2**6, 2**14, 2**14), ours(2**13, 2**17, 2**14, 2**14), 2**8,
            padding=(127, 128, 127, 128),
        )  # fmt: skip
    with pytest.raises(ValueError, match="grad_x of .*" + TOO_LARGE.format(BIG * BIG * 2**22)):
        cupy_dcn.deform_col2im(
            ours(1, 2**10, 1, 1, 2**10), ours(1, 2, 1, 1), (BIG, BIG), 1, stride=BIG
        )
    with pytest.raises(ValueError, match="the offset of .*" + TOO_LARGE.format(2**63)):
        cupy_dcn.pack_offset(ours(1, 2**60, 1, 1), ours(1, 2**60, 1, 1))


def test_plans_beyond_63_bits(library):
    for batch in (1, 0):  # an empty batch has sizes, too
        with pytest.raises(ValueError, match="^x of .*" + TOO_LARGE.format(BIG**2 * 8 * 4)):
            cupy_dcn.Plan((batch, 8, BIG, BIG), ours(1, 8, 1, 1))
        with pytest.raises(ValueError, match="the output of .*" + TOO_LARGE.format(2**64)):
            cupy_dcn.Plan((batch, 1, 2**20, 2**20), ours(2**22, 1, 1, 1))
    for value in (2**31, 2**63, 10**5000):
        with pytest.raises(ValueError, match=f"x_shape must be at most {BIG}, got"):
            cupy_dcn.Plan((1, 1, value, 1), ours(1, 1, 1, 1))
    for value in (2**63, 2**64, 10**5000, np.uint64(2**63)):
        with pytest.raises(ValueError, match=f"workspace_bytes must be at most {2**63 - 1}, got"):
            cupy_dcn.Plan((1, 1, 5, 5), ours(1, 1, 1, 1), workspace_bytes=value)


def test_any_budget_is_no_more_than_a_bound(library):
    x, weight = small()
    offset = np.zeros((1, 18, 5, 5))
    for budget in (2**31, 2**32, 2**63 - 1, np.int64(2**63 - 1)):
        y = dcn.deform_conv2d(x, offset, weight, padding=1, workspace_bytes=budget)
        assert_same([y[0, 0, 2, 2]], [(x[0, 0, 1:4, 1:4] * weight[0, 0]).sum()])


@needs_nvrtc
def test_arrays_beyond_63_bits_of_cupy():
    # CuPy's may claim any shape, its count of elements wraps: a gradient would be of that size.
    with dcn.running_on("emulated"):
        x, offset = ours(2**31, 1, 2**16, 2**14), ours(2**31, 2, 2**16, 2**14)
        with pytest.raises(ValueError, match="x of .*" + TOO_LARGE.format(2**63)):
            cupy_dcn.deform_conv2d(x, offset, ours(1, 1, 1, 1))
        with pytest.raises(ValueError, match="offset of .*" + TOO_LARGE.format(2**63)):
            cupy_dcn.deform_conv2d(x[: 2**30], offset[: 2**30], ours(1, 1, 1, 1))


@needs_nvrtc
def test_a_copy_beyond_63_bits_of_an_image_that_fits():
    with dcn.running_on("emulated"):
        weight = ours(1, 1, 1, 1)  # with a border of a cell around 2^61 - 2^30 of them
        with pytest.raises(ValueError, match=r"temporary memory of .* at most 2\^63 - 1"):
            cupy_dcn.Plan((1, 1, BIG, 2**30), weight)


# A layer that only is compiled


def test_layers_beyond_31_bits():
    for name in ("channels", "out_channels", "kernel_size", "groups", "deformable_groups"):
        for value in (2**31, 2**63, np.uint64(2**64 - 1), 10**5000):
            with pytest.raises(ValueError, match=f"{name} must be at most {BIG}, got"):
                cupy_dcn.warmup(**{"channels": 8, name: value})
    with pytest.raises(ValueError, match=rf"2\*deformable_groups\*KH\*KW is {2 * BIG**2}, "):
        cupy_dcn.warmup(8, (BIG, np.int32(BIG)))
    with pytest.raises(ValueError, match=rf"C_in/groups\*KH\*KW is {9 * 2**30}, "):
        cupy_dcn.warmup(np.int32(2**30))
