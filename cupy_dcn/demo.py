"""Warps a picture by an unknown smooth displacement and recovers it by gradient descent.

With a 1x1 kernel and the identity as its weight, ``deform_conv2d`` looks up each output pixel of
the warped picture at that pixel plus its offset. ``deform_conv2d_backward`` tells how to change
the offsets to bring the result nearer to the reference, and that is all the descent uses. The
warping itself is SciPy's cubic spline, so that no fault of this library could undo itself.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage, sparse

from . import deform_conv2d, deform_conv2d_backward
from ._arrays import Array
from ._demo_figures import FRAMES, animate, draw
from .plot import import_extra

LONGEST_SIDE = 320  # pixels a picture is reduced to
SHORTEST_SIDE = 16
CELLS = (6, 12, 24, 48)  # cells of the grid along the picture's shorter side, coarse to fine
STEP = 0.3  # largest change of an offset in a step of the descent, in pixels
SEED = 0


@dataclass(frozen=True)
class Recovery:
    """Pictures, (C, H, W) with brightness from 0 to 1, and displacements, (2, H, W) as (dy, dx)."""

    reference: Array
    warped: Array
    recovered: Array
    displacement: Array  # warped(p) = reference(p + displacement(p))
    offset: Array  # recovered(p) = warped(p + offset(p))
    seconds: float

    @property
    def squared_errors(self) -> tuple[float, float]:
        """Mean squared error of the warped and of the recovered picture."""
        warped, recovered = (
            float(np.mean((picture - self.reference) ** 2))
            for picture in (self.warped, self.recovered)
        )
        return warped, recovered

    @property
    def times_smaller(self) -> float:
        """How many times smaller the mean squared error of the recovered picture is."""
        before, after = self.squared_errors
        return before / max(after, float(np.finfo(np.float32).tiny))

    @property
    def distances(self) -> tuple[float, float]:
        """Mean distance between a pixel's true origin and the one it is shown from, in pixels."""
        start = np.indices(self.reference.shape[1:], np.float32)
        end = start + self.offset
        shown = end + [ndimage.map_coordinates(axis, end, order=1) for axis in self.displacement]
        before, after = self.displacement, shown - start
        return float(np.hypot(*before).mean()), float(np.hypot(*after).mean())


