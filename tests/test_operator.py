"""deform_conv2d and its backward: against the oracle, known vectors and the invariants."""

import inspect
import math

import numpy as np
import pytest
from cases import CASES, Case, assert_close, budgets, least_workspace, plain_convolution
from hypothesis import given, settings
from hypothesis import strategies as st
from libraries import dcn

import cupy_dcn
from cupy_dcn import _oracle, _pullback_cpu

pytestmark = pytest.mark.usefixtures("library")

NAMES = ("x", "offset", "weight", "bias", "mask")


def oracle_forward(case, x, offset, weight, bias, mask):
    return _oracle.forward(x, offset, weight, bias, *case.sampling[1:], case.groups, mask)


def oracle_backward(case, grad_output, x, offset, weight, mask):
    found = _oracle.backward(grad_output, x, offset, weight, *case.sampling[1:], case.groups, mask)
    return dict(zip(NAMES, found, strict=True))


def assert_call_matches_oracle(case, dtype, tolerance, workspaces=(None,)):
    x, offset, weight, bias, mask, grad_output = case.arrays(dtype)
    expected = oracle_forward(case, x, offset, weight, bias, mask)
    gradients = oracle_backward(case, grad_output, x, offset, weight, mask)
    for workspace in workspaces:
        settings = {**case.attributes, "mask": mask, "workspace_bytes": workspace}
        assert_close(dcn.deform_conv2d(x, offset, weight, bias, **settings), expected, tolerance)
        ours = dcn.deform_conv2d_backward(grad_output, x, offset, weight, bias, **settings)
        for name in NAMES:
            if name == "mask" and mask is None:
                assert ours.mask is None
            else:
                assert_close(getattr(ours, name), gradients[name], tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle_in_float64_under_any_budget(case):
    x, offset, weight, bias, mask, grad_output = case.arrays()
    arguments = (grad_output, x, offset, weight, bias)
    workspaces = budgets(dcn.deform_conv2d_backward, *arguments, **case.attributes, mask=mask)
    assert_call_matches_oracle(case, np.float64, 1e-12, workspaces)


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[12]], ids=str)
def test_windows_remember_tiles_by_runs(case, monkeypatch):
    # Of so many tiles that what each reaches is not remembered by itself: 4096, here 3.
    monkeypatch.setattr(_pullback_cpu, "MOST_RUNS", 3)
    x, offset, weight, bias, mask, grad_output = case.arrays()
    arguments = (grad_output, x, offset, weight, bias)
    least = least_workspace(dcn.deform_conv2d_backward, *arguments, **case.attributes, mask=mask)
    assert_call_matches_oracle(case, np.float64, 1e-12, [least])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_the_oracle_in_float32(case):
    assert_call_matches_oracle(case, np.float32, 5e-6)


@st.composite
def small_cases(draw):
    """Draw a call: any attributes for which the output is not empty."""
    groups, deformable_groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    channels = math.lcm(groups, deformable_groups) * draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 4))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - before - after), 8))
        for k, d, before, after in zip(kernel, dilation, padding[::2], padding[1::2], strict=True)
    ]
    return Case(
        draw(st.integers(0, 3)),
        channels,
        tuple(size),
        groups * draw(st.integers(1, 2)),
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        padding,
        dilation,
        deformable_groups,
        groups,
        draw(st.booleans()),
        draw(st.sampled_from([0.5, 2.0, 20.0])),
        draw(st.integers(0, 10**6)),
    )


