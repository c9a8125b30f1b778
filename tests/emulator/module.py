"""A module: PTX read once, its kernels, and its variables in a device's memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from .counters import Counters
from .errors import BadLaunch
from .kernel import Kernel, constants_of
from .launch import SHARED_DEFAULT, Launch
from .memory import Allocation, Memory
from .ptx import Program, parse

STEP_LIMIT = 1_000_000

_programs: dict[str, tuple[Program, dict[str, Kernel]]] = {}


class Module:
    """The kernels of one PTX text; reading and translating it is done once a process."""

    def __init__(self, ptx: str) -> None:
        self.key = hashlib.sha256(ptx.encode()).hexdigest()
        if self.key not in _programs:
            program = parse(ptx)
            kernels = {
                name: Kernel(program, function) for name, function in program.functions.items()
            }
            _programs[self.key] = program, kernels
        self.program, self.kernels = _programs[self.key]

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: Sequence[bytes],
        memory: Memory,
        *,
        shared_bytes: int = 0,
        shared_limit: int = SHARED_DEFAULT,
        count: bool = True,
        check: bool = True,
        step_limit: int = STEP_LIMIT,
        first_block: int = 0,
        schedule: int | None = None,
    ) -> Counters:
        """Run a kernel to its end.

        ``arguments`` are the bytes of each parameter. ``shared_limit`` is what the kernel opted in
        to, ``step_limit`` how many blocks of code a batch of threads may run. ``check`` looks for
        races; addresses, alignment and unwritten memory are always checked. Blocks before
        ``first_block`` are left out: of a launch too large to be run, the end. ``schedule`` numbers
        an order of blocks and of atomics; by default they come as they are counted.
        """
        if name not in self.kernels:
            raise BadLaunch(f"no kernel {name}: there are {', '.join(self.kernels)}")
        kernel = self.kernels[name]
        constants = constants_of(self.program, kernel.symbols)
        store = Allocation(0, len(constants), "private")
        store.bytes[: len(constants)] = np.frombuffer(constants, np.uint8)
        store.complete = True
        return Launch(
            kernel,
            grid,
            block,
            arguments,
            memory,
            self._symbols(memory),
            store,
            shared_bytes=shared_bytes,
            shared_limit=shared_limit,
            count=count,
            check=check,
            step_limit=step_limit,
            first_block=first_block,
            schedule=schedule,
        ).run()

    def _symbols(self, memory: Memory) -> dict[str, int]:
        """Return the addresses of the module's variables in a device's memory."""
        found = {}
        for variable in self.program.variables:
            if variable.space == "global":
                key = self.key, variable.name
                if key not in memory.symbols:
                    address = memory.allocate(variable.size)
                    content = variable.content or bytes(variable.size)
                    memory.data(address, variable.size)[:] = np.frombuffer(content, np.uint8)
                    memory.written(address, variable.size)[:] = True
                    memory.symbols[key] = address
                found[variable.name] = memory.symbols[key]
        return found
