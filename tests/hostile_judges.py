"""What judges the calls of hostile.py: plain loops in float64, by the functions' names.

Second derivatives, which the oracle has not, are judged by the same call on sound float64 arrays;
that those are right is test_derivatives.py's matter.
"""

import numpy as np

import cupy_dcn
from cupy_dcn import _oracle

ARGUMENTS = ("x", "offset", "weight", "bias", "mask")
DIRECTION = {f"d_{name}": name for name in ARGUMENTS}


def oracle_forward(case, a):
    return [_oracle.forward(
        a["x"], a["offset"], a["weight"], a["bias"], *case.sampling[1:], case.groups, a.get("mask")
    )]  # fmt: skip


def oracle_backward(case, a):
    return list(_oracle.backward(
        a["grad_output"], a["x"], a["offset"], a["weight"], *case.sampling[1:], case.groups,
        a.get("mask"),
    ))  # fmt: skip


def oracle_jvp(case, a):
    """Return the output and its derivative, the sum of one for every argument that moves."""
    mask = a.get("mask")
    still = np.zeros(len(a["weight"]))

    def output(x, weight, bias, mask):
        return _oracle.forward(
            x, a["offset"], weight, bias, *case.sampling[1:], case.groups, mask
        )  # fmt: skip

    moved = output(a["d_x"], a["weight"], a.get("d_bias", still), mask)
    moved = moved + output(a["x"], a["d_weight"], still, mask)
    if mask is not None:
        moved = moved + output(
            a["x"], a["weight"], still, np.where(inside(case, a), a["d_mask"], 0)
        )
    moved = moved + moved_samples(case, a)
    return [output(a["x"], a["weight"], a["bias"], mask), moved]


def inside(case, a):
    """Return 1 for the samples in the image, 0 for those outside, which no direction moves."""
    found = np.zeros(a["mask"].shape)
    taps = case.kernel[0] * case.kernel[1]
    for n, g, k, y, x, py, px, _ in _oracle.samples(a["x"], a["offset"], *case.sampling, None):
        found[n, g * taps + k, y, x] = bool(_oracle.corners(*a["x"].shape[2:], py, px))
    return found


def moved_samples(case, a):
    """Return the output's derivative along the offset's direction."""
    out = np.zeros(_oracle.forward(
        a["x"], a["offset"], a["weight"], None, *case.sampling[1:], case.groups, None
    ).shape)  # fmt: skip
    size, taps = a["x"].shape[2:], case.kernel[0] * case.kernel[1]
    outputs, inputs = len(a["weight"]) // case.groups, case.channels // case.groups
    for n, g, k, y, x, py, px, m in _oracle.samples(
        a["x"], a["offset"], *case.sampling, a.get("mask")
    ):
        ty, tx = a["d_offset"][n, 2 * (g * taps + k) : 2 * (g * taps + k) + 2, y, x]
        i, j = divmod(k, case.kernel[1])
        for c in _oracle.group_channels(case.channels, case.deformable_groups, g):
            near = _oracle.corners(*size, py, px)
            slope = sum(
                (by_y * ty + by_x * tx) * a["x"][n, c, r, s] for r, s, _, by_y, by_x in near
            )
            first = c // inputs * outputs
            weights = a["weight"][first : first + outputs, c % inputs, i, j]
            out[n, first : first + outputs, y, x] += weights * (m * slope)
    return out


def sound_double_backward(case, a):
    arrays = {
        name: a[name] for name in a if name not in ("grad_output", "grad_columns", *DIRECTION)
    }
    moves = {name: a[d] for d, name in DIRECTION.items() if d in a}
    return list(cupy_dcn.deform_conv2d_double_backward(
        a["grad_output"], **arrays, cotangents=cupy_dcn.Tangents(**moves), **case.attributes
    ))  # fmt: skip


def oracle_pack(case, a):
    out = _oracle.output_shape(a["x"], *case.sampling[:-1])
    taps = case.deformable_groups * case.kernel[0] * case.kernel[1]
    still = np.zeros((len(a["x"]), 2 * case.kernel[0] * case.kernel[1], *out))
    raw = _oracle.forward(
        a["x"], still, a["conv_offset_weight"], a["conv_offset_bias"], *case.sampling[1:-1], 1, 1,
        None,
    )  # fmt: skip
    made = {"offset": raw[:, : 2 * taps]}
    if case.masked:
        made["mask"] = 1 / (1 + np.exp(-raw[:, 2 * taps :]))
    return oracle_forward(case, a | made)


def oracle_im2col(case, a):
    return [_oracle.im2col(a["x"], a["offset"], *case.sampling, case.groups, a.get("mask"))]


def oracle_columns_backward(case, a):
    columns = a["grad_columns"]
    x = a.get("x", np.zeros((len(columns), columns.shape[1] * columns.shape[4], *case.size)))
    return _oracle.backward_of_im2col(columns, x, a["offset"], *case.sampling, a.get("mask"))


def interleaved(dy, dx):
    out = np.zeros((dy.shape[0], 2 * dy.shape[1], *dy.shape[2:]))
    for channel in range(dy.shape[1]):
        out[:, 2 * channel], out[:, 2 * channel + 1] = dy[:, channel], dx[:, channel]
    return out


def grid(case, a):
    """Return (py, px) of every sampling point, of an image whose size does not matter."""
    offset = a["offset"]
    shape = (offset.shape[0], offset.shape[1] // 2, *offset.shape[2:])
    py, px = np.zeros(shape), np.zeros(shape)
    taps = np.ndindex(case.kernel)
    for k, (i, j) in enumerate(taps):
        for channel in range(k, shape[1], case.kernel[0] * case.kernel[1]):
            for y, x in np.ndindex(shape[2:]):
                at = (slice(None), channel, y, x)
                down = y * case.stride[0] - case.padding[0] + i * case.dilation[0]
                right = x * case.stride[1] - case.padding[2] + j * case.dilation[1]
                py[at] = down + offset[:, 2 * channel, y, x]
                px[at] = right + offset[:, 2 * channel + 1, y, x]
    return [py, px]