@settings(max_examples=40, deadline=None)
@given(small_cases())
def test_matches_the_oracle_for_any_attributes(case):
    assert_call_matches_oracle(case, np.float64, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_offset_is_plain_convolution(case):
    x, offset, weight, bias, _, _ = case.arrays()
    ours = dcn.deform_conv2d(x, np.zeros_like(offset), weight, bias, **case.attributes)
    expected = plain_convolution(
        x, weight, bias, case.stride, case.padding, case.dilation, case.groups
    )
    assert_close(ours, expected, 1e-12)


@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (-1, 3)])
def test_whole_offset_is_shifted_convolution(shift):
    case = CASES[5]
    x, offset, weight, bias, _, _ = case.arrays()
    dy = np.full((2, 9, *offset.shape[2:]), float(shift[0]))
    dx = np.full_like(dy, float(shift[1]))
    ours = dcn.deform_conv2d(x, cupy_dcn.pack_offset(dy, dx), weight, bias, **case.attributes)
    wide = np.pad(x, ((0, 0), (0, 0), (4, 4), (4, 4)))
    shifted = np.roll(wide, (-shift[0], -shift[1]), axis=(2, 3))[:, :, 3:-3, 3:-3]
    expected = plain_convolution(shifted, weight, bias, (1, 1), (0, 0, 0, 0), (1, 1), 1)
    assert_close(ours, expected, 1e-12)


@pytest.mark.parametrize("case", [CASES[1], CASES[7]], ids=str)
def test_mask_of_ones_is_no_mask(case):
    x, offset, weight, bias, mask, _ = case.arrays()
    without = dcn.deform_conv2d(x, offset, weight, bias, **case.attributes)
    ones = dcn.deform_conv2d(x, offset, weight, bias, **case.attributes, mask=np.ones_like(mask))
    assert_close(ones, without, 1e-15)


