"""What a plan is made from and called with: the checks beside those of ``_arguments.py``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arguments import GRADIENTS, Arguments, check_bias, check_holder, require_dtype
from ._arrays import Array, library_of, of_one_library, require_array
from ._attributes import HINTS, came, integer

AXES = {
    "x": "(N, C_in, H, W)",
    "offset": "(N, 2*deformable_groups*KH*KW, OH, OW)",
    "weight": "(C_out, C_in/groups, KH, KW)",
    "bias": "(C_out,)",
    "mask": "(N, deformable_groups*KH*KW, OH, OW)",
}


def check_weight(
    weight: object, bias: object, planned: Array, planned_bias: Array | None
) -> tuple[Array, Array | None]:
    """Check a weight and a bias, if there is one, that take the place of a plan's."""
    weight, bias, _ = of_one_library({"weight": weight, "bias": bias, "the plan's weight": planned})
    weight_ = require_array("weight", weight, AXES["weight"])
    require_dtype("weight", weight_, planned, "the plan")
    if weight_.shape != planned.shape:
        raise ValueError(
            f"weight has shape {weight_.shape}, expected that of the plan's, {planned.shape};"
            " another shape takes another plan"
        )
    if bias is None:
        return weight_, None
    bias_ = check_bias(bias, planned)
    if planned_bias is None:
        raise ValueError(
            "the plan was made without a bias, expected bias=None;"
            " make one with Plan(x_shape, weight, bias, ...)"
        )
    return weight_, bias_


def check_planned(name: str, array: Array, dtype: np.dtype[Any]) -> None:
    if array.dtype != dtype:
        raise TypeError(
            f"{name} has dtype {array.dtype}, expected the plan's {dtype};"
            f" Plan(..., {name}_dtype='{array.dtype}') makes one for it"
        )


def planned_shape(value: object) -> tuple[int, int, int, int]:
    """Return (N, C_in, H, W) from any sequence of four ints."""
    hint = HINTS["x_shape"]
    if library_of(value) is not None or not isinstance(value, (tuple, list)):
        raise TypeError(f"x_shape must be (N, C_in, H, W), got {came(value)}; {hint}")
    if len(value) != 4:
        raise ValueError(f"x_shape is {came(value)}, expected (N, C_in, H, W); {hint}")
    images, *others = (integer("x_shape", each, 0) for each in value)
    return images, others[0], others[1], others[2]


def check_gradients(
    out: object, wanted: frozenset[str], call: Arguments, grad_output: Array
) -> dict[str, Array]:
    """Return by name the arrays given to hold gradients that are wanted."""
    if out is None:
        return {}
    if not isinstance(out, (tuple, list)) or len(out) != len(GRADIENTS):
        raise TypeError(
            f"out must be Gradients or a tuple of {len(GRADIENTS)} arrays or None, got"
            f" {came(out)}; they are for {', '.join(GRADIENTS)}"
        )
    sources = {name: getattr(call, name) for name in GRADIENTS} | {"grad_output": grad_output}
    given: dict[str, Array] = {}
    for name, value in zip(GRADIENTS, out, strict=True):
        if value is None or name not in wanted:
            continue
        model = getattr(call, name)
        if model is None:
            raise ValueError(
                f"out has an array for {name}, expected None since the plan has no {name};"
                " None allocates what is needed"
            )
        holder = f"out.{name}"
        given[name] = check_holder(
            holder, value, name, model, AXES[name], model.shape, f"{name}'s {model.shape}", sources
        )
        sources[holder] = given[name]
    return given
