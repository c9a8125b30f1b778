"""deform_conv2d_jvp and deform_conv2d_double_backward: by differences, adjoints and symmetry."""

import inspect

import ml_dtypes
import numpy as np
import pytest
from cases import CASES, Case, assert_close, budgets
from directions import Direction, along, dot, slope
from libraries import dcn, libraries

import cupy_dcn
from cupy_dcn import SecondGradients, Tangents, _oracle

pytestmark = pytest.mark.usefixtures("turn")

NAMES = Tangents._fields


@pytest.fixture(scope="module", params=libraries(), autouse=True)
def turn(request):
    """Each kind of array in its turn, NumPy's without Numba: its twin has no part in this."""
    with dcn.running_on(request.param):
        yield


SMOOTH = [case for case in CASES if case.spread < 8]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
few_cases = pytest.mark.parametrize("case", [CASES[i] for i in (0, 2, 3, 6, 9)], ids=str)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_tangent_is_the_difference_of_the_oracle(case):
    made = Direction(case)

    def oracle(x, offset, weight, bias, mask):
        return _oracle.forward(x, offset, weight, bias, *case.sampling[1:], case.groups, mask)

    out, tangent = made.jvp(dcn)
    assert_close(out, oracle(**made.primals), 1e-12)
    assert_close(tangent, slope(oracle, made.primals, made.tangents._asdict()), 1e-10)


@few_cases
@pytest.mark.parametrize("name", NAMES)
def test_tangent_of_one_argument_alone(case, name):
    made = Direction(case)
    alone = Tangents(**{name: getattr(made.tangents, name)})
    zeros = Tangents(
        *(
            array if field == name or array is None else np.zeros_like(array)
            for field, array in made.tangents._asdict().items()
        )
    )
    for ours, expected in zip(
        (*made.jvp(dcn, tangents=alone), *made.double_backward(dcn, cotangents=alone)),
        (*made.jvp(dcn, tangents=zeros), *made.double_backward(dcn, cotangents=zeros)),
        strict=True,
    ):
        if expected is not None:
            assert_close(ours, expected, 1e-13)


@each_case
def test_jvp_is_the_adjoint_of_the_backward(case):
    made = Direction(case)
    _, tangent = made.jvp(dcn)
    grads = dcn.deform_conv2d_backward(**made.arrays, **case.attributes)
    scale = np.linalg.norm(tangent) * np.linalg.norm(made.arrays["grad_output"])
    u_jv = np.vdot(made.arrays["grad_output"], tangent)
    np.testing.assert_allclose(u_jv, dot(grads, made.tangents), rtol=0, atol=1e-12 * scale)
    assert abs(u_jv) > 1e-3 * scale


@pytest.mark.parametrize("case", SMOOTH, ids=str)
@pytest.mark.parametrize("name", [*SecondGradients._fields, "all"])
def test_double_backward_is_the_difference_of_the_backward(case, name):
    made = Direction(case)
    other = made.other if name == "all" else {name: made.other[name]}

    def product(**arrays):
        grads = cupy_dcn.deform_conv2d_backward(**arrays, **case.attributes)
        return dot(grads, made.tangents)

    del made.other["bias"]
    needs = SecondGradients._fields if name == "all" else (name,)
    second = made.double_backward(dcn, needs=needs)
    expected = slope(product, made.arrays, {k: v for k, v in other.items() if k != "bias"})
    zeros = dict.fromkeys(SecondGradients._fields)
    scale = max(abs(product(**made.arrays)), 1)
    np.testing.assert_allclose(along(second, zeros | other), expected, rtol=0, atol=1e-10 * scale)
    if case.images:
        assert name == "mask" or expected != 0


@few_cases
def test_second_derivatives_are_symmetric(case):
    # The Hessian of <u, y>, block by block: by a after b, and by b after a.
    made = Direction(case)
    there = [name for name in ("x", "offset", "weight", "mask") if made.arrays[name] is not None]

    def turned(direction, name):
        return made.double_backward(dcn, cotangents=Tangents(**{name: direction}))

    rows = {a: turned(made.other[a], a) for a in there}
    columns = {b: turned(getattr(made.tangents, b), b) for b in there}
    blocks = 0
    for a in there:
        for b in there:
            one = np.vdot(getattr(rows[a], b), getattr(made.tangents, b))
            other = np.vdot(getattr(columns[b], a), made.other[a])
            np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10)
            blocks += abs(one) > 1e-6
    # Linear in x, weight and mask, so that their own blocks are 0.
    assert blocks == len(there) ** 2 - (len(there) - 1)


@few_cases
def test_any_budget_gives_the_same(case):
    made = Direction(case)
    expected = made.both()
    # The emulator takes seconds a hundred tiles.
    for budget in budgets(made.jvp, dcn)[1 : 2 if dcn.on_device else None]:
        ours = made.both(dcn, workspace_bytes=budget)
        for name, reference in expected.items():
            if reference is None:
                assert ours[name] is None
            else:
                assert_close(ours[name], reference, 1e-12)


