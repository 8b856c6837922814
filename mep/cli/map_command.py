"""`mep map`: try a mapping, without a relay and without starting anything."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mep.boundary.text import printable
from mep.cli.common import epilog, json_option
from mep.cli.exit_codes import CliFailed, Exit
from mep.cli.output import emit, warn

if TYPE_CHECKING:
    from identity.chain import Chain, ChainStep
    from mep.cli.map_identities import MappingVerdict, Site

SHOWN_TRACE = 12
"""How many lines of a mapper's reasons are shown without --verbose."""
_INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True)
_FILE = click.Path(exists=True, dir_okay=False)


@click.command(
    "map",
    short_help="Show which account a person's identities map to.",
    epilog=epilog(
        "mep map site --identity alice@example.edu",
        'mep map site --identity \'{"username": "alice@example.edu", "identity_provider": "..."}\'',
        "globus get-identities alice@example.edu -F json | mep map --file mapping.json --identity-set -",
        "mep map --check /etc/mep/site/identity_mapping.json",
    ),
)
@click.argument("name", required=False)
@click.option("--identity", "typed", multiple=True, metavar="NAME@DOMAIN|JSON",
              help="An identity of the person; repeat it for linked ones.")  # fmt: skip
@click.option("-i", "--identity-set", "--identities", "set_file", type=_INPUT,
              help="JSON file with the person's linked identities (`-`: standard input).")  # fmt: skip
@click.option("--end-user", default="", metavar="NAME",
              help="The person that a science gateway with this identity names.")  # fmt: skip
@click.option("-c", "--file", "--config", "mapping_file", type=_FILE, help="A mapping file, without an endpoint.")
@click.option("--check", "check_file", type=_FILE, help="Only check this mapping file.")
@click.option("-a/-f", "--all/--first", "every", default=False,
              help="Also ask the mappers after the deciding one. The default is to stop there.")  # fmt: skip
