"""A cluster of two worker processes, one of which is killed half-way: nothing is lost."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from cases import Case, assert_close

import cupy_dcn

da = pytest.importorskip("dask.array", reason="no Dask arrays here")
distributed = pytest.importorskip("distributed", reason="no distributed here")
import cupy_dcn.dask  # noqa: E402

LAYER = Case(4, 3, (8, 6), 4, (3, 3), padding=(1, 1, 1, 1))
LAST = LAYER.images - 1
PATIENCE = 120  # seconds: a loaded machine starts a worker in 5 to 20


def wait_for(found, what):
    """Ask until there is an answer."""
    deadline = time.monotonic() + PATIENCE
    while not (answer := found()):
        assert time.monotonic() < deadline, f"no {what} in {PATIENCE} s"
        time.sleep(0.05)
    return answer


def made(block, folder, block_info=None):
    """Return an image as it is, noting who did; the last one waits until a worker is killed."""
    image = block_info[0]["chunk-location"][0]
    (Path(folder) / f"image{image}-{os.getpid()}-{time.monotonic_ns()}").touch()
    if image == LAST:
        wait_for((Path(folder) / "killed").exists, "kill")
    return block


@pytest.fixture
def client():
    """Start two worker processes of one thread, each watched by a nanny that starts it again."""
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with cluster, distributed.Client(cluster, timeout=PATIENCE) as found:
        found.wait_for_workers(2, timeout=PATIENCE)
        yield found


def finished_chunks(client, futures):
    """Return the workers that hold a chunk that is done."""
    done = [future for future in futures if future.status == "finished"]
    return [workers[0] for workers in client.who_has(done).values() if workers] if done else []


def test_a_worker_is_killed_half_way(client, tmp_path):
    x, offset, weight, bias, mask, grad_output = LAYER.arrays()
    images = da.from_array(x, (1, -1, -1, -1)).map_blocks(made, str(tmp_path), dtype=x.dtype)
    chunks = 1, -1, 4, -1
    offsets, masks = da.from_array(offset, chunks), da.from_array(mask, chunks)
    settings = {"mask": masks, **LAYER.attributes}
    y = cupy_dcn.dask.deform_conv2d(images, offsets, weight, bias, **settings)
    grads = cupy_dcn.dask.deform_conv2d_backward(
        da.from_array(grad_output, chunks), images, offsets, weight, bias, **settings
    )
    y, *grads = client.persist([y, *grads])
    futures = distributed.futures_of(y)

    # The last image waits, so this is half-way; who holds a finished chunk loses it.
    victim = wait_for(lambda: finished_chunks(client, futures), "finished chunk")[0]
    wait_for(lambda: list(tmp_path.glob(f"image{LAST}-*")), "task that waits")
    pid = client.run(os.getpid, workers=[victim])[victim]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: victim not in client.scheduler_info()["workers"], "end of the worker")
    (tmp_path / "killed").touch()

    found = [each.result(timeout=PATIENCE) for each in client.compute([y, *grads])]
    settings["mask"] = mask
    expected = [
        cupy_dcn.deform_conv2d(x, offset, weight, bias, **settings),
        *cupy_dcn.deform_conv2d_backward(grad_output, x, offset, weight, bias, **settings),
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, 1e-12)
    runs = [path.name.split("-") for path in tmp_path.glob("image*")]
    assert len(runs) > LAYER.images  # images were made again
    assert {name for name, *_ in runs} == {f"image{image}" for image in range(LAYER.images)}
    assert str(pid) in {process for _, process, _ in runs}
    assert len({process for _, process, _ in runs}) >= 2
    assert np.isfinite(found[0]).all()
