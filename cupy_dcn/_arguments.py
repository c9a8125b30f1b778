"""Stage 1: every check and every error message of the library.

``validate`` turns what the user wrote into ``Arguments``: arrays known to fit together and the
``Geometry`` they imply. It reads shapes and dtypes only, so a wrong call ends before any work.
Each message says what was expected, as a formula with its numbers, what came, and one hint.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ._arrays import Array, describe, is_half, overlaps, require_array
from ._geometry import Geometry, output_size, same_padding

DEFAULT_WORKSPACE = 64 * 2**20
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
OUTPUT_FORMULA = "floor((size + padding - (dilation*(kernel - 1) + 1)) / stride) + 1"


@dataclass(frozen=True)
class Arguments:
    """The arrays of one call, checked against each other, and the geometry they share."""

    x: Array
    offset: Array
    weight: Array
    bias: Array | None
    mask: Array | None
    geometry: Geometry
    workspace_bytes: int


def validate(
    x: object,
    offset: object,
    weight: object,
    bias: object,
    stride: object,
    padding: object,
    dilation: object,
    deformable_groups: object,
    groups: object,
    mask: object,
    workspace_bytes: object,
) -> Arguments:
    """Check one call of the operator; see ``deform_conv2d`` for what is expected."""
    x_ = require_array("x", x, "(N, C_in, H, W)")
    weight_ = require_array("weight", weight, "(C_out, C_in/groups, KH, KW)")
    require_dtype("weight", weight_, x_)
    kernel = kernel_pair(weight_.shape[2:], f"weight has shape {weight_.shape}")
    geometry = geometry_of(x_.shape, kernel, stride, padding, dilation, deformable_groups, groups)
    _check_weight(weight_, geometry)
    offset_ = check_offset(offset, geometry, x_.dtype)
    mask_ = None if mask is None else check_mask(mask, geometry, x_.dtype)
    bias_ = None if bias is None else _check_bias(bias, weight_, x_)
    return Arguments(x_, offset_, weight_, bias_, mask_, geometry, check_workspace(workspace_bytes))


def geometry_of(
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: object,
    padding: object,
    dilation: object,
    deformable_groups: object,
    groups: object,
) -> Geometry:
    """Return the geometry of sampling an x of shape (N, C_in, H, W)."""
    images, channels, height, width = x_shape
    for letter, length in zip(("C_in", "H", "W"), x_shape[1:], strict=True):
        if length == 0:
            raise ValueError(
                f"x has {letter} = 0 (shape {x_shape}), expected at least 1;"
                " only the batch may be empty"
            )
    size = (height, width)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = padding_sides(padding, size, kernel, strides, dilations)
    group_counts = {}
    for name, value in (("deformable_groups", deformable_groups), ("groups", groups)):
        count = group_counts[name] = integer(name, value, 1)
        if channels % count:
            raise ValueError(
                f"x has {channels} channels, expected a multiple of {name} = {count};"
                f" every group takes C_in/{name} channels"
            )
    out = []
    for axis, name in enumerate(("height", "width")):
        before, after = pads[2 * axis : 2 * axis + 2]
        out.append(
            output_size(size[axis], before + after, kernel[axis], strides[axis], dilations[axis])
        )
        if out[axis] < 1:
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            raise ValueError(
                f"the kernel's {name} dilation*(kernel - 1) + 1 = {reach} is larger than the"
                f" padded input's, {size[axis]} + {before} + {after} ="
                f" {size[axis] + before + after}; the output would be empty: add padding"
            )
    return Geometry(
        images, channels, height, width, *kernel, out[0], out[1], *strides, pads[0], pads[2],
        *dilations, group_counts["groups"], group_counts["deformable_groups"],
    )  # fmt: skip


def integer(name: str, value: object, least: int) -> int:
    """Return an int of at least ``least``; NumPy integers are ints, bools and floats are not."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(
            f"{name} must be an int, got {_came(value)}; write {name}=int(...) if that is meant"
        )
    number = operator.index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}; {_LEAST_HINT[name]}")
    return number


_LEAST_HINT = {
    "stride": "a stride of 1 takes every position",
    "dilation": "a dilation of 1 is an ordinary kernel",
    "padding": "to crop, slice x before the call",
    "groups": "1 means no grouping",
    "deformable_groups": "1 shares the offsets among all channels",
    "kernel_size": "a 1x1 kernel is the smallest",
    "image_size": "it is the (H, W) of x",
    "workspace_bytes": "None takes the default of 64 MiB",
}


