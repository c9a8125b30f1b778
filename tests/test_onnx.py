"""ONNX's DeformConv through the library: onnx's node tests and its reference evaluator."""

import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
from cases import CASES, assert_close
from libraries import dcn

from cupy_dcn import _oracle
from cupy_dcn import onnx as dcn_onnx

needs_onnx = pytest.mark.skipif(
    importlib.util.find_spec("onnx") is None, reason="onnx has no wheel for this Python"
)
NAMES = [
    "test_basic_deform_conv_with_padding", "test_basic_deform_conv_without_padding",
    "test_deform_conv_with_mask_bias", "test_deform_conv_with_multiple_offset_groups",
]  # fmt: skip


def node_of(case):
    """Return a case's arrays by ONNX's names, and its attributes."""
    x, offset, weight, bias, mask, _ = case.arrays(np.float32)
    top, bottom, left, right = case.padding
    attributes = {
        "kernel_shape": case.kernel, "strides": case.stride, "pads": (top, left, bottom, right),
        "dilations": case.dilation, "group": case.groups, "offset_group": case.deformable_groups,
    }  # fmt: skip
    arrays = {"X": x, "W": weight, "offset": offset, "B": bias, "mask": mask}
    return {name: array for name, array in arrays.items() if array is not None}, attributes


def model_of(arrays, attributes, opset=22):
    """Return a model of one DeformConv node, inputs that are missing left out by an empty name."""
    from onnx import helper

    order = ["X", "W", "offset", "B", "mask"]
    names = [name if name in arrays else "" for name in order]
    while not names[-1]:
        names.pop()
    types = {name: helper.np_dtype_to_tensor_dtype(a.dtype) for name, a in arrays.items()}
    graph = helper.make_graph(
        [helper.make_node("DeformConv", names, ["Y"], **attributes)], "one node",
        [helper.make_tensor_value_info(n, types[n], arrays[n].shape) for n in names if n],
        [helper.make_tensor_value_info("Y", types["X"], [None] * 4)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    from onnx import checker

    checker.check_model(model, full_check=True)
    return model


def evaluate(model, arrays, new_ops):
    from onnx.reference import ReferenceEvaluator

    (found,) = ReferenceEvaluator(model, new_ops=new_ops).run(None, arrays)
    return found


@pytest.fixture(scope="module")
def node_tests():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of making the node tests of all other operators
        from onnx.backend.test.case.node import collect_testcases

        return {case.name: case for case in collect_testcases("DeformConv")}


@needs_onnx
def test_all_node_tests_are_known(node_tests):
    assert sorted(node_tests) == sorted(NAMES)


@needs_onnx
@pytest.mark.parametrize("name", NAMES)
def test_node_tests_of_onnx_pass(node_tests, name):
    case = node_tests[name]
    graph_inputs = [each.name for each in case.model.graph.input]
    for inputs, (expected,) in case.data_sets:
        arrays = dict(zip(graph_inputs, inputs, strict=True))
        found = evaluate(case.model, arrays, [dcn_onnx.DeformConv])
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=case.rtol, atol=case.atol)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_attribute_against_the_oracle(library, case):
    arrays, attributes = node_of(case)
    found = dcn._call(dcn_onnx.deform_conv, **arrays, **attributes)
    expected = _oracle.forward(
        arrays["X"], arrays["offset"], arrays["W"], arrays["B"], *case.sampling[1:], case.groups,
        arrays.get("mask"),
    )  # fmt: skip
    assert found.dtype == np.float32
    assert_close(found, expected, 2e-6)


@needs_onnx
@pytest.mark.parametrize("opset", [19, 22])
@pytest.mark.parametrize("case", CASES[:10], ids=str)
def test_a_model_is_evaluated_as_by_onnx_itself(case, opset):
    arrays, attributes = node_of(case)
    if 1 in case.size:
        pytest.skip("onnx's own divides by size - 1")
    model = model_of(arrays, attributes, opset)
    ours = evaluate(model, arrays, [dcn_onnx.DeformConv])
    assert_close(
        ours, evaluate(model, arrays, []), 1e-5
    )  # its locations are divided and multiplied


@needs_onnx
def test_attributes_that_a_node_has_not_are_onnxs_defaults():
    case = CASES[0]
    arrays, _ = node_of(case)
    arrays = {name: arrays[name] for name in ("X", "W", "offset")}
    arrays["offset"] = np.ascontiguousarray(arrays["offset"][:, :, :3, :4])
    model = model_of(arrays, {})
    ours = evaluate(model, arrays, [dcn_onnx.DeformConv])
    assert_close(ours, evaluate(model, arrays, []), 1e-5)


@needs_onnx
def test_half_types_of_a_model():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays, attributes = node_of(CASES[1])
    exact = dcn_onnx.deform_conv(**arrays, **attributes)
    for dtype, tolerance in ((np.float16, 4e-3), (ml_dtypes.bfloat16, 3e-2)):
        half = {name: array.astype(dtype) for name, array in arrays.items()}
        found = evaluate(model_of(half, attributes), half, [dcn_onnx.DeformConv])
        assert found.dtype == dtype
        assert_close(found.astype(np.float32), exact, tolerance)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"pads": (1, 1)},
            r"pads is \(1, 1\), expected four integers \(top, left, bottom, right\)",
        ),
        ({"pads": 1}, "pads is 1, expected four integers"),
        ({"pads": (1, 1, 1, 1.0)}, "expected four integers"),
        ({"kernel_shape": (3, 2)}, r"kernel_shape is \(3, 2\), expected \(3, 3\)"),
        ({"kernel_shape": 3}, r"kernel_shape is 3, expected \(3, 3\)"),
        ({"pads": (0, 0, 0, 0)}, "offset"),
        ({"X": np.zeros((1, 1, 5), np.float32)}, "x has 3 dimensions"),
    ],
)
def test_errors_say_what_was_expected(changed, message):
    arrays, attributes = node_of(CASES[0])
    with pytest.raises(ValueError, match=message):
        dcn_onnx.deform_conv(**(arrays | attributes | changed))


def test_the_function_needs_no_onnx():
    code = (
        "import sys; sys.modules['onnx'] = None; import numpy as np; import cupy_dcn.onnx as o;"
        "print(o.deform_conv(np.ones((1, 1, 2, 2)), np.ones((1, 1, 1, 1)), np.zeros((1, 2, 2, 2))))"
        "\ntry: o.DeformConv\nexcept ImportError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.count("1.") == 4
    assert "onnx" in run.stdout.splitlines()[-1]
    assert not hasattr(dcn_onnx, "DeformConvolution")
