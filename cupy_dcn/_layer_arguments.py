"""What a layer is made from: attributes that fit together, first values, and a device."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from ._arguments import require_dtype
from ._arrays import Array, as_array, describe, is_bfloat16, library_of, on_host, require_array
from ._attributes import came, integer, integer_sides, pair
from ._warmup import usable_cupy

DEVICES = "'cpu', 'cuda', 'cuda:N' or a cupy.cuda.Device"


def group_count(name: str, value: object, in_channels: int, out_channels: int = 0) -> int:
    """Return a number of groups that divides the channels."""
    count = integer(name, value, 1)
    for side, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % count:
            raise ValueError(
                f"{side} is {channels}, expected a multiple of {name} = {count};"
                f" every group has {side}/{name} channels"
            )
    return count


def layer_padding(value: object) -> str | tuple[int, int, int, int]:
    """Return 'SAME', 'VALID' or (top, bottom, left, right)."""
    if isinstance(value, str) and value.upper() in ("SAME", "VALID"):
        return value.upper()
    return integer_sides(value, "'SAME' and 'VALID' are known as well")


def layer_pair(name: str, value: object) -> tuple[int, int]:
    """Return (vertical, horizontal), each at least 1."""
    return pair(name, value, 1)


def first_values(
    name: str, attr: object, shape: tuple[int, ...], dtype: np.dtype[Any], default: Array
) -> Array:
    """Return a parameter's first values, a NumPy array of its own."""
    if attr is None or attr is True:
        return default.astype(dtype)
    made = as_array(f"{name}_attr", attr(shape) if callable(attr) else attr)
    if library_of(made) is None and not isinstance(made, (list, tuple)):
        raise TypeError(
            f"{name}_attr must be None, an array or a function that makes one from a shape, got"
            f" {came(attr)}{f', which returns {came(made)}' if callable(attr) else ''};"
            f" {name}_attr=numpy.zeros is such a function"
        )
    values = np.asarray(on_host(made))
    if values.dtype.kind not in "fiub" and not is_bfloat16(values.dtype):
        raise TypeError(
            f"{name}_attr gives an array of dtype {values.dtype}, expected real numbers;"
            f" they are converted to the layer's {dtype}"
        )
    if values.shape != shape:
        raise ValueError(
            f"{name}_attr gives shape {values.shape}, expected the {name}'s {shape};"
            " it is called with that shape if it is a function"
        )
    return values.astype(dtype)


def device_of(value: object) -> Any:
    """Return a cupy.cuda.Device, or None for NumPy."""
    if isinstance(value, str) and value == "cpu":
        return None
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(value, cupy.cuda.Device):
        return value
    if not isinstance(value, str):
        raise TypeError(f"device must be {DEVICES}, got {came(value)}; 'cpu' means NumPy arrays")
    found = re.fullmatch(r"cuda(?::(\d+))?", value)
    if found is None:
        raise ValueError(f"device is {value!r}, expected {DEVICES}; 'cpu' means NumPy arrays")
    cupy = usable_cupy()
    if found[1] is None:
        return cupy.cuda.Device()
    count = cupy.cuda.runtime.getDeviceCount()
    if int(found[1]) >= count:
        raise ValueError(
            f"device is {value!r}, expected 'cuda:0' to 'cuda:{count - 1}';"
            " python -m cupy_dcn info lists the GPUs"
        )
    return cupy.cuda.Device(int(found[1]))


def placed(array: Array, device: Any, copy: bool = False) -> Array:
    """Return an array on a device, a copy if it is elsewhere."""
    if device is None:
        host = on_host(array)
        return np.array(host) if copy and host is array else host  # type: ignore[no-any-return]
    with device:
        make = sys.modules["cupy"].array if copy else sys.modules["cupy"].asarray
        return make(array)  # type: ignore[no-any-return]


def check_names(found: Collection[str], expected: Collection[str], owner: str, hint: str) -> None:
    """Demand the names of a layer's parameters, all of them and no others."""
    missing = [name for name in expected if name not in found]
    others = [name for name in found if name not in expected]
    if missing or others:
        parts = [f"no {_listed(missing)}"] * bool(missing) + [_listed(others)] * bool(others)
        raise ValueError(
            f"{owner} has {' and '.join(parts)}, expected exactly {_listed(expected)}; {hint}"
        )


def _listed(names: Iterable[str]) -> str:
    texts = [repr(name) for name in names]
    return ", ".join(texts if len(texts) <= 6 else [*texts[:5], f"{len(texts) - 5} more"])


def check_state(state: object, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Check a state against the parameters that it replaces: names, shapes and dtypes."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state must be a mapping from names to arrays, got {describe(state)};"
            " state_dict() returns such a one, load(path) reads one"
        )
    check_names(state, parameters, "state", "bias_attr=False makes a layer without a bias")
    return {name: check_value(name, state[name], held) for name, held in parameters.items()}


def check_value(name: str, value: object, held: Array) -> Array:
    """Check an array that takes a parameter's place."""
    axes = "(C_out, C_in/groups, KH, KW)" if held.ndim == 4 else "(C_out,)"
    array = require_array(name, value, axes)
    require_dtype(name, array, held, "layer")
    if array.shape != held.shape:
        raise ValueError(
            f"{name} has shape {array.shape}, expected the layer's {axes} = {held.shape};"
            " channels, groups and kernel_size must be those the array was made for"
        )
    return array
