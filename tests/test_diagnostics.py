"""The command line: info, selftest, demo and what each says when something is wrong."""

import importlib.metadata
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import cupy_dcn
from cupy_dcn import demo, diagnostics
from cupy_dcn.__main__ import main

STAGES = list(diagnostics._STAGES)


def make_picture(path, size=(48, 40), mode="RGB"):
    """Write a picture of smooth blobs, which a warp changes everywhere."""
    x, y = np.meshgrid(*(np.linspace(0, 4 * np.pi, length) for length in size))
    planes = [np.sin(x + phase) * np.cos(y * 0.8 + phase) for phase in range(3)]
    values = np.uint8(127.5 + 127 * np.stack(planes, axis=-1))
    Image.fromarray(values).convert(mode).save(path)
    return path


def test_info(capsys):
    assert main(["info"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["cupy_dcn"] == cupy_dcn.__version__
    assert lines["Python"].startswith(platform.python_version())
    assert lines["NumPy"] == np.__version__
    assert lines["SciPy"] == importlib.metadata.version("scipy")
    assert lines["matplotlib"] == importlib.metadata.version("matplotlib")
    assert lines["threads"] == str(diagnostics.thread_count())
    assert {"platform", "CuPy", "BLAS", "ml_dtypes", "threadpoolctl", "tqdm"} <= lines.keys()


def test_info_without_the_optional_modules(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagnostics.importlib.metadata, "version", missing)
    monkeypatch.setattr(diagnostics.importlib.metadata, "packages_distributions", dict)
    monkeypatch.setattr(diagnostics.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    diagnostics.info()
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["matplotlib"] == lines["CuPy"] == lines["ml_dtypes"] == "not installed"
    assert lines["BLAS"].startswith("unknown without threadpoolctl")


def test_selftest_passes(capsys):
    assert main(["selftest"]) == 0
    header, *rows, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["stage", "dtype", "error", "limit", "ok"]
    assert verdict == "all agree"
    found = {(stage, dtype): float(error) for stage, dtype, error, _, _ in map(str.split, rows)}
    assert set(found) == {(stage, dtype) for stage in STAGES for dtype in diagnostics.LIMITS}
    # Errors of exactly 0 would mean that nothing was compared.
    assert all(0 < error <= diagnostics.LIMITS[dtype] for (_, dtype), error in found.items())


def slightly_wrong(result):
    """Change the last array of a result by a share of its largest value that float32 must see."""
    if not isinstance(result, tuple):
        return result + result.dtype.type(1e-4) * np.abs(result).max()
    *others, last = (each for each in result if each is not None)
    padding = [None] * (len(result) - len(others) - 1)
    return (*others, slightly_wrong(last), *padding)


@pytest.mark.parametrize("stage", STAGES)
def test_selftest_finds_a_wrong_stage(stage, monkeypatch, capsys):
    right = getattr(cupy_dcn, stage)
    monkeypatch.setattr(cupy_dcn, stage, lambda *a, **b: slightly_wrong(right(*a, **b)))
    monkeypatch.setattr(diagnostics, "_dtypes", lambda: [np.dtype(np.float32)])
    assert main(["selftest"]) == 1
    *_, verdict = lines = capsys.readouterr().out.splitlines()
    assert verdict.startswith("SOME DISAGREE")
    assert [line.split()[0] for line in lines if " NO" in line] == [stage]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda *a, **b: np.full((2, 2, 5, 6), np.nan), "nan"),
        (lambda *a, **b: np.zeros(3, np.float32), "a result is float32 (3,), due (2, 2, 5, 6)"),
        (lambda *a, **b: 1 // 0, "ZeroDivisionError: "),
    ],
)
def test_selftest_finds_a_broken_stage(broken, reason, monkeypatch, capsys):
    monkeypatch.setattr(cupy_dcn, "deform_conv2d", broken)
    monkeypatch.setattr(diagnostics, "_dtypes", lambda: [np.dtype(np.float64)])
    monkeypatch.setattr(diagnostics, "_SIZES", diagnostics._SIZES[:1])
    assert main(["selftest"]) == 1
    [row] = [line for line in capsys.readouterr().out.splitlines() if " NO" in line]
    assert row.startswith("deform_conv2d ")
    assert reason in row


def test_demo_recovers_a_picture(tmp_path, capsys):
    picture, output = make_picture(tmp_path / "mine.png"), tmp_path / "out.png"
    result = demo.demo(picture, output, steps=40, progress=False)
    assert result.reference.shape == (3, 40, 48)
    assert result.reference.dtype == result.offset.dtype == np.float32
    before, after = result.squared_errors
    assert 0 < 10 * after < before
    far, near = result.distances
    assert 0 < 3 * near < far
    with Image.open(output) as figure:
        assert min(figure.size) > 500
        assert len(figure.convert("RGB").getcolors(2**24)) > 1000

    printed = {line[:20].strip(): line[21:] for line in capsys.readouterr().out.splitlines()}
    assert printed["picture"] == f"{picture}, used at 48 x 40 pixels, colour"
    assert f"{before:.3g} before, {after:.3g} after" in printed["mean squared error"]
    assert f"{far:.2f} pixels before, {near:.2f} after" in printed["misplaced by"]
    assert printed["figure"] == str(output)


def test_demo_numbers_mean_what_they_say(tmp_path):
    reference = demo.read_picture(make_picture(tmp_path / "mine.png", (64, 64)))
    displacement = demo.smooth_displacement(reference.shape[1:])
    assert np.abs(displacement).max() == pytest.approx(0.05 * 64, rel=0.2)
    edges = np.concatenate([displacement[:, [0, -1]], displacement[:, :, [0, -1]].swapaxes(1, 2)])
    assert np.abs(edges).max() < 1e-6  # nothing leaves the view
    warped = demo.warp(reference, displacement)
    offset = -displacement  # its inverse, nearly
    result = demo.Recovery(
        reference, warped, demo.sample(warped, offset), displacement, offset, 0.0
    )
    np.testing.assert_allclose(
        result.squared_errors[0], ((warped - reference).astype(np.float64) ** 2).mean(), rtol=1e-4
    )
    lengths = np.hypot(*displacement)
    assert result.distances[0] == pytest.approx(lengths.mean(), rel=1e-5)
    assert result.distances[1] < 0.5 * result.distances[0]
    still = demo.Recovery(reference, warped, warped, displacement, 0 * offset, 0.0)
    assert still.distances[1] == pytest.approx(still.distances[0], rel=1e-4)
    assert still.times_smaller == 1


def test_default_demo(tmp_path):
    """The photograph that ships within matplotlib, as `make demo` runs it but with fewer steps."""
    result = demo.demo(output=tmp_path / "out.png", steps=25, progress=False)
    assert max(result.reference.shape) == demo.LONGEST_SIDE
    before, after = result.squared_errors
    assert 20 * after < before


def test_demo_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "CELLS", (6,))
    picture = make_picture(tmp_path / "mine.png", (24, 20))
    assert main(["demo", str(picture), "-o", str(tmp_path / "out.pdf")]) == 0
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr()
    assert "times smaller" in printed.out
    assert "recovering" in printed.err
    assert "100/100" in printed.err  # the progress bar


