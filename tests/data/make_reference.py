"""Writes torchvision.npz or paddle.npz: deformable convolutions as a peer computes them.

    python tests/data/make_reference.py torchvision      # needs torchvision==0.29.1
    python tests/data/make_reference.py paddle           # needs paddlepaddle==3.3.1

The file lies beside this script and is read with allow_pickle=False. Its keys are `versions`, the
packages that computed it, and for each case (case00, case01, ...):

    about                                                   what the case is there for
    stride, padding, dilation                               (2,) integers, rows then columns
    deformable_groups, groups                               () integers
    x, offset, weight, grad_output                          float64
    bias, mask                                              float64, absent where the case has none
    output                                                  the peer's result, float64
    grad_x, grad_offset, grad_weight, grad_bias, grad_mask  the peer's gradients, float64

All inputs are float32 values stored as float64, so a float32 run starts from exactly these numbers
and may be compared with the same float64 results.
"""

import argparse
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

VERSIONS = {
    "torchvision": {"torchvision": "0.29.1", "torch": "2.14.1"},
    "paddle": {"paddlepaddle": "3.3.1"},
}
PEERS = tuple(VERSIONS)


@dataclass(frozen=True)
class Case:
    """One convolution: what to draw at random, and the attributes to call the peer with."""

    about: str
    x: tuple[int, int, int, int]
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    deformable_groups: int = 1
    groups: int = 1
    bias: bool = False
    mask: bool = False
    reach: int = 2  # offsets lie in (-reach, reach) pixels
    peers: tuple[str, ...] = PEERS


# Both peers take symmetric padding only, so four-sided padding has no reference here. Both compute
# in float64 throughout.
CASES = (
    Case("v1, 3x3, the plainest", (1, 3, 4, 5), 4, (3, 3), padding=(1, 1)),
    Case("v2, 3x3, bias", (2, 2, 4, 3), 3, (3, 3), padding=(1, 1), bias=True, mask=True),
    Case("v1, 1x1, bias", (2, 3, 4, 5), 4, (1, 1), bias=True),
    Case(
        "v2, 1x1, stride and padding differ by axis",
        (1, 4, 6, 5), 3, (1, 1), stride=(2, 1), padding=(0, 1), mask=True,
    ),
    Case(
        "v2, 2x3, bias, groups, every attribute differs by axis",
        (1, 4, 8, 6), 6, (2, 3), stride=(2, 1), padding=(1, 2), dilation=(3, 2), groups=2,
        bias=True, mask=True,
    ),
    Case("v1, 5x5", (1, 2, 5, 4), 3, (5, 5), padding=(2, 2)),
    Case(
        "v2, 3x3, three groups, stride 2",
        (2, 6, 5, 4), 6, (3, 3), stride=(2, 2), padding=(1, 1), groups=3, mask=True,
    ),
    Case(
        "v2, 3x3, two deformable groups, bias",
        (1, 4, 4, 5), 6, (3, 3), padding=(1, 0), deformable_groups=2, bias=True, mask=True,
    ),
    Case(
        "v1, 2x3, three deformable groups, dilation differs by axis",
        (2, 6, 4, 5), 3, (2, 3), stride=(1, 2), dilation=(2, 1), deformable_groups=3,
    ),
    Case(
        "v2, 3x3, three groups and two deformable groups: neither divides the other",
        (1, 6, 4, 5), 6, (3, 3), stride=(1, 2), padding=(1, 1), deformable_groups=2, groups=3,
        bias=True, mask=True,
    ),
    Case(
        "v1, 3x3, two groups and four deformable groups, bias",
        (1, 8, 4, 3), 4, (3, 3), padding=(0, 1), deformable_groups=4, groups=2, bias=True,
    ),
    Case(
        "v2, 3x3, odd channel counts, stride and dilation differ by axis",
        (1, 5, 7, 9), 7, (3, 3), stride=(3, 2), padding=(2, 1), dilation=(1, 3), bias=True,
        mask=True,
    ),
    Case("v2, 3x3, image one pixel wide", (2, 3, 6, 1), 2, (3, 3), padding=(1, 1), mask=True),
    Case(
        "v2, 2x3, batch of three, bias",
        (3, 3, 4, 5), 5, (2, 3), stride=(1, 2), padding=(0, 1), bias=True, mask=True,
    ),
    Case(
        "v2, 3x3, large offsets, most samples leave the image",
        (1, 4, 5, 5), 4, (3, 3), padding=(1, 0), deformable_groups=2, mask=True, reach=7,
    ),
    # Paddle demands that deformable_groups divide the output channels.
    Case(
        "v2, 2x3, output channels not a multiple of the deformable groups",
        (1, 6, 3, 4), 5, (2, 3), padding=(0, 1), deformable_groups=3, bias=True, mask=True,
        peers=("torchvision",),
    ),
)  # fmt: skip


def output_size(size, kernel, stride, padding, dilation):
    return (size + 2 * padding - (dilation * (kernel - 1) + 1)) // stride + 1


