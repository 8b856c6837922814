"""The file of a PAM service: finds it, and checks that no other account could have written it or its includes.

PAM uses its file `other` for a service without a file, so removing a file could open a host. PAM looks for a service
under its name in lower case (pam_start), and for an included file under the name as it stands. Checked by the resolver,
and by the PAM process before each transaction.
"""

from __future__ import annotations

import errno
import os

from mep.boundary.file_trust import Trust

DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d")
"""The directories that Linux-PAM searches, in its order."""
_MAX_BYTES = 256 * 1024
_INCLUDING = frozenset({"include", "substack"})


def find_service(name: str) -> str:
    """Return the path of service `name`'s file; empty if there is none."""
    return _find_file(name.lower())


def _find_file(name: str) -> str:
    return next((path for one in DIRECTORIES if os.path.exists(path := os.path.join(one, name))), "")


def check_service(name: str) -> None:
    """Raise FileNotFoundError if service `name` has no file, UntrustedPath if one of its files isn't trusted."""
    waiting, seen = [name.lower()], set[str]()
    while waiting:
        service = waiting.pop()
        path = service if service.startswith("/") else _find_file(service)
        if not path:
            where = os.path.join(DIRECTORIES[0], service)
            raise FileNotFoundError(errno.ENOENT, "there is no such PAM service: PAM would use its file `other`", where)
        if path not in seen:
            seen.add(path)
            waiting += _included(Trust().read(path, _MAX_BYTES).decode("utf-8", "replace"))


def _included(text: str) -> list[str]:
    """Return the services that the file with this text includes: `@include NAME`, `TYPE include|substack NAME`."""
    found = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if len(words) >= 2 and words[0] == "@include":
            found.append(words[1])
        elif len(words) >= 3 and words[1] in _INCLUDING:
            found.append(words[2])
    return found
