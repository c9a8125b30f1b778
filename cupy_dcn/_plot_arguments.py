"""The arguments of the pictures: which layers sample, and from which output pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ._arguments import check_mask, check_offset
from ._arrays import Array, as_array, library_of, on_host, require_array
from ._attributes import came, counted, geometry_of, is_integer, pair
from ._geometry import Geometry
from ._receptive_field import Sampling


def check_image(image: npt.ArrayLike) -> Array:
    """Return a picture as ``imshow`` takes it."""
    picture = np.asarray(on_host(as_array("image", image)))
    if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4)):
        return picture
    raise ValueError(
        f"image has shape {picture.shape}, expected (H, W), (H, W, 3) or (H, W, 4);"
        " one channel of x is x[n, c], a colour picture is numpy.moveaxis(x[n], 0, -1)"
    )


def check_layers(
    size: tuple[int, ...], offset: object, mask: object, settings: Mapping[str, object]
) -> list[Sampling]:
    """Return the layers of one offset, or of a list of them, from the image's up.

    A setting of several layers is one for all of them, or a list of theirs.
    """
    if not _is_several(offset):
        return [_check_layer(size, offset, mask, settings, "image")]
    offsets: Sequence[object] = offset  # type: ignore[assignment]
    masks = [None] * len(offsets) if mask is None else _one_each("mask", mask, len(offsets))
    each = {name: _one_each(name, value, len(offsets)) for name, value in settings.items()}
    layers: list[Sampling] = []
    for number, one in enumerate(offsets):
        own = {name: values[number] for name, values in each.items()}
        owner = "image" if number == 0 else f"the output of layer {number - 1}"
        try:
            layers.append(_check_layer(size, one, masks[number], own, owner))
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {number}, counted from the image's: {error}") from None
        size = (layers[-1].geometry.out_height, layers[-1].geometry.out_width)
    return layers


def _is_several(offset: object) -> bool:
    return (
        isinstance(offset, (list, tuple))
        and len(offset) > 0
        and all(library_of(as_array("offset", each)) for each in offset)
    )


def _one_each(name: str, value: object, layers: int) -> Sequence[Any]:
    """Return a value for each layer: a list has them, anything else is the same for all."""
    if name == "mask" and not isinstance(value, (list, tuple)):
        raise TypeError(
            f"mask must be a list of {layers} masks, one for each offset, got {came(value)};"
            " None stands for a layer without"
        )
    if not isinstance(value, list) and name != "mask":
        return [value] * layers
    if len(value) != layers:  # type: ignore[arg-type]
        raise ValueError(
            f"{name} has {counted(len(value), 'value')},"  # type: ignore[arg-type]
            f" expected {layers}, one for each offset; what differs along the axes is a tuple"
        )
    return value  # type: ignore[return-value]


def _check_layer(
    size: tuple[int, ...], offset: Any, mask: Any, settings: Mapping[str, Any], owner: str
) -> Sampling:
    """Return one layer that samples an image of this size, if all fits together."""
    offset, mask = on_host(as_array("offset", offset)), on_host(as_array("mask", mask))
    geometry = _geometry(size, offset, owner, **settings)
    first = _first_channel(settings["deformable_group"], geometry)
    taps = slice(first, first + geometry.taps)
    if mask is not None:
        mask = check_mask(mask, geometry, getattr(mask, "dtype", offset.dtype), "offset")
        mask = mask[0, taps].astype(np.float64)
    pairs = offset[0].reshape(-1, 2, *offset.shape[2:])
    return Sampling(geometry, pairs[taps].astype(np.float64), mask)


def _geometry(
    size: tuple[int, ...],
    offset: Array,
    owner: str,
    kernel_size: object,
    stride: object,
    padding: object,
    dilation: object,
    deformable_group: object,
) -> Geometry:
    """Return the geometry of sampling an image of this size with this offset."""
    require_array("offset", offset, "(1, 2*deformable_groups*KH*KW, OH, OW)")
    if offset.shape[0] != 1:
        raise ValueError(
            f"offset has a batch of {offset.shape[0]}, expected 1, that of the image drawn;"
            " pass offset[n : n + 1] for image n"
        )
    kernel = pair("kernel_size", kernel_size, 1)
    groups = max(offset.shape[1] // (2 * kernel[0] * kernel[1]), 1)
    shape = (1, groups, *size)  # a channel for each deformable group
    geometry = geometry_of(shape, kernel, stride, padding, dilation, groups, 1, owner)
    check_offset(offset, geometry, offset.dtype, owner)
    return geometry


def _first_channel(deformable_group: object, geometry: Geometry) -> int:
    """Return the channel of the mask where the deformable group starts."""
    if not is_integer(deformable_group):
        raise TypeError(
            f"deformable_group must be an int, got {came(deformable_group)}; the first one is 0"
        )
    number: int = deformable_group  # type: ignore[assignment]
    if not 0 <= number < geometry.deformable_groups:
        raise ValueError(
            f"deformable_group is {number}, expected 0 <= deformable_group <"
            f" deformable_groups = {geometry.deformable_groups};"
            " offset has 2*deformable_groups*KH*KW channels"
        )
    return number * geometry.taps


def check_pixels(at: object, geometry: Geometry) -> list[tuple[int, int]]:
    """Return the output pixels to draw as [(y, x), ...]."""
    size = (geometry.out_height, geometry.out_width)
    try:
        pairs = [tuple(each) for each in at]  # type: ignore[attr-defined]
    except TypeError:
        pairs = [tuple(at)] if isinstance(at, (Sequence, np.ndarray)) else []
    if not pairs or any(len(each) != 2 for each in pairs):
        raise ValueError(
            f"at is {came(at)}, expected an output pixel (y, x) or several of them,"
            " for example at=(4, 7) or at=[(4, 7), (8, 7)]"
        )
    pixels = []
    for each in pairs:
        if not all(is_integer(number) for number in each):
            raise TypeError(
                f"at has {each}, expected two ints (y, x); round a location to a pixel first"
            )
        y, x = int(each[0]), int(each[1])
        if not (0 <= y < size[0] and 0 <= x < size[1]):
            raise ValueError(
                f"at has ({y}, {x}), expected 0 <= y < OH = {size[0]} and 0 <= x < OW = {size[1]};"
                " these are pixels of the output, the size of offset"
            )
        pixels.append((y, x))
    return pixels
