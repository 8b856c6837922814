"""The mapper's entry point: runs as the system account mep-idmap (single-user: the owner), never as root.

It touches: descriptor 3, the channel to the monitor; descriptor 4, its section; descriptor 5, the unseal key;
the administrator's mapping file, and the directory servers that the file names. It has no other connection. Before the
first request, it gives up all other access (`confine`). It trusts its section and the relay's signing key in it. It
trusts no part of a request before its signature is verified.
"""

from __future__ import annotations

import os

from mep.boundary.child_setup import (
    forbid_core_and_ptrace,
    ignore_terminal_signals,
    log_uncaught,
    refuse_root,
    take_channel,
    take_secret,
    take_section,
)
from mep.boundary.confinement import Needs, confine, directories_of
from mep.boundary.log import Log
from mep.boundary.resolved_config import MapperSection


def main() -> None:
    """Run until the monitor closes the channel or sends Shutdown."""
    forbid_core_and_ptrace()
    refuse_root("mapper")
    ignore_terminal_signals()
    section = take_section(MapperSection)
    secret = take_secret()
    log = Log("mapper", section.log_level)
    log_uncaught(log)

    # Imported only now, so that no library runs before the process is protected.
    from setproctitle import setproctitle

    from mep.mapper.library_log import forward_library_log
    from mep.mapper.mapper import MapperProcess

    setproctitle(f"mep.mapper: {section.title}")
    forward_library_log(log)
    mapper = MapperProcess(section, secret, take_channel(blocking=True), log, epoch=os.urandom(16))
    confine(needs(section, mapper.readable()), log)
    mapper.run()


def needs(section: MapperSection, readable: list[str]) -> Needs:
    """Return the access that the mapper of `section` needs, with a mapping that consists of the files `readable`."""
    return Needs(
        profile="mapper-programs" if section.programs else "mapper-network" if section.network else "mapper",
        readable=("/",) if section.network else directories_of(readable),
        connect=None if section.network else (),
        programs=section.programs,
    )
