"""`deform_conv2d` and its backward on Dask arrays: larger than memory, or on many machines.

    output rows r0..r1 of a batch block = rows of offset and mask, whole images of x, the weight

An offset may point anywhere in its image, so every chunk of the output takes whole images of x,
and its own rows of everything else. Imported only by ``import cupy_dcn.dask``.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from ._arguments import GRADIENTS, Arguments, check_grad_output, check_needs, out_shape, validate
from ._arrays import Array, as_array, module_of
from ._attributes import came, check_flag
from ._dask_tasks import Parts, convolve_chunk, pull_back_chunk, read_part, tasks
from ._prepared import Gradients

__all__ = ["deform_conv2d", "deform_conv2d_backward", "from_npy"]


def deform_conv2d(
    x: da.Array,
    offset: da.Array,
    weight: da.Array | Array,
    bias: da.Array | Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    mask: da.Array | None = None,
    name: str | None = None,
    *,
    workspace_bytes: int | None = None,
) -> da.Array:
    """Return `cupy_dcn.deform_conv2d` of Dask arrays, to be computed chunk by chunk.

    ``y(p) = sum_k weight_k * x(p + p_k + offset_k(p)) * mask_k(p) + bias``

    Parameters
    ----------
    x, offset, mask : dask.array.Array
        As in `cupy_dcn.deform_conv2d`, with chunks that are NumPy arrays, or CuPy arrays. The
        chunks of ``offset`` along the batch and the output rows are those of the result; x is
        rechunked to whole images of its batch blocks, everything else to offset's.
    weight, bias : dask.array.Array or ndarray
        Of the library of x's chunks; every chunk takes them whole.
    stride, padding, dilation, deformable_groups, groups, name
        As in `cupy_dcn.deform_conv2d`.
    workspace_bytes : int, optional
        Bound of the temporary memory of each chunk that is worked on at once.

    Returns
    -------
    dask.array.Array, shape (N, C_out, OH, OW)
        Chunked as offset along N and OH. Nothing is computed yet.

    Raises
    ------
    TypeError, ValueError
        As `cupy_dcn.deform_conv2d`, when the graph is made; also where an array that must be
        Dask's is not, or has unknown chunk sizes.

    See Also
    --------
    deform_conv2d_backward : The gradients, reduced over chunks.

    Notes
    -----
    Locations, and so the samples, are those of the undivided call to the bit; the products that
    follow may be blocked otherwise, so results equal its to rounding. A chunk is a pure function
    of its inputs: one that is lost with its worker is computed again.

    A task holds its images of x, its rows of offset and mask and its result, and
    ``workspace_bytes`` besides: choose small batch blocks for large images, and few rows a chunk
    for large offsets. x with all rows in one chunk is not copied for it. `from_npy` reads x from a
    file, as ``dask.array.from_zarr`` does.

    Examples
    --------
    >>> import dask.array as da, numpy as np, cupy_dcn.dask
    >>> x = da.ones((4, 1, 6, 6), chunks=(2, 1, 6, 6))
    >>> offset = da.zeros((4, 18, 6, 6), chunks=(2, 18, 3, 6))
    >>> y = cupy_dcn.dask.deform_conv2d(x, offset, np.ones((1, 1, 3, 3)), padding=1)
    >>> y.chunks
    ((2, 2), (1,), (3, 3), (6,))
    >>> float(y.sum().compute())
    1024.0
    """
    del name
    given = {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    call = _checked(given, stride, padding, dilation, deformable_groups, groups, workspace_bytes)
    arrays = _aligned(given)
    output = f"deform_conv2d-{_token(arrays, call.geometry, workspace_bytes)}"
    work = partial(partial, convolve_chunk, call.geometry, workspace_bytes)
    layer = {
        (output, block, 0, row, 0): task
        for (_, block, row), task in tasks(output, arrays, work).items()
    }
    _, out_channels, _, out_width = out_shape(call)
    batch, _, rows, _ = arrays["offset"].chunks
    chunks = batch, (out_channels,), rows, (out_width,)
    graph = HighLevelGraph.from_collections(output, layer, list(arrays.values()))
    return da.Array(graph, output, chunks, meta=x._meta)


def deform_conv2d_backward(
    grad_output: da.Array,
    x: da.Array,
    offset: da.Array,
    weight: da.Array | Array,
    bias: da.Array | Array | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    deformable_groups: int = 1,
    groups: int = 1,
    mask: da.Array | None = None,
    name: str | None = None,
    *,
    needs: Iterable[str] = GRADIENTS,
    workspace_bytes: int | None = None,
    deterministic: bool = False,
) -> Gradients:
    """Return `cupy_dcn.deform_conv2d_backward` of Dask arrays, to be computed chunk by chunk.

    The gradients of offset and mask belong to a chunk; that of x is summed over the row chunks of
    its batch block, those of weight and bias over all chunks::

        grad_weight = sum over chunks of grad_output . columns^T

    Parameters
    ----------
    grad_output, x, offset, mask : dask.array.Array
        As in `cupy_dcn.deform_conv2d_backward`; chunks are those of `deform_conv2d`.
    weight, bias : dask.array.Array or ndarray
        As in `deform_conv2d`.
    stride, padding, dilation, deformable_groups, groups, name, needs, deterministic
        As in `cupy_dcn.deform_conv2d_backward`.
    workspace_bytes : int, optional
        Bound of the temporary memory of each chunk that is worked on at once.

    Returns
    -------
    Gradients
        Named tuple (x, offset, weight, bias, mask) of Dask arrays, or None for what was not asked
        for or not given. Compute several in one go, ``dask.compute(*grads)``, which makes them
        from one pass over the chunks.

    Raises
    ------
    TypeError, ValueError
        As `deform_conv2d`, when the graph is made.

    Notes
    -----
    Sums over chunks are trees in a fixed order: where the chunks' bits are the same, so are the
    sums'. In half precision each chunk's part is rounded to it and added in float32. Results equal
    the undivided call's to rounding. While the parts of a batch block's gradient of x are summed,
    about log2(row chunks) + 2 of them are alive, each as large as its images.

    Examples
    --------
    >>> import dask, dask.array as da, numpy as np, cupy_dcn.dask
    >>> x = da.ones((4, 1, 3, 3), chunks=(2, 1, 3, 3))
    >>> offset = da.zeros((4, 2, 3, 3), chunks=(2, 2, 1, 3))
    >>> grads = cupy_dcn.dask.deform_conv2d_backward(
    ...     da.ones_like(x), x, offset, np.ones((1, 1, 1, 1)), needs=("x", "weight")
    ... )
    >>> by_x, by_weight = dask.compute(grads.x, grads.weight)
    >>> float(by_weight[0, 0, 0, 0]), by_x.shape, grads.mask
    (36.0, (4, 1, 3, 3), None)
    """
    del name
    given = {"x": x, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    call = _checked(given, stride, padding, dilation, deformable_groups, groups, workspace_bytes)
    check_grad_output(_stand_in("grad_output", grad_output), call)
    asked = check_needs(needs)
    check_flag("deterministic", deterministic)
    wanted = tuple(each for each in GRADIENTS if each in asked and given[each] is not None)
    arrays = _aligned({**given, "grad_output": grad_output})
    settings = call.geometry, workspace_bytes, wanted, deterministic
    whole = f"deform_conv2d_backward-{_token(arrays, *settings)}"
    layer = tasks(whole, arrays, partial(partial, pull_back_chunk, *settings))
    parts = Parts(whole, layer, arrays)
    return Gradients(*(parts.gradient(each) if each in wanted else None for each in GRADIENTS))


def from_npy(path: str | os.PathLike[str], chunks: Any = "auto") -> da.Array:
    """Return a .npy file as a Dask array, each chunk of which maps its part of the file.

    ``dask.array.from_array`` may copy a memory-mapped array whole into memory (2026.8 does), and
    sends it to the workers; this sends them the path.

    Parameters
    ----------
    path : str or path
        A file of ``numpy.save``, at the same place on every worker. No pickled objects.
    chunks : int, tuple or str
        As ``dask.array.from_array`` takes them.

    Returns
    -------
    dask.array.Array

    Raises
    ------
    OSError, ValueError
        If there is no such file, or it is no .npy file of numbers.

    Examples
    --------
    >>> import pathlib, tempfile, numpy as np, cupy_dcn.dask
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "x.npy")
    ...     np.save(path, np.arange(6.0).reshape(2, 3))
    ...     cupy_dcn.dask.from_npy(path, chunks=(1, 3)).sum(axis=1).compute()
    array([ 3., 12.])
    """
    path = os.path.abspath(path)
    array, found = np.load(path, mmap_mode="r", allow_pickle=False), os.stat(path)
    parts = da.core.normalize_chunks(chunks, array.shape, dtype=array.dtype)
    name = f"from_npy-{tokenize(path, found.st_mtime_ns, found.st_size, parts)}"
    indices = itertools.product(*(range(len(lengths)) for lengths in parts))
    layer = {
        (name, *index): (partial(read_part, path, where),)
        for index, where in zip(indices, da.core.slices_from_chunks(parts), strict=True)
    }
    graph = HighLevelGraph.from_collections(name, layer, [])
    return da.Array(graph, name, parts, dtype=array.dtype, meta=np.empty(0, array.dtype))


def _checked(given: Mapping[str, Any], *settings: object) -> Arguments:
    """Check a call by its shapes and dtypes, as the function on undivided arrays does."""
    x, offset, weight, bias, mask = (_stand_in(*each) for each in given.items())
    stride, padding, dilation, deformable_groups, groups, workspace_bytes = settings
    return validate(
        x, offset, weight, bias, stride, padding, dilation, deformable_groups, groups, mask,
        workspace_bytes,
    )  # fmt: skip


def _stand_in(name: str, value: Any) -> Any:
    """Return an array of one element, seen in the shape and dtype of a Dask array."""
    if not isinstance(value, da.Array):
        if name in ("weight", "bias") or (name == "mask" and value is None):
            return value
        raise TypeError(
            f"{name} must be a Dask array, got {came(value)};"
            f" dask.array.from_array({name}, chunks=...) makes one"
        )
    if any(map(math.isnan, value.shape)):
        raise ValueError(
            f"{name} has chunks of unknown sizes {value.chunks}, expected known ones;"
            f" {name}.compute_chunk_sizes() computes them"
        )
    library = module_of(value._meta)
    return library.broadcast_to(library.empty((), value.dtype), value.shape)


def _aligned(given: Mapping[str, Any]) -> dict[str, da.Array]:
    """Return Dask arrays in the chunks of the call: offset's batch blocks and rows."""
    offset = given["offset"].rechunk({1: -1, 3: -1})
    blocks, _, rows, _ = offset.chunks
    sampled = {0: blocks, 1: -1, 2: rows, 3: -1}
    chunks = {"x": {**sampled, 2: -1}, "weight": -1, "bias": -1}
    return {
        name: offset
        if name == "offset"
        else _dask_array(name, value).rechunk(chunks.get(name, sampled))
        for name, value in given.items()
        if value is not None
    }


def _dask_array(name: str, value: Any) -> da.Array:
    if isinstance(value, da.Array):
        return value
    return da.from_array(as_array(name, value), chunks=-1, asarray=False)


def _token(arrays: Mapping[str, da.Array], *settings: object) -> str:
    """Return the same name for the same call on the same arrays."""
    names = {name: array.name for name, array in arrays.items()}
    return tokenize(names, *settings)  # type: ignore[no-any-return]
