"""The package: what it imports, what it is made of, and what wheel and sdist hold."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import cupy_dcn
from cupy_dcn import _kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # hatchling brings it

ROOT = Path(__file__).parents[1]
LAZY = (
    "cupy", "numba", "matplotlib", "threadpoolctl", "tqdm", "ml_dtypes", "onnx", "safetensors",
    "dask", "argparse",
)  # fmt: skip


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
    assert not list((ROOT / "cuda").glob("**/*.py"))


CUDA = sorted(path.name for path in (ROOT / "cuda").iterdir())


EPOCH = 1_700_000_000  # any: what is in an archive is of this time


def run(*command, **settings):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist from a copy of the working tree, and the wheel from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    parts = "benchmarks", "cuda", "cupy_dcn", "docs", "examples", "tests"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in parts:
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=ignored)
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder / "tree")
    shutil.copy(ROOT / ".gitignore", folder / "tree")
    (folder / "tree" / "stray.txt").touch()
    for stray in ("cupy_dcn/__pycache__/x.pyc", "cuda/__pycache__/x.nbi"):
        (folder / "tree" / stray).parent.mkdir(exist_ok=True)
        (folder / "tree" / stray).touch()
    build = (sys.executable, "-m", "hatchling", "build", "-d", str(folder))
    timed = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    run(*build, "-t", "sdist", cwd=folder / "tree", env=timed)
    [sdist] = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        # The filter exists from Python 3.10.12 on, and is asked for from 3.12 on.
        archive.extractall(
            folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    run(*build, "-t", "wheel", cwd=folder / sdist.name.removesuffix(".tar.gz"), env=timed)
    [wheel] = folder.glob("*.whl")
    return sdist, wheel


def test_sdist_holds_everything_to_work_on(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"cuda/{name}" for name in CUDA} <= names
    assert {"tests/conftest.py", "tests/emulator/nvrtc.py", "benchmarks/kernels.py"} <= names
    assert {"Makefile", "README.md", "LICENSE", "pyproject.toml", "docs/demo.jpg"} <= names
    assert "examples/launch_kernels.cpp" in names
    assert "stray.txt" not in names


def test_wheel_holds_the_package_and_the_cuda_sources(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {f"cupy_dcn/{path.name}" for path in (ROOT / "cupy_dcn").glob("*.py")}
    expected = modules | {"cupy_dcn/py.typed"} | {f"cupy_dcn/cuda/{name}" for name in CUDA}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_nothing_else_is_in_either(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        wheels = archive.namelist()
        [metadata] = [name for name in wheels if name.endswith(".dist-info/METADATA")]
        about = archive.read(metadata).decode()
    assert "License-Expression: Apache-2.0" in about
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheels)
    for name in (*names, *wheels):
        assert not re.search(r"__pycache__|\.py[cod]$|\.nb[ci]$|(^|/)\.(?!gitignore$)", name), name
    assert not [name for name in wheels if "test" in name.lower()]
    assert len(set(wheels)) == len(wheels)


def test_wheel_of_the_tree_is_that_of_the_sdist_to_the_bit(built, tmp_path):
    sdist, wheel = built
    again = {**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)}
    build = (sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path))
    run(*build, cwd=sdist.parent / "tree", env=again)
    [other_wheel], [other_sdist] = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert other_wheel.read_bytes() == wheel.read_bytes()
    assert other_sdist.read_bytes() == sdist.read_bytes()


def test_every_dependency_has_a_least_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [each for names in project["optional-dependencies"].values() for each in names]
    requirements = [each for each in (*project["dependencies"], *extras) if "cupy_dcn[" not in each]
    assert len(requirements) >= 20
    for each in requirements:
        assert re.match(r"[\w-]+(\[\w+\])?(>=|==|~=)\d", each), each


def test_package_from_the_wheel_finds_its_sources(built, tmp_path):
    venv.create(tmp_path / "fresh", with_pip=False)
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = str(tmp_path / "fresh" / scripts / "python")
    folder = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    install = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target")
    run(*install, folder, str(built[1]), env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    # NumPy and SciPy from here: behind the wheel, and without what .pth files here would add.
    Path(folder, "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = """
import cupy_dcn, sys
from cupy_dcn import _kernels
print(cupy_dcn.__file__)
print(_kernels.folder())
for file in sorted(set(_kernels.FILES.values())):
    print(file, len(_kernels.source(file)))
