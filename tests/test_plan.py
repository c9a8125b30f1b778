"""A plan that is held: the functions' results, its own errors, what it allocates, and turns."""

import re
import threading
import tracemalloc

import numpy as np
import pytest
from cases import CASES, Case, assert_close
from libraries import dcn

import cupy_dcn
from cupy_dcn import _oracle
from cupy_dcn._parallel import thread_count

pytestmark = pytest.mark.usefixtures("library")

NAMES = ("x", "offset", "weight", "bias", "mask", "grad_output")
LAYER = Case(2, 6, (7, 8), 4, (3, 2), (2, 1), (1, 1, 0, 0), deformable_groups=3, groups=2)
MIB = 2**20


def to_library(array):
    return array if array is None or not dcn.on_device else dcn.to_device(array)


def on_host(array):
    return array if array is None or not dcn.on_device else dcn.array_module.asnumpy(array)


class Call:
    """The arrays of a case, in NumPy (``host``) and in the library whose turn it is."""

    def __init__(self, case, dtype=np.float64):
        self.case = case
        self.host = dict(zip(NAMES, case.arrays(dtype), strict=True))
        for name, array in self.host.items():
            setattr(self, name, to_library(array))
        self.inputs = self.x, self.offset, self.mask

    def plan(self, **more):
        settings = {"masked": self.case.masked, "backward": True, **self.case.attributes, **more}
        return cupy_dcn.Plan(self.x.shape, self.weight, self.bias, **settings)

    def expected(self, **changes):
        """Return the output and the gradients of plain loops."""
        h = {**self.host, **changes}
        attributes = (*self.case.sampling[1:], self.case.groups, h["mask"])
        y = _oracle.forward(h["x"], h["offset"], h["weight"], h["bias"], *attributes)
        *grads, grad_mask = _oracle.backward(
            h["grad_output"], h["x"], h["offset"], h["weight"], *attributes
        )
        return y, (*grads, grad_mask if self.case.masked else None)


