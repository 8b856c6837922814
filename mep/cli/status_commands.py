"""list, status, top and logs: what the monitor and its user endpoints say, for a terminal, a pipe or a program."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from mep.cli.common import epilog, json_option, locate, name_argument
from mep.cli.output import emit, emit_rows

if TYPE_CHECKING:
    from mep.config.paths import EndpointPaths

TOP_INTERVAL_S = 2.0


def require_endpoint(where: EndpointPaths) -> None:
    """Raise ConfigRefused if there is no such endpoint, CliFailed if this account may not even know."""
    from mep.cli.admin_client import require_permission
    from mep.config.paths import no_such_endpoint

    require_permission(where)
    if not where.config.exists() and not where.runtime_dir.exists():
        raise no_such_endpoint(where)


@click.command("list", epilog=epilog("mep list", "mep list --json"))
@json_option
def list_endpoints(as_json: bool) -> None:
    """List the endpoints that are configured here."""
    from mep.cli.endpoint_state import describe
    from mep.config.paths import endpoint_paths, here, list_names

    roots = here()
    rows = [describe(endpoint_paths(roots, name)) for name in list_names(roots)]
    columns = ("name", "state", "endpoint_id", "link", "relay")
    empty = f"No endpoint is configured in {roots.etc}. Make one with: mep configure NAME --relay URL"
    emit_rows(rows, columns, as_json=as_json, empty=empty)


@click.command(
    short_help="Show the state of an endpoint.", epilog=epilog("mep status site", "mep status site --json", status=True)
)
@name_argument
@click.option("-w", "--wide", is_flag=True, help="Don't fit the text to the terminal's width.")
@json_option
@click.pass_context
def status(ctx: click.Context, name: str, wide: bool, as_json: bool) -> None:
    """Show the state of endpoint NAME. Exits with 3 if it isn't running, with 8, 9 or 10 if something is wrong.

    Shows which configuration and mapping are in force and since when, and any refusal with its reason. For each user
    endpoint: person, values, state and since when, tasks, blocks and their jobs, CPU and memory, the last failure and
    its log, and when mapping and account were last confirmed. A confirmation that is too old is overdue.
    """
    from mep.cli.admin_client import AdminClient
    from mep.cli.endpoint_state import add_process_figures, describe_all, exit_code, keepers_of
    from mep.cli.endpoint_view import text_of
    from mep.cli.process_figures import Sampler

    where, _ = locate(name)
    require_endpoint(where)
    client = AdminClient.connect(where)
    value = describe_all(where, client)
    if keepers := keepers_of(value):
        with Sampler() as sampler:
            add_process_figures(value, sampler.sample(keepers))
    width = None if wide or not sys.stdout.isatty() else shutil.get_terminal_size().columns
    emit(value, "\n".join(text_of(value, width)), as_json=as_json)
    ctx.exit(exit_code(value))


@click.command(
    short_help="Watch an endpoint's user endpoints live.",
    epilog=epilog("mep top site", "mep top site --interval 5", "mep top site --json --count 1"),
)
@name_argument
@click.option("--interval", "interval_s", type=click.FloatRange(min=0.2), default=TOP_INTERVAL_S, show_default=True,
              metavar="SECONDS", help="Seconds between two refreshes.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), metavar="NUMBER", help="End after this many refreshes.")
@click.option("-w", "--wide", is_flag=True, help="Don't fit the text to the terminal's width.")
@json_option
def top(name: str, interval_s: float, count: int | None, wide: bool, as_json: bool) -> None:
    """Watch the user endpoints of endpoint NAME: tasks, CPU, memory, blocks, failures. `q` ends it.

    With --json, prints one JSON object a line.
    """
    from mep.cli.top import Screen

    where, _ = locate(name)
    require_endpoint(where)
    Screen(where, wide=wide, as_json=as_json).run(interval_s, count)


@click.command(
    short_help="Show the log of an endpoint or of a user endpoint.",
    epilog=epilog("mep logs site -f", "mep logs site alice", "mep logs site 5b2886be-0f4c-4c35-9d3c-0ad2f5b2a8b3 -f"),
)
@click.argument("name")
@click.argument("subject", metavar="[USER|UEP]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Show new lines as they come.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, metavar="NUMBER",
              help="How many of the last lines to begin with.")  # fmt: skip
def logs(name: str, subject: str | None, follow: bool, lines: int) -> None:
    """Show the log of endpoint NAME; with USER or UEP, the lines about that account or user endpoint.

    Root also sees the user endpoint's own log, which is the person's file and is read as that person. Each line is then
    marked with its log: [NAME] or [USER].
    """
    from mep.cli.log_view import show_logs

    where, _ = locate(name)
    require_endpoint(where)
    show_logs(where, subject, lines=lines, follow=follow)
