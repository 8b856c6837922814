"""The relay's settings: every key of `mep-relay.toml`, declared once with type, bounds, default and text.

The options of `mep-relay serve`, the checks and docs/relay-configuration.md come from here. An option of the command
line replaces the file's key of the same name. A wrong key or value stops the start, with file, key and reason.
Called by the command line and the server, as the relay's account.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints
from urllib.parse import parse_qsl, urlsplit

import click
import msgspec
from msgspec import Meta

from mep.boundary.file_trust import ours
from mep_wire.limits import MAX_PAYLOAD_BYTES, MAX_TASKS_PER_SUBMIT
from relay.dispatch.submissions import PersonLimits
from relay.retention import Periods

_DAY_S = 86400.0
_MB = 1024 * 1024
MAX_CONFIG_BYTES = 256 * 1024
MAX_SECRET_BYTES = 64 * 1024
NAME = "mep-relay.toml"
STATE_AS_ROOT = Path("/var/lib/mep-relay")
CONFIG_AS_ROOT = Path("/etc/mep-relay.toml")
CREDENTIAL = "credential:"
"""Begins the name of a secret that systemd hands over (LoadCredential=)."""


class ConfigRefused(Exception):
    """The configuration cannot be used. The text gives file, key and reason."""


_Port = Annotated[int, Meta(ge=0, le=65535)]
_Most = Annotated[float, Meta(ge=0)]


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a relay is to run. The text of a key's `Meta` is its documentation."""

    host: Annotated[str, Meta(description="Address for HTTP.")] = "127.0.0.1"
    port: Annotated[_Port, Meta(description="Port for HTTP; 0: any free.")] = 8650
    tls_certificate: Annotated[
        str,
        Meta(description="File with the certificate chain in PEM: the relay then serves HTTPS. SIGHUP reads it again."),
    ] = ""
    tls_key: Annotated[
        str, Meta(description="File with the certificate's private key in PEM, or `credential:NAME` of systemd.")
    ] = ""
    trusted_proxies: Annotated[
        list[str],
        Meta(description="Addresses and networks of proxies, whose X-Forwarded-For and -Proto count."),
    ] = []
    metrics_port: Annotated[
        _Port,
        Meta(
            description="Port of 127.0.0.1 for a monitoring system of this host: /metrics, and /readyz with the "
            "reason; 0: none. On the port for HTTP, /metrics needs a token."
        ),
    ] = 0
    link_host: Annotated[str, Meta(description="Address for endpoints.")] = "127.0.0.1"
    link_port: Annotated[_Port, Meta(description="Port for endpoints; 0: any free.")] = 8651
    link_address: Annotated[
        str,
        Meta(
            description="Address at which endpoints reach the link, if it is not that of --link-host and --link-port "
            "(tcp://relay.example.edu:8651)."
        ),
    ] = ""
    database: Annotated[
        str,
        Meta(
            description="Address of a PostgreSQL database (postgresql://mep@db.example.edu/mep) for tasks, people and "
            "endpoints; empty: relay.db, an SQLite file in the state directory."
        ),
    ] = ""
    database_password: Annotated[
        str, Meta(description="File with the database's password, or `credential:NAME` of systemd.")
    ] = ""
    people: Annotated[
        str,
        Meta(description="TOML file with identity providers and other ways to log in; empty: built-in accounts only."),
    ] = ""
    retention_days: Annotated[_Most, Meta(description="How long ended tasks and their results are kept.")] = 14.0
    delivered_days: Annotated[
        _Most,
        Meta(
            description="How long ended tasks are kept if the stream has sent their results, if that is shorter than "
            "retention_days; 0: as long as others."
        ),
    ] = 0.0
    chunks: Annotated[
        str,
        Meta(
            description="Where payloads over chunk_threshold_kb are kept: a directory or s3://BUCKET/PREFIX; empty: in "
            "the database."
        ),
    ] = ""
    chunk_threshold_kb: Annotated[
        int, Meta(ge=1, le=10240, description="Arguments and results that are larger become chunks.")
    ] = 256
    s3_endpoint: Annotated[
        str, Meta(description="Address of an S3-compatible storage (https://s3.example.edu); empty: that of AWS.")
    ] = ""
    s3_region: Annotated[str, Meta(description="Region of the bucket.")] = "us-east-1"
    s3_key_id: Annotated[str, Meta(description="Access key's id; empty: boto3's own ways.")] = ""
    s3_secret: Annotated[
        str, Meta(description="File with the access key's secret, or `credential:NAME` of systemd.")
    ] = ""
    task_lifetime_days: Annotated[
        _Most,
        Meta(
            description="How long a task may wait until a site takes it, or for a silent site that has taken it; "
            "0: for ever."
        ),
    ] = 14.0
    unused_days: Annotated[
        _Most,
        Meta(description="How long unused functions, empty task groups and user endpoints are kept; 0: for ever."),
    ] = 365.0
    max_stored_gb: Annotated[
        _Most, Meta(description="Largest size of one person's waiting arguments, kept results and functions; 0: any.")
    ] = 50.0
    max_open_tasks_at_endpoint: Annotated[
        int,
        Meta(ge=0, description="Most unfinished tasks of one person at one endpoint; 0: --max-open-tasks applies."),
    ] = 0
    max_open_tasks: Annotated[int, Meta(ge=1, description="Most unfinished tasks of one person.")] = 2_000_000
    max_requests_per_s: Annotated[
        _Most, Meta(description="Most requests of one person per second, on average; 0: any number.")
    ] = 0.0
    max_tasks_per_s: Annotated[
        _Most, Meta(description="Most tasks that one person may submit per second, on average; 0: any number.")
    ] = 0.0
    max_batch: Annotated[int, Meta(ge=1, le=MAX_TASKS_PER_SUBMIT, description="Most tasks in one submission.")] = (
        MAX_TASKS_PER_SUBMIT
    )
    max_payload_mb: Annotated[
        float, Meta(gt=0, le=MAX_PAYLOAD_BYTES / _MB, description="Largest arguments of one task.")
    ] = MAX_PAYLOAD_BYTES / _MB
    max_result_mb: Annotated[
        float, Meta(gt=0, le=MAX_PAYLOAD_BYTES / _MB, description="Largest result of one task.")
    ] = MAX_PAYLOAD_BYTES / _MB
    max_data_mb: Annotated[
        float,
        Meta(
            ge=0,
            description="Largest arguments or result of one task by reference; 0: none are. Their pieces are kept in "
            "`chunks`, without it in `data` of the state directory. A relay with `database` needs `chunks` for them.",
        ),
    ] = 2048.0
    drain_s: Annotated[
        float,
        Meta(ge=0, le=600, description="How long SIGTERM waits for requests that are under way."),
    ] = 10.0
    log_format: Annotated[Literal["text", "json"], Meta(description="Lines of text, or one JSON object per line.")] = (
        "text"
    )

    @property
    def periods(self) -> Periods:
        """How long things are kept."""
        return Periods(
            retention_s=self.retention_days * _DAY_S,
            lifetime_s=self.task_lifetime_days * _DAY_S,
            unused_s=self.unused_days * _DAY_S,
            delivered_s=self.delivered_days * _DAY_S if self.delivered_days else float("inf"),
        )

    @property
    def limits(self) -> PersonLimits:
        """The most that one person may have."""
        return PersonLimits(
            open_tasks=self.max_open_tasks,
            open_tasks_at_endpoint=self.max_open_tasks_at_endpoint,
            stored_bytes=int(self.max_stored_gb * 1e9),
            requests_per_s=self.max_requests_per_s,
            tasks_per_s=self.max_tasks_per_s,
            batch=self.max_batch,
            payload_bytes=int(self.max_payload_mb * _MB),
            result_bytes=int(self.max_result_mb * _MB),
            data_bytes=int(self.max_data_mb * _MB),
        )


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """One key, as the command line and the documentation show it."""

    name: str
    kind: Any
    """str, int, float, list or a tuple of the allowed words."""
    default: Any
    text: str
    low: float | None
    high: float | None


