"""Hold the counters of small shapes to what they were: tests/test_counters.py compares.

    python benchmarks/bounds.py        count again and write tests/data/counters.json

The emulator counts the same every time, but another NVRTC compiles other instructions, and few
more or less are no news: SLACK is for the version that the file was written with, SLACK_ELSEWHERE
for others (13.0, 12.9 and 12.4 were up to 6.5 % above 13.5; 12.0 has no vector atomics, and up to
24 % more).
"""

import json
import sys
from pathlib import Path

import counters
from emulator import nvrtc
from shapes import COUNTED
from targets import TARGETS

PATH = Path(__file__).parents[1] / "tests" / "data" / "counters.json"
SLACK, SLACK_ELSEWHERE = 0.03, 0.12
LEAST_NVRTC = (12, 1)  # has vector atomics
FLOOR = 0.02  # of a column element: what is this small may change by as much
FASTER = 0.1  # by which the bounds should be renewed
KINDS = (
    "thread_instructions",
    "warp_instructions",
    "load_sectors",
    "store_sectors",
    "atomic_sectors",
    "shared_wavefronts",
    "dram_bytes",
)
SIZES = {"S1": (28, 36), "S2": (12, 20), "S3": (40, 36), "S4": (36, 40), "S5": (28, 36),
         "S6": (20, 28), "S7": (20, 28)}  # fmt: skip


def nvrtc_version():
    return ".".join(map(str, nvrtc.version()))


def measure(name, dtype):
    """Return the counters of a small version of a shape, by direction, per column element.

    The deterministic backward is counted in float32.
    """
    height, width = SIZES[name]
    case = COUNTED[name].of(images=1, height=height, width=width)
    found = {}
    for direction, call in counters.count(case, dtype, deterministic=dtype == "float32").items():
        totals = {kind: sum(getattr(step, kind) for step in call.steps) for kind in KINDS}
        each = {kind: round(total / case.column_elements, 4) for kind, total in totals.items()}
        found[direction] = each | {"steps": len(call.steps)}
    return found


def exceeded(found, bounds, slack):
    """Return a line for each counter that is higher than it was."""
    lines = []
    for kind, before in bounds.items():
        most = before if kind == "steps" else before * (1 + slack) + FLOOR
        if not found[kind] <= most:
            lines.append(f"{kind}: {found[kind]:g}, was {before:g}")
    return lines


def much_better(found, bounds):
    """Return a line for each counter that is far lower than it was."""
    return [
        f"{kind}: {found[kind]:g}, was {before:g}"
        for kind, before in bounds.items()
        if kind != "steps" and found[kind] < before * (1 - FASTER) - FLOOR
    ]


def slack_of(version):
    """Return the slack for an NVRTC version."""
    return SLACK if version == json.loads(PATH.read_text())["nvrtc"] else SLACK_ELSEWHERE


def bounds_of(name, dtype):
    """Return what the counters were, by direction."""
    return json.loads(PATH.read_text())["counters"][f"{name} {dtype}"]


def main():
    found = {f"{name} {dtype}": measure(name, dtype) for name, dtype in TARGETS}
    text = json.dumps({"nvrtc": nvrtc_version(), "counters": found}, indent=1)
    PATH.write_text(text + "\n", encoding="utf-8")
    for name, directions in found.items():
        each = (f"{counts['thread_instructions']:.2f} {d}" for d, counts in directions.items())
        print(f"{name}: instructions {', '.join(each)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
