"""im2col, col2im and the coordinate gradient alone, and the layout of offsets."""

import numpy as np
import pytest
from cases import CASES, Case, assert_close, budgets
from libraries import dcn

from cupy_dcn import _oracle, _sparse_cpu

pytestmark = pytest.mark.usefixtures("library")


def stage_arguments(case, dtype=np.float64):
    x, offset, _, _, mask, _ = case.arrays(dtype)
    attributes = {k: v for k, v in case.attributes.items() if k != "groups"}
    columns = _oracle.im2col(x, offset, *case.sampling, case.groups, mask)
    grad_columns = np.random.default_rng(3).standard_normal(columns.shape).astype(dtype)
    return x, offset, mask, attributes, columns, grad_columns


@pytest.mark.parametrize("case", CASES, ids=str)
def test_im2col_matches_the_oracle(case):
    x, offset, mask, attributes, columns, _ = stage_arguments(case)
    arguments = (x, offset, case.kernel)
    keywords = {**attributes, "groups": case.groups, "mask": mask}
    for workspace in budgets(dcn.deform_im2col, *arguments, **keywords):
        ours = dcn.deform_im2col(*arguments, **keywords, workspace_bytes=workspace)
        assert ours.flags.c_contiguous
        assert_close(ours, columns, 1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_match_the_oracle(case):
    x, offset, mask, attributes, _, grad_columns = stage_arguments(case)
    expected = _oracle.backward_of_im2col(grad_columns, x, offset, *case.sampling, mask)
    scatter = (grad_columns, offset, case.size, case.kernel)
    differentiate = (grad_columns, x, offset, case.kernel)
    keywords = {**attributes, "mask": mask}
    for workspace in budgets(dcn.deform_col2im, *scatter, **keywords):
        keywords["workspace_bytes"] = workspace
        assert_close(dcn.deform_col2im(*scatter, **keywords), expected[0], 1e-13)
        grad_offset, grad_mask = dcn.deform_coord_grad(*differentiate, **keywords)
        assert_close(grad_offset, expected[1], 1e-13)
        if mask is None:
            assert grad_mask is None
        else:
            assert_close(grad_mask, expected[2], 1e-13)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_col2im_is_the_adjoint_of_im2col(case):
    x, offset, mask, attributes, _, grad_columns = stage_arguments(case)
    columns = dcn.deform_im2col(x, offset, case.kernel, **attributes, groups=case.groups, mask=mask)
    grad_x = dcn.deform_col2im(
        grad_columns, offset, case.size, case.kernel, **attributes, mask=mask
    )
    np.testing.assert_allclose(np.vdot(columns, grad_columns), np.vdot(x, grad_x), rtol=1e-12)


@pytest.mark.parametrize("case", [CASES[1], CASES[5], CASES[8]], ids=str)
def test_scipys_public_products_give_the_same(case, monkeypatch):
    x, offset, mask, attributes, columns, grad_columns = stage_arguments(case)
    expected = _oracle.backward_of_im2col(grad_columns, x, offset, *case.sampling, mask)
    monkeypatch.setattr(_sparse_cpu, "_routines", None)
    keywords = {**attributes, "mask": mask}
    sample = x, offset, case.kernel
    for workspace in budgets(dcn.deform_im2col, *sample, **keywords, groups=case.groups):
        settings = {**keywords, "workspace_bytes": workspace}
        ours = dcn.deform_im2col(*sample, **settings, groups=case.groups)
        assert_close(ours, columns, 1e-13)
    grad_x = dcn.deform_col2im(grad_columns, offset, case.size, case.kernel, **keywords)
    assert_close(grad_x, expected[0], 1e-13)


@pytest.mark.parametrize("channels", [1, 8])
def test_coordinates_longer_than_float32_can_number(channels):
    # Beyond 2^24 float32 cannot tell neighbouring pixels apart. The emulator takes minutes for so
    # many; that its kernels keep whole pixels apart from fractions is the next test's matter.
    width = 2**24 + 6 if dcn.name != "emulated" else 2**12
    x = np.zeros((1, channels, 1, width), np.float32)
    x[..., -3:] = [1, 2, 4]
    offset = np.full((1, 2, 1, 2), 0.5, np.float32)
    offset[0, 0] = 0
    columns = dcn.deform_im2col(x, offset, 1, stride=(1, width - 3))
    assert columns.shape == (1, 1, 2, 1, channels)
    np.testing.assert_array_equal(columns[0, 0, 1, 0], np.full(channels, 1.5))


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("far", [(2**25, 2**25), (2**25, 8), (8, 2**25)])
def test_padding_farther_than_float32_can_number(channels, far):
    # Padding and dilation cancel for the tap in the middle; float32 loses the pixel between them.
    x = np.random.default_rng(0).standard_normal((1, channels, 4, 4), np.float32)
    offset = np.zeros((1, 18, 4, 4), np.float32)
    columns = dcn.deform_im2col(x, offset, 3, padding=far, dilation=far)
    np.testing.assert_array_equal(columns[0, 0, :, 4].T.reshape(x[0].shape), x[0])
    assert not columns[0, 0, :, [0, 1, 2, 3, 5, 6, 7, 8]].any()


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("axis", [2, 3])
def test_fractions_far_from_the_origin_are_exact(channels, axis):
    # Beside pixel 4000 a location in float32 has 12 bits for its fraction: errors of 1e-4.
    rng, length, around = np.random.default_rng(0), 4096, 16
    x = rng.standard_normal((channels, length), np.float32)
    shift = rng.normal(0, 3, length).astype(np.float32)
    location = np.arange(length) + shift.astype(np.float64)
    cell = np.floor(location).astype(int)
    padded = np.pad(x.astype(np.float64), ((0, 0), (around, around)))
    low, high = padded[:, cell + around], padded[:, cell + around + 1]
    expected = low + (location - cell) * (high - low)
    shape = (1, channels, 1, length) if axis == 3 else (1, channels, length, 1)
    offset = np.zeros((1, 2, *shape[2:]), np.float32)
    offset[0, axis - 2] = shift.reshape(shape[2:])
    columns = dcn.deform_im2col(x.reshape(shape), offset, 1)
    assert_close(columns[0, 0, :, 0].T, expected, 5e-7)


@pytest.mark.parametrize(("new_axis", "pixels"), [(1, (2, 2)), (1, (1, 1)), (2, (1, 1))])
def test_columns_with_an_axis_made_by_none(new_axis, pixels):
    # An axis of length 1 may have any stride, and CuPy's None gives it 0.
    rng = np.random.default_rng(0)
    case = Case(3, 4, pixels, 1, (1, 1), spread=0.5)
    x, offset, _, _, mask, _ = case.arrays()
    columns = rng.standard_normal((3, 1, pixels[0] * pixels[1], 1, 4))
    flat = columns.reshape([n for axis, n in enumerate(columns.shape) if axis != new_axis])
    expected = _oracle.backward_of_im2col(columns, x, offset, *case.sampling, mask)
    if dcn.on_device:
        import cupy_dcn

        cupy = dcn.array_module
        made = cupy.asarray(flat)[(slice(None),) * new_axis + (None,)]
        moved = [cupy.asarray(array) for array in (offset, x, mask)]
        grad_x = cupy_dcn.deform_col2im(made, moved[0], pixels, 1, mask=moved[2])
        grads = cupy_dcn.deform_coord_grad(made, moved[1], moved[0], 1, mask=moved[2])
        ours = [cupy.asnumpy(array) for array in (grad_x, *grads)]
    else:
        made = flat[(slice(None),) * new_axis + (None,)]
        grads = dcn.deform_coord_grad(made, x, offset, 1, mask=mask)
        ours = [dcn.deform_col2im(made, offset, pixels, 1, mask=mask), *grads]
    for result, reference in zip(ours, expected, strict=True):
        assert_close(result, reference, 1e-13)


def test_offsets_pack_and_unpack():
    rng = np.random.default_rng(0)
    dy, dx = rng.random((2, 2, 18, 4, 5))
    offset = dcn.pack_offset(dy, dx)
    for g in range(2):
        for k in range(9):
            np.testing.assert_array_equal(offset[:, g * 18 + 2 * k], dy[:, g * 9 + k])
            np.testing.assert_array_equal(offset[:, g * 18 + 2 * k + 1], dx[:, g * 9 + k])
    again = dcn.unpack_offset(offset)
    np.testing.assert_array_equal(again[0], dy)
    np.testing.assert_array_equal(again[1], dx)
    if not dcn.on_device:
        assert all(np.shares_memory(part, offset) for part in again)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sampling_grid_is_where_the_oracle_samples(case):
    x, offset, *_ = case.arrays()
    py, px = dcn.sampling_grid(offset, case.kernel, case.stride, case.padding, case.dilation)
    taps = case.kernel[0] * case.kernel[1]
    count = 0
    for n, g, k, y, xx, y_at, x_at, _ in _oracle.samples(x, offset, *case.sampling, None):
        assert py[n, g * taps + k, y, xx] == pytest.approx(y_at, rel=1e-15)
        assert px[n, g * taps + k, y, xx] == pytest.approx(x_at, rel=1e-15)
        count += 1
    assert count == py.size == px.size
