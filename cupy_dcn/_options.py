"""The options of the command line, and its help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from . import __version__
from ._prebuilt import capability_of

PROGRAM = "python -m cupy_dcn"


class _Help(argparse.HelpFormatter):
    """Descriptions are filled, examples are left as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line each, as those of what runs after it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"cupy_dcn: error: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the parser of all commands."""
    made = Parser(
        prog=PROGRAM,
        description="Deformable convolution (v1, v2) for NumPy and CuPy arrays, forward and "
        "backward: what needs no program.",
        epilog=f"examples:\n  {PROGRAM} info\n  {PROGRAM} selftest\n"
        f"  {PROGRAM} build-kernels --help",
        formatter_class=_Help,
    )
    made.add_argument("--version", action="version", version=f"cupy_dcn {__version__}")
    commands = made.add_subparsers(
        dest="command", required=True, title="commands", metavar="COMMAND"
    )
    _add(
        commands,
        "info",
        "print versions, GPUs and folders, to paste into a bug report",
        "Print the versions of cupy_dcn and of all it works with, the GPUs or why none is "
        "usable, and where the CUDA sources and the compiled kernels are: one block, to "
        "paste into a bug report as it is.",
        "info > report.md",
    )
    _add(
        commands,
        "selftest",
        "compare every stage with plain loops",
        "Compare every stage in every dtype (bfloat16 where ml_dtypes is installed), on "
        "NumPy arrays and, where there is a GPU, on CuPy arrays, with plain loops in "
        "float64, in a few seconds (on a GPU some more the first time, to compile the "
        "kernels). Prints the largest errors; the exit status is 1 if one is beyond its "
        "limit.",
        "selftest",
    )
    _add_warmup(commands)
    _add_build(commands)
    _add_demo(commands)
    return made


_Commands = argparse._SubParsersAction  # what add_subparsers returns; it has no public name


def _add(
    commands: _Commands[Parser],
    name: str,
    summary: str,
    description: str,
    *examples: str,
) -> Parser:
    lines = "".join(f"\n  {PROGRAM} {example}" for example in examples)
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example{'s' if len(examples) > 1 else ''}:{lines}",
        formatter_class=_Help,
    )


def _add_demo(commands: _Commands[Parser]) -> None:
    demo = _add(
        commands,
        "demo",
        "warp a picture and recover it by gradient descent",
        "Warp a picture by a smooth random displacement of a few pixels and recover it by "
        "gradient descent on the offsets of a deformable convolution. Prints the error "
        "before and after and writes one figure. Needs matplotlib and tqdm: "
        "pip install 'cupy_dcn[demo]'.",
        "demo",
        "demo cat.jpg -o cat-recovered.png",
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


def _add_warmup(commands: _Commands[Parser]) -> None:
    made = _add(
        commands,
        "warmup",
        "compile the CUDA kernels of layers ahead, for this GPU",
        "Compile the CUDA kernels of layers for the current GPU before their first call;"
        " CuPy keeps them on disk. Lists, as in --channels 64,128, stand for every "
        "combination. The sizes of images do not matter.",
        "warmup --channels 64,128 --dtype float16",
        "warmup --channels 256 --kernel-size 3,5",
    )
    _add_layer(made)


def _add_build(commands: _Commands[Parser]) -> None:
    made = _add(
        commands,
        "build-kernels",
        "compile the CUDA kernels of layers into a folder, for other machines",
        "Compile the CUDA kernels of layers into a folder, for machines without a compiler: "
        "machine code (.cubin) for every architecture, PTX of the newest one for GPUs that "
        "are newer still, manifest.json and, for C++, cupy_dcn_kernels.h. Needs CuPy with "
        "NVRTC, no GPU. Where CUPY_DCN_KERNELS names the folder, the library loads its "
        "kernels instead of compiling them. Lists, as in --channels 64,128, stand for every "
        "combination; a second build into the same folder adds to it.",
        "build-kernels --arch sm_90 --channels 64,128 --out dcn",
        "build-kernels --arch sm_80,sm_90 --channels 64 --out dcn",
    )
    made.add_argument(
        "--arch",
        type=_architectures,
        required=True,
        metavar="sm_NN,...",
        help="sm_80 is compute capability 8.0, and runs on 8.6 and 8.9, too",
    )
    made.add_argument(
        "--out", required=True, metavar="DIR", help="the folder, made if it is not there"
    )
    _add_layer(made)
    made.add_argument(
        "--wide",
        action="store_true",
        help="kernels for arrays of 2^31 elements and more, instead of those for smaller ones",
    )


def _add_layer(made: argparse.ArgumentParser) -> None:
    """Add the options that say which layers."""
    made.add_argument("--channels", type=_integers, required=True, metavar="N,...", help="C_in")
    made.add_argument(
        "--kernel-size",
        type=_sizes,
        default=[(3, 3)],
        metavar="N,...",
        help="3 or 3x5 (default: 3)",
    )
    made.add_argument(
        "--dtype",
        type=_names,
        default=["float32"],
        metavar="NAME,...",
        help="float64, float32, float16 or bfloat16, of x and weight (default: float32)",
    )
    made.add_argument(
        "--out-channels",
        type=_integer,
        metavar="N",
        help="C_out, which matters where a group has few channels (default: that of --channels)",
    )
    for name in ("groups", "deformable-groups"):
        made.add_argument(
            f"--{name}", type=_integer, default=1, metavar="N", help="(default: %(default)s)"
        )
    for name in ("offset", "mask"):
        made.add_argument(f"--{name}-dtype", metavar="NAME", help="(default: that of x)")
    made.add_argument(
        "--no-mask",
        dest="mask",
        action="store_false",
        help="calls without a mask, v1 (default: with one, v2)",
    )
    made.add_argument(
        "--no-backward",
        dest="backward",
        action="store_false",
        help="the forward's kernels alone (default: the gradients', too)",
    )
    made.add_argument(
        "--deterministic",
        action="store_true",
        help="also the kernels of backwards with deterministic=True",
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _architectures(text: str) -> list[str]:
    names = list(dict.fromkeys(_names(text)))
    for name in names:
        try:
            capability_of(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names


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
