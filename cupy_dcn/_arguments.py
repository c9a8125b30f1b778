"""Stage 1, the arrays: every check of how they fit together, and the messages.

``validate`` turns what the user wrote into ``Arguments``: arrays known to fit together and the
``Geometry`` they imply. It reads shapes and dtypes only, so a wrong call ends before any work.
Each message says what was expected, as a formula with its numbers, what came, and one hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _hints as hints
from ._arrays import (
    Array,
    describe,
    is_half,
    library_of,
    of_one_library,
    overlaps,
    require_array,
    require_bytes,
)
from ._attributes import came, counted, geometry_of, integer, is_integer, kernel_pair
from ._foreign import is_read_only
from ._geometry import Geometry

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
    workspace_bytes: int | None

    def arrays(self, *others: Array) -> list[Array]:
        """Return those arrays of the call that there are, and others."""
        given = (self.x, self.offset, self.weight, self.bias, self.mask, *others)
        return [array for array in given if array is not None]


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
    x, offset, weight, bias, mask = of_one_library(
        {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    )
    x_ = require_array("x", x, "(N, C_in, H, W)")
    weight_ = require_array("weight", weight, "(C_out, C_in/groups, KH, KW)")
    require_dtype("weight", weight_, x_)
    geometry = layer_geometry(
        x_.shape, weight_, stride, padding, dilation, deformable_groups, groups
    )
    offset_ = check_offset(offset, geometry, x_.dtype)
    mask_ = None if mask is None else check_mask(mask, geometry, x_.dtype)
    bias_ = None if bias is None else check_bias(bias, weight_)
    budget = check_workspace(workspace_bytes)
    call = Arguments(x_, offset_, weight_, bias_, mask_, geometry, budget)
    require_bytes("the output", out_shape(call), x_.itemsize)
    return call


def require_dtype(name: str, array: Array, x: Array, like: str = "x") -> None:
    """Demand x's dtype."""
    if array.dtype != x.dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {like}'s dtype {x.dtype};"
            f" convert it with {name}.astype({like}.dtype)"
        )


def layer_geometry(
    x_shape: tuple[int, ...],
    weight: Array,
    stride: object,
    padding: object,
    dilation: object,
    deformable_groups: object,
    groups: object,
) -> Geometry:
    """Return the geometry of a weight's layer on x, the weight being checked to fit."""
    kernel = kernel_pair(weight.shape[2:], f"weight has shape {weight.shape}")
    geometry = geometry_of(x_shape, kernel, stride, padding, dilation, deformable_groups, groups)
    out_channels, per_group = weight.shape[:2]
    if per_group != geometry.group_channels:
        raise ValueError(
            f"weight has {counted(per_group, 'input channel')}, expected C_in/groups ="
            f" {geometry.channels}/{geometry.groups} = {geometry.group_channels};"
            " its shape is (C_out, C_in/groups, KH, KW)"
            f"{_other_grouping(x_shape, weight, geometry)}"
        )
    if out_channels < 1 or out_channels % geometry.groups:
        raise ValueError(
            f"weight has {counted(out_channels, 'output channel')}, expected a positive multiple of"
            f" groups = {geometry.groups}; every group makes C_out/groups of them"
        )
    return geometry


def _other_grouping(x_shape: tuple[int, ...], weight: Array, geometry: Geometry) -> str:
    """Say what would make a weight fit that does not: a hint, or ""."""
    out_channels, per_group = weight.shape[:2]
    if hint := hints.for_channels("x", x_shape, per_group * geometry.groups):
        return hint
    groups, rest = divmod(geometry.channels, per_group or geometry.channels + 1)
    fits = not rest and out_channels and not out_channels % groups
    return f", which groups={groups} would fit" if fits else ""


def check_offset(
    offset: object, geometry: Geometry, dtype: np.dtype[Any], owner: str = "x"
) -> Array:
    """Check an offset (N, 2*deformable_groups*KH*KW, OH, OW) beside an array of ``dtype``."""
    hint = "offsets are (dy, dx) pairs per tap"
    return _check_samples("offset", offset, geometry, dtype, owner, 2, hint)


def check_mask(mask: object, geometry: Geometry, dtype: np.dtype[Any], owner: str = "x") -> Array:
    """Check a mask (N, deformable_groups*KH*KW, OH, OW) beside an array of ``dtype``."""
    return _check_samples("mask", mask, geometry, dtype, owner, 1, "a mask has one factor per tap")


def _check_samples(
    name: str,
    value: object,
    geometry: Geometry,
    dtype: np.dtype[Any],
    owner: str,
    each: int,
    hint: str,
) -> Array:
    factor = "2*" if each == 2 else ""
    formula = f"{factor}deformable_groups*KH*KW"
    array = require_array(name, value, f"(N, {formula}, OH, OW)")
    if array.dtype != dtype and not (is_half(dtype) and array.dtype == np.float32):
        also = " or float32" if is_half(dtype) else ""
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected {owner}'s dtype {dtype}{also};"
            f" convert it with {name}.astype({owner}.dtype)"
        )
    images, channels, *size = array.shape
    if images != geometry.images:
        raise ValueError(
            f"{name} has a batch of {images}, expected {owner}'s batch N = {geometry.images};"
            " every image has its own, broadcast_to repeats one"
        )
    expected = each * geometry.deformable_groups * geometry.taps
    if channels != expected:
        raise ValueError(
            f"{name} has {counted(channels, 'channel')}, expected {formula} = {expected}"
            f" (deformable_groups={geometry.deformable_groups},"
            f" kernel {geometry.kernel_height}x{geometry.kernel_width}); {hint}"
            f"{hints.for_channels(name, array.shape, expected)}"
        )
    if (size[0], size[1]) != (geometry.out_height, geometry.out_width):
        raise ValueError(
            f"{name} has a size of {size[0]}x{size[1]}, expected the output's OH x OW ="
            f" {geometry.out_height}x{geometry.out_width}, each {OUTPUT_FORMULA};"
            " check stride, padding and dilation"
        )
    return array


