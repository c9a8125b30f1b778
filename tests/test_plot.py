"""draw_sampling: every point is where the formula says, and wrong calls say what is wrong."""

import io

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import cupy_dcn
from cupy_dcn import plot

matplotlib.use("Agg")

GEOMETRY = {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)}
IMAGE = np.linspace(0, 1, 9 * 10).reshape(9, 10)
TAPS = 6


@pytest.fixture
def ax():
    return Figure().add_subplot()


def make_offset(groups=2, dtype=np.float64):
    # H 9 + 1 pads, reach 2, stride 2: 5 rows; W 10 + 3 pads, reach 5: 9 columns
    shape = (1, 2 * groups * TAPS, 5, 9)
    return np.random.default_rng(3).normal(size=shape).astype(dtype)


def drawn_points(ax):
    """The scatters as a list of (hollow points, filled points), each (K, 2) of (y, x)."""
    points = [np.asarray(each.get_offsets())[:, ::-1] for each in ax.collections]
    return list(zip(points[::2], points[1::2], strict=True))


@pytest.mark.parametrize("group", [0, 1])
def test_points_are_where_the_kernel_samples(ax, group):
    offset, at = make_offset(), [(0, 0), (4, 8), (2, 3)]
    assert plot.draw_sampling(IMAGE, offset, at, **GEOMETRY, deformable_group=group, ax=ax) is ax

    taps = slice(group * TAPS, (group + 1) * TAPS)
    sampled = np.stack(cupy_dcn.sampling_grid(offset, **GEOMETRY))[:, 0, taps]
    regular = np.stack(cupy_dcn.sampling_grid(0 * offset, **GEOMETRY))[:, 0, taps]
    points = drawn_points(ax)
    assert len(points) == len(at)
    for (hollow, filled), (y, x) in zip(points, at, strict=True):
        np.testing.assert_array_equal(hollow, regular[:, :, y, x].T)
        np.testing.assert_allclose(filled, sampled[:, :, y, x].T, rtol=0, atol=1e-12)


