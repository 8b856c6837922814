"""The help of `mep-sdk`: each command has an example that it accepts, and prints JSON where it is asked to."""

from __future__ import annotations

import argparse
import re
import shlex

import pytest

from mep_sdk.tool.completion import SHELLS, script
from mep_sdk.tool.main import parser


def commands() -> dict[str, argparse.ArgumentParser]:
    (below,) = [each for each in parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(below.choices)


@pytest.mark.parametrize("name", commands())
def test_each_command_has_an_example_that_it_accepts(name: str) -> None:
    command = commands()[name]
    examples = re.findall(r"mep-sdk (?!completion fish >)[^\n]*", command.epilog or "")
    assert examples, name
    for example in examples:
        words = shlex.split(example.partition(')"')[0], comments=True)
        assert words[1] == name
        parser().parse_args(words[1:])


@pytest.mark.parametrize("name", commands())
def test_each_command_prints_json(name: str) -> None:
    assert "--json" in commands()[name].format_help()


def test_each_argument_has_a_text() -> None:
    for name, command in commands().items():
        for action in command._actions:
            assert action.help or action.choices, (name, action.dest)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script(shell: str) -> None:
    assert "MEP_SDK_COMPLETE=1 mep-sdk" in script(shell)
