"""Calls that nobody should make, and what comes of them: refused in words, or right.

`hostile_calls` draws a call that is sound but for one or two arrays or attributes: their values,
layout in memory, type, shape. `outcome` makes the call and says "refused" or "compared"; a wrong
answer, another error, or an argument that was written to is an AssertionError. Run for a while,
with other draws every time, one call in twenty by the kernels in the emulator:

    python tests/hostile.py [--minutes 10] [--seed 0]
"""

import argparse
import dataclasses
import math
import sys
import time
import warnings
from collections import Counter

import numpy as np
from cases import Case
from hostile_calls import CALLS, ON_A_GPU, Call, sound_arrays
from hostile_inputs import FORMS, LAYOUTS, NO_ATTRIBUTES, SHAPES, TYPES, VALUES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from libraries import dcn, hosts, libraries

# By dtype; sums of at most 100 terms, and as many roundings of half types.
TOLERANCES = {"float64": 1e-11, "float32": 1e-4, "float16": 3e-2}
# Half types round the offsets that a pack makes, to a 128th of a pixel for the largest of them.
PACKED_HALF = 1e-1
KINDS = {"values": VALUES, "layout": LAYOUTS, "type": TYPES, "shape": SHAPES}
# What CuPy arrays have not, and what kernels count as 0.
NOT_ON_A_GPU = {
    "misaligned", "read-only", "subclass", "small", "denormal", "masked", "objects",
    "swapped bytes", "complex", "text", "long double", "records", "times", "matrix",
}  # fmt: skip
# The oracle's locations decide what is outside; in these float64 numbers are lost in them.
LOST = {"denormal", "small"}
MOVES = ("offset", "dy", "dx")


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
        draw(st.sampled_from([(0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1)])),
        draw(st.sampled_from([(1, 1), (1, 1), (1, 2)])),
        deformable_groups, groups, draw(st.booleans()), draw(st.sampled_from([0.5, 3.0])),
        draw(st.integers(0, 10**6)),
    )  # fmt: skip


@st.composite
def hostile_calls(draw, on_a_gpu=False):
    """Draw a call that is sound but for one thing, or for two."""
    case = draw(cases())
    function = draw(st.sampled_from(sorted(ON_A_GPU if on_a_gpu else CALLS)))
    tried = CALLS[function]
    found = sound_arrays(case, draw(st.sampled_from(sorted(TOLERANCES))))
    arrays = {name: found[name] for name in tried.takes if name in found}
    if "bias" in arrays and draw(st.booleans()):
        del arrays["bias"]
        arrays.pop("d_bias", None)
    attributes = tried.attributes_of(case)
    changed = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        kinds = [*KINDS, "library", *(["attribute", "form"] if attributes else [])]
        kind = draw(st.sampled_from(kinds))
        if kind in ("attribute", "form"):
            name = draw(st.sampled_from(sorted(attributes)))
            if name not in dict(changed):
                attributes[name] = spoil_attribute(draw, kind, name, attributes[name])
                changed.append((name, f"{kind}: {attributes[name]!r}"))
            continue
        name = draw(st.sampled_from(sorted(arrays)))
        if name in dict(changed):
            continue
        if kind == "library":
            optional = name in ("bias", "mask") or name.startswith("d_")
            arrays[name], how = memoryview(arrays[name]) if optional else None, "no array"
        else:
            how = draw(st.sampled_from(choices(kind, name, function, on_a_gpu)))
            share = draw(st.sampled_from([0.05, 0.5, 1.0]))
            arrays[name] = spoiled(arrays[name], kind, how, case.seed, share)
        changed.append((name, f"{kind}: {how}"))
    return Call(function, case, arrays, attributes, tuple(changed))


def choices(kind, name, function, on_a_gpu):
    """Return what can be done to an array."""
    out = NOT_ON_A_GPU if on_a_gpu else set()
    if kind == "values" and (name in MOVES or function == "DeformConv2DPack"):
        out = out | LOST
    if kind == "values" and function == "DeformConv2DPack":
        # Its offsets are rounded to the dtype, and so is which pixels are next to a sample.
        out = out | {"NaN", "infinity", "minus infinity", "huge"}
    return sorted(set(KINDS[kind]) - out)


