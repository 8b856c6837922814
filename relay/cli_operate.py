"""Commands of `mep-relay` for operating a relay: database, tasks, queues, storage, drain, configuration.

What concerns tasks under way is done by the server that runs, which control.sock reaches; the rest is read from the
store. Called by the command line alone.
"""

from __future__ import annotations

import os
import pwd
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import msgspec

from mep_wire.ids import uuid_text
from mep_wire.states import TaskState
from mep_wire.text import printable
from relay import settings as relay_settings
from relay.auth.access import delete_endpoint
from relay.cli_common import (
    Where,
    existing_state,
    json_option,
    open_state,
    password,
    progress,
    refusals,
    secret,
    show,
    state_option,
    store_of,
)
from relay.control import NotServed, ask
from relay.state_dir import StateDir, StateRefused
from relay.store import maintenance
from relay.store.base import Store
from relay.store.chunks import Chunks, ChunksUnavailable
from relay.store.maintenance import CannotRestore, ChunkReport, Database, SqliteDatabase
from relay.store.opening import open_chunks, postgres_database
from relay.store.schema import MIGRATIONS

_NOT_SERVED = "no relay serves this state directory: start `mep-relay serve` first"


def _database(state: StateDir, where: Where) -> Database:
    settings = where.settings()
    if not settings.database:
        return SqliteDatabase(state.database)
    return postgres_database(settings.database, password(settings))


def _chunk_directory(state: StateDir, where: Where) -> Path | None:
    """Return the directory of chunks, None where there is none, or where they are in a bucket."""
    settings = where.settings()
    if settings.chunks or settings.database:
        return Path(settings.chunks) if settings.chunks.startswith("/") else None
    return state.data


def _cannot_write(directory: Path, error: PermissionError) -> str:
    """Return what to say of a backup's `directory` that this account can't write to."""
    account = pwd.getpwuid(os.geteuid()).pw_name
    mend = f"make one that it may: install -d -m 700 -o {account} DIRECTORY, and back up to DIRECTORY/NAME"
    return f"{directory}: {error.strerror}: the backup is written by the account {account}; {mend}"


@contextmanager
def _said(state: StateDir) -> Iterator[None]:
    """Turn errors of the database's upkeep into those of the command line."""
    try:
        with refusals(state):
            yield
    except ChunksUnavailable as error:
        raise click.ClickException(f"the storage of chunks: {error}") from error
    except (CannotRestore, StateRefused, OSError) as error:
        raise click.ClickException(str(error)) from error


# --- database ---------------------------------------------------------------------------------------


@click.group(short_help="Upgrade, check, back up and restore the database.")
def db() -> None:
    """Look after the relay's database: the SQLite file, or the PostgreSQL database of mep-relay.toml."""


@db.command(short_help="Bring the schema up to date.")
@state_option
@json_option
def upgrade(where: Where, *, as_json: bool) -> None:
    """Bring the database's schema to this version of the relay. `mep-relay serve` does the same when it starts.

    \b
    Example:
      mep-relay db upgrade
    """
    state = existing_state(where)
    with _said(state):
        database = _database(state, where)
        before = database.version()
        database.upgrade()
    newest = len(MIGRATIONS)
    text = f"schema version {before} is now {newest}" if before < newest else f"up to date: schema version {newest}"
    show({"before": before, "schema": newest}, text, as_json=as_json)


@db.command(short_help="Look for damage.")
@click.option("--no-chunks", is_flag=True, help="Leave out the chunks, which are all read.")
@state_option
@json_option
def check(where: Where, *, no_chunks: bool, as_json: bool) -> None:
    """Look for damage: of the database, of records that do not fit together, and of chunks.

    Every chunk that a task or a result refers to is read and compared with its SHA-256. Chunks that nothing refers to
    are counted, and listed with --json; the relay removes them after an hour. A relay may serve at the same time.
    Exits with 1 if there is damage.

    \b
    Examples:
      mep-relay db check
      mep-relay db check --no-chunks   # of a large bucket, say
    """
    state = existing_state(where)
    settings = where.settings()
    with _said(state):
        database = _database(state, where)
        version = database.version()
        wrong = database.check() if version else ["there is no database yet"]
        stored = open_chunks(settings, secret(settings)) if version and not no_chunks else None
        report = _chunk_report(database, stored) if stored is not None else None
    value: dict[str, Any] = {"kind": database.kind, "schema": version, "newest": len(MIGRATIONS), "wrong": wrong}
    if report is not None:
        wrong += report.wrong()
        value["chunks"] = msgspec.to_builtins(report)
    text = "\n".join(map(printable, wrong)) or f"no damage found; schema version {version}"
    if report is not None:
        text += f"\n{report.checked} chunks read, {len(report.unreferenced)} that nothing refers to"
    show(value, text, as_json=as_json)
    if wrong:
        raise SystemExit(1)


