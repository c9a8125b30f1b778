"""The public functions as hostile.py calls them, each with what judges its results."""

from typing import NamedTuple

import numpy as np
from cases import Case
from hostile_judges import (
    ARGUMENTS,
    DIRECTION,
    grid,
    interleaved,
    oracle_backward,
    oracle_columns_backward,
    oracle_forward,
    oracle_im2col,
    oracle_jvp,
    oracle_pack,
    sound_double_backward,
)
from libraries import dcn

import cupy_dcn
from cupy_dcn import _oracle

SECOND = ("grad_output", "x", "offset", "weight", "mask")


class Call(NamedTuple):
    """A function's name, its arrays and attributes, and what was done to some of them."""

    function: str
    case: Case
    arrays: dict
    attributes: dict
    changed: tuple  # of (name, how)

    def __repr__(self):
        shapes = {name: getattr(a, "shape", type(a)) for name, a in self.arrays.items()}
        return f"{self.function}, {self.changed} ({self.case!r}, {self.attributes}, {shapes})"


class Tried(NamedTuple):
    """How a function is called and by what it is judged, and what it takes and gives."""

    run: object
    judge: object
    takes: tuple
    gives: tuple = ("the output",)
    attributes: tuple = ("stride", "padding", "dilation", "deformable_groups", "groups")

    def attributes_of(self, case):
        """Return those of a case's attributes that the function takes."""
        every = {**case.attributes, "kernel_size": case.kernel}
        return {name: every[name] for name in self.attributes}


SAMPLING = ("kernel_size", "stride", "padding", "dilation", "deformable_groups")


def sound_arrays(case, dtype):
    """Return every array that a call may take, by name; no mask where the case has none."""
    names = (*ARGUMENTS, "grad_output")
    arrays = {k: a for k, a in zip(names, case.arrays(), strict=True) if a is not None}
    rng = np.random.default_rng(case.seed + 1)
    arrays |= {
        d: rng.uniform(-1, 1, arrays[name].shape) for d, name in DIRECTION.items() if name in arrays
    }
    columns = _oracle.im2col(arrays["x"], arrays["offset"], *case.sampling, case.groups, None)
    arrays["grad_columns"] = rng.standard_normal(columns.shape)
    arrays["dy"], arrays["dx"] = arrays["offset"][:, 0::2], arrays["offset"][:, 1::2]
    taps = case.deformable_groups * case.kernel[0] * case.kernel[1]
    channels = taps * (3 if case.masked else 2)
    shape = (channels, case.channels, *case.kernel)
    arrays["conv_offset_weight"] = 0.3 * rng.standard_normal(shape)
    arrays["conv_offset_bias"] = rng.standard_normal(channels)
    return {name: array.astype(dtype) for name, array in arrays.items()}


def forward(call):
    return [dcn.deform_conv2d(**call.arrays, **call.attributes)]


def backward(call):
    arrays = dict(call.arrays)
    return list(dcn.deform_conv2d_backward(arrays.pop("grad_output"), **arrays, **call.attributes))


def ordered_backward(call):
    return backward(call._replace(attributes=call.attributes | {"deterministic": True}))


def along(call, kind):
    """Take the direction out of the arrays, as a Tangents."""
    moves = {name: call.arrays[d] for d, name in DIRECTION.items() if d in call.arrays}
    arrays = {name: a for name, a in call.arrays.items() if name not in DIRECTION}
    return arrays, {kind: cupy_dcn.Tangents(**moves)}


def jvp(call):
    arrays, direction = along(call, "tangents")
    return list(dcn.deform_conv2d_jvp(**arrays, **direction, **call.attributes))


def double_backward(call):
    arrays, direction = along(call, "cotangents")
    grad_output = arrays.pop("grad_output")
    return list(
        dcn.deform_conv2d_double_backward(grad_output, **arrays, **direction, **call.attributes)
    )


def plan(call):
    arrays, attributes = dict(call.arrays), dict(call.attributes)
    shape = getattr(arrays["x"], "shape", arrays["x"])
    prepared = cupy_dcn.Plan(
        shape, arrays["weight"], arrays.get("bias"), masked="mask" in arrays, **attributes
    )
    return [prepared(arrays["x"], arrays["offset"], arrays.get("mask"))]


