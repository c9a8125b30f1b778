"""What is written runs: the code of the README and of docs/, and every docstring's example."""

import contextlib
import doctest
import importlib.util
import pkgutil
import re
from pathlib import Path

import emulated_cupy
import pytest
from emulator import nvrtc
from libraries import has_numba

import cupy_dcn
from cupy_dcn import _kernels, plot

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
try:
    nvrtc.version()
    COMPILES = True
except nvrtc.NvrtcMissing:
    COMPILES = False
# Pages whose blocks are run; what is written about frameworks has tests of its own.
RUN = (
    "README.md", "docs/index.md", "docs/tutorial.md", "docs/how-to/streams.md",
    "docs/how-to/memory.md", "docs/how-to/determinism.md",
)  # fmt: skip
BLOCK = re.compile(r"^(<!-- needs: cupy -->\n\n)?```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = sorted(ROOT.glob("docs/**/*.md"))


@pytest.mark.parametrize("page", RUN)
def test_code_on_the_pages_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pictures go there
    monkeypatch.setenv("MPLBACKEND", "agg")
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    names, with_cupy = {}, 0
    with contextlib.ExitStack() as stack:
        for marked, block in blocks:
            if "import torch" in block and importlib.util.find_spec("torch") is None:
                continue  # make test-frameworks has it
            if marked or re.search(r"^import cupy$", block, re.MULTILINE):
                if with_cupy == 0 and COMPILES:
                    stack.enter_context(emulated_cupy.install())
                with_cupy += 1
                if not COMPILES:
                    continue
            exec(compile(block, page, "exec"), names)
    assert len(blocks) >= 1
    assert ("cupy_dcn" in names) == (COMPILES or with_cupy < len(blocks))
    assert (with_cupy >= 1) == (page in ("README.md", "docs/tutorial.md", "docs/how-to/streams.md"))
    assert list(tmp_path.iterdir()) or "savefig" not in "".join(block for _, block in blocks)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda each: each.name)
def test_links_and_pictures_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text)
    for target in targets:
        assert re.match(r"https?:", target) or (page.parent / target).is_file(), target
    assert len(targets) >= 5 or page.name != "README.md"


def test_pictures_are_small():
    sizes = {path: path.stat().st_size for path in (ROOT / "docs").rglob("*.*")}
    assert all(size < 230_000 for path, size in sizes.items() if path.suffix in (".png", ".jpg"))
    assert all(size < 1_000_000 for size in sizes.values())


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"^ +- .*: (\S+\.md)$", text, re.MULTILINE))
    assert {str(page.relative_to(ROOT / "docs").as_posix()) for page in PAGES} <= named
    assert len(named) >= 20


def test_the_reference_has_every_public_name():
    written = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    directives = set(re.findall(r"^::: cupy_dcn\.(\S+)$", written, re.MULTILINE))
    assert set(cupy_dcn.__all__) | {f"plot.{name}" for name in plot.__all__} <= directives


def test_a_place_for_the_table_of_errors():
    script = (ROOT / "benchmarks" / "accuracy.py").read_text(encoding="utf-8")
    page = (ROOT / "docs" / "explanation" / "accuracy.md").read_text(encoding="utf-8")
    for marker in re.findall(r"<!-- accuracy: .*? -->", script):
        assert page.count(marker) == 1


def test_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE))
    assert {"demo", "test", "gpu-report"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


MODULES = [
    name
    for _, name, _ in pkgutil.iter_modules(cupy_dcn.__path__)
    if name != "__main__"
    and (has_numba() or not name.endswith("_numba"))
    and (importlib.util.find_spec("dask") or "dask" not in name)
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
