"""What `mep adopt` makes of an endpoint directory of Globus Compute: five files, and the fate of each key and file.

The directory may belong to another account than the one that runs this. Files are opened without following links and
only if they belong to the directory's owner, so that account can't have root publish a file that it can't read itself.
Nothing here is executed, and templates are only parsed.
"""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_type_hints

import yaml

from mep.boundary.errors import ConfigRefused
from mep.cli.exit_codes import CliFailed, Exit
from mep.config import paths as names
from mep.config.option_docs import commented_config
from mep.config.options import IGNORED_KEYS, MOVED_KEYS, EndpointOptions
from mep.config.parser import read_document
from mep.config.template_files import text_of
from mep_wire.limits import MAX_BUNDLE_BYTES

TEMPLATES = "templates"
"""Directory for the template where it includes files that would not count beside config.yaml."""
_JINJA = (".j2", ".jinja", ".jinja2")
_EXAMPLE_MAPPING = "example_identity_mapping_config.json"
_GLOBUS_PAM_SERVICE = "globus-compute-endpoint"
_MAX_FILES = 1000
_MAX_VALUES = 100_000
Fate = Literal["kept", "changed", "ignored", "added"]


@dataclass(frozen=True, slots=True)
class KeyFate:
    """What became of one key of config.yaml, or of one file."""

    name: str
    fate: Fate
    why: str = ""


@dataclass
class Adopted:
    """The files of the new directory by relative name, and how they came about."""

    files: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    """The keys of config.yaml, those of sections with a dot."""
    fates: list[KeyFate] = field(default_factory=list)
    endpoint_id: str = ""

    @property
    def config(self) -> str:
        """The text of config.yaml."""
        return commented_config(self.values)

    def note(self, name: str, fate: Fate, why: str = "") -> None:
        """Add the fate of a key or file."""
        self.fates.append(KeyFate(name, fate, why))


