"""`mep adopt`: an endpoint directory of Globus Compute becomes an endpoint here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mep.boundary.text import printable
from mep.cli.common import epilog, json_option, locate, read_token, token_option
from mep.cli.output import emit

if TYPE_CHECKING:
    from mep.cli.adoption import KeyFate


@click.command(
    short_help="Take over an endpoint directory of Globus Compute.",
    epilog=epilog(
        "mep adopt ~/.globus_compute/site --relay https://relay.example.org --token-file ~/token",
        "mep adopt ~/.globus_compute/site hpc --dry-run",
    ),
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.argument("name", required=False)
@click.option("--relay", "relay_url", metavar="URL", envvar="MEP_RELAY_URL", show_envvar=True,
              help="The relay, https except on this machine.")  # fmt: skip
@token_option
@click.option("--new-id", is_flag=True, help="Register under a new id instead of the one in the directory.")
@click.option("--dry-run", is_flag=True, help="Only print what would become of each key and file.")
@json_option
def adopt(
    directory: str, name: str | None, relay_url: str | None, token_file: str | None, new_id: bool, dry_run: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make the endpoint directory DIRECTORY of Globus Compute the endpoint NAME: copy it, register it and check it.

    DIRECTORY is as `globus-compute-endpoint configure` leaves it, and stays as it is. Each key of its config.yaml is
    named with what became of it. NAME is the directory's own name unless it is given.
    """
    from mep.cli import setup_commands
    from mep.cli.adoption import adopted
    from mep.cli.endpoint_dirs import refuse_existing
    from mep.cli.registration import endpoint_id
    from mep.config.parser import read_document

    where, _ = locate(name or Path(directory).absolute().name)
    refuse_existing(where)
    made = adopted(Path(directory), privileged=where.privileged, relay_url=relay_url)
    lines = [_line(one) for one in made.fates]
    fates = [{"name": one.name, "fate": one.fate, "why": one.why} for one in made.fates]
    if dry_run:
        emit({"name": where.name, "keys": fates}, "\n".join(lines), as_json=as_json)
        return
    document = read_document(made.config, str(where.config))
    relay = setup_commands.relay_of(where, document, relay_url)
    chosen = setup_commands.chosen_accounts(document, where.privileged, None, None)
    token = read_token(token_file)
    wanted = "" if new_id else made.endpoint_id
    document = setup_commands.write_files(where, made.config, made.files, chosen, wanted or endpoint_id(where))
    if not as_json:
        click.echo("\n".join(lines))
    registration = setup_commands.register_new(where, document, relay, token, wanted)
    value = {**setup_commands.registered_value(where, registration), "config_dir": str(where.config_dir), "keys": fates}
    emit(value, setup_commands.registered_text(where, registration), as_json=as_json)
    setup_commands.check_endpoint(where.name, quiet=as_json)
    if not as_json:
        click.echo(f"Next: mep start {where.name} --detach")


def _line(one: KeyFate) -> str:
    return printable(f"{one.fate:<8} {one.name}{': ' if one.why else ''}{one.why}")
