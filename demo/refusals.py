"""The demo's refusals, each with the error that a person reads."""

from __future__ import annotations

from dataclasses import replace

from report import Report
from scripts import add_func
from sitekit.errors import SiteError
from sitekit.site import Site
from visitor import Visitor

from mep_sdk import Executor
from mep_wire.errors import MepError


def _show(report: Report, what: str, expected: set[str], executor: Executor) -> None:
    try:
        with executor:
            executor.submit(add_func, 1, 2).result(timeout=60)
    except MepError as error:
        if error.code not in expected:
            raise
        report.note(f"{what}:\n     {error}")
        return
    raise SiteError(f"{what}: was not refused")


def show_refusals(report: Report, site: Site, visitor: Visitor) -> None:
    """Show the refusals of a value that the schema forbids and of a person without an account."""
    report.step("Refused, with a reason that a person can read")
    forbidden = visitor.another_executor(workers=64)
    _show(report, f"{visitor.name} asks for 64 workers", {"USER_CONFIG_INVALID"}, forbidden)

    stranger = site.relay.add_person("carol@example.org")
    unmapped = replace(visitor, person=stranger, _executor=None).another_executor()
    codes = {"IDENTITY_NOT_MAPPED", "ENDPOINT_FORBIDDEN"}
    _show(report, f"{stranger.username}, whom the site maps to no account", codes, unmapped)
