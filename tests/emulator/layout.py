"""Where the state spaces lie.

Shared memory starts behind the KiB that the system keeps for itself on recent devices. The generic
address space holds the others in windows of 2^40 bytes, below every allocation of global memory; an
address in the state space itself plus the window's start is the generic address.
"""

from __future__ import annotations

SHARED_BASE = 1024
WINDOWS = {"shared": 0x100_0000_0000, "local": 0x200_0000_0000}
WINDOWS |= {"const": 0x300_0000_0000, "param": 0x400_0000_0000}