def test_formula(ax):
    offset = np.zeros((1, 18, 4, 4))
    offset[0, 2 * 5 : 2 * 5 + 2, 1, 2] = 0.25, -0.5  # dy, dx of tap 5: row 1, column 2
    plot.draw_sampling(np.ones((4, 4)), offset, (1, 2), padding=1, ax=ax)
    [(hollow, filled)] = drawn_points(ax)
    expected = [[y, x] for y in (0, 1, 2) for x in (1, 2, 3)]
    np.testing.assert_array_equal(hollow, expected)
    expected[5] = [1.25, 2.5]
    np.testing.assert_array_equal(filled, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_same_padding_and_other_dtypes(ax, dtype):
    offset = np.full((1, 18, 9, 10), 0.5, dtype)
    plot.draw_sampling(IMAGE, offset, (0, 0), padding="SAME", ax=ax)
    [(hollow, filled)] = drawn_points(ax)
    np.testing.assert_array_equal(hollow[0], [-1, -1])
    np.testing.assert_array_equal(filled, hollow + 0.5)


def test_whole_numbers_are_pixel_centres(ax):
    plot.draw_sampling(IMAGE, make_offset() * 0, (2, 3), **GEOMETRY, ax=ax)
    [picture] = ax.images
    assert picture.get_extent() == [-0.5, 9.5, 8.5, -0.5]
    np.testing.assert_array_equal(picture.get_array(), IMAGE)


def test_each_output_pixel_has_its_colour(ax):
    plot.draw_sampling(IMAGE, make_offset(), [(0, 0), (1, 1), (2, 2)], **GEOMETRY, ax=ax)
    hollow, filled = ax.collections[::2], ax.collections[1::2]
    colours = [tuple(each.get_facecolor()[0]) for each in filled]
    assert len(set(colours)) == 3
    assert [tuple(each.get_edgecolor()[0]) for each in hollow] == colours
    assert all(len(each.get_facecolor()) == 0 for each in hollow)
    assert [text.get_text() for text in ax.legend().get_texts()] == [
        "output pixel y=0, x=0",
        "output pixel y=1, x=1",
        "output pixel y=2, x=2",
    ]


def test_mask_sets_the_area(ax):
    mask = np.random.default_rng(0).uniform(-1, 1, (1, 2 * TAPS, 5, 9))
    options = {"deformable_group": 1, "mask": mask, "ax": ax}
    plot.draw_sampling(IMAGE, make_offset(), (3, 4), **GEOMETRY, **options)
    np.testing.assert_allclose(
        ax.collections[1].get_sizes(), plot.AREA * np.abs(mask[0, TAPS:, 3, 4])
    )


def test_large_mask_is_scaled_down(ax):
    mask = np.full((1, 2 * TAPS, 5, 9), 4.0)
    mask[0, 0] = 1.0
    plot.draw_sampling(IMAGE, make_offset(), (3, 4), **GEOMETRY, mask=mask, ax=ax)
    np.testing.assert_allclose(
        ax.collections[1].get_sizes(), plot.AREA * np.array([0.25, 1, 1, 1, 1, 1])
    )


def test_axes_hold_samples_outside_the_image(ax):
    offset = make_offset() * 0
    offset[0, 0, 0, 0], offset[0, 1, 0, 0] = -3.0, 1e9  # above the image, and far to its right
    offset[0, 2, 0, 0], offset[0, 5, 0, 0] = np.nan, np.inf
    plot.draw_sampling(IMAGE, offset, (0, 0), **GEOMETRY, ax=ax)
    bottom, top = ax.get_ylim()
    left, right = ax.get_xlim()
    assert (bottom, top) == (8.5, -4.5)  # pad 1 and 3 up, with half a pixel of margin
    assert (left, right) == (-2.5, 20.5)  # an image's width beyond it at most
    drawing = io.BytesIO()
    ax.figure.savefig(drawing)
    assert drawing.tell() > 0


@pytest.mark.parametrize("shape", [(9, 10, 3), (9, 10, 4)])
def test_colour_pictures(ax, shape):
    plot.draw_sampling(np.zeros(shape), make_offset(), np.array([[0, 0]]), **GEOMETRY, ax=ax)
    assert ax.images[0].get_array().shape == shape


def test_new_figure_without_axes():
    axes = plot.draw_sampling(IMAGE, make_offset(), (0, 0), **GEOMETRY)
    assert len(drawn_points(axes)) == 1
    matplotlib.pyplot.close(axes.figure)


def test_without_matplotlib(monkeypatch):
    real = plot.importlib.import_module

    def absent(name):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(plot.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"needs matplotlib.*pip install 'cupy_dcn\[plot\]'"):
        plot.draw_sampling(IMAGE, make_offset(), (0, 0), **GEOMETRY)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": np.ones(4)}, ValueError, r"image has shape \(4,\), expected \(H, W\)"),
        ({"image": np.ones((2, 9, 10))}, ValueError, r"image has shape \(2, 9, 10\), expected"),
        ({"image": np.ones((8, 10))}, ValueError, "offset has a size of 5x9, expected .* = 4x9"),
        ({"offset": [1.0]}, TypeError, r"offset must be a NumPy or CuPy array .* got list"),
        ({"offset": np.ones((2, 24, 5, 9))}, ValueError, "offset has a batch of 2, expected 1"),
        ({"offset": np.ones((1, 25, 5, 9))}, ValueError, "25 channels, expected .* = 24"),
        ({"offset": np.ones((1, 4, 5, 9))}, ValueError, "4 channels, expected .* = 12"),
        ({"kernel_size": 2.0}, TypeError, "kernel_size must be an int or two ints"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"at": None}, ValueError, r"at is None, expected an output pixel \(y, x\) or several"),
        ({"at": 3}, ValueError, "at is 3, expected an output pixel"),
        ({"at": []}, ValueError, r"at is \[\], expected an output pixel"),
        ({"at": (1, 2, 3)}, ValueError, r"at is \(1, 2, 3\), expected an output pixel"),
        ({"at": [(1, 2), (3,)]}, ValueError, "expected an output pixel"),
        ({"at": (1.0, 2)}, TypeError, r"at has \(1.0, 2\), expected two ints"),
        ({"at": (True, 2)}, TypeError, r"at has \(True, 2\), expected two ints"),
        ({"at": (5, 0)}, ValueError, r"at has \(5, 0\), expected 0 <= y < OH = 5"),
        ({"at": (0, -1)}, ValueError, r"at has \(0, -1\), expected .* 0 <= x < OW = 9"),
        ({"deformable_group": 2}, ValueError, "deformable_group is 2, expected .* = 2;"),
        ({"deformable_group": 0.5}, TypeError, "deformable_group must be an int, got 0.5"),
        ({"mask": np.ones((1, 6, 5, 9))}, ValueError, "mask has 6 channels, expected .* = 12"),
        ({"mask": 1.0}, TypeError, r"mask must be a NumPy or CuPy array .* got float"),
    ],
)
def test_wrong_calls(ax, changes, error, message):
    call = {"image": IMAGE, "offset": make_offset(), "at": (0, 0), "ax": ax, **GEOMETRY}
    with pytest.raises(error, match=message):
        plot.draw_sampling(**{**call, **changes})
    assert not ax.has_data()


