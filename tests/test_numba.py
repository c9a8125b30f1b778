"""Which twin NumPy arrays get, and what Numba compiles and keeps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES
from libraries import dcn, has_numba

import cupy_dcn
from cupy_dcn import _cpu, _twins, diagnostics

needs_numba = pytest.mark.skipif(not has_numba(), reason="there is no Numba")
CASE = CASES[7]

CALL = """
import sys
import numpy as np
import cupy_dcn
cupy_dcn.pack_offset(np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)))
print("numba" in sys.modules)
cupy_dcn.deform_conv2d(np.ones((1, 1, 2, 2)), np.zeros((1, 2, 2, 2)), np.ones((1, 1, 1, 1)))
print("numba" in sys.modules)
"""


def python(code, **switches):
    """Return what code prints in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "CUPY_DCN_NUMBA"} | switches
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def undecided(monkeypatch):
    """A process that has not chosen a twin yet."""
    for function in (_twins._on_host, _twins.why_not_numba):
        function.cache_clear()
    monkeypatch.delenv("CUPY_DCN_NUMBA", raising=False)
    yield monkeypatch
    monkeypatch.undo()
    for function in (_twins._on_host, _twins.why_not_numba):
        function.cache_clear()


def info_of_numba(capsys):
    diagnostics.info()
    return re.search(r"^Numba +(.*)$", capsys.readouterr().out, re.MULTILINE).group(1)


@needs_numba
@pytest.mark.parametrize(("switch", "used"), [({}, True), ({"CUPY_DCN_NUMBA": "0"}, False)])
def test_numba_is_imported_by_the_first_call(switch, used):
    said = python(CALL, **switch).split()
    assert said == ["False", str(used)]


@needs_numba
def test_numbas_twin_is_chosen(undecided, capsys):
    from cupy_dcn import _numba

    assert _twins.twin_of(np.ones(1)) is _numba
    assert info_of_numba(capsys).endswith(", used for NumPy arrays")


def test_switched_off(undecided, capsys):
    undecided.setenv("CUPY_DCN_NUMBA", "0")
    assert _twins.twin_of(np.ones(1)) is _cpu
    assert info_of_numba(capsys).endswith("not used: CUPY_DCN_NUMBA=0")


def test_without_numba():
    hidden = "import sys; sys.modules['numba'] = None\n"
    look = "from cupy_dcn import _twins; print(_twins._on_host().__name__, _twins.why_not_numba())"
    said = python(hidden + CALL.replace('print("numba" in sys.modules)', "") + look)
    assert said.startswith("cupy_dcn._cpu not usable: ")
    assert "numba" in said.removeprefix("cupy_dcn._cpu not usable: ")


@needs_numba
def test_twins_have_the_same_names():
    from cupy_dcn import _gpu, _numba

    assert _numba.__all__ == _cpu.__all__ == _gpu.__all__
    assert all(hasattr(_numba, name) for name in _numba.__all__)


def calls(arrays):
    x, offset, weight, bias, mask, grad_output = arrays
    settings = {**CASE.attributes, "mask": mask}
    with dcn.running_on("numba"):
        y = dcn.deform_conv2d(x, offset, weight, bias, **settings)
        grads = dcn.deform_conv2d_backward(grad_output, x, offset, weight, bias, **settings)
    return [y, *grads]


def in_other_memory(array):
    """Return equal arrays: read-only, in Fortran order, every second element, misaligned."""
    frozen = array.copy()
    frozen.flags.writeable = False
    spaced = np.repeat(array, 2, axis=-1)[..., ::2]
    misaligned = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    misaligned[...] = array
    return frozen, np.asfortranarray(array), spaced, misaligned


@needs_numba
def test_one_compilation_serves_every_memory_layout():
    from cupy_dcn import _loops_numba as loops

    every = [loop for loop in vars(loops).values() if isinstance(loop, loops.Loop)]
    arrays = CASE.arrays(np.float32)
    expected = calls(arrays)
    made = [len(loop._compiled) for loop in every]
    assert sum(made) >= 2
    for others in zip(*map(in_other_memory, arrays), strict=True):
        for one, other in zip(expected, calls(others), strict=True):
            np.testing.assert_array_equal(other, one)
    assert [len(loop._compiled) for loop in every] == made


@needs_numba
def test_where_no_folder_can_be_written(monkeypatch):
    from numba.core.caching import CacheImpl

    from cupy_dcn import _loops_numba as loops

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    loop, double = loops.Loop(loops._bounds, "locations", "strides", "tile", "window", "box"), float
    kind, box = np.dtype(double), np.zeros(4, np.int64)
    offset, tile = np.array([0.5, 2.5]), (1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1)
    loop(kind, kind, offset, (0, 1), tile, (-1, 5, -1, 5, 0, 0, 0, 0), box)
    assert box.tolist() == [0, 1, 2, 3]


@needs_numba
def test_the_loops_depend_on_their_own_file_alone():
    # Numba recompiles what it keeps when that file changes, and does not look at others.
    source = Path(cupy_dcn.__file__).with_name("_loops_numba.py").read_text(encoding="utf-8")
    imports = set(re.findall(r"^ *(?:from|import) +([\w.]+)", source, re.MULTILINE))
    assert imports == {"__future__", "functools", "threading", "numpy", "numba"}