def _came(value: object) -> str:
    """Name what came instead of a number or a tuple, in a few characters."""
    text = describe(value) if isinstance(value, np.ndarray) else repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def pair(name: str, value: object, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) from an int or two ints."""
    if not isinstance(value, (tuple, list)):
        if not _is_integer_like(value):
            raise TypeError(
                f"{name} must be an int or two ints (vertical, horizontal), got {_came(value)};"
                f" {_LEAST_HINT[name]}"
            )
        number = integer(name, value, least)
        return number, number
    if len(value) != 2:
        raise ValueError(
            f"{name} has {len(value)} values, expected an int or 2 (vertical, horizontal),"
            f" got {_came(value)}; {_LEAST_HINT[name]}"
        )
    vertical, horizontal = (integer(name, one, least) for one in value)
    return vertical, horizontal


def _is_integer_like(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_))


PADDING_FORMS = "an int, (vertical, horizontal) or (top, bottom, left, right)"


def padding_sides(
    padding: object,
    size: Sequence[int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) from any of the forms that padding may take."""
    if not isinstance(padding, str):
        return integer_sides(padding, "'SAME' and 'VALID' are known as well")
    if padding.upper() == "VALID":
        return 0, 0, 0, 0
    if padding.upper() != "SAME":
        raise ValueError(
            f"padding must be {PADDING_FORMS}, 'SAME' or 'VALID', got {padding!r};"
            " 'SAME' gives ceil(size/stride) outputs"
        )
    vertical = same_padding(size[0], kernel[0], stride[0], dilation[0])
    horizontal = same_padding(size[1], kernel[1], stride[1], dilation[1])
    return *vertical, *horizontal


def integer_sides(padding: object, hint: str) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) from padding in numbers."""
    if isinstance(padding, (tuple, list)):
        if len(padding) not in (2, 4):
            raise ValueError(
                f"padding has {len(padding)} values, expected {PADDING_FORMS}, got"
                f" {_came(padding)}; {hint}"
            )
        sides = [integer("padding", one, 0) for one in padding]
        top, bottom, left, right = sides if len(sides) == 4 else (*sides[:1] * 2, *sides[1:] * 2)
        return top, bottom, left, right
    if not _is_integer_like(padding):
        raise TypeError(f"padding must be {PADDING_FORMS}, got {_came(padding)}; {hint}")
    side = integer("padding", padding, 0)
    return side, side, side, side


def kernel_pair(kernel: tuple[int, ...], source: str) -> tuple[int, int]:
    """Return (KH, KW) from the weight's last two axes; a kernel has at least one tap."""
    if min(kernel) < 1:
        raise ValueError(
            f"{source}: a kernel of {kernel[0]}x{kernel[1]}, expected KH and KW of at least 1;"
            " a 1x1 kernel is the smallest"
        )
    return kernel[0], kernel[1]


def require_dtype(name: str, array: Array, x: Array, like: str = "x") -> None:
    """Demand x's dtype."""
    if array.dtype != x.dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {like}'s dtype {x.dtype};"
            f" convert it with {name}.astype({like}.dtype)"
        )


def _check_weight(weight: Array, geometry: Geometry) -> None:
    out_channels, per_group = weight.shape[:2]
    if per_group != geometry.group_channels:
        raise ValueError(
            f"weight has {per_group} input channels, expected C_in/groups ="
            f" {geometry.channels}/{geometry.groups} = {geometry.group_channels};"
            " its shape is (C_out, C_in/groups, KH, KW)"
        )
    if out_channels < 1 or out_channels % geometry.groups:
        raise ValueError(
            f"weight has {out_channels} output channels, expected a positive multiple of"
            f" groups = {geometry.groups}; every group makes C_out/groups of them"
        )


def check_offset(offset: object, geometry: Geometry, dtype: np.dtype[Any]) -> Array:
    """Check an offset (N, 2*deformable_groups*KH*KW, OH, OW)."""
    return _check_samples(
        "offset", offset, geometry, dtype, 2, "offsets are (dy, dx) pairs per tap"
    )


def check_mask(mask: object, geometry: Geometry, dtype: np.dtype[Any]) -> Array:
    """Check a mask (N, deformable_groups*KH*KW, OH, OW)."""
    return _check_samples("mask", mask, geometry, dtype, 1, "a mask has one factor per tap")