def draw_inputs(case, seed):
    """The arrays of a case by name, in float64 but each value exact in float32."""
    # The stream of RandomState is frozen for good, so every NumPy draws the same inputs.
    random = np.random.RandomState(seed)
    batch, channels, height, width = case.x
    taps = case.kernel[0] * case.kernel[1]
    out_size = tuple(
        output_size(*axis)
        for axis in zip(
            (height, width), case.kernel, case.stride, case.padding, case.dilation, strict=True
        )
    )
    offset_shape = (batch, 2 * case.deformable_groups * taps, *out_size)
    # The tap's own position is an integer, so the fraction of the offset is that of the sampling
    # location. It keeps clear of 0 and 1: the gradient jumps at integer locations, where the peers
    # disagree (at exactly -1) and where rounding to float32 could change the cell.
    whole = random.randint(-case.reach, case.reach, offset_shape)
    inputs = {
        "x": random.uniform(-1, 1, case.x),
        "offset": whole + random.uniform(0.05, 0.95, offset_shape),
        "weight": random.uniform(-1, 1, (case.out_channels, channels // case.groups, *case.kernel)),
        "grad_output": random.uniform(-1, 1, (batch, case.out_channels, *out_size)),
    }
    if case.bias:
        inputs["bias"] = random.uniform(-1, 1, case.out_channels)
    if case.mask:
        # Any real number is a mask: some of these are negative, some above 1.
        inputs["mask"] = random.uniform(
            -0.5, 1.5, (batch, case.deformable_groups * taps, *out_size)
        )
    return {name: value.astype(np.float32).astype(np.float64) for name, value in inputs.items()}


def run_torchvision(case, inputs):
    """The output and the gradients by name, from torchvision on the CPU."""
    import torch
    from torchvision.ops import deform_conv2d

    torch.set_num_threads(1)  # one order of summation, so the file comes out the same again
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    grad_output = tensors.pop("grad_output")
    for tensor in tensors.values():
        tensor.requires_grad_()
    # groups and deformable_groups follow from the shapes of weight and offset.
    output = deform_conv2d(
        tensors["x"],
        tensors["offset"],
        tensors["weight"],
        tensors.get("bias"),
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        mask=tensors.get("mask"),
    )
    output.backward(grad_output)
    gradients = {f"grad_{name}": tensor.grad.numpy() for name, tensor in tensors.items()}
    return {"output": output.detach().numpy(), **gradients}


def run_paddle(case, inputs):
    """The output and the gradients by name, from Paddle on the CPU."""
    import paddle
    from paddle.vision.ops import deform_conv2d

    paddle.set_device("cpu")
    # Every input requires its gradient: Paddle loses the mask's gradient, or crashes, otherwise.
    tensors = {name: paddle.to_tensor(value, stop_gradient=False) for name, value in inputs.items()}
    grad_output = tensors.pop("grad_output")
    output = deform_conv2d(
        tensors["x"],
        tensors["offset"],
        tensors["weight"],
        tensors.get("bias"),
        stride=case.stride,
        padding=case.padding,
        dilation=case.dilation,
        deformable_groups=case.deformable_groups,
        groups=case.groups,
        mask=tensors.get("mask"),
    )
    output.backward(grad_output)
    gradients = {f"grad_{name}": tensor.grad.numpy() for name, tensor in tensors.items()}
    return {"output": output.numpy(), **gradients}


RUN = {"torchvision": run_torchvision, "paddle": run_paddle}


def reference(case, inputs, peer):
    """Everything the file holds for one case, by name, checked for shape, type and finiteness."""
    results = RUN[peer](case, inputs)
    expected_shapes = {"output": inputs["grad_output"].shape}
    expected_shapes |= {
        f"grad_{name}": value.shape for name, value in inputs.items() if name != "grad_output"
    }
    assert {name: value.shape for name, value in results.items()} == expected_shapes
    for name, value in results.items():
        assert value.dtype == np.float64, name
        assert np.isfinite(value).all(), name
        assert value.any(), name
    attributes = {
        name: np.array(getattr(case, name), dtype=np.int64)
        for name in ("stride", "padding", "dilation", "deformable_groups", "groups")
    }
    return {"about": np.array(case.about), **attributes, **inputs, **results}


def installed_versions(peer):
    """The packages of the peer as 'name==version', after a check that they are the due ones."""
    for package, due in VERSIONS[peer].items():
        # A wheel for one accelerator ends in a local part such as +cu130 or +cpu.
        installed = version(package).split("+")[0]
        assert installed == due, f"{package} is {installed}, the reference is made with {due}"
    return [f"{package}=={due}" for package, due in VERSIONS[peer].items()]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    peer = parser.parse_args().peer

    arrays = {"versions": np.array(installed_versions(peer))}
    for number, case in enumerate(CASES):
        if peer in case.peers:
            inputs = draw_inputs(case, seed=number)
            for name, value in reference(case, inputs, peer).items():
                arrays[f"case{number:02}/{name}"] = value
    path = Path(__file__).with_name(f"{peer}.npz")
    np.savez_compressed(path, **arrays)
    count = sum(peer in case.peers for case in CASES)
    print(f"{path.name}: {count} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
