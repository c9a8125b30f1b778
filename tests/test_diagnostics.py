"""The command line and the report of a GPU machine, and what each says when something is wrong."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import emulated_cupy
import ml_dtypes
import numpy as np
import pytest
from emulator import nvrtc
from libraries import cupy_has_bfloat16
from PIL import Image

import cupy_dcn
from cupy_dcn import _kernels, demo, diagnostics
from cupy_dcn.__main__ import main

# Behind tests/, which has a cases.py as well.
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import gpu_report
import kernels

STAGES = list(diagnostics._STAGES)


def make_picture(path, size=(48, 40), mode="RGB"):
    """Write a picture of smooth blobs, which a warp changes everywhere."""
    x, y = np.meshgrid(*(np.linspace(0, 4 * np.pi, length) for length in size))
    planes = [np.sin(x + phase) * np.cos(y * 0.8 + phase) for phase in range(3)]
    values = np.uint8(127.5 + 127 * np.stack(planes, axis=-1))
    Image.fromarray(values).convert(mode).save(path)
    return path


needs_bfloat16 = pytest.mark.skipif(
    not cupy_has_bfloat16(), reason="CuPy has no bfloat16 beside this release of NumPy"
)


@pytest.fixture
def stand_in(monkeypatch):
    """Put emulated CuPy under CuPy's name, with no kernel compiled yet in this process."""
    try:
        nvrtc.version()
    except nvrtc.NvrtcMissing as error:
        pytest.skip(str(error))
    monkeypatch.setattr(_kernels, "_compiled", {})
    with emulated_cupy.install() as cupy:
        yield cupy


@pytest.fixture
def no_gpu(monkeypatch):
    """Make CuPy find no GPU, whatever the machine has."""

    def refuse():
        raise RuntimeError("no\ndriver")

    with emulated_cupy.install() as cupy:
        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", refuse)
        yield


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def test_info(capsys):
    assert main(["info"]) == 0
    first, *block, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("```text", "```")
    lines = dict(line.split(None, 1) for line in block)
    assert lines["cupy_dcn"] == cupy_dcn.__version__
    assert lines["Python"].startswith(platform.python_version())
    assert lines["NumPy"] == np.__version__
    assert lines["SciPy"] == importlib.metadata.version("scipy")
    assert lines["matplotlib"] == importlib.metadata.version("matplotlib")
    assert lines["threads"] == str(diagnostics.thread_count())
    assert {
        "platform",
        "CuPy",
        "BLAS",
        "Numba",
        "ml_dtypes",
        "threadpoolctl",
        "tqdm",
    } <= lines.keys()


def info_lines(capsys):
    diagnostics.info()
    return {line[:14].strip(): line[15:] for line in capsys.readouterr().out.splitlines()}