class Source:
    """The directory to adopt."""

    def __init__(self, directory: Path) -> None:
        """Raises CliFailed if it is no directory."""
        self.top = directory.absolute()
        if not self.top.is_dir():
            raise CliFailed(f"{directory}: is no directory", Exit.USAGE)
        self._owner = self.top.stat().st_uid
        self._opened: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.top / name).is_file()

    def path(self, value: str) -> Path:
        """Return the path that a key gives, relative ones from the directory. Raises ConfigRefused."""
        try:
            return self.top / Path(value).expanduser()
        except RuntimeError as error:  # the home of an account that there is not
            raise ConfigRefused(value, "", str(error)) from None

    def text(self, path: Path) -> str:
        """Return the text of a file. Raises ConfigRefused."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                self._check(path, os.fstat(descriptor))
                data = file.read(MAX_BUNDLE_BYTES + 1)
        except OSError as error:
            raise ConfigRefused(str(path), "", f"{error.strerror}: copy the file itself there") from None
        if len(data) > MAX_BUNDLE_BYTES:
            raise ConfigRefused(str(path), "", f"larger than {MAX_BUNDLE_BYTES} bytes")
        self._opened.add(str(path))
        return text_of(data, str(path))

    def _check(self, path: Path, info: os.stat_result) -> None:
        if not stat.S_ISREG(info.st_mode):
            raise ConfigRefused(str(path), "", "is no regular file")
        if os.geteuid() == 0 and info.st_uid != self._owner:
            remedy = f"if it belongs to the endpoint, run: chown {self._owner} {path}"
            raise ConfigRefused(
                str(path), "", f"belongs to uid {info.st_uid}, and {self.top} to {self._owner}; {remedy}"
            )

    def left_over(self) -> list[str]:
        """Return the files of the directory that were not read."""
        return sorted(one.name for one in self.top.iterdir() if str(one) not in self._opened)


def adopted(directory: Path, *, privileged: bool, relay_url: str | None) -> Adopted:
    """Return what an endpoint directory becomes. Raises CliFailed and ConfigRefused."""
    source, result = Source(directory), Adopted()
    given = _read_config(source)
    _config(source, given, result, privileged=privileged, relay_url=relay_url)
    _template(source, given, result)
    _schema_and_environment(source, given, result)
    if privileged:
        _mapping(source, given, result)
    result.endpoint_id = _endpoint_id(source, result)
    for name in source.left_over():
        result.note(name, "ignored", "not a file of an endpoint's configuration here")
    read_document(result.config, f"{directory}/{names.CONFIG}, adopted")
    return result


def _read_config(source: Source) -> dict[str, Any]:
    if source.has("config.py"):
        reason = f"is a program, and is not run here: write its values into {names.CONFIG}"
        raise ConfigRefused(str(source.top / "config.py"), "", reason)
    path = source.top / names.CONFIG
    if not source.has(names.CONFIG):
        raise ConfigRefused(str(path), "", "there is none: this is no directory of an endpoint")
    try:
        found = _loaded(source.text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigRefused(where, "", f"not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ConfigRefused(str(path), "", "nested too deeply") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigRefused(str(path), "", "must be a mapping of keys to values")
    return found


def _loaded(text: str) -> Any:
    """Return what a YAML text says. Raises yaml.YAMLError, also if its aliases stand for very many values."""
    try:
        found = yaml.safe_load(text)
    except ValueError as error:  # a date or number that there is not
        raise yaml.YAMLError(str(error)) from None
    waiting, count = [found], 0
    while waiting:
        one, count = waiting.pop(), count + 1
        if count > _MAX_VALUES:
            raise yaml.YAMLError(f"more than {_MAX_VALUES} values, aliases (*name) written out")
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set):
            waiting += one
    return found


_FILE_KEYS = ("identity_mapping_config_path", "user_config_template_path", "user_config_schema_path")
_SECTIONS = frozenset(
    name for name, kind in get_type_hints(EndpointOptions).items() if isinstance(kind, type) and is_dataclass(kind)
)


def _config(
    source: Source, given: Mapping[str, Any], result: Adopted, *, privileged: bool, relay_url: str | None
) -> None:
    """Note and convert each key. Those that restrict access are kept: registration fails until the relay has them."""
    for key, value in given.items():
        _key(source, key, value, result)
    if privileged and result.values.get("multi_user") is not True:
        result.values["multi_user"] = True
        result.note("multi_user", "added", "an endpoint of root's serves many people")
    if relay_url is not None:
        result.values["relay_url"] = relay_url
        result.note("relay_url", "added", "from --relay")


def _key(source: Source, key: str, value: Any, result: Adopted) -> None:
    declared = EndpointOptions.__dataclass_fields__
    if key in _FILE_KEYS or key in MOVED_KEYS:
        return  # noted where the file is read
    if value is None or (key == "display_name" and value == "None"):
        result.note(key, "ignored", "it is empty")
    elif key == "pam":
        _pam(value, result)
    elif key == "audit_log_path" and not _usable_log(value):
        result.note(key, "changed", "its directory is not there: audit.log in the state directory is used")
    elif key in _SECTIONS and isinstance(value, dict):
        result.values |= {f"{key}.{name}": one for name, one in value.items()}
        result.note(key, "kept")
    elif key in declared:
        result.values[key] = [str(one) for one in value] if isinstance(value, list) else value
        result.note(key, "kept")
    elif key in IGNORED_KEYS:
        result.note(key, "ignored", IGNORED_KEYS[key])
    else:
        result.note(key, "ignored", "there is no such key here")


def _usable_log(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("/") and Path(value).parent.is_dir()


def _pam(value: Any, result: Adopted) -> None:
    section = value if isinstance(value, dict) else {}
    enable = bool(section.get("enable", True))
    service = str(section.get("service_name", _GLOBUS_PAM_SERVICE))
    result.values |= {"pam.enable": enable, "pam.service_name": service} if enable else {"pam.enable": False}
    result.note("pam", "kept", f"with the service {service} of /etc/pam.d" if enable else "")


def _template(source: Source, given: Mapping[str, Any], result: Adopted) -> None:
    key = "user_config_template_path"
    configured = given.get(key)
    moved = {name: value for name, value in given.items() if name in MOVED_KEYS}
    found = [name for name in (names.TEMPLATE, names.TEMPLATE_OLD) if source.has(name)]
    if configured is None and not found:
        _template_of_engine(moved, result)
        return
    for name in moved:
        result.note(name, "ignored", "the template decides")
    path = source.path(str(configured)) if configured is not None else source.top / found[0]
    used = dict(_with_includes(source, path))
    below = "" if all(PurePosixPath(name).suffix in _JINJA for name in used if name != path.name) else f"{TEMPLATES}/"
    own = names.TEMPLATE if not below else path.name
    for name, text in used.items():
        result.files[below + (own if name == path.name else name)] = text
    if below:
        result.values[key] = below + own
    if configured is not None or below:
        result.note(key, "changed", f"copied to {below}{own}")
    result.values["quoting"] = "json"
    result.note("quoting", "added", "json: texts reach the template with quotes, as in Globus Compute")


def _template_of_engine(moved: Mapping[str, Any], result: Adopted) -> None:
    """Make the engine of a config.yaml a template without variables."""
    if not moved:
        result.note(names.TEMPLATE, "added", "the default one: the directory has none")
        return
    text = yaml.safe_dump(dict(moved), sort_keys=False, allow_unicode=True)
    result.files[names.TEMPLATE] = f"{{% raw %}}\n{text}{{% endraw %}}\n" if "{" in text else text
    for name in moved:
        result.note(name, "changed", f"moved to {names.TEMPLATE}")


def _with_includes(source: Source, path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and text of a template and of those that it may use. Raises ConfigRefused."""
    top, waiting = path.parent, [path.name]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen or len(seen) > _MAX_FILES:
            continue
        seen.add(name)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ConfigRefused(str(path), "", f"includes {name!r}, which is outside of its directory")
        if name != path.name and not (top / name).is_file():
            continue  # `ignore missing`; otherwise check says where it is used
        text = source.text(top / name)
        yield name, text
        waiting += _included(text, top)


