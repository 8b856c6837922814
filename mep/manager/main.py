"""The manager's start: runs as the system account mep (single-user: the owner), never as root.

It touches: descriptor 3, the channel to the monitor; descriptor 4, its section; descriptor 5, its CURVE secret
key; one outbound TCP connection to the relay. Before it connects it gives up all else (`confine`). It decides nothing:
what a start request means is the mapper's, and whether it is carried out the monitor's. It trusts the relay for the
link alone.
"""

from __future__ import annotations

from mep.boundary.child_setup import (
    forbid_core_and_ptrace,
    ignore_terminal_signals,
    log_uncaught,
    refuse_root,
    take_channel,
    take_secret,
    take_section,
)
from mep.boundary.confinement import Needs, confine
from mep.boundary.log import Log
from mep.boundary.resolved_config import ManagerSection


def main() -> None:
    """Run until the monitor closes the channel or says Shutdown."""
    refuse_root("manager")
    forbid_core_and_ptrace()
    ignore_terminal_signals()
    section = take_section(ManagerSection)
    secret = take_secret()
    log = Log("manager", section.log_level)
    log_uncaught(log)

    # Imported only now, so that no library runs before the process has checked what it is.
    from mep.manager.manager import Manager

    channel = take_channel(blocking=False)
    confine(needs(section), log)
    Manager(section, secret, channel, log).run()


def needs(section: ManagerSection) -> Needs:
    """Return what the manager of `section` has to be able to do."""
    port = section.relay_link_address.rpartition(":")[2]
    return Needs(profile="manager", connect=(int(port),) if port.isdecimal() else None)
