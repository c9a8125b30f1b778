"""Kernels that are built ahead: the folder, its manifest and header, and the library without NVRTC.

The emulated CuPy has no machine code to run, so there kernels come from the PTX of the folder, as
on a GPU that is newer than all it was built for.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import emulated_cupy
import emulator
import numpy as np
import pytest

import cupy_dcn
from cupy_dcn import _copy_gpu, _kernels, _launch_gpu, _nvrtc, _oracle, _prebuilt
from cupy_dcn.__main__ import _kernels_of, main
from cupy_dcn._geometry import Geometry
from cupy_dcn._manifest import launch_of
from cupy_dcn._options import parser
from cupy_dcn._specialisation import command

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))  # behind tests/

import kernels
import test_kernels

pytestmark = pytest.mark.skipif(kernels.nvrtc is None, reason="CuPy has no NVRTC to compile with")

# Two deformable groups of six channels, in the copy of eight.
LAYER = "--channels 12 --deformable-groups 2"


def build(folder, options=LAYER, arch="sm_80,sm_90"):
    assert main(["build-kernels", "--arch", arch, "--out", str(folder), *options.split()]) == 0
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("built") / "new" / "kernels")


@pytest.fixture
def copied(built, tmp_path):
    """Return a copy to spoil."""
    return shutil.copytree(built, tmp_path / "kernels")


@pytest.fixture
def fresh(monkeypatch):
    """Forget kernels and folders, as a new process would."""

    def forget():
        _prebuilt.chosen.cache_clear()
        _prebuilt.opened.cache_clear()
        _nvrtc.why_not_nvrtc.cache_clear()

    forget()
    monkeypatch.setattr(_kernels, "_compiled", {})
    yield monkeypatch
    forget()


def without_nvrtc(cupy, monkeypatch):
    """Let CuPy find no NVRTC, and so compile nothing."""

    def missing(*arguments):
        raise RuntimeError('Failure finding "libnvrtc.so".\nSearched: nowhere')

    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", missing)
    monkeypatch.setattr(emulated_cupy._compiler, "_compile", missing)


def call(cupy, channels=12, groups=2, size=3):
    """Call forward and backward; check the numbers against the formula."""
    rng = np.random.default_rng(5)
    taps, out = size * size * groups, (7 - size + 1, 6 - size + 1)
    x = rng.standard_normal((2, channels, 7, 6), np.float32)
    weight = rng.standard_normal((4, channels, size, size), np.float32)
    offset = rng.uniform(-2, 2, (2, 2 * taps, *out)).astype(np.float32)
    mask = rng.uniform(0, 1, (2, taps, *out)).astype(np.float32)
    settings = (1, 1), (0, 0, 0, 0), (1, 1), groups, 1
    expected = _oracle.forward(x, offset, weight, None, *settings, mask)
    moved = [cupy.asarray(each) for each in (x, offset, weight)]
    masked = {"mask": cupy.asarray(mask), "deformable_groups": groups}
    found = cupy_dcn.deform_conv2d(*moved, **masked)
    np.testing.assert_allclose(found.get(), expected, atol=1e-5 * np.abs(expected).max())
    gradients = cupy_dcn.deform_conv2d_backward(found, *moved, **masked)
    expected = _oracle.backward(found.get(), x, offset, weight, *settings, mask)
    found_x, expected_x = gradients.x.get(), expected[0]
    np.testing.assert_allclose(found_x, expected_x, atol=1e-5 * np.abs(expected_x).max())


def on_gpu(fresh, folder, capability="100", nvrtc=False):
    """Call on emulated arrays with the folder named; return the files that kernels came from."""
    fresh.setenv("CUPY_DCN_KERNELS", str(folder))
    with emulated_cupy.install() as cupy, emulated_cupy.configure(compute_capability=capability):
        if not nvrtc:
            without_nvrtc(cupy, fresh)
        call(cupy)
        return {name: kernel.file_path for (_, name, *_), kernel in _kernels._compiled.items()}


def test_calls_without_nvrtc(built, fresh):
    files = on_gpu(fresh, built)
    assert {"to_channels_last", "deform_im2col", "deform_backward"} <= set(files)
    for path in map(Path, files.values()):
        assert path.parent == built
        assert path.name.endswith(".sm_90.ptx")


@pytest.mark.parametrize(
    ("options", "channels", "groups", "outputs"),
    [("12 --deformable-groups 2", 12, 2, 4), ("3", 3, 1, 17), ("3 --out-channels 4", 3, 1, 4)],
)
def test_a_forward_needs_no_kernel_of_cupys(options, channels, groups, outputs, fresh, tmp_path):
    build(tmp_path, f"--channels {options} --no-backward", "sm_90")
    fresh.setenv("CUPY_DCN_KERNELS", str(tmp_path))
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, channels, 7, 6), np.float32)
    offset = rng.uniform(-2, 2, (2, 18 * groups, 5, 4)).astype(np.float32)
    mask = rng.uniform(0, 1, (2, 9 * groups, 5, 4)).astype(np.float32)
    weight = rng.standard_normal((outputs, channels, 3, 3), np.float32)
    bias = rng.standard_normal(outputs, np.float32)
    expected = _oracle.forward(
        x, offset, weight, bias, (1, 1), (0, 0, 0, 0), (1, 1), groups, 1, mask
    )
    with emulated_cupy.install() as cupy, emulated_cupy.configure(compute_capability="100"):
        without_nvrtc(cupy, fresh)
        moved = [cupy.asarray(each) for each in (x, offset, weight, bias, mask)]
        with emulated_cupy.recorded() as log:
            found = cupy_dcn.deform_conv2d(*moved[:4], mask=moved[4], deformable_groups=groups)
            cupy_dcn.deform_im2col(*moved[:2], (3, 3), mask=moved[4], deformable_groups=groups)
        found = found.get()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    operations = {each.name for each in log.of(emulated_cupy.Operation)}
    assert operations <= {"memcpy", "memset"}


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_elements_are_copied_as_cupy_would(dtype, fresh):
    geometry = Geometry(1, 5, 4, 4, 3, 3, 4, 4, 1, 1, 1, 1, 1, 1, 1, 1)
    rng = np.random.default_rng(7)
    values = rng.standard_normal((3, 2, 5, 4, 6)).astype(dtype)
    with emulated_cupy.install() as cupy:
        for target, source in (
            (values[:, 1, ::2], values[:, 0, ::2].transpose(0, 1, 3, 2).reshape(3, 3, 4, 6)),
            (values.transpose(4, 2, 0, 1, 3), values[0, :1, :1, ::-1, 0]),
            (values[0, 0, 0, :, 1:3], np.array([[2], [3], [5], [7]], dtype)),
            (values[:0], values[:0]),
        ):
            into = cupy.asarray(np.zeros_like(values))
            view = np.lib.stride_tricks.as_strided
            start = (target.__array_interface__["data"][0] - values.ctypes.data) // values.itemsize
            expected = np.zeros(values.size, dtype)
            view(expected[start:], target.shape, target.strides)[...] = source
            moved = cupy.ndarray(
                target.shape, dtype, into.data + start * values.itemsize, target.strides
            )
            given = cupy.asarray(source)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_copy_gpu, "why_not_nvrtc", lambda cupy: "missing")
                _copy_gpu.assign(moved, given, geometry)
            np.testing.assert_array_equal(into.get().ravel(), expected)


def test_machine_code_is_preferred(built, fresh):
    # Which the emulated CuPy cannot run, and says so.
    with pytest.raises(NotImplementedError, match="no cubin"):
        on_gpu(fresh, built, "90")


def test_what_a_folder_lacks_is_compiled(built, fresh):
    assert set(on_gpu(fresh, built, "75", nvrtc=True).values()) == {None}


def test_without_nvrtc_the_error_says_what_to_do(built, fresh):
    with pytest.raises(RuntimeError) as caught:
        on_gpu(fresh, built, "75")
    message = str(caught.value)
    assert "\n" not in message
    assert f"copy_elements for this layer and GPU, which {built} lacks, must be" in message
    assert 'CuPy finds no NVRTC (Failure finding "libnvrtc.so")' in message
    assert "--arch sm_75 --channels 12 --dtype float32 --deformable-groups 2" in message


@pytest.mark.parametrize(
    "layer",
    [
        "--channels 12 --kernel-size 1x2 --deformable-groups 3 --groups 2 --dtype float32",
        "--channels 8 --dtype float16 --offset-dtype float32 --wide --groups 8 --no-mask",
        "--channels 32 --dtype float64 --deterministic",
    ],
)
def test_the_command_of_an_error_builds_the_kernel(layer):
    # Not compiled here: what the command asks for has the kernel that was missing.
    def kernels_of(line):
        options = parser().parse_args(line)
        return _kernels_of(options)

    asked = kernels_of(["build-kernels", "--arch", "sm_80", "--out", "DIR", *layer.split()])
    for name, macros in asked:
        if name in ("deform_im2col", "deform_backward", "deform_col2im_ordered"):
            line = re.fullmatch("`python -m cupy_dcn (.*)`", command(name, macros, "80"))[1]
            assert (name, macros) in kernels_of(line.split())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.update(version="0.0.9"), r"is of cupy_dcn 0\.0\.9, expected"),
        (lambda m: m.update(sources="0" * 64), "is of other CUDA sources than those of this"),
        (lambda m: m.update(format=2), "is no manifest of kernels .*expected 1"),
        (lambda m: m.pop("modules"), "is no manifest of kernels"),
        (lambda m: m.update(modules=3), "is no manifest of kernels"),
        (lambda m: m.update(version=3), "is no manifest of kernels"),
        (lambda m: name_file(m, "../deform.ptx"), r"'\.\./deform\.ptx' is no name of a file"),
        (lambda m: name_file(m, "/etc/passwd"), "'/etc/passwd' is no name of a file"),
        (lambda m: name_file(m, ".."), r"'\.\.' is no name of a file"),
        (lambda m: name_file(m, "none.ptx"), r"none\.ptx cannot be read \(No such file"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(spoil, message, copied, fresh):
    manifest = json.loads((copied / "manifest.json").read_text())
    spoil(manifest)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RuntimeError, match=message) as caught:
        on_gpu(fresh, copied, nvrtc=True)
    assert "build-kernels" in str(caught.value)


def name_file(manifest, name):
    for module in manifest["modules"]:
        for entry in module["ptx"].values():
            entry["file"] = name


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(content, copied, fresh):
    (copied / "manifest.json").write_bytes(content)
    with pytest.raises(RuntimeError, match="is no manifest of kernels"):
        on_gpu(fresh, copied)


def test_a_changed_file_is_refused(copied, fresh):
    for path in copied.glob("*.ptx"):
        path.write_text(path.read_text() + "// more\n")
    with pytest.raises(RuntimeError, match="is not what its manifest says"):
        on_gpu(fresh, copied)


def test_a_missing_folder_is_named(tmp_path, fresh):
    with pytest.raises(RuntimeError, match=r"none.manifest\.json cannot be read \(No such file"):
        on_gpu(fresh, tmp_path / "none")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ("80", "sm_80.cubin"), ("89", "sm_86.cubin"), ("90", "sm_90.cubin"), ("75", None),
        ("87", None), ("100", "sm_90.ptx"), ("103", "sm_90.ptx"), ("121", "sm_120.cubin"),
    ],
)  # fmt: skip
def test_which_file_runs_on_a_gpu(capability, expected):
    cubins = {f"sm_{n}": {"file": f"sm_{n}.cubin"} for n in (80, 86, 90, 120)}
    ptx = {f"sm_{n}": {"file": f"sm_{n}.ptx"} for n in (90, 120)}
    found = _prebuilt.suitable(cubins, ptx, capability)
    assert found == (None if expected is None else {"file": expected})


def test_files_are_what_the_manifest_says(built):
    manifest = json.loads((built / "manifest.json").read_text())
    entries = [
        (kind, architecture, entry)
        for module in manifest["modules"]
        for kind in ("cubin", "ptx")
        for architecture, entry in module[kind].items()
    ]
    for kind, architecture, entry in entries:
        content = (built / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        if kind == "cubin":
            flags = int.from_bytes(content[48:52], "little")  # e_flags of ELF: the architecture
            assert content[:4] == b"\x7fELF"
            assert int(architecture[3:]) in (flags & 0xFF, flags >> 8 & 0xFF)
        else:
            assert f".target {architecture}" in content.decode()
    names = {entry["file"] for *_, entry in entries} | {"manifest.json", "cupy_dcn_kernels.h"}
    assert {path.name for path in built.iterdir()} == names


def test_parameters_are_those_of_the_compiler(built):
    manifest = json.loads((built / "manifest.json").read_text())
    sizes = {"int": 4, "int32": 4, "Geometry": 27 * 4, "Walk": 15 * 4}
    for module in manifest["modules"]:
        [ptx] = (built / entry["file"] for entry in module["ptx"].values())
        found = emulator.Module(ptx.read_text()).kernels
        assert set(found) == set(module["kernels"])
        for name, kernel in module["kernels"].items():
            expected = [
                8 if each["type"].endswith("*") else sizes[each["type"]]
                for each in kernel["parameters"]
            ]
            assert [size for _, size, _ in found[name].parameters] == expected


IMAGES, SIZE = 2, 19


def grid_of(launch, macros, odd, points):
    """Return the blocks that a rule of the manifest says, for an output of the image's size."""
    each, parts, groups = launch["per_block"], launch["parts"], macros.deformable_groups
    rows, columns = ((SIZE + 2 - part) // 2 for part in divmod(odd, 2))
    cells, counted = (SIZE + 3) * (SIZE + 1), IMAGES * groups * (SIZE + 3) * (SIZE + 1)

    def tiles():
        across = -(-SIZE // launch["tile_columns"])
        return across * groups, -(-SIZE // launch["tile_rows"]), IMAGES

    return {
        "tiles": tiles,
        "tiles_down": tiles,
        "cells": lambda: (-(-cells // each) * parts, 1, IMAGES),
        "pixels": lambda: (-(-SIZE * SIZE // each) * parts, 1, IMAGES),
        "points": lambda: (-(-(points or counted) // each), 1, 1),
        "parity": lambda: (-(-rows * columns // each) * groups, parts, IMAGES),
    }[launch["rule"]]()


@pytest.mark.parametrize(
    ("channels", "groups", "deformable_groups", "deterministic"),
    [(32, 1, 1, False), (32, 1, 1, True), (70, 1, 2, False), (12, 12, 2, False), (3, 1, 1, True)],
)
def test_the_rules_are_those_of_the_librarys_launches(
    channels, groups, deformable_groups, deterministic, fresh
):
    rng = np.random.default_rng(8)
    points = IMAGES * 9 * deformable_groups * SIZE * SIZE
    with emulated_cupy.install() as cupy, emulated_cupy.configure(execute=False):
        x = cupy.asarray(rng.standard_normal((IMAGES, channels, SIZE, SIZE), np.float32))
        offset = cupy.zeros((IMAGES, 18 * deformable_groups, SIZE, SIZE), np.float32)
        weight = cupy.ones((channels, channels // groups, 3, 3), np.float32)
        settings = {"padding": 1, "groups": groups, "deformable_groups": deformable_groups}
        with emulated_cupy.recorded() as log:
            cupy_dcn.deform_conv2d(x, offset, weight, **settings)
            cupy_dcn.deform_conv2d_backward(
                x, x, offset, weight, **settings, deterministic=deterministic
            )
    macros, odd = dict(_kernels.compiled()), -1
    for launched in log.launches:
        name = launched.name
        launch = launch_of(name, macros[name])
        odd += launch["rule"] == "parity"
        counted = 0 if name == "start_cells" else points
        grid = grid_of(launch, macros[name], max(odd, 0), counted)
        assert (name, launched.grid) == (name, grid)
        assert launched.block[0] == launch["threads"]
        assert launched.shared_bytes == launch["dynamic_shared_bytes"] == 0


def test_the_struct_is_the_sources():
    assert test_kernels.fields_in_cuda() == list(_launch_gpu.FIELDS)


def test_building_again_gives_the_same_bytes(tmp_path):
    layers = [f"--channels {n} --no-backward --kernel-size 1 --out-channels 17" for n in (3, 5)]
    folders = [tmp_path / name for name in "ab"]
    for folder, order in zip(folders, (layers, layers[::-1]), strict=True):
        for options in order:
            build(folder, options, "sm_90")
    files = [{path.name: path.read_bytes() for path in each.iterdir()} for each in folders]
    assert files[0] == files[1]
    build(folders[0], layers[0], "sm_90")
    assert {path.name: path.read_bytes() for path in folders[0].iterdir()} == files[1]


def test_a_build_that_fails_leaves_a_whole_folder(copied, monkeypatch, capsys):
    before = {path.name: path.read_bytes() for path in copied.iterdir()}

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    line = f"build-kernels --arch sm_80 --channels 3 --out {copied}"
    assert main(line.split()) == 1
    assert capsys.readouterr().err.startswith("cupy_dcn: error: No space left on device: ")
    assert {path.name: path.read_bytes() for path in copied.iterdir()} == before


def test_a_folder_of_another_version_is_not_added_to(copied, capsys):
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"version": "9.9"}))
    assert main(f"build-kernels --arch sm_80 --channels 3 --out {copied}".split()) == 1
    assert "is of cupy_dcn 9.9, expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ("--arch sm_11", 1, "sm_11 is no architecture that this NVRTC compiles the kernels for"),
        ("--arch 90", 2, "argument --arch: '90' is no architecture, expected one such as sm_90"),
        ("--arch sm_90 --groups 3", 1, "cupy_dcn: error: the layer has 8 channels"),
        ("--arch sm_90 --groups x", 2, "argument --groups: expected whole numbers, got 'x'"),
        ("", 2, "the following arguments are required: --arch"),
    ],
)
def test_errors_are_one_line(options, status, message, tmp_path, capsys):
    line = f"build-kernels --channels 8 --out {tmp_path / 'out'} {options}"
    try:
        ended = main(line.split())
    except SystemExit as stop:
        ended = stop.code
    assert ended == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("cupy_dcn: error: ")
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_folders_place(tmp_path, capsys):
    (tmp_path / "out").touch()
    assert main(f"build-kernels --arch sm_80 --channels 3 --out {tmp_path / 'out'}".split()) == 1
    assert "not a folder to write kernels to" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "out"
    assert main(f"build-kernels --arch sm_80 --channels 3 --out {folder}".split()) == 1
    assert capsys.readouterr().err == f"cupy_dcn: error: Not a directory: {folder}\n"


def test_without_nvrtc_nothing_is_built(tmp_path, capsys, fresh):
    with emulated_cupy.install() as cupy:
        without_nvrtc(cupy, fresh)
        assert main(f"build-kernels --arch sm_80 --channels 3 --out {tmp_path}".split()) == 1
    assert 'CuPy finds no NVRTC (Failure finding "libnvrtc.so")' in capsys.readouterr().err


def test_without_cupy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(f"build-kernels --arch sm_80 --channels 3 --out {tmp_path}".split()) == 1
    assert "compiled through CuPy, which could not be imported" in capsys.readouterr().err


def test_info_names_the_folder(built, fresh, capsys):
    fresh.setenv("CUPY_DCN_KERNELS", str(built))
    assert main(["info"]) == 0
    modules = len(list(built.glob("*.ptx")))
    assert f"{built}, {modules} modules for sm_80, sm_90\n" in capsys.readouterr().out
