"""The same operator in other libraries, each case as a call without arguments."""

import importlib
import os


def missing_peer():
    """Import all the peers; return which one is missing and where they come from."""
    # PyTorch's idle threads would go on spinning into the next call that is timed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        for name in ("onnx", "onnxruntime", "torch", "torchvision"):
            importlib.import_module(name)
    except ImportError as error:
        return f"{error}: the peers come with the extra `peers`: pip install -e '.[bench,peers]'"
    return None


def onnxruntime_forward(case, threads):
    """Return a call that runs a model of one DeformConv node (opset 19)."""
    import onnxruntime
    from onnx import TensorProto, helper

    names = {"x": "X", "weight": "W", "offset": "offset", "bias": "B", "mask": "mask"}
    arrays = case.arrays()
    feed = {onnx: arrays[name] for name, onnx in names.items() if arrays[name] is not None}
    node = helper.make_node(
        "DeformConv",
        list(feed),
        ["Y"],
        kernel_shape=[case.kernel] * 2,
        pads=[case.padding] * 4,
        offset_group=case.deformable_groups,
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (*feed, "Y")]
    graph = helper.make_graph([node], "one_node", values[:-1], values[-1:])
    opset = helper.make_opsetid("", 19)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would spin as well.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, feed)[0]


def torchvision_both(case):
    """Return a call that gives the output, and every gradient by name."""
    import torch
    from torchvision.ops import deform_conv2d

    arrays = {name: array for name, array in case.arrays().items() if array is not None}
    tensors = {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}
    inputs = {"input" if name == "x" else name: tensor for name, tensor in tensors.items()}
    grad_output = torch.from_numpy(case.grad_output())

    def both():  # it tells the deformable groups from the channels of the offset
        output = deform_conv2d(**inputs, padding=case.padding)
        grads = torch.autograd.grad(output, list(tensors.values()), grad_output)
        return output.detach().numpy(), dict(zip(tensors, (g.numpy() for g in grads), strict=True))

    return both
