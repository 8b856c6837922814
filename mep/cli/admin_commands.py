"""drain, undrain, ban, unban and reload; and what `mep stop` does for one user endpoint or one account.

For root, the owner of a single-user endpoint, and members of admin_group. The monitor carries the orders out and
records who gave them. While it does not run, root writes drains and bans where the next monitor finds them.
"""

from __future__ import annotations

import os
import pwd
import re
from typing import TYPE_CHECKING

import click

from mep.cli.common import epilog, json_option, locate, name_argument
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import emit
from mep.cli.status_commands import require_endpoint

if TYPE_CHECKING:
    from mep.boundary.messages import AdminBan, AdminDrain, AdminUnban, AdminUndrain
    from mep.boundary.restrictions import RestrictionKind
    from mep.config.paths import EndpointPaths

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_message_option = click.option("--message", default="", metavar="TEXT", help="What the people concerned read.")


def _checked_message(message: str) -> str:
    from mep.boundary.messages import MAX_ADMIN_TEXT

    if len(message.encode()) > MAX_ADMIN_TEXT:
        raise CliFailed(f"--message: at most {MAX_ADMIN_TEXT} bytes", Exit.USAGE)
    return message


def _account(name: str | None) -> tuple[str, int]:
    """Return name and uid of an account, given by either. Raises CliFailed."""
    if not name:
        return "", -1
    try:
        found = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError:
        ask = f"; an identity's account: mep map NAME --identity {name}" if "@" in name else ""
        raise CliFailed(f"there is no account {name} on this host{ask}", Exit.USAGE) from None
    return found.pw_name, found.pw_uid


def stop_some(where: EndpointPaths, user: str | None, uep: str | None, message: str, timeout_s: float) -> int:
    """End one user endpoint, or those of one account, and return how many. Raises CliFailed."""
    from mep.boundary.messages import AdminStop
    from mep.cli.admin_client import AdminClient

    if user is not None and uep is not None:
        raise click.UsageError("give --user or --uep, not both")
    if uep is not None and not _UUID.fullmatch(uep):
        raise click.UsageError("--uep: not the id of a user endpoint (`mep status` shows them)")
    name, _ = _account(user)
    with AdminClient.required(where) as client:
        return client.order(AdminStop(uep or "", name, _checked_message(message)), timeout_s)


@click.command(
    short_help="Start nothing new, and let running tasks finish.",
    epilog=epilog('mep drain site --message "maintenance until 18:00"', "mep drain site --user alice"),
)
@name_argument
@click.option("--user", metavar="USER", help="Only for this account.")
@_message_option
@click.option("--refuse", is_flag=True, help="Let waiting tasks fail with the message; otherwise they wait.")
@json_option
def drain(name: str, user: str | None, message: str, refuse: bool, as_json: bool) -> None:
    """Start no new user endpoints at endpoint NAME, and let those that run finish their tasks and end.

    Tasks that have begun finish, however long they take. All others wait at the relay and say why (with --refuse they
    fail). A drain outlives restarts, until `mep undrain`.
    """
    from mep.boundary.messages import AdminDrain
    from mep.boundary.restrictions import RestrictionKind

    where, _ = locate(name)
    require_endpoint(where)
    account, _ = _account(user)
    _checked_message(message)
    count = _restrict(where, AdminDrain(int(refuse), account, message), RestrictionKind.DRAIN, refuse=refuse)
    running = f" User endpoints that end after their running tasks: {count}." if count else ""
    undo = f"mep undrain {where.name}" + (f" --user {account}" if account else "")
    text = f"Endpoint {where.name} starts nothing new for {account or 'anyone'} until `{undo}`.{running}"
    emit({"name": where.name, "local_user": account, "draining": count}, text, as_json=as_json)


@click.command(short_help="End a drain.", epilog=epilog("mep undrain site", "mep undrain site --user alice"))
@name_argument
@click.option("--user", metavar="USER", help="End only the drain of this account.")
@json_option
def undrain(name: str, user: str | None, as_json: bool) -> None:
    """End a drain: let endpoint NAME start user endpoints again. The relay asks for waiting starts at once."""
    from mep.boundary.messages import AdminUndrain
    from mep.boundary.restrictions import RestrictionKind

    where, _ = locate(name)
    require_endpoint(where)
    account, _ = _account(user)
    removed = _release(where, AdminUndrain(account), RestrictionKind.DRAIN, account)
    drained = f"account {account} at endpoint {where.name}" if account else f"endpoint {where.name}"
    text = f"The drain of {drained} has ended." if removed else f"There was no drain of {drained}."
    emit({"name": where.name, "local_user": account, "removed": bool(removed)}, text, as_json=as_json)


