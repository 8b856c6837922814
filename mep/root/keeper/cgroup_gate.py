"""The keeper's side of limits: the gate at which its child waits for its group.

The child stops before its first step until the keeper has put it into its control group. The child and its
descendants are never outside the group. Called by keeper.py; the other side of the gate is in spawn.py.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable

from mep.boundary.cgroup_support import can_group, controllers
from mep.boundary.errors import SpawnFailed, StartStage
from mep.boundary.resolved_config import Limits
from mep.root.keeper.cgroup import Cgroup, CgroupFailed, Member, enter
from mep.root.kernel.spawn import SpawnAccount


def rlimits(limits: Limits) -> list[tuple[int, int]]:
    """Return the per-process limits of `limits` as setrlimit(2) takes them."""
    found = [
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.file_size),
        (resource.RLIMIT_NPROC, limits.processes),
    ]
    return [(number, value) for number, value in found if value]


class Placing:
    """Brings one child into its control group. Always close it, whether or not the child started."""

    def __init__(
        self, endpoint: str, uep_id: str, account: SpawnAccount, limits: Limits, *, waits: bool = False
    ) -> None:
        """`waits`: the child has to wait even if it has no group to enter."""
        self._endpoint, self._uep_id, self._account, self._limits = endpoint, uep_id, account, limits
        self.rlimits = rlimits(limits)
        self.gate: tuple[int, int] | None = None
        """The descriptors that the child reads and we write; None if it doesn't wait."""
        if waits or controllers(limits) or can_group():
            self.gate = os.pipe2(os.O_CLOEXEC)

    def admit(self, pid: int, left: Callable[[], float]) -> Cgroup | None:
        """Put the child into its group and let it go on. Raises SpawnFailed(CGROUP)."""
        if self.gate is None:
            return None
        try:
            group = enter(Member(pid, self._endpoint, self._uep_id, self._account.uid, self._limits), left)
            os.write(self.gate[1], b"\1")
        except CgroupFailed as failure:
            raise SpawnFailed(StartStage.CGROUP, 0, str(failure)) from None
        except OSError as error:
            raise SpawnFailed(StartStage.CGROUP, error.errno or 0, str(error)) from None
        return group

    def close(self) -> None:
        """Close the gate: a child that was not let through ends."""
        gate, self.gate = self.gate, None
        for descriptor in gate or ():
            os.close(descriptor)