def _chunk_report(database: Database, chunks: Chunks) -> ChunkReport:
    with progress() as tell:
        return maintenance.check_chunks(database, chunks, tell)


@db.command(short_help="Back the relay up while it serves.")
@click.argument("directory", type=click.Path(path_type=Path))
@state_option
@json_option
def backup(directory: Path, where: Where, *, as_json: bool) -> None:
    """Write the database and the relay's keys into a new DIRECTORY. A relay may serve at the same time.

    The backup holds everything that the relay must keep secret. If root runs this, the account mep-relay writes it,
    in a directory that this account must be able to write to.

    \b
    Example:
      install -d -m 700 -o mep-relay -g mep-relay /var/backups/mep-relay
      mep-relay db backup /var/backups/mep-relay/2026-12-01
    """
    state = existing_state(where)
    _check_fresh(directory.absolute())
    with _said(state), progress() as tell:
        try:
            manifest = maintenance.back_up(
                _database(state, where), state.directory, directory.absolute(), _chunk_directory(state, where), tell
            )
        except PermissionError as error:
            raise click.ClickException(_cannot_write(directory.absolute().parent, error)) from error
    text = f"{directory}: {len(manifest.files)} files, schema version {manifest.schema}"
    _say_bucket(where, "the backup does not have the chunks: within an hour, copy them too", "{chunks} DIRECTORY")
    show(msgspec.to_builtins(manifest), text, as_json=as_json)


def _check_fresh(directory: Path) -> None:
    """Refuse a directory of a backup that can't be made, before anything is copied. Raises click.ClickException."""
    with suppress(PermissionError):  # which is said when it is made
        if directory.exists():
            raise click.ClickException(f"{directory} exists already: a backup is a new directory")
        if not directory.parent.is_dir():
            raise click.ClickException(f"there is no directory {directory.parent}: make it first, or name another")


@db.command(name="restore", short_help="Put a backup in place of the state.")
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--replace", is_flag=True, help="Give up the present database and keys.")
@state_option
@json_option
def restore_command(directory: Path, where: Where, *, replace: bool, as_json: bool) -> None:
    """Put the database and keys of a backup in place of the relay's, which must not serve.

    Tasks that were accepted after the backup are lost; user endpoints drop results that belong to no task.

    \b
    Example:
      mep-relay db restore /var/backups/mep-relay/2026-12-01 --replace
    """
    state = open_state(where)
    with _said(state):
        state.lock()
        database = _database(state, where)
        if database.version() and not replace:
            raise click.ClickException("there is a database already: --replace gives it up for the backup")
        chunks = _chunk_directory(state, where)
        with progress() as tell:
            manifest = maintenance.restore(database, state.directory, directory.absolute(), chunks, tell)
        database.upgrade()
    show(msgspec.to_builtins(manifest), f"restored the state of {_time(manifest.at)}", as_json=as_json)
    _say_bucket(where, "chunks that the bucket has lost must be put back", "DIRECTORY {chunks}")


def _say_bucket(where: Where, text: str, words: str) -> None:
    """Say, where the chunks are in a bucket, with which command they are copied."""
    settings = where.settings()
    if not settings.chunks.startswith("s3://"):
        return
    at = f" --endpoint-url {settings.s3_endpoint}" if settings.s3_endpoint else ""
    click.echo(f"{text}: aws s3 sync{at} {words.format(chunks=settings.chunks)}", err=True)


# --- tasks, queues, storage -------------------------------------------------------------------------


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _owners(store: Store) -> dict[str, str]:
    return {person.account_id: person.identities[0].username for person in store.accounts()}


