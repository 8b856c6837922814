"""The manager's entry point: runs as the system account mep (single-user: the owner), never as root.

It touches: descriptor 3, the channel to the monitor; descriptor 4, its section; descriptor 5, its CURVE secret key;
descriptor 6, the socket on which root asks (`mep why`); one outbound TCP connection to the relay. Before it connects,
it gives up all other access (`confine`). It decides nothing: the mapper decides which user a start request means, and
the monitor decides whether to start it. It trusts the relay for the link alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mep.boundary.child_setup import (
    forbid_core_and_ptrace,
    ignore_terminal_signals,
    log_uncaught,
    refuse_root,
    take_channel,
    take_listener,
    take_secret,
    take_section,
)
from mep.boundary.confinement import Needs, confine
from mep.boundary.log import Log
from mep.boundary.resolved_config import ManagerSection

if TYPE_CHECKING:
    from mep.manager.figures import Figures


def main() -> None:
    """Run until the monitor closes the channel or sends Shutdown."""
    refuse_root("manager")
    forbid_core_and_ptrace()
    ignore_terminal_signals()
    section = take_section(ManagerSection)
    secret = take_secret()
    log = Log("manager", section.log_level)
    log_uncaught(log)

    # Imported only now, so that no library runs before the process has checked its own accounts.
    from setproctitle import setproctitle

    from mep.manager.manager import Manager

    setproctitle(f"mep.manager: {section.title}")
    channel, listener = take_channel(blocking=False), take_listener()
    figures, serve = _figures(section, log)
    confine(needs(section), log)
    serve()
    Manager(section, secret, channel, log, listener, figures).run()


def _figures(section: ManagerSection, log: Log) -> tuple[Figures | None, Callable[[], None]]:
    """Return the figures, if the site wants some, and the call that serves them once this process is confined."""
    if not section.metrics_port:
        return None, lambda: None
    from mep.manager import figures

    made, socket = figures.Figures(), figures.listen(section.metrics_port, log)
    return made, lambda: None if socket is None else figures.serve(socket, made)


def needs(section: ManagerSection) -> Needs:
    """Return the access that the manager of `section` needs."""
    port = section.relay_link_address.rpartition(":")[2]
    return Needs(profile="manager", connect=(int(port),) if port.isdecimal() else None)
