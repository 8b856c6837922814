"""The command `mep-relay`: run the relay, and look after its accounts.

As root every command becomes the account mep-relay before it opens anything; as anyone else it works on that
person's own state. Accounts can be changed while the relay serves: it sees the change within a second.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from mep_wire.errors import IdConflict
from mep_wire.function_lists import DIGEST_PREFIX
from mep_wire.identity import Identity, IdentitySet
from mep_wire.text import escape_output, printable
from relay import log
from relay.auth.tokens import new_token, token_hash
from relay.server import RelaySettings, serve
from relay.state_dir import Keys, StateDir, StateRefused, become_relay_account, default_dir
from relay.store.group_commit import LOCK_WAIT_S
from relay.store.records import Caller
from relay.store.schema import StateTooNew
from relay.store.sqlite import SqliteStore

_DEFAULTS = RelaySettings()
MAX_USERNAME = 256
_UNUSABLE = (StateTooNew, sqlite3.DatabaseError)
"""The errors of opening a database: made by a newer relay, damaged, or locked for too long."""


def _state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--state",
        "directory",
        type=click.Path(path_type=Path),
        default=None,
        help="State directory.  [default: /var/lib/mep-relay as root, ~/.mep/relay otherwise]",
    )(command)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _open(directory: Path | None) -> StateDir:
    path = (directory or default_dir()).absolute()
    try:
        become_relay_account(path)
        return StateDir.open(path)
    except StateRefused as error:
        raise click.ClickException(str(error)) from error


@contextmanager
def _store(directory: Path | None, *, make: bool = False) -> Iterator[SqliteStore]:
    """Open the database; make one only with `make`: a mistyped --state is not to look like an empty relay."""
    path = directory or default_dir()
    with suppress(PermissionError):  # which is said when it is opened
        if not make and not path.exists():
            raise _no_relay(path)
    state = _open(directory)
    if not make and not state.database.exists():
        raise _no_relay(path)
    try:
        store = SqliteStore(state.database)
    except _UNUSABLE as error:
        raise click.ClickException(f"{state.database}: {error}{_lock_hint(error, state.database)}") from error
    try:
        yield store
    finally:
        store.close()


def _lock_hint(error: Exception, database: Path) -> str:
    busy = isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
    held = f"a backup or a database shell has had its lock for {LOCK_WAIT_S:g} s"
    return f": {held}; see `fuser -v {database}`, try again" if busy else ""


def _no_relay(path: Path) -> click.ClickException:
    return click.ClickException(
        f"there is no relay in {path}: say where it is with --state; "
        "`mep-relay serve` or `mep-relay user add` begins a new one"
    )


def _show(value: Any, text: str, *, as_json: bool) -> None:
    click.echo(json.dumps(value) if as_json else text)


class _Group(click.Group):
    """The command group. All that it prints is escaped, and so are its usage errors."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command that the arguments name."""
        escape_output()
        return super().main(*args, **kwargs)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "-V", "--version", package_name="mep")
def main() -> None:
    """The MEP relay: stands between people's scripts and the endpoints, and keeps their tasks and results.

    \b
    Examples:
      mep-relay user add alice@example.edu      # prints an access token, once
      mep-relay serve                           # HTTP on 127.0.0.1:8650, endpoint link on :8651
    """


