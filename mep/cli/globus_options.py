"""Options of globus-compute-endpoint: those with a meaning here have it, the others say what to do in their place."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mep.cli.exit_codes import CliFailed, Exit

_F = TypeVar("_F", bound=Callable[..., Any])
_FLAG = "--multi-user"
_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0"})
_POLICY = (
    "a relay has no authentication policies. Who may use the endpoint is said here: by --allowed-domains and "
    "--excluded-domains, by identity_mapping.json, and by `policy` in config.yaml"
)
REFUSED: dict[str, str] = {
    "--auth-policy": _POLICY,
    "--auth-policy-project-id": _POLICY,
    "--auth-policy-display-name": _POLICY,
    "--auth-policy-description": _POLICY,
    "--auth-policy-mfa-required": f"{_POLICY}. Demand a second factor at the provider that people log in with",
    "--auth-timeout": f"{_POLICY}. How long a login lasts is said at the relay and at the provider",
}
"""Options that restrict access and can't be kept. Without them more people would have it, so they are refused."""
_FLAGS = frozenset({"--auth-policy-mfa-required"})


class BooleanOrFlag(click.Command):
    """A command with --multi-user, which may stand alone, or have a value as in Globus Compute."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, _with_value(args))


def _with_value(args: list[str]) -> list[str]:
    joined: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return [*joined, word, *waiting]
        if word == _FLAG:
            given = waiting.pop(0) if waiting and waiting[0].lower() in _WORDS else "true"
            word = f"{_FLAG}={given}"
        joined.append(word)
    return joined


def globus_policy_options(command: _F) -> _F:
    """Add the options of Globus Compute's policies, subscriptions and high assurance."""
    for name in reversed(REFUSED):
        flag = name in _FLAGS
        command = click.option(name, hidden=True, expose_value=False, is_flag=flag, callback=_refuse)(command)
    command = click.option("--high-assurance", hidden=True, is_flag=True, expose_value=False, callback=_assurance)(
        command
    )
    return click.option("--subscription-id", hidden=True, expose_value=False, callback=_ignore)(command)


def _refuse(_ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value:
        raise CliFailed(f"{param.opts[0]}: {REFUSED[param.opts[0]]}", Exit.USAGE)


def _assurance(_ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        raise CliFailed(
            f"{param.opts[0]}: there is no high-assurance mode. For its records set audit_tasks and audit_required in "
            "config.yaml",
            Exit.USAGE,
        )


def _ignore(_ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value:
        click.echo(f"warning: {param.opts[0]}: is ignored: a relay has no subscriptions", err=True)


def add_common_options(command: click.Command) -> None:
    """Add --debug, --log-to-console and --no-color, which each command of Globus Compute has, unless it has them."""
    known = {option for one in command.params for option in one.opts}
    for name, callback in (("--no-color", _no_color), ("--debug", None), ("--log-to-console", None)):
        if name not in known:
            command.params.append(
                click.Option([name], is_flag=True, hidden=True, expose_value=False, callback=callback)
            )


def _no_color(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"  # which rich and click's users respect
