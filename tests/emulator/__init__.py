"""A device made of NumPy: runs the PTX that NVRTC makes of CUDA kernels, and judges it.

No GPU is needed, so the kernels can be tested anywhere. Every thread of a launch is a lane of NumPy
arrays, one array to a register. The judge is stricter than a device: what a device lets pass by
luck, such as a read just past an array or two threads racing to write the same value, is a `Crime`
here.
"""

from .counters import Counters
from .errors import (
    BadLaunch,
    BarrierDivergence,
    Crime,
    EndlessLoop,
    Misaligned,
    OutOfBounds,
    Place,
    Race,
    Trap,
    Uninitialised,
    UnsupportedInstruction,
)
from .memory import Memory
from .module import Kernel, Module
from .nvrtc import CompileError, NvrtcMissing, compile_ptx

__all__ = [
    "BadLaunch",
    "BarrierDivergence",
    "CompileError",
    "Counters",
    "Crime",
    "EndlessLoop",
    "Kernel",
    "Memory",
    "Misaligned",
    "Module",
    "NvrtcMissing",
    "OutOfBounds",
    "Place",
    "Race",
    "Trap",
    "Uninitialised",
    "UnsupportedInstruction",
    "compile_ptx",
]
