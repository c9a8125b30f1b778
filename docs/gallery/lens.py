"""Corrects a lens: the offsets are computed from the Brown-Conrady model of its distortion.

The model says where the lens shows a point of the scene: at radius r from the optical axis it moves
by ``1 + k1 r^2 + k2 r^4``, and a decentred lens adds ``p1, p2``. A corrected pixel therefore has to
look where the model sends it: that minus where it is, is its offset. The distorted pictures are
made without the library: the model is inverted by iteration, and SciPy's cubic spline looks up.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pictures import SIZE, WIDTH, photograph, psnr, show
from scipy import ndimage

import cupy_dcn

K1, K2, P1, P2 = -0.22, 0.04, 0.006, -0.004  # of radii in halves of the picture's width
SQUARES = 9  # of the checkerboard along the shorter side
WINDOW = 5  # pixels around a corner that tell where it is
SEEN = 2  # pixels beyond the picture that repeat its border, for the correction to sample
MARGIN = 4  # pixels of the border that PSNR leaves out


@dataclass(frozen=True)
class Result:
    """Pictures (C, H, W) before and after, and the corners of the board, (rows, columns, 2)."""

    board: tuple
    photo: tuple
    corners: tuple
    bends: tuple  # rms distance of the corners from straight lines, in pixels
    psnrs: tuple
    offset: np.ndarray


def compute(longest=320):
    """Distort a checkerboard and a photograph, correct them, and measure both."""
    photo = photograph(longest)
    size = photo.shape[1:]
    board, spacing = checkerboard(size)
    bent = [distort(picture, size) for picture in (board, photo)]
    offset = correction(size)
    straight = [correct(picture, offset) for picture in bent]
    expected = board_corners(size, spacing)
    shown = model(expected, size)
    corners = tuple(
        find_corners(picture[0], guess)
        for picture, guess in ((bent[0], shown), (straight[0], expected))
    )
    psnrs = tuple(psnr(picture, photo, MARGIN) for picture in (bent[1], straight[1]))
    pairs = zip(bent, straight, strict=True)
    return Result(*pairs, corners, tuple(map(bending, corners)), psnrs, offset)


def model(points, size):
    """Return where the lens shows points (..., 2) of the scene, (y, x) in pixels."""
    centre, half = (np.array(size) - 1) / 2, size[1] / 2
    y, x = np.moveaxis((points - centre) / half, -1, 0)
    squared = x**2 + y**2
    radial = 1 + K1 * squared + K2 * squared**2
    across = x * radial + 2 * P1 * x * y + P2 * (squared + 2 * x**2)
    down = y * radial + P1 * (squared + 2 * y**2) + 2 * P2 * x * y
    return np.stack((down, across), axis=-1) * half + centre


def correction(size):
    """Return the offset (1, 2, H, W) that undoes the lens."""
    pixels = np.moveaxis(np.indices(size, np.float64), 0, -1)
    dy, dx = np.moveaxis(model(pixels, size) - pixels, -1, 0)
    return cupy_dcn.pack_offset(dy[None, None], dx[None, None]).astype(np.float32)


def correct(picture, offset):
    """Look up every pixel where its offset says: a 1x1 kernel, each colour by itself."""
    channels = len(picture)
    weight = np.ones((channels, 1, 1, 1), np.float32)
    return cupy_dcn.deform_conv2d(picture[None], offset, weight, groups=channels)[0]


def distort(picture, size):
    """Return the picture as the lens shows it, black where it sees beyond the picture."""
    pixels = np.moveaxis(np.indices(size, np.float64), 0, -1)
    scene = pixels
    for _ in range(50):
        scene = scene - (model(scene, size) - pixels)
    places = np.moveaxis(scene, -1, 0)
    planes = [ndimage.map_coordinates(plane, places, mode="nearest") for plane in picture]
    beyond = ((scene < -SEEN) | (scene > np.array(size) - 1 + SEEN)).any(axis=-1)
    return np.where(beyond, 0, np.clip(planes, 0, 1)).astype(np.float32)


def checkerboard(size):
    """Return a checkerboard (1, H, W) with soft edges, and the side of a square in pixels."""
    spacing = min(size) / SQUARES
    y, x = (np.sin(np.pi * (grid + 0.5) / spacing) for grid in np.indices(size))
    return (0.5 + 0.5 * np.tanh(spacing * x * y))[None].astype(np.float32), spacing


def board_corners(size, spacing):
    """Return the corners of the squares, (rows, columns, 2), away from the border."""
    axes = (np.arange(1, round(length / spacing)) * spacing - 0.5 for length in size)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def find_corners(picture, guesses):
    """Return the corners near the guesses: where all gradients around are at right angles to."""
    slopes = np.stack(np.gradient(picture.astype(np.float64)))
    found = np.empty_like(guesses)
    for at in np.ndindex(guesses.shape[:2]):
        corner = guesses[at]
        for _ in range(5):
            y, x = np.rint(corner).astype(int)
            box = (
                slice(max(y - WINDOW, 0), y + WINDOW + 1),
                slice(max(x - WINDOW, 0), x + WINDOW + 1),
            )
            places = np.stack(np.mgrid[box]).reshape(2, -1)
            slope = slopes[(slice(None), *box)].reshape(2, -1)
            products = np.einsum("ap,bp->abp", slope, slope)
            right = np.einsum("abp,bp->a", products, places)
            corner = np.linalg.solve(products.sum(axis=-1), right)
        found[at] = corner
    return found


def bending(corners):
    """Return the rms distance of the corners from the straight line of their row or column."""
    residues = []
    for lines in (corners, corners.swapaxes(0, 1)):
        for line in lines:
            _, values, _ = np.linalg.svd(line - line.mean(axis=0))
            residues.append(values[-1] ** 2 / len(line))
    return float(np.sqrt(np.mean(residues)))


def report(result):
    """Return the measurements in words."""
    bends, psnrs = result.bends, result.psnrs
    return (
        f"rows and columns of corners bend by {bends[0]:.2f} px rms before, {bends[1]:.3f} after;"
        f" photograph: {psnrs[0]:.1f} dB before, {psnrs[1]:.1f} dB after"
    )


def draw(result):
    """Return the figure."""
    height, width = result.photo[0].shape[1:]
    with matplotlib.rc_context(SIZE):
        figure = Figure((WIDTH, 0.24 * WIDTH * height / width + 0.85), layout="constrained")
        figure.suptitle("A lens corrected: offsets computed from its Brown-Conrady model")
        grid = figure.subplots(1, 4)
        titles = (
            f"through the lens:\nlines bend by {result.bends[0]:.1f} px rms",
            f"corrected:\nby {result.bends[1]:.2f} px",
            f"through the lens:\n{result.psnrs[0]:.1f} dB",
            f"corrected:\n{result.psnrs[1]:.1f} dB",
        )
        pictures = (*result.board, *result.photo)
        for axes, title, picture in zip(grid, titles, pictures, strict=True):
            show(axes, picture, title)
        for axes, corners in zip(grid, result.corners, strict=False):
            for line in (corners, corners.swapaxes(0, 1)):
                axes.plot(line[..., 1].T, line[..., 0].T, color="#c8374b", linewidth=1)
    return figure
