"""The tasks of Dask graphs: one for every batch block and chunk of output rows, and their sums."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph

from ._arguments import GRADIENTS, Arguments, check_grad_output, check_offset
from ._arrays import Array, compute_dtype, of_one_library, require_array
from ._geometry import Geometry
from ._plan_arguments import AXES
from ._prepared import Gradients
from .functional import convolve, pull_back

# Parts added at once. Of 16 parts of the gradient of x at most 5 are alive in pairs, 8 in fours.
SPLIT_EVERY = 2
Key = tuple[Any, ...]


def tasks(
    name: str, arrays: Mapping[str, da.Array], work: Callable[[int], Callable[[list[Any]], object]]
) -> dict[Key, Any]:
    """Return ``work(first row)(arrays)`` for every batch block and every chunk of rows."""
    blocks, _, rows, _ = arrays["offset"].chunks
    firsts = [0, *itertools.accumulate(rows)]
    indices = {"x": "n000", "weight": "0000", "bias": "0"}

    def key(array: str, block: int, row: int) -> Key | None:
        if array not in arrays:
            return None
        at = {"n": block, "h": row, "0": 0}
        return arrays[array].name, *(at[axis] for axis in indices.get(array, "n0h0"))

    inputs = GRADIENTS + ("grad_output",) * ("grad_output" in arrays)
    return {
        (name, block, row): (work(firsts[row]), [key(each, block, row) for each in inputs])
        for block in range(len(blocks))
        for row in range(len(rows))
    }


class Parts:
    """The backward of every chunk, and the gradients reduced from them."""

    def __init__(self, name: str, layer: dict[Key, Any], arrays: Mapping[str, da.Array]) -> None:
        self._name, self._arrays = name, arrays
        self._graph = HighLevelGraph.from_collections(name, layer, list(arrays.values()))
        self._batch, _, self._rows, _ = map(len, arrays["offset"].chunks)

    def gradient(self, name: str) -> da.Array:
        """Return one gradient, summed over the chunks that share what it is the gradient of."""
        array = self._arrays[name]
        output, place = f"{self._name}-{name}", GRADIENTS.index(name)
        alone = name in ("offset", "mask")
        grid = [
            [
                (output, block, 0, row, 0) if alone else (f"{output}-part", block, row)
                for row in range(self._rows)
            ]
            for block in range(self._batch)
        ]
        layer: dict[Key, Any] = {
            key: (operator.getitem, (self._name, block, row), place)
            for block, keys in enumerate(grid)
            for row, key in enumerate(keys)
        }
        if name == "x":
            for block, keys in enumerate(grid):
                _add_tree(layer, keys, (output, block, 0, 0, 0), array.dtype)
        elif not alone:
            every = list(itertools.chain.from_iterable(grid))
            _add_tree(layer, every, (output, *[0] * array.ndim), array.dtype)
        graph = HighLevelGraph(
            {**self._graph.layers, output: layer},
            {**self._graph.dependencies, output: {self._name}},
        )
        return da.Array(graph, output, array.chunks, meta=array._meta)


def _add_tree(layer: dict[Key, Any], keys: list[Key], output: Key, dtype: np.dtype[Any]) -> None:
    """Let ``output`` be the sum of some parts, a few added at a time and rounded at the end."""
    for level in itertools.count():
        if len(keys) <= SPLIT_EVERY:
            break
        groups = [keys[first : first + SPLIT_EVERY] for first in range(0, len(keys), SPLIT_EVERY)]
        keys = [(f"{output[0]}-sum", level, *output[1:], number) for number in range(len(groups))]
        layer |= zip(keys, [(_add, group) for group in groups], strict=True)
    layer[output] = _round, keys, dtype


def _add(parts: Sequence[Array]) -> Array:
    """Return a sum of parts, in float32 for the half types."""
    first, *others = parts
    total = first.astype(compute_dtype(first.dtype))  # a copy: tasks may not change their inputs
    for other in others:
        total += other
    return total


def _round(parts: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    return parts[0] if len(parts) == 1 else _add(parts).astype(dtype, copy=False)


def convolve_chunk(
    geometry: Geometry, workspace_bytes: int | None, first_row: int, arrays: list[Any]
) -> Array:
    """Return one chunk of the output."""
    return convolve(_call(geometry, workspace_bytes, first_row, arrays))


def pull_back_chunk(
    geometry: Geometry,
    workspace_bytes: int | None,
    wanted: tuple[str, ...],
    deterministic: bool,
    first_row: int,
    arrays: list[Any],
) -> Gradients:
    """Return what one chunk adds to every gradient."""
    *inputs, grad_output = arrays
    call = _call(geometry, workspace_bytes, first_row, inputs)
    return pull_back(call, check_grad_output(grad_output, call), wanted, deterministic)


def _call(
    geometry: Geometry, workspace_bytes: int | None, first_row: int, arrays: list[Any]
) -> Arguments:
    """Return the arguments of one chunk, checked again: chunks need not be what meta says."""
    taken = of_one_library(dict(zip(GRADIENTS, arrays, strict=True)))
    found = {
        name: None if value is None else require_array(name, value, AXES[name])
        for name, value in zip(GRADIENTS, taken, strict=True)
    }
    x, offset, *_ = taken
    part = geometry.part(len(x), first_row, offset.shape[2])
    check_offset(offset, part, x.dtype)
    return Arguments(**found, geometry=part, workspace_bytes=workspace_bytes)  # type: ignore[arg-type]


def read_part(path: str, where: tuple[slice, ...]) -> Array:
    """Return a part of an array in a file, whose pages are read when they are looked at."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)[where])
