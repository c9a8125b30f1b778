"""Draws the pictures of the documentation: offset_layout.png, border_rule.png, assets/waves.jpg.

Run as ``make figures``, or ``python docs/figures.py`` where cupy_dcn and matplotlib are installed.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import cupy_dcn
from cupy_dcn import plot
from cupy_dcn.demo import read_picture

HERE = Path(__file__).parent
DPI = 200  # twice the 8 inches by 100 dots a README shows
COLOURS = 128  # of the palette: a third of the bytes that all colours take
DARK, PALE = "#222222", "#f4f4f4"
DY, DX, MASK = "#0b6fb8", "#c8374b", "#4f7a28"
HIGHLIGHT = "#8a2be2"  # the displaced tap
MINUS = "\N{MINUS SIGN}"
KERNEL = 3  # rows and columns
SHOWN = 5  # the tap that is drawn displaced
TEXT = {"ha": "center", "va": "center_baseline", "color": DARK}


def main():
    for name, draw in (("offset_layout", offset_layout), ("border_rule", border_rule)):
        drawing = BytesIO()
        draw().savefig(drawing, dpi=DPI)
        small = Image.open(drawing).convert("RGB").quantize(COLOURS)
        small.save(HERE / f"{name}.png", optimize=True)
    drawing = BytesIO()
    waves().savefig(drawing, dpi=100)
    Image.open(drawing).convert("RGB").save(HERE / "assets" / "waves.jpg", quality=85)


def waves():
    """The arrows of the tutorial's waves, over the photograph."""
    photo = read_picture(None)[:, ::2, ::2]
    row, column = np.indices(photo.shape[1:], np.float32)
    offset = cupy_dcn.pack_offset(
        *(4 * np.sin(each / width)[None, None] for each, width in ((column, 12), (row, 15)))
    )
    figure = Figure((6, 5.2), layout="constrained")
    plot.quiver(np.moveaxis(photo, 0, -1), offset, kernel_size=1, ax=figure.add_subplot())
    return figure


def offset_layout():
    """The taps of a 3x3 kernel above the channels that displace and weigh them."""
    figure = Figure((8, 5.7))
    axes = figure.add_axes((0, 0, 1, 1))  # in hundredths of an inch, y downward
    axes.set(xlim=(0, 800), ylim=(570, 0))
    axes.axis("off")
    _draw_taps(axes, left=54, top=82, cell=64)
    _write_rules(axes, left=424, top=36)
    _draw_channels(axes, left=104, top=392, cell=37.5)
    return figure


def _draw_taps(axes, left, top, cell):
    """The regular grid of taps, numbered; one of them with its displacement."""
    for k in range(KERNEL**2):
        i, j = divmod(k, KERNEL)
        corner = (left + j * cell, top + i * cell)
        axes.add_patch(Rectangle(corner, cell, cell, fc=PALE, ec="#bbbbbb"))
        at = (corner[0] + cell / 2, corner[1] + cell / 2)
        edge = HIGHLIGHT if k == SHOWN else DARK
        axes.plot(*at, "o", ms=20, mfc="white", mec=edge, mew=2.2 if k == SHOWN else 1.4)
        axes.text(*at, str(k), fontsize=13, **TEXT)
        if k == SHOWN:
            _draw_displacement(axes, at, 92, 58)
    middle = KERNEL * cell / 2
    axes.text(left + middle, top - 50, "tap k = i·KW + j", fontsize=15, **TEXT)
    axes.text(left + middle, top - 18, "j  →", fontsize=14, **TEXT)
    axes.text(left - 22, top + middle, "i\n↓", fontsize=14, **TEXT)


