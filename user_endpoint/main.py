"""The user endpoint: a process of the mapped user's, started by a keeper, with nothing of root's left.

It must not be root, and touches the user's own files under ~/.mep/uep, the relay (outbound) and its workers.
What it trusts: the sealed documents that its keeper left on descriptors 3 and 4. With nothing imported but what
all of them need, it forks the child that renders the template and the server that forks workers; while the
child renders, it connects to the relay. It joins once its engine stands.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

from user_endpoint import (
    inherited,
    light,  # noqa: F401  # before anything imports msgspec
)
from user_endpoint.outermost import name_process, run_and_exit
from user_endpoint.report import Reporter, StartFailure

_NOT_STARTED = "The site could not start your process. Tell its administrators."


def main() -> NoReturn:
    """Run one user endpoint and exit. Exit codes carry no meaning: the report does."""
    gc.disable()
    os.umask(0o077)
    name_process("mep-uep")
    try:
        reporter = Reporter(inherited.check_report_channel(inherited.REPORT_FD))
    except inherited.NotInherited as error:
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
    return 0


def _start_and_serve(reporter: Reporter) -> None:
    if 0 in (os.getuid(), os.geteuid()):
        raise StartFailure("START_FAILED", _NOT_STARTED, "a user endpoint never runs as root")
    try:
        start = inherited.read_and_close(inherited.START_FD, inherited.MAX_START_BYTES)
        bundle = inherited.read_and_close(inherited.BUNDLE_FD, inherited.MAX_BUNDLE_BYTES)
    except inherited.NotInherited as error:
        raise StartFailure("START_FAILED", _NOT_STARTED, str(error)) from error
    from user_endpoint.starting import Starting

    Starting(start, bundle, reporter).serve()