@pytest.mark.parametrize(("side", "inches"), [(9, 6), (60, 6), (60, 2), (300, 3)])
def test_points_of_a_kernel_stay_apart(side, inches):
    offset = np.zeros((1, 18, side, side))
    figure = Figure((inches, inches))
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    plot.draw_sampling(np.zeros((side, side)), offset, (4, 4), padding=1, ax=axes)
    pixel = 72 * 0.8 * inches / side  # in points
    for points in axes.collections:
        [area] = set(points.get_sizes())
        assert 1 <= area**0.5 <= max(pixel, 3)
    assert axes.collections[1].get_sizes()[0] <= 1.001 * plot.AREA


def arrows(ax):
    """The arrows drawn, as (starts, ends), each (P, 2) of (y, x)."""
    [drawn] = [each for each in ax.collections if isinstance(each, matplotlib.quiver.Quiver)]
    assert drawn.scale_units == drawn.angles == "xy"
    steps = np.stack((drawn.V, drawn.U), axis=1) / drawn.scale
    np.testing.assert_allclose(drawn.get_array(), np.hypot(drawn.U, drawn.V))
    return drawn.XY[:, ::-1], drawn.XY[:, ::-1] + steps


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("tap", [None, 0, 4])
def test_arrows_go_from_the_grid_to_the_samples(ax, group, tap):
    offset = make_offset()
    settings = {**GEOMETRY, "deformable_group": group}
    assert plot.quiver(IMAGE, offset, **settings, tap=tap, every=1, ax=ax) is ax
    taps = slice(group * TAPS, (group + 1) * TAPS)
    if tap is not None:
        taps = slice(taps.start + tap, taps.start + tap + 1)
    expected = [
        np.stack(cupy_dcn.sampling_grid(each, **GEOMETRY))[:, 0, taps].mean(axis=1)
        for each in (0 * offset, offset)
    ]
    for found, points in zip(arrows(ax), expected, strict=True):
        np.testing.assert_allclose(found, points.reshape(2, -1).T, atol=1e-12)


def test_arrows_are_thinned_and_scaled(ax):
    offset = np.full((1, 2, 61, 100), 2.0)
    plot.quiver(np.zeros((61, 100)), offset, 1, scale=3, ax=ax)
    starts, ends = arrows(ax)
    np.testing.assert_allclose(ends - starts, np.full_like(starts, 6))
    np.testing.assert_array_equal(np.unique(starts[:, 1]), np.arange(2, 100, 5))
    assert "drawn 3 times as long" in ax.figure.axes[1].get_ylabel()
    assert "pixels" in ax.figure.axes[1].get_ylabel()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tap": 6}, ValueError, r"tap is 6, expected 0 <= tap < KH\*KW = 6"),
        ({"tap": 1.0}, TypeError, "tap must be an int, got 1.0"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"scale": 0}, ValueError, "scale is 0, expected a number above 0"),
        ({"scale": "2"}, ValueError, "scale is '2', expected a number above 0"),
        ({"offset": [make_offset()]}, TypeError, "offset must be one array"),
        ({"image": np.ones((8, 10))}, ValueError, "offset has a size of 5x9, expected .* = 4x9"),
    ],
)
def test_wrong_arrows(ax, changes, error, message):
    call = {"image": IMAGE, "offset": make_offset(), "ax": ax, **GEOMETRY}
    with pytest.raises(error, match=message):
        plot.quiver(**{**call, **changes})
    assert not ax.has_data()
