"""Products of a sparse matrix with four entries a row, added to memory that is already there.

SciPy's public ``matrix @ rows`` makes a new result each time: fresh memory that costs more page
faults than the product takes. The routines behind it add to an array they are given. They are
private, so where a SciPy lacks them its public product serves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from scipy.sparse import csr_array

from ._arrays import Array

_routines: Any
try:
    from scipy.sparse import _sparsetools as _routines
except ImportError:  # the public products below serve
    _routines = None


class FourPerRow(NamedTuple):
    """A sparse matrix (rows, columns): ``indices`` and ``data`` are (rows, 4)."""

    starts: Array
    indices: Array
    data: Array
    columns: int

    def add_product(self, dense: Array, out: Array) -> None:
        """Add ``matrix @ dense`` to ``out``; both have a row's values side by side."""
        if _routines is None:
            out += self._public() @ dense
            return
        rows, width = out.shape
        _routines.csr_matvecs(
            rows, self.columns, width, self.starts, self.indices.reshape(-1),
            self.data.reshape(-1), dense.reshape(-1), out.reshape(-1),
        )  # fmt: skip

    def add_transposed_product(self, dense: Array, out: Array) -> None:
        """Add ``matrix^T @ dense`` to ``out``."""
        if _routines is None:
            out += self._public().T @ dense
            return
        rows, width = dense.shape
        parts = self.starts, self.indices.reshape(-1), self.data.reshape(-1)
        if width == 1:  # four times faster than the loop over one vector
            _routines.csc_matvec(self.columns, rows, *parts, dense.reshape(-1), out.reshape(-1))
            return
        _routines.csc_matvecs(self.columns, rows, width, *parts, dense.reshape(-1), out.reshape(-1))

    def _public(self) -> csr_array:
        parts = self.data.reshape(-1), self.indices.reshape(-1), self.starts
        return csr_array(parts, shape=(len(self.data), self.columns))
