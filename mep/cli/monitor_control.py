"""Starts, stops and queries the monitor of an endpoint.

`start` turns into the monitor (exec) or, detached, waits until it reports that it is up. `stop` finds it by its
pid file and its start time, and holds it by a pidfd, so no other process is ever signalled.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import NoReturn

from mep.boundary.memfd import sealed_memfd
from mep.boundary.resolved_config import to_json
from mep.boundary.runtime_files import MonitorStatus, read_status, running_monitor
from mep.cli.endpoint_dirs import make_parents
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.unprivileged_child import clean_environment
from mep.config.paths import EndpointPaths
from mep.config.resolver import Resolution
from mep.config.template_files import check_trusted, trust_in

START_DEADLINE_S = 30.0
_LOOK_AGAIN_MS = 20
LINK_S = 2.0
_LINK_COMES = frozenset({"", "connecting", "greeting"})
_LAST_LOG_LINES = 8
_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""What the monitor reads of a service manager's variables."""


def _monitor_command(resolution: Resolution, *more: str) -> tuple[list[str], list[int]]:
    descriptors = [
        sealed_memfd("mep-resolved", to_json(resolution.resolved)),
        sealed_memfd("mep-bundle", resolution.bundle),
    ]
    options = ["--config-fd", str(descriptors[0]), "--bundle-fd", str(descriptors[1])]
    return [resolution.resolved.python, "-I", "-m", "mep.root.monitor", *options, *more], descriptors


def _environment(where: EndpointPaths) -> dict[str, str]:
    """Return the monitor's environment. A person's own monitor keeps theirs: their user endpoints get it."""
    if not where.privileged:
        return {name: value for name, value in os.environ.items() if name != "MEP_TOKEN"}
    kept = {name: os.environ[name] for name in _SYSTEMD if name in os.environ}
    return {**clean_environment(), **kept}


def refuse_second(where: EndpointPaths) -> None:
    """Raise CliFailed if the endpoint already runs."""
    if (pid := running_monitor(where.runtime_dir)) is not None:
        raise CliFailed(f"endpoint {where.name} is running already (monitor pid {pid})")


def run_here(where: EndpointPaths, resolution: Resolution) -> NoReturn:
    """Turn this process into the monitor."""
    make_parents(where.runtime_dir, privileged=where.privileged)
    argv, descriptors = _monitor_command(resolution)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, True)
    os.chdir("/")
    os.execve(argv[0], argv, _environment(where))  # noqa: S606  # an absolute path, no shell


def start_detached(
    where: EndpointPaths, resolution: Resolution, deadline_s: float = START_DEADLINE_S, *, no_starts: bool = False
) -> MonitorStatus:
    """Start the monitor in a session of its own and return its status once it is up. Raises CliFailed.

    With `no_starts` it starts no user endpoint: it is to be stopped again.
    """
    make_parents(where.runtime_dir, privileged=where.privileged)
    log_path = Path(resolution.resolved.log_path)
    trust = trust_in(os.geteuid())
    trust.make_directory(log_path.parent, 0o755 if where.privileged else 0o700, private=False)
    argv, descriptors = _monitor_command(resolution, *(["--no-starts"] if no_starts else []))
    log = trust.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, mode=0o640)
    began = os.fstat(log).st_size
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(where),
            pass_fds=descriptors,
            start_new_session=True,
        )
    finally:
        for descriptor in [log, *descriptors]:
            os.close(descriptor)
    return _wait_until_up(where, child, log_path, began, deadline_s)


def _wait_until_up(
    where: EndpointPaths, child: subprocess.Popen[bytes], log_path: Path, began: int, deadline_s: float
) -> MonitorStatus:
    give_up = time.monotonic() + deadline_s
    poll = select.poll()
    pidfd = os.pidfd_open(child.pid)
    try:
        poll.register(pidfd, select.POLLIN)
        while time.monotonic() < give_up:
            ended = bool(poll.poll(_LOOK_AGAIN_MS))
            status = read_status(where.runtime_dir)
            ours = status if status is not None and status.pid == child.pid else None
            if ended or (ours is not None and ours.state == "failed"):
                problem = ours.problem if ours is not None else ""
                raise CliFailed(f"endpoint {where.name} did not start: {problem or _log_tail(log_path, began)}")
            if ours is not None and ours.state == "up":
                return ours
    finally:
        os.close(pidfd)
    raise CliFailed(
        f"endpoint {where.name} was not up within {deadline_s:g} s (monitor pid {child.pid}, log {log_path}); "
        f"end it with: mep stop {where.name}",
        Exit.TIMEOUT,
    )


def with_link(where: EndpointPaths, status: MonitorStatus) -> MonitorStatus:
    """Return the status once the relay link is up, or as it is after LINK_S: the relay may be away."""
    give_up = time.monotonic() + LINK_S
    while status.link_state in _LINK_COMES and time.monotonic() < give_up:
        time.sleep(_LOOK_AGAIN_MS / 1000)
        status = read_status(where.runtime_dir) or status
    return status


def _log_tail(path: Path, began: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(began)
            lines = file.read(65536).decode("utf-8", "replace").splitlines()
    except OSError as error:
        lines = [str(error)]
    return "\n  ".join([f"the log {path} says:", *lines[-_LAST_LOG_LINES:]]) if lines else f"see {path}"


def stop(where: EndpointPaths, timeout_s: float, *, kill: bool = False, keep: bool = False) -> int | None:
    """End the endpoint's monitor, and with it (unless `keep`) its user endpoints.

    Returns its pid, or None if none ran. Raises CliFailed.
    """
    pid = running_monitor(where.runtime_dir)
    if pid is None:
        return None
    check_trusted(where.runtime_dir, os.geteuid())  # its files decide which process is signalled
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        # The pidfd may be of a later process with the same pid: compare the start time again.
        if running_monitor(where.runtime_dir) != pid:
            return None
        _signal(pidfd, signal.SIGUSR1 if keep else signal.SIGTERM, where)
        if _ended(pidfd, timeout_s):
            return pid
        if kill:
            _signal(pidfd, signal.SIGKILL, where)
            if _ended(pidfd, timeout_s):
                return pid
    finally:
        os.close(pidfd)
    raise CliFailed(
        f"endpoint {where.name} (monitor pid {pid}) did not end within {timeout_s:g} s; "
        f"see its log, or run: mep stop {where.name} --kill",
        Exit.TIMEOUT,
    )


def link_is_up(where: EndpointPaths, deadline_s: float) -> bool:
    """Wait for the link to the relay; return whether it is up."""
    give_up = time.monotonic() + deadline_s
    while time.monotonic() < give_up:
        status = read_status(where.runtime_dir)
        if status is None or status.link_state == "up":
            return status is not None
        time.sleep(_LOOK_AGAIN_MS / 1000)
    return False


def _signal(pidfd: int, number: signal.Signals, where: EndpointPaths) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
    except PermissionError:
        raise CliFailed(f"endpoint {where.name} belongs to another account") from None


def _ended(pidfd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
