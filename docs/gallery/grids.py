"""Sampling grids: what stride, dilation and offsets do, and how far several layers reach."""

from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from pictures import SIZE, WIDTH, photograph, show

import cupy_dcn
from cupy_dcn import plot

SIDE = 13  # pixels of the picture under the small grids
NEIGHBOURS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 2)]  # output pixels of the first grid
AT = [(1, 1), (1, 5), (5, 3)]  # those of the others
LAYERS = 3
SEED = 3


@dataclass(frozen=True)
class Result:
    """The photograph (C, H, W), the offsets of each layer, and the points that they reach."""

    photo: np.ndarray
    offsets: list
    at: tuple
    reached: list  # numbers of sampling points through 1, 2, 3 layers


def compute(longest=240):
    """Return offsets that grow with the distance from a centre, as those of a trained network."""
    photo = photograph(longest)
    size = photo.shape[1:]
    rng = np.random.default_rng(SEED)
    y, x = np.indices(size)
    centre = 0.34 * size[0], 0.46 * size[1]
    offsets = []
    for _ in range(LAYERS):
        tap_y, tap_x = (grid.ravel()[:, None, None] for grid in np.mgrid[-1:2, -1:2])
        far = np.hypot(y - centre[0], x - centre[1]) / max(size)
        stretch = 6 * np.exp(-8 * far) - 1
        noise = rng.normal(0, 1.2, (2, 9, 1, 1))
        dy, dx = stretch * tap_y + noise[0], stretch * tap_x + noise[1]
        offsets.append(cupy_dcn.pack_offset(dy[None], dx[None]).astype(np.float32))
    at = tuple(int(each) for each in centre)
    reached = [9**count for count in range(1, LAYERS + 1)]
    return Result(photo, offsets, at, reached)


def report(result):
    """Return what is shown in words."""
    return f"sampling points of one output pixel: {', '.join(map(str, result.reached))}"


def settings():
    """Return the small grids by their titles: settings, and dy and dx of the 9 taps."""
    tap_y, tap_x = (grid.ravel().astype(float) for grid in np.mgrid[-1:2, -1:2])
    rng = np.random.default_rng(SEED)
    angle = np.deg2rad(30)
    turned = (
        np.sin(angle) * tap_x + (np.cos(angle) - 1) * tap_y,
        (np.cos(angle) - 1) * tap_x - np.sin(angle) * tap_y,
    )
    return {
        "stride 4: neighbours 4 pixels apart": ({"stride": 4}, (0 * tap_y, 0 * tap_x)),
        "dilation 2: taps 2 pixels apart": (
            {"stride": 2, "dilation": 2, "padding": 2},
            (0 * tap_y, 0 * tap_x),
        ),
        "one offset for all taps: a shift": (
            {"stride": 2, "padding": 1},
            (0 * tap_y + 0.6, 0 * tap_x + 1.2),
        ),
        "offsets that spread the taps": (
            {"stride": 2, "padding": 1},
            (0.5 * tap_y, 0.5 * tap_x),
        ),
        "a rotation by 30 degrees": ({"stride": 2, "padding": 1}, turned),
        "any offset, and a mask: areas": (
            {"stride": 2, "padding": 1, "mask": rng.uniform(0.05, 1, 9)},
            tuple(rng.normal(0, 0.55, (2, 9))),
        ),
    }


def draw(result):
    """Return the figure: six small grids, and a receptive field through 1, 2 and 3 layers."""
    with matplotlib.rc_context(SIZE):
        figure = Figure((WIDTH, 9.4), layout="constrained")
        figure.suptitle("Where kernels sample: circles without offsets, dots with them")
        above, below = figure.subfigures(2, 1, height_ratios=(1.75, 1))
        for axes, (title, (options, taps)) in zip(
            above.subplots(2, 3).flat, settings().items(), strict=True
        ):
            _draw_small(axes, title, options, taps)
        grid = below.subplots(1, LAYERS)
        below.supxlabel(
            "receptive field of one output pixel (star) through stacked layers", fontsize=11
        )
        for count, axes in enumerate(grid, 1):
            _draw_field(axes, result, count)
    return figure


def _draw_small(axes, title, options, taps):
    """Draw three output pixels' samples over a chequered picture."""
    y, x = np.indices((SIDE, SIDE))
    picture = 0.75 + 0.15 * ((y + x) % 2)
    weight = np.ones((1, 1, 3, 3))
    others = {name: value for name, value in options.items() if name != "mask"}
    plan = cupy_dcn.Plan((1, 1, SIDE, SIDE), weight, masked=False, **others)
    shape = (1, 9, *plan.out_shape[2:])
    dy, dx = (np.broadcast_to(each[:, None, None], shape) for each in taps)
    mask = options.get("mask")
    if mask is not None:
        mask = np.broadcast_to(mask[:, None, None], shape)
    plot.draw_sampling(
        picture, cupy_dcn.pack_offset(dy, dx),
        NEIGHBOURS if options["stride"] == 4 else AT, ax=axes, mask=mask, **others,
    )  # fmt: skip
    axes.images[0].set_clim(0, 1)
    axes.set(xticks=[], yticks=[], xlabel="", ylabel="", title=title)


def _draw_field(axes, result, count):
    """Draw the points that one output pixel reaches through so many layers."""
    show(axes, result.photo, "")
    plot.draw_sampling(
        np.moveaxis(result.photo, 0, -1), result.offsets[:count], result.at, padding=3, dilation=3,
        ax=axes,
    )  # fmt: skip
    y, x = result.at
    axes.plot(x, y, "*", color="white", markeredgecolor="black", markersize=11, zorder=6)
    layers = "1 layer" if count == 1 else f"{count} layers"
    axes.set(
        xlim=(x - 62, x + 62), ylim=(y + 62, y - 62), xlabel="", ylabel="",
        title=f"{layers}: {result.reached[count - 1]} points",
    )  # fmt: skip