@main.command(name="serve")
@_state_option
@click.option("--host", default=_DEFAULTS.host, show_default=True, help="Address for HTTP.")
@click.option("--port", default=_DEFAULTS.port, show_default=True, type=click.IntRange(0, 65535), help="0: any free.")
@click.option("--link-host", default=_DEFAULTS.link_host, show_default=True, help="Address for endpoints.")
@click.option(
    "--link-port",
    default=_DEFAULTS.link_port,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port for endpoints; 0: any free.",
)
@click.option(
    "--link-address",
    help="Address at which endpoints reach the link, if it is not that of --link-host and --link-port "
    "(tcp://relay.example.edu:8651).",
)
@click.option(
    "--retention-days",
    default=_DEFAULTS.retention_days,
    show_default=True,
    type=click.FloatRange(0.0),
    help="How long ended tasks and their results are kept.",
)
@click.option(
    "--task-lifetime-days",
    default=_DEFAULTS.task_lifetime_days,
    show_default=True,
    type=click.FloatRange(0.0),
    help="How long a task may wait until a site takes it, or for a silent site that has taken it; 0: for ever.",
)
@click.option(
    "--unused-days",
    default=_DEFAULTS.unused_days,
    show_default=True,
    type=click.FloatRange(0.0),
    help="How long unused functions, empty task groups and user endpoints are kept; 0: for ever.",
)
@click.option(
    "--max-stored-gb",
    default=_DEFAULTS.max_stored_gb,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Largest size of one person's waiting arguments and kept results; 0: any.",
)
@click.option(
    "--max-open-tasks-at-endpoint",
    default=_DEFAULTS.max_open_tasks_at_endpoint,
    show_default=True,
    type=click.IntRange(0),
    help="Most unfinished tasks of one person at one endpoint; 0: --max-open-tasks applies.",
)
@click.option(
    "--max-open-tasks",
    default=_DEFAULTS.max_open_tasks,
    show_default=True,
    type=click.IntRange(1),
    help="Most unfinished tasks of one person.",
)
@click.option(
    "--max-requests-per-s",
    default=_DEFAULTS.max_requests_per_s,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Most requests of one person per second, on average; 0: any number.",
)
@click.option(
    "--max-tasks-per-s",
    default=_DEFAULTS.max_tasks_per_s,
    show_default=True,
    type=click.FloatRange(0.0),
    help="Most tasks that one person may submit per second, on average; 0: any number.",
)
@click.option(
    "--max-batch",
    default=_DEFAULTS.max_batch,
    show_default=True,
    type=click.IntRange(1, _DEFAULTS.max_batch),
    help="Most tasks in one submission.",
)
@click.option(
    "--max-payload-mb",
    default=_DEFAULTS.max_payload_mb,
    show_default=True,
    type=click.FloatRange(0.0, _DEFAULTS.max_payload_mb, min_open=True),
    help="Largest arguments of one task.",
)
@click.option(
    "--max-result-mb",
    default=_DEFAULTS.max_result_mb,
    show_default=True,
    type=click.FloatRange(0.0, _DEFAULTS.max_result_mb, min_open=True),
    help="Largest result of one task.",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(["text", "json"]),
    help="Lines of text, or one JSON object per line.",
)
def serve_command(directory: Path | None, log_format: str, **options: Any) -> None:
    """Run the relay in the foreground until SIGTERM.

    \b
    Examples:
      mep-relay serve
      mep-relay serve --state ./relay --port 0 --link-port 0   # free ports, written to ./relay/relay.json
    """
    state = _open(directory)
    log.set_up(as_json=log_format == "json")
    try:
        state.lock()
        asyncio.run(serve(state, RelaySettings(**options)))
    except (StateRefused, OSError, *_UNUSABLE) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; choose others with --port and --link-port" if taken else ""
        if isinstance(error, sqlite3.DatabaseError):
            raise click.ClickException(f"{state.database}: {error}{_lock_hint(error, state.database)}") from error
        raise click.ClickException(f"{error}{hint}") from error


@main.group()
def user() -> None:
    """People who may use the relay, by the built-in accounts."""


def _identity(username: str, name: str, email: str) -> Identity:
    if not username or len(username) > MAX_USERNAME or not username.isprintable() or " " in username:
        raise click.BadParameter(f"a username is 1 to {MAX_USERNAME} printable characters without spaces")
    return Identity(
        id=str(uuid.uuid4()), username=username, name=name, email=email or (username if "@" in username else "")
    )


def _add_token(store: SqliteStore, caller: Caller) -> str:
    token = new_token()
    _wait(store.submit(lambda tx: tx.add_token(token_hash(token), caller, time.time())))
    return token


def _wait(future: Future[Any]) -> Any:
    return future.result(timeout=60)


def _known(store: SqliteStore, username: str) -> Caller:
    caller = store.account_of(username)
    if caller is None:
        raise click.ClickException(
            f"there is no user {username}; `mep-relay user list` shows who there is, `user add` adds one"
        )
    return caller


@user.command(name="add", short_help="Add a person and print an access token.")
@click.argument("username")
@click.option("--name", default="", help="The person's name.")
@click.option("--email", default="", help="Their address, if it is not the username.")
@_state_option
@_json_option
def add(username: str, name: str, email: str, directory: Path | None, *, as_json: bool) -> None:
    """Add a person and print their access token: it is shown this once, and only its hash is stored.

    \b
    Example:
      mep-relay user add alice@example.edu --name "Alice Example"
    """
    identity = _identity(username, name, email)
    with _store(directory, make=True) as store:
        caller = Caller(account_id=str(uuid.uuid4()), identity_id=identity.id)
        try:
            _wait(store.submit(lambda tx: tx.add_account(caller.account_id, identity)))
        except IdConflict as error:
            raise click.ClickException(
                f"there is a user {username} already; `mep-relay user token` makes a new token"
            ) from error
        token = _add_token(store, caller)
    answer = {"username": username, "account_id": caller.account_id, "identity_id": identity.id, "token": token}
    _show(answer, token, as_json=as_json)


