"""The part of CuPy that the library uses, on an emulated device: its host side without a GPU.

Arrays live in the emulator's memory and kernels run in it; what CuPy itself does (views, copies,
elementwise operations, products by cuBLAS, memory pools, streams) is done by NumPy under CuPy's
rules: the same results, the same refusals, the same copies. What CuPy has and the stand-in lacks
is an error, never something like it. On top of CuPy's own rules, reading what nothing has written
is an error, and `log` tells what a device would have been asked to do.

`install` puts it in CuPy's place. `configure` changes the machine, `recorded` gives a block of code
a log of its own, `capturing` puts a stream into graph capture.
"""

from ._devices import device_memory
from ._install import install
from ._log import (
    Allocation,
    Launch,
    Log,
    Operation,
    Product,
    Synchronisation,
    Transfer,
    log,
    recorded,
)
from ._settings import configure, settings
from ._streams import capturing

__all__ = [
    "Allocation",
    "Launch",
    "Log",
    "Operation",
    "Product",
    "Synchronisation",
    "Transfer",
    "capturing",
    "configure",
    "device_memory",
    "install",
    "log",
    "recorded",
    "settings",
]