def spoiled(array, kind, how, number, share):
    """Return an array with something done to it, to a share of its values or to all of it."""
    if kind != "values":
        return KINDS[kind][how](array)
    array = array.copy()
    at = np.random.default_rng(number).random(array.shape) < share
    with np.errstate(all="ignore"):
        array[at] = np.asarray(VALUES[how]).astype(array.dtype)
    return array


def spoil_attribute(draw, kind, name, value):
    """Return no attribute, or the same one in another form."""
    if kind == "attribute":
        return draw(st.sampled_from(NO_ATTRIBUTES))
    form = draw(st.sampled_from(FORMS[:3] if name.endswith("groups") else FORMS))
    if isinstance(value, tuple) and len(set(value)) > 1:
        return value
    return form(value[0] if isinstance(value, tuple) else value)


def frozen(value):
    """What an argument is, to tell whether it was written to."""
    return value.tobytes() if isinstance(value, np.ndarray) and value.dtype != object else value


def outcome(call):
    """Make a call; return "refused" or "compared"."""
    tried = CALLS[call.function]
    before = {name: frozen(value) for name, value in call.arrays.items()}
    said = ""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error")
            found = tried.run(call)
    except (TypeError, ValueError) as error:
        said = str(error)
    for name, value in call.arrays.items():
        assert before[name] is value or before[name] == frozen(value), f"{name} was written to"
    done = [how.partition(":")[0] for _, how in call.changed]
    if said:
        assert len(said) > 20, f"says little: {said}"
        assert not set(done) <= {"values", "layout", "form"}, f"refused: {said}"
        return "refused"
    if "type" in done:
        dtypes = {getattr(array, "dtype", None) for array in call.arrays.values()}
        sound = len(dtypes) == 1 and dtypes <= set(map(np.dtype, TOLERANCES))
        assert sound, "it was taken"
    judge(call, found)
    return "compared"


def judge(call, found):
    """Compare results with what they should be: numbers, shapes, dtypes, and which there are."""
    tried, case = CALLS[call.function], meant(call)
    exact = {name: np.array(a, np.float64) for name, a in call.arrays.items() if a is not None}
    if "weight" in exact:
        exact.setdefault("bias", np.zeros(len(exact["weight"])))
    with np.errstate(all="ignore"):
        expected = tried.judge(case, exact)
    dtype = next(iter(call.arrays.values())).dtype
    tolerance = TOLERANCES[np.dtype(dtype).name]
    if call.function == "DeformConv2DPack" and dtype == np.float16:
        tolerance = PACKED_HALF
    if call.function == "sampling_grid":
        dtype = np.promote_types(dtype, np.float32)
    assert len(found) == len(expected) == len(tried.gives)
    for name, ours, theirs in zip(tried.gives, found, expected, strict=True):
        present = name in call.arrays if name in ("bias", "mask") else True
        assert (ours is not None) == present, name
        if ours is not None:
            assert ours.dtype == dtype, name
            compare(name, ours, theirs, tolerance)


def meant(call):
    """The case with the changed attributes in full form."""
    names = {"kernel_size": "kernel"}
    full = {}
    for name, value in call.attributes.items():
        numbers = np.asarray(value).reshape(-1)
        if name.endswith("groups"):
            full[name] = int(numbers[0])
        else:
            sides = 4 if name == "padding" else 2
            full[names.get(name, name)] = tuple(map(int, np.repeat(numbers, sides // len(numbers))))
    return dataclasses.replace(call.case, **full)


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


def run(name, number, calls, counts):
    """Make so many calls by a library, drawn by a number."""

    @seed(number)
    @settings(
        max_examples=calls, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip
    @given(hostile_calls(on_a_gpu=name not in hosts()))
    def make(call):
        counts[name, outcome(call)] += 1

    with dcn.running_on(name):
        make()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    counts, number = Counter(), arguments.seed
    while time.monotonic() < until:
        for name in (*hosts(), *libraries()[1:]):
            number += 1
            run(name, number, 500 if name in hosts() else 50, counts)
        print(f"\r{sum(counts.values())} calls", end="", file=sys.stderr, flush=True)
    print(f"\n{sum(counts.values())} calls")
    for (name, what), count in sorted(counts.items()):
        print(f"{name}: {count} {what}")


if __name__ == "__main__":
    main()