def check_bias(bias: object, weight: Array) -> Array:
    """Check a bias (C_out,) beside its weight, which has x's dtype."""
    by_name = ", and a mask goes by name: mask=mask"
    if is_integer(bias):  # torch has its stride where Paddle has its bias
        by_name = ", and a stride goes by name: stride=stride"
    array = require_array("bias", bias, "(C_out,)", by_name)
    require_dtype("bias", array, weight)
    if array.shape != weight.shape[:1]:
        raise ValueError(
            f"bias has shape {array.shape}, expected (C_out,) = ({weight.shape[0]},);"
            " one number per output channel, None for no bias"
        )
    return array


def check_grad_output(grad_output: object, arguments: Arguments) -> Array:
    """Check the gradient of the output (N, C_out, OH, OW), in x's dtype."""
    grad_output, _ = of_one_library({"grad_output": grad_output, "x": arguments.x})
    array = require_array("grad_output", grad_output, "(N, C_out, OH, OW)")
    require_dtype("grad_output", array, arguments.x)
    expected = out_shape(arguments)
    if array.shape != expected:
        raise ValueError(
            f"grad_output has shape {array.shape}, expected the output's (N, C_out, OH, OW) ="
            f" {expected}, OH and OW being {OUTPUT_FORMULA};"
            " it is the gradient of what deform_conv2d returns"
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


def check_column_groups(grad_columns: Array, channels: int) -> None:
    """Check that the groups of the columns are a grouping of the channels."""
    groups = grad_columns.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"grad_columns has {groups} groups (shape {grad_columns.shape}), expected a"
            f" number of groups that divides C_in = {channels}; its axes are"
            " (N, groups, OH*OW, KH*KW, C_in/groups)"
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
    sources = {name: getattr(arguments, name) for name in GRADIENTS}
    shape, axes = out_shape(arguments), "(N, C_out, OH, OW)"
    formula = f"{axes} = {shape}, OH and OW being {OUTPUT_FORMULA}"
    return check_holder("out", out, "x", arguments.x, axes, shape, formula, sources)


def check_holder(
    name: str,
    out: object,
    like: str,
    model: Array,
    axes: str,
    expected: tuple[int, ...],
    formula: str,
    sources: Mapping[str, Array | None],
) -> Array:
    """Check an array given to hold a result of a shape, in the dtype and library of ``model``.

    ``sources`` are the arrays that it must share no memory with.
    """
    taken: Any = of_one_library({name: out, like: model})[0]
    library = library_of(model)
    empty = f"{str(library).lower()}.empty"
    if library_of(taken) is None or taken.dtype != model.dtype:
        raise TypeError(
            f"{name} must be a {library} array of {like}'s dtype {model.dtype}, got"
            f" {came(taken) if library_of(taken) else describe(taken)};"
            f" {empty}({expected}, {like}.dtype) fits"
        )
    array = require_array(name, taken, axes)
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {array.shape}, expected {formula};"
            f" {empty}({expected}, {like}.dtype) fits"
        )
    # CuPy arrays are always writeable, and require_array has seen that they are aligned.
    aligned = getattr(array.flags, "aligned", True)
    writeable = getattr(array.flags, "writeable", taken is out or not is_read_only(out))
    if not (array.flags.c_contiguous and writeable and aligned):
        raise ValueError(
            f"{name} must be C-contiguous, aligned and writeable, got strides {array.strides} for"
            f" shape {array.shape}, aligned={aligned}, writeable={writeable};"
            f" {empty} makes such an array"
        )
    for other, source in sources.items():
        if source is not None and overlaps(array, source):
            raise ValueError(
                f"{name} shares memory with {other}, expected memory of its own;"
                " the result would be written while its inputs are still read"
            )
    return array


def check_needs(
    needs: object, among: tuple[str, ...] = GRADIENTS, function: str = "deform_conv2d"
) -> frozenset[str]:
    """Check which gradients are asked for, by the names of a function's arguments."""
    if isinstance(needs, str) or library_of(needs) or not isinstance(needs, Iterable):
        example = needs if isinstance(needs, str) and needs in among else among[0]
        raise TypeError(
            f"needs must be a tuple of names among {among}, got {came(needs)};"
            f" a single one is written needs=('{example}',)"
        )
    names = list(needs)
    for name in names:
        if not isinstance(name, str) or name not in among:
            raise ValueError(
                f"needs has {came(name)}, expected names among {among};"
                f" they are the array arguments of {function}"
            )
    return frozenset(names)


def check_workspace(workspace_bytes: object) -> int | None:
    """Return the bytes that temporary memory may take, None for the default."""
    if workspace_bytes is None:
        return None
    return integer("workspace_bytes", workspace_bytes, 1, 2**63 - 1)
