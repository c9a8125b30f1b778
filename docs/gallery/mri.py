"""Learns offsets on an MRI slice: a small network sharpens it by moving where it samples.

The slice (matplotlib ships it) is blurred and made noisy. Two convolutions look at the result and
give an offset for each tap of a deformable one, which samples the blurred slice; gradient descent
(Adam) changes all three. Nobody tells them, but samples move away from edges, to the side where
they belong. Beside it the best that a rigid 3x3 kernel can do on this slice, by least squares.
Trained and measured on one slice, with other noise: what offsets learn is shown, not how well
they would do elsewhere.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib import cbook
from matplotlib.figure import Figure
from pictures import SIZE, WIDTH, psnr, show
from scipy import ndimage

import cupy_dcn
from cupy_dcn import plot

SIDE = 256  # pixels of the file
BRIGHTEST = 99.5  # percentile that becomes 1
BLUR = 1.5  # standard deviation, in pixels of the slice as it is used
NOISE = 0.02
CHANNELS = 16  # between the two convolutions
REACH = 3.0  # pixels of offset for an output of 1
RATE = 0.01  # of the descent at its start; it ends at a tenth
SHOWN = (60, 102), (4, 46)  # rows and columns of the enlarged part


@dataclass(frozen=True)
class Result:
    """Slices (H, W) from 0 to 1, PSNRs of the first three, and the learned offset."""

    blurred: np.ndarray
    rigid: np.ndarray
    deformed: np.ndarray
    truth: np.ndarray
    psnrs: tuple
    offset: np.ndarray  # (1, 18, H, W)


class Network:
    """Convolution, ReLU, convolution to offsets, deformable convolution of the input."""

    def __init__(self, size, rng):
        self.features = cupy_dcn.DeformConv2D(1, CHANNELS, 5, padding=2, rng=rng)
        self.offsets = cupy_dcn.DeformConv2D(CHANNELS, 18, 3, padding=1, rng=rng)
        self.sampled = cupy_dcn.DeformConv2D(1, 1, 3, padding=1, rng=rng)
        self.offsets.weight *= 0  # starts at the regular grid
        self.sampled.weight[:] = 0.5 / 9
        self.sampled.weight[0, 0, 1, 1] += 0.5
        self.still = [np.zeros((1, 2 * taps, *size), np.float32) for taps in (25, 9)]
        layers = self.features, self.offsets, self.sampled
        self.parameters = [each for layer in layers for each in (layer.weight, layer.bias)]

    def forward(self, x):
        """Return what each layer makes of x."""
        features = self.features(x, self.still[0])
        offset = REACH * self.offsets(np.maximum(features, 0), self.still[1])
        return features, offset, self.sampled(x, offset)

    def gradients(self, x, goal):
        """Return the gradients of the mean squared error by the parameters."""
        features, offset, y = self.forward(x)
        slope = (2 * (y - goal) / goal.size).astype(np.float32)
        last = self.sampled.backward(slope, x, offset, needs=("offset", "weight", "bias"))
        needs = ("x", "weight", "bias")
        positive = np.maximum(features, 0)
        middle = self.offsets.backward(REACH * last.offset, positive, self.still[1], needs=needs)
        back = middle.x * (features > 0)
        first = self.features.backward(back, x, self.still[0], needs=("weight", "bias"))
        return [each for grads in (first, middle, last) for each in (grads.weight, grads.bias)]


def compute(shrink=2, steps=250):
    """Train the network on the slice, reduced so many times, and measure."""
    truth = read_slice(shrink)
    blurred = ndimage.gaussian_filter(truth, BLUR)
    rng = np.random.default_rng(0)

    def noisy():
        return (blurred + NOISE * rng.standard_normal(truth.shape)).astype(np.float32)[None, None]

    x = noisy()
    network = Network(truth.shape, rng)
    train(network, noisy, truth[None, None], steps)
    _, offset, y = network.forward(x)
    pictures = x[0, 0], best_rigid(x, truth), y[0, 0]
    return Result(*pictures, truth, tuple(psnr(each, truth) for each in pictures), offset)


def read_slice(shrink):
    """Return the slice (H, W), float32 from 0 to 1, without the empty margin."""
    with cbook.get_sample_data("s1045.ima.gz") as file:
        values = np.frombuffer(file.read(), np.uint16).reshape(SIDE, SIDE).astype(np.float32)
    values = np.minimum(values / np.percentile(values, BRIGHTEST), 1)[8:232, 8:208]
    rows, columns = (length // shrink for length in values.shape)
    blocks = values[: rows * shrink, : columns * shrink].reshape(rows, shrink, columns, shrink)
    return blocks.mean(axis=(1, 3))


def train(network, noisy, goal, steps):
    """Descend with Adam (Kingma and Ba, 2015), new noise at each step."""
    means = [np.zeros_like(each) for each in network.parameters]
    squares = [np.zeros_like(each) for each in network.parameters]
    for step in range(1, steps + 1):
        rate = RATE * (1 - 0.9 * step / steps) / (1 - 0.9**step)
        state = zip(
            network.parameters, network.gradients(noisy(), goal), means, squares, strict=True
        )
        for parameter, gradient, mean, square in state:
            mean += 0.1 * (gradient - mean)
            square += 0.01 * (gradient**2 - square)
            parameter -= rate * mean / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)


def best_rigid(x, truth):
    """Return what the 3x3 kernel and bias with the least squared error make of x."""
    still = np.zeros((1, 18, *truth.shape), np.float32)
    columns = cupy_dcn.deform_im2col(x, still, 3, padding=1).reshape(truth.size, 9)
    columns = np.column_stack((columns, np.ones(truth.size)))
    kernel = np.linalg.lstsq(columns, truth.ravel(), rcond=None)[0]
    return (columns @ kernel).reshape(truth.shape)


def report(result):
    """Return the measurements in words."""
    blurred, rigid, deformed = result.psnrs
    return (
        f"slice, blurred: {blurred:.2f} dB; the best rigid 3x3 kernel makes {rigid:.2f} dB of it,"
        f" the learned deformable one {deformed:.2f} dB"
    )


def draw(result):
    """Return the figure: slices above, offsets below."""
    with matplotlib.rc_context(SIZE):
        figure = Figure((WIDTH, 6.6), layout="constrained")
        figure.suptitle("Offsets learned on an MRI slice: taps move away from edges")
        above, below = figure.subfigures(2, 1, height_ratios=(1, 1.12))
        names = ("blurred, noisy", "best rigid 3x3", "learned deformable 3x3", "the slice")
        measured = (*(f"\n{value:.1f} dB" for value in result.psnrs), "\n")
        pictures = result.blurred, result.rigid, result.deformed, result.truth
        for axes, picture, name, value in zip(
            above.subplots(1, 4), pictures, names, measured, strict=True
        ):
            show(axes, picture, name + value)
        _draw_offsets(below, below.subplots(1, 3, width_ratios=(1.17, 1.32, 1)), result)
    return figure


def _draw_offsets(figure, grid, result):
    """Draw how far the kernel moves as a whole, its arrows, and all taps of some pixels."""
    dy, dx = (each.mean(axis=1)[0] for each in cupy_dcn.unpack_offset(result.offset))
    length = np.hypot(dy, dx)
    top = float(np.quantile(length, 0.99))
    drawn = show(grid[0], length, "mean offset of the 9 taps", cmap="magma", vmax=top)
    figure.colorbar(drawn, ax=grid[0], label="pixels", extend="max")
    (top, bottom), (left, right) = SHOWN
    scale = result.truth.shape[0] / 112
    limits = {
        "xlim": (left * scale, right * scale),
        "ylim": (bottom * scale, top * scale),
        "xlabel": "",
        "ylabel": "",
    }
    plot.quiver(result.truth, result.offset, padding=1, every=2, ax=grid[1])
    rows, columns = (
        np.linspace(scale * (start + 7), scale * (end - 8), 3).astype(int) for start, end in SHOWN
    )
    at = [(int(y), int(x)) for y in rows for x in columns]
    plot.draw_sampling(result.truth, result.offset, at, padding=1, ax=grid[2])
    for axes, title in zip(grid[1:], ("its arrows, enlarged", "the taps of 9 pixels"), strict=True):
        axes.set(**limits, xticks=[], yticks=[])
        axes.set_title(title)
