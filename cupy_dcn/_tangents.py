"""Directions in the arguments of deform_conv2d, checked, and what their derivatives work with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._arguments import GRADIENTS, Arguments, require_dtype
from ._arrays import Array, of_one_library, require_array
from ._attributes import came
from ._cut import Cut, Memory

AXES = {
    "x": "(N, C_in, H, W)",
    "offset": "(N, 2*deformable_groups*KH*KW, OH, OW)",
    "weight": "(C_out, C_in/groups, KH, KW)",
    "bias": "(C_out,)",
    "mask": "(N, deformable_groups*KH*KW, OH, OW)",
}


class Tangents(NamedTuple):
    """A direction in the arguments of ``deform_conv2d``: how each of them moves.

    Each has the shape and dtype of its argument; None stands for zeros.
    """

    x: Array | None = None
    offset: Array | None = None
    weight: Array | None = None
    bias: Array | None = None
    mask: Array | None = None

    @property
    def moves_columns(self) -> bool:
        """Tell whether what is sampled changes."""
        return any(array is not None for array in (self.x, self.offset, self.mask))


NO_TANGENTS = Tangents()


class SecondGradients(NamedTuple):
    """Gradients of a function of gradients, by what `deform_conv2d_backward` was given.

    Each has the shape and dtype of its argument, and is None if it was not computed.
    """

    grad_output: Array | None
    x: Array | None
    offset: Array | None
    weight: Array | None
    mask: Array | None


@dataclass(frozen=True)
class PreparedTangent:
    """A derivative along a direction, ready for arrays."""

    cut: Cut
    dtype: np.dtype[Any]  # of the columns
    weight: Array  # as the products take it
    bias: Array | None
    weight_tangent: Array | None
    bias_tangent: Array | None
    memory: Memory


def prepare_tangent(
    twin: Any,
    call: Arguments,
    tangents: Tangents,
    others: Iterable[Array],
    sums_weight: bool = False,
) -> PreparedTangent:
    """Prepare for one call; its kernels are to count the elements of ``others``, too.

    ``sums_weight``: whether there is a gradient of the weight to add up.

    There are two of everything: of the images, columns and weights of the corners those that are
    and those that move. So the cut is a backward's, for two sets of temporaries.
    """
    geometry, dtype = call.geometry, twin.columns_dtype(call.x.dtype)
    wanted = [name for name in GRADIENTS if sums_weight or name != "weight"]
    cut = twin.make_cut(
        geometry,
        len(call.weight),
        dtype,
        call.workspace_bytes,
        backward=True,
        wanted=wanted,
        sets=2,
    )
    given = [array for array in tangents if array is not None]
    cut = twin.fit_index(cut, call.arrays(*given, *others))

    def matrix(weight: Array | None) -> Array | None:
        return None if weight is None else twin.weight_matrix(weight, geometry, dtype)

    def shift(bias: Array | None) -> Array | None:
        return None if bias is None else bias.astype(dtype, order="C", copy=False)

    (memory,) = twin.allocate([cut], call.weight)
    weight = twin.weight_matrix(call.weight, geometry, dtype)
    return PreparedTangent(
        cut, dtype, weight, shift(call.bias), matrix(tangents.weight), shift(tangents.bias), memory
    )


def check_tangents(name: str, value: object, call: Arguments) -> Tangents:
    """Check a direction, called ``name``, in the arguments of a call."""
    if getattr(type(value), "_fields", None) != GRADIENTS:
        raise TypeError(
            f"{name} must be Tangents or Gradients of {', '.join(GRADIENTS)}, got {came(value)};"
            f" {name}=cupy_dcn.Tangents(x=...) leaves the others at 0"
        )
    given = {f"{name}.{field}": getattr(value, field) for field in GRADIENTS}
    _, *parts = of_one_library({"x": call.x, **given})
    return Tangents(
        *(_check_like(*each, call) for each in zip(given, parts, GRADIENTS, strict=True))
    )


def _check_like(name: str, value: object, field: str, call: Arguments) -> Array | None:
    """Check one part of a direction beside the argument that it is a direction in."""
    argument = getattr(call, field)
    if value is None:
        return None
    if argument is None:
        raise ValueError(
            f"{name} is {came(value)}, expected None beside no {field};"
            f" what is not there does not move, pass {field}={field} too"
        )
    array = require_array(name, value, AXES[field])
    require_dtype(name, array, argument, field)
    if array.shape != argument.shape:
        raise ValueError(
            f"{name} has shape {array.shape}, expected {field}'s {AXES[field]} = {argument.shape};"
            " a direction says how each element moves, broadcast_to repeats one"
        )
    return array