def _check_samples(
    name: str, value: object, geometry: Geometry, dtype: np.dtype[Any], each: int, hint: str
) -> Array:
    factor = "2*" if each == 2 else ""
    formula = f"{factor}deformable_groups*KH*KW"
    array = require_array(name, value, f"(N, {formula}, OH, OW)")
    if array.dtype != dtype and not (is_half(dtype) and array.dtype == np.float32):
        also = " or float32" if is_half(dtype) else ""
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected x's dtype {dtype}{also};"
            f" convert it with {name}.astype(x.dtype)"
        )
    images, channels, *size = array.shape
    if images != geometry.images:
        raise ValueError(
            f"{name} has a batch of {images}, expected x's batch N = {geometry.images};"
            " every image has its own"
        )
    expected = each * geometry.deformable_groups * geometry.taps
    if channels != expected:
        raise ValueError(
            f"{name} has {channels} channels, expected {formula} = {expected}"
            f" (deformable_groups={geometry.deformable_groups},"
            f" kernel {geometry.kernel_height}x{geometry.kernel_width}); {hint}"
        )
    if (size[0], size[1]) != (geometry.out_height, geometry.out_width):
        raise ValueError(
            f"{name} has a size of {size[0]}x{size[1]}, expected the output's OH x OW ="
            f" {geometry.out_height}x{geometry.out_width}, each {OUTPUT_FORMULA};"
            " check stride, padding and dilation"
        )
    return array


def _check_bias(bias: object, weight: Array, x: Array) -> Array:
    array = require_array("bias", bias, "(C_out,)")
    require_dtype("bias", array, x)
    if array.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {array.shape}, expected (C_out,) = ({weight.shape[0]},);"
            " one number per output channel, None for no bias"
        )
    return array


def check_grad_output(grad_output: object, arguments: Arguments) -> Array:
    """Check the gradient of the output (N, C_out, OH, OW), in x's dtype."""
    geometry = arguments.geometry
    array = require_array("grad_output", grad_output, "(N, C_out, OH, OW)")
    require_dtype("grad_output", array, arguments.x)
    expected = out_shape(arguments)
    if array.shape != expected:
        raise ValueError(
            f"grad_output has shape {array.shape}, expected the output's (N, C_out, OH, OW) ="
            f" {expected}, OH and OW being {OUTPUT_FORMULA};"
            f" it is the gradient of what deform_conv2d returns for a kernel"
            f" {geometry.kernel_height}x{geometry.kernel_width}"
        )
    return array


def out_shape(arguments: Arguments) -> tuple[int, int, int, int]:
    """Return (N, C_out, OH, OW)."""
    geometry = arguments.geometry
    return (
        geometry.images,
        arguments.weight.shape[0],
        geometry.out_height,
        geometry.out_width,
    )


def check_grad_columns(grad_columns: Array, geometry: Geometry) -> None:
    """Check the shape of the gradient of the columns."""
    expected = (
        geometry.images,
        geometry.groups,
        geometry.out_pixels,
        geometry.taps,
        geometry.group_channels,
    )
    if grad_columns.shape != expected:
        raise ValueError(
            f"grad_columns has shape {grad_columns.shape}, expected"
            f" (N, groups, OH*OW, KH*KW, C_in/groups) = {expected};"
            " it is the gradient of what deform_im2col returns"
        )


def check_out(out: object, arguments: Arguments) -> Array:
    """Check an array given to hold the result: its shape, dtype, layout and memory."""
    expected = out_shape(arguments)
    array = require_array("out", out, "(N, C_out, OH, OW)")
    require_dtype("out", array, arguments.x)
    if array.shape != expected:
        raise ValueError(
            f"out has shape {array.shape}, expected (N, C_out, OH, OW) = {expected}, OH and OW"
            f" being {OUTPUT_FORMULA}; numpy.empty({expected}, x.dtype) fits"
        )
    if not (array.flags.c_contiguous and array.flags.writeable and array.flags.aligned):
        raise ValueError(
            f"out must be C-contiguous, aligned and writeable, got strides {array.strides} for"
            f" shape {array.shape}, writeable={array.flags.writeable};"
            " pass a whole array and copy the result into the view"
        )
    for name in ("x", "offset", "weight", "bias", "mask"):
        source = getattr(arguments, name)
        if source is not None and overlaps(array, source):
            raise ValueError(
                f"out shares memory with {name}, expected memory of its own;"
                " the result would be written while its inputs are still read"
            )
    return array


def check_needs(needs: object) -> frozenset[str]:
    """Check which gradients are asked for."""
    if isinstance(needs, str) or not isinstance(needs, Iterable):
        raise TypeError(
            f"needs must be a tuple of names among {GRADIENTS}, got {_came(needs)};"
            " a single one is written needs=('x',)"
        )
    names = list(needs)
    for name in names:
        if name not in GRADIENTS:
            raise ValueError(
                f"needs has {name!r}, expected names among {GRADIENTS};"
                " they are the arguments of deform_conv2d"
            )
    return frozenset(names)


def check_workspace(workspace_bytes: object) -> int:
    """Return the bytes that temporary memory may take."""
    if workspace_bytes is None:
        return DEFAULT_WORKSPACE
    return integer("workspace_bytes", workspace_bytes, 1)
