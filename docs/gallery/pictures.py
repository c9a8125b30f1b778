"""What the gallery's pieces share: photographs, a measure of error, and small files."""

from io import BytesIO

import numpy as np
from PIL import Image

from cupy_dcn.demo import read_picture

DPI = 100
WIDTH = 9.0  # inches of a figure: 900 pixels, as wide as a README shows
SIZE = {"axes.titlesize": 12, "font.size": 10.5, "figure.titlesize": 14}


def photograph(longest, grey=False):
    """Return matplotlib's photograph, (C, H, W) from 0 to 1, at most so many pixels a side."""
    picture = read_picture(None)
    image = Image.fromarray((255 * picture.transpose(1, 2, 0)).round().astype(np.uint8))
    image.thumbnail((longest, longest))
    planes = np.asarray(image, np.float32).transpose(2, 0, 1) / 255
    return planes.mean(axis=0, keepdims=True) if grey else np.ascontiguousarray(planes)


def psnr(picture, truth, margin=0):
    """Return the peak signal-to-noise ratio in dB of pictures from 0 to 1, inside a margin."""
    inside = (..., *2 * (slice(margin, -margin or None),))
    error = np.mean((np.clip(picture, 0, 1) - truth)[inside].astype(np.float64) ** 2)
    return float(-10 * np.log10(error))


def show(axes, picture, title, **settings):
    """Draw a picture (C, H, W) or (H, W) without ticks."""
    image = np.squeeze(np.moveaxis(np.atleast_3d(picture), 0, -1) if picture.ndim == 3 else picture)
    settings = {"cmap": "gray", "vmin": 0, "vmax": 1, **settings}
    drawn = axes.imshow(np.clip(image, settings["vmin"], settings["vmax"]), **settings)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title)
    return drawn


def save(figure, path):
    """Write a figure as a JPEG, which photographs take the fewest bytes in."""
    drawing = BytesIO()
    figure.savefig(drawing, dpi=DPI)
    Image.open(drawing).convert("RGB").save(path, quality=80, optimize=True, subsampling=0)
