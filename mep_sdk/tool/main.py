"""The entry point of `mep-sdk`: its options, and how errors end it."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from mep_sdk.version import __version__
from mep_wire.errors import MepError
from mep_wire.text import printable_lines

_EXAMPLES = """\
examples:
  mep-sdk login https://relay.example.edu
  mep-sdk endpoints
  mep-sdk describe physics/cluster
  mep-sdk run physics/cluster math:sqrt 2
  mep-sdk tasks --state pending --since 2h
"""


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    made = argparse.ArgumentParser(
        prog="mep-sdk",
        description="Run functions at sites that run MEP endpoints: logins, endpoints, tasks, results.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=f"mep-sdk {__version__}")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_logins(commands)
    _add_endpoints(commands)
    _add_tasks(commands)
    _add_diagnostic(commands)
    _add_completion(commands)
    return made


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: str,
    text: str,
    example: str,
    *,
    client: bool = True,
) -> argparse.ArgumentParser:
    """Add a command, which `function` (MODULE:NAME below mep_sdk.tool) runs."""
    made = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(function=function)
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("--profile", metavar="NAME", help="the login to use (MEP_PROFILE, else the default one)")
    made.add_argument("--allow-insecure", action="store_true", help="permit plain http to another machine")
    if client:
        made.add_argument("--relay-url", metavar="URL", help="the relay to ask (MEP_RELAY_URL, else the profile's)")
    return made


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _add_logins(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    login = _command(
        commands,
        "login",
        "logins:login",
        "Log in at a relay and store the login as a profile.",
        "mep-sdk login https://relay.example.edu --profile campus",
        client=False,
    )
    login.add_argument(
        "relay", nargs="?", metavar="URL", help="the relay's address (MEP_RELAY_URL, else the profile's)"
    )
    how = login.add_mutually_exclusive_group()
    how.add_argument("--device", action="store_true", help="show a code to type into a browser on any machine")
    how.add_argument("--browser", action="store_true", help="open this machine's browser")
    login.add_argument("--scope", default="submit read", help="what the login may do (default: %(default)s)")
    logout = _command(
        commands,
        "logout",
        "logins:logout",
        "End a login: remove it here, and revoke its tokens at the relay.",
        "mep-sdk logout --profile campus",
        client=False,
    )
    logout.add_argument("--all", action="store_true", help="end every login on this machine")
    _command(commands, "whoami", "logins:whoami", "Print who the token speaks for.", "mep-sdk whoami --json")
    profiles = _command(
        commands,
        "profiles",
        "logins:profiles",
        "List the logins on this machine.",
        "mep-sdk profiles --use campus",
        client=False,
    )
    profiles.add_argument("--use", metavar="NAME", help="make this profile the default one")


def _add_endpoints(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    listed = _command(commands, "endpoints", "endpoints:endpoints", "List endpoints.", "mep-sdk endpoints --mine")
    listed.add_argument("--mine", action="store_true", help="only your own, without the ones that are open to all")
    described = _command(
        commands,
        "describe",
        "endpoints:describe",
        "Show an endpoint: its state, the values that it takes, and an example.",
        "mep-sdk describe physics/cluster",
    )
    described.add_argument("endpoint", metavar="ENDPOINT", help="its id, alias or OWNER/NAME; NAME for your own")
    described.add_argument("--packages", action="store_true", help="ask a worker for its Python and packages")
    described.add_argument("--config", metavar="JSON", help="user_endpoint_config for that task, as a JSON object")
    described.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait for that task")


def _add_tasks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _command(
        commands,
        "run",
        "tasks:run",
        "Run a function at an endpoint and print its result.",
        "mep-sdk run physics/cluster math:pow 2 10",
    )
    run.add_argument("endpoint", metavar="ENDPOINT", help="its id, alias or OWNER/NAME; NAME for your own")
    run.add_argument("what", metavar="MODULE:FUNC", help="the function; modules are also looked for in this directory")
    run.add_argument("arguments", nargs="*", metavar="ARG", help="JSON values; anything else is text")
    run.add_argument("-k", "--keyword", action="append", default=[], metavar="NAME=VALUE", help="a keyword argument")
    run.add_argument("--config", metavar="JSON", help="user_endpoint_config, as a JSON object")
    run.add_argument("--timeout", type=float, metavar="SECONDS", help="how long to wait for the result")
    run.add_argument("--no-wait", action="store_true", help="print the task's id and do not wait for it")
    run.add_argument("--stream", action="store_true", help="print its output while it runs, before the result")
    shown = run.add_mutually_exclusive_group()
    shown.add_argument("--progress", action="store_true", help="say where the task is, also without a terminal")
    shown.add_argument("--quiet", action="store_true", help="do not say where the task is")
    listed = _command(commands, "tasks", "tasks:tasks", "List your tasks.", "mep-sdk tasks --state pending --since 2h")
    listed.add_argument("--state", metavar="WORDS", help="pending, ended, or the relay's words, separated by commas")
    listed.add_argument("--since", metavar="WHEN", help="90s, 30m, 2h, 7d, or a date such as 2026-11-30T08:00")
    listed.add_argument("--limit", type=_count, default=100, metavar="N", help="list at most N (default: %(default)s)")
    groups = _command(commands, "groups", "tasks:groups", "List your task groups.", "mep-sdk groups --limit 10")
    groups.add_argument("--limit", type=_count, default=100, metavar="N", help="list at most N (default: %(default)s)")
    for name, text in (("result", "Print the results of tasks."), ("cancel", "Cancel tasks, waiting or running.")):
        made = _command(commands, name, f"tasks:{name}", text, f"mep-sdk {name} TASK_ID")
        made.add_argument("ids", nargs="*", metavar="TASK_ID", help="ids of tasks")
        made.add_argument("--group", metavar="ID", help="all tasks of a group")


def _add_diagnostic(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    made = _command(
        commands,
        "diagnostic",
        "diagnostic:diagnostic",
        "Report versions, connection, proxy, clock and login, and run a sample task. The report has no secrets.",
        "mep-sdk diagnostic --endpoint physics/cluster --out report.json",
    )
    made.add_argument("--endpoint", metavar="ENDPOINT", help="run a sample task there")
    made.add_argument("--out", metavar="FILE", help="write the report into this file")


def _add_completion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    made = commands.add_parser(
        "completion",
        help="Print the script that completes words in a shell.",
        description="Print the script that completes commands, options and endpoints in a shell.",
        epilog='examples:\n  eval "$(mep-sdk completion bash)"       # in ~/.bashrc\n'
        '  eval "$(mep-sdk completion zsh)"        # in ~/.zshrc\n'
        "  mep-sdk completion fish > ~/.config/fish/completions/mep-sdk.fish",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(function="completion:completion")
    made.add_argument("--json", action="store_true", help="print JSON")
    made.add_argument("shell", choices=("bash", "zsh", "fish"))


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0, 1 for an error that was said, 130 for an interrupt."""
    if os.environ.get("MEP_SDK_COMPLETE"):
        from mep_sdk.tool.completion import complete

        return complete(parser(), sys.argv[1:] if words is None else words)
    options = parser().parse_args(words)
    module, _, name = options.function.partition(":")
    try:
        run = getattr(importlib.import_module(f"mep_sdk.tool.{module}"), name)
        status: int = run(options)
        sys.stdout.flush()
    except MepError as error:
        sys.stderr.write(f"mep-sdk: {printable_lines(str(error))}\n")
        return 1
    except BrokenPipeError:  # the reader, e.g. head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("mep-sdk: interrupted\n")
        return 130
    return status
