"""Stage 1, the attributes: ints and pairs of ints, padding, and the geometry that they imply."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from . import _hints as hints
from ._arrays import describe, library_of
from ._geometry import Geometry, output_size, same_padding

MOST = 2**31 - 1  # so that products of two of them are 64-bit integers
PAIR_FORMS = "an int or two ints (vertical, horizontal)"
PADDING_FORMS = "an int, (vertical, horizontal) or (top, bottom, left, right)"
HINTS = {
    "stride": "a stride of 1 takes every position",
    "dilation": "a dilation of 1 is an ordinary kernel",
    "padding": "to crop, slice x before the call",
    "groups": "1 means no grouping",
    "deformable_groups": "1 shares the offsets among all channels",
    "kernel_size": "a 1x1 kernel is the smallest",
    "image_size": "it is the (H, W) of x",
    "channels": "it is C_in, x.shape[1]",
    "out_channels": "it is C_out",
    "x_shape": "x.shape of a NumPy or CuPy array is such a tuple",
    "in_channels": "it is C_in, x.shape[1]",
    "workspace_bytes": "None takes the default of 64 MiB",
    "masked": "a plan takes the mask when it is called",
    "backward": "a plan takes grad_output when it is called",
    "every": "1 draws an arrow at each pixel of the output",
    "deterministic": "it asks for the same bits every time",
}


def geometry_of(
    x_shape: tuple[int, ...],
    kernel: tuple[int, int],
    stride: object,
    padding: object,
    dilation: object,
    deformable_groups: object,
    groups: object,
    owner: str = "x",
) -> Geometry:
    """Return the geometry of sampling an x of shape (N, C_in, H, W).

    ``owner`` names the argument that the channels were read from.
    """
    images, channels, height, width = x_shape
    for letter, length in zip(("C_in", "H", "W"), x_shape[1:], strict=True):
        if length == 0:
            raise ValueError(
                f"{owner} has {letter} = 0 where (N, C_in, H, W) is {x_shape}, expected C_in, H and"
                " W of at least 1; only the batch N may be empty"
            )
    size = (height, width)
    strides, dilations = pair("stride", stride, 1), pair("dilation", dilation, 1)
    pads = padding_sides(padding, size, kernel, strides, dilations)
    counts = [
        _group_count(name, value, x_shape, owner)
        for name, value in (("groups", groups), ("deformable_groups", deformable_groups))
    ]
    out = [
        _output_length(
            name, size[axis], pads[2 * axis : 2 * axis + 2], kernel[axis], strides[axis],
            dilations[axis],
        )
        for axis, name in enumerate(("height", "width"))
    ]  # fmt: skip
    return Geometry(
        images, channels, height, width, *kernel, out[0], out[1], *strides, pads[0], pads[2],
        *dilations, counts[0], counts[1],
    )  # fmt: skip


def _group_count(name: str, value: object, x_shape: tuple[int, ...], owner: str) -> int:
    count, channels = integer(name, value, 1), x_shape[1]
    if channels % count:
        hint = hints.for_channels("x", x_shape, count) if owner == "x" else ""
        raise ValueError(
            f"{owner} has {counted(channels, 'channel')}, expected a multiple of {name} ="
            f" {count}; every group takes C_in/{name} channels{hint}"
        )
    return count


def _output_length(
    name: str, size: int, pads: tuple[int, ...], kernel: int, stride: int, dilation: int
) -> int:
    length = output_size(size, sum(pads), kernel, stride, dilation)
    if length < 1:
        reach = dilation * (kernel - 1) + 1
        raise ValueError(
            f"the kernel's {name} dilation*(kernel - 1) + 1 = {reach} is larger than the padded"
            f" input's, {size} + {pads[0]} + {pads[1]} = {size + sum(pads)}; the output would be"
            " empty: add padding"
        )
    return length


def counted(count: int, noun: str) -> str:
    """Return "1 channel", "2 channels"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def is_integer(value: object) -> bool:
    """Tell an int; NumPy's are ints, bools and floats are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def integer(name: str, value: object, least: int, most: int = MOST) -> int:
    """Return an int between two bounds."""
    if not is_integer(value):
        hint = HINTS[name]
        if library_of(value):  # torchvision has its mask where Paddle has this
            hint += ", and a mask goes by name: mask=mask"
        raise TypeError(f"{name} must be an int, got {came(value)}; {hint}")
    number = operator.index(value)  # type: ignore[arg-type]
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {came(number)}; {HINTS[name]}")
    if number > most:
        raise ValueError(
            f"{name} must be at most {most}, got {came(number)};"
            " larger ones overflow index arithmetic"
        )
    return number


def check_flag(name: str, value: object) -> None:
    """Demand True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {came(value)}; {HINTS[name]}")


def came(value: object) -> str:
    """Name what came instead of a number or a tuple, in a few characters."""
    try:
        text = f"an array of {describe(value)}" if library_of(value) else repr(value)
    except ValueError:  # Python writes out no int of more than 4300 digits
        text = "an int of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def pair(name: str, value: object, least: int) -> tuple[int, int]:
    """Return (vertical, horizontal) from an int or two ints."""
    values = _integers(name, value, least, (2,), PAIR_FORMS, HINTS[name])
    return values[0], values[-1]


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
            f"padding must be {PADDING_FORMS}, 'SAME' or 'VALID', got {came(padding)};"
            " 'SAME' gives ceil(size/stride) outputs"
        )
    vertical = same_padding(size[0], kernel[0], stride[0], dilation[0])
    horizontal = same_padding(size[1], kernel[1], stride[1], dilation[1])
    return *vertical, *horizontal


def integer_sides(padding: object, hint: str) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) from padding in numbers."""
    sides = _integers("padding", padding, 0, (2, 4), PADDING_FORMS, hint)
    if len(sides) == 4:
        return sides[0], sides[1], sides[2], sides[3]
    return sides[0], sides[0], sides[-1], sides[-1]


def _integers(
    name: str, value: object, least: int, lengths: tuple[int, ...], forms: str, hint: str
) -> list[int]:
    """Return the ints of an attribute given as one int (a list of one) or a tuple of them."""
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    if not all(is_integer(one) for one in values):
        raise TypeError(f"{name} must be {forms}, got {came(value)}; {hint}")
    if isinstance(value, (tuple, list)) and len(values) not in lengths:
        raise ValueError(
            f"{name} has {counted(len(values), 'value')}, expected {forms}, got {came(value)};"
            f" {hint}"
        )
    return [integer(name, one, least) for one in values]


def kernel_pair(kernel: tuple[int, ...], source: str) -> tuple[int, int]:
    """Return (KH, KW) from the weight's last two axes; a kernel has at least one tap."""
    if min(kernel) < 1:
        raise ValueError(
            f"{source}: a kernel of {kernel[0]}x{kernel[1]}, expected KH and KW of at least 1;"
            " a 1x1 kernel is the smallest"
        )
    return kernel[0], kernel[1]
