"""What is written runs: the README's code and every docstring's example."""

import contextlib
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import emulated_cupy
import pytest
from emulator import nvrtc
from libraries import has_numba

import cupy_dcn
from cupy_dcn import _kernels

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
try:
    nvrtc.version()
    COMPILES = True
except nvrtc.NvrtcMissing:
    COMPILES = False
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_readmes_code_runs():
    assert len(BLOCKS) >= 2
    names, with_cupy = {}, 0
    for block in BLOCKS:
        uses_cupy = re.search(r"^import cupy$", block, re.MULTILINE) is not None
        with_cupy += uses_cupy
        with emulated_cupy.install() if uses_cupy else contextlib.nullcontext():
            if COMPILES or not uses_cupy:
                exec(compile(block, "README.md", "exec"), names)
    assert with_cupy >= 1
    assert names["y"].shape == (8, 16, 26, 26)


def test_readmes_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 5
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE))
    assert {"demo", "test", "gpu-report"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


MODULES = [
    name
    for _, name, _ in pkgutil.iter_modules(cupy_dcn.__path__)
    if name != "__main__" and (has_numba() or not name.endswith("_numba"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, monkeypatch):
    module = importlib.import_module(f"cupy_dcn.{name}")
    if name != "_warmup":
        assert doctest.testmod(module).failed == 0
        return
    if not COMPILES:
        pytest.skip("no NVRTC")
    monkeypatch.setattr(_kernels, "_compiled", {})  # as in a process of its own
    with emulated_cupy.install():
        results = doctest.testmod(module)
    assert results.failed == 0
    assert results.attempted >= 3


def test_readmes_extras_exist():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"pip install '\.\[([\w-]+)\]'", README)
    assert {"cuda12x-ctk", "cuda13x-ctk"} <= set(extras)
    for extra in extras:
        assert re.search(rf"^{extra} = ", project, re.MULTILINE), extra


@pytest.mark.parametrize("name", cupy_dcn.__all__)
def test_public_docstrings_are_whole(name):
    if name in ("Gradients", "PackGradients", "SecondGradients", "Tangents"):
        return assert_sections(getattr(cupy_dcn, name).__doc__, ())
    if name in ("DeformConv2D", "DeformConv2DPack", "Plan"):
        kind = getattr(cupy_dcn, name)
        for method in (kind.forward, kind.backward):
            assert_sections(method.__doc__, ("Parameters", "Returns"))
        return assert_sections(kind.__doc__, ("Parameters", "Raises", "Examples"))
    sections = ("Parameters", "Returns", "Raises", "Examples")
    return assert_sections(getattr(cupy_dcn, name).__doc__, sections)


def assert_sections(doc, sections):
    assert doc
    for section in sections:
        assert re.search(rf"^ *{section}\n *-+$", doc, re.MULTILINE), section
