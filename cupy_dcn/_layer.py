"""What the layers share: attributes, named parameters, their device and their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ._arguments import require_dtype
from ._arrays import AnyArray, Array, library_of, of_one_library, require_array
from ._attributes import integer
from ._files import opened, write_arrays
from ._layer_arguments import (
    check_names,
    check_state,
    check_value,
    device_of,
    first_values,
    group_count,
    layer_padding,
    layer_pair,
    placed,
)
from ._warmup import dtype_of

Initial = AnyArray | Callable[[tuple[int, ...]], AnyArray] | bool | None

Kind = TypeVar("Kind", bound="Layer")


class Layer:
    """A weight, perhaps a bias, and the attributes of a deformable convolution."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        deformable_groups: int = 1,
        groups: int = 1,
        weight_attr: Initial = None,
        bias_attr: Initial = None,
        *,
        dtype: npt.DTypeLike = "float32",
        device: Any = "cpu",
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        self.kernel_size = layer_pair("kernel_size", kernel_size)
        self.stride = layer_pair("stride", stride)
        self.padding = layer_padding(padding)
        self.dilation = layer_pair("dilation", dilation)
        self.deformable_groups = group_count(
            "deformable_groups", deformable_groups, self.in_channels
        )
        self.groups = group_count("groups", groups, self.in_channels, self.out_channels)
        if weight_attr is False:
            raise ValueError(
                "weight_attr is False, expected None, an array or a function that makes one; only a"
                " bias can be left out: bias_attr=False"
            )
        kind, place = dtype_of("dtype", dtype), device_of(device)
        first = self._first_values(weight_attr, bias_attr, kind, np.random.default_rng(rng))
        self._parameters = {name: placed(values, place) for name, values in first.items()}

    def _first_values(
        self, weight_attr: Initial, bias_attr: Initial, dtype: np.dtype[Any],
        rng: np.random.Generator,
    ) -> dict[str, Array]:  # fmt: skip
        """Draw the weight, and the bias if there is one."""
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        deviation = np.sqrt(2 / (np.prod(self.kernel_size) * self.in_channels))
        drawn = rng.normal(0, deviation, shape)
        first = {"weight": first_values("weight", weight_attr, shape, dtype, drawn)}
        if bias_attr is not False:
            zeros = np.zeros(self.out_channels)
            first["bias"] = first_values("bias", bias_attr, zeros.shape, dtype, zeros)
        return first

    @property
    def weight(self) -> Array:
        """The weight (C_out, C_in/groups, KH, KW)."""
        return self._parameters["weight"]

    @weight.setter
    def weight(self, value: AnyArray) -> None:
        self._set("weight", value)

    @property
    def bias(self) -> Array | None:
        """The bias (C_out,), or None."""
        return self._parameters.get("bias")

    @bias.setter
    def bias(self, value: AnyArray) -> None:
        self._set("bias", value)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of parameters and images."""
        return self.weight.dtype

    @property
    def device(self) -> str:
        """Where the parameters are: 'cpu', or 'cuda:N'."""
        if library_of(self.weight) == "NumPy":
            return "cpu"
        return f"cuda:{self.weight.device.id}"  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        parts = [str(self.in_channels), str(self.out_channels), f"kernel_size={self.kernel_size}"]
        usual = {
            "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "deformable_groups": 1,
            "groups": 1,
        }  # fmt: skip
        for name, value in usual.items():
            if (held := getattr(self, name)) != value:
                parts.append(f"{name}={held!r}")
        parts += ["bias_attr=False"] * (self.bias is None)
        parts += [f"dtype='{self.dtype}'", f"device='{self.device}'"]
        return f"{type(self).__name__}({', '.join(parts)})"

    def to(self: Kind, device: Any) -> Kind:
        """Move the parameters to a device, in place.

        Parameters
        ----------
        device : str or cupy.cuda.Device
            'cpu' for NumPy arrays; 'cuda' for CuPy's on its current device, 'cuda:1' for those of
            another.

        Returns
        -------
        the layer itself

        Raises
        ------
        ImportError, RuntimeError
            If there is no CuPy, or it finds no GPU.
        TypeError, ValueError
            If it is no device, or none that there is.
        """
        place = device_of(device)
        self._parameters = {name: placed(held, place) for name, held in self._parameters.items()}
        return self

    def state_dict(self) -> dict[str, Array]:
        """Return the parameters by their names in Paddle's and PyTorch's state dictionaries.

        Returns
        -------
        dict from str to ndarray
            The layer's own arrays, of its library: to change one in place is to change the layer,
            and a snapshot takes copies.
        """
        return dict(self._parameters)

    def load_state_dict(self, state: Mapping[str, AnyArray]) -> None:
        """Take copies of other parameters, from NumPy or CuPy arrays on any device.

        Parameters
        ----------
        state : mapping from str to ndarray
            What `state_dict` returns for a layer of the same channels, kernel, groups and dtype.

        Raises
        ------
        TypeError, ValueError
            If a name is missing or unknown, or a shape or dtype is not the layer's. Nothing is
            loaded then.
        """
        checked = check_state(state, self._parameters)
        place = device_of(self.device)
        self._parameters = {name: placed(a, place, copy=True) for name, a in checked.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the parameters to a file: what `numpy.load` or safetensors read anywhere.

        Parameters
        ----------
        path : path
            Ends in ``.npz``, or in ``.safetensors`` (with the extra of that name). An existing file
            is replaced once the new one is whole.
        """
        write_arrays(path, self._parameters)

    def load(self, path: str | os.PathLike[str], *, prefix: str = "") -> None:
        """Read the parameters from a file: of this library, or of Paddle's or PyTorch's layers.

        Parameters
        ----------
        path : path
            A ``.npz`` or ``.safetensors`` file. Only the arrays of this layer are read.
        prefix : str
            What stands before the names of this layer in the file of a whole network, such as
            ``"backbone.dcn."``. Arrays with other names are ignored then.

        Raises
        ------
        ImportError
            If the file is of safetensors and there is no such package.
        TypeError, ValueError
            As `load_state_dict`, and where the file is of neither kind. Nothing is loaded then.

        Notes
        -----
        Python objects in a .npz file are refused, so loading a file runs no code. A checkpoint that
        holds such objects (``.pdparams``, ``.pt``) is first saved as one of these in its framework:
        ``numpy.savez(path, **{name: t.numpy() for name, t in net.state_dict().items()})``.
        """
        with opened(path) as (names, read):
            found = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            hint = "bias_attr=False makes a layer without a bias"
            starts = sorted({n.removesuffix("weight") for n in names if n.endswith("weight")})
            if "weight" not in found and starts:
                known = ", ".join(f"prefix={start!r}" for start in starts[:4])
                hint = f"the file has weights for {known}{', ...' * (len(starts) > 4)}"
            owner = f"{os.fspath(path)}" + (f" under prefix={prefix!r}" if prefix else "")
            check_names(found, self._parameters, owner, hint)
            state = {name: read(prefix + name) for name in self._parameters}
        self.load_state_dict(state)

    def _attributes(self) -> dict[str, Any]:
        """Return the keyword arguments of the functions."""
        names = "stride", "padding", "dilation", "deformable_groups", "groups"
        return {name: getattr(self, name) for name in names}

    def _set(self, name: str, value: object) -> None:
        held = self._parameters.get(name)
        if held is None:
            raise ValueError(
                f"this layer has no {name}, expected one that was made with it;"
                f" {type(self).__name__}(..., {name}_attr=None) makes such a layer"
            )
        value, _ = of_one_library({name: value, "the layer": held})
        self._parameters[name] = check_value(name, value, held)

    def _check_x(self, x: object) -> Array:
        """Check what concerns x and the layer; the rest is the functions' to check."""
        x, _ = of_one_library({"x": x, "the layer": self.weight})
        array = require_array("x", x, "(N, C_in, H, W)")
        require_dtype("x", array, self.weight, "layer")
        if array.shape[1] != self.in_channels:
            raise ValueError(
                f"x has {array.shape[1]} channels (shape {array.shape}), expected in_channels ="
                f" {self.in_channels}; axes are (N, C_in, H, W)"
            )
        return array
