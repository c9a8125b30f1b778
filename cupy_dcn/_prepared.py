"""What a call works with, whatever the values in its arrays: made once and used by many calls.

The functions prepare for one call, a `Plan` holds what it has prepared.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ._arguments import GRADIENTS, Arguments, out_shape
from ._arrays import Array
from ._cut import Cut, Memory
from ._geometry import Geometry
from ._twins import twin_of


class Gradients(NamedTuple):
    """Gradients of ``deform_conv2d``: of x (N, C_in, H, W), offset, weight, bias and mask.

    Each has the shape and dtype of its argument, and is None if it was not computed.
    """

    x: Array | None
    offset: Array | None
    weight: Array | None
    bias: Array | None
    mask: Array | None


@dataclass(frozen=True)
class Prepared:
    """A forward or a backward, ready for arrays."""

    cut: Cut
    dtype: np.dtype[Any]  # of the columns
    weight: Array  # as the products take it
    bias: Array | None
    memory: Memory


def prepare(
    geometry: Geometry,
    weight: Array,
    bias: Array | None,
    workspace_bytes: int | None,
    backward: Sequence[bool],
    wanted: Collection[str] = GRADIENTS,
    deterministic: bool = False,
) -> list[Prepared]:
    """Prepare for calls of each direction; they share the memory, so one at a time may run.

    ``wanted``: which gradients a backward may be asked for.
    """
    twin = twin_of(weight)
    dtype = twin.columns_dtype(weight.dtype)
    cuts = [
        twin.make_cut(geometry, len(weight), dtype, workspace_bytes, each, wanted, deterministic)
        for each in backward
    ]
    matrix = twin.weight_matrix(weight, geometry, dtype)
    shift = None if bias is None else bias.astype(dtype, order="C", copy=False)
    memories = twin.allocate(cuts, weight)
    return [
        Prepared(cut, dtype, matrix, shift, memory)
        for cut, memory in zip(cuts, memories, strict=True)
    ]


def empty_output(call: Arguments) -> Array:
    """Allocate the output of a call."""
    return twin_of(call.x).empty(out_shape(call), call.x)  # type: ignore[no-any-return]


def empty_gradients(call: Arguments, wanted: Collection[str]) -> Gradients:
    """Allocate the gradients that are wanted of a call and of arguments that it has."""
    arguments = (getattr(call, name) if name in wanted else None for name in GRADIENTS)
    empty = twin_of(call.x).empty
    return Gradients(*(a if a is None else empty(a.shape, a) for a in arguments))
