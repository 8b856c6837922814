"""`python -I -m user_endpoint.template_check FD PATH`: render a template with made-up values and report the result.

For `mep check`, as an unprivileged account: the bundle comes on descriptor FD, one JSON document goes to standard
output, {"problems": [[line, text, template], ...], "notes": [text, ...]}. A problem is the administrator's, and would
make starts fail. A finding that depends on the made-up values is a note. Nothing is run but the template, in its
sandbox.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mep_wire.bundle import UepBundle, decode_bundle
from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid, UserConfigReserved
from mep_wire.limits import ENDPOINT_NAMESPACES, ENDPOINT_VARIABLES, RESERVED_TEMPLATE_VARIABLES
from mep_wire.start_request import StartRequest
from user_endpoint.render import render_settings
from user_endpoint.render.branches import Branch, branch_environment, template_facts
from user_endpoint.render.quoting_habits import habits_of
from user_endpoint.render.sample_values import ABSENT, MAX_COMBINATIONS, SampleValues, combinations, variations
from user_endpoint.render.user_config_check import check_user_config
from user_endpoint.render.yaml_document import YamlInvalid
from user_endpoint.settings import GlobusComputeSettings, SettingsInvalid, UepSettings
from user_endpoint.task_admission import function_lists

DEADLINE_S = 20
EXPLORATION_S, MAX_RENDERINGS = 8.0, 400
"""Most time for all renderings, and most of them."""
MANY = 1_000_000
"""Most renderings of a thorough check, and most combinations for one branch there."""
MAX_VARIABLES = 50
_GUESSES: tuple[Any, ...] = (1, "sample", ["sample"], {"sample": 1})
"""Values to try for a variable that the schema does not describe."""
_EXPRESSION = re.compile(r"\{\{.*?\}\}")
_KEY = re.compile(r"(?:- )?([A-Za-z_][A-Za-z0-9_-]*)\s*:")
_RUNTIME = {
    "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
    "python_implementation": "CPython",
    "mep_sdk_version": "1.0.0",
}
_IDENTITY: dict[str, dict[str, Any]] = {
    "local": {
        "uname": "sample", "uid": 1000, "gid": 1000, "groups": [1000], "group_names": ["sample"], "gecos": "",
        "dir": "/home/sample", "shell": "/bin/sh",
    },
    "globus": {
        "id": "00000000-0000-4000-8000-000000000000", "username": "sample@example.org", "name": "Sample",
        "email": "sample@example.org", "organization": "", "identity_provider": "", "identity_type": "login",
        "status": "used",
    },
}  # fmt: skip


_COMMANDS = {
    "SlurmProvider": ("sbatch", "squeue", "scancel"),
    "PBSProProvider": ("qsub", "qstat", "qdel"),
    "TorqueProvider": ("qsub", "qstat", "qdel"),
    "GridEngineProvider": ("qsub", "qstat", "qdel"),
    "LSFProvider": ("bsub", "bjobs", "bkill"),
    "CondorProvider": ("condor_submit", "condor_q", "condor_rm"),
}
"""The commands that Parsl's providers run on the endpoint's host."""
_RUN = ("python", "worker_init", "launch_cmd", "container_uri", "container_cmd_options")
"""Options of engines that name programs or hold commands."""
_BOUNDED = frozenset({"enum", "const", "pattern"})
"""Keywords with which a schema says which texts a property may have."""
DESCRIPTORS_A_NODE, _OWN_DESCRIPTORS = 3, 100
"""About how many descriptors a user endpoint and its interchange have for each node, and besides."""


Place = tuple[str, int]
"""The name of a template, and a line in it; 0 if the line isn't known."""


