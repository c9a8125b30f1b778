"""What is written runs: the README's code and every docstring's example."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cupy_dcn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_readmes_code_runs():
    assert len(BLOCKS) >= 2
    names = {}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["y"].shape == (8, 16, 26, 26)


def test_readmes_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 5
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_readmes_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(?:make|`make) (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


MODULES = [name for _, name, _ in pkgutil.iter_modules(cupy_dcn.__path__) if name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"cupy_dcn.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", cupy_dcn.__all__)
def test_public_docstrings_are_whole(name):
    if name == "Gradients":
        return assert_sections(cupy_dcn.Gradients.__doc__, ())
    sections = ("Parameters", "Returns", "Raises", "Examples")
    return assert_sections(getattr(cupy_dcn, name).__doc__, sections)


def assert_sections(doc, sections):
    assert doc
    for section in sections:
        assert re.search(rf"^ *{section}\n *-+$", doc, re.MULTILINE), section