@user.command(name="token", short_help="Print a new access token for a person.")
@click.argument("username")
@click.option("--keep", is_flag=True, help="Leave the earlier tokens valid.")
@_state_option
@_json_option
def token_command(username: str, directory: Path | None, *, keep: bool, as_json: bool) -> None:
    """Print a new access token for a person; the earlier ones stop working.

    \b
    Example:
      mep-relay user token alice@example.edu
    """
    with _store(directory) as store:
        caller = _known(store, username)
        if not keep:
            _wait(store.submit(lambda tx: tx.remove_tokens(caller.identity_id)))
        token = _add_token(store, caller)
    _show({"username": username, "token": token}, token, as_json=as_json)


@user.command(name="list", short_help="List people.")
@_state_option
@_json_option
def list_users(directory: Path | None, *, as_json: bool) -> None:
    """List people: one line a person, their linked identities in one line.

    \b
    Example:
      mep-relay user list --json
    """
    with _store(directory) as store:
        people = store.accounts()
    value = [{"account_id": p.account_id, "usernames": [i.username for i in p.identities]} for p in people]
    _show(value, "\n".join(printable(_line(person)) for person in people) or "nobody yet", as_json=as_json)


def _line(person: IdentitySet) -> str:
    return f"{person.account_id}  " + ", ".join(sorted(identity.username for identity in person.identities))


@user.command(name="remove", short_help="Remove a person.")
@click.argument("username")
@_state_option
def remove(username: str, directory: Path | None) -> None:
    """Remove a person with all linked identities and tokens. Their tasks' records stay until they expire.

    \b
    Example:
      mep-relay user remove alice@example.edu
    """
    with _store(directory) as store:
        caller = _known(store, username)
        owned = store.endpoints(caller.account_id)
        if owned:
            names = ", ".join(f"{one.name} ({one.endpoint_id})" for one in owned)
            raise click.ClickException(f"{username} still owns endpoints: {names}. Delete those first.")
        _wait(store.submit(lambda tx: tx.remove_account(caller.account_id)))
    click.echo(f"removed {username}", err=True)


@user.command(name="link", short_help="Make two people one.")
@click.argument("username")
@click.argument("other")
@_state_option
def link(username: str, other: str, directory: Path | None) -> None:
    """Make OTHER's identities the same person as USERNAME, whose account stays. Both have been added before.

    \b
    Example:
      mep-relay user add alice@lab.example.org
      mep-relay user link alice@example.edu alice@lab.example.org
    """
    with _store(directory) as store:
        keep, gone = _known(store, username), _known(store, other)
        if keep.account_id == gone.account_id:
            raise click.ClickException(f"{username} and {other} are the same person already")
        _wait(store.submit(lambda tx: tx.merge_accounts(keep.account_id, gone.account_id)))
    click.echo(f"linked {other} to {username}", err=True)


@user.command(name="unlink", short_help="Make an identity a person of its own again.")
@click.argument("username")
@_state_option
def unlink(username: str, directory: Path | None) -> None:
    """Take the identity USERNAME out of the person it is linked to: it becomes a person of its own.

    What the two had together stays with the other identities; USERNAME's access tokens go with it. Endpoints notice
    when they next re-check their running user endpoints.

    \b
    Example:
      mep-relay user unlink alice@lab.example.org
    """
    with _store(directory) as store:
        caller = _known(store, username)
        person = store.identity_set(caller.account_id)
        if person is None or len(person.identities) < 2:
            raise click.ClickException(f"{username} is linked to no other identity")
        _wait(store.submit(lambda tx: tx.move_identity(caller.identity_id, str(uuid.uuid4()))))
    click.echo(f"unlinked {username}", err=True)


@main.group()
def endpoint() -> None:
    """Endpoints registered with the relay."""


@endpoint.command(name="list", short_help="List the registered endpoints.")
@_state_option
@_json_option
def list_endpoints(directory: Path | None, *, as_json: bool) -> None:
    """List every registered endpoint: id, kind, name, owner.

    \b
    Example:
      mep-relay endpoint list
    """
    with _store(directory) as store:
        found = store.endpoints()
        owners = {person.account_id: person.identities[0].username for person in store.accounts()}
    value = [
        {"id": e.endpoint_id, "name": e.name, "multi_user": e.multi_user, "owner": owners.get(e.owner, e.owner)}
        for e in found
    ]
    lines = [
        f"{v['id']}  {'multi-user ' if v['multi_user'] else 'single-user'}  {v['name']}  {v['owner']}" for v in value
    ]
    _show(value, "\n".join(map(printable, lines)) or "no endpoint yet", as_json=as_json)


@main.group()
def function() -> None:
    """Functions registered with the relay."""