@few_cases
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float32, 5e-6), (np.float16, 2e-2), (ml_dtypes.bfloat16, 1e-1)],
    ids=["float32", "float16", "bfloat16"],
)
def test_other_dtypes(case, dtype, tolerance):
    made = Direction(case, dtype)
    expected = made.wide().both()
    for name, ours in made.both(dcn).items():
        if expected[name] is None:
            assert ours is None
        else:
            assert ours.dtype == dtype
            assert_close(ours.astype(float), expected[name], tolerance)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_offsets_and_masks_in_float32_beside_half_precision(dtype):
    made = Direction(CASES[3], dtype)
    wide = {name: made.arrays[name].astype(np.float32) for name in ("offset", "mask")}
    made.arrays |= wide
    made.tangents = made.tangents._replace(
        **{name: getattr(made.tangents, name).astype(np.float32) for name in wide}
    )
    expected = made.wide().both()
    for name, ours in made.both(dcn).items():
        assert ours.dtype == (np.float32 if name in wide else dtype)
        assert_close(ours.astype(float), expected[name], 1e-1)


@few_cases
@pytest.mark.parametrize(
    "needs", [("x",), ("offset",), ("mask",), ("weight",), ("grad_output",), ("x", "mask"), ()]
)
def test_only_what_is_needed(case, needs):
    made = Direction(case)
    expected, ours = made.double_backward(), made.double_backward(dcn, needs=needs)
    for name in SecondGradients._fields:
        reference = getattr(expected, name)
        if name in needs and reference is not None:
            assert_close(getattr(ours, name), reference, 1e-12)
        else:
            assert getattr(ours, name) is None


