"""Writes manual pages and completions from the commands themselves: `manual.py SITE OUT EPOCH COMMAND...`.

packages.py runs it in the interpreter that the packages are for; SITE has the service's packages. Each command is a
click application. OUT/COMMAND/man1 gets a page for it and one for each visible subcommand, and OUT/COMMAND gets click's
completion for bash, zsh and fish. A command with argparse gets one page, and its own completion.
(click-man drops examples and exit codes, which our commands have in click's epilog,
and lists hidden commands.)
"""

from __future__ import annotations

import datetime
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHELLS = ("bash", "zsh", "fish")
SUBCOMMANDS = {"validator": "map", "diagnostic": "self-diagnostic"}
"""Functions of entry points that run one subcommand of `mep`: their pages refer to its page."""


def escape(text: str) -> str:
    """Return text as roff shows it unchanged."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return re.sub(r"(?m)^\.", r"\\&.", text)


def paragraphs(text: str) -> Iterator[str]:
    """Yield the roff of a help text. A paragraph that begins with click's \\b keeps its lines."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if block.startswith("\b"):
            heading, _, rest = block.lstrip("\b\n").partition("\n")
            if heading.endswith(":") and rest:
                yield f".SH {escape(heading[:-1].upper())}"
                block = inspect.cleandoc(rest)
            else:
                yield ".PP"
                block = block.lstrip("\b\n")
            yield f".nf\n{escape(block)}\n.fi"
        else:
            yield f".PP\n{escape(' '.join(block.split()))}"


def options(command: Any, ctx: Any) -> Iterator[str]:
    """Yield the roff of a command's options."""
    shown = [each for each in command.get_params(ctx) if each.param_type_name == "option"]
    records = [each.get_help_record(ctx) for each in shown]
    for names, text in filter(None, records):
        yield f".TP\n\\fB{escape(names)}\\fR\n{escape(' '.join(text.split()))}"


def page(command: Any, ctx: Any, version: str, day: str) -> str:
    """Return a manual page. `ctx` is the command's click.Context."""
    path = ctx.command_path
    title, short = path.replace(" ", "-"), command.get_short_help_str(limit=200).rstrip(".")
    lines = [f'.TH "{title.upper()}" "1" "{day}" "MEP {version}" "MEP manual"']
    lines += [".SH NAME", f"{escape(title)} \\- {escape(short[:1].lower() + short[1:])}"]
    usage = " ".join(command.collect_usage_pieces(ctx))
    lines += [".SH SYNOPSIS", f"\\fB{escape(path)}\\fR {escape(usage)}"]
    lines += [".SH DESCRIPTION", *paragraphs(command.help or short)]
    lines += [".SH OPTIONS", *options(command, ctx)]
    below = visible(command)
    if below:
        lines.append(".SH COMMANDS")
        for name, each in below.items():
            full = escape(f"{title}-{name}")
            lines.append(f".TP\n\\fB{full}\\fR(1)\n{escape(each.get_short_help_str(limit=200))}")
    lines += paragraphs(command.epilog or "")
    if ctx.parent is not None:
        lines += [".SH SEE ALSO", f"\\fB{escape(ctx.parent.command_path.replace(' ', '-'))}\\fR(1)"]
    return "\n".join(lines) + "\n"


def context(command: Any, name: str, parent: Any = None) -> Any:
    """Return the click.Context of a command as its own help has it."""
    return command.context_class(command, info_name=name, parent=parent, **command.context_settings)


def visible(command: Any) -> dict[str, Any]:
    """Return the subcommands that are shown, by name."""
    found = getattr(command, "commands", {})
    return {name: found[name] for name in sorted(found) if not found[name].hidden}


def write_pages(command: Any, ctx: Any, out: Path, issue: tuple[str, str], main_name: str) -> None:
    """Write the pages of a command and of everything below it.

    `issue` is version and day. If a command is another name of `main_name`, its pages refer to those.
    """
    name, _, below = ctx.command_path.partition(" ")
    suffix = f"-{below.replace(' ', '-')}" if below else ""
    text = page(command, ctx, *issue) if name == main_name else f".so man1/{main_name}{suffix}.1\n"
    (out / f"{name}{suffix}.1").write_text(text)
    for each_name, each in visible(command).items():
        write_pages(each, context(each, each_name, ctx), out, issue, main_name)


def argparse_page(parser: Any, version: str, day: str) -> str:
    """Return one manual page for a command with argparse, with the help of its subcommands."""
    name = parser.prog
    (below,) = [action.choices for action in parser._subparsers._group_actions]  # noqa: SLF001 - argparse tells it nowhere else
    lines = [f'.TH "{name.upper()}" "1" "{day}" "MEP {version}" "MEP manual"', ".SH NAME"]
    lines += [f"{escape(name)} \\- {escape(parser.description[:1].lower() + parser.description[1:].rstrip('.'))}"]
    lines += [".SH SYNOPSIS", f"\\fB{escape(name)}\\fR COMMAND \\.\\.\\."]
    lines += [".SH OPTIONS", "\\-\\-help, \\-\\-version, and those of each command", ".SH COMMANDS"]
    for each_name, each in below.items():
        lines += [f".SS {escape(name)} {escape(each_name)}", ".nf", escape(each.format_help().rstrip()), ".fi"]
    return "\n".join(lines) + "\n"


def write_completions(command: Any, name: str, out: Path) -> None:
    """Write click's completion for each shell."""
    from click.shell_completion import get_completion_class

    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    for shell in SHELLS:
        made = get_completion_class(shell)
        assert made is not None
        source = made.source_template % made(command, {}, name, variable).source_vars()
        (out / shell).write_text(source.lstrip("\n"))


def main(site: str, out: str, epoch: str, *names: str) -> None:
    """Write everything for each command."""
    sys.path.insert(0, site)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    day = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).strftime("%Y-%m-%d")
    main_names: dict[str, str] = {}
    for name in names:
        module, _, function = project["scripts"][name].partition(":")
        pages = Path(out) / name / "man1"
        pages.mkdir(parents=True)
        if name == "mep-sdk":
            parser = importlib.import_module(module).parser()
            (pages / f"{name}.1").write_text(argparse_page(parser, project["version"], day))
            for shell in SHELLS:
                (Path(out) / name / shell).write_text(importlib.import_module("mep_sdk.tool.completion").script(shell))
            continue
        command = application(module, function)
        main_name = main_names.setdefault(f"{module}:{function}", name)
        if below := SUBCOMMANDS.get(function):
            (pages / f"{name}.1").write_text(f".so man1/{main_names[f'{module}:main']}-{below}.1\n")
            write_completions(command, name, Path(out) / name)
            continue
        write_pages(command, context(command, name), pages, (project["version"], day), main_name)
        write_completions(command, name, Path(out) / name)


def application(module: str, function: str) -> Any:
    """Return the click application that an entry point starts."""
    found = getattr(importlib.import_module(module), function)
    if hasattr(found, "get_params"):
        return found
    return importlib.import_module(module.rpartition(".")[0] + ".app").cli  # an entry point that first drops variables


if __name__ == "__main__":
    main(*sys.argv[1:])