@pytest.mark.parametrize("case", [case for case in CASES if case.spread == 1.5], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_differences(case, name):
    x, offset, weight, bias, mask, grad_output = case.arrays()
    # Away from grid lines, where the derivative by the offset jumps.
    grid = np.floor(offset)
    offset = grid + 0.1 + 0.8 * (offset - grid)
    if name == "mask" and mask is None:
        mask = np.ones((len(x), offset.shape[1] // 2, *offset.shape[2:]))
    arguments = {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    ours = dcn.deform_conv2d_backward(grad_output, **arguments, **case.attributes, needs=(name,))
    rng = np.random.default_rng(1)
    direction, step = rng.standard_normal(arguments[name].shape), 1e-3
    direction /= np.abs(direction).max()

    def loss(sign):
        moved = {**arguments, name: arguments[name] + sign * step * direction}
        return np.sum(grad_output * dcn.deform_conv2d(**moved, **case.attributes))

    # The output is linear in each of them while no sample crosses a grid line, except in dy
    # and dx together (their product): the central difference is exact but for step^2.
    slope = (loss(1) - loss(-1)) / (2 * step)
    np.testing.assert_allclose(np.sum(getattr(ours, name) * direction), slope, rtol=1e-8, atol=1e-8)


ARANGE = np.arange(9.0).reshape(1, 1, 3, 3)


def test_onnx_vector_with_padding():
    offset = np.zeros((1, 8, 4, 4))
    offset[0, 0, 0, 0], offset[0, 5, 1, 2] = 0.5, -0.1
    ours = dcn.deform_conv2d(ARANGE, offset, np.ones((1, 1, 2, 2)), padding=1)
    expected = [[0, 1, 3, 2], [3, 8, 11.9, 7], [9, 20, 24, 13], [6, 13, 15, 8]]
    np.testing.assert_allclose(ours[0, 0], expected, rtol=1e-14)


def test_onnx_vector_with_bias_and_mask():
    offset = np.zeros((1, 8, 2, 2))
    offset[0, 0, 0, 0], offset[0, 5, 0, 1] = 0.5, -0.1
    weight, mask = np.ones((1, 1, 2, 2)), np.ones((1, 4, 2, 2))
    plain = dcn.deform_conv2d(ARANGE, offset, weight)
    np.testing.assert_allclose(plain[0, 0], [[9.5, 11.9], [20, 24]], rtol=1e-14)
    mask[0, 2, 1, 1] = 0.2
    ours = dcn.deform_conv2d(ARANGE, offset, weight, np.ones(1), mask=mask)
    np.testing.assert_allclose(ours[0, 0], [[10.5, 12.9], [21, 19.4]], rtol=1e-14)


def test_onnx_vector_with_two_deformable_groups():
    x = np.concatenate([ARANGE, ARANGE[:, :, ::-1, ::-1]], axis=1)
    offset = np.zeros((1, 16, 2, 2))
    offset[0, 0, 0, 0], offset[0, 13, 0, 1] = 0.5, -0.1
    ours = dcn.deform_conv2d(x, offset, np.ones((1, 2, 2, 2)), deformable_groups=2)
    np.testing.assert_allclose(ours[0, 0], [[33.5, 32.1], [32, 32]], rtol=1e-14)


@pytest.mark.parametrize("masked", [False, True])
def test_shapes_of_paddles_documented_examples(masked):
    rng = np.random.default_rng(0)
    x, weight = rng.random((8, 1, 28, 28)), rng.random((16, 1, 3, 3))
    offset = rng.random((8, 18, 26, 26))
    mask = rng.random((8, 9, 26, 26)) if masked else None
    assert dcn.deform_conv2d(x, offset, weight, mask=mask).shape == (8, 16, 26, 26)


def test_signature_is_paddles():
    # paddle.vision.ops.deform_conv2d, paddlepaddle 3.3.1; the rest is keyword-only.
    paddle = {
        "x": inspect.Parameter.empty,
        "offset": inspect.Parameter.empty,
        "weight": inspect.Parameter.empty,
        "bias": None,
        "stride": 1,
        "padding": 0,
        "dilation": 1,
        "deformable_groups": 1,
        "groups": 1,
        "mask": None,
        "name": None,
    }
    forward = inspect.signature(cupy_dcn.deform_conv2d).parameters
    positional = [p for p in forward.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert {p.name: p.default for p in positional} == paddle
    assert [p.name for p in positional] == list(paddle)
    extras = {p.name: p.default for p in forward.values() if p.kind is p.KEYWORD_ONLY}
    assert extras == {"out": None, "workspace_bytes": None, "progress": None}
    backward = inspect.signature(cupy_dcn.deform_conv2d_backward).parameters
    assert list(backward)[:12] == ["grad_output", *paddle]
    extras = {p.name: p.default for p in backward.values() if p.kind is p.KEYWORD_ONLY}
    assert extras == {
        "needs": NAMES, "workspace_bytes": None, "deterministic": False, "progress": None
    }  # fmt: skip


def test_name_is_accepted_and_ignored():
    offset, weight = np.zeros((1, 2, 3, 3)), np.ones((1, 1, 1, 1))
    ours = dcn.deform_conv2d(ARANGE, offset, weight, name="anything")
    np.testing.assert_array_equal(ours, ARANGE)


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (1, (1, 1, 1, 1)),
        (np.int64(2), (2, 2, 2, 2)),
        ((1, 2), (1, 1, 2, 2)),
        ([0, 1, 2, 3], (0, 1, 2, 3)),
        ("VALID", (0, 0, 0, 0)),
        ("SAME", (1, 2, 1, 1)),
    ],
)
def test_forms_of_padding(padding, sides):
    case = Case(1, 2, (8, 7), 2, (4, 3), padding=sides, dilation=(1, 1))
    x, offset, weight, bias, mask, _ = case.arrays()
    expected = oracle_forward(case, x, offset, weight, bias, mask)
    assert_close(
        dcn.deform_conv2d(x, offset, weight, bias, padding=padding, mask=mask), expected, 1e-12
    )


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 5), st.integers(1, 4))
def test_same_padding_gives_ceil_of_size_by_stride(size, kernel, stride, dilation):
    wanted = -(-size // stride)
    x, weight = np.ones((1, 1, size, 1)), np.ones((1, 1, kernel, 1))
    offset = np.zeros((1, 2 * kernel, wanted, 1))
    y = dcn.deform_conv2d(x, offset, weight, None, (stride, 1), "same", (dilation, 1))
    assert y.shape == (1, 1, wanted, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 30), st.integers(0, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3)
)
def test_output_size_is_the_largest_that_fits(size, pad, kernel, stride, dilation):
    from cupy_dcn._geometry import output_size

    found = output_size(size, 2 * pad, kernel, stride, dilation)
    last = (found - 1) * stride + dilation * (kernel - 1)
    assert found == 0 or last <= size + 2 * pad - 1
    assert last + stride > size + 2 * pad - 1