def _draw_displacement(axes, start, across, down):
    """The displacement of a tap: dx to the right, then dy downward."""
    style = {"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "lw": 2.4, "shrinkA": 0}
    corner, end = (start[0] + across, start[1]), (start[0] + across, start[1] + down)
    first, second = {**style, "color": DX, "shrinkB": 0}, {**style, "color": DY, "shrinkB": 7}
    axes.annotate("", corner, (start[0] + 15, start[1]), arrowprops=first)
    axes.annotate("", end, corner, arrowprops=second)
    axes.plot(*end, "o", ms=12, mfc=HIGHLIGHT, mec="white", zorder=5)
    axes.text(corner[0] - 8, start[1] - 15, "dx > 0", fontsize=14, **{**TEXT, "color": DX})
    beside = {**TEXT, "color": DY, "ha": "left"}
    axes.text(corner[0] + 11, start[1] + down / 2 - 4, "dy > 0", fontsize=14, **beside)
    below = {**TEXT, "va": "top"}
    axes.text(end[0], end[1] + 14, f"tap {SHOWN}\nsamples here", fontsize=13, **below)


def _write_rules(axes, left, top):
    """The formulas of the channels, and where a tap samples."""
    lines = (
        (0, "Tap k of deformable group g has", DARK, "bold"),
        (32, "dy   in offset channel  g·2K + 2k", DY, "bold"),
        (62, "dx   in offset channel  g·2K + 2k + 1", DX, "bold"),
        (92, "m    in mask channel  g·K + k", MASK, "bold"),
        (122, "where K = KH·KW.", DARK, "normal"),
        (172, "For output (y, x) it samples at", DARK, "bold"),
        (204, "py = y·stride - pad_top + i·dilation + dy", DARK, "normal"),
        (234, "px = x·stride - pad_left + j·dilation + dx", DARK, "normal"),
    )
    for down, line, colour, weight in lines:
        at = (left, top + down)
        axes.text(
            *at, line.replace("-", MINUS), fontsize=12.5, color=colour, weight=weight, va="center"
        )


def _draw_channels(axes, left, top, cell):
    """The channels of deformable group 0: a dy and a dx a tap above the mask's channel."""
    note = "g = 0; for g = 1 the offset goes on with channel 18, the mask with channel 9"
    axes.text(left, top - 58, note, fontsize=12.5, color=DARK, va="center")
    for k in range(KERNEL**2):
        x, middle = left + 2 * k * cell, left + (2 * k + 1) * cell
        shown = k == SHOWN
        colour = {"color": HIGHLIGHT if shown else DARK, "weight": "bold" if shown else "normal"}
        axes.text(middle, top - 22, f"tap {k}", fontsize=13, **{**TEXT, **colour})
        for half, (name, fill) in enumerate((("dy", DY), ("dx", DX))):
            _draw_channel(axes, x + half * cell, top, cell, name, 2 * k + half, fill)
        _draw_channel(axes, x, top + 84, 2 * cell, "m", k, MASK)
    for y, name in ((top, "offset"), (top + 84, "mask")):
        axes.text(left - 12, y + 19, name, fontsize=14, **{**TEXT, "ha": "right", "weight": "bold"})
        axes.text(left - 12, y + 54, "channel", fontsize=12.5, **{**TEXT, "ha": "right"})


def _draw_channel(axes, x, y, width, name, number, colour):
    axes.add_patch(Rectangle((x, y), width, 38, fc=colour, ec="white", lw=1.5))
    axes.text(x + width / 2, y + 19, name, fontsize=13, **{**TEXT, "color": "white"})
    axes.text(x + width / 2, y + 54, str(number), fontsize=12.5, **TEXT)


def border_rule():
    """The value sampled along a column of pixels that crosses both edges; beside it the plane."""
    figure = Figure((8, 3.7), layout="constrained")
    along, plane = figure.subplots(1, 2, width_ratios=(1.9, 1))
    _draw_column(along)
    _draw_plane(plane)
    return figure


def _draw_column(axes):
    """Sample along px = 0 through a column of pixels."""
    column = np.array([0.7, 1.0, 0.45, 0.85, 0.75])
    height = len(column)
    py = np.linspace(-1.9, height + 0.9, 561)
    for first in (-1, height - 1):
        axes.axvspan(first, first + 1, color=DX, alpha=0.14, lw=0)
        axes.text(first + 0.5, 1.13, "fades", fontsize=12.5, **{**TEXT, "color": DX})
    axes.text((height - 1) / 2, 1.13, "bilinear mean", fontsize=12.5, **TEXT)
    axes.plot(py, sample(column[:, None], py, np.zeros_like(py)), color=DY, lw=2.6)
    axes.plot(range(height), column, "o", color=DARK, ms=8, zorder=3)
    axes.plot([-1, height], [0, 0], "o", mfc="white", mec=DARK, ms=8, mew=1.6, zorder=3)
    for at in (-1.45, height + 0.45):
        axes.text(at, 0.1, "0", fontsize=14, **{**TEXT, "color": DY})
    ticks = [f"{MINUS}1", *map(str, range(height - 1)), f"H{MINUS}1", "H"]
    axes.set_xticks(range(-1, height + 1), ticks, fontsize=13)
    axes.set_yticks((0, 1), ("0", "1"), fontsize=13)
    axes.set(xlim=(py[0], py[-1]), ylim=(-0.08, 1.24))
    axes.set_title("value sampled at py (dots: pixels of x)", fontsize=14)
    axes.set_xlabel("py", fontsize=14)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_plane(axes):
    """Sample everywhere around a small image of ones."""
    side = 4
    where = np.linspace(-1.9, side + 0.9, 171)
    py, px = (grid.ravel() for grid in np.meshgrid(where, where, indexing="ij"))
    values = sample(np.ones((side, side)), py, px).reshape(len(where), -1)
    extent = (where[0], where[-1], where[-1], where[0])
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1.4, extent=extent, interpolation="bilinear")
    y, x = np.indices((side, side)).reshape(2, -1)
    axes.plot(x, y, "o", color=DARK, ms=4)
    box = {"fill": False, "ec": DX, "lw": 2}
    axes.add_patch(Rectangle((-1, -1), side + 1, side + 1, ls="--", **box))
    ticks = (-1, 0, side - 1, side)
    axes.set_xticks(ticks, (f"{MINUS}1", "0", f"W{MINUS}1", "W"), fontsize=13)
    axes.set_yticks(ticks, (f"{MINUS}1", "0", f"H{MINUS}1", "H"), fontsize=13)
    axes.set_title("an image of ones fades\nto 0 at the dashed line", fontsize=14)
    axes.set_xlabel("px", fontsize=14)


def sample(image, py, px):
    """Return the image (H, W) at the locations (py, px), each from a copy of its own."""
    height, width = image.shape
    x = np.broadcast_to(image, (len(py), 1, height, width))
    offset = np.zeros((len(py), 2, height, width))
    offset[:, 0, 0, 0], offset[:, 1, 0, 0] = py, px
    return cupy_dcn.deform_conv2d(x, offset, np.ones((1, 1, 1, 1)))[:, 0, 0, 0]


if __name__ == "__main__":
    main()
