"""The file of a PAM service: finds it, and checks that no other account could have written it or the files it names.

It names other files by `include`, `substack` and `@include`, and modules. A module without a directory is the
system's; one with a path is checked. The file is read as Linux-PAM reads it: words in any case, in brackets or not,
and lines that a backslash continues (pam.conf(5)).

PAM uses its file `other` for a service without a file, so removing a file could open a host. PAM looks for a service
under its name in lower case (pam_start), and for an included file under the name as it stands. Checked by the resolver,
and by the PAM process before each transaction.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mep.boundary.file_trust import Trust

DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d")
"""The directories that Linux-PAM searches, in its order."""
MODULES = ("/lib/security", "/lib64/security", "/lib/*/security", "/usr/lib/security", "/usr/lib64/security",
           "/usr/lib/*/security")  # fmt: skip
"""Where distributions keep modules, as patterns."""
_MAX_BYTES = 256 * 1024
_INCLUDING = frozenset({"include", "substack"})
_CONTINUED = re.compile(r"\\[ \t]*\n")
_WORD = re.compile(r"\[((?:\\\]|[^\]])*)\]|(\S+)")
"""A word, or what is in brackets, where `\\]` is a bracket."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of a service's file that names a module or a service."""

    kind: str
    """`auth`, `account`, `password`, `session` or `@include`."""
    includes: bool
    path: str
    """Of a module, or the name or path of a service."""


def find_service(name: str) -> str:
    """Return the path of service `name`'s file; empty if there is none."""
    return _find_file(name.lower())


def _find_file(name: str) -> str:
    return next((path for one in DIRECTORIES if os.path.exists(path := os.path.join(one, name))), "")


def check_service(name: str) -> None:
    """Raise FileNotFoundError if PAM would use `other` for the service, UntrustedPath if a file isn't trusted.

    PAM uses `other` for a service without a file, and for each type that a file has no line for. It must not decide
    which accounts may be used, so the service's own file, or one that it names by `@include`, has an `account` line.
    """
    first = _file_of(name if name.startswith("/") else name.lower())
    waiting, seen, decides = [(first, True)], set[tuple[str, bool]](), False
    if other := find_service("other"):  # PAM reads it with every service
        waiting.append((other, False))
    while waiting:
        path, own = waiting.pop()
        if (path, own) in seen:
            continue
        seen.add((path, own))
        for line in _lines(Trust().read(path, _MAX_BYTES).decode("utf-8", "surrogateescape")):
            decides = decides or (own and line.kind == "account")
            if line.includes:
                waiting.append((_file_of(line.path), own and line.kind == "@include"))
            elif line.path.startswith("/"):
                Trust().check(line.path)
    if not decides:
        raise FileNotFoundError(errno.ENOENT, "it has no line for `account`: PAM would use its file `other`", first)


def missing_modules(name: str) -> list[str]:
    """Return each module that service `name` needs and that no directory of modules has, with its file and line.

    A line whose type has a `-` before it does without its module. Raises OSError, UntrustedPath.
    """
    waiting, seen, found = [_file_of(name.lower())], set[str](), list[str]()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        text = Trust().read(path, _MAX_BYTES).decode("utf-8", "surrogateescape")
        for number, line in enumerate(text.split("\n"), 1):
            for one in _lines(line):
                if one.includes:
                    waiting.append(_file_of(one.path))
                elif not line.lstrip().startswith("-") and not _is_installed(one.path):
                    found.append(f"{path}:{number}: module {one.path} is not installed")
    return found


def _is_installed(module: str) -> bool:
    if module.startswith("/"):
        return os.path.exists(module)
    return any(os.path.exists(os.path.join(one, module)) for at in MODULES for one in glob.glob(at))


def _file_of(service: str) -> str:
    path = service if service.startswith("/") else _find_file(service)
    if not path:
        where = os.path.join(DIRECTORIES[0], service)
        raise FileNotFoundError(errno.ENOENT, "there is no such PAM service: PAM would use its file `other`", where)
    return path


def _lines(text: str) -> Iterator[_Line]:
    """Yield the lines of a service's file: `TYPE CONTROL MODULE`, `TYPE include|substack NAME`, `@include NAME`."""
    for line in _CONTINUED.sub(" ", re.sub(r"#.*", "", text)).split("\n"):
        words = [bracketed or word for bracketed, word in _WORD.findall(line)]
        kind = words[0].lower().removeprefix("-") if words else ""
        if kind == "@include" and len(words) > 1:
            yield _Line(kind, True, words[1])
        elif len(words) > 2:
            yield _Line(kind, words[1].lower() in _INCLUDING, words[2])
