"""DeformConv for onnx's reference evaluator; the only module that imports onnx."""

from __future__ import annotations

from collections.abc import Sequence

from onnx.reference.op_run import OpRun

from ._arrays import Array
from .onnx import deform_conv


class DeformConv(OpRun):  # type: ignore[misc]
    """DeformConv of opsets 19 and 22, to be given to onnx's reference evaluator.

    ``ReferenceEvaluator(model, new_ops=[DeformConv])`` evaluates the model's DeformConv nodes by
    `deform_conv`.
    """

    def _run(
        self,
        X: Array,
        W: Array,
        offset: Array,
        B: Array | None = None,
        mask: Array | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        offset_group: int | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        # An attribute that a node does not have comes as None.
        given = {
            "dilations": dilations, "group": group, "kernel_shape": kernel_shape,
            "offset_group": offset_group, "pads": pads, "strides": strides,
        }  # fmt: skip
        attributes = {name: value for name, value in given.items() if value is not None}
        return (deform_conv(X, W, offset, B, mask, **attributes),)  # type: ignore[arg-type]