@click.option("-v", "--verbose", is_flag=True, help="Show every rule that was tried.")
@json_option
@click.pass_context
def map_command(
    ctx: click.Context,
    name: str | None,
    typed: tuple[str, ...],
    set_file: str | None,
    end_user: str,
    mapping_file: str | None,
    check_file: str | None,
    every: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show which local account a person's identities map to at endpoint NAME, and why.

    Nothing is started and no relay is asked. Exits with 0 only if the identities map to one account and a start as it
    would be allowed: by its shadow entry, the endpoint's policy and, with pam.enable, PAM. Run it as root, since only
    root can check that. The mapping itself is then tried as the mapper's account.
    """
    from mep.cli import map_identities
    from mep.cli.map_checker import MapChecker

    if sum(given is not None for given in (name, mapping_file, check_file)) != 1:
        raise click.UsageError("give an endpoint's NAME, or --file, or --check")
    if check_file is not None:
        if typed or set_file is not None:
            raise click.UsageError("--check looks at the file alone; try identities with --file")
        _check(map_identities.Site(Path(check_file)), as_json=as_json)
        return
    identities = _identities(typed, set_file)
    site = map_identities.endpoint_site(name) if name is not None else map_identities.Site(Path(str(mapping_file)))
    checker = MapChecker(site.rules(), site.pam_service)
    verdict = map_identities.verdict_on(_chain(site), identities, checker, every=every, end_user=end_user)
    emit(verdict.as_json(site), _text(verdict, site, verbose=verbose), as_json=as_json)
    if verdict.problem:
        ctx.exit(Exit.FAILED)


def _identities(typed: tuple[str, ...], set_file: str | None) -> list[dict[str, str]]:
    from mep.cli import map_identities

    identities = [one for text in typed for one in map_identities.typed_identity(text)]
    if set_file is not None or (not typed and not sys.stdin.isatty()):
        identities += map_identities.identities_in(_read(set_file), set_file or "standard input")
    if not identities:
        raise click.UsageError("no identity given: use --identity NAME@DOMAIN or --identity-set FILE")
    return identities


def _read(file: str | None) -> str:
    from mep.cli.map_identities import MAX_IDENTITIES_BYTES

    try:
        if file in (None, "-"):
            data = sys.stdin.buffer.read(MAX_IDENTITIES_BYTES + 1)
        else:
            with Path(str(file)).open("rb") as source:
                data = source.read(MAX_IDENTITIES_BYTES + 1)
        if len(data) > MAX_IDENTITIES_BYTES:
            raise CliFailed(f"{file or 'standard input'}: larger than {MAX_IDENTITIES_BYTES} bytes", Exit.USAGE)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CliFailed(f"{file or 'standard input'}: not UTF-8 text: {error}", Exit.USAGE) from None


def _chain(site: Site) -> Chain:
    from mep.cli import map_identities

    if warning := map_identities.become_mapper(site):
        warn([warning])
    chain = map_identities.load(site)
    if doubt := map_identities.distrust(site):
        warn([doubt])
    return chain


def _check(site: Site, *, as_json: bool) -> None:
    chain = _chain(site)
    value = {"file": str(site.file), "documents": list(chain.descriptions), "files": [str(f) for f in chain.files]}
    emit(value, "\n".join([f"{site.file} is good.", *(f"  {line}" for line in chain.descriptions)]), as_json=as_json)


def _text(verdict: MappingVerdict, site: Site, *, verbose: bool) -> str:
    lines = [f"Mapping file  {site.file}"]
    lines += [f"Ignored       {line}" for line in verdict.explanation.ignored]
    for step in verdict.explanation.steps:
        lines += _step_lines(step, verbose=verbose)
    if (user := verdict.explanation.user) is not None:
        lines.append(f"Local user    {user.name}, of {user.identity.get('username')}, by {user.mapper}")
    if (found := verdict.account) is not None:
        groups = ", ".join(f"{name} ({gid})" for gid, name in found.groups)
        lines.append(f"Account       uid {found.uid}, groups {groups}, home {found.home}, shell {found.shell}")
        lines.append(f"State         {verdict.ruling.state or 'not known'}")
        lines.append(f"Policy        {_policy(site)}")
    if verdict.problem and verdict.ruling.stage:
        lines.append(f"Refused       {verdict.problem} (a start would end at stage {verdict.ruling.stage})")
        if user is not None and user.name in site.banned:
            lines.append(f"Banned        until `mep unban {site.endpoint} {user.name}`")
    elif verdict.problem:
        lines.append(f"Not known     {verdict.problem}")
    else:
        lines.append(f"Usable        yes{', unless ' + site.hook + ' refuses it at the start' if site.hook else ''}")
    return "\n".join(map(printable, lines))


def _policy(site: Site) -> str:
    """Describe the further checks of a start as the account, apart from its state."""
    policy, default = asdict(site.policy), asdict(type(site.policy)())
    said = [f"{key}={_listed(value)}" for key, value in policy.items() if value != default[key]]
    words = f"of endpoint {site.endpoint}" if site.endpoint else "the default (no endpoint was named)"
    return f"{words}: {', '.join(said) or f'min_uid={site.policy.min_uid}'}" + (
        f"; PAM service {site.pam_service}" if site.pam_service else ""
    )


def _listed(value: object) -> str:
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)


def _step_lines(step: ChainStep, *, verbose: bool) -> list[str]:
    heading = f"{step.outcome.capitalize():<13} {step.mapper}" + (f": {step.reason}" if step.reason else "")
    trace = step.trace
    if not verbose and len(trace) > SHOWN_TRACE:
        hidden = len(trace) - SHOWN_TRACE
        trace = [*trace[: SHOWN_TRACE - 1], f"... {hidden} more (--verbose shows them)", trace[-1]]
    return [heading, *(f"                {line}" for line in trace)]
