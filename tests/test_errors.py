"""Every error message: a correct call, spoiled in one way, ends in it and leaves no trace.

A row of ``CASES`` names what is wrong, the type of the error, what its message must say, and the
arguments that spoil the correct call. The sizes of that call are all different, so that a number
in a message says which size was meant. A row runs on every function that takes its arguments, with
NumPy's arrays and with CuPy's, if CuPy has such arrays: see ``fits``. The last tests hold the table
itself: it reaches every ``raise`` and spoils every argument.
"""

import ast
import contextlib
import inspect
import re
import traceback
from pathlib import Path
from typing import NamedTuple

import emulated_cupy
import ml_dtypes
import numpy as np
import pytest
from cases import assert_close, least_workspace
from libraries import dcn, gpu_count, has_nvrtc, libraries

import cupy_dcn
from cupy_dcn import _kernels, _oracle, _warmup

needs_nvrtc = pytest.mark.skipif(not has_nvrtc(), reason="no CuPy arrays without NVRTC here")

# x (N, C_in, H, W), a 3x2 kernel, groups 2, deformable_groups 3, stride (2, 1), padding (1, 0)
X, WEIGHT, BIAS, OUT = (2, 6, 7, 8), (4, 3, 3, 2), (4,), (2, 4, 4, 7)
OFFSET, MASK = (2, 2 * 3 * 6, 4, 7), (2, 3 * 6, 4, 7)
COLUMNS = (2, 2, 4 * 7, 6, 3)
SHAPES = {
    "x": X, "offset": OFFSET, "weight": WEIGHT, "bias": BIAS, "mask": MASK, "out": OUT,
    "grad_output": OUT, "grad_columns": COLUMNS, "dy": MASK, "dx": MASK,
}  # fmt: skip
ATTRIBUTES = {
    "stride": (2, 1), "padding": (1, 0), "dilation": 1, "deformable_groups": 3, "groups": 2,
    "kernel_size": (3, 2), "image_size": (7, 8), "needs": ("x", "weight"), "workspace_bytes": None,
    "name": None, "deterministic": False, "progress": None,
}  # fmt: skip
CONVOLUTIONS = ("deform_conv2d", "deform_conv2d_backward")
STAGES = ("deform_im2col", "deform_col2im", "deform_coord_grad")
FUNCTIONS = (*CONVOLUTIONS, *STAGES, "pack_offset", "unpack_offset", "sampling_grid")
FLOATS = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip


def takes(function):
    return set(inspect.signature(getattr(cupy_dcn, function)).parameters)


def array(shape, dtype=np.float32):
    """Numbers that are all different, positive, and exact in every dtype tested here."""
    return (np.arange(np.prod(shape, dtype=int)) % 199).reshape(shape).astype(dtype)


def correct(function, dtype=np.float32):
    """The keyword arguments of a call that works."""
    arrays = {name: array(shape, dtype) for name, shape in SHAPES.items()}
    return {name: {**arrays, **ATTRIBUTES}[name] for name in sorted(takes(function))}


LIBRARIES = libraries()
ON_GPU = LIBRARIES[1:]
SEVERAL_DEVICES = tuple(name for name in ON_GPU if name == "emulated" or gpu_count() > 1)


class Case(NamedTuple):
    label: str
    error: type
    parts: tuple[str, ...]
    changes: dict
    dtype: type
    functions: tuple[str, ...]
    libraries: tuple[str, ...]


def wrong(
    label, error, *parts, only=FUNCTIONS, libraries=LIBRARIES, dtype=np.float32, **changes
):  # fmt: skip
    """A row of the table; it runs on those of ``only`` that take all of the changed arguments."""
    functions = tuple(function for function in only if takes(function) >= set(changes))
    assert functions, f"no function takes all of {sorted(changes)}"
    return Case(label, error, parts, changes, dtype, functions, libraries)


def repeated(shape):
    """An array of one number, however large."""
    return np.ndarray(shape, np.float32, np.zeros(1, np.float32), strides=(0,) * len(shape))


class Kept(NamedTuple):
    """An array that stays NumPy's while the others of its call are CuPy's."""

    array: np.ndarray


class Abroad(NamedTuple):
    """An array that is CuPy's on device 1 while the others of its call are on device 0."""

    array: np.ndarray


def cupy_has(value):
    """Tell whether CuPy has an array like one of NumPy's.

    It has no subclasses, no objects, no swapped bytes and nothing read-only; of complex numbers,
    which it has, its stand-in knows nothing.
    """
    dtype = value.dtype
    plain = type(value) is np.ndarray and value.flags.writeable
    return plain and dtype.isnative and dtype.kind not in "Oc"


def fits(case, library):
    """Tell whether a row makes sense with the arrays of a library."""
    arrays = [value for value in case.changes.values() if isinstance(value, np.ndarray)]
    return library in case.libraries and (library == "numpy" or all(map(cupy_has, arrays)))


def moved(value, roots):
    """Copy arrays to the device, with what they are a view of, so that they share it there too.

    ``roots`` takes what was copied, by the identity of the original.
    """
    cupy = dcn.array_module
    if isinstance(value, Abroad):
        with cupy.cuda.Device(1):
            return moved(value.array, roots)
    if isinstance(value, Kept):
        return roots.setdefault(id(value.array), value.array)
    if type(value) in (tuple, list):
        return type(value)(moved(each, roots) for each in value)
    if not isinstance(value, np.ndarray):
        return value
    if value.base is None:
        return roots.setdefault(id(value), cupy.asarray(value))
    first = value.ctypes.data - value.base.ctypes.data
    memory = moved(value.base, roots).data
    return cupy.ndarray(value.shape, value.dtype, memory + first, value.strides)


def misaligned(shape, dtype=np.float32):
    """An array that starts one byte after a multiple of its item size."""
    view = np.zeros(np.prod(shape) * np.dtype(dtype).itemsize + 1, np.uint8)[1:].view(dtype)
    assert not view.flags.aligned
    return view.reshape(shape)


def unevenly_spaced(shape, dtype=np.float32):
    """An array whose last axis steps by 5 bytes."""
    steps = np.cumprod((5, *shape[:0:-1]))[::-1].tolist()
    memory = np.zeros(shape[0] * steps[0] + 1, np.uint8)
    return np.ndarray(shape, dtype, memory, strides=steps)


