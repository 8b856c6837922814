"""What the commands of `mep-relay` share: their options, the state directory, the settings and the store.

As root every command becomes the account mep-relay before it opens anything. Called by the command line alone.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from relay import settings as relay_settings
from relay.settings import ConfigRefused, RelaySettings
from relay.state_dir import StateDir, StateRefused, become_relay_account, default_dir
from relay.store.group_commit import LOCK_WAIT_S
from relay.store.maintenance import Tell
from relay.store.opening import DriverMissing, open_store
from relay.store.schema import StateTooNew

UNUSABLE = (StateTooNew, DriverMissing, sqlite3.DatabaseError)
"""The errors of opening a database: made by a newer relay, damaged, away, or locked for too long."""
become = become_relay_account
PROGRESS_S = 10.0
"""How often the progress of long work is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """The values of --state and --config."""

    directory: Path | None
    config: Path | None

    @property
    def path(self) -> Path:
        """The state directory."""
        return (self.directory or default_dir()).absolute()

    def settings(self, given: dict[str, Any] | None = None) -> RelaySettings:
        """Return the settings. Raises click.ClickException."""
        path = (self.config or relay_settings.config_path(self.path)).absolute()
        try:
            return relay_settings.load(path, given, required=self.config is not None)
        except ConfigRefused as error:
            raise click.ClickException(str(error)) from error


def state_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --state and --config, as its parameter `where`."""

    def joined(*words: Any, state_dir: Path | None, config_file: Path | None, **values: Any) -> Any:
        directory = state_dir or default_dir()  # root's, before root becomes the relay's account
        return command(*words, where=Where(directory=directory, config=config_file), **values)

    joined.__name__, joined.__doc__ = command.__name__, command.__doc__
    joined.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    config = click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        default=None,
        help="Configuration.  [default: /etc/mep-relay.toml for /var/lib/mep-relay, mep-relay.toml in other state "
        "directories]",
    )
    state = click.option(
        "--state",
        "state_dir",
        type=click.Path(path_type=Path),
        default=None,
        help="State directory.  [default: /var/lib/mep-relay as root, ~/.mep/relay otherwise]",
    )
    return state(config(joined))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def open_state(where: Where) -> StateDir:
    """Become the relay's account and open the state directory. Raises click.ClickException."""
    try:
        become(where.path)
        return StateDir.open(where.path)
    except StateRefused as error:
        raise click.ClickException(str(error)) from error


def existing_state(where: Where) -> StateDir:
    """Open the state directory where there is one: a mistyped --state is not to look like an empty relay."""
    with suppress(PermissionError):  # which is said when it is opened
        if not where.path.exists():
            raise no_relay(where)
    return open_state(where)


@contextmanager
def store_of(where: Where, *, make: bool = False) -> Iterator[Any]:
    """Open the store; make one only with `make`."""
    state = open_state(where) if make else existing_state(where)
    settings = where.settings()
    if not make and not settings.database and not state.database.exists():
        raise no_relay(where)
    with refusals(state):
        opened = open_store(state.database, settings.database, password(settings))
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def refusals(state: StateDir) -> Iterator[None]:
    """Turn the errors of opening a store into those of the command line."""
    try:
        yield
    except ConfigRefused as error:
        raise click.ClickException(str(error)) from error
    except UNUSABLE as error:
        raise click.ClickException(unusable(error, state)) from error


def unusable(error: Exception, state: StateDir) -> str:
    """Return why the store can't be opened."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
        held = f"a backup or a database shell has had its lock for {LOCK_WAIT_S:g} s"
        return f"{state.database}: {error}: {held}; see `fuser -v {state.database}`, try again"
    return f"{state.database}: {error}" if hasattr(error, "sqlite_errorcode") else f"database: {error}"


def password(settings: RelaySettings) -> Callable[[], str]:
    """Return what reads the database's password, again for each connection."""
    return lambda: relay_settings.secret_text("database_password", settings.database_password)


def secret(settings: RelaySettings) -> Callable[[], str]:
    """Return what reads the secret key of the chunks' storage."""
    return lambda: relay_settings.secret_text("s3_secret", settings.s3_secret)


@contextmanager
def progress() -> Iterator[Tell]:
    """Show on standard error how far long work has come: a bar for each part of it on a terminal, else a line now and
    then. The value is called with the name of a part, how much of it is done, and how much of it there is."""
    if sys.stderr.isatty():
        with _bars() as tell:
            yield tell
        return
    said_at = time.monotonic()

    def tell_plainly(what: str, done: int, of: int) -> None:
        nonlocal said_at
        if time.monotonic() - said_at > PROGRESS_S:
            said_at = time.monotonic()
            click.echo(f"{what}: {done:,} of {of:,}", err=True)

    yield tell_plainly


@contextmanager
def _bars() -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    known: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def tell(what: str, done: int, of: int) -> None:
            if what not in known:
                known[what] = bars.add_task(what, total=of)
            bars.update(known[what], completed=min(done, of), total=of)

        yield tell


def no_relay(where: Where) -> click.ClickException:
    """Return the error for a state directory without a relay."""
    return click.ClickException(
        f"there is no relay in {where.path}: say where it is with --state; "
        "`mep-relay serve` or `mep-relay user add` begins a new one"
    )


def show(value: Any, text: str, *, as_json: bool) -> None:
    """Print a value as JSON or as text."""
    click.echo(json.dumps(value) if as_json else text)
