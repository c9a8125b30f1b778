"""Times of the GPU path on a GPU, beside torchvision and the plain convolution of PyTorch.

Medians of interleaved rounds by CUDA events, the L2 cache overwritten before each call (`Tools` of
gpu_report.py). The results are checked first, on a smaller picture of the same layer.
"""

import sys
from typing import NamedTuple

import numpy as np
from counters import NotEqual, calls_of, check_equality, compulsory_bytes, expected_of, peak_bytes
from gpu_report import error_of, torchvision_calls
from roofline import DEVICES
from targets import DIRECTIONS

PEER_TOLERANCE = 1e-4  # of the largest value; sums are in another order


class Timing(NamedTuple):
    """Seconds of ours and of the peers that could be run, and the peak of temporary memory."""

    seconds: float
    peers: dict
    workspace_bytes: int


def known_device(cupy):
    """Return the name of the GPU and its figures, None where roofline.py has none."""
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    name = properties["name"].decode()
    return name, next((each for key, each in DEVICES.items() if key in name), None)


def fits(cupy, case, dtype):
    """Tell whether a case with its gradients, and a peer's copy of both, fits into the memory."""
    cupy.get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
    free = cupy.cuda.runtime.memGetInfo()[0]
    return 3 * compulsory_bytes(case, dtype, "backward") < free


def check(tools, case, dtype):
    """Raise where a GPU's results are not NumPy's."""
    arrays = tools.moved(case.arrays_of(dtype))
    calls = calls_of(case, arrays, tools.cupy.asarray(case.grad_output().astype(dtype)))
    found = {name: each for call in calls.values() for name, each in call().items()}
    results = {name: tools.cupy.asnumpy(each) for name, each in found.items()}
    check_equality(case, dtype, results, expected_of(case, dtype))


def time_case(tools, case, dtype):
    """Return the timings by direction, and why a peer is missing, by peer."""
    arrays, grad_output = case.arrays_of(dtype), case.grad_output().astype(dtype)
    ours = calls_of(case, tools.moved(arrays), tools.cupy.asarray(grad_output))
    workspaces = {direction: peak_bytes(tools.cupy, call)[0] for direction, call in ours.items()}
    calls, missing = {("ours", direction): call for direction, call in ours.items()}, {}
    peers = {"torchvision": torchvision_calls, "plain convolution": plain_convolution_calls}
    for peer, make in peers.items():
        try:
            *both, output = make(case, arrays, grad_output)
        except Exception as error:  # not installed, without CUDA, or not for this dtype
            missing[peer] = " ".join(f"{type(error).__name__}: {error}".split())
        else:
            calls |= {(peer, each): call for each, call in zip(DIRECTIONS, both, strict=True)}
            if peer == "torchvision" and dtype == "float32":  # coordinates in float16 go astray
                mine = tools.cupy.asnumpy(ours["forward"]()["output"])
                if not error_of(mine, output) <= PEER_TOLERANCE:
                    raise NotEqual(f"{case.about}: the output is not torchvision's")
    milliseconds = tools.measure(calls)
    found = {
        direction: Timing(
            milliseconds["ours", direction] / 1e3,
            {p: milliseconds[p, direction] / 1e3 for p in peers if (p, direction) in calls},
            workspaces[direction],
        )
        for direction in DIRECTIONS
    }
    return found, missing


def plain_convolution_calls(case, arrays, grad_output):
    """Return PyTorch's convolution, which samples on the grid, as `torchvision_calls` does."""
    import torch

    dtype = getattr(torch, np.dtype(grad_output.dtype).name)
    x, weight, incoming = (
        torch.from_numpy(each).cuda().to(dtype)
        for each in (arrays["x"], arrays["weight"], grad_output)
    )
    x.requires_grad_()
    weight.requires_grad_()

    def convolve():
        return torch.nn.functional.conv2d(x, weight, padding=case.padding, groups=case.groups)

    def forward():
        with torch.no_grad():
            return convolve()

    output = convolve()

    def backward():
        return torch.autograd.grad(output, [x, weight], incoming, retain_graph=True)

    return forward, backward, None