def sharing(name):
    """``out`` and an input that begin at the same byte."""
    size, out_size = np.prod(SHAPES[name]), np.prod(OUT)
    buffer = array(max(size, out_size))
    return {name: buffer[:size].reshape(SHAPES[name]), "out": buffer[:out_size].reshape(OUT)}


AXES = {
    "x": "(N, C_in, H, W)",
    "offset": "(N, 2*deformable_groups*KH*KW, OH, OW)",
    "weight": "(C_out, C_in/groups, KH, KW)",
    "bias": "(C_out,)",
    "mask": "(N, deformable_groups*KH*KW, OH, OW)",
    "out": "(N, C_out, OH, OW)",
    "grad_output": "(N, C_out, OH, OW)",
    "grad_columns": "(N, groups, OH*OW, KH*KW, C_in/groups)",
    "dy": "(N, deformable_groups*KH*KW, OH, OW)",
    "dx": "(N, deformable_groups*KH*KW, OH, OW)",
}
OUTPUT_FORMULA = "floor((size + padding - (dilation*(kernel - 1) + 1)) / stride) + 1"
NAMES = ("x", "offset", "weight", "bias", "mask")
OPTIONAL = ("bias", "mask", "out")  # may be None
OF_NUMBERS = "numpy.full(shape, number) makes one of a number"
OF_OTHERS = "other libraries' arrays are taken by DLPack or their buffers"
NO_ARRAYS = {
    "list": ([[1.0]], "numpy.asarray(...) converts lists"),
    "numpy.float32": (np.float32(1), OF_NUMBERS),
    "float": (2.5, OF_NUMBERS),
    "str": ("photo.png", OF_OTHERS),
    "None": (None, OF_OTHERS),
}
UNSUPPORTED = {"int64": np.int64, "complex64": np.complex64, "object": object, ">f4": ">f4"}
# With whom offset and mask must agree: the array of the call that is sampled, or its columns.
OWNERS = {"x": (*CONVOLUTIONS, *STAGES[:1]), "grad_columns": STAGES[1:]}

NOT_AN_ARRAY = [
    *(
        wrong(f"{name} is {came}", TypeError, f"{name} must be a NumPy or CuPy array {axes}, got"
              f" {came}; {hint}", **{name: value})
        for name, axes in AXES.items()
        for came, (value, hint) in NO_ARRAYS.items()
        if name != "out" and (value is not None or name not in OPTIONAL)
    ),
    *(
        wrong(f"{name} is masked", TypeError, f"{name} must be a plain array {axes}, got a"
              " masked array; fill its holes first with .filled(value)",
              **{name: np.ma.array(array(SHAPES[name]))})
        for name, axes in AXES.items()
    ),
    *(
        wrong(f"{name} with {rank} axes", ValueError, f"{name} has {rank} dimensions (shape"
              f" {shape}), expected {len(SHAPES[name])}: {axes}; {hint}",
              **{name: array(shape)})
        for name, axes in AXES.items()
        for shape, hint in (
            (SHAPES[name][1:], f"{name}[None] adds axes in front"),
            ((1, *SHAPES[name]), f"{name}[0] drops the first axis"),
        )
        if name != "bias"
        for rank in [len(shape)]
    ),
    *(
        wrong(f"bias with {len(shape)} axes", ValueError, f"bias has {len(shape)} dimensions (shape"
              f" {shape}), expected 1: (C_out,); bias.reshape(-1) has one axis, and a mask goes by"
              " name: mask=mask", bias=array(shape))
        for shape in ((), (1, 4))
    ),
    wrong("a picture", ValueError, "x has 2 dimensions (shape (7, 8)), expected 4: (N, C_in, H,"
          " W); x[None, None] adds axes in front", x=array((7, 8))),
    wrong("a photograph as a file has it", ValueError, "x has 3 dimensions (shape (7, 8, 3)),"
          " expected 4: (N, C_in, H, W); channels come before rows: numpy.moveaxis(x, -1, 0)[None]",
          x=array((7, 8, 3))),
    wrong("a field of displacements, channels last", ValueError, "offset has 3 dimensions (shape"
          " (7, 8, 2)), expected 4: (N, 2*deformable_groups*KH*KW, OH, OW); channels come before"
          " rows: numpy.moveaxis(offset, -1, 0)[None]", offset=array((7, 8, 2))),
    wrong("a stride in the place of bias", TypeError, "bias must be a NumPy or CuPy array (C_out,),"
          f" got int; {OF_NUMBERS}, and a stride goes by name: stride=stride", bias=2),
]  # fmt: skip

DTYPES = [
    *(
        wrong(f"{name} is {came}", TypeError, f"{name} has dtype {came}, expected float64, float32,"
              f" float16 or bfloat16 in native byte order; convert it with {name}.astype("
              "numpy.float32), as all arrays of the call", **{name: np.zeros(SHAPES[name], dtype)})
        for name in AXES
        if name != "out"
        for came, dtype in UNSUPPORTED.items()
    ),
    *(
        wrong(f"{name} {came} beside {due}", TypeError, f"{name} has dtype {came}, expected"
              f" {owner}'s dtype {due}{also}; convert it with {name}.astype({owner}.dtype)",
              only=functions, dtype=FLOATS[due], **{name: array(SHAPES[name], FLOATS[came])})
        for owner, functions, names in (
            ("x", CONVOLUTIONS, ("offset", "weight", "bias", "mask", "grad_output")),
            ("x", STAGES[:1], ("offset", "mask")),
            ("x", STAGES[2:], ("grad_columns",)),
            ("grad_columns", STAGES[1:], ("offset", "mask")),
        )
        for name in names
        for came, due in (
            ("float64", "float32"), ("float32", "float64"), ("float16", "float32"),
            ("float64", "float16"), ("bfloat16", "float16"), ("float32", "bfloat16"),
        )
        # Beside half precision only offset and mask may be float32.
        for also in [" or float32" * (name in ("offset", "mask") and due.endswith("16"))]
        if came not in also
    ),
]  # fmt: skip

