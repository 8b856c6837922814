"""start, stop, restart and the hidden resolve. Heavy imports happen in the commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click

from mep.cli.common import epilog, json_option, locate, name_argument, token_option
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import emit, log_errors, warn
from mep.cli.status_commands import require_endpoint

if TYPE_CHECKING:
    from mep.boundary.runtime_files import MonitorStatus
    from mep.config.paths import EndpointPaths, Roots
    from mep.config.resolver import Resolution

STOP_TIMEOUT_S = 60.0
LINK_WAIT_S = 15.0
"""How long a stop waits for the relay, to tell it of user endpoints that a killed monitor has left."""


def _prepare(where: EndpointPaths, roots: Roots, *, detach: bool, debug: bool) -> Resolution:
    from mep.cli.install_check import check_installation
    from mep.cli.monitor_control import refuse_second
    from mep.config.resolver import resolve

    refuse_second(where)
    resolution = resolve(where, roots, log_to_file=detach, debug=debug)
    if where.privileged:
        check_installation()
    warn(resolution.warnings)
    return resolution


def _start(where: EndpointPaths, roots: Roots, *, detach: bool, as_json: bool, debug: bool = False) -> None:
    from mep.cli.monitor_control import run_here, start_detached, with_link
    from mep.cli.orphaned_keepers import end_former_version

    resolution = _prepare(where, roots, detach=detach, debug=debug)
    if ended := end_former_version(where):
        warn([f"user endpoints of the previous version were ended, and their tasks wait for new ones: {ended}"])
    if not detach:
        run_here(where, resolution)
    _tell_up(where, with_link(where, start_detached(where, resolution)), resolution, as_json=as_json)


def _tell_up(where: EndpointPaths, status: MonitorStatus, resolution: Resolution, *, as_json: bool) -> None:
    value = {"name": where.name, "pid": status.pid, "endpoint_id": resolution.registration.endpoint_id}
    link = f", relay link {status.link_state}" if status.link_state else ""
    if "clocks differ" in status.link_detail:
        warn([status.link_detail])
    emit(value, f"Endpoint {where.name} is up (monitor pid {status.pid}{link}).", as_json=as_json)


@click.command(short_help="Start an endpoint.", epilog=epilog("mep start site --detach", "systemctl start mep@site"))
@name_argument
@click.option("--detach", is_flag=True, help="Return once it is up, and leave it running.")
@click.option("--debug", is_flag=True, help="Log more, as with `debug: true` in config.yaml.")
@click.option("--endpoint-uuid", type=click.UUID, metavar="UUID", help="Refuse to start under any other id.")
@json_option
def start(name: str, detach: bool, debug: bool, endpoint_uuid: UUID | None, as_json: bool) -> None:
    """Start endpoint NAME, in the foreground unless --detach is given."""
    from mep.cli.admin_client import require_owner

    where, roots = locate(name)
    require_owner(where)
    if endpoint_uuid is not None:
        _check_id(where, str(endpoint_uuid))
    _start(where, roots, detach=detach, as_json=as_json, debug=debug)


def _check_id(where: EndpointPaths, wanted: str) -> None:
    from mep.config.registration import read_registration

    known = read_registration(where.registration, where.name).endpoint_id
    if known != wanted:
        raise CliFailed(
            f"endpoint {where.name} is registered as {known}, not as {wanted}: the id is chosen by "
            "`mep configure --endpoint-uuid` and `mep adopt`",
            Exit.USAGE,
        )


@click.command(
    short_help="Stop an endpoint and its user endpoints.",
    epilog=epilog("mep stop site", "mep stop site --timeout 120", "mep stop site --user alice"),
)
@name_argument
@click.option("--user", metavar="USER", help="Stop this account's user endpoints alone.")
@click.option("--uep", metavar="ID", help="Stop this user endpoint alone.")
@click.option("--message", default="", metavar="TEXT", help="With --user or --uep: what the person reads.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=STOP_TIMEOUT_S, show_default=True,
              metavar="SECONDS", help="Seconds to wait for it to end.")  # fmt: skip
@click.option("--kill", is_flag=True, help="Kill the monitor if it has not ended after that time.")
@click.option("--keep-user-endpoints", "keep", is_flag=True,
              help="Leave the user endpoints running; the next start takes them over.")  # fmt: skip
@click.option("--remote", is_flag=True, help="Have the relay stop it, wherever it runs. Needs a token.")
@token_option
@json_option
def stop(
    name: str, timeout_s: float, kill: bool, keep: bool, as_json: bool, user: str | None, uep: str | None, message: str,
    remote: bool, token_file: str | None,
) -> None:  # fmt: skip
    """Stop endpoint NAME and its user endpoints, including those left by a former stop or a crash.

    With --user or --uep, stop these user endpoints alone. Their tasks that had not begun start others.
    """
    from mep.cli.admin_client import require_owner
    from mep.cli.admin_commands import stop_some
    from mep.cli.monitor_control import stop as stop_monitor

    where, roots = locate(name)
    require_endpoint(where)
    if user is not None or uep is not None:
        count = stop_some(where, user, uep, message, timeout_s)
        emit({"name": where.name, "stopped": count}, f"User endpoints stopped: {count}.", as_json=as_json)
        return
    require_owner(where)
    if remote:
        from mep.cli.setup_commands import stop_remotely

        endpoint_id = stop_remotely(where, token_file)
        text = f"The relay has told endpoint {where.name} ({endpoint_id}) to stop, wherever it runs."
        emit({"name": where.name, "endpoint_id": endpoint_id, "told": True}, text, as_json=as_json)
        return
    pid = stop_monitor(where, timeout_s, kill=kill, keep=keep)
    left = 0 if keep else _end_left(where, roots, timeout_s)
    text = f"Endpoint {where.name} is stopped." if pid else f"Endpoint {where.name} was not running."
    if left:
        text += f" User endpoints stopped that it had left: {left}."
    emit({"name": where.name, "was_running": pid is not None, "pid": pid, "left": left}, text, as_json=as_json)


def _end_left(where: EndpointPaths, roots: Roots, timeout_s: float) -> int:
    """End the user endpoints that no monitor has, tell the relay, and return how many there were. Raises CliFailed."""
    from mep.cli.orphaned_keepers import living_records, stop_keepers

    left = len(living_records(where))
    reason = _wind_down(where, roots, timeout_s) if left else ""
    rest = stop_keepers(where, timeout_s)
    if reason:
        warn([f"the relay does not know yet that they have ended ({reason}): the next start tells it"])
    return rest if reason else left + rest


def _wind_down(where: EndpointPaths, roots: Roots, timeout_s: float) -> str:
    """Run a monitor that starts nothing: it adopts what is left, ends it, tells the relay, and ends.

    Returns why that can't be (the configuration is refused, the relay is away). The user endpoints then still run.
    """
    from mep.boundary.errors import ConfigRefused
    from mep.cli.monitor_control import link_is_up, start_detached
    from mep.cli.monitor_control import stop as stop_monitor
    from mep.config.resolver import resolve

    try:
        start_detached(where, resolve(where, roots, log_to_file=True), no_starts=True)
        told = link_is_up(where, LINK_WAIT_S)
        stop_monitor(where, timeout_s, keep=not told)
    except (ConfigRefused, CliFailed, OSError) as error:
        stop_monitor(where, timeout_s, kill=True, keep=True)
        return str(error)
    return "" if told else "it cannot be reached"


@click.command(
    short_help="Stop and start; user endpoints keep running.",
    epilog=epilog("mep restart site", "mep restart site --all"),
)
@name_argument
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=STOP_TIMEOUT_S, show_default=True,
              metavar="SECONDS", help="Seconds to wait for it to end.")  # fmt: skip
@json_option
@click.option("--all", "everything", is_flag=True, help="Stop the user endpoints too, instead of taking them over.")
def restart(name: str, timeout_s: float, everything: bool, as_json: bool) -> None:
    """Stop endpoint NAME if it runs, and start it: by systemd if that ran it, else detached.

    User endpoints keep running.
    """
    from mep.boundary.runtime_files import read_status, running_monitor
    from mep.cli.admin_client import require_owner
    from mep.cli.boot_commands import runs_in_unit, start_unit
    from mep.cli.monitor_control import stop as stop_monitor
    from mep.cli.orphaned_keepers import stop_keepers
    from mep.config.resolver import resolve

    where, roots = locate(name)
    require_owner(where)
    resolution = resolve(where, roots, log_to_file=True)  # a refused configuration must not stop a running endpoint
    in_unit = runs_in_unit(where, running_monitor(where.runtime_dir))
    stop_monitor(where, timeout_s, keep=not everything)
    if everything:
        stop_keepers(where, timeout_s)
    if not in_unit:
        _start(where, roots, detach=True, as_json=as_json)
        return
    start_unit(where)
    if (status := read_status(where.runtime_dir)) is None:
        raise CliFailed(f"endpoint {where.name} has ended again: mep logs {where.name} says why", Exit.NOT_RUNNING)
    _tell_up(where, status, resolution, as_json=as_json)


@click.command(hidden=True)
@click.argument("name")
@click.option("--etc", required=True, type=click.Path(path_type=Path))
@click.option("--var", required=True, type=click.Path(path_type=Path))
@click.option("--run", required=True, type=click.Path(path_type=Path))
@click.option("--log-to-file", is_flag=True)
@click.option("--debug", is_flag=True)
@click.option("--log-json", is_flag=True)
@click.option("--config-fd", required=True, type=int)
@click.option("--bundle-fd", required=True, type=int)
def resolve(
    name: str, etc: Path, var: Path, run: Path, log_to_file: bool, debug: bool, log_json: bool, config_fd: int,
    bundle_fd: int,
) -> None:  # fmt: skip
    """Write the resolved configuration to two descriptors. The monitor runs this on SIGHUP."""
    from mep.boundary.resolved_config import to_json
    from mep.config.paths import Roots, endpoint_paths
    from mep.config.resolver import resolve as resolve_endpoint

    if log_json:
        log_errors("resolver")
    roots = Roots(etc, var, run, os.geteuid() == 0)
    resolution = resolve_endpoint(endpoint_paths(roots, name), roots, log_to_file=log_to_file, debug=debug)
    warn(resolution.warnings)
    for descriptor, data in ((config_fd, to_json(resolution.resolved)), (bundle_fd, resolution.bundle)):
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
