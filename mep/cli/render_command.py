"""`mep render`: what a person's user endpoint would be configured with, without starting it.

Also `render-user-config`, with the options of Globus Compute's command.
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any

import click

from mep.boundary.text import printable
from mep.cli.admin_client import require_reader
from mep.cli.common import complete_name, epilog, locate
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import warn

if TYPE_CHECKING:
    from mep.cli.render_request import RenderFor

_FILE = click.Path(exists=True, dir_okay=False)
_ANY = click.Path(allow_dash=True)


@click.command(
    "render",
    short_help="Show the configuration that a person's options give.",
    epilog=epilog(
        "mep render site --options GPUS=2 --options QUEUE=short",
        "mep render site --as alice --options options.json --lines",
        "mep render site --identity alice@example.edu --options -",
        "mep render site --diff /root/site.new --options recorded.json",
    ),
)
@click.argument("name", default="default", shell_complete=complete_name)
@click.option("--as", "user", metavar="USER", help="Render as this account (root only).")
@click.option("--identity", metavar="NAME@DOMAIN|JSON",
              help="Render for the person with this identity, as the account that it maps to.")  # fmt: skip
@click.option("-o", "--options", multiple=True, metavar="FILE|-|KEY=VALUE",
              help="The person's user_endpoint_config, in JSON or YAML. A list has several. KEY=VALUE is added to "
              "each. May be repeated.")  # fmt: skip
@click.option("--runtime", "runtime", multiple=True, metavar="FILE|-|KEY=VALUE", help="The same for user_runtime.")
@click.option("-t", "--template", type=_FILE, help="A template to use instead of the endpoint's.")
@click.option("-s", "--schema", type=_FILE, help="A schema to use instead of the endpoint's.")
@click.option("-l", "--lines", is_flag=True, help="Begin each line with its number, template and line there.")
@click.option("--diff", "directory", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="Print what the template and schema in DIR would change.")  # fmt: skip
def render(
    name: str,
    user: str | None,
    identity: str | None,
    options: tuple[str, ...],
    runtime: tuple[str, ...],
    template: str | None,
    schema: str | None,
    lines: bool,
    directory: str | None,
) -> None:
    """Print the YAML that the template of endpoint NAME gives for a person's options.

    Nothing is started and no relay is asked. The YAML goes to standard output, all else to standard error. Root renders
    as USER, as the account of the identity, or as an account without privilege, never as root.
    """
    from mep.cli import render_request

    if user is not None and identity is not None:
        raise click.UsageError("give --as or --identity, not both")
    where, _ = locate(name)
    require_reader(where)
    bundle = render_request.endpoint_bundle(where, template, schema)
    bundles = [bundle, *([render_request.directory_bundle(bundle, directory)] if directory is not None else [])]
    person = render_request.render_for(where, user, identity)
    _print(bundles, person, options, runtime, lines=lines)


@click.command("render-user-config", hidden=True, short_help="As render, with Globus Compute's options.")
@click.option("-e", "--endpoint", "name", metavar="NAME", shell_complete=complete_name, help="The endpoint.")
@click.option("-t", "--template", type=_FILE, help="A template to use instead of the endpoint's.")
@click.option("-o", "--user-options", "options", type=_ANY, metavar="FILE", help="The options (`-`: standard input).")
@click.option("-s", "--user-schema", "schema", type=_FILE, help="A schema to use instead of the endpoint's.")
@click.option("--user-runtime", "runtime", type=_ANY, metavar="FILE", help="The runtime (`-`: standard input).")
@click.option("--parent-config", type=_ANY, metavar="FILE", help="`parent_config`, in YAML, not the endpoint's.")
@click.option("--mapped-identity", type=_ANY, metavar="FILE",
              help="`mapped_identity`, in JSON, in place of the known one.")  # fmt: skip
def render_user_config(
    name: str | None, template: str | None, options: str | None, schema: str | None, runtime: str | None,
    parent_config: str | None, mapped_identity: str | None,
) -> None:  # fmt: skip
    """Print the YAML that a template gives, as `render` does. Give -e, -t or both."""
    from mep.cli import render_request

    if name is None and template is None:
        raise click.UsageError("give -e NAME, or -t FILE")
    where = locate(name)[0] if name is not None else None
    if where is not None:
        require_reader(where)
        bundle = render_request.endpoint_bundle(where, template, schema)
    else:
        bundle = render_request.template_bundle(str(template), schema)
    person = render_request.render_for(where, None, None)
    given = [() if one is None else (one,) for one in (options, runtime)]
    own = {"parent_config": parent_config, "mapped_identity": mapped_identity}
    if [options, runtime, parent_config, mapped_identity].count("-") > 1:
        raise CliFailed("standard input can be read once: give `-` once", Exit.USAGE)
    reserved = {key: render_request.read_input(file) for key, file in own.items() if file is not None}
    _print([bundle], person, given[0], given[1], lines=False, reserved=reserved)


def _print(
    bundles: list[bytes], person: RenderFor, options: tuple[str, ...], runtime: tuple[str, ...], *, lines: bool,
    reserved: dict[str, tuple[str, bytes]] | None = None,
) -> None:  # fmt: skip
    from mep.cli import render_request

    if options.count("-") + runtime.count("-") > 1:
        raise CliFailed("standard input can be read once: give `-` once", Exit.USAGE)
    click.echo(f"rendered for {printable(person.shown)}", err=True)
    given = render_request.inputs(options), render_request.inputs(runtime)
    found = render_request.rendered(bundles, person, *given, reserved or {})
    texts = [[_lines_of(one, numbered=lines and len(bundles) == 1) for one in sets] for sets in found]
    for number in range(len(texts[0])):
        _print_one([each[number] for each in texts], number, len(texts[0]), found[0][number]["options"])
    _end(found)


def _print_one(texts: list[list[str]], number: int, count: int, options: dict[str, Any]) -> None:
    if len(texts) == 1:
        if count > 1:
            click.echo("---")
        for line in texts[0]:
            click.echo(line)
        return
    title = f"options {number + 1}: {json.dumps(options)[:200]}"
    now, then = texts
    for line in difflib.unified_diff(now, then, f"now, {title}", f"then, {title}", lineterm=""):
        click.echo(line)


def _lines_of(rendered: dict[str, Any], *, numbered: bool) -> list[str]:
    """Return the lines; with their numbers and origins if wanted."""
    rows = rendered["lines"]
    places = [f"{template}:{line}" if line else "-" for _, template, line in rows] if numbered else []
    width = max(map(len, places), default=0)
    return [
        f"{number:>4}  {printable(places[number - 1]):<{width}}  {text}".rstrip() if numbered else text
        for number, (text, _, _) in enumerate(rows, 1)
    ]


def _end(found: list[list[dict[str, Any]]]) -> None:
    """Print the mistakes, and fail if there are some."""
    codes = {"options": Exit.FAILED, "template": Exit.CONFIG}
    worst = Exit.OK
    for sets, role in zip(found, ("", "then: "), strict=False):
        for number, one in enumerate(sets, 1):
            prefix = f"options {number}: " if len(sets) > 1 else ""
            for kind, text in one["faults"]:
                warn([f"{role}{prefix}{text}"])
                worst = max(worst, codes[kind])
    if worst:
        raise CliFailed("a start with these options would be refused: see above", worst)