@dataclass
class TemplateVerdict:
    """The findings."""

    problems: list[tuple[int, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    _known: set[tuple[Place, str]] = field(default_factory=set)

    def problem(self, where: Place, text: str, options: Mapping[str, Any]) -> None:
        """Add a problem that makes starts fail; `options` are those of the first such start."""
        if (where, text) not in self._known:
            self._known.add((where, text))
            given = f" (with the options {json.dumps(options, default=str)[:500]})" if options else ""
            self.problems.append((where[1], text + given, where[0]))

    def note(self, text: str) -> None:
        """Add a finding that may be harmless."""
        if text not in self.notes:
            self.notes.append(text)


class Trial:
    """The renderings of one bundle."""

    def __init__(
        self,
        bundle: UepBundle,
        search_path: str = "",
        *,
        seconds: float = EXPLORATION_S,
        renderings: int = MAX_RENDERINGS,
        combined: int = MAX_COMBINATIONS,
    ) -> None:
        """`search_path` is the PATH of user endpoints; empty if nothing is looked for in it.

        `combined` is the most combinations for one branch.
        """
        self._seconds, self._most, self._combined = seconds, renderings, combined
        self._bundle = bundle
        self._path = bundle.user_environment.get("PATH", search_path) if search_path else ""
        self.verdict = TemplateVerdict()
        self._environment = branch_environment()
        self._facts = template_facts(bundle.templates)
        constants = self._facts.constants if bundle.quoting == "typed" else _unquoted(self._facts.constants)
        self._samples = SampleValues(bundle.schema, constants)
        self._tried: set[str] = set()
        self._blamed: set[str] = set()
        self._end = time.monotonic() + seconds

    def run(self) -> TemplateVerdict:
        """Render with each value of each variable, then with combinations for the branches that none has taken."""
        for habit in habits_of(self._bundle):
            self.verdict.problem((habit.template, habit.line), habit.text, {})
        self._note_old_names()
        self._compare_names()
        values = self._values()
        required = [name for name in self._schema.get("required", []) if name in values]
        for config in variations(values, required):
            self._try(config)
        for branch in list(self._environment.branches.values()):
            self._reach(branch, values, required)
        for branch in self._environment.branches.values():
            self._note_branch(branch)
        if len(self._tried) >= self._most or time.monotonic() >= self._end:
            limit = f"the limit is {self._most} or {self._seconds:g} s"
            more = "; run: mep check NAME --thorough" if self._seconds == EXPLORATION_S else ""
            self.verdict.note(f"not every combination was tried: {limit}{more}")
        return self.verdict

    @property
    def _schema(self) -> Mapping[str, Any]:
        return self._bundle.schema or {}

    @property
    def _closed(self) -> bool:
        """Whether the schema allows no variable that it does not name."""
        return self._schema.get("additionalProperties") is False and "patternProperties" not in self._schema

    def _compare_names(self) -> None:
        """Note variables that the schema lacks, and properties that no template reads."""
        properties = self._schema.get("properties", {})
        for name, (template, line) in self._facts.variables.items():
            if properties and name not in properties and name not in RESERVED_TEMPLATE_VARIABLES:
                why = "and allows no other: nobody can set it" if self._closed else "so any value is accepted for it"
                self.verdict.note(f"{template}:{line}: {name}: the schema has no such property, {why}")
        for name in properties:
            if name not in self._facts.variables:
                self.verdict.note(f"user_config_schema.json: properties/{name}: no template uses this variable")

    def _note_old_names(self) -> None:
        """Note the endpoint's own variables where they stand alone: Globus Compute has deprecated that."""
        for name in ENDPOINT_VARIABLES:
            if name in self._facts.variables:
                template, line = self._facts.variables[name]
                new = " or ".join(f"{namespace}.{name}" for namespace in reversed(ENDPOINT_NAMESPACES))
                self.verdict.note(f"{template}:{line}: {name} as a variable of its own is deprecated: write {new}")

    def _values(self) -> dict[str, list[Any]]:
        """Return the values to try for each variable that a person may set."""
        properties = self._schema.get("properties", {})
        found = {name: self._samples.of(name) for name in {**properties, **dict.fromkeys(self._required())}}
        for name, values in found.items():
            if not values:
                self.verdict.note(self._no_value(name, properties.get(name, {})))
        for name, schema in self._samples.valueless.items():
            self.verdict.note(self._no_value(name, schema))
        if not self._closed:
            free = [name for name in self._facts.constants if name in self._facts.variables]
            found |= {
                name: self._samples.of(name) for name in free
                if name not in found and name not in RESERVED_TEMPLATE_VARIABLES
            }  # fmt: skip
        return {name: values for name, values in found.items() if values}

    def _required(self) -> list[str]:
        return [name for name in self._schema.get("required", []) if isinstance(name, str)]

    @staticmethod
    def _no_value(name: str, schema: Any) -> str:
        pattern = schema.get("pattern") if isinstance(schema, Mapping) else None
        why = f"could be made for the pattern {pattern}" if pattern else "could be made up that fits its schema"
        return (
            f"user_config_schema.json: properties/{name}: no value {why}: not all was tried; add `examples` to this "
            "property, and they are tried"
        )

    def _reach(self, branch: Branch, values: Mapping[str, list[Any]], required: list[str]) -> None:
        """Try combinations of the variables that a decision reads until each side has been seen."""
        parts = {
            name: [*values[name], *([] if name in required else [ABSENT])]
            for name in sorted(branch.names)
            if name in values
        }
        for base in ({name: found[0] for name, found in values.items()}, {name: values[name][0] for name in required}):
            for config in combinations(parts, base, self._combined):
                if self._all_seen(branch):
                    return
                self._try(config)

    def _all_seen(self, branch: Branch) -> bool:
        return all((branch.id, side) in self._environment.seen for side in branch.sides)

    def _note_branch(self, branch: Branch) -> None:
        template, line, kind, _ = branch.id
        for side in branch.sides:
            if (branch.id, side) in self._environment.seen:
                continue
            what = "runs the body of this loop" if kind == "for" else f"makes this condition {str(side).lower()}"
            own = branch.names & {*ENDPOINT_VARIABLES, *ENDPOINT_NAMESPACES}
            hint = f"; it reads {', '.join(sorted(own))}: try `mep render` with --as or --runtime" if own else ""
            self.verdict.note(f"{template}:{line}: no value that was tried {what}{hint}")

    def _try(self, config: dict[str, Any]) -> None:
        """Render for a configuration that the schema accepts, once, within the limits."""
        known = json.dumps(config, sort_keys=True, default=str)
        if known in self._tried or len(self._tried) >= self._most or time.monotonic() >= self._end:
            return
        self._tried.add(known)
        try:
            check_user_config(self._bundle.schema, config)
        except (UserConfigInvalid, UserConfigReserved) as error:
            if len(self._tried) <= 2:  # the least and all: later ones are combinations that may well be refused
                self.verdict.note(f"no values could be made up that fit the schema ({error.text}): not all was tried")
            return
        self._render(dict(config))

    def _render(self, config: dict[str, Any]) -> None:
        """Render, giving a value to whatever the template turns out to need."""
        guesses: dict[str, int] = {}
        for _ in range(MAX_VARIABLES):
            start = invented_start(config)
            try:
                self._look_at(render_settings(self._bundle, start, _IDENTITY, self._environment), config)
            except EndpointMisconfigured as error:
                self._misconfigured(error, config)
            except UserConfigReserved as error:
                self.verdict.note(error.text)
            except UserConfigInvalid as error:
                if self._guess(config, guesses, error):
                    continue
            return

    def _guess(self, config: dict[str, Any], guesses: dict[str, int], error: UserConfigInvalid) -> bool:
        """Give another value to the variable that is at fault; False where there is none, or the schema decides."""
        name = str(error.fields["key"]).partition(", ")[0]
        declared = name in (self._bundle.schema or {}).get("properties", {})
        number = guesses.get(name, -1) + 1
        if declared and name not in config:
            known = self._samples.of(name)
            config[name] = known[0] if known else "sample"
            template, line = self._facts.variables.get(name, (self._bundle.template_name, 0))
            place = f"{template}:{line}" if line else template
            self.verdict.note(f"{place}: {name} has to be given by everybody, though the schema does not require it")
            return True
        if declared or number >= len(_GUESSES) or (number == 0 and name in config):
            if name in self._blamed:
                return False  # one value tells enough
            self._blamed.add(name)
            self.verdict.note(f"with {name}={json.dumps(config.get(name))}, made up: {error.fields['reason']}")
            return False
        guesses[name], config[name] = number, _GUESSES[number]
        return True

    def _look_at(self, settings: UepSettings, config: Mapping[str, Any]) -> None:
        """Note options that have no effect here. Raises EndpointMisconfigured for an unknown provider or launcher."""
        for key in settings.not_applicable:
            self.verdict.note(f"{self._at(key)}: {key}: has no effect, and is ignored")
        lists = function_lists(self._bundle.allowed_functions, settings.allowed_functions, self._bundle.function_pins)
        if lists and not _only_json(settings.engine.allowed_serializers):
            self.verdict.note(
                "allowed_functions: pickled arguments can carry code of their own; to run nothing but the listed "
                "code, let engine.allowed_serializers accept JSONData alone for data"
            )
        if lists:
            self._note_free_commands(settings, config)
        if isinstance(settings.engine, GlobusComputeSettings):
            from user_endpoint.engines.htex.provider import Plan  # and with it Parsl, which only such templates pay for

            self._look_at_provider(settings.engine, Plan(settings.engine).name)

    def _note_free_commands(self, settings: UepSettings, config: Mapping[str, Any]) -> None:
        """Note texts of a person's choice in what is run besides functions: they are as good as any function."""
        properties = self._schema.get("properties", {})
        for name, value in config.items():
            bounded = isinstance(own := properties.get(name), Mapping) and _BOUNDED & own.keys()
            if bounded or not isinstance(value, str) or not value:
                continue
            others = [str(other) for key, other in config.items() if key != name]
            if any(value in text for text in (*self._bundle.templates.values(), *others)):
                continue  # it may stand there without this variable; another of its values tells
            for key in [key for key, text in _commands(settings) if value in text]:
                self.verdict.note(
                    f"{self._at(key)}: {key}: the person's {name} is run besides the listed functions: leave the "
                    "variable out, or give it an enum in the schema"
                )

    def _look_at_provider(self, engine: GlobusComputeSettings, provider: str) -> None:
        """Note scheduler commands that a user endpoint would not find, and more nodes than it has descriptors for."""
        missing = [
            name for name in _COMMANDS.get(provider, ()) if self._path and not shutil.which(name, path=self._path)
        ]
        where = self._at("engine.provider")
        if missing:
            self.verdict.note(
                f"{where}: {provider} needs {', '.join(missing)}, found in no directory of {self._path}: install the "
                "scheduler's commands, or set user_search_path in config.yaml"
            )
        blocks, nodes = engine.provider.get("max_blocks", 1), engine.provider.get("nodes_per_block", 1)
        if isinstance(blocks, int) and isinstance(nodes, int):
            needed, limit = (
                _OWN_DESCRIPTORS + DESCRIPTORS_A_NODE * blocks * nodes,
                resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            )
            if limit != resource.RLIM_INFINITY and needed > limit:
                self.verdict.note(
                    f"{where}: max_blocks {blocks} with {nodes} nodes each need about {needed} descriptors, and a "
                    f"process may have {limit}: raise LimitNOFILE of mep@.service, or lower max_blocks"
                )

    def _at(self, path: str) -> str:
        name, line = self._line_of_key(path)
        return f"{name}:{line}" if line else name

    def _misconfigured(self, error: EndpointMisconfigured, options: Mapping[str, Any]) -> None:
        """Describe the mistake and, if it is known, the line."""
        where, text = self._mistake(error)
        self.verdict.problem(where, text, options)

    def _mistake(self, error: EndpointMisconfigured) -> tuple[Place, str]:
        cause, detail = error.__cause__, error.detail
        if isinstance(cause, YamlInvalid):
            return self._line_like(cause.excerpt), f"{cause.reason}: {cause.excerpt}"
        if isinstance(cause, SettingsInvalid):
            return self._line_of_key(cause.path), str(cause)
        where = re.match(r"(.+?): line (\d+)", detail)
        if where and where[1] in self._bundle.templates:
            return (where[1], int(where[2])), detail[where.end() + 2 :]
        key = re.match(r"(engine[a-z_.]*|allowed_functions): ", detail)
        return self._line_of_key(key[1]) if key else (self._bundle.template_name, 0), detail

    def _line_like(self, excerpt: str) -> Place:
        """Return the one line of the templates that gives the line `excerpt` (with its values blanked)."""
        blank = excerpt.replace("***", "\0")
        return self._only_line(lambda line: _EXPRESSION.sub("\0", line).strip() == blank)

    def _line_of_key(self, path: str) -> Place:
        """Return the one line in which the last key of `path` stands, of those that stand anywhere."""
        for name in reversed(path.split(".")):
            if any(_is_key(line, name) for _, line in self._numbered()):
                return self._only_line(partial(_is_key, name=name))
        return self._bundle.template_name, 0

    def _only_line(self, is_it: Callable[[str], bool]) -> Place:
        """Return the only line that fits: in the template itself, else in those that it may include."""
        found = [where for where, line in self._numbered() if is_it(line)]
        own = [where for where in found if where[0] == self._bundle.template_name] or found
        return own[0] if len(own) == 1 else (self._bundle.template_name, 0)

    def _numbered(self) -> Iterator[tuple[Place, str]]:
        for name, text in self._bundle.templates.items():
            yield from (((name, number), line) for number, line in enumerate(text.splitlines(), 1))


def _unquoted(constants: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the constants of a template with `quoting: json` as a person gives them."""
    from user_endpoint.render.json_quoting import unquoted

    return {
        name: [
            inner if isinstance(value, str) and (inner := unquoted(value)) is not None else value for value in values
        ]
        for name, values in constants.items()
    }


def _is_key(line: str, name: str) -> bool:
    match = _KEY.match(line.strip())
    return match is not None and match[1] == name


def _commands(settings: UepSettings) -> Iterator[tuple[str, str]]:
    """Yield the texts that are run as commands or name programs, with the paths of their keys."""
    engine = settings.engine
    provider = engine.provider if isinstance(engine, GlobusComputeSettings) else {}
    found = {
        **{key: getattr(settings, key) for key in ("endpoint_setup", "endpoint_teardown")},
        **{f"engine.{key}": getattr(engine, key, None) for key in _RUN},
        **{f"engine.provider.{key}": provider.get(key) for key in ("worker_init", "scheduler_options")},
    }
    yield from ((key, text) for key, text in found.items() if isinstance(text, str))


def _only_json(serializers: list[str] | None) -> bool:
    """Return whether arguments may travel as JSON alone."""
    if serializers is None:
        return False
    from mep_sdk.strategies import Allowed, StrategyUnknown

    try:
        return Allowed(serializers).only_json
    except (StrategyUnknown, ValueError):
        return False  # which the engine's own settings say


def invented_start(
    config: dict[str, Any], globus: Mapping[str, Any] | None = None, runtime: Mapping[str, Any] | None = None
) -> StartRequest:
    """Return a start request as a person's would be, with an invented identity and runtime where none is given."""
    from mep_wire.identity import Identity, IdentitySet

    known = globus or _IDENTITY["globus"]
    who = IdentitySet("sample", (Identity(str(known.get("id", "")), str(known.get("username", ""))),))
    return StartRequest(
        endpoint_id="", uep_id="", identity_set=who, user_endpoint_config=config,
        user_runtime={**_RUNTIME, **(runtime or {})}, issued_at=0.0, expires_at=0.0, nonce=b"", epoch=b"",
        sealed_join_token=b"", correlation_id="",
    )  # fmt: skip


def invented_identity(
    local: Mapping[str, Any] | None = None, globus: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return `mapped_identity` with the parts that are known, and invented ones in place of the others."""
    return {"local": {**(local or _IDENTITY["local"])}, "globus": {**(globus or _IDENTITY["globus"])}}


def account_environment(local: Mapping[str, Any]) -> dict[str, str]:
    """Return what the keeper sets in the environment of a user endpoint, which templates see as `_GC.env`."""
    named = {"HOME": "dir", "USER": "uname", "LOGNAME": "uname", "SHELL": "shell"}
    return {name: str(local.get(key) or "") for name, key in named.items()}


def main() -> None:
    """Read the bundle, try it, print the verdict."""
    if os.geteuid() == 0:
        sys.exit("user_endpoint.template_check: refuses to run as root")
    thorough = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    signal.alarm(DEADLINE_S + int(thorough))  # a template that does not end
    with open(int(sys.argv[1]), "rb", closefd=False) as file:
        bundle = decode_bundle(file.read())
    os.environ.update(account_environment(_IDENTITY["local"]))
    path = "".join(sys.argv[2:3])
    many = {"renderings": MANY, "combined": MANY}
    trial = Trial(bundle, path, seconds=thorough, **many) if thorough else Trial(bundle, path)
    verdict = trial.run()
    json.dump({"problems": verdict.problems, "notes": verdict.notes}, sys.stdout)


if __name__ == "__main__":
    main()
