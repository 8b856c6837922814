"""The monitor's entry point: `python -I -m mep.root.monitor --config-fd N --bundle-fd M [--no-starts]`.

It must run as root for a multi-user endpoint, and must not for a single-user one. It touches: two sealed memfds
from the resolver; its runtime directory, log and audit log; the key files, which it opens and passes on without
reading; socketpairs to its children. It has no network. It imports only the standard library, mep.boundary and
mep.boundary.errors. PRIVSEP.md says what each process of an endpoint may do.
"""

from __future__ import annotations

import gc
import os
import time

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import ours
from mep.boundary.log import Log, bare_line
from mep.boundary.memfd import NotSealed, check_sealed, read_sealed
from mep.boundary.resolved_config import MAX_RESOLVED_BYTES, Resolved, from_json
from mep.boundary.text import set_format
from mep.root.kernel import syscalls
from mep.root.kernel.network_namespace import leave_network
from mep.root.monitor import fd_limit
from mep.root.monitor.audit_log import Audit, open_appending
from mep.root.monitor.configuration import Configuration
from mep.root.monitor.monitor import Monitor
from mep.root.monitor.reload import MAX_BUNDLE_BYTES, open_log
from mep.root.monitor.runtime_dir import RuntimeDir
from mep.root.monitor.sd_notify import open_notify_socket
from mep.root.monitor.status_file import StatusFile
from mep.root.monitor.user_endpoints import Endpoints

_GC_THRESHOLDS = (100, 1, 1)
"""Few objects are not frozen, so a full collection is cheap, and garbage in cycles doesn't pile up."""
_USAGE = "usage: python -I -m mep.root.monitor --config-fd N --bundle-fd M [--no-starts]"


def main(argv: list[str]) -> int:
    """Run the monitor; return its exit status."""
    os.umask(0o077)
    try:
        no_starts = argv[4:] == ["--no-starts"]
        config, bundle = _descriptors(argv[:4] if no_starts else argv)
        resolved = from_json(read_sealed(config, MAX_RESOLVED_BYTES))
        set_format(resolved.log_format)
        check_sealed(bundle, MAX_BUNDLE_BYTES)
        os.close(config)
        os.set_inheritable(bundle, False)
        refuse_wrong_user(multi_user=resolved.multi_user)
        refuse_old_kernel()
        run(resolved, bundle, no_starts=no_starts)
    except (ConfigRefused, NotSealed, OSError) as error:
        bare_line("monitor", f"mep monitor: {error}")
        return 1
    return 0


def _descriptors(argv: list[str]) -> tuple[int, int]:
    if len(argv) != 4 or argv[0] != "--config-fd" or argv[2] != "--bundle-fd" or not (argv[1] + argv[3]).isdecimal():
        raise ConfigRefused("command line", "", _USAGE)
    return int(argv[1]), int(argv[3])


def refuse_wrong_user(*, multi_user: bool) -> None:
    """Raise ConfigRefused unless this process runs as the account that the configuration requires."""
    if multi_user and os.getresuid() != (0, 0, 0):
        raise ConfigRefused("monitor", "multi_user", "must run as root: it starts processes as other accounts")
    if not multi_user and 0 in os.getresuid():
        raise ConfigRefused("monitor", "multi_user", "a single-user endpoint runs as its owner, never as root")


def refuse_old_kernel() -> None:
    """Raise ConfigRefused on a kernel without pidfds: without them, a reused pid could be signalled."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise ConfigRefused("monitor", "", f"needs Linux 5.3 or later (pidfd_open: {error.strerror})") from None


def run(resolved: Resolved, bundle: int, *, no_starts: bool = False) -> None:
    """Set up the monitor, then serve, with `no_starts` without new user endpoints.

    Raises ConfigRefused and OSError for errors at startup.
    """
    runtime = RuntimeDir(resolved.runtime_dir, private=not resolved.multi_user)
    endpoints = Endpoints()
    status = StatusFile(resolved.runtime_dir, resolved.manager.endpoint_id, time.time(), endpoints)
    try:
        monitor = _monitor(resolved, bundle, status, endpoints)
        monitor.adopt_keepers()
        if no_starts:
            monitor.refuse_starts()
    except (ConfigRefused, OSError) as error:
        status.show(state="failed", problem=str(error))
        status.write()
        raise
    open_notify_socket()  # an abstract name belongs to this network namespace, which is left next
    log = Log("monitor")
    if reason := leave_network():
        log.info("the monitor stays in the host's network namespace", reason=reason)
    gc.collect()
    gc.freeze()
    gc.collect()  # resets the count: frozen objects would delay the next full collection until as many were made
    gc.set_threshold(*_GC_THRESHOLDS)
    monitor.run()
    log.info("stopped")
    runtime.release()


def _monitor(resolved: Resolved, bundle: int, status: StatusFile, endpoints: Endpoints) -> Monitor:
    if os.getsid(0) != os.getpid() and os.getpgrp() != os.getpid() and not os.isatty(0):
        os.setsid()
    fd_limit.check(resolved)
    for path in (resolved.log_path, resolved.audit_path, resolved.task_log_path):
        if path:
            ours().make_directory(os.path.dirname(path), 0o700, private=False)
    open_log(resolved.log_path)
    log = Log("monitor")
    audit = Audit(resolved.audit_path, log)
    if resolved.task_log_path:
        os.close(open_appending(resolved.task_log_path))  # reports an unusable file at startup
    if resolved.multi_user:
        for path in (resolved.python, resolved.user_endpoint_main):
            ours().check(path)
    syscalls.set_process_name("mep-monitor")
    syscalls.become_subreaper()
    configuration = Configuration(resolved, bundle, fd_limit.raise_limit())
    log.info("started", endpoint=resolved.name, pid=os.getpid(), multi_user=resolved.multi_user)
    return Monitor(configuration, log, audit, status, endpoints)
