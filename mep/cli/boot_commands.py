"""enable-on-boot and disable-on-boot: whether systemd starts an endpoint when the machine starts.

As root they enable the system's unit mep@NAME. For other accounts it is a unit of the person's own service manager,
which runs without a login only if the account lingers. Where no package has installed a unit, the person's is written
here.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mep.boundary.cgroup_support import under_systemd
from mep.boundary.text import printable
from mep.cli.common import epilog, json_option, locate, name_argument
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import emit, warn
from mep.cli.status_commands import require_endpoint

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

_TIMEOUT_S = 60.0
_LINGERING = Path("/var/lib/systemd/linger")
USER_UNIT = """\
# A person's own endpoint: `mep enable-on-boot NAME`.

[Unit]
Description=MEP endpoint %i

[Service]
Type=notify
NotifyAccess=main
ExecStart={command} start %i
ExecReload=/bin/sh -c 'kill -HUP $$MAINPID'
KillMode=process
KillSignal=SIGUSR1
WatchdogSec=120s
Restart=on-failure
RestartSec=2s
TimeoutStartSec=90s
TimeoutStopSec=60s
TasksMax=infinity

[Install]
WantedBy=default.target
"""
"""The same as systemd/user/mep@.service, which the package installs. A test compares them."""


@click.command(
    "enable-on-boot",
    short_help="Start an endpoint whenever the machine starts.",
    epilog=epilog("mep enable-on-boot site", "systemctl start mep@site"),
)
@name_argument
@json_option
def enable_on_boot(name: str, as_json: bool) -> None:
    """Have systemd start endpoint NAME whenever the machine starts. This doesn't start it now.

    As root, this enables the system's unit mep@NAME. For other accounts, it enables a unit of the account's own. Those
    units run without a login only after `loginctl enable-linger`.
    """
    where, _ = locate(name)
    require_endpoint(where)
    if not where.privileged:
        _write_user_unit()
    _systemctl("enable", where.name, privileged=where.privileged)
    begin = _words("start", where.name, privileged=where.privileged)
    warn(_linger_warning(privileged=where.privileged))
    text = f"systemd starts endpoint {where.name} at boot. To start it now: {' '.join(begin)}"
    emit({"name": where.name, "enabled": True, "unit": begin[-1]}, text, as_json=as_json)


@click.command(
    "disable-on-boot",
    short_help="Don't start an endpoint when the machine starts.",
    epilog=epilog("mep disable-on-boot site"),
)
@name_argument
@json_option
def disable_on_boot(name: str, as_json: bool) -> None:
    """Have systemd no longer start endpoint NAME when the machine starts. One that runs is not stopped."""
    where, _ = locate(name)
    _systemctl("disable", where.name, privileged=where.privileged)
    unit = _words("disable", where.name, privileged=where.privileged)[-1]
    text = f"systemd doesn't start {unit} at boot."
    emit({"name": where.name, "enabled": False, "unit": unit}, text, as_json=as_json)


def runs_in_unit(where: EndpointPaths, pid: int | None) -> bool:
    """Whether the monitor `pid` is the main process of the endpoint's unit."""
    if pid is None or not under_systemd():
        return False
    words = ("--property=MainPID", "--value")  # -P, which means both, came with systemd 246
    try:
        return _systemctl("show", where.name, *words, privileged=where.privileged).strip() == str(pid)
    except CliFailed:
        return False


def start_unit(where: EndpointPaths) -> None:
    """Have systemd start the endpoint's unit, and wait until it is up. Raises CliFailed."""
    try:
        _systemctl("start", where.name, privileged=where.privileged)
    except CliFailed as error:
        unit = "--unit" if where.privileged else "--user-unit"
        raise CliFailed(f"{error.text.splitlines()[0]}\nWhy: journalctl {unit} mep@{where.name} -n 20") from None


def _words(verb: str, name: str, *options: str, privileged: bool) -> list[str]:
    return ["systemctl", *([] if privileged else ["--user"]), verb, *options, f"mep@{name}.service"]


def _systemctl(verb: str, name: str, *options: str, privileged: bool) -> str:
    words = _words(verb, name, *options, privileged=privileged)
    environment = dict(os.environ)
    if not privileged:
        environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    try:
        done = subprocess.run(
            words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except FileNotFoundError:
        raise CliFailed(
            f"systemd is not installed here: have this machine's init start `mep start {name}`", Exit.FAILED
        ) from None
    except subprocess.TimeoutExpired:
        raise CliFailed(f"`{' '.join(words)}` did not end in {_TIMEOUT_S:g} s", Exit.TIMEOUT) from None
    if done.returncode:
        said = printable(done.stderr.strip()) or f"exit code {done.returncode}"
        raise CliFailed(f"`{' '.join(words)}`: {said}\n{_hint(privileged=privileged)}")
    return done.stdout


def _hint(*, privileged: bool) -> str:
    if privileged:
        return (
            "The unit mep@.service comes with the package mep-endpoint. Without the package, copy it from systemd/ of "
            "the sources to /etc/systemd/system (docs/quickstart.md)."
        )
    return f"Your service manager must run: log in, or have root run `loginctl enable-linger {_account()}`."


def _write_user_unit() -> None:
    """Write the person's unit, unless a package has installed one."""
    if any(Path(directory, "mep@.service").exists() for directory in ("/usr/lib/systemd/user", "/etc/systemd/user")):
        return
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    command = Path(sys.executable).with_name("mep")
    if not command.exists():
        raise CliFailed(f"{command} does not exist, so no unit can start it: install mep into this environment")
    unit = home / "systemd" / "user" / "mep@.service"
    unit.parent.mkdir(parents=True, exist_ok=True)
    unit.write_text(USER_UNIT.format(command=command))


def _linger_warning(*, privileged: bool) -> list[str]:
    account = _account()
    if privileged or (_LINGERING / account).exists():
        return []
    warning = (
        f"account {account} does not linger: its units start at the first login and end with the last. To start the "
        f"endpoint at boot, run `loginctl enable-linger {account}` (some sites allow this only to root)"
    )
    return [warning]


def _account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
