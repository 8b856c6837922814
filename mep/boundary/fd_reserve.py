"""The descriptors that a process keeps free, so that running work can end in good order when the rest is used up.

The kernel always gives out the lowest free number. As long as a number below the reserve is free, the reserve is too.
Called by monitor and manager, which take no new work while it is touched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

RESERVE = 32
"""More than the start of a manager, a look at the process table, and the writing of records open at once."""
_FULL = frozenset({errno.EMFILE, errno.EINVAL})


def is_touched() -> bool:
    """Tell whether fewer than RESERVE descriptors are free below this process's limit."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return False
    if limit <= RESERVE:
        return True
    try:
        found = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        return error.errno in _FULL
    os.close(found)
    return found >= limit - RESERVE