SIZES = [
    *(
        wrong(f"x without {letter}", ValueError, f"x has {letter} = 0", f"{shape}", "at least 1;",
              "only the batch N may be empty", x=array(shape))
        for letter, shape in {"C_in": (2, 0, 7, 8), "H": (2, 6, 0, 8), "W": (2, 6, 7, 0)}.items()
    ),
    wrong("columns without C_in", ValueError, "grad_columns has C_in = 0", "at least 1;",
          "only the batch N may be empty", only=STAGES[1:2],
          grad_columns=array((2, 2, 28, 6, 0))),
    *(
        wrong(f"kernel of {size}", ValueError, f"weight has shape {shape}: a kernel of {size},"
              " expected KH and KW of at least 1; a 1x1 kernel is the smallest",
              weight=array(shape))
        for size, shape in {"0x2": (4, 3, 0, 2), "3x0": (4, 3, 3, 0)}.items()
    ),
    *(
        wrong(f"{name} with a batch of {images}", ValueError, f"{name} has a batch of {images},"
              f" expected {owner}'s batch N = 2; every image has its own", only=functions,
              **{name: array((images, *SHAPES[name][1:]))})
        for owner, functions in OWNERS.items()
        for name in ("offset", "mask")
        for images in (0, 1, 3)
    ),
    *(
        wrong(f"{name} with {came} channels", ValueError, f"{name} has {came} channels, expected"
              f" {formula}deformable_groups*KH*KW = {due} (deformable_groups=3, kernel 3x2);"
              f" {hint}", only=(*CONVOLUTIONS, *STAGES), **{name: array((2, came, 4, 7))})
        for name, formula, due, hint in (
            ("offset", "2*", 36, "offsets are (dy, dx) pairs per tap"),
            ("mask", "", 18, "a mask has one factor per tap"),
        )
        for came in (0, due // 3, due + 1, 2 * due)
    ),
    # 27 // 9 == 3 and 27 // 18 == 1: a check that divides and rounds down lets both through.
    wrong("offset with 27 channels of 18", ValueError, "offset has 27 channels,",
          "2*deformable_groups*KH*KW = 18 (deformable_groups=1, kernel 3x3);",
          weight=array((4, 3, 3, 3)), deformable_groups=1, offset=array((2, 27, 4, 6))),
    wrong("mask with 27 channels of 9", ValueError, "mask has 27 channels,",
          "deformable_groups*KH*KW = 9 (deformable_groups=1, kernel 3x3);",
          weight=array((4, 3, 3, 3)), deformable_groups=1, offset=array((2, 18, 4, 6)),
          mask=array((2, 27, 4, 6))),
    *(
        wrong(f"{name} of size {came}", ValueError, f"{name} has a size of {came},",
              f"expected the output's OH x OW = 4x7, each {OUTPUT_FORMULA}; check stride, padding"
              " and dilation", only=(*CONVOLUTIONS, *STAGES),
              **{name: array((*SHAPES[name][:2], *size))})
        for name in ("offset", "mask")
        for came, size in {"3x7": (3, 7), "4x8": (4, 8), "7x4": (7, 4), "0x7": (0, 7)}.items()
    ),
    *(
        wrong(f"{attribute} {value} changes the size", ValueError, "offset has a size of 4x7,",
              f"expected the output's OH x OW = {due},", only=OWNERS["x"], **{attribute: value})
        for attribute, value, due in (
            ("stride", 1, "7x7"), ("padding", 1, "4x9"), ("padding", (1, 2, 3, 5), "4x15"),
            ("padding", "SAME", "4x8"), ("padding", "same", "4x8"), ("padding", "VALID", "3x7"),
            ("padding", "valid", "3x7"), ("dilation", (2, 3), "3x5"),
        )
    ),
    *(
        wrong(f"C_in not a multiple of {name} = {count}", ValueError, f"{owner} has 6 channels,"
              f" expected a multiple of {name} = {count}; every group takes C_in/{name} channels",
              only=functions, **{name: count})
        for name in ("deformable_groups", "groups")
        for count in (4, 12)
        for owner, functions in (("x", (*OWNERS["x"], *STAGES[2:])), ("grad_columns", STAGES[1:2]))
        if name == "deformable_groups" or owner == "x"
    ),
    wrong("one channel in two groups", ValueError, "x has 1 channel, expected a multiple of groups"
          " = 2; every group", x=array((2, 1, 7, 8)), groups=2),
    *(
        wrong(f"{came} output channels in {groups} groups", ValueError, f"weight has {came} output"
              f" channels, expected a positive multiple of groups = {groups}; every group makes"
              " C_out/groups of them", groups=groups, weight=array((came, 6 // groups, 3, 2)))
        for came, groups in ((0, 2), (4, 3))
    ),
    *(
        wrong(f"weight with {came} input channels", ValueError, f"weight has {came} input channels,"
              " expected C_in/groups = 6/2 = 3; its shape is (C_out, C_in/groups, KH, KW)" + also,
              weight=array((4, came, 3, 2)))
        for came, also in ((0, ""), (2, ""), (6, ", which groups=1 would fit"))
    ),
    wrong("a weight a channel, and groups forgotten", ValueError, "weight has 1 input channel,"
          " expected C_in/groups = 6/1 = 6; its shape is (C_out, C_in/groups, KH, KW), which"
          " groups=6 would fit", groups=1, weight=array((6, 1, 3, 2))),
    wrong("a photograph with channels last", ValueError, "weight has 3 input channels, expected"
          " C_in/groups = 7/1 = 7; its shape is (C_out, C_in/groups, KH, KW); x's last axis has 3:"
          " numpy.moveaxis(x, -1, 1) makes it the second", only=CONVOLUTIONS, groups=1,
          deformable_groups=1, x=array((2, 7, 8, 3))),
    wrong("a photograph with channels last, in groups", ValueError, "x has 7 channels, expected a"
          " multiple of groups = 3; every group takes C_in/groups channels; x's last axis has 3:"
          " numpy.moveaxis(x, -1, 1) makes it the second", only=CONVOLUTIONS, groups=3,
          x=array((2, 7, 8, 3))),
    wrong("an offset with channels last", ValueError, "offset has 4 channels, expected"
          " 2*deformable_groups*KH*KW = 36 (deformable_groups=3, kernel 3x2); offsets are (dy, dx)"
          " pairs per tap; offset's last axis has 36: numpy.moveaxis(offset, -1, 1) makes it the"
          " second", only=(*CONVOLUTIONS, *STAGES), offset=array((2, 4, 7, 36))),
    *(
        wrong(f"bias of shape {shape}", ValueError, f"bias has shape {shape}, expected (C_out,) ="
              " (4,); one number per output channel, None for no bias", bias=array(shape))
        for shape in ((1,), (8,), (0,))
    ),
    *(
        wrong(f"kernel {name} larger than the {padded}", ValueError, f"the kernel's {name}"
              f" dilation*(kernel - 1) + 1 = {reach} is larger than the padded input's, {padded};",
              "the output would be empty: add padding", only=(*CONVOLUTIONS, *STAGES), **changes)
        for name, reach, padded, changes in (
            ("height", 11, "7 + 1 + 1 = 9", {"dilation": (5, 1)}),
            ("width", 10, "8 + 0 + 0 = 8", {"dilation": (1, 9)}),
            ("width", 14, "8 + 2 + 3 = 13", {"dilation": (1, 13), "padding": [1, 1, 2, 3]}),
            ("height", 9, "7 + 0 + 0 = 7", {"dilation": 4, "padding": "VALID"}),
        )
    ),
    wrong("kernel larger than the input, from its weight", ValueError, "the kernel's height"
          " dilation*(kernel - 1) + 1 = 10 is larger", weight=array((4, 3, 10, 2))),
    wrong("kernel larger than the input, from its size", ValueError, "the kernel's width"
          " dilation*(kernel - 1) + 1 = 9 is larger", only=STAGES, kernel_size=(3, 9)),
]  # fmt: skip

# What is no int: shown in the message as written here.
NOT_AN_INT = {
    "True": True, repr(np.True_): np.True_, "1.0": 1.0, "'1'": "1",
    repr(np.float32(1)): np.float32(1), "an array of shape (2,), dtype int64": np.ones(2, np.int64),
    "an array of shape (), dtype int64": np.array(1, np.int64),
    repr(bytes(61))[:57] + "...": bytes(61),
}  # fmt: skip
NOT_INTS = {
    **NOT_AN_INT, "None": None, "{1, 2}": {1, 2}, "(2, True)": (2, True), "[1.0, 2]": [1.0, 2],
    "(2, None)": (2, None), "(2, (1, 1))": (2, (1, 1)), "('1', 1)": ("1", 1),
    "(1, '" + "1" * 52 + "...": (1, "1" * 60),
}  # fmt: skip
PADDING_FORMS = "an int, (vertical, horizontal) or (top, bottom, left, right)"
HINTS = {
    "stride": "a stride of 1 takes every position",
    "dilation": "a dilation of 1 is an ordinary kernel",
    "kernel_size": "a 1x1 kernel is the smallest",
    "image_size": "it is the (H, W) of x",
    "padding": "to crop, slice x before the call",
    "deformable_groups": "1 shares the offsets among all channels",
    "groups": "1 means no grouping",
    "workspace_bytes": "None takes the default of 64 MiB",
}
PAIRS, COUNTS = list(HINTS)[:5], list(HINTS)[5:]
TUPLES = [
    *((name, "an int or two ints (vertical, horizontal)", HINTS[name], FUNCTIONS)
      for name in PAIRS[:4]),
    ("padding", PADDING_FORMS, "'SAME' and 'VALID' are known as well", (*CONVOLUTIONS, *STAGES)),
    ("padding", PADDING_FORMS, "'SAME' depends on the image: give numbers", ("sampling_grid",)),
]  # fmt: skip

INTEGERS = [
    *(
        wrong(f"{name} = {came}", TypeError, f"{name} must be {forms}, got {came}; {hint}",
              only=functions, **{name: value})
        for name, forms, hint, functions in TUPLES
        for came, value in NOT_INTS.items()
        if not (name == "padding" and isinstance(value, str))
    ),
    *(
        wrong(f"{name} = {value}", ValueError, f"{name} has {came}, expected {forms}, got {value};"
              f" {hint}", only=functions, **{name: value})
        for name, forms, hint, functions in TUPLES
        for came, value in {
            "0 values": (), "1 value": (1,), "3 values": (1, 1, 1), "5 values": [1] * 5
        }.items()
    ),
    wrong("padding in words without an image", TypeError, f"padding must be {PADDING_FORMS}, got"
          " 'SAME'; 'SAME' depends on the image: give numbers", only=("sampling_grid",),
          padding="SAME"),
    *(
        wrong(f"padding = {value!r}", ValueError, f"padding must be {PADDING_FORMS}, 'SAME' or"
              f" 'VALID', got {value!r}; 'SAME' gives ceil(size/stride) outputs",
              only=(*CONVOLUTIONS, *STAGES), padding=value)
        for value in ("1", "", "SAME ")
    ),
    *(
        wrong(f"{name} = {came}", TypeError, f"{name} must be an int, got {came}; {HINTS[name]}",
              **{name: value})
        for name in COUNTS
        for came, value in {**NOT_AN_INT, "(1,)": (1,), "None": None}.items()
        if value is not None or name != "workspace_bytes"
    ),
    *(
        wrong(f"{name} = {value}", ValueError, f"{name} must be at least {least}, got {came};"
              f" {hint}", **{name: value})
        for name, hint in HINTS.items()
        for least in [int(name != "padding")]
        for came, value in {
            least - 1: least - 1, -3: np.int8(-3), -2: [1, -2], -4: (-4, 1), -5: (1, 1, -5, 1)
        }.items()
        if np.ndim(value) == 0 or (name in PAIRS and (name == "padding" or len(value) == 2))
    ),
    *(
        wrong(f"{name} = {value}", ValueError, f"{name} must be at most {most}, got {came};",
              **{name: value})
        for name in HINTS
        for most in [2**63 - 1 if name == "workspace_bytes" else 2**31 - 1]
        for came, value in {
            most + 1: most + 1, 2**63: np.uint64(2**63), 2**40: (1, 2**40)
        }.items()
        if np.ndim(value) == 0 or name in PAIRS
    ),
]  # fmt: skip

RESULTS = [
    *(
        wrong(f"out is {came} beside {due}", TypeError, f"out must be a NumPy array of x's"
              f" dtype {due}, got {came}; numpy.empty((2, 4, 4, 7), x.dtype) fits",
              dtype=FLOATS[due], out=out)
        for came, due, out in (
            *((came, "float32", value) for came, (value, _) in NO_ARRAYS.items() if came != "None"),
            *((f"an array of shape {OUT}, dtype {came}", due,
               np.zeros(OUT, {**FLOATS, **UNSUPPORTED}[came]))
              for came, due in (
                  *((name, "float32") for name in UNSUPPORTED), ("float64", "float32"),
                  ("float32", "float64"), ("float32", "bfloat16"), ("float16", "bfloat16"),
              )),
        )
    ),
    *(
        wrong(f"out of shape {shape}", ValueError, f"out has shape {shape}, expected"
              f" (N, C_out, OH, OW) = (2, 4, 4, 7), OH and OW being {OUTPUT_FORMULA};"
              " numpy.empty((2, 4, 4, 7), x.dtype) fits", out=array(shape))
        for shape in ((1, 4, 4, 7), (2, 1, 4, 7), (2, 4, 7, 4), (2, 4, 4, 8))
    ),
    *(
        wrong(f"out {label}", ValueError, "out must be C-contiguous, aligned and writeable, got"
              f" strides {out.strides} for shape (2, 4, 4, 7), aligned={out.flags.aligned},"
              f" writeable={out.flags.writeable};",
              "numpy.empty makes such an array", out=out)
        for label, out in {
            "in Fortran order": array(OUT[::-1]).T,
            "with strides": array((2, 4, 4, 14))[..., ::2],
            "reversed": array(OUT)[:, ::-1],
            "read-only": np.frombuffer(bytes(4 * np.prod(OUT)), np.float32).reshape(OUT),
        }.items()
    ),
    *(
        wrong(f"out {label}", ValueError, "out must be C-contiguous, aligned and writeable, got"
              f" strides {out.strides} for shape (2, 4, 4, 7), aligned=False, writeable=True;",
              "numpy.empty makes such an array", libraries=("numpy",), out=out)
        for label, out in {
            "misaligned": misaligned(OUT), "unevenly spaced": unevenly_spaced(OUT)
        }.items()
    ),
    *(
        wrong(f"out overlaps {name}", ValueError, f"out shares memory with {name}, expected memory"
              " of its own;", "while its inputs are still read", **sharing(name))
        for name in ("x", "offset", "weight", "bias", "mask")
    ),
    *(
        wrong(f"grad_output of shape {shape}", ValueError, f"grad_output has shape {shape},"
              " expected the output's (N, C_out, OH, OW) = (2, 4, 4, 7), OH and OW being"
              f" {OUTPUT_FORMULA}; it is the gradient of what deform_conv2d returns",
              grad_output=array(shape))
        for shape in ((1, 4, 4, 7), (2, 1, 4, 7), (2, 4, 7, 4), (2, 4, 1, 1))
    ),
    *(
        wrong(f"needs = {came}", TypeError, f"needs must be a tuple of names among {NAMES}, got"
              f" {came}; a single one is written needs=('x',)", needs=value)
        for came, value in {
            "'x'": "x", "''": "", "None": None, "1": 1, "True": True,
            f"an array of shape {X}, dtype float32": array(X),
        }.items()
    ),
    *(
        wrong(f"needs has {came}", ValueError, f"needs has {came}, expected names among {NAMES};",
              "arguments of deform_conv2d", needs=value)
        for came, value in {
            "'y'": ("x", "y"), "'X'": ["X"], "'grad_x'": {"grad_x"}, "None": (None,), "0": (0,),
            "['x']": (["x"],), "''": ("",), "'" + "x" * 56 + "...": ("x" * 59,),
            f"an array of shape {X}, dtype float32": (array(X),),
        }.items()
    ),
    *(
        wrong(f"columns in {groups} groups", ValueError, f"grad_columns has {groups} groups (shape"
              f" (2, {groups}, 28, 6, 3)), expected a number of groups",
              hint, only=functions,
              grad_columns=array((2, groups, 28, 6, 3)))
        for groups, functions, hint in (
            (0, STAGES[1:], "its axes are (N, groups, OH*OW, KH*KW, C_in/groups)"),
            (4, STAGES[2:], "that divides C_in = 6; its axes are (N, groups,"),
        )
    ),
    *(
        wrong(f"grad_columns of shape {shape}", ValueError, f"grad_columns has shape {shape},"
              f" expected (N, groups, OH*OW, KH*KW, C_in/groups) = {expected}; it is the gradient"
              " of what deform_im2col returns", only=functions, grad_columns=array(shape))
        for shape, expected, functions in (
            ((2, 2, 27, 6, 3), COLUMNS, STAGES[1:]), ((2, 2, 28, 5, 3), COLUMNS, STAGES[1:]),
            ((2, 2, 6, 28, 3), COLUMNS, STAGES[1:]), ((1, 2, 28, 6, 3), COLUMNS, STAGES[2:]),
            ((2, 2, 28, 6, 2), COLUMNS, STAGES[2:]),
            ((2, 3, 28, 6, 3), (2, 3, 28, 6, 2), STAGES[2:]),
            ((2, 1, 28, 6, 3), (2, 1, 28, 6, 6), STAGES[2:]),
        )
    ),
    *(
        wrong(f"grad_columns beside {name} = {value}", ValueError, f"grad_columns has shape"
              f" {COLUMNS}, expected (N, groups, OH*OW, KH*KW, C_in/groups) = {due};",
              only=STAGES[1:], **{name: value})
        for name, value, due in (
            ("kernel_size", 3, (2, 2, 24, 9, 3)), ("image_size", 7, (2, 2, 24, 6, 3)),
        )
    ),
    wrong("workspace_bytes = 100", ValueError, "workspace_bytes is 100, expected at least",
          ": twice the larger of one output pixel's columns and one window of x (6 channels, 6"
          " taps); pass workspace_bytes=", libraries=("numpy",), workspace_bytes=100),
    *(
        wrong("workspace_bytes = 100", ValueError, "workspace_bytes is 100, expected at least"
              f" {2 * 4 * (36 + out)}: twice one output pixel's columns and values (6 channels *"
              f" 6 taps + {out}, of 4 bytes); pass workspace_bytes={2 * 4 * (36 + out)} or more",
              only=functions, libraries=ON_GPU, workspace_bytes=100)
        # Values are the outputs or their gradients; the stages have none.
        for functions, out in ((CONVOLUTIONS, 4), (STAGES, 0))
    ),
    *(
        wrong(f"deterministic = {came}", TypeError, f"deterministic must be True or False, got"
              f" {came}; it asks for the same bits every time", deterministic=value)
        for came, value in {
            "None": None, "1": 1, "'yes'": "yes", f"an array of shape {X}, dtype float32": array(X),
        }.items()
    ),
    wrong("progress without a call", TypeError, "progress must be a callable like tqdm.tqdm, got"
          " True; it is called as progress(iterable, total=..., desc=..., unit=...)",
          progress=True),
    wrong("more cells than 32 bits count", ValueError, "deterministic=True numbers an image's"
          " 2160306009 cells, deformable_groups * (H + 3) * (W + 1), expected at most 2143289344;",
          only=("deform_col2im",), libraries=ON_GPU, deterministic=True, image_size=(30000, 24000),
          grad_columns=repeated((2, 2, 15000 * 23999, 6, 3)),
          offset=repeated((2, 36, 15000, 23999)),
          mask=repeated((2, 18, 15000, 23999))),
    wrong("a result of more bytes than are counted", ValueError, "grad_x of shape (2, 6,"
          " 2147483647, 2147483647) would take 221360928678356189232 bytes, expected at most"
          " 2^63 - 1 = 9223372036854775807; larger sizes overflow index arithmetic",
          only=("deform_col2im",), image_size=(2**31 - 1, 2**31 - 1), stride=2**31 - 1, padding=0,
          grad_columns=array((2, 2, 1, 6, 3)), offset=array((2, 36, 1, 1)),
          mask=array((2, 18, 1, 1))),
    wrong("more taps than 32 bits count", ValueError, "2*deformable_groups*KH*KW is 2147483648,"
          " expected at most 2^31 - 1 = 2147483647 on a GPU, as cuBLAS and the kernels count in 32"
          " bits here; take a smaller kernel, or cut the layer into several with fewer channels",
          only=("deform_im2col",), libraries=ON_GPU, kernel_size=2**15, deformable_groups=1,
          padding=(2**15 - 1, 0), x=repeated((2, 6, 1, 2**15)), stride=1,
          offset=repeated((2, 2**31, 2**15, 1)), mask=repeated((2, 2**30, 2**15, 1))),
]  # fmt: skip

LAYOUT = [
    wrong("dx of another dtype", TypeError, "dx has dtype float64, expected dy's dtype float32;",
          "convert it with dx.astype(dy.dtype)", dx=array(MASK, np.float64)),
    wrong("dx of another shape", ValueError, "dx has shape (2, 18, 4, 1), expected dy's shape",
          "(N, deformable_groups*KH*KW, OH, OW) = (2, 18, 4, 7);",
          "broadcast_to makes one from a constant", dx=array((2, 18, 4, 1))),
    wrong("offset with an odd number of channels", ValueError, "offset has 37 channels, expected"
          " 2*deformable_groups*KH*KW, an even number;", "offsets are (dy, dx) pairs per tap",
          only=("unpack_offset", "sampling_grid"), offset=array((2, 37, 4, 7))),
    *(
        wrong(f"offset with {came} channels", ValueError, f"offset has {came} channels, expected a"
              " multiple of 2*KH*KW = 12 (kernel 3x2); offsets are (dy, dx) pairs per tap",
              only=("sampling_grid",), offset=array((2, came, 4, 7)))
        for came in (0, 6, 38)
    ),
]  # fmt: skip

ALIGNMENT = [
    wrong(f"{name} {label}", ValueError, f"{name} is not aligned: its address and strides"
          f" {value.strides} must be multiples of 4 bytes on a GPU; a copy into cupy.empty is",
          libraries=ON_GPU, **{name: value})
    for name in AXES
    for label, make in (("misaligned", misaligned), ("unevenly spaced", unevenly_spaced))
    for value in [make(SHAPES[name])]
]  # fmt: skip


def together(function, name):
    """The arrays that are compared with one array of a call when it is checked."""
    if name in ("out", "grad_output"):  # the others agree by then
        return [name, "x"]
    return sorted(takes(function) & SHAPES.keys() - {"out", "grad_output"})


def apart(error, expected, words, hint, placed, libraries):
    """Rows with each array of each function, and with all but it, in another place."""
    rows = []
    for function in FUNCTIONS:
        arrays = sorted(takes(function) & SHAPES.keys())
        for name in arrays if len(arrays) > 1 else ():
            compared = together(function, name)
            for away in ([name], [other for other in arrays if other != name]):
                came = [f"{other} is {words[other in away]}" for other in compared]
                changes = {other: placed(array(SHAPES[other])) for other in away}
                label = f"{name} is {words[name in away]}, unlike the others ({function})"
                rows.append(wrong(label, error, expected, *came, hint, only=(function,),
                                  libraries=libraries, **changes))  # fmt: skip
    return rows


PLACES = [
    *apart(TypeError, "expected all arrays from one library, but ",
           ("a CuPy array", "a NumPy array"),
           "cupy.asarray(...) moves one to the GPU, cupy.asnumpy(...) to the CPU", Kept, ON_GPU),
    *apart(ValueError, "expected all arrays on one device, but ", ("on device 0", "on device 1"),
           "cupy.asarray(...) under `with cupy.cuda.Device(...)` copies one over", Abroad,
           SEVERAL_DEVICES),
]  # fmt: skip

CASES = [*NOT_AN_ARRAY, *DTYPES, *SIZES, *INTEGERS, *RESULTS, *LAYOUT, *ALIGNMENT, *PLACES]


@contextlib.contextmanager
def no_work():
    """Demand that the device is asked for nothing: no kernel, no memory, no copy, no wait."""
    if dcn.name != "emulated":
        yield
        return
    with emulated_cupy.recorded() as log:
        yield
    assert not log.entries


def contents(arrays):
    """The bytes of arrays, NumPy's or CuPy's."""
    to_host = dcn.array_module.asnumpy if dcn.on_device else np.asarray
    return {name: to_host(array).tobytes() for name, array in arrays.items()}


def failing(case, function):
    """Make a wrong call; return its error, having checked that it left everything as it was."""
    arguments = {**correct(function, case.dtype), **case.changes}
    memory = {name: value for name, value in arguments.items() if isinstance(value, np.ndarray)}
    if dcn.on_device:
        memory = {}
        arguments = {name: moved(value, memory) for name, value in arguments.items()}
    before = contents(memory)
    with pytest.raises((TypeError, ValueError)) as caught, no_work():
        getattr(cupy_dcn, function)(**arguments)
    assert contents(memory) == before, "an array was written to before the error"
    return caught.value


RUNS = [
    (library, case, function)
    for library in LIBRARIES
    for case in CASES
    if fits(case, library)
    for function in case.functions
]


def spelled(part):
    """A part of a message as it reads with the arrays of the library whose turn it is."""
    if not dcn.on_device:
        return part
    part = part.replace("numpy.empty", "cupy.empty")
    return part.replace("must be a NumPy array of", "must be a CuPy array of")


@pytest.mark.parametrize(
    ("library", "case", "function"),
    RUNS,
    ids=[f"{library}-{function}-{case.label}" for library, case, function in RUNS],
    indirect=["library"],
)
def test_message(library, case, function):
    error = failing(case, function)
    assert type(error) is case.error, f"{type(error).__name__}: {error}"
    text = str(error)
    for part in map(spelled, case.parts):
        assert part in text, f"the message lacks {part!r}: {text}"
    expected, _, hint = text.rpartition("; ")
    assert re.search("must be|expected|larger than", expected), f"no expectation: {text}"
    assert re.fullmatch(r"(None|[a-z0-9'(]).*[^.\s]", hint), f"no hint: {text}"


@needs_nvrtc
def test_what_is_left_out_cupy_has_not():
    left_out = [
        case for case in CASES if "emulated" in case.libraries and not fits(case, "emulated")
    ]
    arrays = [a for case in left_out for a in case.changes.values() if not cupy_has(a)]
    assert len(arrays) >= len(left_out) > 0
    refused = set()
    with dcn.running_on("emulated"):
        for value in arrays:
            try:
                copy = dcn.array_module.asarray(value)
            except (ValueError, NotImplementedError):
                refused.add(value.dtype.name)
            else:  # what makes it special gets lost
                assert not isinstance(copy, np.ma.MaskedArray)
                assert isinstance(value, np.ma.MaskedArray) or not value.flags.writeable
    assert refused == {"object", "complex64", "float32"}  # the last one with its bytes swapped


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", FLOATS.values())
def test_correct_call_works(function, dtype):
    # Otherwise a row could find its error for another reason. Here C_out = 4 is no multiple of
    # deformable_groups = 3, which the operator does not need.
    result = getattr(dcn, function)(**correct(function, dtype))
    results = result if isinstance(result, tuple) else (result,)
    assert any(isinstance(one, np.ndarray) and one.size for one in results)


SAME_CALLS = [
    ("stride", (2, 1), [2, 1]),
    ("stride", (2, 1), (np.int64(2), np.uint8(1))),
    ("padding", (1, 0), [1, 0]),
    ("padding", (1, 0), (np.int32(1), np.int16(0))),
    ("padding", (1, 0), (1, 1, 0, 0)),
    ("padding", (1, 0), [np.int64(1), 1, 0, 0]),
    ("dilation", 1, np.int64(1)),
    ("dilation", 1, (1, 1)),
    ("dilation", 1, [np.uint16(1), 1]),
    ("deformable_groups", 3, np.int64(3)),
    ("groups", 2, np.uint8(2)),
    ("kernel_size", (3, 2), [3, np.int64(2)]),
    ("image_size", (7, 8), [np.int64(7), 8]),
    ("needs", ("x", "weight"), ["weight", "x"]),
    ("needs", ("x", "weight"), {"x": 0, "weight": 1}),
    ("workspace_bytes", None, 64 * 2**20),
    ("workspace_bytes", None, np.int64(64 * 2**20)),
    ("workspace_bytes", None, 2**63 - 1),
    ("name", None, "anything"),
    ("name", None, 3),
]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("name", "plain", "value"), SAME_CALLS, ids=repr)
def test_accepted(name, plain, value):
    functions = [function for function in FUNCTIONS if name in takes(function)]
    assert functions
    for function in functions:
        both = (
            getattr(dcn, function)(**{**correct(function), name: one}) for one in (plain, value)
        )
        for one, other in zip(*map(as_tuple, both), strict=True):
            if dcn.name == "cupy" and one is not None:  # a GPU adds up in any order
                np.testing.assert_allclose(other, one, rtol=1e-6)
            else:
                np.testing.assert_equal(other, one)


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def test_out_beside_an_input_is_no_overlap(library):
    size = np.prod(X)
    buffer = array(size + np.prod(OUT))
    x, out = buffer[:size].reshape(X), buffer[size:].reshape(OUT)
    call = correct("deform_conv2d")
    expected = cupy_dcn.deform_conv2d(**{**call, "x": x.copy()})
    call |= {"x": x, "out": out}
    if library.on_device:
        roots = {}
        call = {name: moved(value, roots) for name, value in call.items()}
    ours = cupy_dcn.deform_conv2d(**call)
    assert ours is call["out"]
    if library.on_device:
        ours = library.array_module.asnumpy(ours)
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_out_between_the_rows_of_an_input_is_no_overlap():
    buffer = np.zeros((2, 2, 8))
    buffer[:, 0] = np.random.default_rng(0).standard_normal((2, 8))
    x, out = buffer[:, 0].reshape(1, 1, 2, 8), buffer[0, 1].reshape(1, 1, 1, 8)
    assert np.shares_memory(x, buffer)
    assert np.shares_memory(out, buffer)
    cupy_dcn.deform_conv2d(x, np.zeros((1, 4, 1, 8)), np.ones((1, 1, 2, 1)), out=out)
    np.testing.assert_allclose(buffer[0, 1], buffer[0, 0] + buffer[1, 0], rtol=1e-14)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("function", [*CONVOLUTIONS, *STAGES])
@pytest.mark.parametrize("dtype", FLOATS.values())
def test_least_workspace(function, dtype):
    call, arguments = getattr(dcn, function), correct(function, dtype)
    del arguments["workspace_bytes"]
    least = least_workspace(call, **arguments)
    with pytest.raises(ValueError, match=f"is {least - 1}, expected at least {least}: "):
        call(**arguments, workspace_bytes=least - 1)
    # Numbers that float16 can add up; up to a pixel away, or hardly a sample would lie inside.
    arguments |= {name: arguments[name] % dtype(8) for name in SHAPES if name in arguments}
    arguments["offset"] = arguments["offset"] % dtype(5) / dtype(2) - dtype(1)
    found = call(**arguments, workspace_bytes=least)
    expected = by_the_oracle(function, arguments)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(expected)
    for ours, reference in zip(found, expected, strict=True):
        if ours is None:
            assert function == "deform_conv2d_backward"
            continue
        assert np.ptp(reference) > 0
        assert_close(ours.astype(float), reference, NOISE[dtype])
    assert any(ours is not None for ours in found)


# What results may differ by from float64's, as a share of the largest.
NOISE = dict(zip(FLOATS.values(), (1e-12, 2e-5, 2e-2, 1e-1), strict=True))


def by_the_oracle(function, arguments):
    """The results of plain loops in float64, as a tuple."""
    a = {name: value.astype(float) for name, value in arguments.items() if name in SHAPES}
    attributes = ((2, 1), (1, 1, 0, 0), (1, 1), 3)  # ATTRIBUTES in full
    sampling = ((3, 2), *attributes)
    if function == "deform_conv2d":
        inputs = (a[name] for name in ("x", "offset", "weight", "bias"))
        return (_oracle.forward(*inputs, *attributes, 2, a["mask"]),)
    if function == "deform_conv2d_backward":
        inputs = (a[name] for name in ("grad_output", "x", "offset", "weight"))
        return _oracle.backward(*inputs, *attributes, 2, a["mask"])
    if function == "deform_im2col":
        return (_oracle.im2col(a["x"], a["offset"], *sampling, 2, a["mask"]),)
    x = a.get("x", np.zeros(X))  # the gradient of x does not depend on it
    grads = _oracle.backward_of_im2col(a["grad_columns"], x, a["offset"], *sampling, a["mask"])
    return grads[:1] if function == "deform_col2im" else grads[1:]


PACKAGE = Path(cupy_dcn.__file__).parent


def raise_sites():
    """Where the functions of the table and the modules behind them raise: {(file, line): last}."""
    sites = {}
    inner = set(PACKAGE.glob("_[!_]*.py")) - {PACKAGE / "_warmup.py"}  # it takes no arrays
    # For test_plan.py, test_layer.py, test_derivatives.py, test_plot.py, test_foreign.py and
    # test_build_kernels.py.
    others = (
        "_plan_arguments", "_files", "_layer", "_layer_arguments", "_tangents", "_plot_arguments",
        "_foreign", "_build_kernels", "_nvrtc", "_options", "_prebuilt",
    )  # fmt: skip
    inner -= {PACKAGE / f"{name}.py" for name in others}
    for path in (*inner, PACKAGE / "functional.py", PACKAGE / "offsets.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                sites[path.name, node.lineno] = node.end_lineno
    return sites


def site_of(error, sites):
    """Where the library raised an error, as one of the sites."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    file = Path(last.filename)
    assert file.parent == PACKAGE, f"{error} comes from outside the library, from {file}"
    found = [
        (name, first)
        for (name, first), end in sites.items()
        if name == file.name and first <= last.lineno <= end
    ]
    assert len(found) == 1, f"{error} comes from {file.name}:{last.lineno}, which raises not"
    return found[0]


def missing_sources(folder):
    """The error of a call whose package lacks the CUDA sources."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernels, "__file__", str(folder / "cupy_dcn" / "_kernels.py"))
        with pytest.raises(FileNotFoundError) as caught:
            _kernels.folder.__wrapped__()
    return caught.value


def missing_compiler():
    """The error of a kernel that was not built ahead, where there is no NVRTC to compile it."""
    (name, macros), *_ = _warmup.kernels_of(
        3, 3, None, 1, 1, "float32", None, None, mask=True, backward=False
    )
    with pytest.MonkeyPatch.context() as patch, dcn.running_on("emulated"):
        patch.setattr(_kernels, "why_not_nvrtc", lambda cupy: "none")
        with pytest.raises(RuntimeError, match=r"finds no NVRTC \(none\)") as caught:
            _kernels._load(dcn.array_module, name, macros, None)
    return caught.value


def test_missing_sources(tmp_path):
    (tmp_path / "cuda").mkdir()  # somebody else's folder of the name does not do
    inside = tmp_path / "cupy_dcn" / "cuda"
    assert str(missing_sources(tmp_path)) == (
        f"the CUDA sources of cupy_dcn are missing: expected bilinear.cuh in {inside};"
        " install the package again"
    )


@needs_nvrtc
def test_every_raise_is_reached(tmp_path):
    sites = raise_sites()
    reached = {site_of(error, sites) for error in (missing_sources(tmp_path), missing_compiler())}
    for library in ("numpy", "emulated"):
        with dcn.running_on(library):
            for _, case, function in (run for run in RUNS if run[0] == library):
                reached.add(site_of(failing(case, function), sites))
    files = {
        "_arguments.py", "_arrays.py", "_attributes.py", "_kernels.py", "_cut_cpu.py",
        "_cut_gpu.py",
        "offsets.py",
    }  # fmt: skip
    assert files <= {name for name, _ in sites}
    missing = sorted(f"{name}:{line}" for name, line in set(sites) - reached)
    assert not missing, f"no row of the table ends at {missing}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_argument_is_spoiled(function):
    spoiled = set().union(*(case.changes for case in CASES if function in case.functions))
    assert takes(function) - {"name"} <= spoiled


def test_no_row_is_there_twice():
    labels = [(library, case.label, function) for library, case, function in RUNS]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    assert not twice


@pytest.mark.parametrize(("given", "example"), [("offset", "offset"), ("all", "x")])
def test_a_single_name_as_needs_is_shown_as_a_tuple(given, example):
    x, offset = np.ones((1, 1, 3, 3)), np.zeros((1, 2, 3, 3))
    with pytest.raises(TypeError, match=rf"is written needs=\('{example}',\)"):
        cupy_dcn.deform_conv2d_backward(x, x, offset, np.ones((1, 1, 1, 1)), needs=given)
