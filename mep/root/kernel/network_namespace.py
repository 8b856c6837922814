"""The monitor's network namespace, which is empty and has no interface that is up. Its children return to the host's.

The monitor reads nothing from a network. In an empty namespace it can't be reached over one, or be made to use one. Its
children may need the network (NSS of NIS, PAM modules, hooks, user endpoints). Every child of os.fork therefore enters
the host's namespace before its first step. That is the namespace the monitor was started in, kept by a descriptor.
Sources: network_namespaces(7), unshare(2), setns(2). A UNIX socket with a name in the file system belongs to no network
namespace. One with an abstract name does, so sd_notify.py opens its own before.

Called by main.py and helper_process.py. Trusts the kernel.
"""

from __future__ import annotations

import os

from mep.boundary.log import bare_line
from mep.root.kernel import syscalls

_PATH = "/proc/self/ns/net"
_CANNOT_RETURN = 126


class _Host:
    descriptor = -1
    """Of the host's network namespace, in a process that has left it."""


def leave_network() -> str:
    """Enter a new, empty network namespace. Return the reason if this is impossible here, else an empty string."""
    descriptor = -1
    try:
        descriptor = os.open(_PATH, os.O_RDONLY | os.O_CLOEXEC)
        syscalls.unshare_network()
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        return error.strerror or str(error)
    _Host.descriptor = descriptor
    os.register_at_fork(after_in_child=_return)
    return ""


def left_network() -> bool:
    """Tell whether this process has left the host's network namespace."""
    return _Host.descriptor >= 0


def _return() -> None:
    """In a child: enter the host's network namespace. If it can't, it must not go on: its user would lack a network."""
    descriptor, _Host.descriptor = _Host.descriptor, -1
    if descriptor < 0:
        return
    try:
        syscalls.enter_network(descriptor)
        os.close(descriptor)
    except OSError as error:
        bare_line("monitor", f"a child cannot enter the host's network namespace: {error.strerror}")
        os._exit(_CANNOT_RETURN)