def _included(text: str, top: Path) -> list[str]:
    from jinja2 import Environment, TemplateSyntaxError
    from jinja2.meta import find_referenced_templates

    try:
        used = set(find_referenced_templates(Environment(autoescape=False, optimized=False).parse(text)))  # noqa: S701
    except (TemplateSyntaxError, RecursionError):
        return []  # check names the line
    chosen_at_a_start = None in used
    others = [one.name for one in top.iterdir() if one.suffix in _JINJA] if chosen_at_a_start else []
    return [*(one for one in used if one is not None), *others]


def _schema_and_environment(source: Source, given: Mapping[str, Any], result: Adopted) -> None:
    key = "user_config_schema_path"
    if given.get(key) is not None:
        result.files[names.SCHEMA] = source.text(source.path(str(given[key])))
        result.note(key, "changed", f"copied to {names.SCHEMA}")
    elif source.has(names.SCHEMA):
        result.files[names.SCHEMA] = source.text(source.top / names.SCHEMA)
    elif names.TEMPLATE in result.files or result.values.get("user_config_template_path"):
        result.files[names.SCHEMA] = '{"type": "object"}\n'
        result.note(names.SCHEMA, "added", "it allows any option: the directory has none")
    if source.has(names.ENVIRONMENT):
        result.files[names.ENVIRONMENT] = source.text(source.top / names.ENVIRONMENT)


def _mapping(source: Source, given: Mapping[str, Any], result: Adopted) -> None:
    key = "identity_mapping_config_path"
    configured = given.get(key)
    if configured is None:
        result.note(key, "added", f"{names.MAPPING} maps no one yet: the directory names no mapping")
        return
    path = source.path(str(configured))
    result.files[names.MAPPING] = source.text(path)
    example = "; it is the example, which maps no one of yours" if path.name == _EXAMPLE_MAPPING else ""
    result.note(key, "changed", f"copied to {names.MAPPING}{example}")


def _endpoint_id(source: Source, result: Adopted) -> str:
    if not source.has("endpoint.json"):
        return ""
    try:
        found = _loaded(source.text(source.top / "endpoint.json"))  # YAML accepts JSON
        kept = str(uuid.UUID(str(found["endpoint_id"])))
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        result.note("endpoint.json", "ignored", "it holds no id")
        return ""
    result.note("endpoint.json", "kept", f"people's scripts go on with the id {kept}")
    return kept
