"""The user endpoint: a process of the mapped user's, started by a keeper, with nothing of root's left.

It must not be root, and touches the user's own files under ~/.mep/uep, the relay (outbound) and its workers.
It trusts the sealed documents that its keeper left on descriptors 3, 4 and 6. Having imported only the modules that all
of them need, it forks the child that renders the template and the server that forks workers. While the
child renders, it connects to the relay. It joins once its engine is ready.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from user_endpoint import (
    fast_msgspec_import,  # noqa: F401  # before anything imports msgspec
    inherited_fds,
    inherited_state,
)
from user_endpoint.keeper_report import Reporter, StartFailure
from user_endpoint.process_exit import name_process, run_and_exit
from user_endpoint.shortage import interrupted, reason_of

_NOT_STARTED = "The site could not start your process. Tell its administrators."


def main() -> NoReturn:
    """Run one user endpoint and exit. Exit codes carry no meaning: the report does."""
    gc.disable()
    inherited_state.set_own_umask(0o077)
    name_process("mep-uep")
    try:
        reporter = Reporter(inherited_fds.check_report_channel(inherited_fds.REPORT_FD))
    except inherited_fds.NotInherited as error:
        sys.stderr.write(f"user endpoint: {error}: this program is started by an endpoint, not by hand\n")
        sys.exit(1)
    run_and_exit(
        lambda: _run(reporter),  # exits at once: threads of an engine's that cannot be ended must not keep the process
        lambda detail: reporter.failed(StartFailure("START_FAILED", _NOT_STARTED, detail[-3000:])),
    )


def _run(reporter: Reporter) -> int:
    try:
        _start_and_serve(reporter)
    except StartFailure as failure:
        reporter.failed(failure)
        return 1
    except (MemoryError, OSError) as error:
        if not (reason := reason_of(error)):
            raise
        reporter.failed(interrupted(reason, repr(error)))
        return 1
    return 0


def _start_and_serve(reporter: Reporter) -> None:
    if 0 in (os.getuid(), os.geteuid()):
        raise StartFailure("START_FAILED", _NOT_STARTED, "a user endpoint never runs as root")
    try:
        start = inherited_fds.read_and_close(inherited_fds.START_FD, inherited_fds.MAX_START_BYTES)
        bundle = inherited_fds.read_and_close(inherited_fds.BUNDLE_FD, inherited_fds.MAX_BUNDLE_BYTES)
        account = inherited_fds.read_account()
    except inherited_fds.NotInherited as error:
        raise StartFailure("START_FAILED", _NOT_STARTED, str(error)) from error
    from user_endpoint.startup import Starting

    Starting(start, bundle, account, reporter).serve()