def _account(store: Store, username: str) -> str:
    if not username:
        return ""
    caller = store.account_of(username)
    if caller is None:
        raise click.ClickException(f"there is no user {username}")
    return caller.account_id


@click.group(short_help="List and cancel tasks.")
def task() -> None:
    """All people's tasks."""


@task.command(name="list", short_help="List tasks, the newest first.")
@click.option("--user", "username", default="", help="Those of one person.")
@click.option("--endpoint", "endpoint_id", default="", help="Those of one endpoint.")
@click.option("--all", "ended", is_flag=True, help="Ended ones too.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000), help="At most so many.")
@state_option
@json_option
def list_tasks(where: Where, username: str, endpoint_id: str, limit: int, *, ended: bool, as_json: bool) -> None:
    """List tasks, the newest first: id, state, age, person, endpoint.

    \b
    Example:
      mep-relay task list --user alice@example.edu
    """
    endpoint_id = endpoint_id.lower()
    with store_of(where) as store:
        if endpoint_id and store.endpoint(endpoint_id) is None:
            raise click.ClickException(f"there is no endpoint {endpoint_id}; `mep-relay endpoint list` shows them")
        found = store.list_tasks(_account(store, username), endpoint_id, ended=ended, limit=limit)
        owners = _owners(store)
    value = [
        {
            "id": uuid_text(one.task_id), "state": one.state.name, "owner": owners.get(one.owner, one.owner),
            "endpoint": one.endpoint_id, "submitted": _time(one.submitted_at),
        }
        for one in found
    ]  # fmt: skip
    lines = [f"{v['id']}  {v['state']:10}  {v['submitted']}  {v['owner']}  {v['endpoint']}" for v in value]
    show(value, "\n".join(map(printable, lines)) or "no tasks", as_json=as_json)


@task.command(name="cancel", short_help="Cancel tasks.")
@click.argument("task_id", nargs=-1, required=True)
@state_option
@json_option
def cancel_tasks(task_id: tuple[str, ...], where: Where, *, as_json: bool) -> None:
    """Cancel anyone's tasks: waiting ones at once, running ones by their user endpoint.

    Exits with 1 if a task isn't known here.

    \b
    Example:
      mep-relay task cancel 01977f5e-0000-7000-8000-000000000000
    """
    for one in task_id:
        try:
            uuid.UUID(one)
        except ValueError as error:
            raise click.BadParameter(f"{one} is not a UUID") from error
    answer = _ask(where, "cancel", ids=list(task_id))
    text = f"{answer['cancelled']} cancelled, {answer['asked']} being cancelled, {answer['ended']} had ended"
    if answer["unknown"]:
        text += f", {answer['unknown']} not known here: `mep-relay task list --all` shows the tasks"
    show(answer, text, as_json=as_json)
    if answer["unknown"]:
        raise SystemExit(1)


@click.command(short_help="Show waiting and running tasks by user endpoint.")
@state_option
@json_option
def queue(where: Where, *, as_json: bool) -> None:
    """Show how many tasks wait and run, by endpoint, person and user endpoint, the longest queue first.

    \b
    Example:
      mep-relay queue
    """
    with store_of(where) as store:
        found, owners = store.queues(), _owners(store)
    by_uep: dict[str, dict[str, Any]] = {}
    for one in found:
        entry = by_uep.setdefault(
            one.uep_id,
            {
                "user_endpoint": one.uep_id, "endpoint": one.endpoint_id,
                "owner": owners.get(one.account_id, one.account_id), "queued": 0, "dispatched": 0, "running": 0,
                "oldest": one.oldest,
            },
        )  # fmt: skip
        entry[TaskState(one.state).name.lower()] = one.count
        entry["oldest"] = min(entry["oldest"], one.oldest)
    value = sorted(by_uep.values(), key=lambda entry: -entry["queued"])
    lines = [
        f"{v['queued']:8} waiting {v['dispatched']:7} sent {v['running']:7} running  since {_time(v['oldest'])}  "
        f"{v['owner']}  {v['endpoint']}  {v['user_endpoint']}"
        for v in value
    ]
    show(value, "\n".join(map(printable, lines)) or "no unfinished tasks", as_json=as_json)


@click.command(short_help="Show what people store.")
@state_option
@json_option
def storage(where: Where, *, as_json: bool) -> None:
    """Show the bytes of each person's waiting arguments, kept results and functions, the largest first.

    \b
    Example:
      mep-relay storage
    """
    with store_of(where) as store:
        found, owners = store.storage(), _owners(store)
    value = [{"owner": owners.get(owner, owner), "bytes": size, "task_groups": groups} for owner, size, groups in found]
    lines = [f"{v['bytes'] / 1e6:12,.1f} MB  {v['task_groups']:7} task groups  {v['owner']}" for v in value]
    show(value, "\n".join(map(printable, lines)) or "nothing is stored", as_json=as_json)


# --- the server that runs ---------------------------------------------------------------------------


def _ask(where: Where, what: str, **fields: Any) -> dict[str, Any]:
    """Ask the server that runs. Raises click.ClickException."""
    state = existing_state(where)
    try:
        answer = ask(state.control, what, **fields)
    except NotServed as error:
        raise click.ClickException(_NOT_SERVED) from error
    except (OSError, msgspec.MsgspecError) as error:
        raise click.ClickException(f"{state.control}: {error}") from error
    if problem := answer.get("error"):
        raise click.ClickException(problem)
    return answer


@click.command(short_help="Make the relay refuse new tasks.")
@click.option("--off", is_flag=True, help="Take new tasks again.")
@state_option
@json_option
def drain(where: Where, *, off: bool, as_json: bool) -> None:
    """Make the relay refuse new tasks, and report that it isn't ready, while it finishes those that it has.

    Shows how many these are; repeat it to see how far they are. Clients try again by themselves, so nothing is lost if
    the relay is restarted then.

    \b
    Examples:
      mep-relay drain
      mep-relay drain --off
    """
    answer = _ask(where, "drain", on=not off)
    refuses = "The relay refuses new tasks until `mep-relay drain --off`, or until it is restarted."
    with store_of(where) as store:
        counts = store.open_by_state()
    answer["tasks"] = {
        state.name.lower(): counts.get(state, 0)
        for state in (TaskState.RUNNING, TaskState.DISPATCHED, TaskState.QUEUED)
    }
    running, sent, waiting = answer["tasks"].values()
    under_way = f"{running:,} tasks run, {sent:,} were sent and have not begun, {waiting:,} wait."
    show(answer, f"{'The relay takes new tasks.' if off else refuses}\n{under_way}", as_json=as_json)


@click.command(name="remove", short_help="Remove an endpoint of any owner.")
@click.argument("endpoint_id")
@state_option
@json_option
def remove_endpoint(endpoint_id: str, where: Where, *, as_json: bool) -> None:
    """Remove an endpoint, also one with an owner who is gone. Its waiting tasks fail, and its processes are told.

    \b
    Example:
      mep-relay endpoint remove 6d0ba55f-de15-4af2-827d-05c50c338aa7
    """
    endpoint_id = endpoint_id.lower()
    with store_of(where) as store:
        found = store.endpoint(endpoint_id)
        if found is None or found.deleted_at:
            raise click.ClickException(f"there is no endpoint {endpoint_id}; `mep-relay endpoint list` shows them")
        try:
            _ask(where, "remove-endpoint", ids=[endpoint_id])
        except click.ClickException as error:
            if error.message != _NOT_SERVED:
                raise
            store.submit(lambda tx: delete_endpoint(tx, endpoint_id, found.owner, time.time())).result(60)
    show({"removed": endpoint_id}, f"removed {endpoint_id}", as_json=as_json)


@click.command(short_help="Check and show the configuration.")
@state_option
@json_option
def config(where: Where, *, as_json: bool) -> None:
    """Check mep-relay.toml and show every key with its value, as `mep-relay serve` would take it.

    \b
    Example:
      mep-relay config
    """
    open_state(where)
    settings = where.settings()
    value = {one.name: getattr(settings, one.name) for one in relay_settings.options()}
    lines = [f"{name} = {msgspec.json.encode(each).decode()}" for name, each in value.items()]
    show(value, "\n".join(map(printable, lines)), as_json=as_json)


COMMANDS = (db, task, queue, storage, drain, config)
