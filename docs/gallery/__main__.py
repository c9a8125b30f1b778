"""Makes the pictures of the gallery: ``make gallery``, or ``python docs/gallery``.

Each piece is a file with three functions: ``compute`` works with public functions of the library
and measures, ``report`` says what was measured, ``draw`` makes the figure.
"""

import time
from pathlib import Path

import grids
import lens
import mri
import turbulence
from pictures import save

HERE = Path(__file__).parent
PIECES = lens, turbulence, mri, grids


def main():
    for piece in PIECES:
        start = time.perf_counter()
        result = piece.compute()
        path = HERE / f"{piece.__name__}.jpg"
        save(piece.draw(result), path)
        print(f"{path.name:16} {time.perf_counter() - start:4.1f} s  {piece.report(result)}")


if __name__ == "__main__":
    main()
