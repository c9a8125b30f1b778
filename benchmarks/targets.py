"""What the counters of `shapes.COUNTED` should be at most, and what torchvision's kernels count.

Per column element, one for each channel, tap and output pixel; see `counters.py` for what a
counter is. torchvision 0.29's kernels were counted in the same emulator, once; there are no
half-precision figures of it, and those of S5 are without the convolution that follows. S7 has no
targets: it is there to be held to what it was (`bounds.py`).
"""

from typing import NamedTuple


class Figures(NamedTuple):
    """Counters per column element; None where there is no figure."""

    instructions: float | None = None
    load_sectors: float | None = None
    store_sectors: float | None = None
    atomic_sectors: float | None = None
    dram_bytes: float | None = None


STORES = 0.16  # sectors of a forward
DIRECTIONS = ("forward", "backward")
TARGETS = {
    ("S1", "float32"): (Figures(10, 0.55, STORES, 0, 12), Figures(26, 0.70, None, 0.50, 25)),
    ("S2", "float32"): (Figures(8.5, 0.55, STORES, 0, 15), Figures(24, 0.70, None, 0.52, 30)),
    ("S3", "float32"): (Figures(14, 0.55, STORES, 0, 12.5), Figures(31, 0.75, None, 0.52, 25)),
    ("S4", "float32"): (Figures(28, 1.4, STORES, 0, 15), Figures(48, 1.5, None, 1.25, 29)),
    ("S5", "float32"): (Figures(13, 0.55, STORES, 0, 3.3), Figures(27, 0.60, None, 0.52, 6.5)),
    ("S6", "float32"): (Figures(20, 0.65, STORES, 0, 13.5), Figures(42, 0.80, None, 0.55, 27)),
    ("S7", "float32"): (Figures(), Figures()),
    ("S1", "float16"): (Figures(17, 0.28), Figures(29)),
    ("S2", "float16"): (Figures(15, 0.28), Figures(27)),
}
TORCHVISION = {
    "S1": (Figures(87, 2.6, 0.125, 0), Figures(601, 11.2, 0.13, 2.2)),
    "S2": (Figures(86, 2.4, 0.125, 0), Figures(594, 10.5, 0.13, 2.1)),
    "S3": (Figures(88), Figures(615)),
    "S4": (Figures(79), Figures(662)),
    "S5": (Figures(87), Figures(601)),
    "S6": (Figures(87), Figures(624)),
    "S7": (Figures(), Figures()),
}
# Why a target is missed, behind the line that says so.
REASONS = {
    ("S4", "float32", "forward", "instructions"): "the convolution is among them, 10 or so, which"
    " the target leaves to a product; for them DRAM bytes fall from 13 to 5, and the time of the"
    " roofline by 1.4 to 1.8 (cupy_dcn/_direct_gpu.py)",
}