def test_info_of_gpus(stand_in, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    with emulated_cupy.configure(compute_capability="86", total_memory=12 * 2**30):
        lines = info_lines(capsys)
    for device in range(2):
        expected = "Emulated device, compute capability 8.6, 12.0 GiB"
        assert lines[f"GPU {device}"] == expected
    version = ".".join(map(str, stand_in.cuda.nvrtc.getVersion()))
    assert lines["CUDA"] == f"driver {version}, runtime {version}, NVRTC {version}"
    assert Path(lines["CUDA sources"]).expanduser() == _kernels.folder()
    assert lines["built ahead"] == "nothing, CUPY_DCN_KERNELS is not set"
    assert lines["kernel cache"] == f"{tmp_path / 'cache'}, not there yet"
    assert lines["compiled here"] == "no kernel so far in this process"


def test_info_counts_kernels(stand_in, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    for name in ("a.cubin", "b.cubin", "b.cu"):
        (tmp_path / name).touch()
    cupy_dcn.warmup(2, out_channels=17, backward=False)
    cupy_dcn.warmup(3, out_channels=8, backward=False)
    lines = info_lines(capsys)
    assert lines["kernel cache"] == f"{tmp_path}, 2 kernels, CuPy's own included"
    assert lines["compiled here"] == (
        "to_channels_last (float, 2), deform_im2col (float, 2),"
        " to_channels_last (float, 3), deform_im2col (float, 3), deform_direct (float, 3)"
    )
    monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", "1")
    assert info_lines(capsys)["kernel cache"].startswith("in memory")


def test_info_without_a_gpu(no_gpu, capsys):
    lines = info_lines(capsys)
    assert lines["GPU"] == "none usable: CuPy finds no GPU (no driver)"
    assert "CUDA" not in lines


def test_info_without_cupy(no_cupy, capsys):
    assert info_lines(capsys)["GPU"].startswith("none usable: CuPy could not be imported (")


def test_info_of_a_broken_machine(stand_in, monkeypatch, capsys):
    def broken(device):
        raise OSError("lost\nit")

    monkeypatch.setattr(stand_in.cuda.runtime, "getDeviceProperties", broken)
    monkeypatch.setattr(_kernels, "folder", lambda: 1 // 0)
    lines = info_lines(capsys)
    assert lines["GPU 1"] == "unknown: OSError: lost it"
    assert lines["CUDA sources"].startswith("unknown: ZeroDivisionError")


def test_cupys_own_kernel_cache_is_named(monkeypatch):
    compiler_cache = pytest.importorskip("cupy.cuda._compiler_cache")
    monkeypatch.delenv("CUPY_CACHE_DIR", raising=False)
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    assert diagnostics._kernel_cache().startswith(
        compiler_cache._default_cache_dir.replace(str(Path.home()), "~")
    )


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


def test_selftest_passes(no_gpu, capsys):
    assert main(["selftest"]) == 0
    header, *rows, unchecked, verdict = capsys.readouterr().out.splitlines()
    assert header.split() == ["arrays", "stage", "dtype", "error", "limit", "ok"]
    assert unchecked == "CuPy    not checked: CuPy finds no GPU (no driver)"
    assert verdict == "all agree"
    assert_rows(rows, {"NumPy"})


@needs_bfloat16
def test_selftest_passes_on_a_gpu(stand_in, capsys):
    assert main(["selftest"]) == 0
    _, *rows, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "all agree"
    assert_rows(rows, {"NumPy", "CuPy"})


def assert_rows(rows, libraries):
    """Check that all was compared, and had an error: one of exactly 0 would mean it was not."""
    found = {tuple(cells[:3]): cells for cells in map(str.split, rows)}
    assert len(found) == len(rows)
    assert set(found) == {
        (library, stage, dtype)
        for library in libraries
        for stage in STAGES
        for dtype in diagnostics.LIMITS
    }
    for (library, _, dtype), (*_, error, limit, verdict) in found.items():
        half_columns = library == "CuPy" and dtype.endswith("float16")
        assert float(limit) == diagnostics.LIMITS[dtype] * (2 if half_columns else 1)
        assert 0 < float(error) <= float(limit)
        assert verdict == "yes"


def test_selftest_on_a_cupy_without_bfloat16(stand_in, monkeypatch, capsys):
    right = stand_in.asarray

    def asarray(array):
        if array.dtype == ml_dtypes.bfloat16:
            raise ValueError("Unsupported dtype bfloat16")
        return right(array)

    monkeypatch.setattr(stand_in, "asarray", asarray)
    monkeypatch.setattr(diagnostics, "_SIZES", diagnostics._SIZES[:1])
    assert main(["selftest"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "CuPy    every stage             bfloat16  not checked: Unsupported dtype bfloat16" in lines
    )


@pytest.mark.parametrize("library", ["NumPy", "CuPy"])
def test_selftest_says_whose_arrays_are_wrong(library, stand_in, monkeypatch, capsys):
    right = cupy_dcn.deform_im2col

    def wrong(x, *args, **kwargs):
        columns = right(x, *args, **kwargs)
        return columns * 1.001 if isinstance(x, np.ndarray) == (library == "NumPy") else columns

    monkeypatch.setattr(cupy_dcn, "deform_im2col", wrong)
    monkeypatch.setattr(diagnostics, "_dtypes", lambda: [np.dtype(np.float64)])
    assert main(["selftest"]) == 1
    [row] = [line for line in capsys.readouterr().out.splitlines() if " NO" in line]
    assert row.split()[:2] == [library, "deform_im2col"]


def slightly_wrong(result):
    """Change the last array of a result by a share of its largest value that float32 must see."""
    if not isinstance(result, tuple):
        return result + result.dtype.type(1e-4) * np.abs(result).max()
    *others, last = (each for each in result if each is not None)
    padding = [None] * (len(result) - len(others) - 1)
    return (*others, slightly_wrong(last), *padding)


@pytest.mark.parametrize("stage", STAGES)
def test_selftest_finds_a_wrong_stage(stage, no_gpu, monkeypatch, capsys):
    right = getattr(cupy_dcn, stage)
    monkeypatch.setattr(cupy_dcn, stage, lambda *a, **b: slightly_wrong(right(*a, **b)))
    monkeypatch.setattr(diagnostics, "_dtypes", lambda: [np.dtype(np.float32)])
    assert main(["selftest"]) == 1
    *_, verdict = lines = capsys.readouterr().out.splitlines()
    assert verdict.startswith("SOME DISAGREE")
    assert [line.split()[1] for line in lines if " NO" in line] == [stage]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda *a, **b: np.full((2, 2, 5, 6), np.nan), "nan"),
        (lambda *a, **b: np.zeros(3, np.float32), "a result is float32 (3,), due (2, 2, 5, 6)"),
        (lambda *a, **b: 1 // 0, "ZeroDivisionError: "),
    ],
)
def test_selftest_finds_a_broken_stage(broken, reason, no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(cupy_dcn, "deform_conv2d", broken)
    monkeypatch.setattr(diagnostics, "_dtypes", lambda: [np.dtype(np.float64)])
    monkeypatch.setattr(diagnostics, "_SIZES", diagnostics._SIZES[:1])
    assert main(["selftest"]) == 1
    [row] = [line for line in capsys.readouterr().out.splitlines() if " NO" in line]
    assert row.startswith("NumPy   deform_conv2d ")
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


def test_animation_of_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "CELLS", (6,))
    monkeypatch.setattr(demo, "FRAMES", 5)
    picture = make_picture(tmp_path / "mine.png", (24, 20))
    paths = [str(tmp_path / name) for name in ("out.png", "out.gif")]
    assert main(["demo", str(picture), "-o", paths[0], "--animation", paths[1]]) == 0
    assert f"animation            {paths[1]}" in capsys.readouterr().out
    with Image.open(paths[1]) as animation:
        assert animation.n_frames == 6  # the start, and each twentieth of a hundred steps
        frames = []
        for number in (0, 5):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB"), np.float32))
        assert np.abs(frames[1] - frames[0]).max() > 50
    assert main(["demo", str(picture), "-o", paths[0], "--animation", paths[0]]) == 1
    assert "names no GIF, expected an ending of .gif" in capsys.readouterr().err


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
    assert_one_line(done.stderr, f"cupy_dcn: error: No such file or directory: {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_demo_never_overwrites_its_picture(tmp_path):
    picture = tmp_path / "mine.png"
    make_picture(picture)
    before = picture.read_bytes()
    done = run("demo", picture, "-o", tmp_path / "." / "mine.png")
    assert done.returncode == 1
    assert_one_line(done.stderr, "the figure would overwrite the picture")
    assert picture.read_bytes() == before


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)  # as of `| head` that has seen enough
    command = [sys.executable, "-m", "cupy_dcn", "info"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, env=environment, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_an_interrupt_has_its_own_status(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnostics, "info", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == ""


def test_no_command():
    done = run()
    assert done.returncode == 2
    assert "cupy_dcn: error: the following arguments are required: COMMAND; see" in done.stderr


@pytest.mark.parametrize(
    "command", [[], ["info"], ["selftest"], ["warmup"], ["build-kernels"], ["demo"]]
)
def test_help(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "usage: python -m cupy_dcn" in printed
    assert "\nexample" in printed
    assert max(map(len, printed.splitlines())) < 80


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


def call(cupy, channels, kernel, dtype, offset=None, masked=True, groups=1, deformable_groups=1):
    """Call forward and backward with one layer, on arrays of some size."""
    taps, size = deformable_groups * kernel[0] * kernel[1], (4, 5)
    out = size[0] - kernel[0] + 1, size[1] - kernel[1] + 1
    offset = dtype if offset is None else offset
    x = cupy.ones((2, channels, *size), dtype)
    weight = cupy.ones((groups, channels // groups, *kernel), dtype)
    settings = {
        "offset": cupy.zeros((2, 2 * taps, *out), offset),
        "mask": cupy.ones((2, taps, *out), offset) if masked else None,
        "groups": groups,
        "deformable_groups": deformable_groups,
    }
    output = cupy_dcn.deform_conv2d(x, weight=weight, **settings)
    yield
    cupy_dcn.deform_conv2d_backward(output, x, weight=weight, **settings)


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(
    ("channels", "kernel", "dtype", "offset", "masked", "groups", "deformable_groups"),
    [
        (6, (3, 2), "float32", None, True, 2, 3),
        (5, (1, 1), "float64", None, False, 1, 1),
        (8, (3, 3), "float16", "float32", True, 1, 2),
        (4, (2, 2), "bfloat16", "float32", False, 4, 1),
        (16, (3, 3), "float32", None, True, 1, 1),
    ],
)
def test_warmup_compiles_what_calls_use(
    channels, kernel, dtype, offset, masked, groups, deformable_groups, backward, stand_in
):
    settings = {
        "groups": groups, "deformable_groups": deformable_groups, "mask": masked, "dtype": dtype,
        "offset_dtype": offset, "mask_dtype": offset, "backward": backward,
    }  # fmt: skip
    # Besides the usual ones: without columns, and over ordered points, whichever calls take.
    count = (4 if backward else 2) + (groups == channels) + 4 * (backward and channels == 16)
    assert cupy_dcn.warmup(channels, kernel, **settings) == count
    before = _kernels.compiled()
    assert len(before) == count
    layer = (channels, kernel, kernels.dtype_of(dtype), offset, masked, groups, deformable_groups)
    steps = call(stand_in, *layer)
    next(steps)
    assert _kernels.compiled() == before
    assert next(steps, None) is None
    assert (_kernels.compiled() == before) == backward
    assert cupy_dcn.warmup(channels, kernel, **settings) == 0


@pytest.mark.parametrize("channels", [5, 16])
def test_warmup_compiles_what_a_deterministic_backward_uses(channels, stand_in):
    x = stand_in.ones((2, channels, 4, 5), "float32")
    weight = stand_in.ones((2, channels, 1, 1), "float32")
    offset = stand_in.zeros((2, 2, 4, 5), "float32")
    cupy_dcn.warmup(channels, 1, out_channels=2, mask=False, deterministic=True)
    before = _kernels.compiled()
    output = cupy_dcn.deform_conv2d(x, offset, weight)
    cupy_dcn.deform_conv2d_backward(output, x, offset, weight, deterministic=True)
    assert _kernels.compiled() == before


def test_warmup_is_for_the_current_device(stand_in):
    asked = []

    class Kernel:
        kernel = property(lambda self: asked.append(stand_in.cuda.Device().id))

    class Module:
        def __init__(self, **given):
            pass

        def get_function(self, name):
            return Kernel()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in, "RawModule", Module)
        assert cupy_dcn.warmup(12, backward=False) == 2
        with stand_in.cuda.Device(1):
            assert cupy_dcn.warmup(12, backward=False) == 0
    assert asked == [0, 0, 1, 1]  # a kernel known from one device is loaded on the other, too


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"channels": 2.5}, TypeError, "channels must be an int, got 2.5; it is C_in, x.shape[1]"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0; it is C_in"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be at least 1, got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size has 3 values, expected an int or"),
        ({"out_channels": 2.5}, TypeError, "out_channels must be an int, got 2.5; it is C_out"),
        ({"out_channels": 0}, ValueError, "out_channels must be at least 1, got 0; it is C_out"),
        (
            {"out_channels": 6, "groups": 4},
            ValueError,
            "out_channels is 6, expected a positive multiple of groups = 4; it is C_out, weight",
        ),
        ({"groups": 3}, ValueError, "the layer has 8 channels, expected a multiple of groups = 3"),
        ({"deformable_groups": 3}, ValueError, "expected a multiple of deformable_groups = 3"),
        ({"dtype": "int8"}, TypeError, "dtype must be float64, float32, float16 or bfloat16"),
        ({"dtype": None}, TypeError, "got None; it is that of an array"),
        ({"dtype": "nonsense"}, TypeError, "got 'nonsense'"),
        ({"dtype": ">f4"}, TypeError, "got '>f4'"),
        ({"offset_dtype": "float64"}, TypeError, "offset_dtype is float64, expected x's dtype"),
        (
            {"dtype": "float16", "mask_dtype": "float64"},
            TypeError,
            "mask_dtype is float64, expected x's dtype float16 or float32; None means x's",
        ),
        ({"mask": np.ones(3)}, TypeError, "mask must be True or False, got an array of shape (3,)"),
        ({"backward": 1}, TypeError, "backward must be True or False, got 1"),
        ({"deterministic": None}, TypeError, "deterministic must be True or False, got None"),
    ],
)
def test_warmup_errors(arguments, error, message, stand_in):
    with pytest.raises(error) as caught:
        cupy_dcn.warmup(**{"channels": 8, **arguments})
    assert message in str(caught.value)
    assert _kernels.compiled() == []


def test_warmup_without_a_gpu(no_gpu):
    with pytest.raises(RuntimeError, match=r"^CuPy finds no GPU \(no driver\)$"):
        cupy_dcn.warmup(8)


def test_warmup_with_no_device(stand_in, monkeypatch):
    monkeypatch.setattr(stand_in.cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(RuntimeError, match="CuPy finds no GPU"):
        cupy_dcn.warmup(8)


def test_warmup_without_cupy(no_cupy):
    with pytest.raises(
        ImportError, match=r"CuPy could not be imported \(.*'cupy_dcn\[cuda13x-ctk\]'"
    ):
        cupy_dcn.warmup(8)


def test_warmup_of_bfloat16_without_ml_dtypes(stand_in, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match="bfloat16 needs ml_dtypes"):
        cupy_dcn.warmup(8, dtype="bfloat16")


def test_warmup_on_the_command_line(stand_in, capsys):
    options = "--channels 6,7 --kernel-size 3,1x2 --dtype float16,bfloat16 --offset-dtype float32"
    assert main(["warmup", *options.split(), "--out-channels", "17", "--no-mask"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert lines[0].startswith("6 channels, 3x3, float16: 4 kernels loaded in ")
    assert lines[-1].startswith("7 channels, 1x2, bfloat16: 2 kernels loaded in ")
    macros = {macros for name, macros in _kernels.compiled() if name == "deform_im2col"}
    assert {(m.masked, m.offset_data) for m in macros} == {(0, "float")}
    assert {(m.kernel_height, m.kernel_width) for m in macros} == {(3, 3), (1, 2)}
    one = "--channels 8 --groups 2 --deformable-groups 4 --mask-dtype float32 --dtype float16"
    assert main(["warmup", *one.split(), "--no-backward"]) == 0
    assert "8 channels, 3x3, float16: 2 kernels" in capsys.readouterr().out
    macros = _kernels.compiled()[-1][1]
    assert (macros.groups, macros.deformable_groups, macros.mask_data) == (2, 4, "float")


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ("--channels 8", 1, "cupy_dcn: error: CuPy finds no GPU (no driver)"),
        ("--channels 8 --groups 3", 1, "cupy_dcn: error: the layer has 8 channels"),
        ("--channels 8 --dtype int8", 1, "cupy_dcn: error: dtype must be"),
        ("--channels 8,x", 2, "argument --channels: expected whole numbers, got 'x'"),
        ("--channels 8 --kernel-size 3x3x3", 2, "expected kernel sizes such as 3 or 3x5"),
        ("", 2, "the following arguments are required: --channels"),
    ],
)
def test_warmup_errors_on_the_command_line(options, status, message, no_gpu, capsys):
    try:
        ended = main(["warmup", *options.split()])
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    assert message in capsys.readouterr().err


def capture(stream, call):
    with emulated_cupy.capturing(stream):
        call()


JUNIT = """<testsuites><testsuite name="pytest">
<testcase name="test_a[cupy-case]"/><testcase name="test_b[cupy]"><skipped message="no"/></testcase>
<testcase name="test_c[cupy-x]"><failure message="assert 1 == 2&#10;more">text</failure></testcase>
<testcase name="test_cupy_named[numpy]"/>
</testsuite></testsuites>"""


@pytest.fixture
def tools(stand_in):
    def run_tests(path):
        path.write_text(JUNIT)
        return "ran"

    case = gpu_report.Case(1, 4, 6, 5, 4, 3, 2)
    with emulated_cupy.configure(l2_bytes=64):
        yield gpu_report.Tools(
            stand_in, small=(case,), timed=(case._replace(masked=False),), rounds=2, budgets=(1,),
            layers=kernels.COMMON[:1], timed_dtypes=("float32", "bfloat16"), capture=capture,
            elapsed=lambda start, end: 0.25 * (start.ptr < end.ptr), run_tests=run_tests,
        )  # fmt: skip


def section(text, title):
    """Return the cells of the tables of one section, row by row, and its other lines."""
    body = text.split(f"\n## {title}\n\n")[1].split("\n## ")[0]
    lines = [line for line in body.splitlines() if line]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line[0] == "|"]
    return rows, [line for line in lines if line[0] != "|"]


@needs_bfloat16
def test_report_of_a_gpu(tools, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnostics, "_SIZES", diagnostics._SIZES[:1])
    assert gpu_report.main(["-o", str(tmp_path / "r.md")], tools) == 0
    assert f"The report is in {tmp_path / 'r.md'}" in capsys.readouterr().out
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith(f"# cupy_dcn {cupy_dcn.__version__} on a GPU\n")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert titles == list(gpu_report.SECTIONS)
    assert any("Emulated device" in line for line in section(text, "Machine")[1])
    assert section(text, "Self-test")[1][-1] == "All agree."

    rows, _ = section(text, "The operator's tests on CuPy arrays")
    assert rows[0] == ["passed", "failure", "error", "skipped"]
    assert rows[2] == ["1", "1", "0", "1"]
    assert rows[-1] == ["`test_c[cupy-x]`", "assert 1 == 2"]

    if kernels.nvrtc is not None:
        rows, _ = section(text, "Kernels")
        assert rows[0][5] == "sm_90"
        without = ("deform_direct", "deform_direct_backward")
        sampling = [name for name in kernels.SAMPLING if name not in without]
        assert [row[0] for row in rows[2:]] == [
            *sampling, *kernels.ORDERING, *kernels.TRANSPOSING
        ]  # fmt: skip

    rows, _ = section(text, "Equality and repetition")
    assert [row[1] for row in rows[2:]] == list(gpu_report.DTYPES)
    for row in rows[2:]:
        limit = 8 * diagnostics.LIMITS[row[1]]
        assert all(float(error) <= limit for error in row[2:-1])
        assert row[-1] == "none"
    assert float(rows[-1][2]) > 1e-4  # bfloat16 differs, so it was compared

    rows, others = section(text, "Times")
    assert [row[1:4] for row in rows[2:]] == [[d, "0.250", "0.250"] for d in tools.timed_dtypes]
    assert "Medians of 2 rounds; backward: all gradients." in others
    rows, _ = section(text, "Host")
    assert len(rows) == 5
    assert all(int(row[1]) >= int(row[2]) > 0 for row in rows[2:])
    rows, _ = section(text, "Memory")
    assert rows[2][1] == "1"
    assert 0 <= float(rows[2][2]) <= float(rows[2][3]) < 2
    rows, _ = section(text, "Graph capture")
    outcomes = dict(rows[2:])
    assert outcomes["deform_im2col"] == outcomes["deform_coord_grad"] == "captured and replayed"
    assert outcomes["deform_conv2d"].startswith("NotImplementedError: calling cuBLAS API")
    rows, _ = section(text, "TF32")
    exact, rounded = (float(row[2]) for row in rows[2:])
    assert rounded > 100 * exact > 0


def test_report_sees_other_bits(tools, monkeypatch):
    results = gpu_report.results_of
    counts = iter(range(100))

    def noisy(library, *args):
        found = results(library, *args)
        if library is not np:
            found["x"] = found["x"] + np.array(next(counts) * 1e-3, found["x"].dtype)
        return found

    monkeypatch.setattr(gpu_report, "results_of", noisy)
    rows = [line for line in gpu_report.equality(tools) if "float64" in line and "DG" in line]
    assert rows[0].split("|")[-2].strip() == "x"


def test_report_goes_on_where_a_section_breaks(tools):
    sections = {"First": lambda tools: 1 // 0, "Second": lambda tools: ["fine"]}
    text, broken = gpu_report.report(tools, sections)
    assert broken == ["First"]
    assert "ZeroDivisionError" in section(text, "First")[1][-2]
    assert section(text, "Second")[1] == ["fine"]


def test_report_of_tests_that_did_not_run(tools):
    tools.run_tests = lambda path: "no such option"
    assert gpu_report.tests(tools) == ["**pytest did not run**", "```text", "no such option", "```"]
    tools.run_tests = lambda path: path.write_text("<testsuites/>") and "nothing matched"
    assert "**no test ran on CuPy**" in gpu_report.tests(tools)


def test_report_runs_the_operators_tests():
    for name in gpu_report.TESTS:
        source = (gpu_report.ROOT / "tests" / f"test_{name}.py").read_text(encoding="utf-8")
        assert "library" in source, name


def test_report_without_a_gpu(no_gpu, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpu_report.main([]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert_one_line(printed.err, "no report: CuPy finds no GPU (no driver)")
    assert list(tmp_path.iterdir()) == []
