"""Descriptors that new connections leave to the rest of the process: accepting pauses before it takes the last ones.

Called by both listeners, of HTTP and of the link.
"""

from __future__ import annotations

import os
import resource


class DescriptorReserve:
    """A share of the process's descriptors, within bounds."""

    def __init__(self, share: int, least: int, most: int) -> None:
        """Reserve one of `share` descriptors, at least `least` and at most `most`."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.size = min(max(soft // share, least), most)
        self.highest = soft - self.size
        """A connection with a higher number has one of the reserve. The kernel gives the lowest number that is free."""

    def is_free(self, descriptor: int) -> bool:
        """Whether a copy of `descriptor`, or a new connection, would get a number below the reserve."""
        try:
            lowest = os.dup(descriptor)
        except OSError:
            return False
        os.close(lowest)
        return lowest <= self.highest
