"""The gallery's pieces, small: each does what its picture says, and draws it."""

import importlib
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from scipy import ndimage

import cupy_dcn

sys.path.insert(0, str(Path(__file__).parents[1] / "docs" / "gallery"))
matplotlib.use("Agg")
pieces = {name: importlib.import_module(name) for name in ("grids", "lens", "mri", "turbulence")}
pictures = importlib.import_module("pictures")


def assert_draws(piece, result, tmp_path):
    assert piece.report(result).count(" ") > 4
    path = tmp_path / "drawn.jpg"
    pictures.save(piece.draw(result), path)
    assert 20_000 < path.stat().st_size < 250_000


def test_lens(tmp_path):
    lens = pieces["lens"]
    result = lens.compute(longest=200)
    before, after = result.bends
    assert 10 * after < before
    assert after < 0.1
    assert result.psnrs[1] > result.psnrs[0] + 10
    assert_draws(lens, result, tmp_path)
    # Points of a straight line, moved along it and off it.
    line = np.stack((np.arange(5.0), 2 * np.arange(5.0)), axis=1)
    assert lens.bending(line[None][[0, 0]]) < 1e-12
    assert lens.find_corners(lens.checkerboard((90, 90))[0][0], np.array([[[30.2, 39.1]]])) == (
        pytest.approx(np.array([[[29.5, 39.5]]]), abs=0.05)
    )


def test_turbulence(tmp_path):
    turbulence = pieces["turbulence"]
    result = turbulence.compute(longest=96)
    frame, mean, dewarped = result.psnrs
    assert dewarped > mean + 2 > frame + 2
    assert result.sharp[1] > 1.5 * result.sharp[0]
    assert result.frames.shape[0] == result.offset.shape[0] == turbulence.FRAMES
    assert_draws(turbulence, result, tmp_path)
    blurred = ndimage.gaussian_filter(result.truth, (0, 2, 2))
    assert turbulence.sharpness(blurred, result.truth) < 0.5
    assert turbulence.sharpness(result.truth, result.truth) == 1


def test_mri(tmp_path):
    mri = pieces["mri"]
    result = mri.compute(shrink=4, steps=120)
    blurred, rigid, deformed = result.psnrs
    assert deformed > rigid > blurred
    assert_draws(mri, result, tmp_path)
    lengths = np.hypot(*(each.mean(axis=1)[0] for each in cupy_dcn.unpack_offset(result.offset)))
    assert 0.1 < lengths.max() < 10


def test_mris_gradients_are_those_of_the_error():
    mri = pieces["mri"]
    rng = np.random.default_rng(0)
    x, goal = rng.random((2, 1, 1, 12, 11)).astype(np.float32)
    network = mri.Network(x.shape[2:], rng)
    network.offsets.weight += 0.05 * rng.standard_normal(network.offsets.weight.shape)

    def error():
        return float(((network.forward(x)[-1].astype(np.float64) - goal) ** 2).mean())

    for parameter, gradient in zip(network.parameters, network.gradients(x, goal), strict=True):
        direction = np.sign(gradient) / np.abs(gradient).sum()
        step = 1e-3 / np.abs(direction).max()
        before = parameter.copy()
        values = []
        for sign in (1, -1):
            parameter[:] = before + sign * step * direction
            values.append(error())
        parameter[:] = before
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(1, rel=0.1)


def test_grids(tmp_path):
    grids = pieces["grids"]
    result = grids.compute()
    assert result.reached == [9, 81, 729]
    assert_draws(grids, result, tmp_path)
    _, (dy, dx) = grids.settings()["a rotation by 30 degrees"]
    tap_y, tap_x = (grid.ravel() for grid in np.mgrid[-1:2, -1:2])
    np.testing.assert_allclose(np.hypot(tap_y + dy, tap_x + dx), np.hypot(tap_y, tap_x))


def test_psnr():
    truth = np.zeros((1, 8, 8))
    assert pictures.psnr(truth + 0.1, truth) == pytest.approx(20)
    noisy = truth.copy()
    noisy[0, 0] = 1
    assert pictures.psnr(noisy + 0.01, truth, margin=2) == pytest.approx(40)
