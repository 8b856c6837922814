"""Every command that README and docs show exists, with every option shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from mep.cli.app import cli as mep
from relay.cli import main as mep_relay

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "mep").rglob("*.md"))]
COMMANDS: dict[str, click.Command] = {"mep": mep, "globus-compute-endpoint": mep, "mep-relay": mep_relay}
# A line of a block, or code in a sentence that has more than the command's name.
SHOWN = re.compile(rf"(?:^(?: {{4}})?\$? ?|`)((?:{'|'.join(COMMANDS)}) [a-z][^`\n]*)", re.MULTILINE)


def _shown() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in SHOWN.findall(page.read_text())]


@pytest.mark.parametrize(("page", "text"), _shown())
def test_a_command_shown_exists_with_its_options(page: str, text: str) -> None:
    name, *words = shlex.split(text.split("  #")[0], comments=True)
    command = COMMANDS[name]
    while isinstance(command, click.Group) and words and "|" not in words[0]:
        sub = command.commands.get(words[0])
        assert sub is not None, f"{page}: {text}: there is no {words[0]}"
        command, words = sub, words[1:]
    if isinstance(command, click.Group):
        missing = [word for word in words[0].split("|") if word not in command.commands] if words else []
        assert not missing, f"{page}: {text}: there is no {missing}"
        return
    known = {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}
    unknown = {word.partition("=")[0] for word in words if word.startswith("--")} - known - {"--help"}
    assert not unknown, f"{page}: {text}: there is no {unknown}"


def test_the_pages_show_commands() -> None:
    assert _shown()


GROUPS = {
    "mep": mep,
    "mep-relay": mep_relay,
    "user": mep_relay.commands["user"],
    "endpoint": mep_relay.commands["endpoint"],
}


@pytest.mark.parametrize("name", GROUPS)
def test_a_list_of_commands_has_whole_sentences(name: str) -> None:
    listed = CliRunner().invoke(GROUPS[name], ["--help"], terminal_width=78).output.partition("Commands:\n")[2]
    lines = listed.split("\n\n")[0].splitlines()
    assert lines
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []
