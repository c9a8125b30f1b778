"""Errors of every dtype by the width of the picture, beside torchvision's: docs' table of them.

    python benchmarks/accuracy.py [--page docs/explanation/accuracy.md]

An error is the largest difference from torchvision's results in float64, on the same numbers, as a
share of the largest of them; of a backward the worst of all five gradients. Prints the table and
writes it to the page's place for it. The kernels are emulated, at narrow pictures, where NVRTC
and the tests are at hand.
"""

import argparse
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torchvision.ops import deform_conv2d as torchvisions

import cupy_dcn
from cupy_dcn import _cpu, _twins

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- accuracy: written by `make accuracy` -->", "<!-- accuracy: end -->"
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
WIDTHS = 64, 256, 1024, 4096
EMULATED = 256  # the widest: the emulator takes seconds for it
HEIGHT, CHANNELS, TAPS = 8, 16, 9
NAMES = "x", "offset", "weight", "bias", "mask"


def arrays(width, dtype):
    """Return the arguments by name and the output's gradient: numbers of the dtype."""
    rng = np.random.default_rng(width)
    pixels = (HEIGHT, width)
    made = {
        "x": rng.standard_normal((1, CHANNELS, *pixels)),
        "offset": rng.normal(0, 1.5, (1, 2 * TAPS, *pixels)),
        "weight": rng.standard_normal((CHANNELS, CHANNELS, 3, 3)),
        "bias": rng.standard_normal(CHANNELS),
        "mask": rng.random((1, TAPS, *pixels)),
        "grad_output": rng.standard_normal((1, CHANNELS, *pixels)),
    }
    # A whole-numbered location has one derivative here and may have another there.
    offset = made["offset"] = made["offset"].astype(dtype).astype(np.float64)
    offset[offset == np.floor(offset)] = 0.5
    return {name: array.astype(dtype) for name, array in made.items()}


def ours(inputs, move=lambda array: array, back=lambda array: array):
    """Return our output, and our gradients by name."""
    moved = {name: move(array) for name, array in inputs.items()}
    grad_output = moved.pop("grad_output")
    output = cupy_dcn.deform_conv2d(**moved, padding=1)
    grads = cupy_dcn.deform_conv2d_backward(grad_output, **moved, padding=1)
    return back(output), {name: back(grad) for name, grad in grads._asdict().items()}


def torchvision(inputs):
    """Return torchvision's, or None for a dtype that it has not on the CPU."""
    try:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    except TypeError:  # bfloat16 is no dtype of NumPy's; nor of torchvision's on the CPU
        return None
    grad_output = tensors.pop("grad_output")
    leaves = [tensors[name].requires_grad_() for name in NAMES]
    x, offset, weight, bias, mask = leaves
    output = torchvisions(x, offset, weight, bias, padding=1, mask=mask)
    grads = torch.autograd.grad(output, leaves, grad_output)
    return output.detach().numpy(), dict(zip(NAMES, (g.numpy() for g in grads), strict=True))


def emulated(inputs):
    """Return what the kernels compute in the emulator, or None where it can't run."""
    sys.path.insert(0, str(ROOT / "tests"))
    import emulated_cupy
    from emulator.nvrtc import CompileError, NvrtcMissing

    try:
        with emulated_cupy.install() as cupy:
            return ours(inputs, cupy.asarray, cupy.asnumpy)
    except (NvrtcMissing, CompileError, RuntimeError) as trouble:
        print(f"not emulated: {trouble}", file=sys.stderr)
        return None


def errors(found, exact):
    """Return the error of the output and the worst of the gradients, None where there are none."""
    if found is None:
        return None, None

    def error(result, reference):
        return np.abs(result.astype(np.float64) - reference).max() / np.abs(reference).max()

    gradients = [error(found[1][name], exact[1][name]) for name in NAMES]
    return error(found[0], exact[0]), max(gradients)


def rows():
    """Return the lines of the table."""
    for dtype, kind in DTYPES.items():
        for width in WIDTHS:
            inputs = arrays(width, kind)
            exact = torchvision({name: a.astype(np.float64) for name, a in inputs.items()})
            _twins._on_host = lambda: _cpu
            numpy_ = errors(ours(inputs), exact)
            kernels = errors(emulated(inputs) if width <= EMULATED else None, exact)
            peer = errors(torchvision(inputs), exact)
            cells = [f"{e:.0e}" if e is not None else "" for e in (*numpy_, *kernels, *peer)]
            yield f"| {dtype} | {width} | " + " | ".join(cells) + " |"


def table():
    """Return the table, in Markdown."""
    names = ("cupy_dcn", "its kernels", "torchvision")
    header = ["dtype", "width", *(f"{name}, {way}" for name in names
                                  for way in ("forward", "backward"))]  # fmt: skip
    return ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header), *rows()]


def main():
    """Print the table and write it to its page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "explanation" / "accuracy.md")
    page = parser.parse_args().page
    lines = table()
    print("\n".join(lines))
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{page} has no place for the table: {BEGIN} ... {END}")
    written = "\n".join([BEGIN, "", *lines, "", END])
    page.write_text(before + written + after, encoding="utf-8")


if __name__ == "__main__":
    main()
