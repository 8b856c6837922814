"""`mep map`: try a mapping, without a relay and without starting anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mep.cli.common import epilog, json_option
from mep.cli.failures import CliFailed, Exit
from mep.cli.output import emit, warn

if TYPE_CHECKING:
    from identity.chain import Chain, Step
    from mep.cli.mapping import Site, Verdict

SHOWN_TRACE = 12
"""Lines of a mapper's reasons that are shown without --verbose."""
_EXISTING = click.Path(exists=True, dir_okay=False, allow_dash=True)


@click.command(
    "map",
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
@click.option("-i", "--identity-set", "--identities", "set_file", type=_EXISTING,
              help="JSON file with the person's linked identities (`-`: standard input).")  # fmt: skip
@click.option("-c", "--file", "--config", "mapping_file", type=_EXISTING, help="A mapping file, without an endpoint.")
@click.option("--check", "check_file", type=_EXISTING, help="Only check this mapping file.")
@click.option("-v", "--verbose", is_flag=True, help="Show every rule that was tried.")
@json_option
@click.pass_context
def map_command(
    ctx: click.Context,
    name: str | None,
    typed: tuple[str, ...],
    set_file: str | None,
    mapping_file: str | None,
    check_file: str | None,
    verbose: bool,
    as_json: bool,
) -> None:
    """Show which local account a person's identities mean at endpoint NAME, and why.

    Nothing is started and no relay is asked. Exits with 0 only where one account comes out and may be used. Root
    becomes the mapper's account first.
    """
    from mep.cli import mapping

    if sum(given is not None for given in (name, mapping_file, check_file)) != 1:
        raise click.UsageError("give an endpoint's NAME, or --file, or --check")
    if check_file is not None:
        _check(mapping.Site(Path(check_file)), as_json=as_json)
        return
    identities = _identities(typed, set_file)
    site = mapping.endpoint_site(name) if name is not None else mapping.Site(Path(str(mapping_file)))
    verdict = mapping.judge(_chain(site), identities, site)
    emit(verdict.as_json(site), _text(verdict, site, verbose=verbose), as_json=as_json)
    if verdict.problem:
        ctx.exit(Exit.FAILED)


def _identities(typed: tuple[str, ...], set_file: str | None) -> list[dict[str, str]]:
    from mep.cli import mapping

    identities = [mapping.typed_identity(text) for text in typed]
    if set_file is not None or (not typed and not sys.stdin.isatty()):
        identities += mapping.identities_in(_read(set_file), set_file or "standard input")
    if not identities:
        raise click.UsageError("whose? Give --identity NAME@DOMAIN or --identity-set FILE")
    return identities


def _read(file: str | None) -> str:
    from mep.cli.mapping import MAX_IDENTITIES_BYTES

    try:
        if file in (None, "-"):
            return sys.stdin.read(MAX_IDENTITIES_BYTES)
        with Path(str(file)).open(encoding="utf-8") as source:
            return source.read(MAX_IDENTITIES_BYTES)
    except ValueError as error:
        raise CliFailed(f"{file or 'standard input'}: not UTF-8 text: {error}", Exit.USAGE) from None


def _chain(site: Site) -> Chain:
    from mep.cli import mapping

    if warning := mapping.become_mapper(site):
        warn([warning])
    return mapping.load(site)


def _check(site: Site, *, as_json: bool) -> None:
    chain = _chain(site)
    value = {"file": str(site.file), "documents": list(chain.descriptions), "files": [str(f) for f in chain.files]}
    emit(value, "\n".join([f"{site.file} is good.", *(f"  {line}" for line in chain.descriptions)]), as_json=as_json)


def _text(verdict: Verdict, site: Site, *, verbose: bool) -> str:
    lines = [f"Mapping file  {site.file}"]
    lines += [f"Ignored       {line}" for line in verdict.explanation.ignored]
    for step in verdict.explanation.steps:
        lines += _step_lines(step, verbose=verbose)
    if (user := verdict.explanation.user) is not None:
        lines.append(f"Local user    {user.name}, of {user.identity.get('username')}, by {user.mapper}")
    if (found := verdict.account) is not None:
        groups = ", ".join(f"{name} ({gid})" for gid, name in found.groups)
        lines.append(f"Account       uid {found.uid}, groups {groups}, home {found.home}, shell {found.shell}")
    lines.append(
        f"Refused       {verdict.problem}" if verdict.problem else "Usable        yes (PAM is asked at each start)"
    )
    return "\n".join(map(_printable, lines))


def _step_lines(step: Step, *, verbose: bool) -> list[str]:
    heading = f"{step.outcome.capitalize():<13} {step.mapper}" + (f": {step.reason}" if step.reason else "")
    trace = step.trace
    if not verbose and len(trace) > SHOWN_TRACE:
        hidden = len(trace) - SHOWN_TRACE
        trace = [*trace[: SHOWN_TRACE - 1], f"... {hidden} more (--verbose shows them)", trace[-1]]
    return [heading, *(f"                {line}" for line in trace)]


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in line)
