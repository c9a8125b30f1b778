"""Shows the docstrings in the reference as they were written.

Griffe, which reads them for mkdocstrings, takes types such as ``ndarray, shape (N,)`` for Python
and writes them anew, runs the lines of See Also together, and leaves the second colon of the ``::``
before an indented block.
"""

import re

import griffe


class NumpydocText(griffe.Extension):
    """Puts the docstring's own text in the place of what was made of it."""

    def on_package(self, *, pkg, **_):
        for thing in _members(pkg):
            if thing.docstring:
                text = thing.docstring.value.replace("::\n\n    ", ":\n\n    ")
                thing.docstring.value = re.sub(SEE_ALSO, _listed, text, flags=re.DOTALL)
                thing.docstring.parser = griffe.Parser.numpy
                for each in _typed(thing.docstring.parsed):
                    each.annotation = _type(text, each.name)


SEE_ALSO = r"(?<=See Also\n--------\n).*?(?=\n\n|$)"


def _members(thing):
    """Return an object and all it holds, what is imported left out."""
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _members(member)


def _listed(found):
    """Return the lines of See Also, ``names : text``, as a list."""
    return re.sub(r"^(\S[^:]*) : ", r"- `\1`: ", found[0], flags=re.MULTILINE)


def _typed(sections):
    """Return what has a name and a type: parameters, attributes and named results."""
    for section in sections:
        if section.kind.value in ("parameters", "attributes", "returns"):
            yield from (each for each in section.value if each.name)


def _type(docstring, name):
    """Return the type of a parameter, which may share its line, as in ``dy, dx : ndarray``."""
    names = rf"(?:[\w*]+, )*\*{{0,2}}{re.escape(name.lstrip('*'))}(?:, [\w*]+)*"
    found = re.search(rf"^{names} : (.*)$", docstring, re.MULTILINE)
    return found[1].removesuffix(", optional") if found else None
