"""Calls that nobody should make, and what comes of them: refused in words, or right.

`hostile_calls` draws a call that is sound but for one array or attribute: its values, its layout
in memory, its type, its shape. `outcome` makes the call and says "refused" or "compared"; a wrong
answer, another error, or an argument that was written to is an AssertionError. Run for a while,
with other draws every time:

    python tests/hostile.py [--minutes 10]
"""

import argparse
import math
import sys
import time
import warnings
from collections import Counter
from typing import NamedTuple

import numpy as np
from cases import Case
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from libraries import dcn, hosts

import cupy_dcn
from cupy_dcn import _oracle

ARRAYS = ("x", "offset", "weight", "bias", "mask", "grad_output")
GRADIENTS = ("x", "offset", "weight", "bias", "mask")
ATTRIBUTES = ("stride", "padding", "dilation", "deformable_groups", "groups")
# By dtype; sums of at most 100 terms, and as many roundings of half types.
TOLERANCES = {"float64": 1e-11, "float32": 1e-4, "float16": 3e-2}


class Subclass(np.ndarray):
    """An array like any other."""


class Call(NamedTuple):
    """A function's name, its arrays and attributes, and what was done to one of them."""

    function: str
    case: Case
    arrays: dict
    attributes: dict
    changed: str
    how: str

    def __repr__(self):
        shapes = {name: getattr(a, "shape", type(a)) for name, a in self.arrays.items()}
        return f"{self.function}, {self.changed}: {self.how} ({self.case!r}, {shapes})"


VALUES = {
    "NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf, "minus zero": -0.0,
    "denormal": 1e-310, "small": 1e-40, "huge": 1e30, "whole": 3.0, "minus one": -1.0,
}  # fmt: skip


def misaligned(array):
    memory = np.zeros(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def spread_out(array):
    wide = np.full([2 * n + 1 for n in array.shape], 7, array.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in array.shape)]
    view[...] = array
    return view


def backwards(array):
    every = (slice(None, None, -1),) * array.ndim
    return array[every].copy()[every]


def repeated(array):
    return np.broadcast_to(array[:1], array.shape)


def overlapping(array):
    """Rows that share all elements but one with the next."""
    if array.size == 0:
        return array
    steps = (array.itemsize,) * array.ndim
    memory = np.resize(array.reshape(-1), sum(n - 1 for n in array.shape) + 1)
    return np.lib.stride_tricks.as_strided(memory, array.shape, steps)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


LAYOUTS = {
    "Fortran order": np.asfortranarray, "misaligned": misaligned, "spread out": spread_out,
    "backwards": backwards, "repeated": repeated, "overlapping": overlapping,
    "read-only": read_only, "subclass": lambda array: array.view(Subclass),
}  # fmt: skip
# Of these none is an array of numbers as the library takes them.
TYPES = {
    "masked": np.ma.masked_invalid, "objects": lambda a: a.astype(object),
    "swapped bytes": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "complex": lambda a: a.astype(complex), "integers": lambda a: np.zeros(a.shape, int),
    "booleans": lambda a: np.zeros(a.shape, bool), "text": lambda a: a.astype(str),
    "long double": lambda a: a.astype(np.longdouble), "list": lambda a: a.tolist(),
    "records": lambda a: a.view([("re", a.dtype)]), "times": lambda a: np.zeros(a.shape, "m8[s]"),
    "scalar": lambda a: a.dtype.type(1), "0-d": lambda a: np.array(1, a.dtype),
    "number": lambda a: 1.0, "word": lambda a: "x", "function": lambda a: len,
    "bytes": lambda a: a.tobytes(), "class": lambda a: np.ndarray,
    "another dtype": lambda a: a.astype("f4" if a.dtype == "f8" else "f8"),
}  # fmt: skip
SHAPES = {
    "one axis less": lambda a: a[0] if len(a) else a.reshape((*a.shape[1:-1], 0)),
    "one axis more": lambda a: a[None], "flat": lambda a: a.reshape(-1),
    "transposed": lambda a: a.T,
    **{f"axis {i} longer": lambda a, i=i: np.concatenate([a, a[:, :, :1] if i else a[:1]], min(
        i, a.ndim - 1)) if i in (0, 2) and a.ndim > i and a.shape[i] else a[None] for i in (0, 2)},
    **{f"axis {i} empty": lambda a, i=i: a[(slice(None),) * min(i, a.ndim - 1) + (slice(0),)]
       for i in range(4)},
}  # fmt: skip
# What an attribute must not be, and what it may be besides plain numbers.
NO_ATTRIBUTES = (
    -1, 1.0, 2.5, "1", b"1", math.nan, math.inf, 1j, [], (), (1,) * 3, (1,) * 5, (1, 2.0), (1,
    "1"), (1, (1,)), ((1, 1), 1), {1, 2}, {"a": 1}, object(), len, np.array([1.0, 2.0]),
    np.array([1, 1]), np.float64(1), np.array([[1, 1]]), np.nan, (True, 1), (None, 1), 2**31,
    2**40, 2**63, 2**64, -(2**63), 10**30, (1, 2**63), (2**62, 2**62), range(3), (None, None),
    "SOME", np.array(["1", "1"]), Ellipsis,
)  # fmt: skip
FORMS = (
    np.int8,
    np.uint64,
    np.int32,
    lambda n: (n, n),
    lambda n: [n, n],
    lambda n: (np.int16(n), n),
)