@function.command(name="show", short_help="Show a function and the digest of its code.")
@click.argument("function_id")
@_state_option
@_json_option
def show_function(function_id: str, directory: Path | None, *, as_json: bool) -> None:
    """Show a registered function: name, owner, size, and the SHA-256 of its code.

    An endpoint's `allowed_functions` takes the digest as it is shown, with `sha256:` before it.

    \b
    Example:
      mep-relay function show 6d0ba55f-de15-4af2-827d-05c50c338aa7
    """
    with _store(directory) as store:
        found = store.function(function_id.lower())
        owners = {person.account_id: person.identities[0].username for person in store.accounts()}
    if found is None:
        raise click.ClickException(f"there is no function {function_id}: it was never registered, or it was deleted")
    value = {
        "id": found.function_id, "name": found.name, "owner": owners.get(found.owner, found.owner),
        "public": found.public, "bytes": len(found.code), "sha256": hashlib.sha256(found.code).hexdigest(),
    }  # fmt: skip
    lines = [*(f"{key}: {value[key]}" for key in ("id", "name", "owner", "public", "bytes"))]
    _show(value, "\n".join([*lines, f"code: {DIGEST_PREFIX}{value['sha256']}"]), as_json=as_json)


@main.group(name="key", invoke_without_command=True, short_help="Show or replace the relay's keys.")
@_state_option
@_json_option
@click.pass_context
def key_group(ctx: click.Context, directory: Path | None, *, as_json: bool) -> None:
    """Show the fingerprint of the relay's keys, which `mep configure` and `mep register` show at the endpoints.

    It is one fingerprint over the signing key and the link key. Earlier keys are listed with the time until which
    start requests are signed with them too.

    \b
    Examples:
      mep-relay key
      mep-relay key rotate
    """
    if ctx.invoked_subcommand is None:
        keys = _keys(directory)
        _show(_keys_value(keys), _keys_text(keys), as_json=as_json)


@key_group.command(name="rotate", short_help="Replace the signing key.")
@click.option("--overlap-days", default=90.0, show_default=True, type=click.FloatRange(0.0),
              help="How long start requests are signed with the earlier key too.")  # fmt: skip
@click.option("--link", "new_link", is_flag=True,
              help="Replace the link key too: endpoints are cut off until they are registered again.")  # fmt: skip
@click.option("--stolen", is_flag=True,
              help="The earlier key was stolen: it signs nothing more, not even the new key.")  # fmt: skip
@_state_option
@_json_option
def rotate(directory: Path | None, *, overlap_days: float, new_link: bool, stolen: bool, as_json: bool) -> None:
    """Replace the relay's signing key. A running `mep-relay serve` uses the new one after a restart.

    The earlier key signs the new one, so that `mep register NAME --again` takes it over without being asked. Until the
    overlap ends, start requests carry the earlier key's signature too, for endpoints that have not registered again.

    \b
    Examples:
      mep-relay key rotate
      mep-relay key rotate --stolen   # endpoints need --new-relay-key FINGERPRINT
    """
    state = _existing(directory)
    try:
        keys = state.rotate_keys(overlap_days * 86400, new_link=new_link, stolen=stolen)
    except StateRefused as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        "Restart `mep-relay serve`; then run `mep register NAME --again` at each endpoint"
        + (" with --new-relay-key and this fingerprint, told to its administrators on another way." if stolen else "."),
        err=True,
    )
    _show(_keys_value(keys), _keys_text(keys), as_json=as_json)


def _existing(directory: Path | None) -> StateDir:
    path = directory or default_dir()
    with suppress(PermissionError):  # which is said when it is opened
        if not path.exists():
            raise _no_relay(path)
    state = _open(directory)
    if not (state.directory / "signing.key").exists():
        if not state.database.exists():
            raise _no_relay(path)
        raise click.ClickException(f"the relay in {path} has no keys yet: `mep-relay serve` makes them")
    return state


def _keys(directory: Path | None) -> Keys:
    try:
        return _existing(directory).keys()
    except StateRefused as error:
        raise click.ClickException(str(error)) from error


def _keys_value(keys: Keys) -> dict[str, Any]:
    until = {key.public_key().public_bytes_raw(): at for key, at in keys.overlap}
    return {
        "fingerprint": keys.public.fingerprint,
        "signing_public_key": keys.public.signing.hex(),
        "link_public_key": keys.public.link.hex(),
        "earlier": [
            {"fingerprint": one.keys.fingerprint, "signs_until": until.get(one.keys.signing)} for one in keys.earlier
        ],
    }


def _keys_text(keys: Keys) -> str:
    value = _keys_value(keys)
    lines = [f"{value['fingerprint']}  (present)"]
    for one in reversed(value["earlier"]):
        at = one["signs_until"]
        said = f"signs too until {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at))}" if at else "signs no longer"
        lines.append(f"{one['fingerprint']}  (earlier, {said})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