def options() -> list[Option]:
    """Return every key that is a plain value, in the order of the declaration."""
    hints = get_type_hints(RelaySettings, include_extras=True)
    found = []
    for field in msgspec.structs.fields(RelaySettings):
        kind, *metas = get_args(hints[field.name])
        words = get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
        plain = words or (list if getattr(kind, "__origin__", None) is list else kind)
        if plain in (str, int, float, list) or words:
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            low = next((bound for meta in metas for bound in (meta.ge, meta.gt) if bound is not None), None)
            high = next((meta.le for meta in metas if meta.le is not None), None)
            text = next(meta.description for meta in metas if meta.description)
            found.append(Option(name=field.name, kind=plain, default=default, text=text, low=low, high=high))
    return found


C = TypeVar("C", bound=Callable[..., Any])


def command_line(command: C) -> C:
    """Give a click command an option for every key. The value is None where it is not given."""
    for one in reversed(options()):
        kind = {str: str, int: int, float: float, list: str}.get(one.kind) or click.Choice(one.kind)
        shown = ", ".join(one.default) if isinstance(one.default, list) else f"{one.default}"
        make = click.option(
            "--" + one.name.replace("_", "-"),
            default=None,
            type=kind,
            multiple=one.kind is list,
            show_default=shown or False,
            help=one.text,
        )
        command = make(command)
    return command


def config_path(state: Path) -> Path:
    """Return where the configuration of this state directory is, unless --config says so."""
    return CONFIG_AS_ROOT if state == STATE_AS_ROOT else state / NAME


