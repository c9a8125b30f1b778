"""The command line: ``python -m cupy_dcn info | selftest | demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, diagnostics


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 for what failed."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"cupy_dcn {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what a shell reports for Ctrl-C


def _run(options: argparse.Namespace) -> int:
    if options.command == "info":
        diagnostics.info()
    elif options.command == "selftest":
        return 0 if diagnostics.selftest() else 1
    else:
        from .demo import demo  # SciPy's image functions take a moment to import

        demo(options.image, options.output)
    return 0


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupy_dcn",
        description="Deformable convolution (v1, v2) for NumPy arrays, forward and backward.",
    )
    parser.add_argument("--version", action="version", version=f"cupy_dcn {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="info|selftest|demo")
    commands.add_parser(
        "info",
        help="print the versions of everything involved",
        description="Print the versions of cupy_dcn and of all it works with, a line each, to paste"
        " into a bug report.",
    )
    commands.add_parser(
        "selftest",
        help="compare every stage with plain loops",
        description="Compare every stage in every dtype (bfloat16 where ml_dtypes is installed)"
        " with plain loops in float64, in a few seconds. Prints the largest errors; the exit"
        " status is 1 if one is beyond its limit.",
    )
    demo = commands.add_parser(
        "demo",
        help="warp a picture and recover it by gradient descent",
        description="Warp a picture by a smooth random displacement of a few pixels and recover it"
        " by gradient descent on the offsets of a deformable convolution. Prints the error before"
        " and after and writes one figure. Needs matplotlib and tqdm:"
        " pip install 'cupy_dcn[demo]'.",
    )
    demo.add_argument(
        "image",
        nargs="?",
        metavar="IMAGE",
        help="a picture of yours in any common format, used at up to 320 pixels a side"
        " (default: a photograph within matplotlib)",
    )
    demo.add_argument(
        "-o",
        "--output",
        default="demo.png",
        metavar="OUT.png",
        help="where the figure goes; its ending chooses the format (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
