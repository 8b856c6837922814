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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mep_wire.bundle import UepBundle, decode_bundle
from mep_wire.errors import EndpointMisconfigured, UserConfigInvalid, UserConfigReserved
from mep_wire.start_request import StartRequest
from user_endpoint.render import render_settings
from user_endpoint.render.user_config_check import check_user_config
from user_endpoint.render.yaml_document import YamlInvalid
from user_endpoint.settings import GlobusComputeSettings, SettingsInvalid, UepSettings
from user_endpoint.task_admission import function_lists

DEADLINE_S = 20
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
DESCRIPTORS_A_NODE, _OWN_DESCRIPTORS = 3, 100
"""About how many descriptors a user endpoint and its interchange have for each node, and besides."""


Place = tuple[str, int]
"""The name of a template, and a line in it; 0 if the line isn't known."""


@dataclass
class TemplateVerdict:
    """The findings."""

    problems: list[tuple[int, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, where: Place, text: str) -> None:
        """Add a problem that would make starts fail."""
        name, line = where
        if (line, text, name) not in self.problems:
            self.problems.append((line, text, name))

    def note(self, text: str) -> None:
        """Add a finding that may be harmless."""
        if text not in self.notes:
            self.notes.append(text)


def sample_of(schema: Any, depth: int = 0) -> Any:
    """Return a value that a schema of one variable describes, as far as that can be made up: its default first."""
    if not isinstance(schema, Mapping) or depth > 8:
        return "sample"
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if isinstance(schema.get(key), list) and schema[key]:
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(key), list) and schema[key]:
            return sample_of(schema[key][0], depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    return _sample_of_type(kind[0] if isinstance(kind, list) and kind else kind, schema, depth)


def _sample_of_type(kind: Any, schema: Mapping[str, Any], depth: int) -> Any:
    if kind in {"integer", "number"}:
        return schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    if kind == "boolean":
        return True
    if kind == "array":
        return [sample_of(schema.get("items", {}), depth + 1)] * max(1, int(schema.get("minItems", 1)))
    if kind == "object":
        return {name: sample_of(part, depth + 1) for name, part in schema.get("properties", {}).items()}
    if kind == "null":
        return None
    text = "sample"
    return text.ljust(int(schema.get("minLength", 0)), "x")[: int(schema.get("maxLength", len(text) + 10_000))]


def samples(schema: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yield configurations that a person might give: the schema's minimum, then every variable that it names."""
    properties = (schema or {}).get("properties", {})
    required = (schema or {}).get("required", [])
    yield {name: sample_of(properties.get(name, {})) for name in required}
    if properties:
        yield {name: sample_of(part) for name, part in properties.items()}


class Trial:
    """The renderings of one bundle."""

    def __init__(self, bundle: UepBundle, search_path: str = "") -> None:
        """`search_path` is the PATH of user endpoints; empty if nothing is looked for in it."""
        self._bundle = bundle
        self._path = bundle.user_environment.get("PATH", search_path) if search_path else ""
        self.verdict = TemplateVerdict()

    def run(self) -> TemplateVerdict:
        """Render with each set of values."""
        for config in samples(self._bundle.schema):
            try:
                check_user_config(self._bundle.schema, config)
            except (UserConfigInvalid, UserConfigReserved) as error:
                self.verdict.note(f"no values could be made up that fit the schema ({error.text}): not all was tried")
                continue
            self._render(dict(config))
        return self.verdict

    def _render(self, config: dict[str, Any]) -> None:
        """Render, giving a value to whatever the template turns out to need."""
        guesses: dict[str, int] = {}
        for _ in range(MAX_VARIABLES):
            try:
                self._look_at(render_settings(self._bundle, invented_start(config), _IDENTITY))
            except EndpointMisconfigured as error:
                self._misconfigured(error)
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
            config[name] = sample_of((self._bundle.schema or {})["properties"][name])
            self.verdict.note(f"{name} has to be given by everybody, though the schema does not require it")
            return True
        if declared or number >= len(_GUESSES) or (number == 0 and name in config):
            self.verdict.note(f"with {name}={json.dumps(config.get(name))}, made up: {error.fields['reason']}")
            return False
        guesses[name], config[name] = number, _GUESSES[number]
        return True

    def _look_at(self, settings: UepSettings) -> None:
        """Note options that have no effect here. Raises EndpointMisconfigured for an unknown provider or launcher."""
        for key in settings.not_applicable:
            self.verdict.note(f"{self._at(key)}: {key}: means nothing here, and is ignored")
        lists = function_lists(self._bundle.allowed_functions, settings.allowed_functions, self._bundle.function_pins)
        if lists and not _only_json(settings.engine.allowed_serializers):
            self.verdict.note(
                "allowed_functions: pickled arguments can carry code of their own; to run nothing but the listed "
                "code, let engine.allowed_serializers accept JSONData alone for data"
            )
        if isinstance(settings.engine, GlobusComputeSettings):
            from user_endpoint.engines.htex.provider import Plan  # and with it Parsl, which only such templates pay for

            self._look_at_provider(settings.engine, Plan(settings.engine).name)

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

    def _misconfigured(self, error: EndpointMisconfigured) -> None:
        """Describe the mistake and, if it is known, the line."""
        cause, detail = error.__cause__, error.detail
        if isinstance(cause, YamlInvalid):
            self.verdict.problem(self._line_like(cause.excerpt), f"{cause.reason}: {cause.excerpt}")
        elif isinstance(cause, SettingsInvalid):
            self.verdict.problem(self._line_of_key(cause.path), str(cause))
        else:
            where = re.match(r"(.+?): line (\d+)", detail)
            key = re.match(r"(engine[a-z_.]*|allowed_functions): ", detail)
            if where and where[1] in self._bundle.templates:
                self.verdict.problem((where[1], int(where[2])), detail[where.end() + 2 :])
            else:
                self.verdict.problem(self._line_of_key(key[1]) if key else (self._bundle.template_name, 0), detail)

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


def _is_key(line: str, name: str) -> bool:
    match = _KEY.match(line.strip())
    return match is not None and match[1] == name


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


def main() -> None:
    """Read the bundle, try it, print the verdict."""
    if os.geteuid() == 0:
        sys.exit("user_endpoint.template_check: refuses to run as root")
    signal.alarm(DEADLINE_S)  # a template that does not end
    with open(int(sys.argv[1]), "rb", closefd=False) as file:
        bundle = decode_bundle(file.read())
    verdict = Trial(bundle, *sys.argv[2:3]).run()
    json.dump({"problems": verdict.problems, "notes": verdict.notes}, sys.stdout)


if __name__ == "__main__":
    main()
