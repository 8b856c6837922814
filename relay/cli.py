"""The command `mep-relay`: run the relay, and look after its accounts.

As root every command becomes the account mep-relay before it opens anything; as anyone else it works on that
person's own state. Accounts can be changed while the relay serves: it sees the change within a second.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import click

from mep_wire.errors import IdConflict, NameReserved
from mep_wire.function_lists import DIGEST_PREFIX
from mep_wire.identity import Identity, IdentitySet
from mep_wire.text import escape_output, printable
from relay import log
from relay.auth import names
from relay.auth.settings import SCOPES
from relay.auth.tokens import new_token, token_hash
from relay.cli_common import (
    Where,
    existing_state,
    json_option,
    no_relay,
    open_state,
    refusals,
    show,
    state_option,
    store_of,
)
from relay.cli_operate import COMMANDS, remove_endpoint
from relay.server import serve
from relay.settings import command_line
from relay.state_dir import Keys, StateDir, StateRefused
from relay.store.base import Store, Tx
from relay.store.records import BUILT_IN_SCOPES, Caller, Document, TokenRecord

MAX_USERNAME = 256


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
@state_option
@command_line
def serve_command(where: Where, **options: Any) -> None:
    """Run the relay in the foreground until SIGTERM.

    Every option is also a key of mep-relay.toml, with underscores; docs/relay-configuration.md lists them.

    \b
    Examples:
      mep-relay serve
      mep-relay serve --state ./relay --port 0 --link-port 0   # free ports, written to ./relay/relay.json
    """
    state = open_state(where)
    settings = where.settings(options)
    log.set_up(as_json=settings.log_format == "json")
    try:
        state.lock()
        with refusals(state):
            asyncio.run(serve(state, settings))
    except (StateRefused, OSError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = "; choose others with --port and --link-port" if taken else ""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) and not error.filename:
            hint = f": make room for {state.directory}"
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


def _add_token(store: Store, caller: Caller, scopes: tuple[str, ...] = (), days: float | None = None) -> str:
    token, now = new_token(), time.time()
    record = TokenRecord(
        token_id=str(uuid.uuid4()),
        account_id=caller.account_id,
        identity_id=caller.identity_id,
        created_at=now,
        expires_at=now + days * 86400 if days else 0.0,
        scopes=scopes or BUILT_IN_SCOPES,
    )
    _wait(store.submit(lambda tx: tx.add_token(token_hash(token), record)))
    return token


def _wait(future: Future[Any]) -> Any:
    return future.result(timeout=60)


def _known(store: Store, username: str) -> Caller:
    caller = store.account_of(username)
    if caller is None:
        raise click.ClickException(
            f"there is no user {username}; `mep-relay user list` lists all, `mep-relay user add` adds one"
        )
    return caller


@user.command(name="add", short_help="Add a person and print an access token.")
@click.argument("username")
@click.option("--name", default="", help="The person's name.")
@click.option("--email", default="", help="Their address, if it is not the username.")
@state_option
@json_option
def add(username: str, name: str, email: str, where: Where, *, as_json: bool) -> None:
    """Add a person and print their access token: it is shown this once, and only its hash is stored.

    A username that a removed person had needs `mep-relay name free` first: groups and shares still mean that person.

    \b
    Example:
      mep-relay user add alice@example.edu --name "Alice Example"
    """
    identity = _identity(username, name, email)
    with store_of(where, make=True) as store:
        caller = Caller(account_id=str(uuid.uuid4()), identity_id=identity.id)
        try:
            _wait(store.submit(lambda tx: _add_person(tx, caller.account_id, identity)))
        except NameReserved as error:
            raise click.ClickException(
                f"{username} was another person's: groups, shares and endpoint names that have it would mean the new "
                f"one. `mep-relay name free {username}` gives it away"
            ) from error
        except IdConflict as error:
            raise click.ClickException(
                f"there is a user {username} already; `mep-relay user token` makes a new token"
            ) from error
        token = _add_token(store, caller)
    if "@" not in username:
        click.echo(f"note: {username} has no domain; endpoints map names such as {username}@example.edu", err=True)
    answer = {"username": username, "account_id": caller.account_id, "identity_id": identity.id, "token": token}
    show(answer, token, as_json=as_json)


def _add_person(tx: Tx, account_id: str, identity: Identity) -> None:
    names.take(tx, names.USERNAME, identity.username, identity.id)
    tx.add_account(account_id, identity)


@user.command(name="token", short_help="Print a new access token for a person.")
@click.argument("username")
@click.option("--keep", is_flag=True, help="Leave the earlier tokens valid.")
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES),
              help="What the token may do; may be given several times.  [default: all but admin]")  # fmt: skip
@click.option("--days", type=click.FloatRange(0.0, min_open=True), help="How long it is valid.  [default: for ever]")
@state_option
@json_option
def token_command(
    username: str, where: Where, scopes: tuple[str, ...], days: float | None, *, keep: bool, as_json: bool
) -> None:
    """Print a new access token for a person; the earlier ones stop working.

    \b
    Example:
      mep-relay user token alice@example.edu
    """
    with store_of(where) as store:
        caller = _known(store, username)
        if not keep:
            _wait(store.submit(lambda tx: tx.remove_tokens(caller.identity_id)))
        token = _add_token(store, caller, scopes, days)
    show({"username": username, "token": token}, token, as_json=as_json)


@user.command(name="list", short_help="List people.")
@state_option
@json_option
def list_users(where: Where, *, as_json: bool) -> None:
    """List people: one line a person, their linked identities in one line.

    \b
    Example:
      mep-relay user list --json
    """
    with store_of(where) as store:
        people = store.accounts()
    value = [{"account_id": p.account_id, "usernames": [i.username for i in p.identities]} for p in people]
    show(value, "\n".join(printable(_line(person)) for person in people) or "nobody yet", as_json=as_json)


def _line(person: IdentitySet) -> str:
    return f"{person.account_id}  " + ", ".join(sorted(identity.username for identity in person.identities))


@user.command(name="remove", short_help="Remove a person.")
@click.argument("username")
@state_option
def remove(username: str, where: Where) -> None:
    """Remove a person with all linked identities and tokens. Their tasks' records stay until they expire.

    \b
    Example:
      mep-relay user remove alice@example.edu
    """
    with store_of(where) as store:
        caller = _known(store, username)
        owned = store.endpoints(caller.account_id)
        if owned:
            listed = ", ".join(f"{one.name} ({one.endpoint_id})" for one in owned)
            raise click.ClickException(f"{username} still owns endpoints: {listed}. Delete those first.")
        person = store.identity_set(caller.account_id)
        if person is not None:
            _wait(store.submit(lambda tx: names.remove_person(tx, person, time.time())))
    click.echo(f"removed {username}; the name stays theirs until `mep-relay name free {username}`", err=True)


@user.command(name="link", short_help="Make two people one.")
@click.argument("username")
@click.argument("other")
@state_option
def link(username: str, other: str, where: Where) -> None:
    """Make OTHER's identities the same person as USERNAME; that account stays. Both have been added before.

    \b
    Example:
      mep-relay user add alice@lab.example.org
      mep-relay user link alice@example.edu alice@lab.example.org
    """
    with store_of(where) as store:
        keep, gone = _known(store, username), _known(store, other)
        if keep.account_id == gone.account_id:
            raise click.ClickException(f"{username} and {other} are the same person already")
        _wait(store.submit(lambda tx: tx.merge_accounts(keep.account_id, gone.account_id)))
    click.echo(f"linked {other} to {username}", err=True)


@user.command(name="unlink", short_help="Make an identity a person of its own again.")
@click.argument("username")
@state_option
def unlink(username: str, where: Where) -> None:
    """Take the identity USERNAME out of the person it is linked to: it becomes a person of its own.

    What the two had together stays with the other identities; USERNAME's access tokens go with it. Endpoints notice
    when they next re-check their running user endpoints.

    \b
    Example:
      mep-relay user unlink alice@lab.example.org
    """
    with store_of(where) as store:
        caller = _known(store, username)
        person = store.identity_set(caller.account_id)
        if person is None or len(person.identities) < 2:
            raise click.ClickException(f"{username} is linked to no other identity")
        _wait(store.submit(lambda tx: tx.move_identity(caller.identity_id, str(uuid.uuid4()))))
    click.echo(f"unlinked {username}", err=True)


@main.group(name="name")
def name_group() -> None:
    """Names that endpoints and people gave up."""


@name_group.command(name="list", short_help="List the freed names.")
@state_option
@json_option
def list_names(where: Where, *, as_json: bool) -> None:
    """List freed aliases and usernames, who had them, and since when they are free.

    \b
    Example:
      mep-relay name list
    """
    with store_of(where) as store:
        found = [one for kind in names.KINDS for one in _documents(store, kind)]
    value: list[dict[str, Any]] = [
        {"kind": names.KINDS[one.kind], "name": one.id, "of": names.freed_from(one).of, "at": names.freed_from(one).at}
        for one in found
    ]
    lines = [f"{v['name']}  {v['kind']} of {v['of']}, freed {_utc(v['at'])}" for v in value]
    show(value, "\n".join(map(printable, lines)) or "no freed name", as_json=as_json)


@name_group.command(name="free", short_help="Give a freed name away.")
@click.argument("name")
@state_option
def free_name(name: str, where: Where) -> None:
    """Let anyone take NAME, an alias or username that was given up.

    Tasks, groups, shares and scripts that still name it then mean its next owner: look through them first.

    \b
    Example:
      mep-relay name free alice@example.edu
    """
    with store_of(where) as store:
        freed = _wait(store.submit(lambda tx: [tx.drop_document(kind, name.lower()) for kind in names.KINDS]))
    if not any(freed):
        raise click.ClickException(f"{name} is no freed name; `mep-relay name list` lists them")
    click.echo(f"freed {name}", err=True)


def _documents(store: Store, kind: str) -> Iterator[Document]:
    """Return every document of a kind."""
    after = ""
    while page := store.documents(kind, after=after):
        yield from page
        after = page[-1].id


def _utc(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


@main.group()
def endpoint() -> None:
    """Endpoints registered with the relay."""


@endpoint.command(name="list", short_help="List the registered endpoints.")
@state_option
@json_option
def list_endpoints(where: Where, *, as_json: bool) -> None:
    """List every registered endpoint: id, kind, name, owner.

    \b
    Example:
      mep-relay endpoint list
    """
    with store_of(where) as store:
        found = store.endpoints()
        owners = {person.account_id: person.identities[0].username for person in store.accounts()}
    value = [
        {"id": e.endpoint_id, "name": e.name, "multi_user": e.multi_user, "owner": owners.get(e.owner, e.owner)}
        for e in found
    ]
    lines = [
        f"{v['id']}  {'multi-user ' if v['multi_user'] else 'single-user'}  {v['name']}  {v['owner']}" for v in value
    ]
    show(value, "\n".join(map(printable, lines)) or "no endpoint yet", as_json=as_json)


@main.group()
def function() -> None:
    """Functions registered with the relay."""


@function.command(name="show", short_help="Show a function and the digest of its code.")
@click.argument("function_id")
@state_option
@json_option
def show_function(function_id: str, where: Where, *, as_json: bool) -> None:
    """Show a registered function: name, owner, size, and the SHA-256 of its code.

    An endpoint's `allowed_functions` takes the digest as it is shown, with `sha256:` before it.

    \b
    Example:
      mep-relay function show 6d0ba55f-de15-4af2-827d-05c50c338aa7
    """
    with store_of(where) as store:
        found = store.function(function_id.lower())
        owners = {person.account_id: person.identities[0].username for person in store.accounts()}
    if found is None:
        raise click.ClickException(f"there is no function {function_id}: it was never registered, or it was deleted")
    value = {
        "id": found.function_id, "name": found.name, "owner": owners.get(found.owner, found.owner),
        "public": found.public, "bytes": len(found.code), "sha256": hashlib.sha256(found.code).hexdigest(),
    }  # fmt: skip
    lines = [*(f"{key}: {value[key]}" for key in ("id", "name", "owner", "public", "bytes"))]
    show(value, "\n".join([*lines, f"code: {DIGEST_PREFIX}{value['sha256']}"]), as_json=as_json)


@main.group(name="key", invoke_without_command=True, short_help="Show or replace the relay's keys.")
@state_option
@json_option
@click.pass_context
def key_group(ctx: click.Context, where: Where, *, as_json: bool) -> None:
    """Show the fingerprint of the relay's keys, which `mep configure` and `mep register` show at the endpoints.

    It is one fingerprint over the signing key and the link key. Earlier keys are listed with the time until which
    start requests are signed with them too.

    \b
    Examples:
      mep-relay key
      mep-relay key rotate
    """
    if ctx.invoked_subcommand is None:
        keys = _keys(where)
        show(_keys_value(keys), _keys_text(keys), as_json=as_json)


@key_group.command(name="rotate", short_help="Replace the signing key.")
@click.option("--overlap-days", default=90.0, show_default=True, type=click.FloatRange(0.0),
              help="How long start requests are signed with the earlier key too.")  # fmt: skip
@click.option("--link", "new_link", is_flag=True,
              help="Replace the link key too: endpoints are cut off until they are registered again.")  # fmt: skip
@click.option("--stolen", is_flag=True,
              help="The earlier key was stolen: it signs nothing more, not even the new key.")  # fmt: skip
@state_option
@json_option
def rotate(where: Where, *, overlap_days: float, new_link: bool, stolen: bool, as_json: bool) -> None:
    """Replace the relay's signing key. A running `mep-relay serve` uses the new one after a restart.

    The earlier key signs the new one, so that `mep register NAME --again` takes it over without being asked. Until the
    overlap ends, start requests carry the earlier key's signature too, for endpoints that have not registered again.

    \b
    Examples:
      mep-relay key rotate
      mep-relay key rotate --stolen   # endpoints need --new-relay-key FINGERPRINT
    """
    state = _existing(where)
    try:
        keys = state.rotate_keys(overlap_days * 86400, new_link=new_link, stolen=stolen)
    except StateRefused as error:
        raise click.ClickException(str(error)) from error
    click.echo(
        "Restart `mep-relay serve`; then run `mep register NAME --again` at each endpoint"
        + (" with --new-relay-key and this fingerprint, told to its administrators on another way." if stolen else "."),
        err=True,
    )
    show(_keys_value(keys), _keys_text(keys), as_json=as_json)


def _existing(where: Where) -> StateDir:
    state = existing_state(where)
    if not (state.directory / "signing.key").exists():
        if not where.settings().database and not state.database.exists():
            raise no_relay(where)
        raise click.ClickException(f"the relay in {where.path} has no keys yet: `mep-relay serve` makes them")
    return state


def _keys(where: Where) -> Keys:
    try:
        return _existing(where).keys()
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
        said = f"signs too until {_utc(at)}" if at else "signs no longer"
        lines.append(f"{one['fingerprint']}  (earlier, {said})")
    return "\n".join(lines)


endpoint.add_command(remove_endpoint)
for _command in COMMANDS:
    main.add_command(_command)


if __name__ == "__main__":
    sys.exit(main())