OUTSIDE = (-1, -1.5, 4, 1e20, np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("channels", [2, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_samples_outside_add_nothing(channels, axis):
    # Every other sample is outside; directions and masks there may be anything.
    case = Case(1, channels, (4, 5), 2, (1, 1))
    made = Direction(case)
    out = np.zeros((4, 5), bool)
    out.flat[::2] = True
    places = np.resize([*OUTSIDE, 5][: 8 if axis else 7], out.sum())
    grid = np.indices((4, 5))[axis]
    made.arrays["offset"][0, axis][out] = np.where(places == 4, 4 + axis, places) - grid[out]
    for array in (made.tangents.offset, made.tangents.mask, made.arrays["mask"]):
        array[0][..., out] = np.nan
    made.arrays["mask"][0][..., out] = np.inf
    still = made.tangents._replace(weight=None)
    with np.errstate(invalid="ignore"):  # the output itself is 0 times infinity there
        _, tangent = made.jvp(dcn, tangents=still)
    assert_close(
        tangent[0][:, out],
        np.repeat(made.tangents.bias[:, None], out.sum(), axis=1),
        0,
    )
    assert np.isfinite(tangent).all()
    needs = ("x", "offset", "weight", "mask")
    second = made.double_backward(dcn, needs=needs)
    assert (second.offset[0][:, out] == 0).all()
    assert (second.mask[0][:, out] == 0).all()
    assert np.isfinite(second.x).all()
    # As if they were not there.
    made.arrays["mask"][0][..., out] = 0
    for array in (made.tangents.offset, made.tangents.mask):
        array[0][..., out] = 0
    made.arrays["offset"][0][..., out] = 100
    again = made.double_backward(dcn, needs=needs)
    assert_close(second.x, again.x, 1e-13)
    assert_close(second.weight, again.weight, 1e-13)


@pytest.mark.parametrize("channels", [2, 8])
def test_what_does_not_move_is_not_multiplied(channels):
    # An infinite pixel, beside a direction that leaves offsets and masks where they are.
    made = Direction(Case(1, channels, (4, 5), 2, (3, 3), padding=(1, 1, 1, 1)))
    expected = made.jvp(dcn, tangents=Tangents(x=made.tangents.x))[1]
    made.arrays["x"][...] = np.inf
    tangents = Tangents(x=made.tangents.x)
    with np.errstate(invalid="ignore"):
        assert_close(made.jvp(dcn, tangents=tangents)[1], expected, 0)
        second = made.double_backward(dcn, cotangents=tangents)
    assert all(np.isfinite(array).all() for array in second)
    assert not second.x.any()


@pytest.mark.parametrize("channels", [2, 8])
def test_derivatives_at_grid_lines_are_right_hand(channels):
    made = Direction(Case(1, channels, (5, 6), 2, (3, 3), padding=(1, 1, 1, 1)))
    at = Direction(made.case)
    at.arrays["offset"] = np.floor(made.arrays["offset"])
    near = at.arrays | {"offset": at.arrays["offset"] + 1e-9}
    expected = cupy_dcn.deform_conv2d_double_backward(
        **near, **made.case.attributes, cotangents=at.tangents
    )
    # But for samples at -1 and at the far edges, where the box ends.
    inside = np.ones_like(near["offset"][:, ::2], bool)
    for axis, size in enumerate((5, 6)):
        place = cupy_dcn.sampling_grid(at.arrays["offset"], 3, padding=1)[axis]
        inside &= (place > -1) & (place < size)
    ours = at.double_backward(dcn)
    both = np.repeat(inside, 2, axis=1)
    assert both.sum() > 100
    np.testing.assert_allclose(ours.offset[both], expected.offset[both], atol=1e-6)
    np.testing.assert_allclose(ours.mask[inside], expected.mask[inside], atol=1e-6)


@pytest.mark.parametrize("case", [CASES[1], CASES[8]], ids=str)
def test_an_empty_batch(case):
    made = Direction(Case(**{**case.__dict__, "images": 0}))
    found = made.both(dcn)
    for name, array in found.items():
        if name == "weight":
            assert not array.any()
        else:
            assert array.shape == (made.arrays.get(name, made.arrays["grad_output"])).shape
            assert array.size == 0


def test_gradients_are_a_direction_too():
    made = Direction(CASES[1])
    grads = cupy_dcn.deform_conv2d_backward(**made.arrays, **made.case.attributes)
    _, tangent = made.jvp(dcn, tangents=grads)
    np.testing.assert_allclose(
        np.vdot(tangent, made.arrays["grad_output"]), dot(grads, grads), rtol=1e-12
    )


def test_nothing_is_written_to():
    made = Direction(CASES[3])
    arrays = [a for a in (*made.arrays.values(), *made.tangents) if a is not None]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    made.both(dcn)
    for array, same in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, same)


def test_views_are_read_as_they_lie():
    made = Direction(CASES[3])
    expected = made.both()

    def view(array):
        return (
            None if array is None else np.repeat(array[..., None], 2, axis=-1)[..., 0][::-1][::-1]
        )

    made.arrays = {name: view(array) for name, array in made.arrays.items()}
    made.tangents = Tangents(*map(view, made.tangents))
    assert not made.tangents.offset.flags.c_contiguous
    for name, ours in made.both(dcn).items():
        assert_close(ours, expected[name], 1e-13)


def test_signatures_go_on_from_the_operators():
    forward = list(inspect.signature(cupy_dcn.deform_conv2d).parameters)[:11]
    jvp = list(inspect.signature(cupy_dcn.deform_conv2d_jvp).parameters)
    assert jvp == [*forward, "tangents", "workspace_bytes"]
    second = inspect.signature(cupy_dcn.deform_conv2d_double_backward).parameters
    assert list(second) == ["grad_output", *forward, "cotangents", "needs", "workspace_bytes"]
    assert second["needs"].default == ("grad_output", "x", "offset", "weight", "mask")


ERRORS = {
    "no tangents": (
        lambda t: None, TypeError, "must be Tangents or Gradients of x, offset, weight, bias, mask,"
        " got None;",
    ),
    "an array": (lambda t: t.x, TypeError, "got an array of shape"),
    "a list": (lambda t: t._replace(x=[1.0]), TypeError, ".x must be a NumPy or CuPy array (N, C_"),
    "another dtype": (
        lambda t: t._replace(offset=t.offset.astype(np.float32)), TypeError,
        ".offset has dtype float32, expected offset's dtype float64;",
    ),
    "another shape": (
        lambda t: t._replace(mask=t.mask[:, 1:]), ValueError,
        ".mask has shape (2, 8, 6, 7), expected mask's (N, deformable_groups*KH*KW, OH, OW) ="
        " (2, 9, 6, 7);",
    ),
    "another rank": (
        lambda t: t._replace(weight=t.weight[0]), ValueError, ".weight has 3 dimensions (shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", ERRORS)
def test_wrong_directions(wrong):
    change, error, text = ERRORS[wrong]
    made = Direction(CASES[1])
    direction = change(made.tangents)
    for name, call in (
        ("tangents", lambda: made.jvp(dcn, tangents=direction)),
        ("cotangents", lambda: made.double_backward(dcn, cotangents=direction)),
    ):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert str(caught.value).startswith(name)
        assert text in str(caught.value)
        assert ";" in str(caught.value)


@pytest.mark.parametrize("missing", ["bias", "mask"])
def test_what_is_not_there_does_not_move(missing):
    made = Direction(CASES[1])
    made.arrays[missing] = None
    with pytest.raises(ValueError, match=f"tangents.{missing} is .*expected None beside no"):
        made.jvp(dcn)
    with pytest.raises(ValueError, match=f"cotangents.{missing} is .*pass {missing}={missing} too"):
        made.double_backward(dcn)


def test_wrong_needs_and_budgets():
    made = Direction(CASES[1])
    with pytest.raises(ValueError, match=r"needs has 'bias', expected names among \('grad_output'"):
        made.double_backward(dcn, needs=("bias",))
    with pytest.raises(TypeError, match="needs must be a tuple of names among"):
        made.double_backward(dcn, needs="x")
    with pytest.raises(ValueError, match=r"expected at least \d+: 4 times"):
        made.double_backward(dcn, workspace_bytes=1)
    made.arrays["grad_output"] = made.arrays["grad_output"][:, :1]
    with pytest.raises(ValueError, match="grad_output has shape"):
        made.double_backward(dcn)
