"""list and status: show the state that the monitor publishes, for a terminal, a pipe or a program."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from mep.boundary.text import printable
from mep.cli.common import epilog, json_option, locate, name_argument
from mep.cli.exit_codes import Exit
from mep.cli.output import emit, emit_rows, fields_text, print_table

if TYPE_CHECKING:
    from mep.boundary.runtime_files import MonitorStatus
    from mep.config.paths import EndpointPaths

_COLUMNS = ("account", "user endpoint", "state", "pid", "mapping checked", "account checked")
_WHERE_WHY = "the log says why"


def require_endpoint(where: EndpointPaths) -> None:
    """Raise ConfigRefused if there is no such endpoint."""
    from mep.config.paths import no_such_endpoint

    if not where.config.exists() and not where.runtime_dir.exists():
        raise no_such_endpoint(where)


def _state(pid: int | None, status: MonitorStatus | None, endpoint_id: str) -> str:
    if pid is not None:
        return status.state if status is not None else "starting"
    return "stopped" if endpoint_id else "not registered"


def _describe(where: EndpointPaths) -> dict[str, Any]:
    from mep.boundary.errors import ConfigRefused
    from mep.boundary.runtime_files import MonitorStatus, read_reasons, read_status, running_monitor
    from mep.config.registration import read_registration

    pid = running_monitor(where.runtime_dir)
    status = read_status(where.runtime_dir) if pid is not None else None
    try:
        registration = read_registration(where.registration, where.name)
        endpoint_id, relay = registration.endpoint_id, registration.relay_url
        relay_key = registration.relay_keys.fingerprint
    except ConfigRefused:
        endpoint_id, relay, relay_key = "", "", ""
    known = status if status is not None else MonitorStatus("", 0, 0.0)
    reasons = read_reasons(where.runtime_dir) if status is not None else {}
    return {
        "name": where.name,
        "state": _state(pid, status, endpoint_id),
        "problem": known.problem,
        "endpoint_id": endpoint_id,
        "relay": relay,
        "relay_key": relay_key,
        "pid": pid,
        "link": known.link_state,
        "link_detail": known.link_detail,
        "configured_at": known.configured_at or None,
        "configuration_problem": _problem(known.configuration_problem, reasons.get("configuration")),
        "configuration_refused_at": known.configuration_refused_at or None,
        "mapping": known.mapping_loaded,
        "mapping_problem": _problem(known.mapping_problem, reasons.get("mapping")),
        "mapping_refused_at": known.mapping_refused_at or None,
        "overdue": sum(bool(one.get("overdue")) for one in known.user_endpoints),
        "accounts_overdue": sum(bool(one.get("account_overdue")) for one in known.user_endpoints),
        "user_endpoints": known.user_endpoints,
    }


def _problem(public: str, reason: str | None) -> str:
    """Return the problem, with the reason if this account may read it."""
    return public.replace(_WHERE_WHY, reason) if public and reason else public


@click.command("list", epilog=epilog("mep list", "mep list --json"))
@json_option
def list_endpoints(as_json: bool) -> None:
    """List the endpoints that are configured here."""
    from mep.config.paths import endpoint_paths, here, list_names

    roots = here()
    rows = [_describe(endpoint_paths(roots, name)) for name in list_names(roots)]
    columns = ("name", "state", "endpoint_id", "link", "relay")
    empty = f"No endpoint is configured in {roots.etc}. Make one with: mep configure NAME --relay URL"
    emit_rows(rows, columns, as_json=as_json, empty=empty)


@click.command(short_help="Show the state of an endpoint.", epilog=epilog("mep status site", "mep status site --json"))
@name_argument
@json_option
@click.pass_context
def status(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show the state of endpoint NAME. Exits with 3 if it isn't running.

    Shows which configuration and mapping are in force and since when, and any refusal with (for root) its reason.
    For each user endpoint, shows when mapping and account were last confirmed. A mapping that has not been confirmed
    for too long is overdue.
    """
    where, _ = locate(name)
    require_endpoint(where)
    value = _describe(where)
    running, on_terminal = value["user_endpoints"], sys.stdout.isatty() and not as_json
    lines = [] if on_terminal else [_plain(one) for one in running]
    emit(value, "\n".join([_text(value), *lines]), as_json=as_json)
    if on_terminal and running:
        print_table([dict(zip(_COLUMNS, _row(one), strict=True)) for one in running], _COLUMNS)
    if value["pid"] is None:
        ctx.exit(Exit.NOT_RUNNING)


def _text(value: dict[str, Any]) -> str:
    shown = {key: printable(item) if isinstance(item, str) else item for key, item in value.items()}
    shown |= {"user_endpoints": len(value["user_endpoints"]), "overdue": "", "accounts_overdue": ""}
    for key in ("configured_at", "configuration_refused_at", "mapping_refused_at"):
        shown[key] = _calendar(value[key]) if value[key] else None
    if value["overdue"]:
        shown["overdue"] = (
            f"{value['overdue']} of {len(value['user_endpoints'])}: identity mapping not re-verified for too long"
        )
    if value["accounts_overdue"]:
        shown["accounts_overdue"] = (
            f"{value['accounts_overdue']} of {len(value['user_endpoints'])}: account not checked successfully for too "
            "long; the log says why"
        )
    return fields_text(shown)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    late = [" (overdue)" if one.get(key) else "" for key in ("overdue", "account_overdue")]
    plain = (one.get("local_user"), one.get("uep_id"), one.get("state"), one.get("pid"))
    checks = [
        _age(one, key) + said for key, said in zip(("mapping_checked_at", "account_checked_at"), late, strict=True)
    ]
    return (*(printable(str(item)) for item in plain), *checks)


def _plain(one: dict[str, Any]) -> str:
    account, uep_id, state, pid, mapping, checked = _row(one)
    return f"  {account}  {uep_id}  {state}  pid {pid}  mapping checked {mapping}, account checked {checked}"


def _age(one: dict[str, Any], key: str) -> str:
    """Return how long ago the last successful check was."""
    at = one.get(key)
    if not isinstance(at, int | float):
        return "not yet"
    seconds = max(0, round(time.time() - at))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _calendar(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