def layer_of(call, kind, **more):
    case = call.case
    layer = kind(
        case.channels, case.out_channels, case.kernel, **call.attributes, **more,
        dtype=np.dtype(getattr(call.arrays["weight"], "dtype", "f8")).newbyteorder("="),
        bias_attr=None if "bias" in call.arrays else False,
    )  # fmt: skip
    for name in ("weight", "bias", "conv_offset_weight", "conv_offset_bias"):
        if name in call.arrays:
            setattr(layer, name, call.arrays[name])
    return layer


def layer(call):
    held = layer_of(call, cupy_dcn.DeformConv2D)
    return [held(call.arrays["x"], call.arrays["offset"], call.arrays.get("mask"))]


def layer_backward(call):
    a = call.arrays
    held = layer_of(call, cupy_dcn.DeformConv2D)
    return list(held.backward(a["grad_output"], a["x"], a["offset"], a.get("mask")))


def pack(call):
    held = layer_of(call, cupy_dcn.DeformConv2DPack, modulated=call.case.masked)
    return [held(call.arrays["x"])]


def im2col(call):
    return [dcn.deform_im2col(**call.arrays, **call.attributes)]


def col2im(call):
    return [dcn.deform_col2im(**call.arrays, image_size=call.case.size, **call.attributes)]


def ordered_col2im(call):
    return col2im(call._replace(attributes=call.attributes | {"deterministic": True}))


def coord_grad(call):
    return list(dcn.deform_coord_grad(**call.arrays, **call.attributes))


ALONG = (*ARGUMENTS, *DIRECTION)
CALLS = {
    "deform_conv2d": Tried(forward, oracle_forward, ARGUMENTS),
    "deform_conv2d_backward": Tried(
        backward, oracle_backward, (*ARGUMENTS, "grad_output"), ARGUMENTS
    ),
    "deform_conv2d_backward, ordered": Tried(
        ordered_backward, oracle_backward, (*ARGUMENTS, "grad_output"), ARGUMENTS
    ),
    "deform_conv2d_jvp": Tried(jvp, oracle_jvp, ALONG, ("the output", "the tangent")),
    "deform_conv2d_double_backward": Tried(
        double_backward, sound_double_backward, (*ALONG, "grad_output"), SECOND
    ),
    "deform_im2col": Tried(
        im2col, oracle_im2col, ("x", "offset", "mask"), attributes=(*SAMPLING, "groups")
    ),
    "deform_col2im": Tried(
        col2im, lambda case, a: oracle_columns_backward(case, a)[:1],
        ("grad_columns", "offset", "mask"), ("x",), SAMPLING,
    ),
    "deform_col2im, ordered": Tried(
        ordered_col2im, lambda case, a: oracle_columns_backward(case, a)[:1],
        ("grad_columns", "offset", "mask"), ("x",), SAMPLING,
    ),
    "deform_coord_grad": Tried(
        coord_grad, lambda case, a: oracle_columns_backward(case, a)[1:],
        ("grad_columns", "x", "offset", "mask"), ("offset", "mask"), SAMPLING,
    ),
    "pack_offset": Tried(
        lambda call: [dcn.pack_offset(**call.arrays)],
        lambda case, a: [interleaved(a["dy"], a["dx"])], ("dy", "dx"), attributes=(),
    ),
    "unpack_offset": Tried(
        lambda call: list(dcn.unpack_offset(**call.arrays)),
        lambda case, a: [a["offset"][:, 0::2], a["offset"][:, 1::2]], ("offset",), ("dy", "dx"), (),
    ),
    "sampling_grid": Tried(
        lambda call: list(dcn.sampling_grid(**call.arrays, **call.attributes)), grid, ("offset",),
        ("py", "px"), SAMPLING[:-1],
    ),
    "Plan": Tried(plan, oracle_forward, ARGUMENTS),
    "DeformConv2D": Tried(layer, oracle_forward, ARGUMENTS),
    "DeformConv2D.backward": Tried(
        layer_backward, oracle_backward, (*ARGUMENTS, "grad_output"), ARGUMENTS
    ),
    "DeformConv2DPack": Tried(
        pack, oracle_pack, ("x", "weight", "bias", "conv_offset_weight", "conv_offset_bias")
    ),
}  # fmt: skip
ON_A_GPU = tuple(name for name in CALLS if not name.startswith(("Plan", "DeformConv2D")))