def load(path: Path, given: Mapping[str, Any] | None = None, *, required: bool = False) -> RelaySettings:
    """Return the settings of a file, with the options that are `given`. Raises ConfigRefused.

    A file that does not exist is empty, unless it is `required`.
    """
    settings = _from_file(path, required=required)
    changes = {key: list(value) if isinstance(value, tuple) else value for key, value in (given or {}).items()}
    changes = {key: value for key, value in changes.items() if value not in (None, [])}
    try:
        settings = msgspec.convert({**msgspec.structs.asdict(settings), **changes}, RelaySettings)
    except msgspec.ValidationError as error:
        key, reason = _key_and_reason(error)
        raise ConfigRefused(f"--{key.replace('_', '-')}: {reason}") from error
    for key, check in _CHECKS.items():
        if problem := check(settings):
            origin = f"--{key.replace('_', '-')}" if key in changes else f"{path}: {key}"
            raise ConfigRefused(f"{origin}: {problem}")
    return settings


def _from_file(path: Path, *, required: bool) -> RelaySettings:
    try:
        data = ours().read(path, MAX_CONFIG_BYTES + 1)
    except FileNotFoundError as error:
        if required:
            raise ConfigRefused(f"{path}: there is no such file") from error
        return RelaySettings()
    except OSError as error:
        raise ConfigRefused(f"{path}: {error.strerror or error}") from error
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigRefused(f"{path}: it has more than {MAX_CONFIG_BYTES} bytes")
    try:
        return msgspec.convert(msgspec.toml.decode(data), RelaySettings)
    except msgspec.ValidationError as error:
        key, reason = _key_and_reason(error)
        raise ConfigRefused(f"{path}: {key}: {reason}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"{path}: it is not TOML: {error}") from error


_decoder = msgspec.json.Decoder(RelaySettings)  # built now, for the conversions: see mep_wire.struct_info
_AT = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?")


def _key_and_reason(error: msgspec.ValidationError) -> tuple[str, str]:
    found = _AT.fullmatch(str(error))
    reason, key = found.groups() if found else (str(error), "")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason)
    if unknown is None:
        return key or "(top level)", reason
    known = [one.name for one in options()]
    near = difflib.get_close_matches(unknown[1], known, n=1)
    hint = f"; is `{near[0]}` meant?" if near else ""
    return unknown[1], f"there is no such key{hint}"


def _tls(settings: RelaySettings) -> str:
    return "" if bool(settings.tls_certificate) == bool(settings.tls_key) else "tls_certificate and tls_key go together"


def _proxies(settings: RelaySettings) -> str:
    for one in settings.trusted_proxies:
        try:
            ipaddress.ip_network(one)
        except ValueError as error:
            return str(error)
    return ""


def _database(settings: RelaySettings) -> str:
    if not settings.database:
        return ""
    try:
        parts = urlsplit(settings.database)
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("postgresql", "postgres"):
        return "must begin with postgresql://"
    if parts.password or any("password" in name for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        return "must not hold the password: name its file in database_password"
    return ""


def _password(settings: RelaySettings) -> str:
    return "" if settings.database or not settings.database_password else "there is no database that it belongs to"


def _chunks(settings: RelaySettings) -> str:
    if not settings.chunks or settings.chunks.startswith(("/", "s3://")):
        return ""
    return "must be an absolute path, or like s3://bucket/prefix"


def _metrics_port(settings: RelaySettings) -> str:
    taken = {settings.port: "port", settings.link_port: "link_port"}.get(settings.metrics_port)
    return f"is that of {taken}" if settings.metrics_port and taken else ""


_CHECKS: Mapping[str, Callable[[RelaySettings], str]] = {
    "tls_key": _tls,
    "trusted_proxies": _proxies,
    "metrics_port": _metrics_port,
    "database": _database,
    "database_password": _password,
    "chunks": _chunks,
}
"""What a value's type and bounds do not say. Each returns why the key is refused."""


def secret(key: str, source: str) -> bytes:
    """Return a secret from its file, or from systemd. Raises ConfigRefused."""
    if source.startswith(CREDENTIAL):
        name, directory = source.removeprefix(CREDENTIAL), os.environ.get("CREDENTIALS_DIRECTORY")
        if not directory or "/" in name:
            raise ConfigRefused(f"{key}: systemd has handed over no credential {name!r} (LoadCredential=)")
        path = Path(directory, name)
    else:
        path = Path(source)
    try:
        data = path.read_bytes() if source.startswith(CREDENTIAL) else ours().read(path, MAX_SECRET_BYTES, secret=True)
    except OSError as error:
        raise ConfigRefused(f"{key}: {path}: {error.strerror or error}") from error
    return data


def secret_text(key: str, source: str) -> str:
    """Return a secret of one line; empty for no source. Raises ConfigRefused."""
    if not source:
        return ""
    try:
        return secret(key, source).decode().strip()
    except UnicodeDecodeError as error:
        raise ConfigRefused(f"{key}: {source}: it is not text") from error
