"""The package: what it imports, what it is made of, and what the wheel holds."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cupy_dcn

ROOT = Path(__file__).parents[1]
LAZY = ("cupy", "matplotlib", "threadpoolctl", "tqdm", "ml_dtypes", "argparse")


def test_import_is_silent_and_brings_no_optional_library():
    code = f"import sys, cupy_dcn; print([m for m in {LAZY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = run.stdout.strip()
    # NumPy or SciPy may themselves bring argparse: then it is no doing of ours.
    code = f"import sys, numpy, scipy.sparse; print([m for m in {LAZY!r} if m in sys.modules])"
    run_without = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert set(ast.literal_eval(found)) <= set(ast.literal_eval(run_without.stdout))
    assert run.stderr == ""


def test_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[?{re.escape(cupy_dcn.__version__)}\b", changelog, re.MULTILINE)


def test_folder_named_cuda_is_no_package():
    # CuPy imports NVIDIA's `cuda.pathfinder`: a package of that name would break it.
    assert not (ROOT / "cuda" / "__init__.py").exists()


def test_library_is_typed_and_its_names_exist():
    assert (Path(cupy_dcn.__file__).parent / "py.typed").is_file()
    assert sorted(cupy_dcn.__all__) == cupy_dcn.__all__
    for name in cupy_dcn.__all__:
        assert hasattr(cupy_dcn, name)


def test_oracle_shares_no_code_with_the_library():
    source = (Path(cupy_dcn.__file__).parent / "_oracle.py").read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from|import) +([\w.]+)", source, re.MULTILINE)
    assert set(imports) == {"itertools", "math", "numpy"}


@pytest.mark.parametrize("path", sorted((ROOT / "cupy_dcn").glob("*.py")), ids=lambda p: p.name)
def test_no_network_no_pickle_no_eval(path):
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(urllib|requests|socket|pickle|eval|exec)\b", source)
