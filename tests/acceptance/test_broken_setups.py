"""Deliberately broken set-ups, each found by `mep check` before a person meets it.

Each finding says what is wrong, in which file and line, why, and the command that mends it or leads to the line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cli import Cli, open_directory
from tests.support.relay import RelayProcess

pytestmark = pytest.mark.root
TEMPLATE, SCHEMA, MAPPING = "user_config_template.yaml.j2", "user_config_schema.json", "identity_mapping.json"
ENGINE = "engine:\n  type: ProcessPoolEngine\n"
SLURM = "engine:\n  type: GlobusComputeEngine\n  provider:\n    type: SlurmProvider\n    partition: cpu\n"
IN_BRANCH = ENGINE + "{{% if GPUS | default(0) > 1 %}}\n{}\n{{% endif %}}\n"
CLOSED = '{"type": "object", "properties": {"GPUS": {"type": "integer", "minimum": 0, "maximum": 2}},\n'
CLOSED += ' "additionalProperties": false}\n'


@dataclass(frozen=True)
class Site:
    """The endpoint's directory, restored after each case."""

    mep: Cli
    etc: Path

    def write(self, name: str, text: str) -> None:
        """Replace a file."""
        (self.etc / name).write_text(text)

    def add(self, text: str) -> None:
        """Add lines to config.yaml, which has 2 lines less than `{end}` then."""
        with (self.etc / "config.yaml").open("a") as file:
            file.write(text)

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.mep.path("var", "site")


@dataclass(frozen=True)
class Case:
    """One mistake. The texts may have {etc}, {state}, and {end}: the first line that `Site.add` added."""

    name: str
    make: Callable[[Site], object]
    where: str
    why: str
    mend: str = "run: vi "
    warns: bool = False


def template(text: str) -> Callable[[Site], None]:
    return lambda site: site.write(TEMPLATE, text)


def config(text: str) -> Callable[[Site], None]:
    return lambda site: site.add(text)


def mapping(*rules: tuple[str, str]) -> Callable[[Site], None]:
    made = [{"source": "{username}", "match": match, "output": output} for match, output in rules]
    text = json.dumps([{"DATA_TYPE": "expression_identity_mapping#1.0.0", "mappings": made}], indent=1)
    return lambda site: site.write(MAPPING, text)


def closed_template(text: str) -> Callable[[Site], None]:
    def make(site: Site) -> None:
        site.write(SCHEMA, CLOSED)
        site.write(TEMPLATE, text)

    return make


def included(site: Site) -> None:
    site.write(TEMPLATE, f"{ENGINE}{{% include 'part.j2' %}}\n")
    site.write("part.j2", "# a part\ndisplay_nme: x\n")