def assert_right(y, gradients, expected):
    assert_close(on_host(y), expected[0], 1e-12)
    for ours, reference in zip(gradients, expected[1], strict=True):
        if reference is None:
            assert ours is None
        else:
            assert_close(on_host(ours), reference, 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_plan_gives_what_the_oracle_gives_again_and_again(case):
    call, other = Call(case), Call(Case(**{**vars(case), "seed": 1}))
    plan = call.plan()
    assert plan.out_shape == call.host["grad_output"].shape
    expected, swapped = (
        call.expected(),
        other.expected(weight=call.host["weight"], bias=call.host["bias"]),
    )
    for _ in range(2):
        y, gradients = plan(*call.inputs), plan.backward(call.grad_output, *call.inputs)
        assert_right(y, gradients, expected)
        y, gradients = plan(*other.inputs), plan.backward(other.grad_output, *other.inputs)
        assert_right(y, gradients, swapped)


def test_results_go_where_they_are_asked_to(library):
    call = Call(LAYER)
    plan = call.plan()
    y, gradients = plan(*call.inputs), plan.backward(call.grad_output, *call.inputs)
    for array in (y, *gradients):
        array.fill(7)
    out = gradients._replace(weight=None)
    again = plan.backward(call.grad_output, *call.inputs, out=out)
    assert plan(*call.inputs, out=y) is y
    assert plan.forward(*call.inputs, out=y) is y
    assert all(one is given for one, given in zip(again, out, strict=True) if given is not None)
    assert again.weight is not gradients.weight
    assert_right(y, again, call.expected())
    for array in gradients:
        array.fill(7)
    some = plan.backward(call.grad_output, *call.inputs, needs=("x", "mask"), out=tuple(gradients))
    expected = call.expected()[1]
    assert some.offset is some.weight is some.bias is None
    assert_close(on_host(some.x), expected[0], 1e-12)
    assert_close(on_host(some.mask), expected[4], 1e-12)
    assert all((on_host(array) == 7).all() for array in gradients[1:4])


def test_strides_may_differ_from_call_to_call():
    call = Call(LAYER)
    plan, expected = call.plan(), call.expected()
    layouts = [(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)]
    for order in layouts:
        views = {}
        for name in ("x", "offset", "mask", "grad_output"):
            array = call.host[name]
            copy = np.ascontiguousarray(array.transpose(order)).transpose(np.argsort(order))
            views[name] = to_library(copy)
        inputs = views["x"], views["offset"], views["mask"]
        assert views["x"].flags.c_contiguous == (order == layouts[0])
        assert_right(plan(*inputs), plan.backward(views["grad_output"], *inputs), expected)


def test_a_weight_is_what_it_was_until_it_is_set():
    call, other = Call(LAYER), Call(Case(**{**vars(LAYER), "seed": 1}))
    plan = call.plan()
    expected = call.expected()
    old, new = call.host["bias"].copy(), other.host["bias"]
    one, both = (call.expected(weight=other.host["weight"], bias=bias) for bias in (old, new))
    call.weight[...] = other.weight
    call.bias[...] = other.bias
    assert_close(on_host(plan(*call.inputs)), expected[0], 1e-12)
    plan.set_weight(call.weight)
    assert_right(plan(*call.inputs), plan.backward(call.grad_output, *call.inputs), one)
    plan.set_weight(call.weight, call.bias)
    assert_right(plan(*call.inputs), plan.backward(call.grad_output, *call.inputs), both)


def test_half_precision_beside_wider_offsets():
    call = Call(LAYER, np.float16)
    h = call.host
    offset, mask = (to_library(h[name].astype(np.float32)) for name in ("offset", "mask"))
    plan = call.plan(offset_dtype="float32", mask_dtype=np.float32)
    y, gradients = plan(call.x, offset, mask), plan.backward(call.grad_output, call.x, offset, mask)
    expected = call.expected(**{name: array.astype(float) for name, array in h.items()})
    assert y.dtype == gradients.weight.dtype == np.float16
    assert gradients.offset.dtype == np.float32
    for ours, reference in zip((y, *gradients), (expected[0], *expected[1]), strict=True):
        assert_close(on_host(ours).astype(float), reference, 1e-2)


def test_an_empty_batch():
    call = Call(Case(0, 4, (5, 6), 2, (3, 3), padding=(1, 1, 1, 1)))
    plan = call.plan()
    y, gradients = plan(*call.inputs), plan.backward(call.grad_output, *call.inputs)
    assert y.shape == plan.out_shape == (0, 2, 5, 6)
    assert not on_host(gradients.weight).any()


def test_it_says_what_it_holds(library):
    call = Call(LAYER, np.float32)
    plan = call.plan()
    name = "CuPy" if dcn.on_device else "NumPy"
    assert repr(plan) == (
        f"<cupy_dcn.Plan of x (2, 6, 7, 8) -> (2, 4, 4, 7), weight (4, 3, 3, 2), float32, v2,"
        f" {name}: forward in 1 tile, backward in 1 tile; {plan.nbytes:,} bytes held>"
    )
    small = call.plan(workspace_bytes=12_000)
    assert small.nbytes < plan.nbytes
    assert re.search(r"forward in \d+ tiles, backward in \d+ tiles", repr(small))
    v1 = cupy_dcn.Plan(call.x.shape, call.weight, **LAYER.attributes, masked=False)
    assert "v1" in repr(v1)
    assert "backward" not in repr(v1)
    assert plan.x_shape == call.x.shape


# Memory


def test_a_loop_allocates_next_to_nothing():
    if dcn.on_device:
        pytest.skip("the next test's matter")
    case = Case(2, 32, (40, 40), 512, (3, 3), padding=(1, 1, 1, 1))
    call = Call(case, np.float32)
    for budget in (None, 4 * MIB):
        plan = call.plan(workspace_bytes=budget)
        y, gradients = plan(*call.inputs), plan.backward(call.grad_output, *call.inputs)
        tracemalloc.start()
        try:
            for _ in range(3):
                plan(*call.inputs, out=y)
                plan.backward(call.grad_output, *call.inputs, out=gradients)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Sums and products of the weight's gradient, of which one alone would be above it, too.
        assert call.weight.nbytes * 2 > MIB
        assert peak <= MIB * thread_count() / 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_loop_allocates_nothing_on_a_device(library, dtype):
    if dcn.name != "emulated":
        pytest.skip("reads the stand-in's log")
    from emulated_cupy import recorded

    from cupy_dcn import _kernels

    call = Call(LAYER, dtype)
    for budget in (None, 20_000):
        with recorded() as log:
            plan = call.plan(workspace_bytes=budget)
        assert sum(entry.nbytes for entry in log.allocations) >= plan.nbytes
        compiled = _kernels.compiled()
        y = library.array_module.empty(plan.out_shape, dtype)
        names = ("x", "offset", "weight", "bias", "mask")
        gradients = tuple(library.array_module.empty_like(getattr(call, name)) for name in names)
        with recorded() as log:
            for _ in range(2):
                plan(*call.inputs, out=y)
                plan.backward(call.grad_output, *call.inputs, out=gradients)
        assert log.launches
        assert not log.allocations
        assert not log.transfers
        assert not log.synchronisations
        assert _kernels.compiled() == compiled
        with recorded() as log:
            plan.set_weight(call.weight, call.bias)
        assert not log.allocations
        assert len(log.operations) == 2


# Threads, streams and devices


def test_threads_take_turns():
    case = Case(2, 6, (9, 8), 4, (3, 3), padding=(1, 1, 1, 1))
    calls = [Call(Case(**{**vars(case), "seed": seed})) for seed in range(4)]
    plan = calls[0].plan()
    shared = {name: calls[0].host[name] for name in ("weight", "bias")}
    expected = [call.expected(**shared) for call in calls]
    rounds = 2 if dcn.on_device else 40
    start, failed = threading.Barrier(len(calls)), []

    def work(call, reference):
        try:
            start.wait()
            for _ in range(rounds):
                y = plan(*call.inputs)
                gradients = plan.backward(call.grad_output, *call.inputs)
                assert_right(y, gradients, reference)
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=work, args=each) for each in zip(calls, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_stream_waits_for_the_call_before(library, monkeypatch):
    if dcn.name != "emulated":
        pytest.skip("reads the stand-in's log")
    from emulated_cupy import recorded

    cuda, said = library.array_module.cuda, []
    wait_event, record = cuda.Stream.wait_event, cuda.Stream.record

    def waits(stream, event):
        said.append(("waits", stream.ptr, event.ptr))
        wait_event(stream, event)

    def records(stream, event=None):
        said.append(("records", stream.ptr, event.ptr))
        return record(stream, event)

    monkeypatch.setattr(cuda.Stream, "wait_event", waits)
    monkeypatch.setattr(cuda.Stream, "record", records)
    call = Call(LAYER)
    first, second = cuda.Stream(non_blocking=True), cuda.Stream(non_blocking=True)
    with first:
        plan = call.plan()
    for run in (
        lambda: plan(*call.inputs),
        lambda: plan.backward(call.grad_output, *call.inputs),
        lambda: plan.set_weight(call.weight),
    ):
        said.clear()
        with second, recorded() as log:
            run()
        entries = [*log.launches, *log.products, *log.operations]
        assert {entry.stream for entry in entries} == {second.ptr}
        (before, after) = said
        assert before[:2] == ("waits", second.ptr)
        assert after == ("records", second.ptr, before[2])


def test_a_plan_works_on_its_weights_device(library):
    if dcn.name != "emulated":
        pytest.skip("takes two devices")
    cupy = library.array_module
    with cupy.cuda.Device(1):
        call = Call(LAYER)
    plan = call.plan()
    y, gradients = plan(*call.inputs), plan.backward(call.grad_output, *call.inputs)
    plan.set_weight(call.weight)
    assert {array.device.id for array in (y, *gradients)} == {1}
    assert cupy.cuda.Device().id == 0
    assert_right(y, gradients, call.expected())


def test_a_call_that_fails_leaves_the_plan_as_it_was(monkeypatch):
    from cupy_dcn._twins import twin_of

    call = Call(LAYER)
    plan, twin = call.plan(), twin_of(dcn.array_module.empty(0))
    expected = call.expected()

    def fail(*args):
        raise RuntimeError("half-way")

    for name in ("write_output", "add_grad_weight"):
        with monkeypatch.context() as patch:
            patch.setattr(twin, name, fail)
            with pytest.raises(RuntimeError, match="half-way"):
                plan(*call.inputs) if name == "write_output" else plan.backward(
                    call.grad_output, *call.inputs
                )
        assert_right(plan(*call.inputs), plan.backward(call.grad_output, *call.inputs), expected)


# Errors


def made(call, **changes):
    arguments = {"x_shape": call.x.shape, "weight": call.weight, "bias": call.bias}
    return cupy_dcn.Plan(**{**arguments, **LAYER.attributes, **changes})


WRONG_PLANS = [
    ({"x_shape": np.zeros(4)}, TypeError, "must be (N, C_in, H, W), got an array of shape (4,)"),
    ({"x_shape": 4}, TypeError, "x_shape must be (N, C_in, H, W), got 4; x.shape of"),
    ({"x_shape": (2, 6, 7)}, ValueError, "x_shape is (2, 6, 7), expected (N, C_in, H, W); x.shape"),
    ({"x_shape": (2, 6, 7.0, 8)}, TypeError, "x_shape must be an int, got 7.0; x.shape of"),
    ({"x_shape": (2, 6, -7, 8)}, ValueError, "x_shape must be at least 0, got -7; x.shape of"),
    ({"x_shape": (2, 6, 0, 8)}, ValueError, "x has H = 0 where (N, C_in, H, W) is (2, 6, 0, 8)"),
    ({"x_shape": (2, 8, 7, 8), "deformable_groups": 4}, ValueError, "C_in/groups = 8/2 = 4"),
    ({"weight": [1.0]}, TypeError, "weight must be a NumPy or CuPy array (C_out, C_in/groups, KH"),
    ({"masked": 1}, TypeError, "masked must be True or False, got 1; a plan takes the mask"),
    ({"backward": None}, TypeError, "backward must be True or False, got None; a plan takes"),
    ({"deterministic": 1}, TypeError, "deterministic must be True or False, got 1; it asks"),
    ({"offset_dtype": "float32"}, TypeError, "offset_dtype is float32, expected x's dtype float64"),
    ({"workspace_bytes": 10}, ValueError, "workspace_bytes is 10, expected at least"),
    ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
]


@pytest.mark.parametrize(("changes", "error", "text"), WRONG_PLANS)
def test_plans_that_cannot_be(changes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        made(Call(LAYER), **changes)


WRONG_CALLS = [
    ({"x": (2, 6, 7, 9)}, ValueError, "x has shape (2, 6, 7, 9), expected the plan's (N, C_in"),
    ({"x": np.float32}, TypeError, "x has dtype float32, expected weight's dtype float64; convert"),
    ({"offset": (2, 36, 4, 8)}, ValueError, "offset has a size of 4x8, expected the output's"),
    ({"mask": None}, ValueError, "the call has no mask, expected a mask since the plan was made"),
    ({"mask": None}, ValueError, "masked=True; Plan(..., masked=False) makes the other one"),
    ({"mask": (2, 18, 4, 8)}, ValueError, "mask has a size of 4x8"),
    ({"out": (2, 4, 4, 8)}, ValueError, "out has shape (2, 4, 4, 8), expected (N, C_out, OH, OW)"),
]


def spoiled(array, change, library):
    if change is None:
        return None
    if isinstance(change, tuple):
        return library.array_module.ones(change, np.float64)
    return array.astype(change)


@pytest.mark.parametrize(("changes", "error", "text"), WRONG_CALLS)
def test_calls_that_a_plan_is_not_for(library, changes, error, text):
    call = Call(LAYER)
    plan = call.plan()
    arguments = {"x": call.x, "offset": call.offset, "mask": call.mask}
    for name, change in changes.items():
        arguments[name] = spoiled(arguments.get(name), change, library)
    with pytest.raises(error, match=re.escape(text)):
        plan(**arguments)
    if "out" not in changes:
        with pytest.raises(error, match=re.escape(text)):
            plan.backward(call.grad_output, **arguments)


def test_more_calls_that_a_plan_is_not_for(library):
    call = Call(LAYER)
    plan, forward = call.plan(), call.plan(backward=False)
    unmasked = call.plan(masked=False)
    with pytest.raises(ValueError, match="the call has a mask, expected no mask since the plan"):
        unmasked(*call.inputs)
    with pytest.raises(ValueError, match="made with backward=False, expected backward=True to ask"):
        forward.backward(call.grad_output, *call.inputs)
    gradients = plan.backward(call.grad_output, *call.inputs)
    ones = library.array_module.ones
    tuple_of_five = "out must be Gradients or a tuple of 5 arrays or None, got"
    wrong = [
        (gradients.x, TypeError, tuple_of_five),
        (gradients[:4], TypeError, tuple_of_five),
        (gradients._replace(x=ones(3)), ValueError, "out.x has 1 dimensions (shape (3,))"),
        (gradients._replace(bias=ones(3)), ValueError, "out.bias has shape (3,), expected bias's"),
        (gradients._replace(weight=call.weight), ValueError, "out.weight shares memory with weigh"),
        (gradients._replace(x=gradients.x.astype(np.float32)), TypeError, "out.x must be a"),
    ]
    for out, error, text in wrong:
        with pytest.raises(error, match=re.escape(text)):
            plan.backward(call.grad_output, *call.inputs, out=out)
    same = Call(Case(2, 3, (4, 4), 3, (1, 1)))  # mask and bias apart, gradients alike in shape
    square = same.plan()
    grads = square.backward(same.grad_output, *same.inputs)
    with pytest.raises(ValueError, match=r"out\.x shares memory with grad_output"):
        square.backward(same.grad_output, *same.inputs, out=grads._replace(x=same.grad_output))
    whole = ones(grads.x.size + grads.mask.size, np.float64)
    x = whole[: grads.x.size].reshape(grads.x.shape)
    mask = whole[-grads.mask.size - 1 : -1].reshape(grads.mask.shape)
    with pytest.raises(ValueError, match=re.escape("out.mask shares memory with out.x, expected")):
        square.backward(same.grad_output, *same.inputs, out=grads._replace(x=x, mask=mask))
    plain = cupy_dcn.Plan(call.x.shape, call.weight, **LAYER.attributes, backward=True)
    with pytest.raises(ValueError, match="out has an array for bias, expected None since the plan"):
        plain.backward(call.grad_output, *call.inputs, out=gradients)


def test_weights_that_do_not_fit():
    call = Call(LAYER)
    plan = call.plan()
    plain = cupy_dcn.Plan(call.x.shape, call.weight, **LAYER.attributes)
    with pytest.raises(ValueError, match="made without a bias, expected bias=None; make one"):
        plain.set_weight(call.weight, call.bias)
    with pytest.raises(ValueError, match=re.escape("weight has shape (3, 3, 3, 2), expected that")):
        plan.set_weight(call.weight[:3])
    with pytest.raises(TypeError, match="weight has dtype float32, expected the plan's dtype floa"):
        plan.set_weight(call.weight.astype(np.float32))
    with pytest.raises(ValueError, match=re.escape("bias has shape (3,), expected")):
        plan.set_weight(call.weight, call.bias[:3])


def test_offsets_of_another_dtype_take_another_plan():
    call = Call(LAYER, np.float16)
    wide = to_library(call.host["offset"].astype(np.float32))
    with pytest.raises(TypeError, match=re.escape("the plan's float16; Plan(..., offset_dtype")):
        call.plan()(call.x, wide, call.mask)
