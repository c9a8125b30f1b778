"""The two plots of gpu.py: times against the roof, and counters against sizes."""

import matplotlib
from targets import DIRECTIONS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

KINDS = {
    "kernel": ("sampling and layout (kernels)", "#3b75af"),
    "product": ("products (cuBLAS)", "#ef8636"),
    "copy": ("copies and fills", "#999999"),
    "measured": ("measured", "#3b75af"),
}
COLOURS = {"forward": "#3b75af", "backward": "#c0392b"}
PEERS = {"torchvision": "#c0392b", "plain convolution": "#f4d03f"}
TORCHVISION = {"forward": 87, "backward": 601}  # instructions at 64 channels; the same at others
IMAGES = 8
TICKS = (5, 10, 20, 50, 100, 200, 500)
PICOSECOND = 1e-12


def draw_times(path, models, times, device):
    """Draw the time of each layer, measured or else modelled, and the roof."""
    if times:
        name, rows, _ = times
        bars = [(row, {"measured": row.timing.seconds}, row.roof) for row in rows]
        title = f"Time on {name}, measured"
    else:
        bars = [(row, row.parts, row.roofs[device]) for row in models]
        title = f"Model of the time on an {device} (no GPU time was measured)"
    bars = [bar for bar in bars if bar[0].case.images == IMAGES]
    dtypes = list(dict.fromkeys(row.dtype for row, *_ in bars))
    labels = list(dict.fromkeys(f"{row.case.name}, {row.direction}" for row, *_ in bars))
    places = {label: at + 0.35 * (at // 2) for at, label in enumerate(labels)}
    figure, axes = plt.subplots(
        1, len(dtypes), figsize=(11, 5.2), sharey=True, layout="constrained", squeeze=False
    )
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        _draw_bars(axis, [bar for bar in bars if bar[0].dtype == dtype], places)
        axis.set_title(dtype)
        axis.set_xlabel("picoseconds a column element; %: the share of the roof")
    handles = {}
    for axis in axes[0]:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    figure.suptitle(f"{title}; {IMAGES} images")
    _save(figure, path)


def _draw_bars(axis, bars, places):
    for row, parts, roof in bars:
        at = places[f"{row.case.name}, {row.direction}"]
        left, unit = 0.0, row.case.column_elements * PICOSECOND
        for kind in filter(parts.get, KINDS):
            (label, colour), seconds = KINDS[kind], parts[kind]
            axis.barh(at, seconds / unit, left=left, color=colour, label=label, height=0.8)
            left += seconds / unit
        peers = row.timing.peers if "measured" in parts else {}
        if roof:
            ends = [roof / unit] * 2, [at - 0.45, at + 0.45]
            axis.plot(*ends, color="black", linewidth=2.5, label="roof", zorder=3)
            share = f"  {100 * roof / unit / left:.0f} %" if left else "  not counted"
            right = max(left, *(each / unit for each in (roof, *peers.values())))
            axis.text(right, at, share, va="center", fontsize=8)
        for peer, seconds in peers.items():
            style = {"color": PEERS[peer], "label": peer, "zorder": 3}
            axis.plot([seconds / unit], [at], "D", markeredgecolor="black", **style)
    axis.set_yticks(list(places.values()), list(places))
    axis.set_ylim(max(places.values()) + 0.7, -0.7)  # the first on top
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_axisbelow(True)
    axis.grid(axis="x", alpha=0.3)


def draw_sizes(path, curves):
    """Draw the instructions of a column element by everything that was gone through."""
    figure, axes = plt.subplots(
        1, len(curves), figsize=(11, 4.2), sharey=True, layout="constrained"
    )
    for axis, (what, points) in zip(axes, curves.items(), strict=True):
        places = range(len(points))  # evenly, as the sizes themselves are chosen
        for direction in DIRECTIONS:
            colour = COLOURS[direction]
            values = [found[direction].instructions for found in points.values()]
            axis.plot(places, values, "o-", color=colour, label=f"cupy_dcn, {direction}")
            about = f"torchvision, {direction} (at 64 channels)"
            axis.axhline(TORCHVISION[direction], color=colour, linestyle="--", label=about)
        axis.set(yscale="log", xlabel=what)
        axis.set_xticks(places, [f"{each:g}" for each in points])
        axis.set_yticks(TICKS, [str(each) for each in TICKS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PTX instructions a column element")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.suptitle("3x3, v2, float32, for sm_90; 64 channels, 48x48 pixels, 1.5 unless varied")
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=110)
    plt.close(figure)
