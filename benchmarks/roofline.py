"""A model of the time a GPU takes at best: the roofline. Nothing in here was measured.

Every step of a call, a kernel, a product or a copy, takes as long as the busiest part of the chip:

    time(step) = max(DRAM bytes / bandwidth,
                     L2 bytes / bandwidth,             sectors asked for, no hit in L1
                     atomic sectors / rate,            each read and written in the L2
                     L1 wavefronts / rate,             4 sectors or one access to shared memory each
                     warp instructions / issue rate,   4 a cycle and multiprocessor
                     float instructions / lanes,
                     product FLOP / peak)
    time(call) = sum of its steps

All parts at their peak, in perfect overlap; latency, launches (several microseconds each, hidden
only behind longer kernels), occupancy, unbalanced blocks and cuBLAS's own losses add nothing, so a
real GPU is slower. DRAM bytes are those of a cache that is cold between steps: where the L2 holds
the columns from one step to the next, DRAM is less busy than this says, and the model is too slow
there. `warm=True` is that other end: DRAM sees a call's inputs and outputs only.

Sources of the figures: NVIDIA's architecture white papers (Tesla V100 2017, A100 2020, H100 2022,
Ada 2022) and data sheets, for the SXM models of the first three, at their boost clocks; their
bytes of L2 a cycle: 2048 and 5120 in the A100 paper's comparison with V100. NVIDIA publishes none
for H100, taken to be A100's at 1.755 GHz, nor for the RTX 4090, taken to be 2048. Nor are there
rates of atomics: here an atomic sector costs the L2 two accesses of a sector.
"""

from dataclasses import dataclass
from typing import NamedTuple

SECTOR = 32  # bytes
SCHEDULERS = 4  # of a multiprocessor, an instruction of a warp a cycle each
SECTORS_A_WAVEFRONT = 4  # L1 and shared memory: 128 bytes a cycle and multiprocessor
WORK = slice(2, -2)  # of a step's fields: what grows with the threads
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Device:
    """Peaks of a GPU: per second, and per cycle where it says so."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    float_lanes: int  # of a multiprocessor
    dram_bytes: float
    l2_bytes: float
    float32_flops: float  # outside the tensor cores, as products of float32 are by default
    float16_flops: float  # tensor cores, sums in float32, dense

    @property
    def cycles(self):
        """Return the cycles of all multiprocessors together in a second."""
        return self.multiprocessors * self.clock


DEVICES = {
    device.name: device
    for device in (
        Device("V100", "sm_70", 80, 1.53 * GIGA, 64, 900 * GIGA, 2048 * 1.53 * GIGA,
               15.7 * TERA, 125 * TERA),
        Device("A100", "sm_80", 108, 1.41 * GIGA, 64, 1555 * GIGA, 5120 * 1.41 * GIGA,
               19.5 * TERA, 312 * TERA),
        Device("H100", "sm_90", 132, 1.98 * GIGA, 128, 3350 * GIGA, 5120 * 1.755 * GIGA,
               66.9 * TERA, 989 * TERA),
        Device("RTX 4090", "sm_89", 128, 2.52 * GIGA, 128, 1008 * GIGA, 2048 * 2.52 * GIGA,
               82.6 * TERA, 165 * TERA),
    )
}  # fmt: skip


class Step(NamedTuple):
    """What one kernel, product or copy asks of a device."""

    name: str
    kind: str  # "kernel", "product" or "copy"
    threads: int = 0
    thread_instructions: float = 0
    warp_instructions: float = 0
    float_instructions: float = 0
    load_sectors: float = 0
    store_sectors: float = 0
    atomic_sectors: float = 0
    shared_wavefronts: float = 0
    dram_bytes: float = 0
    flops: float = 0
    half: bool = False  # factors of 16 bits
    code: str | None = None  # the source of a kernel

    def scaled(self, factor):
        """Return a kernel of so many times the threads."""
        work = {name: factor * getattr(self, name) for name in self._fields[WORK]}
        return self._replace(**work)


def terms(step, device, warm=False):
    """Return the seconds that each part of a device is busy with a step."""
    sectors = step.load_sectors + step.store_sectors
    wavefronts = sectors / SECTORS_A_WAVEFRONT + step.shared_wavefronts
    flops = device.float16_flops if step.half else device.float32_flops
    return {
        "DRAM": 0.0 if warm else step.dram_bytes / device.dram_bytes,
        "L2": (sectors * SECTOR or step.dram_bytes) / device.l2_bytes,
        "atomics": 2 * step.atomic_sectors * SECTOR / device.l2_bytes,
        "L1": wavefronts / device.cycles,
        "issue": step.warp_instructions / (SCHEDULERS * device.cycles),
        "float": step.float_instructions / (device.float_lanes * device.cycles),
        "product": step.flops / flops,
    }


def seconds(step, device, warm=False):
    """Return the time of a step: its busiest part's."""
    return max(terms(step, device, warm).values())


def estimate(steps, device, warm=False, compulsory_bytes=0):
    """Return the seconds of a call; ``compulsory_bytes``: what DRAM sees of it in any case."""
    total = sum(seconds(step, device, warm) for step in steps)
    return max(total, compulsory_bytes / device.dram_bytes)


def roof(device, flops, compulsory_bytes, half):
    """Return the least seconds for a call however it is written: its products or its arrays."""
    peak = device.float16_flops if half else device.float32_flops
    return max(flops / peak, compulsory_bytes / device.dram_bytes)


def bottleneck(steps, device):
    """Return the part of the device that most of the time goes to."""
    shares = {}
    for step in steps:
        parts = terms(step, device)
        name = max(parts, key=parts.get)
        shares[name] = shares.get(name, 0.0) + parts[name]
    return max(shares, key=shares.get)
