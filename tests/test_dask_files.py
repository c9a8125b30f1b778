"""Arrays in files, larger than memory: memory-mapped .npy and Zarr, behind Dask's progress bar."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import Case, assert_close

import cupy_dcn

da = pytest.importorskip("dask.array", reason="no Dask arrays here")
import cupy_dcn.dask  # noqa: E402

LAYER = Case(3, 2, (9, 7), 2, (3, 3), padding=(1, 1, 1, 1))
CHUNKS = 1, -1, 4, -1
KINDS = "npy", "zarr"


def written(array, kind, folder, name, chunks):
    """Write an array to a file; return it as a Dask array that reads it chunk by chunk."""
    path = folder / f"{name}.{kind}"
    if kind == "npy":
        np.save(path, array)
        return cupy_dcn.dask.from_npy(path, chunks)
    pytest.importorskip("zarr", reason="no Zarr here")
    da.from_array(array, chunks).to_zarr(str(path))
    return da.from_zarr(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_from_file_to_file_behind_a_progress_bar(kind, tmp_path):
    from dask.diagnostics import ProgressBar

    arrays = LAYER.arrays()
    x, offset, weight, bias, mask, _ = arrays
    chunks = (1, -1, -1, -1), CHUNKS, CHUNKS
    lazy = [
        written(array, kind, tmp_path, f"in{number}", chunks[number])
        for number, array in enumerate((x, offset, mask))
    ]
    y = cupy_dcn.dask.deform_conv2d(
        lazy[0], lazy[1], weight, bias, mask=lazy[2], **LAYER.attributes
    )
    text, out = io.StringIO(), tmp_path / f"out.{kind}"
    with ProgressBar(out=text):
        if kind == "npy":
            result = np.lib.format.open_memmap(out, "w+", y.dtype, y.shape)
            da.store(y, result)
        else:
            y.to_zarr(str(out))
            result = da.from_zarr(str(out)).compute()
    assert "100%" in text.getvalue()
    expected = cupy_dcn.deform_conv2d(x, offset, weight, bias, mask=mask, **LAYER.attributes)
    assert_close(np.asarray(result), expected, 1e-12)


LARGE = """
import resource, sys
import numpy as np, dask, dask.array as da
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[3]),) * 2)
import cupy_dcn.dask

kind, folder = sys.argv[1:3]
shape, chunks = (16, 16, 1024, 1024), (1, 16, 1024, 1024)
rows = 64  # of an output chunk
dask.config.set(scheduler="synchronous")
def image(block_info):
    first = block_info[None]["array-location"][0][0]
    return np.full((1, 16, 1024, 1024), first + 1, np.float32)
made = da.map_blocks(image, chunks=((1,) * 16, (16,), (1024,), (1024,)), dtype=np.float32)
if kind == "npy":
    file = np.lib.format.open_memmap(folder + "/x.npy", "w+", np.float32, shape)
    da.store(made, file)
    file.flush()
    x = cupy_dcn.dask.from_npy(folder + "/x.npy", chunks)
else:
    made.to_zarr(folder + "/x.zarr")
    x = da.from_zarr(folder + "/x.zarr")
assert x.nbytes > int(sys.argv[3])
offset = da.zeros((16, 2, 1024, 1024), chunks=(1, 2, rows, 1024), dtype=np.float32)
weight = np.ones((1, 16, 1, 1), np.float32)
y = cupy_dcn.dask.deform_conv2d(x, offset, weight)
grads = cupy_dcn.dask.deform_conv2d_backward(da.ones_like(y), x, offset, weight)
means, by_weight, by_x = dask.compute(y.mean(axis=(1, 2, 3)), grads.weight, grads.x.sum())
assert np.allclose(means, 16 * np.arange(1, 17)), means
assert np.allclose(by_weight, 2**20 * 136), by_weight
assert by_x == x.size, by_x
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) * 1024)
"""


def test_a_files_name_is_of_what_is_in_it(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(24.0).reshape(4, 6))
    first, again = (cupy_dcn.dask.from_npy(path, (3, 4)) for _ in range(2))
    assert first.chunks == ((3, 1), (4, 2))
    np.testing.assert_array_equal(first.compute(), np.load(path))
    assert isinstance(first._meta, np.ndarray)
    assert first._meta.ndim == 2
    assert first.name == again.name != cupy_dcn.dask.from_npy(path, (2, 4)).name
    np.save(path, np.arange(30.0).reshape(5, 6))
    assert first.name != cupy_dcn.dask.from_npy(path, (3, 4)).name
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        cupy_dcn.dask.from_npy(path)


def test_the_pages_code_runs(capsys):
    page = Path(__file__).parents[1] / "docs" / "how-to" / "many-machines.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    assert len(blocks) == 3
    assert "100%" in capsys.readouterr().out


@pytest.mark.memory
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_x_is_larger_than_the_memory_allowed(kind, tmp_path):
    """1 GiB of x under a limit of 768 MiB of memory, in which mapped files do not count."""
    if kind == "zarr":
        pytest.importorskip("zarr", reason="no Zarr here")
    arguments = [sys.executable, "-c", LARGE, kind, str(tmp_path), str(768 * 2**20)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # of which each has a stack
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=1800, env=environment)
    assert run.returncode == 0, run.stderr
    assert kind == "npy" or int(run.stdout) < 2**30  # of which mapped pages are a part
