"""The pictures of the demo: its figure, and an animation of the descent."""

from __future__ import annotations

import os
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ._arrays import Array
from .offsets import sampling_grid
from .plot import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .demo import Recovery

FRAMES = 25  # of the animation, one more for the start
FRAME_TIME = 120  # milliseconds
DPI = 100
COLOURS = 64  # of a frame


def draw(result: Recovery) -> Any:
    """Return the figure: three pictures, the errors before and after, and the sampling points."""
    height, width = result.reference.shape[1:]
    inches = min(4.4 / (width * height) ** 0.5, 7 / max(width, height))  # per pixel
    size = (3 * max(inches * width, 4.0) + 0.6, 2 * inches * height + 2.4)
    figure = import_extra("matplotlib.figure", "demo").Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    figure.suptitle(
        "A warped picture, recovered by gradient descent through deform_conv2d\n"
        f"mean squared error {result.times_smaller:,.0f} times smaller",
        fontsize=19,
    )
    grid = figure.subplots(2, 3)
    for axes, title, picture in zip(
        grid[0],
        ("reference", "warped", "recovered"),
        (result.reference, result.warped, result.recovered),
        strict=True,
    ):
        axes.imshow(_for_imshow(picture), cmap="gray", vmin=0, vmax=1)
        axes.set_title(title, fontsize=17)
    _draw_errors(figure, grid[1, :2], result)
    _draw_points(grid[1, 2], result.warped, result.offset)
    grid[1, 2].set_title("recovered sampling points,\non the warped picture", fontsize=17)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure


def _for_imshow(picture: Array) -> Array:
    """Return (H, W) for a grey picture, (H, W, 3) for a colour one, within 0 to 1."""
    image: Array = np.clip(picture, 0, 1).transpose(1, 2, 0)
    return image[:, :, 0] if image.shape[2] == 1 else image


def _draw_errors(figure: Any, grid: Array, result: Recovery) -> None:
    """Draw the error before and after on one scale; few pixels are brighter than its end."""
    errors = [
        np.abs(picture - result.reference).mean(axis=0)
        for picture in (result.warped, result.recovered)
    ]
    top = max(float(np.quantile(errors[0], 0.995)), 1e-3)
    titles = [
        f"error {when}\n{mean:.3g} mean squared"
        for when, mean in zip(("before", "after"), result.squared_errors, strict=True)
    ]
    for axes, title, error in zip(grid, titles, errors, strict=True):
        shown = axes.imshow(error, cmap="magma", vmin=0, vmax=top)
        axes.set_title(title, fontsize=17)
    bar = figure.colorbar(
        shown, ax=list(grid), location="bottom", shrink=0.7, aspect=40, pad=0.02, extend="max"
    )
    bar.set_label("absolute difference in brightness (0 to 1), both panels", fontsize=14)
    bar.ax.tick_params(labelsize=13)


def _draw_points(axes: Axes, warped: Array, offset: Array) -> None:
    """Draw over the warped picture where a regular grid of output pixels is sampled."""
    size = offset.shape[1:]
    spacing = max(size) / 19
    rows, columns = (
        np.linspace(0, length - 1, round(length / spacing) + 1).round().astype(int)
        for length in size
    )
    py, px = (grid[0, 0] for grid in sampling_grid(offset[None], 1))
    axes.imshow(_for_imshow(warped).reshape(*size, -1).mean(axis=2), cmap="gray", vmin=-0.4)
    for across, down in ((px[rows].T, py[rows].T), (px[:, columns], py[:, columns])):
        axes.plot(across, down, color="#ffb000", linewidth=1.1)
    crossings = np.ix_(rows, columns)
    axes.plot(px[crossings].ravel(), py[crossings].ravel(), "o", color="white", markersize=2.5)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))


def animate(
    result: Recovery, frames: dict[int, tuple[Array, Array]], path: str | os.PathLike[str]
) -> None:
    """Write a GIF of the descent: by step the picture recovered so far, and its offset.

    All frames have the colours of the last one's palette, undithered: a third of the bytes.
    """
    drawn = [_frame(result, step, *frame) for step, frame in frames.items()]
    palette = drawn[-1].quantize(COLOURS)
    pillow = import_extra("PIL.Image", "demo")
    first, *others = (each.quantize(palette=palette, dither=pillow.Dither.NONE) for each in drawn)
    durations = [FRAME_TIME] * len(others) + [10 * FRAME_TIME]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0)


def _frame(result: Recovery, step: int, picture: Array, offset: Array) -> Any:
    """Return one frame as a Pillow image."""
    height, width = result.reference.shape[1:]
    figure = import_extra("matplotlib.figure", "demo").Figure(
        (5.2, 2.6 * height / width + 0.5), dpi=DPI, layout="constrained"
    )
    before = result.squared_errors[0]
    after = float(np.mean((picture - result.reference) ** 2))
    smaller = before / max(after, float(np.finfo(np.float32).tiny))
    left, right = figure.subplots(1, 2)
    left.imshow(_for_imshow(picture), cmap="gray", vmin=0, vmax=1)
    left.set_title(f"after {step} steps: squared\nerror {smaller:,.1f} times smaller", fontsize=11)
    _draw_points(right, result.warped, offset)
    right.set_title("where it samples\nthe warped picture", fontsize=11)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    drawing = BytesIO()
    figure.savefig(drawing)
    return import_extra("PIL.Image", "demo").open(drawing).convert("RGB")