def test_pictures_of_every_kind(tmp_path):
    colour = make_picture(tmp_path / "colour.png", (400, 300))
    np.testing.assert_equal(demo.read_picture(colour).shape, (3, 240, 320))
    for mode, ending, channels in (
        ("L", "png", 1), ("LA", "png", 1), ("P", "gif", 3), ("RGBA", "png", 3), ("CMYK", "jpg", 3),
        ("1", "png", 1), ("I;16", "png", 1), ("F", "tif", 1),
    ):  # fmt: skip
        path = make_picture(tmp_path / f"{mode}.{ending}", mode=mode)
        picture = demo.read_picture(path)
        assert picture.shape == (channels, 40, 48), mode
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert 0.5 < picture.max() <= 1, mode


def test_transparent_becomes_white(tmp_path):
    values = np.zeros((20, 20, 4), np.uint8)
    values[:10, :, 3] = 255  # black above, nothing below
    Image.fromarray(values).save(tmp_path / "half.png")
    picture = demo.read_picture(tmp_path / "half.png")
    assert picture[:, :10].max() == 0
    assert picture[:, 10:].min() == 1


def run(*arguments):
    """Run the command line as a user does."""
    command = [sys.executable, "-m", "cupy_dcn", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def assert_one_line(printed, message):
    assert printed.count("\n") == 1, printed
    assert message in printed


def test_missing_picture(tmp_path):
    done = run("demo", tmp_path / "none.png", "-o", tmp_path / "out.png")
    assert done.returncode == 1
    assert done.stdout == ""
    assert_one_line(done.stderr, f"cupy_dcn demo: error: No such file or directory: {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_demo_never_overwrites_its_picture(tmp_path):
    picture = tmp_path / "mine.png"
    make_picture(picture)
    before = picture.read_bytes()
    done = run("demo", picture, "-o", tmp_path / "." / "mine.png")
    assert done.returncode == 1
    assert_one_line(done.stderr, "the figure would overwrite the picture")
    assert picture.read_bytes() == before


def test_no_command():
    done = run()
    assert done.returncode == 2
    assert "the following arguments are required: info|selftest|demo" in done.stderr


@pytest.mark.parametrize("command", [[], ["info"], ["selftest"], ["demo"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert "usage: python -m cupy_dcn" in capsys.readouterr().out


def write_text(path):
    path.write_text("not a picture")


def write_one_colour(path):
    Image.new("RGB", (40, 40), "red").save(path)


def write_small(path):
    make_picture(path, (15, 40))


@pytest.mark.parametrize(
    ("write", "output", "message"),
    [
        (write_text, "out.png", "cannot identify image file"),
        (write_one_colour, "out.png", "has one colour throughout"),
        (write_small, "out.png", "is 15 x 40 pixels"),
        (make_picture, "out.xyz", "out.xyz names no picture format, expected an ending among"),
        (make_picture, "no/out.png", "is no folder, expected one to write out.png to"),
    ],
)
def test_demo_errors(write, output, message, tmp_path, capsys):
    write(tmp_path / "mine.png")
    status = main(["demo", str(tmp_path / "mine.png"), "-o", str(tmp_path / output)])
    assert status == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert_one_line(printed.err, message)
    assert not (tmp_path / output).exists()


@pytest.mark.parametrize("module", ["tqdm", "matplotlib"])
def test_demo_without_its_extra(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "-o", str(tmp_path / "out.png")]) == 1
    printed = capsys.readouterr().err
    assert_one_line(printed, f"this needs {module}, which could not be imported")
    assert "pip install 'cupy_dcn[demo]'" in printed
