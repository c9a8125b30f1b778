"""Undoes turbulence in a short sequence: every frame is warped by itself, and noisy.

The mean of the frames is free of noise but blurred, for nothing lies where it should. So each frame
is registered with the mean by descent on its offsets, the mean of the registered frames takes the
old one's place, and again. All frames go through one ``Plan`` as one batch; the gradient of the
offsets is all the descent asks of it. The frames are made by SciPy's cubic spline.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pictures import SIZE, WIDTH, photograph, psnr, show
from scipy import ndimage

import cupy_dcn

FRAMES = 12
MOVED = 2.0  # rms displacement along each axis, in pixels
SWELL = 7.0  # standard deviation of the filter that makes displacements smooth, in pixels
NOISE = 0.04  # standard deviation, in units of the brightest
WIDTHS = (6, 5, 4, 3, 3)  # of the filter of the descent's steps, in pixels; a new mean for each
STEPS = 10  # towards each mean
BLUR = 1.0  # standard deviation of the filter of what is compared, against the noise
DAMPING = 0.5  # of steps where the picture is flat
CLOSE = (0.14, 0.2), (0.5, 0.62)  # what is shown enlarged: from, to, along either axis
MARGIN = 10  # pixels of the border that PSNR leaves out


@dataclass(frozen=True)
class Result:
    """Pictures (1, H, W); the frames (FRAMES, 1, H, W); PSNRs of a frame, the mean, the result."""

    truth: np.ndarray
    frames: np.ndarray
    mean: np.ndarray
    dewarped: np.ndarray
    offset: np.ndarray  # (FRAMES, 2, H, W)
    psnrs: tuple
    sharp: tuple  # energy of the slopes of the mean and of the result, as shares of the truth's


def compute(longest=256):
    """Make the sequence, register it, and measure."""
    truth = photograph(longest, grey=True)
    frames = sequence(truth)
    offset = register(frames)
    dewarped = sample(frames, offset).mean(axis=0)
    mean = frames.mean(axis=0)
    psnrs = tuple(psnr(picture, truth, MARGIN) for picture in (frames[0], mean, dewarped))
    sharp = tuple(sharpness(picture, truth) for picture in (mean, dewarped))
    return Result(truth, frames, mean, dewarped, offset, psnrs, sharp)


def sequence(truth):
    """Return frames (FRAMES, 1, H, W) of the picture, warped by turbulence and noisy.

    Their displacements add up to 0: what all frames share is no turbulence but a scene elsewhere.
    """
    rng = np.random.default_rng(0)
    size = truth.shape[1:]
    noise = rng.standard_normal((FRAMES, 2, *size))
    displacement = ndimage.gaussian_filter(noise, (0, 0, SWELL, SWELL), mode="wrap")
    displacement -= displacement.mean(axis=0)
    displacement *= MOVED / displacement.std()
    places = np.indices(size) + displacement
    frames = [ndimage.map_coordinates(truth[0], place, mode="mirror") for place in places]
    frames = np.stack(frames)[:, None] + NOISE * rng.standard_normal((FRAMES, 1, *size))
    return frames.astype(np.float32)


def register(frames):
    """Return the offsets (FRAMES, 2, H, W) that bring all frames to one another."""
    weight = np.ones((1, 1, 1, 1), np.float32)
    plan = cupy_dcn.Plan(frames.shape, weight, masked=False, backward=True)
    seen = smooth(frames, BLUR)
    offset = np.zeros((len(frames), 2, *frames.shape[2:]), np.float32)
    for width in WIDTHS:
        goal = plan(seen, offset).mean(axis=0, keepdims=True)
        strength = sum(slope**2 for slope in np.gradient(goal[0, 0]))
        scale = smooth(strength, width) + DAMPING * strength.mean()
        for _ in range(STEPS):
            residual = plan(seen, offset) - goal
            gradient = plan.backward(residual, seen, offset, needs=("offset",)).offset
            offset = smooth(offset - smooth(gradient, width) / scale, 0.7)
            offset -= offset.mean(axis=0)
    return offset


def sample(frames, offset):
    """Look up every pixel of every frame at its offset."""
    return cupy_dcn.deform_conv2d(frames, offset, np.ones((1, 1, 1, 1), np.float32))


def smooth(planes, width):
    """Return arrays (..., H, W) smoothed along their last two axes."""
    widths = (0,) * (planes.ndim - 2) + (width, width)
    return ndimage.gaussian_filter(planes, widths, mode="nearest")


def sharpness(picture, truth):
    """Return the energy of the picture's slopes as a share of that of the truth's."""
    energies = (
        sum((slope[MARGIN:-MARGIN, MARGIN:-MARGIN] ** 2).sum() for slope in np.gradient(each[0]))
        for each in (picture, truth)
    )
    return float(next(energies) / next(energies))


def report(result):
    """Return the measurements in words."""
    frame, mean, dewarped = result.psnrs
    blurred, sharp = (100 * each for each in result.sharp)
    return (
        f"{FRAMES} frames of {frame:.1f} dB: their mean has {mean:.1f} dB and {blurred:.0f} % of"
        f" the scene's gradient energy; registered, {dewarped:.1f} dB and {sharp:.0f} %"
    )


def draw(result):
    """Return the figure: whole pictures above, a part of them below."""
    size = result.truth.shape[1:]
    close = (
        slice(None),
        *(slice(int(a * n), int(b * n)) for a, b, n in zip(*CLOSE, size, strict=True)),
    )
    with matplotlib.rc_context(SIZE):
        figure = Figure((WIDTH, 5.6), layout="constrained")
        figure.suptitle(f"Turbulence undone: {FRAMES} frames registered by descent on offsets")
        grid = figure.subplots(
            2, 4, height_ratios=(size[0] / size[1], 0.36 * size[0] / 0.42 / size[1])
        )
        pictures = (result.frames[0], result.mean, result.dewarped, result.truth)
        measured = [f"\n{value:.1f} dB" for value in result.psnrs] + ["\n"]
        names = ("one of the frames", "their mean", "mean of the registered", "the scene")
        for column, (picture, name, value) in enumerate(
            zip(pictures, names, measured, strict=True)
        ):
            show(grid[0, column], picture, name + value)
            show(grid[1, column], picture[close], "")
    return figure
