"""The parts of packages that need no build: manual pages, completions, licences, bill of materials, scripts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

import click
import pytest

from mep.cli.app import cli

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
SITE = next(Path(sys.prefix).glob("lib/python*/site-packages"))
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
EPOCH = 1767225600


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mep_packaging_{name}", PACKAGING / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manual")
    argv = [sys.executable, "-I", str(PACKAGING / "manual.py"), str(SITE), str(out), str(EPOCH), *COMMANDS]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_each_command_has_pages_for_all_that_it_shows(manual: Path) -> None:
    pages = {path.name: path.read_text() for path in manual.glob("*/man1/*.1")}
    assert {f"{name}.1" for name in COMMANDS} <= pages.keys()
    shown = {f"mep-{name}.1" for name, command in cli.commands.items() if not command.hidden}
    hidden = {f"mep-{name}.1" for name, command in cli.commands.items() if command.hidden}
    relay = {name for name in pages if name.startswith("mep-relay")}
    assert {name for name in pages if name.startswith("mep-")} - relay - {"mep-sdk.1", "mep-diagnostic.1"} == shown
    assert hidden
    assert not hidden & pages.keys()
    assert {"mep-relay-user.1", "mep-relay-user-add.1"} <= relay
    for name, text in pages.items():
        if text.startswith(".so "):
            assert text.removeprefix(".so man1/").strip() in pages, (name, text)
        else:
            assert ".SH NAME\n" in text and ".SH OPTIONS\n" in text, name


def test_a_page_has_examples_and_exit_codes_and_escapes_what_roff_would_take(manual: Path) -> None:
    text = (manual / "mep/man1/mep-start.1").read_text()
    assert ".SH EXAMPLES\n.nf\nmep start site \\-\\-detach\nsystemctl start mep@site\n.fi" in text
    assert ".SH EXIT CODES\n" in text
    assert text.startswith('.TH "MEP-START" "1" "2026-01-01" "MEP ')
    escape = load("manual").escape
    assert escape(".dot\n'quote \\ -") == "\\&.dot\n\\(aqquote \\e \\-"


@pytest.mark.parametrize("name", ["mep", "mep-relay", "globus-compute-endpoint", "mep-diagnostic"])
def test_completions_name_their_command(manual: Path, name: str) -> None:
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    for shell in ("bash", "zsh", "fish"):
        text = (manual / name / shell).read_text()
        assert f"{variable}={shell}_complete" in text
        assert name in text


@pytest.mark.parametrize("name", ["mep", "mep-relay"])
def test_shells_complete_files_for_options_that_name_one(name: str) -> None:
    module, _, function = COMMANDS[name].partition(":")
    command = load("manual").application(module, function)
    found = [*options_of(command)]
    assert found
    assert not [each.opts for each in found if not isinstance(each.type, click.Path)]


def options_of(command: click.Command) -> Iterator[click.Option]:
    """Yield the options of a command and of all below it that take the name of a file or directory alone."""
    for each in command.params:
        if isinstance(each, click.Option) and (each.metavar in ("FILE", "DIR") or isinstance(each.type, click.Path)):
            yield each
    for below in getattr(command, "commands", {}).values():
        yield from options_of(below)


def test_the_bill_lists_everything_installed_and_the_licences_have_its_text() -> None:
    module = load("bill_of_materials")
    document = json.loads(module.cyclonedx(SITE, "mep-common", "1.2.3", EPOCH))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    references = [each["bom-ref"] for each in document["components"]]
    assert len(references) == len(set(references))
    installed = {each.metadata["Name"]: each.version for each in distributions(path=[str(SITE)])}
    listed = {each["name"]: each.get("version") for each in document["components"]}
    assert installed.items() <= listed.items()
    assert any(name.startswith("libzmq") for name in listed), "pyzmq carries it"
    assert document == json.loads(module.cyclonedx(SITE, "mep-common", "1.2.3", EPOCH))
    text = module.licences(SITE, "OUR OWN\n")
    for name, version in installed.items():
        assert name == "mep" or f"\n{name} {version}\nLicence: " in text
    unstated = [part for part in text.split("-" * 80) if "Licence: not stated" in part]
    assert all(len(part) > 500 for part in unstated), "the licence is neither named nor there in full"
    assert "Permission is hereby granted" in text


WORDS = [
    ("postinst of a first installation", "install", ("configure", ""), "install"),
    ("postinst of an upgrade", "install", ("configure", "0.1.0-1"), "upgrade"),
    ("postinst after a failed upgrade", "install", ("abort-upgrade", "0.1.0-2"), "other"),
    ("prerm of a removal", "upgrade", ("remove",), "remove"),
    ("prerm of an upgrade", "upgrade", ("upgrade", "0.1.0-2"), "upgrade"),
    ("postrm of a purge", "upgrade", ("purge",), "purge"),
    ("%post of a first installation", "install", ("1",), "install"),
    ("%post of an upgrade", "install", ("2",), "upgrade"),
    ("%preun of an upgrade", "upgrade", ("1",), "upgrade"),
    ("%preun of a removal", "upgrade", ("0",), "remove"),
]


@pytest.mark.parametrize(("what", "one", "words", "action"), WORDS, ids=[row[0] for row in WORDS])
def test_scripts_understand_dpkg_and_rpm(what: str, one: str, words: tuple[str, ...], action: str) -> None:
    text = f"set -eu\none={one}\n{(PACKAGING / 'scripts/action.sh').read_text()}\necho $action"
    done = subprocess.run(["sh", "-c", text, "sh", *words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == action, what


def test_every_script_is_one_that_sh_can_read() -> None:
    scripts = [*(PACKAGING / "scripts").iterdir(), PACKAGING / "deploy/relay-entry.sh"]
    assert len(scripts) > 8
    for script in scripts:
        subprocess.run(["sh", "-n", str(script)], check=True)