@click.command(
    short_help="Close an endpoint to one account, now.",
    epilog=epilog("mep ban site mallory", 'mep ban site mallory --message "see ticket 4711"'),
)
@click.argument("name")
@click.argument("user")
@_message_option
@json_option
def ban(name: str, user: str, message: str, as_json: bool) -> None:
    """Close endpoint NAME to the account USER: end what it runs, start nothing more, under any name of its uid.

    The account joins `policy.denied_users` until `mep unban`. The person reads ACCOUNT_BANNED and the message.
    """
    from mep.boundary.messages import AdminBan
    from mep.boundary.restrictions import RestrictionKind

    where, _ = locate(name)
    require_endpoint(where)
    account, uid = _account(user)
    _checked_message(message)
    count = _restrict(where, AdminBan(uid, account, message), RestrictionKind.BAN, refuse=True)
    undo = f"mep unban {where.name} {account}"
    text = f"Endpoint {where.name} is closed to {account} until `{undo}`. User endpoints ended: {count}."
    emit({"name": where.name, "local_user": account, "ended": count}, text, as_json=as_json)


@click.command(short_help="End a ban.", epilog=epilog("mep unban site mallory"))
@click.argument("name")
@click.argument("user")
@json_option
def unban(name: str, user: str, as_json: bool) -> None:
    """Open endpoint NAME to the account USER again. An account that no longer exists can be named too."""
    from mep.boundary.messages import AdminUnban
    from mep.boundary.restrictions import RestrictionKind

    where, _ = locate(name)
    require_endpoint(where)
    try:
        account, _ = _account(user)
    except CliFailed:
        account = user
    removed = _release(where, AdminUnban(account), RestrictionKind.BAN, account)
    text = (
        f"Endpoint {where.name} is open to {account} again."
        if removed
        else f"{account} was not banned at endpoint {where.name}."
    )
    emit({"name": where.name, "local_user": account, "removed": bool(removed)}, text, as_json=as_json)


@click.command(short_help="Read an endpoint's configuration again.", epilog=epilog("mep reload site"))
@name_argument
@json_option
def reload(name: str, as_json: bool) -> None:  # the command's name
    """Have endpoint NAME read its configuration again, as at SIGHUP, and say whether it is in force.

    Exits with 9 if the configuration is refused; the earlier one stays in force.
    """
    from mep.boundary.messages import AdminReload
    from mep.cli.admin_client import AdminClient

    where, _ = locate(name)
    require_endpoint(where)
    with AdminClient.required(where) as client:
        done, _, _ = client.ask(AdminReload())
    if done.problem:
        raise CliFailed(f"the configuration of {where.name} was refused: {done.problem}", Exit.REFUSED)
    text = f"Endpoint {where.name} has read its configuration."
    emit({"name": where.name, "reloaded": True}, text, as_json=as_json)


# --- with the monitor, or without it ------------------------------------------------------------------------


def _restrict(where: EndpointPaths, message: AdminDrain | AdminBan, kind: RestrictionKind, *, refuse: bool) -> int:
    from mep.boundary.messages import AdminBan
    from mep.boundary.restrictions import Restrictions
    from mep.cli.admin_client import AdminClient

    if (client := AdminClient.connect(where)) is not None:
        with client:
            return client.order(message)
    _require_stopped(where)
    uid = message.uid if isinstance(message, AdminBan) else -1
    try:
        Restrictions(str(where.state_dir)).put(
            kind, message.local_user, uid=uid, message=message.message, refuse=refuse, by_uid=os.getuid()
        )
    except ValueError as error:
        raise CliFailed(str(error)) from None
    return 0


def _release(where: EndpointPaths, message: AdminUndrain | AdminUnban, kind: RestrictionKind, account: str) -> int:
    from mep.boundary.restrictions import Restrictions
    from mep.cli.admin_client import AdminClient

    if (client := AdminClient.connect(where)) is not None:
        with client:
            return client.order(message)
    _require_stopped(where)
    return int(Restrictions(str(where.state_dir)).remove(kind, account))


def _require_stopped(where: EndpointPaths) -> None:
    """Raise CliFailed unless this process may write for a monitor that doesn't run."""
    from mep.boundary.runtime_files import running_monitor
    from mep.cli.admin_client import AdminClient, is_foreign

    if is_foreign(where):
        raise CliFailed(f"endpoint {where.name} is not running: only its owner can do this now", Exit.NOT_RUNNING)
    if running_monitor(where.runtime_dir) is not None:
        AdminClient.required(where)  # says what to do