def demo(
    picture: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] = "demo.png",
    *,
    steps: int = 100,
    progress: bool = True,
    animation: str | os.PathLike[str] | None = None,
) -> Recovery:
    """Warp a picture, recover it, print the error before and after, and write one figure.

    Parameters
    ----------
    picture : path, optional
        Any picture that Pillow reads, reduced to at most 320 pixels a side; by default the
        photograph that ships within matplotlib.
    output : path, optional
        Where the figure goes; its ending chooses the format.
    steps : int, optional
        Steps of gradient descent at each of the four resolutions.
    progress : bool, optional
        Whether to show a progress bar.
    animation : path, optional
        Where a GIF of the descent goes; none by default.

    Returns
    -------
    Recovery
        Pictures, displacement, recovered offset and time.

    Raises
    ------
    ImportError
        If matplotlib or tqdm is missing: the extra ``demo`` brings both.
    OSError, ValueError
        If the picture can't be read or warped, or the figure can't be written.
    """
    tqdm = import_extra("tqdm", "demo").tqdm
    import_extra("matplotlib", "demo")
    _check_output(output, picture)
    if animation is not None:
        _check_animation(animation, picture)
    name = "matplotlib's photograph" if picture is None else os.fspath(picture)
    reference = read_picture(picture)
    displacement = smooth_displacement(reference.shape[1:])
    warped = warp(reference, displacement)
    total = steps * len(CELLS)
    shots = {0: np.zeros_like(displacement)}
    with tqdm(
        total=total, desc="recovering", unit=" steps", mininterval=0.5, disable=not progress
    ) as bar:
        start = time.perf_counter()

        taken = itertools.count(1)

        def after_step(offset: Array) -> None:
            bar.update()
            step = next(taken)
            if animation is not None and step % max(total // FRAMES, 1) == 0:
                shots[step] = offset

        offset = recover(reference, warped, steps, after_step)
        recovered = sample(warped, offset)
        seconds = time.perf_counter() - start
    result = Recovery(reference, warped, recovered, displacement, offset, seconds)
    _report(result, name)
    draw(result).savefig(output)
    print(f"{'figure':20} {os.fspath(output)}")
    if animation is not None:
        frames = {step: (sample(warped, each), each) for step, each in shots.items()}
        animate(result, frames, animation)
        print(f"{'animation':20} {os.fspath(animation)}")
    return result


def read_picture(path: str | os.PathLike[str] | None) -> Array:
    """Return a picture (C, H, W), float32 from 0 to 1, C being 1 or 3; no path: matplotlib's."""
    pillow = import_extra("PIL.Image", "demo")
    if path is None:
        cbook = import_extra("matplotlib.cbook", "demo")
        path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    try:
        with pillow.open(path) as file:
            image = _opaque(import_extra("PIL.ImageOps", "demo").exif_transpose(file))
    except pillow.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}") from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    picture = np.atleast_3d(np.asarray(image, np.float32) / 255)
    if min(picture.shape[:2]) < SHORTEST_SIDE:
        raise ValueError(
            f"{path} is {picture.shape[1]} x {picture.shape[0]} pixels (at most {LONGEST_SIDE}"
            f" a side are used), expected at least {SHORTEST_SIDE} x {SHORTEST_SIDE};"
            " choose a larger picture"
        )
    if np.ptp(picture, axis=(0, 1)).max() == 0:
        raise ValueError(
            f"{path} has one colour throughout, expected something to see;"
            " warping it changes nothing"
        )
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def _opaque(image: Any) -> Any:
    """Return a Pillow image in 8 bits, grey or RGB, on white where it was transparent."""
    pillow = import_extra("PIL.Image", "demo")
    if image.mode.startswith(("I", "F")):  # 16 bits and more: from its darkest to its brightest
        values = np.nan_to_num(np.asarray(image, np.float64))
        values = (values - values.min()) / max(np.ptp(values), np.finfo(np.float64).tiny)
        image = pillow.fromarray((255 * values).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    image = image.convert("RGBA")
    white = pillow.new("RGBA", image.size, "white")
    return pillow.alpha_composite(white, image).convert(mode)


def smooth_displacement(size: tuple[int, ...]) -> Array:
    """Return a random smooth displacement (2, H, W), float32, as (dy, dx) in pixels.

    It reaches 5 % of the shorter side, and fades to 0 at the border, so nothing leaves the view.
    """
    shorter = min(size)
    noise = np.random.default_rng(SEED).standard_normal((2, *size))
    smooth = ndimage.gaussian_filter(noise, (0, 0.12 * shorter, 0.12 * shorter), mode="wrap")
    smooth /= np.abs(smooth).max(axis=(1, 2), keepdims=True)
    fades = [np.minimum(2 * np.sin(np.linspace(0, np.pi, length)), 1) for length in size]
    displacement: Array = (0.05 * shorter * smooth * np.outer(*fades)).astype(np.float32)
    return displacement


def warp(picture: Array, displacement: Array) -> Array:
    """Look up every pixel of a picture (C, H, W) at its displaced location."""
    places = np.indices(picture.shape[1:], np.float32) + displacement
    planes = [ndimage.map_coordinates(plane, places, mode="mirror") for plane in picture]
    return np.stack(planes)


def sample(picture: Array, offset: Array) -> Array:
    """Look up every pixel of a picture (C, H, W) at its offset (2, H, W), with this library."""
    sampled: Array = deform_conv2d(picture[None], offset[None], _identity(picture))[0]
    return sampled


def _identity(picture: Array) -> Array:
    """Return the weight of a 1x1 kernel that copies every channel."""
    return np.eye(len(picture), dtype=picture.dtype)[:, :, None, None]


def recover(
    reference: Array, warped: Array, steps: int, after_step: Callable[[Array], object]
) -> Array:
    """Return the offset (2, H, W) at which sampling ``warped`` gives ``reference``.

    ``after_step`` is told the offset so far.

    The offset is a sum of smooth bumps on ever finer grids, each grid fitted by Adam (Kingma and
    Ba, 2015) to pictures blurred as coarsely as the grid. The finest sees the pictures as they are.
    """
    size = reference.shape[1:]
    offset = np.zeros((2, *size), reference.dtype)
    for cells in CELLS:
        spacing = max(min(size) / cells, 4.0)
        blur = 0.0 if cells == CELLS[-1] else spacing / 8
        goal, source = (
            ndimage.gaussian_filter(picture, (0, blur, blur)) for picture in (reference, warped)
        )
        offset = _refine(offset, goal, source, spacing, steps, after_step)
    return offset


def _refine(
    start: Array,
    goal: Array,
    source: Array,
    spacing: float,
    steps: int,
    after_step: Callable[[Array], object],
) -> Array:
    """Add to the offset ``start`` bumps, ``spacing`` pixels apart, that bring source to goal."""
    rows, columns = (_bumps(length, spacing, start.dtype) for length in start.shape[1:])
    heights = np.zeros((2, rows.shape[1], columns.shape[1]), start.dtype)
    mean, square = np.zeros_like(heights), np.zeros_like(heights)
    weight = _identity(source)
    offset = start
    for step in range(1, steps + 1):
        residual = sample(source, offset) - goal  # gradient of half the squared error
        gradient = deform_conv2d_backward(
            residual[None], source[None], offset[None], weight, needs=("offset",)
        ).offset
        assert gradient is not None
        slope = np.stack([rows.T @ plane @ columns for plane in gradient[0]])
        mean += 0.1 * (slope - mean)
        square += 0.01 * (slope**2 - square)
        scale = np.sqrt(square / (1 - 0.99**step))
        pace = STEP * (1 - 0.9 * step / steps)
        # Where the picture is flat the slope is all noise: the second term keeps it from counting.
        heights -= pace * mean / (1 - 0.9**step) / (scale + 0.01 * scale.mean() + 1e-30)
        offset = start + np.stack([rows @ plane @ columns.T for plane in heights])
        after_step(offset)
    return offset


def _bumps(length: int, spacing: float, dtype: np.dtype[Any]) -> Any:
    """Return smooth bumps along an axis, (length, bumps), that add up to 1 everywhere.

    The matrix is sparse: dense products this small would wake BLAS's threads hundreds of times a
    second, and on a busy machine these cost ten times all the rest.
    """
    centres = np.arange(-spacing, length + spacing, spacing)
    distance = np.abs(np.arange(length)[:, None] - centres) / (0.7 * spacing)
    bumps = np.where(distance < 3, np.exp(-0.5 * distance**2), 0)
    return sparse.csr_array((bumps / bumps.sum(axis=1, keepdims=True)).astype(dtype))


def _report(result: Recovery, name: str) -> None:
    """Print what was done and how well it went."""
    channels, height, width = result.reference.shape
    colours = "grey" if channels == 1 else "colour"
    lengths = np.hypot(*result.displacement)
    (error, error_after), (distance, distance_after) = result.squared_errors, result.distances
    lines = {
        "picture": f"{name}, used at {width} x {height} pixels, {colours}",
        "displacement": f"{lengths.mean():.1f} pixels on average, {lengths.max():.1f} at most, 0 at"
        " the border: nothing leaves the view, every pixel counts",
        "mean squared error": f"{error:.3g} before, {error_after:.3g} after:"
        f" {result.times_smaller:,.0f} times smaller (brightness is from 0 to 1)",
        "misplaced by": f"{distance:.2f} pixels before, {distance_after:.2f} after, on average",
        "time": f"{result.seconds:.1f} s",
    }
    for title, text in lines.items():
        print(f"{title:20} {text}")


def _check_place(output: str | os.PathLike[str], picture: str | os.PathLike[str] | None) -> str:
    """Refuse a file that could not be written, or would replace the picture; return its name."""
    if picture is not None and os.path.realpath(output) == os.path.realpath(picture):
        raise ValueError(
            f"the figure would overwrite the picture {os.fspath(picture)};"
            " choose another name with -o"
        )
    folder, name = os.path.split(os.path.abspath(output))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder} is no folder, expected one to write {name} to")
    return name


def _check_output(output: str | os.PathLike[str], picture: str | os.PathLike[str] | None) -> None:
    """Refuse a figure that could not be written, before any work."""
    name = _check_place(output, picture)
    kinds = import_extra("matplotlib.figure", "demo").Figure().canvas.get_supported_filetypes()
    if os.path.splitext(name)[1].lstrip(".").lower() not in kinds:
        raise ValueError(
            f"{name} names no picture format, expected an ending among {', '.join(sorted(kinds))};"
            " for example demo.png"
        )


def _check_animation(path: str | os.PathLike[str], picture: str | os.PathLike[str] | None) -> None:
    """Refuse a GIF that could not be written, before any work."""
    name = _check_place(path, picture)
    if not name.lower().endswith(".gif"):
        raise ValueError(f"{name} names no GIF, expected an ending of .gif; for example demo.gif")
