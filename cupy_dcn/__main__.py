"""The command line: ``python -m cupy_dcn info | selftest | warmup | demo``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from time import perf_counter

from . import __version__, diagnostics, warmup


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 1 for what failed."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"cupy_dcn {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # what a shell reports for Ctrl-C


def _run(options: argparse.Namespace) -> int:
    if options.command == "info":
        diagnostics.info()
    elif options.command == "selftest":
        return 0 if diagnostics.selftest() else 1
    elif options.command == "warmup":
        _warmup(options)
    else:
        from .demo import demo  # SciPy's image functions take a moment to import

        demo(options.image, options.output, animation=options.animation)
    return 0


def _warmup(options: argparse.Namespace) -> None:
    """Compile the kernels of every combination of channels, kernel size and dtype; a line each."""
    for channels, kernel, dtype in itertools.product(
        options.channels, options.kernel_size, options.dtype
    ):
        start = perf_counter()
        count = warmup(
            channels,
            kernel,
            out_channels=options.out_channels,
            groups=options.groups,
            deformable_groups=options.deformable_groups,
            dtype=dtype,
            offset_dtype=options.offset_dtype,
            mask_dtype=options.mask_dtype,
            mask=options.mask,
            backward=options.backward,
        )
        layer = f"{channels} channels, {kernel[0]}x{kernel[1]}, {dtype}"
        print(f"{layer}: {count} kernels loaded in {perf_counter() - start:.1f} s", flush=True)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cupy_dcn",
        description="Deformable convolution (v1, v2) for NumPy and CuPy arrays, forward and"
        " backward.",
    )
    parser.add_argument("--version", action="version", version=f"cupy_dcn {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="info|selftest|warmup|demo"
    )
    commands.add_parser(
        "info",
        help="print the versions of everything involved, and the GPUs",
        description="Print the versions of cupy_dcn and of all it works with, the GPUs or why none"
        " is usable, and where the CUDA sources and their compiled kernels are; to paste into a bug"
        " report.",
    )
    commands.add_parser(
        "selftest",
        help="compare every stage with plain loops",
        description="Compare every stage in every dtype (bfloat16 where ml_dtypes is installed),"
        " on NumPy arrays and where there is a GPU on CuPy arrays, with plain loops in float64, in"
        " a few seconds (on a GPU, some more the first time, to compile the kernels). Prints the"
        " largest errors; the exit status is 1 if one is beyond its limit.",
    )
    _add_warmup(commands)
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
    demo.add_argument(
        "--animation", metavar="OUT.gif", help="where a GIF of the descent goes (default: none)"
    )
    return parser


def _add_warmup(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "warmup",
        help="compile the CUDA kernels of layers ahead",
        description="Compile the CUDA kernels of layers for the current GPU before their first"
        " call; CuPy keeps them on disk. Lists, as in --channels 64,128, stand for every"
        " combination. The sizes of images do not matter.",
    )
    parser.add_argument("--channels", type=_integers, required=True, metavar="N,...", help="C_in")
    parser.add_argument(
        "--kernel-size",
        type=_sizes,
        default=[(3, 3)],
        metavar="N,...",
        help="3 or 3x5 (default: 3)",
    )
    parser.add_argument(
        "--dtype",
        type=_names,
        default=["float32"],
        metavar="NAME,...",
        help="float64, float32, float16 or bfloat16 (default: float32)",
    )
    parser.add_argument(
        "--out-channels", type=int, metavar="N", help="C_out (default: that of --channels)"
    )
    for name in ("groups", "deformable-groups"):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="N", help="(default: 1)")
    for name in ("offset", "mask"):
        parser.add_argument(f"--{name}-dtype", metavar="NAME", help="(default: that of x)")
    parser.add_argument(
        "--no-mask", dest="mask", action="store_false", help="calls without a mask (v1)"
    )
    parser.add_argument(
        "--no-backward", dest="backward", action="store_false", help="the forward's kernels alone"
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _integers(text: str) -> list[int]:
    return [_integer(number) for number in text.split(",")]


def _sizes(text: str) -> list[tuple[int, int]]:
    sides = [[_integer(number) for number in size.split("x")] for size in text.split(",")]
    if any(len(size) > 2 for size in sides):
        raise argparse.ArgumentTypeError(f"expected kernel sizes such as 3 or 3x5, got {text}")
    return [(size[0], size[-1]) for size in sides]


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
