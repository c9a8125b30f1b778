"""build-kernels: a layer's kernels compiled ahead, for machines without a compiler."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__, _kernels
from ._files import replacing
from ._manifest import RULES, header, module_of, parameter_struct, stem_of, written
from ._nvrtc import OPTIONS, architectures, compile_ahead, compiler
from ._prebuilt import FORMAT, MANIFEST, capability_of, digest_of, opened
from ._specialisation import Macros

HEADER = "cupy_dcn_kernels.h"


def build_kernels(
    kernels: Iterable[tuple[str, Macros]], asked: Sequence[str], folder: Path
) -> Iterator[str]:
    """Compile kernels for architectures into a folder, beside what it has; yield files' names.

    Each file is whole or not there, and the manifest comes last: a folder with a manifest is
    complete. The same builds give the same bytes, in whatever order.
    """
    nvrtc = compiler()
    check_architectures(asked, architectures(nvrtc))
    modules = _modules_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(asked, key=capability_of)
    for source, text, macros in _sources(kernels):
        digest = digest_of(text.encode())
        module = modules.setdefault(digest, module_of(source, macros, digest))
        stem = stem_of(source, digest)
        for architecture in asked:
            binary = compile_ahead(nvrtc, text, architecture)
            files = [("cubin", binary.cubin)] + [("ptx", binary.ptx)] * (architecture == newest)
            for kind, content in files:
                name = f"{stem}.{architecture}.{kind}"
                _write(folder / name, content)
                module[kind][architecture] = {"file": name, "sha256": digest_of(content)}
                module[kind] = dict(sorted(module[kind].items()))
                yield name
    manifest = _manifest(
        sorted(modules.values(), key=lambda each: (each["source"], each["sha256"]))
    )
    for name, text in ((HEADER, header(manifest)), (MANIFEST, written(manifest))):
        _write(folder / name, text.encode())
        yield name


def check_architectures(asked: Sequence[str], known: Sequence[str]) -> None:
    """Refuse an architecture that the compiler or the kernels do not know."""
    for each in asked:
        if each not in known:
            raise ValueError(
                f"{each} is no architecture that this NVRTC compiles the kernels for, expected some"
                f" of {', '.join(known)}; a GPU of compute capability 9.0 is sm_90"
            )


def _modules_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the modules of an earlier build, by their digest."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(20, "not a folder to write kernels to", str(folder))
    if not (folder / MANIFEST).exists():
        return {}
    ready = opened.__wrapped__(folder, __version__, _kernels.sources_digest())  # as it is now
    return {module["sha256"]: module for module in ready.manifest["modules"]}


def _sources(kernels: Iterable[tuple[str, Macros]]) -> Iterator[tuple[str, str, Macros]]:
    """Yield file, text and macros of what is compiled, each once: some files hold more kernels."""
    found = {
        _kernels.text(name, macros): (_kernels.FILES[name], macros) for name, macros in kernels
    }
    for text, (file, macros) in found.items():
        yield file, text, macros


def _manifest(modules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "sources": _kernels.sources_digest(),
        "options": OPTIONS,
        "parameter_struct": parameter_struct(),
        "launch_rules": RULES,
        "modules": modules,
    }


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)