CASES = [
    Case("a misspelt key", config("multi_usr: true\n"), "{etc}/config.yaml:{end}", "did you mean multi_user?"),
    Case("broken YAML", config("policy: [\n"), "{etc}/config.yaml:", "not valid YAML"),
    Case("a wrong type", config("clock_skew_s: soon\n"), "{etc}/config.yaml:{end}", "must be a number"),
    Case("a key given twice", config("debug: true\ndebug: false\n"), "{etc}/config.yaml:", "given twice"),
    Case("bounds that exclude all", config("policy: {min_uid: 2000, max_uid: 1000}\n"),
         "{etc}/config.yaml:{end}", "no account may be used"),
    Case("an engine in config.yaml", config("engine: {type: ThreadPoolEngine}\n"), "{etc}/config.yaml:{end}", TEMPLATE),
    Case("a log in a directory that is missing", config("log_path: /nosuch/x.log\n"), "{etc}/config.yaml:{end}",
         "there is no directory /nosuch", "run: install -d -m 755 /nosuch"),
    Case("a hook that is missing", config("pre_start_hook: {path: /nosuch/hook}\n"), "{etc}/config.yaml:{end}",
         "/nosuch/hook: No such file"),
    Case("a file that others can write", lambda site: (site.etc / SCHEMA).chmod(0o666), "{etc}/" + SCHEMA,
         "has mode 0666", "chmod go-w"),
    Case("a schema that is no JSON", lambda site: site.write(SCHEMA, '{"type":\n "object",}'), "{etc}/" + SCHEMA + ":2",
         "not valid JSON"),
    Case("a type that JSON schema lacks", lambda site: site.write(SCHEMA, '{"properties": {"n": {"type": "int"}}}'),
         "{etc}/" + SCHEMA, "types are array"),
    Case("a reference to the network", lambda site: site.write(SCHEMA, '{"$ref": "https://example.org/x"}'),
         "{etc}/" + SCHEMA, "nothing is fetched"),
    Case("a template that Jinja can't read", template(f"{ENGINE}{{% if %}}\n"), "{etc}/" + TEMPLATE + ":3",
         "not a valid template"),
    Case("a misspelt key in a branch", closed_template(IN_BRANCH.format("  max_wrkers: 1")),
         "{etc}/" + TEMPLATE + ":4", "did you mean max_workers?"),
    Case("broken YAML in a branch", closed_template(IN_BRANCH.format("x: @y")),
         "{etc}/" + TEMPLATE + ":4", "while scanning"),
    Case("a variable that no one can set", closed_template(ENGINE + "# {{ NODS | default(1) }} {{ GPUS }}\n"),
         "{etc}/" + TEMPLATE + ":3", "the schema has no such property", warns=True),
    Case("a branch that nothing reaches", closed_template(ENGINE + "{% if GPUS | default(0) > 9 %}\n{% endif %}\n"),
         "{etc}/" + TEMPLATE + ":3", "makes this condition true", warns=True),
    Case("an include that is missing", template(f"{ENGINE}{{% include 'none.j2' %}}\n"), "{etc}/" + TEMPLATE + ":3",
         "no template 'none.j2'"),
    Case("a mistake in an include", included, "{etc}/part.j2:2", "did you mean display_name?"),
    Case("quotes of Globus Compute", template(ENGINE + "{% if P == '\"x\"' %}{% endif %}\n"),
         "{etc}/" + TEMPLATE + ":3", "which no text here equals", 'write "x" in place of'),
    Case("an integer walltime", template(SLURM + "    walltime: 30\n"), "{etc}/" + TEMPLATE + ":6", "walltime"),
    Case("a scheduler without commands", template(SLURM.replace("Slurm", "LSF").replace("partition", "queue")),
         "{etc}/" + TEMPLATE + ":3", "LSFProvider needs bsub", warns=True),
    Case("more nodes than descriptors", template(SLURM + "    nodes_per_block: 100000\n    max_blocks: 100\n"),
         "{etc}/" + TEMPLATE + ":3", "descriptors", "raise LimitNOFILE", warns=True),
    Case("a variable that nothing replaces", lambda site: site.write("user_environment.yaml", "A: x\nLIB: $HOME/lib\n"),
         "{etc}/user_environment.yaml:2", "stays as it is", "run: vi +2 ", warns=True),
    Case("a value that is no text", lambda site: site.write("user_environment.yaml", "A: true\n"),
         "{etc}/user_environment.yaml:1", "put it in quotes"),
    Case("a mapping that is no JSON", lambda site: site.write(MAPPING, '[\n {"DATA_TYPE": 1,}\n]'),
         "{etc}/" + MAPPING + ":2", "JSON"),
    Case("a rule without a match", lambda site: site.write(
        MAPPING, '[{"DATA_TYPE": "expression_identity_mapping#1.0.0",\n "mappings": [{"source": "{username}"}]}]'),
         "{etc}/" + MAPPING + ":2", "match"),
    Case("a mapping of the example", mapping(("(.*)@change-me\\.invalid", "{0}")), "{etc}/" + MAPPING, "change-me",
         "run: vi +7 ", warns=True),
    Case("a dot that means any character", mapping(("(.*)@example.edu", "{0}")), "{etc}/" + MAPPING, "dot",
         "\\\\.", warns=True),
    Case("an account that is missing", mapping(("a@example\\.edu", "meptest-none")), "{etc}/" + MAPPING + ":8",
         "no account of this host", "run: useradd", warns=True),
    Case("a PAM service that is missing", config("pam: {enable: true, service_name: meptest-none}\n"),
         "{etc}/config.yaml:{end}", "/etc/pam.d/meptest-none", "install etc/pam.d/mep"),
    Case("a group that is misspelt", config("policy: {denied_groups: [meptest-none]}\n"),
         "{etc}/config.yaml:{end}: policy.denied_groups", "knows no group", warns=True),
    Case("an account for the manager that is missing", lambda site: site.write("config.yaml", re.sub(
        r"(?m)^manager_account: .*$", "manager_account: meptest-none", (site.etc / "config.yaml").read_text())),
         "meptest-none", "account", "useradd"),
    Case("a key that is lost", lambda site: (site.state / "link.key").unlink(), "{state}/link.key", "is missing",
         "mep register site --again"),
    Case("an endpoint that is not registered", lambda site: (site.state / "registration.json").unlink(),
         "{state}/registration.json", "is not registered", "mep register site"),
    Case("a relay that is not there", lambda site: site.write("../../var/site/registration.json", re.sub(
        r'"relay_url": "[^"]*"', '"relay_url": "http://127.0.0.1:9"', (site.state / "registration.json").read_text())),
         "http://127.0.0.1:9", "refused", "run: curl", warns=True),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(relay: RelayProcess) -> Iterator[tuple[Site, Path]]:
    with open_directory() as directory:
        cli = Cli(directory, variables={"MEP_TOKEN": relay.add_user("admin@example.edu")})
        cli("configure", "site", "--multi-user", "--relay", relay.url, "--domain", "example.edu")
        copy = directory / "copy"
        for kind in ("etc", "var"):
            shutil.copytree(cli.path(kind, "site"), copy / kind)
            for path in (copy / kind).iterdir():
                kept = (cli.path(kind, "site") / path.name).stat()
                os.chown(path, kept.st_uid, kept.st_gid)
        yield Site(cli, cli.path("etc", "site")), copy
        cli("delete", "site", "--yes", "--local-only")


@pytest.fixture
def site(made: tuple[Site, Path]) -> Iterator[Site]:
    yield made[0]
    for kind in ("etc", "var"):
        target = made[0].mep.path(kind, "site")
        for path in target.iterdir():
            if not (made[1] / kind / path.name).exists():
                path.unlink()
        for path in (made[1] / kind).iterdir():
            kept = path.stat()
            shutil.copy2(path, target / path.name)
            os.chown(target / path.name, kept.st_uid, kept.st_gid)


def test_the_site_itself_is_sound(site: Site) -> None:
    assert "no problem found" in site.mep("check", "site").stdout


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_broken_set_up_is_found(site: Site, case: Case) -> None:
    end = len((site.etc / "config.yaml").read_text().splitlines()) + 1
    case.make(site)
    said = site.mep("check", "site", expect=0 if case.warns else 4).stderr
    for text in (case.where, case.why, case.mend):
        wanted = text.replace("{etc}", str(site.etc)).replace("{state}", str(site.state)).replace("{end}", str(end))
        assert wanted in said, f"{wanted!r} is not in:\n{said}"


def test_there_are_at_least_25() -> None:
    assert len(CASES) >= 25


def test_all_mistakes_of_a_template_are_shown_at_once(site: Site) -> None:
    site.write(SCHEMA, CLOSED)
    branch = "{{% if GPUS | default(0) == {} %}}\n  {}: 1\n{{% endif %}}\n"
    site.write(TEMPLATE, ENGINE + branch.format(1, "max_wrkers") + branch.format(2, "worker_nit"))
    said = site.mep("check", "site", "--thorough", expect=4).stderr
    for line, key in ((4, "max_wrkers"), (7, "worker_nit")):
        (found,) = [one for one in said.splitlines() if f"{site.etc}/{TEMPLATE}:{line}: " in one]
        assert key in found
        assert f"run: vi +{line} " in found