@st.composite
def cases(draw):
    """Draw a call with a small output that is not empty."""
    groups, deformable_groups = draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]))
    channels = math.lcm(groups, deformable_groups) * draw(st.sampled_from([1, 2, 5]))
    kernel = draw(st.sampled_from([(1, 1), (2, 2), (3, 1), (1, 2)]))
    return Case(
        draw(st.sampled_from([1, 2, 0])), channels,
        (draw(st.integers(3, 5)), draw(st.integers(3, 5))),
        groups * draw(st.integers(1, 2)), kernel, draw(st.sampled_from([(1, 1), (2, 1)])),
        draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1)])), (1, 1),
        deformable_groups, groups, draw(st.booleans()), draw(st.sampled_from([0.5, 3.0])),
        draw(st.integers(0, 10**6)),
    )  # fmt: skip


@st.composite
def hostile_calls(draw):
    """Draw a call that is sound but for one thing."""
    case = draw(cases())
    dtype = draw(st.sampled_from(sorted(TOLERANCES)))
    found = dict(zip(ARRAYS, case.arrays(dtype), strict=True))
    function = draw(st.sampled_from(sorted(CALLS)))
    takes = CALLS[function].takes
    arrays = {name: found[name] for name in takes if found[name] is not None}
    attributes = dict(case.attributes)
    kind = draw(
        st.sampled_from(["values", "layout", "type", "shape", "attribute", "form", "library"])
    )
    name = draw(st.sampled_from(sorted(arrays)))
    if kind in ("attribute", "form"):
        name = draw(st.sampled_from(ATTRIBUTES))
        if kind == "attribute":
            value = draw(st.sampled_from(NO_ATTRIBUTES))
        else:
            form, number = draw(st.sampled_from(FORMS)), attributes[name]
            if name.endswith("groups"):
                form = draw(st.sampled_from(FORMS[:3]))
            value = number if isinstance(number, tuple) and len(set(number)) > 1 else form(
                number[0] if isinstance(number, tuple) else number)  # fmt: skip
        attributes[name] = value
        return Call(function, case, arrays, attributes, name, f"{kind}: {value!r}")
    if kind == "library":
        arrays[name] = None if name not in ("bias", "mask") else memoryview(arrays[name])
        return Call(function, case, arrays, attributes, name, "no array")
    table = {"values": VALUES, "layout": LAYOUTS, "type": TYPES, "shape": SHAPES}[kind]
    how = draw(st.sampled_from(sorted(table)))
    if kind == "values":
        if name == "offset" and how in ("denormal", "small"):
            how = "whole"  # lost in the oracle's locations, which decide what is outside
        array = arrays[name].copy()
        at = np.random.default_rng(case.seed).random(array.shape) < draw(
            st.sampled_from([0.05, 0.5, 1.0])
        )
        with np.errstate(all="ignore"):
            array[at] = np.asarray(VALUES[how]).astype(array.dtype)
    else:
        array = table[how](arrays[name])
    arrays[name] = array
    return Call(function, case, arrays, attributes, name, f"{kind}: {how}")


def forward(call):
    return [dcn.deform_conv2d(**call.arrays, **call.attributes)]


def oracle_forward(case, a):
    return [_oracle.forward(
        a["x"], a["offset"], a["weight"], a["bias"], *case.sampling[1:], case.groups, a.get("mask")
    )]  # fmt: skip


def backward(call):
    arrays = dict(call.arrays)
    return list(dcn.deform_conv2d_backward(arrays.pop("grad_output"), **arrays, **call.attributes))


def oracle_backward(case, a):
    return list(_oracle.backward(
        a["grad_output"], a["x"], a["offset"], a["weight"], *case.sampling[1:], case.groups,
        a.get("mask"),
    ))  # fmt: skip


def plan(call):
    arrays, attributes = dict(call.arrays), dict(call.attributes)
    shape = getattr(arrays["x"], "shape", arrays["x"])
    prepared = cupy_dcn.Plan(
        shape, arrays["weight"], arrays["bias"], masked="mask" in arrays, **attributes
    )
    return [prepared(arrays["x"], arrays["offset"], arrays.get("mask"))]


