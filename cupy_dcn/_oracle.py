"""The operator once more, as plain loops written from its formula.

It shares no code with the library, is slow on purpose, and computes in float64 (Python floats).
The self-test and the tests compare every stage with it. Arguments are already in full form:
stride (sy, sx), padding (top, bottom, left, right), dilation (dy, dx).
"""

import itertools
import math

import numpy as np


def output_shape(x, kernel, stride, padding, dilation):
    """Return (OH, OW) by trying every position of the kernel."""
    sizes = []
    for axis in (0, 1):
        padded = x.shape[2 + axis] + padding[2 * axis] + padding[2 * axis + 1]
        last_tap = dilation[axis] * (kernel[axis] - 1)
        starts = range(0, padded, stride[axis])
        sizes.append(sum(1 for start in starts if start + last_tap <= padded - 1))
    return tuple(sizes)


def samples(x, offset, kernel, stride, padding, dilation, deformable_groups, mask):
    """Yield every sampling point: n, g (deformable group), k, y, x, its location and its mask."""
    out = output_shape(x, kernel, stride, padding, dilation)
    for n, g, i, j, y, xx in itertools.product(
        range(x.shape[0]), range(deformable_groups), *map(range, (*kernel, *out))
    ):
        k = i * kernel[1] + j
        channel = (g * kernel[0] * kernel[1] + k) * 2
        py = y * stride[0] - padding[0] + i * dilation[0] + float(offset[n, channel, y, xx])
        px = xx * stride[1] - padding[2] + j * dilation[1] + float(offset[n, channel + 1, y, xx])
        m = 1.0 if mask is None else float(mask[n, channel // 2, y, xx])
        yield n, g, k, y, xx, py, px, m


def corners(height, width, py, px):
    """Return the corners inside the image as (row, column, weight, d/dpy, d/dpx); [] outside."""
    if not (-1 < py < height and -1 < px < width):  # a NaN fails every comparison
        return []
    top, left = math.floor(py), math.floor(px)
    fy, fx = py - top, px - left
    found = []
    for a, b in itertools.product((0, 1), (0, 1)):
        wy, wx = (fy if a else 1 - fy), (fx if b else 1 - fx)
        if 0 <= top + a < height and 0 <= left + b < width:
            sy, sx = (1 if a else -1), (1 if b else -1)
            found.append((top + a, left + b, wy * wx, sy * wx, sx * wy))
    return found


def group_channels(channels, deformable_groups, g):
    """Return the input channels of deformable group g."""
    return [c for c in range(channels) if c // (channels // deformable_groups) == g]


def im2col(x, offset, kernel, stride, padding, dilation, deformable_groups, groups, mask):
    """Return columns (N, groups, OH*OW, KH*KW, C_in/groups)."""
    n_images, channels, height, width = x.shape
    oh, ow = output_shape(x, kernel, stride, padding, dilation)
    per_group = channels // groups
    columns = np.zeros((n_images, groups, oh * ow, kernel[0] * kernel[1], per_group))
    for n, g, k, y, xx, py, px, m in samples(
        x, offset, kernel, stride, padding, dilation, deformable_groups, mask
    ):
        near = corners(height, width, py, px)
        for c in group_channels(channels, deformable_groups, g):
            value = sum(weight * float(x[n, c, r, s]) for r, s, weight, _, _ in near)
            columns[n, c // per_group, y * ow + xx, k, c % per_group] = m * value
    return columns


def backward_of_im2col(
    grad_columns, x, offset, kernel, stride, padding, dilation, deformable_groups, mask
):
    """Return (grad_x, grad_offset, grad_mask) for the gradient of the columns."""
    n_images, channels, height, width = x.shape
    _, ow = output_shape(x, kernel, stride, padding, dilation)
    per_group = grad_columns.shape[4]
    grad_x, grad_offset = np.zeros(x.shape), np.zeros(offset.shape)
    grad_mask = np.zeros((n_images, offset.shape[1] // 2, *offset.shape[2:]))
    for n, g, k, y, xx, py, px, m in samples(
        x, offset, kernel, stride, padding, dilation, deformable_groups, mask
    ):
        channel = g * kernel[0] * kernel[1] + k
        for r, s, weight, by_y, by_x in corners(height, width, py, px):
            for c in group_channels(channels, deformable_groups, g):
                grad = float(grad_columns[n, c // per_group, y * ow + xx, k, c % per_group])
                value = float(x[n, c, r, s])
                grad_x[n, c, r, s] += grad * m * weight
                grad_offset[n, 2 * channel, y, xx] += grad * m * by_y * value
                grad_offset[n, 2 * channel + 1, y, xx] += grad * m * by_x * value
                grad_mask[n, channel, y, xx] += grad * weight * value
    return grad_x, grad_offset, grad_mask


def forward(x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask):
    """Return the output (N, C_out, OH, OW)."""
    kernel = weight.shape[2:]
    columns = im2col(x, offset, kernel, stride, padding, dilation, deformable_groups, groups, mask)
    oh, ow = output_shape(x, kernel, stride, padding, dilation)
    out_channels = weight.shape[0]
    out = np.zeros((x.shape[0], out_channels, oh, ow))
    for n, o, y, xx in itertools.product(*map(range, out.shape)):
        column = columns[n, o // (out_channels // groups), y * ow + xx]
        for k, c in itertools.product(*map(range, column.shape)):
            i, j = divmod(k, kernel[1])
            out[n, o, y, xx] += float(weight[o, c, i, j]) * column[k, c]
        out[n, o, y, xx] += 0.0 if bias is None else float(bias[o])
    return out


def backward(
    grad_output, x, offset, weight, stride, padding, dilation, deformable_groups, groups, mask
):
    """Return (grad_x, grad_offset, grad_weight, grad_bias, grad_mask)."""
    kernel = weight.shape[2:]
    columns = im2col(x, offset, kernel, stride, padding, dilation, deformable_groups, groups, mask)
    grad_columns, grad_weight = np.zeros(columns.shape), np.zeros(weight.shape)
    grad_bias = np.zeros(weight.shape[0])
    ow = grad_output.shape[3]
    for n, o, y, xx in itertools.product(*map(range, grad_output.shape)):
        grad, g = float(grad_output[n, o, y, xx]), o // (weight.shape[0] // groups)
        grad_bias[o] += grad
        for c, i, j in itertools.product(*map(range, weight.shape[1:])):
            at = (n, g, y * ow + xx, i * kernel[1] + j, c)
            grad_columns[at] += float(weight[o, c, i, j]) * grad
            grad_weight[o, c, i, j] += grad * columns[at]
    grad_x, grad_offset, grad_mask = backward_of_im2col(
        grad_columns, x, offset, kernel, stride, padding, dilation, deformable_groups, mask
    )
    return grad_x, grad_offset, grad_weight, grad_bias, grad_mask
