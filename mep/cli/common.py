"""Shared code of the commands: arguments, options, and the text and exit code of a failure.

Imports nothing heavier than click, because every command pays for it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from mep.boundary.errors import ConfigRefused
from mep.boundary.text import printable
from mep.cli.exit_codes import EXIT_TEXT, STATUS_EXIT_TEXT, CliFailed, Exit
from mep.cli.globus_commands import suggestion_for

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths, Roots

_F = TypeVar("_F", bound=Callable[..., Any])
_MAX_TOKEN_BYTES = 16 * 1024


class Failure(click.ClickException):
    """A failure as click prints it."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.code = exit_code

    @property
    def exit_code(self) -> int:  # type: ignore[override]  # click reads it from the instance; its stub says class
        """The process's exit code."""
        return self.code

    def show(self, file: Any = None) -> None:
        """Print one text to standard error."""
        click.echo(f"mep: {self.message}", err=True, file=file)


class MepGroup(click.Group):
    """The command group: turns our named errors into texts and documented exit codes."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command. A Globus Compute command without a counterpart here prints the alternative."""
        return super().get_command(ctx, cmd_name) or suggestion_for(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises Failure."""
        try:
            return super().invoke(ctx)
        except CliFailed as error:
            raise Failure(error.text, error.exit_code) from None
        except ConfigRefused as error:
            from mep.cli.remedies import with_command

            raise Failure(with_command(str(error)), Exit.CONFIG) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise Failure(printable(f"{where}{error.strerror or error}"), Exit.FAILED) from None


def complete_name(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of endpoints for shell completion."""
    from mep.config.paths import here, list_names

    return [name for name in list_names(here()) if name.startswith(incomplete)]


def name_argument(command: _F) -> _F:
    """Add the endpoint's name; `default` if it is absent, as in Globus Compute."""
    return click.argument("name", default="default", shell_complete=complete_name)(command)


def json_option(command: _F) -> _F:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def token_option(command: _F) -> _F:
    """Add --token-file."""
    return click.option(
        "--token-file",
        type=click.Path(allow_dash=True),
        metavar="FILE",
        help="File with your access token at the relay (`-`: standard input). Otherwise MEP_TOKEN, or a prompt.",
    )(command)


def epilog(*examples: str, status: bool = False) -> str:
    """Return the end of a help page: examples and exit codes, with `status` also those that only `mep status` has."""
    exits = EXIT_TEXT + (STATUS_EXIT_TEXT if status else "")
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples) + "\n\n" + exits


def locate(name: str) -> tuple[EndpointPaths, Roots]:
    """Return the paths of the endpoint with this name or UUID, for the account that runs this.

    An ordinary account that has no endpoint of this name is given root's. Raises ConfigRefused for a bad name.
    """
    from mep.config.paths import endpoint_paths, here, roots_of_root

    roots = here()
    where = endpoint_paths(roots, _name_of(roots, name))
    if not roots.privileged and not where.config_dir.exists() and not where.runtime_dir.exists():
        system = roots_of_root()
        there = endpoint_paths(system, _name_of(system, name))
        if any(path.exists() for path in (there.config_dir, there.state_dir, there.runtime_dir)):
            return there, system
    return where, roots


def _name_of(roots: Roots, name: str) -> str:
    """Return the name of the endpoint with this UUID, or `name` if it isn't one of an endpoint here."""
    from mep.boundary.errors import ConfigRefused
    from mep.config.paths import endpoint_paths, list_names
    from mep.config.registration import read_registration

    try:
        wanted = str(uuid.UUID(name))
    except ValueError:
        return name
    for one in list_names(roots):
        path = endpoint_paths(roots, one).registration
        with contextlib.suppress(ConfigRefused, OSError):
            if path.exists() and read_registration(path, one).endpoint_id == wanted:
                return one
    return name


def read_token(token_file: str | None) -> str:
    """Return the access token from a file, MEP_TOKEN or a prompt, never an argument. Raises CliFailed."""
    if token_file is not None:
        token, source = _token_from_file(token_file), {"-": "standard input"}.get(token_file, token_file)
    elif "MEP_TOKEN" in os.environ:
        token, source = os.environ["MEP_TOKEN"], "MEP_TOKEN"
    elif sys.stdin.isatty():
        token, source = click.prompt("Access token at the relay", hide_input=True, err=True), "the answer"
    else:
        raise CliFailed("no access token: give --token-file FILE, or set MEP_TOKEN", Exit.USAGE)
    token = token.strip("\ufeff").strip()
    if not token:
        raise CliFailed(f"{source} is empty: put the access token from the relay's operator there", Exit.USAGE)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise CliFailed(f"{source} holds more than an access token: leave nothing else in it", Exit.USAGE)
    return token


def _token_from_file(name: str) -> str:
    if name == "-":
        return sys.stdin.read(_MAX_TOKEN_BYTES)
    try:
        with Path(name).open(encoding="utf-8", errors="replace") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise CliFailed(f"{name} can be read by other accounts; run: chmod 600 {name}", Exit.USAGE)
            return file.read(_MAX_TOKEN_BYTES)
    except OSError as error:
        raise CliFailed(f"{name}: {error.strerror}", Exit.USAGE) from None