def im2col(call):
    arrays = dict(call.arrays)
    kernel = call.case.kernel
    return [dcn.deform_im2col(arrays.pop("x"), arrays.pop("offset"), kernel, **arrays,
                              **call.attributes)]  # fmt: skip


def oracle_im2col(case, a):
    return [_oracle.im2col(a["x"], a["offset"], *case.sampling, case.groups, a.get("mask"))]


class Tried(NamedTuple):
    """How a function is called and by what it is judged, and the arrays it takes."""

    run: object
    judge: object
    takes: tuple


CALLS = {
    "deform_conv2d": Tried(forward, oracle_forward, ARRAYS[:5]),
    "deform_conv2d_backward": Tried(backward, oracle_backward, ARRAYS),
    "Plan": Tried(plan, oracle_forward, ARRAYS[:5]),
    "deform_im2col": Tried(im2col, oracle_im2col, ("x", "offset", "mask")),
}


def frozen(value):
    """What an argument is, to tell whether it was written to."""
    return value.tobytes() if isinstance(value, np.ndarray) and value.dtype != object else value


def outcome(call):
    """Make a call; return "refused" or "compared"."""
    tried = CALLS[call.function]
    before = {name: frozen(value) for name, value in call.arrays.items()}
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error")
            found = tried.run(call)
    except (TypeError, ValueError) as error:
        said = str(error)
    else:
        said = ""
    for name, value in call.arrays.items():
        assert before[name] is value or before[name] == frozen(value), f"{name} was written to"
    if said:
        assert len(said) > 20, f"says little: {said}"
        assert not call.how.startswith(("values", "layout", "form")), f"refused: {said}"
        return "refused"
    assert not call.how.startswith("type"), f"{call.how} of {call.changed} was taken"
    case = meant(call)
    exact = {name: np.array(a, np.float64) for name, a in call.arrays.items() if a is not None}
    if "bias" not in exact:
        exact["bias"] = np.zeros(case.out_channels)
    with np.errstate(all="ignore"):
        expected = tried.judge(case, exact)
    dtype = np.dtype(call.arrays["x"].dtype).name
    for name, ours, theirs in zip(GRADIENTS, found, expected, strict=False):
        assert (ours is not None) == (len(found) == 1 or name in call.arrays), name
        if ours is not None:
            assert np.dtype(ours.dtype).name == dtype, name
            compare(name if len(found) > 1 else "the output", ours, theirs, TOLERANCES[dtype])
    return "compared"


def meant(call):
    """The case with the changed attribute in full form."""
    full = dict(call.attributes)
    for name, value in full.items():
        numbers = np.asarray(value).reshape(-1)
        if name.endswith("groups"):
            full[name] = int(numbers[0])
        elif name == "padding":
            full[name] = tuple(map(int, np.repeat(numbers, 4 // len(numbers))))
        else:
            full[name] = tuple(map(int, np.repeat(numbers, 2 // len(numbers))))
    changed = {name: full[name] for name in ATTRIBUTES}
    return Case(**{**{f: getattr(call.case, f) for f in call.case.__dataclass_fields__}, **changed})


def compare(name, ours, theirs, tolerance):
    """Demand close numbers where they are numbers, and none where there are none."""
    assert ours.shape == theirs.shape, name
    most = float(np.finfo(ours.dtype).max)
    # What overflows the dtype, or nearly, may be infinite, or no number where infinities meet.
    wild = ~(np.abs(theirs) < most / 1e4)
    finite = np.isfinite(theirs) & ~wild
    assert np.isfinite(ours[finite]).all(), f"{name}: no numbers where there should be"
    assert not np.isfinite(ours[~np.isfinite(theirs)]).any(), f"{name}: numbers from none"
    scale = max(np.abs(theirs[finite]).max(initial=0), 1e-3)
    off = np.abs(ours[finite].astype(float) - theirs[finite]).max(initial=0)
    assert off <= tolerance * scale, f"{name} is off by {off}, of {scale}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    until = time.monotonic() + 60 * parser.parse_args().minutes
    counts, rounds = Counter(), 0
    while time.monotonic() < until:
        for host in hosts():
            rounds += 1

            @seed(rounds)
            @settings(
                max_examples=500, database=None, deadline=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck), print_blob=False,
            )  # fmt: skip
            @given(hostile_calls())
            def run(call):
                counts[outcome(call)] += 1

            with dcn.running_on(host):
                run()
        print(f"\r{dict(counts)}", end="", file=sys.stderr, flush=True)
    print(f"\n{sum(counts.values())} calls: {dict(counts)}")


if __name__ == "__main__":
    main()
