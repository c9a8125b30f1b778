"""Named arrays in files: .npz, and .safetensors where that package is installed."""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ._arrays import Array, on_host
from ._warmup import dtype_of

FORMATS = (".npz", ".safetensors")


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Array]) -> None:
    """Write arrays of either library; the file is whole or stays what it was."""
    target = Path(path)
    write = {".npz": _write_npz, ".safetensors": _write_safetensors}[_format_of(target)]
    with replacing(target) as part:
        write(part, {name: np.ascontiguousarray(on_host(a)) for name, a in arrays.items()})


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Lend a path to write to, which becomes ``target`` in one step: a reader sees all or nothing.

    It is nobody else's, so that several may write to one target: the last to end is what stays.
    """
    part = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def opened(
    path: str | os.PathLike[str],
) -> Iterator[tuple[list[str], Callable[[str], Array]]]:
    """Give the names in a file, and what reads the array of a name."""
    source = Path(path)
    if _format_of(source) == ".safetensors":
        package = _safetensors()
        try:
            opening = package.safe_open(source, framework="numpy")
        except package.SafetensorError as error:
            raise ValueError(f"{source} is no .safetensors file ({error})") from error
        with opening as file:
            yield list(file.keys()), file.get_tensor
        return
    if source.exists() and not zipfile.is_zipfile(source):
        raise ValueError(f"{source} is no .npz file, expected what numpy.savez writes")
    with np.load(source, allow_pickle=False) as file:
        yield list(file.files), lambda name: _named_bfloat16(file[name])


def _format_of(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise ValueError(
            f"the file is {path.name!r}, expected a name that ends in {' or '.join(FORMATS)};"
            " numpy.savez(path, **{name: t.numpy() for name, t in net.state_dict().items()})"
            " writes such a file in PyTorch and Paddle"
        )
    return path.suffix


def _named_bfloat16(array: Array) -> Array:
    """Return bfloat16, which .npz files hold as two bytes without a name."""
    nameless = array.dtype.kind == "V" and array.dtype.itemsize == 2
    return array.view(dtype_of("dtype", "bfloat16")) if nameless else array


def _write_npz(path: Path, arrays: dict[str, Array]) -> None:
    with path.open("wb") as file:  # NumPy would append .npz to a name
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write_safetensors(path: Path, arrays: dict[str, Array]) -> None:
    _safetensors().numpy.save_file(arrays, path)


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f".safetensors files need safetensors, which could not be imported ({error});"
            " pip install 'cupy_dcn[safetensors]' brings it"
        ) from error
    module: ModuleType = safetensors
    return module
