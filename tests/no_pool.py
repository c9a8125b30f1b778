"""A plugin of pytest: every CuPy array is an allocation of its own, as compute-sanitizer wants."""

import cupy

cupy.cuda.set_allocator(None)
