"""What a folder of kernels says of them, for a program without Python: JSON, and a C++ header.

A launch is described by a rule in words and its numbers: what a block is at, in output pixels,
cells of the image's copy or sampling points.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from . import _kernels
from ._launch_gpu import FIELDS
from ._order_gpu import CELLS, THREADS
from ._prebuilt import capability_of
from ._specialisation import (
    TRANSPOSE_THREADS,
    Macros,
    PullbackMacros,
    SamplingMacros,
    TransposeMacros,
)

RULES = {
    "tiles": "grid = (ceil(geometry.columns / tile_columns) * DEFORMABLE_GROUPS,"
    " ceil(geometry.rows / tile_rows), images)",
    "tiles_down": "as tiles, but grid.y may be less, for blocks walk down the image; partial has"
    " (images * grid.y * ceil(geometry.columns / tile_columns), DEFORMABLE_GROUPS, KERNEL_HEIGHT *"
    " KERNEL_WIDTH, CHANNELS / GROUPS, copy_channels / DEFORMABLE_GROUPS) numbers, to be summed"
    " over the first axis",
    "cells": "grid = (ceil((geometry.height + 3) * (geometry.width + 1) / per_block) * parts, 1,"
    " images)",
    "pixels": "grid = (ceil(geometry.height * geometry.width / per_block) * parts, 1, images)",
    "points": "grid = (ceil(n / per_block), 1, 1) for the n that the first parameter that is a"
    " number says",
    "parity": "four launches, odd = 0, 1, 2, 3; with rows = (geometry.height + 2 - odd / 2) / 2 and"
    " columns = (geometry.width + 2 - odd % 2) / 2, whole divisions, grid = (ceil(rows * columns /"
    " per_block) * DEFORMABLE_GROUPS, parts, images)",
}
_RULE_OF = {
    "to_channels_last": "cells",
    "from_channels_last": "pixels",
    "deform_direct_backward": "tiles_down",
    "deform_backward_sorted": "points",
    "deform_col2im_ordered": "parity",
    "copy_elements": "points",
    "start_cells": "points",
    "order_samples": "points",
    "rank_samples": "points",
}  # of the others: tiles
_TYPES = {"data_t": "data", "offset_t": "offset_data", "mask_t": "mask_data", "index_t": "index"}


def launch_of(name: str, macros: Macros) -> dict[str, Any]:
    """Return how a kernel is launched: its rule, and the numbers in it."""
    rule = _RULE_OF.get(name, "tiles")
    launch = {"rule": rule, "threads": THREADS, "dynamic_shared_bytes": 0, "per_block": 0,
              "parts": 1, "tile_rows": 0, "tile_columns": 0}  # fmt: skip
    if name == "copy_elements":
        return launch | {"threads": TRANSPOSE_THREADS, "per_block": TRANSPOSE_THREADS}
    if isinstance(macros, TransposeMacros):
        launch |= {"threads": TRANSPOSE_THREADS, "per_block": macros.pixels}
        launch["parts"] = -(-copy_channels(macros) // macros.vector // macros.block_vectors)
        return launch
    assert isinstance(macros, SamplingMacros)
    if name == "start_cells":
        return launch | {"per_block": CELLS}
    if name in ("order_samples", "rank_samples"):
        return launch | {"per_block": THREADS}
    launch["threads"] = macros.block
    if rule == "parity":
        shared = -(-macros.channels // macros.deformable_groups)
        launch["per_block"] = macros.block // macros.lanes
        launch["parts"] = -(-shared // macros.summed_channels)
    elif rule == "points":
        assert isinstance(macros, PullbackMacros)
        launch["per_block"] = macros.points
    else:
        launch["tile_rows"], launch["tile_columns"] = macros.tile
    return launch


def copy_channels(macros: SamplingMacros | TransposeMacros) -> int:
    """Return how many channels a pixel has in the image's copy."""
    shared = -(-macros.channels // macros.deformable_groups)
    return -(-shared // macros.vector) * macros.vector * macros.deformable_groups


def parameters_of(name: str, macros: Macros) -> list[dict[str, str]]:
    """Return the parameters of a kernel, in their order, as its source declares them."""
    source = _kernels.source(_kernels.FILES[name])
    declared = re.search(
        rf"\b{name}\((const (?:Geometry|Walk) .*?|int .*?)\) \{{", source, re.DOTALL
    )
    assert declared is not None
    values = asdict(macros)
    values["compute_t"] = "double" if macros.data == "double" else "float"
    found = []
    for each in declared[1].replace("__restrict__ ", "").split(","):
        *kinds, variable = each.split()
        kind, passed = kinds[-1], variable.startswith("*")
        known = values.get(_TYPES.get(kind, kind), kind)
        found.append({"name": variable.lstrip("*"), "type": known + (" *" if passed else "")})
    return found


def parameter_struct() -> dict[str, Any]:
    """Return the layout of struct Geometry, by the type of its indices."""
    return {
        index: {
            "size": len(FIELDS) * size,
            "alignment": size,
            "fields": [
                {"name": name, "type": f"{index}_t", "offset": at * size}
                for at, name in enumerate(FIELDS)
            ],
        }
        for index, size in (("int32", 4), ("int64", 8))
    }


def module_of(source: str, macros: Macros, sha256: str) -> dict[str, Any]:
    """Describe what one compilation gives: the kernels of a source with macros."""
    names = [name for name, file in _kernels.FILES.items() if file == source]
    kernels = {
        name: {"launch": launch_of(name, macros), "parameters": parameters_of(name, macros)}
        for name in names
    }
    assert isinstance(macros, SamplingMacros | TransposeMacros)
    return {
        "source": source,
        "macros": {name.upper(): value for name, value in asdict(macros).items()},
        "copy_channels": copy_channels(macros),
        "sha256": sha256,
        "kernels": kernels,
        "cubin": {},
        "ptx": {},
    }


def written(manifest: Mapping[str, Any]) -> str:
    """Return a manifest as it is in its file."""
    return json.dumps(manifest, indent=1, ensure_ascii=True) + "\n"


def header(manifest: Mapping[str, Any]) -> str:
    """Return the C++ header for the kernels of a manifest."""
    rows = [row for module in manifest["modules"] for row in _rows(module)]
    strides = ", ".join(name.partition(".")[2] for name in FIELDS[-4:])
    plain = [name for name in FIELDS if "." not in name]
    arrays = list(dict.fromkeys(name.partition(".")[0] for name in FIELDS if "." in name))
    checks = "\n".join(
        f'static_assert(offsetof({struct}, {name}) == {at * size}, "{name}");'
        for struct, size in (("Geometry32", 4), ("Geometry64", 8))
        for at, name in enumerate(FIELDS)
    )
    return _HEADER.format(
        version=manifest["version"], strides=strides, plain=_listed(plain),
        arrays=", ".join(arrays), size=len(FIELDS), checks=checks,
        numbers=_listed(name.lower() for name in _NUMBERS), launch=", ".join(_LAUNCH),
        rows="\n".join(rows),
    )  # fmt: skip


def _rows(module: Mapping[str, Any]) -> Iterator[str]:
    """Yield the initializer of struct Kernel for each kernel of a module."""
    macros, stem = module["macros"], stem_of(module["source"], module["sha256"])
    ptx = module["ptx"][max(module["ptx"], key=capability_of)]["file"]
    kinds = [macros.get(name, "") for name in ("DATA", "INDEX", "OFFSET_DATA", "MASK_DATA")]
    numbers = [macros.get(name, 0) for name in _NUMBERS[:-1]]
    for name, kernel in module["kernels"].items():
        launch = [kernel["launch"][each] for each in _LAUNCH]
        texts = ", ".join(json.dumps(each) for each in (name, stem, ptx, *kinds))
        values = ", ".join(map(str, (*numbers, module["copy_channels"], *launch)))
        yield f"    {{{texts},\n     {values}}},"


def _listed(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), 88, subsequent_indent=8 * " ")


def stem_of(source: str, sha256: str) -> str:
    """Return how the names of a module's files begin."""
    return f"{source.partition('.')[0]}-{sha256[:16]}"


_NUMBERS = (
    "CHANNELS", "GROUPS", "DEFORMABLE_GROUPS", "KERNEL_HEIGHT", "KERNEL_WIDTH", "MASKED", "OUTPUTS",
    "GRAD_X", "GRAD_OFFSET", "GRAD_MASK", "COLUMNS", "VECTOR", "LANES", "COPY_CHANNELS",
)  # fmt: skip
_LAUNCH = ("threads", "tile_rows", "tile_columns", "per_block", "parts")
_HEADER = """\
// Written by python -m cupy_dcn build-kernels, of cupy_dcn {version}: the kernels in this folder.
//
// manifest.json beside it says the same and more: how each is launched, and its parameters.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cupy_dcn {{

template <typename index_t>
struct Strides {{
    index_t {strides};
}};

// The first parameter of a kernel, by value. All count elements, not bytes.
template <typename index_t>
struct Geometry {{
    index_t {plain};
    Strides<index_t> {arrays};
}};
typedef Geometry<std::int32_t> Geometry32;
typedef Geometry<std::int64_t> Geometry64;
static_assert(sizeof(Geometry32) == {size} * 4 && sizeof(Geometry64) == {size} * 8, "no padding");
{checks}

// A kernel and what it is specialised for, 0 or "" where it does not matter. It is in the files
// <stem>.sm_NN.cubin, one for each architecture, and as PTX for newer ones.
struct Kernel {{
    const char *name, *stem, *ptx;
    const char *data, *index, *offset_data, *mask_data;
    int {numbers};
    int {launch};
}};

constexpr Kernel kernels[] = {{
{rows}
}};

}}  // namespace cupy_dcn
"""
