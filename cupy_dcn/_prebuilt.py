"""Kernels that were built ahead: which file of a folder has a kernel for a GPU.

``python -m cupy_dcn build-kernels`` writes the folder, and CUPY_DCN_KERNELS names it. Its manifest
is of one version of the library and of its sources; files are known by the digest of the text that
they were compiled from, so a kernel can never be taken for another.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "CUPY_DCN_KERNELS"
MANIFEST = "manifest.json"
FORMAT = 1
# Their code runs on no other, and they run no other's; elsewhere X.Y also runs what X.0 to X.Y has.
INTEGRATED = {"72", "87", "101"}

_FILE = re.compile(r"\w[\w.-]*")  # of the folder itself: no separator, no "..", no drive


class Prebuilt(NamedTuple):
    """A folder of kernels, as its manifest describes it."""

    folder: Path
    manifest: dict[str, Any]

    def file(self, text: str, capability: str) -> Path | None:
        """Return the file with what was compiled from a text, for a GPU; None if there is none."""
        digest = digest_of(text.encode())
        for module in self.manifest["modules"]:
            if module["sha256"] == digest:
                found = suitable(module["cubin"], module["ptx"], capability)
                return None if found is None else self._checked(found)
        return None

    def _checked(self, entry: dict[str, str]) -> Path:
        path = self.folder / entry["file"]
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RuntimeError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error
        if digest_of(content) != entry["sha256"]:
            raise RuntimeError(f"{path} is not what its manifest says (SHA-256); {_AGAIN}")
        return path


_AGAIN = "build the folder again with python -m cupy_dcn build-kernels"


@functools.cache
def chosen() -> Path | None:
    """Return the folder that the environment names, as it was at the first call."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


@functools.cache
def opened(folder: Path, version: str, sources: str) -> Prebuilt:
    """Read a folder's manifest, which must be of a version and of sources with a digest."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        _check_shape(manifest)
    except OSError as error:
        raise RuntimeError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RuntimeError(f"{path} is no manifest of kernels ({error}); {_AGAIN}") from error
    if manifest["version"] != version:
        raise RuntimeError(
            f"{path} is of cupy_dcn {manifest['version']}, expected {version}, this one; {_AGAIN}"
        )
    if manifest["sources"] != sources:
        raise RuntimeError(
            f"{path} is of other CUDA sources than those of this cupy_dcn {version}; {_AGAIN}"
        )
    return Prebuilt(folder, manifest)


def _check_shape(manifest: Any) -> None:
    """Check all that is read of a manifest later."""
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']!r}, expected {FORMAT}")
    texts = [manifest["version"], manifest["sources"]]
    for module in manifest["modules"]:
        texts.append(module["sha256"])
        for files in (module["cubin"], module["ptx"]):
            for architecture, entry in files.items():
                capability_of(architecture)
                texts += [entry["file"], entry["sha256"]]
                if not _FILE.fullmatch(entry["file"]):
                    raise ValueError(f"{entry['file']!r} is no name of a file in the folder")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("expected texts for versions, files and checksums")


def suitable(
    cubins: dict[str, dict[str, str]], ptx: dict[str, dict[str, str]], capability: str
) -> dict[str, str] | None:
    """Choose what runs on a GPU: machine code, best its own, else text that its driver compiles."""
    own = int(capability)
    older = sorted(capability_of(each) for each in cubins if capability_of(each) <= own)
    if older and (older[-1] == own or _alike(older[-1], own)):
        return cubins[f"sm_{older[-1]}"]
    texts = [capability_of(each) for each in ptx if capability_of(each) <= own]
    return ptx[f"sm_{max(texts)}"] if texts else None


def _alike(built: int, own: int) -> bool:
    return built // 10 == own // 10 and not {str(built), str(own)} & INTEGRATED


def capability_of(architecture: str) -> int:
    """Return 90 for sm_90."""
    found = re.fullmatch(r"sm_([0-9]{2,3})", architecture)
    if not found:
        raise ValueError(f"{architecture!r} is no architecture, expected one such as sm_90")
    return int(found[1])


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