"""
    module, sources, *files = run(python, "-I", "-c", code, cwd=tmp_path).splitlines()
    assert Path(module).parent == Path(folder) / "cupy_dcn"
    assert Path(sources) == Path(folder) / "cupy_dcn" / "cuda"
    found = dict(line.split() for line in files)
    assert set(found) == {name for name in CUDA if name.endswith(".cu")}
    for file, length in found.items():
        assert int(length) == len(_kernels.source(file))


def test_library_is_typed_and_its_names_exist():
    assert (Path(cupy_dcn.__file__).parent / "py.typed").is_file()
    assert sorted(cupy_dcn.__all__) == cupy_dcn.__all__
    for name in cupy_dcn.__all__:
        assert hasattr(cupy_dcn, name)


def test_oracle_shares_no_code_with_the_library():
    source = (Path(cupy_dcn.__file__).parent / "_oracle.py").read_text(encoding="utf-8")
    imports = re.findall(r"^(?:from|import) +([\w.]+)", source, re.MULTILINE)
    assert set(imports) == {"itertools", "math", "numpy"}


# Nothing that speaks to a network, starts a program, or makes code or objects of what it reads.
FORBIDDEN_MODULES = {
    "asyncio", "code", "codeop", "dbm", "email", "ftplib", "http", "imaplib", "imp", "marshal",
    "multiprocessing", "pickle", "poplib", "pty", "requests", "runpy", "shelve", "smtplib",
    "socket", "socketserver", "ssl", "subprocess", "telnetlib", "urllib", "webbrowser", "xmlrpc",
    "zipimport",
}  # fmt: skip
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "input", "breakpoint", "os.system", "os.popen",
    "os.fork", "os.startfile", "np.fromfile", "np.lib.format.read_array",
}  # fmt: skip
FORBIDDEN_STARTS = "os.exec", "os.spawn", "os.posix_spawn"
THIRD_PARTY = {
    "PIL", "cupy", "cupy_backends", "cupy_dcn", "dask", "matplotlib", "ml_dtypes", "numba",
    "numpy", "onnx", "safetensors", "scipy", "threadpoolctl", "tqdm",
}  # fmt: skip
# Who may do what is not said in the source itself: import a module by name, load a library.
# _blas.py opens NumPy's own extension module, which is loaded already. Numba's cache of compiled
# loops, which is Numba's matter, is pickles in a folder that only the user can write. _files.py
# reads .npz and Dask's tasks .npy, and both say that they take no pickles.
BY_NAME = {
    "importlib.import_module": {"plot.py"},
    "ctypes.CDLL": {"_blas.py"},
    "np.load": {"_dask_tasks.py", "_files.py", "dask.py"},
}


def imports_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def offences(source, name):
    """Return what a file does that the library must not do."""
    tree = ast.parse(source)
    imports = set(imports_of(tree))
    found = sorted(imports & FORBIDDEN_MODULES)
    found += sorted(imports - THIRD_PARTY - set(sys.stdlib_module_names))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            found += [] if ast.unparse(node.value) == "False" else [node.arg]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in FORBIDDEN_CALLS or called.startswith(FORBIDDEN_STARTS):
                found.append(called)
            said = {keyword.arg for keyword in node.keywords}
            if name not in BY_NAME.get(called, {name}) or (
                called == "np.load" and "allow_pickle" not in said
            ):
                found.append(called)
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "cupy_dcn").glob("*.py")), ids=lambda p: p.name)
def test_no_network_no_pickle_no_eval_no_programs(path):
    assert offences(path.read_text(encoding="utf-8"), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        "import socket", "from urllib.request import urlopen", "import pickle as p",
        "def f():\n    import subprocess", "eval('1')", "exec('')", "import os\nos.system('ls')",
        "os.execv('ls', [])", "np.load('x')", "np.lib.load('x', allow_pickle=True)",
        "ctypes.CDLL('libc')", "importlib.import_module('x')", "import torch",
    ],
)  # fmt: skip
def test_offences_are_seen(source):
    assert offences(source, "some.py")


def test_pickles_must_be_refused():
    assert offences("np.load('x')", "_files.py") == ["np.load"]
    assert offences("np.load('x', allow_pickle=True)", "_files.py") == ["allow_pickle"]
    assert offences("np.load('x', allow_pickle=False)", "_files.py") == []


def test_exceptions_are_still_taken():
    for called, files in BY_NAME.items():
        for file in files:
            assert f"{called}(" in (ROOT / "cupy_dcn" / file).read_text(encoding="utf-8")
