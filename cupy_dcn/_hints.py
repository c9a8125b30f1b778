"""What may help where an argument is no array of the right kind: the ends of error messages."""

from __future__ import annotations

import numbers

FEW = 4  # channels of a picture, as files have them: last


def for_no_array(value: object) -> str:
    """Say how an array is made of what came."""
    if isinstance(value, (list, tuple)):
        return "numpy.asarray(...) converts lists"
    if isinstance(value, numbers.Number):
        return "numpy.full(shape, number) makes one of a number"
    if type(value).__module__.partition(".")[0] == "dask":
        return "cupy_dcn.dask has functions for Dask's"
    return "other libraries' arrays are taken by DLPack or their buffers"


def for_dimensions(name: str, shape: tuple[int, ...], rank: int) -> str:
    """Say how an array gets another number of axes; not by reshape, which scatters pixels."""
    if rank == 1:
        return f"{name}.reshape(-1) has one axis"
    if len(shape) > rank:
        return f"{name}[0] drops the first axis"
    if len(shape) == 3 and shape[-1] <= FEW < min(shape[:2]):  # (H, W, colours)
        return f"channels come before rows: numpy.moveaxis({name}, -1, 0)[None]"
    return f"{name}[{', '.join(['None'] * (rank - len(shape)))}] adds axes in front"


def for_channels(name: str, shape: tuple[int, ...], expected: int) -> str:
    """Say, where the last axis is what the channels should be, how they come second; else ""."""
    if shape[-1] != expected:
        return ""
    return f"; {name}'s last axis has {expected}: numpy.moveaxis({name}, -1, 1) makes it the second"
