"""Several layers' sampling points against the gradient that reaches the image through them."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import cupy_dcn
from cupy_dcn import plot

matplotlib.use("Agg")

IMAGE = np.zeros((15, 17))
LAYERS = (  # from the image up
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0, 2, 1), "dilation": (1, 2)},
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1},
    {"kernel_size": (2, 3), "stride": 2, "padding": (0, 1), "dilation": (2, 1)},
)
NAMES = tuple(LAYERS[0])


def stack(count, draw):
    """The first layers, each with an offset and a mask of its output's size."""
    rng = np.random.default_rng(count)
    size, layers = IMAGE.shape, []
    for settings in LAYERS[:count]:
        kernel = np.broadcast_to(settings["kernel_size"], 2)
        taps = int(kernel.prod())
        weight = np.ones((1, 1, *kernel))
        others = {name: settings[name] for name in ("stride", "padding", "dilation")}
        size = cupy_dcn.Plan((1, 1, *size), weight, **others, masked=False).out_shape[2:]
        offset = draw(rng, (1, 2 * taps, *size))
        layers.append((offset, rng.uniform(0.2, 1, (1, taps, *size)), weight, others))
    return layers


def reached(layers, pixel, masked=False):
    """The gradient of the image that one output pixel leaves, every weight being 1."""
    grad = np.zeros((1, 1, *layers[-1][0].shape[2:]))
    grad[0, 0][pixel] = 1
    for number, (offset, mask, weight, others) in reversed(list(enumerate(layers))):
        below = layers[number - 1][0].shape[2:] if number else IMAGE.shape
        grad = cupy_dcn.deform_conv2d_backward(
            grad, np.zeros((1, 1, *below)), offset, weight, **others,
            mask=mask if masked else None, needs=("x",),
        ).x  # fmt: skip
    return grad[0, 0]


def draw(layers, at, masked=False):
    """The hollow and filled points drawn, (P, 2) each as (y, x), and the areas of the filled."""
    ax = Figure().add_subplot()
    plot.draw_sampling(
        IMAGE, [each[0] for each in layers], at, ax=ax,
        **{name: [each[name] for each in LAYERS[: len(layers)]] for name in NAMES},
        mask=[each[1] for each in layers] if masked else None,
    )  # fmt: skip
    hollow, filled = (np.asarray(each.get_offsets())[:, ::-1] for each in ax.collections)
    return hollow, filled, ax.collections[1].get_sizes()


def whole(rng, shape):
    return rng.integers(-1, 2, shape).astype(float)


@pytest.mark.parametrize("pixel", [(2, 4), (0, 0), (1, 8)])
@pytest.mark.parametrize("masked", [False, True])
def test_whole_offsets_give_the_gradient_itself(pixel, masked):
    layers = stack(3, whole)
    _, points, areas = draw(layers, pixel, masked)
    inside = ((points >= 0) & (points < IMAGE.shape)).all(axis=1)
    counted = np.zeros(IMAGE.shape)
    rows, columns = points[inside].round().astype(int).T
    np.add.at(counted, (rows, columns), areas[inside] / areas.max())
    expected = reached(layers, pixel, masked)
    assert np.count_nonzero(expected) >= 9
    np.testing.assert_allclose(counted / counted.sum(), expected / expected.sum(), atol=1e-12)
    if not masked:
        assert counted.sum() == pytest.approx(expected.sum())


def test_fractions_keep_the_centre_of_the_gradient():
    """A sample between pixels goes on from all four: two layers keep the mean exactly."""
    layers = stack(2, lambda rng, shape: rng.uniform(-0.8, 0.8, shape))
    _, points, _ = draw(layers, (3, 8))
    assert len(points) == 6 * 9
    gradient = reached(layers, (3, 8))
    assert gradient.sum() == pytest.approx(6 * 9)
    centre = [np.average(axis, weights=gradient) for axis in np.indices(IMAGE.shape)]
    np.testing.assert_allclose(points.mean(axis=0), centre, atol=1e-12)


@pytest.mark.parametrize("beyond", [0.25, 0.75, 1.0])
def test_a_sample_fades_at_the_border_of_the_layer_below(beyond):
    still, moved = np.zeros((2, 1, 2, 9, 9))
    moved[0, :, 0, 8] = -beyond, beyond  # up and to the right, from a corner
    ax = Figure().add_subplot()
    plot.draw_sampling(np.eye(9), [still, moved], [(0, 8), (4, 4)], 1, ax=ax)
    areas = [each.get_sizes() for each in ax.collections[1::2]]
    one = np.ones((1, 1, 1, 1))
    grad = np.zeros((1, 1, 9, 9))
    grad[0, 0, 0, 8] = 1
    grad = cupy_dcn.deform_conv2d_backward(grad, grad, moved, one, needs=("x",)).x
    assert areas[0].sum() / areas[1].sum() == pytest.approx(grad.sum())
    assert len(areas[0]) == (beyond < 1)


def test_regular_points_are_drawn_once():
    layers = stack(3, lambda rng, shape: np.zeros(shape))
    hollow, filled, _ = draw(layers, (1, 4))
    assert len(filled) == 6 * 9 * 6
    assert len(hollow) == len(np.unique(filled, axis=0)) < len(filled)
    np.testing.assert_array_equal(hollow, np.unique(filled, axis=0))


def test_a_sample_outside_goes_no_further():
    layers = stack(2, lambda rng, shape: np.zeros(shape))
    for tap, value in enumerate((-20, np.nan, np.inf)):
        layers[1][0][0, 2 * tap] = value
    assert len(draw(layers, (3, 8))[1]) == 6 * 6
    layers[1][0][:] = 100
    hollow, filled, _ = draw(layers, (3, 8))
    assert len(hollow) > 0
    assert len(filled) == 0


def test_one_setting_for_all_layers():
    offset = np.zeros((1, 18, 9, 9))
    ax = plot.draw_sampling(np.eye(9), [offset] * 3, (4, 4), padding=1, ax=Figure().add_subplot())
    points = np.asarray(ax.collections[1].get_offsets())
    assert points.shape == (729, 2)
    assert len(ax.lines) == 0
    np.testing.assert_array_equal([points.min(axis=0), points.max(axis=0)], [[1, 1], [7, 7]])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"stride": [1]}, ValueError, r"stride has 1 value, expected 2, one for each offset"),
        ({"mask": np.ones((1, 9, 9, 9))}, TypeError, "mask must be a list of 2 masks"),
        ({"mask": [None]}, ValueError, "mask has 1 value, expected 2"),
        ({"mask": [None, 1.0]}, TypeError, r"^layer 1, counted from the image's: mask must be"),
        ({"padding": [1, 0]}, ValueError, r"^layer 1, .*: offset has a size of 9x9, expected"),
        ({"kernel_size": [3, (5, 30)]}, ValueError, r"^layer 1, counted from the image's: "),
        ({"at": (9, 0)}, ValueError, r"at has \(9, 0\), expected 0 <= y < OH = 9"),
        ({"offset": [np.zeros((1, 18, 9, 9)), 3]}, TypeError, "offset must be .* got list"),
    ],
)
def test_wrong_calls(changes, error, message):
    offset = np.zeros((1, 18, 9, 9))
    ax = Figure().add_subplot()
    call = {"image": np.eye(9), "offset": [offset, offset], "at": (4, 4), "padding": 1, "ax": ax}
    with pytest.raises(error, match=message):
        plot.draw_sampling(**{**call, **changes})
    assert not ax.has_data()
