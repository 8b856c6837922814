"""The settings of a rendered template: every option of a user endpoint and its engine, declared once.

Names and defaults are those of Globus Compute's endpoint configuration, so that a site's template works
unchanged. Imports msgspec alone, since every user endpoint pays for it. The document comes from
`user_endpoint.render`, already rendered; nothing in it is trusted to have the right shape.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]

MINIMUM_HEARTBEAT_S = 5.0

NOT_APPLICABLE = frozenset(
    {
        "amqp_port",
        "authentication_policy",
        "detach_endpoint",
        "environment",
        "heartbeat_threshold",
        "high_assurance",
        "local_compute_services",
        "log_dir",
        "multi_user",
        "paths",
        "stderr",
        "stdout",
        "subscription_id",
    }
)
"""Keys of a Globus Compute configuration that mean nothing here: accepted, and named in a warning."""


class SettingsInvalid(Exception):
    """{path}: {reason}. `path` leads to the key in the document, e.g. engine.provider.walltime.

    `about_name`: the key itself is refused, whatever its value is.
    """

    def __init__(self, path: str, reason: str, *, about_name: bool = False) -> None:
        self.path, self.reason, self.about_name = path, reason, about_name
        super().__init__(f"{path}: {reason}" if path else reason)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class AddressSettings(_Section, frozen=True):
    """How to find the address at which workers reach the user endpoint's host."""

    type: Literal["address_by_interface", "address_by_hostname", "address_by_route"]
    """By the address of an interface, by this host's name, or by the route to the outside."""
    ifname: str | None = None
    """Network interface, for address_by_interface."""

    def __post_init__(self) -> None:
        """Raises ValueError where `ifname` is missing or has no meaning."""
        if (self.type == "address_by_interface") != (self.ifname is not None):
            raise ValueError("`ifname` belongs to address_by_interface, which needs it")


class JobStatusSettings(_Section, frozen=True):
    """When blocks are added and removed."""

    max_idletime: Seconds = 120.0
    """Seconds for which a block above min_blocks may be idle before it is ended."""
    strategy_period: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Seconds between two looks at how many blocks are wanted."""


class StrategySettings(_Section, frozen=True):
    """The older way to say when blocks are removed."""

    type: Literal["SimpleStrategy"] = "SimpleStrategy"
    """The only one there is."""
    max_idletime: Seconds = 300.0
    """Seconds for which a block above min_blocks may be idle before it is ended."""
    interval: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """Accepted for old configurations; see job_status_kwargs."""
    threshold: NonNegative = 20
    """Accepted for old configurations; has no effect."""


class ManagerSelectorSettings(_Section, frozen=True):
    """Which of several free nodes gets a task."""

    type: Literal["RandomManagerSelector", "BlockIdManagerSelector"]
    """Any of them, or those of the oldest block first, so that others become idle and can be given back."""


class ProcessPoolSettings(_Section, frozen=True, tag_field="type", tag="ProcessPoolEngine"):
    """Tasks run in worker processes on the user endpoint's own host."""

    python: str | None = None
    """The Python that runs tasks, if not the endpoint's own; where worker_init activates an environment, that one."""
    worker_init: str | None = None
    """Shell commands run before the workers start, in the shell that starts them."""

    label: str = "ProcessPoolEngine"
    """A name for logs."""
    max_workers: Count | None = None
    """Worker processes; by default one for each processor."""
    max_tasks_per_child: Count | None = None
    """Tasks after which a worker process is replaced by a new one."""
    max_retries_on_system_failure: NonNegative = 0
    """Times a begun task is run again after its worker or user endpoint was lost, if it has no max_attempts itself."""
    working_dir: str | None = None
    """Directory in which tasks run, relative to the user endpoint's run directory; the home directory if not given."""
    run_in_sandbox: bool = False
    """Run each task in a directory of its own, named after the task, below working_dir (tasks_working_dir)."""
    allowed_serializers: list[str] | None = None
    """The only strategies in which functions and arguments may be serialized, by Globus Compute's names, at least one
    for functions and one for data, e.g. globus_compute_sdk.serialize.CombinedCode; any by default."""


class ThreadPoolSettings(_Section, frozen=True, tag_field="type", tag="ThreadPoolEngine"):
    """Tasks run in threads of one process on the user endpoint's own host; a running one cannot be killed."""

    label: str = "ThreadPoolEngine"
    """A name for logs."""
    max_workers: Count | None = None
    """Threads; by default one for each processor."""
    max_retries_on_system_failure: NonNegative = 0
    """Times a task is run again that had begun and was lost with the user endpoint, unless it says so itself
    (max_attempts)."""
    allowed_serializers: list[str] | None = None
    """The only strategies in which functions and arguments may be serialized, by Globus Compute's names, at least one
    for functions and one for data, e.g. globus_compute_sdk.serialize.CombinedCode; any by default."""


class GlobusComputeSettings(_Section, frozen=True, tag_field="type", tag="GlobusComputeEngine"):
    """Tasks run in blocks of workers that a Parsl provider starts: Parsl's HighThroughputExecutor."""

    label: str = "GlobusComputeEngine"
    """A name for logs and for the scheduler's jobs."""
    provider: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "LocalProvider"})
    """A Parsl provider: `type` and the keyword arguments of that class; `launcher` likewise."""
    nodes_per_block: Count | None = None
    """The provider's nodes_per_block, where the provider's own mapping does not say it."""
    worker_init: str | None = None
    """The provider's worker_init, where the provider's own mapping does not say it."""
    address: str | AddressSettings | None = None
    """Address at which workers reach this host; by default all of its addresses are offered."""
    loopback_address: str = "127.0.0.1"
    """Address on which the user endpoint and its interchange speak to each other."""
    worker_port: Port | None = None
    """The one port workers connect to."""
    worker_port_range: tuple[Port, Port] | None = None
    """First and last port of which one is chosen for workers; outside the kernel's ephemeral range if not given."""
    interchange_port_range: tuple[Port, Port] | None = None
    """First and last port of which three are chosen on the loopback address; likewise."""
    cores_per_worker: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Cores for each worker; less than 1 puts several on one."""
    mem_per_worker: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Gigabytes of memory for each worker."""
    max_workers_per_node: Count | None = None
    """Most workers on one node; otherwise as many as its cores, memory and accelerators allow."""
    cpu_affinity: str = "none"
    """none, block, alternating, block-reverse, or list:0-3:4-7 with one part for each worker."""
    available_accelerators: NonNegative | list[int | str] = msgspec.field(default_factory=list)
    """Accelerators to which workers are pinned: how many, or their names."""
    prefetch_capacity: NonNegative | None = None
    """Tasks a node may hold beyond its workers. Where it is not given: 0 while more than one node can
    run, since the first node would otherwise take tasks that an idle one could run."""
    max_retries_on_system_failure: NonNegative = 0
    """Times a begun task is run again after its worker or user endpoint was lost, if it has no max_attempts itself."""
    strategy: Literal["simple", "htex_auto_scale", "none"] | StrategySettings | None = None
    """How many blocks there are: simple (the default) adds them as tasks need them and removes them when there have
    been no tasks for max_idletime, htex_auto_scale removes each that is idle, none keeps to init_blocks."""
    job_status_kwargs: JobStatusSettings = msgspec.field(default_factory=JobStatusSettings)
    """When blocks are added and removed."""
    heartbeat_period: Count = 30
    """Seconds between heartbeats of nodes."""
    heartbeat_threshold: Count = 120
    """Seconds without a heartbeat after which a node is taken for lost."""
    drain_period: Count | None = None
    """Seconds after its start at which a node stops taking tasks."""
    address_probe_timeout: Count | None = None
    """Seconds for which a node tries to reach this host; by default 30."""
    block_error_handler: bool = True
    """Fail waiting tasks once several blocks in a row have failed. With false they go on waiting, and blocks are tried
    again from time to time."""
    manager_selector: ManagerSelectorSettings = msgspec.field(
        default_factory=lambda: ManagerSelectorSettings(type="RandomManagerSelector")
    )
    """Which of several free nodes gets a task."""
    poll_period: Count | None = None
    """Accepted for old configurations, and without effect: messages wake everything at once here."""
    encrypted: bool = True
    """Encrypt between user endpoint and workers. A multi-user endpoint refuses false."""
    worker_debug: bool = False
    """Log everything that the interchange does."""
    worker_logdir_root: str | None = None
    """Where nodes write their logs, if not in the user endpoint's run directory."""
    working_dir: str | None = None
    """Directory in which workers run, relative to the user endpoint's run directory; tasks_working_dir there."""
    launch_cmd: str | None = None
    """Command that starts a node's workers, in place of the built-in one. Parsl's placeholders apply."""
    block_start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Seconds that a running block may take to register its workers before it is taken for broken."""
    run_in_sandbox: bool = False
    """Run each task in a directory of its own, named after the task, below working_dir."""
    allowed_serializers: list[str] | None = None
    """The only strategies in which functions and arguments may be serialized, by Globus Compute's names, at least one
    for functions and one for data, e.g. globus_compute_sdk.serialize.CombinedCode; any by default."""
    container_type: Literal["apptainer", "singularity", "docker", "podman", "podman-hpc", "custom"] | None = None
    """The program that runs the workers of each node in a container."""
    container_uri: str | None = None
    """The image. Its python3 needs mep-sdk[worker] unless it has the user endpoint's own version."""
    container_cmd_options: str | None = None
    """More options for it, as the shell reads them. For custom the whole command: {EXECUTOR_LAUNCH_CMD} stands for
    the workers' own command, {EXECUTOR_RUNDIR} for the run directory."""

    def __post_init__(self) -> None:
        """Raises ValueError where the provider is not one."""
        if not isinstance(self.provider.get("type"), str):
            raise ValueError("`provider` needs a `type`, e.g. LocalProvider or SlurmProvider")
        if self.cpu_affinity not in ("none", "block", "alternating", "block-reverse") and not re.fullmatch(
            r"list(:[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*)+", self.cpu_affinity
        ):
            raise ValueError("`cpu_affinity` is none, block, alternating, block-reverse or list:0-3:4-7")
        self._check_container()

    def _check_container(self) -> None:
        if self.container_type is None:
            if self.container_uri or self.container_cmd_options:
                raise ValueError("`container_uri` and `container_cmd_options` need a `container_type`")
            return
        if self.launch_cmd is not None:
            raise ValueError("`launch_cmd` and `container_type` exclude each other; use container_type: custom")
        if self.container_type != "custom":
            if not self.container_uri:
                raise ValueError("`container_type` needs a `container_uri`")
        elif "{EXECUTOR_LAUNCH_CMD}" not in (self.container_cmd_options or ""):
            raise ValueError("`container_cmd_options` of container_type custom must hold {EXECUTOR_LAUNCH_CMD}")


class GlobusMPISettings(GlobusComputeSettings, frozen=True, tag_field="type", tag="GlobusMPIEngine"):
    """MPI tasks of several shapes share the nodes of each block, as each task's resource_specification asks.

    It takes every key of GlobusComputeEngine but max_workers_per_node; those here have defaults of their own.
    """

    label: str = "GlobusMPIEngine"
    """A name for logs and for the scheduler's jobs."""
    mpi_launcher: Literal["mpiexec", "srun", "aprun"] = "mpiexec"
    """The program that starts the ranks of a task; its command is in PARSL_MPI_PREFIX."""
    max_workers_per_block: Count = 1
    """Most tasks at once in one block, however few nodes they take."""
    run_in_sandbox: bool = True
    """Run each task in a directory of its own, named after the task, below working_dir."""

    def __post_init__(self) -> None:
        """Raises ValueError where blocks would not be shared as MPI tasks need it."""
        super().__post_init__()
        launcher = self.provider.get("launcher")
        if isinstance(launcher, dict) and launcher.get("type") != "SimpleLauncher":
            raise ValueError("`provider.launcher` is SimpleLauncher (the default here): mpi_launcher starts the ranks")
        if self.max_workers_per_node is not None:
            raise ValueError("`max_workers_per_node` has no meaning here; use `max_workers_per_block`")


EngineSettings = ProcessPoolSettings | ThreadPoolSettings | GlobusComputeSettings | GlobusMPISettings
"""Every engine a template may name in engine.type."""


class UepSettings(_Section, frozen=True):
    """The whole of a rendered template."""

    engine: EngineSettings
    """The engine that runs the tasks: a mapping with `type` and that engine's keys."""
    display_name: str | None = None
    """A name for people."""
    debug: bool = False
    """Log more."""
    heartbeat_period: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """Seconds: the unit in which the two limits below count. At least 5."""
    idle_heartbeats_soft: NonNegative = 0
    """Periods without a task or unsent result after which the user endpoint ends; 0 for never."""
    idle_heartbeats_hard: NonNegative = 5760
    """Periods in which nothing moved after which it ends even if tasks are outstanding (only if soft is not 0)."""
    max_attempts_limit: Count | None = None
    """Most attempts a task is given that asks for more with max_attempts; unlimited by default."""
    allowed_functions: list[str] | None = None
    """Only these functions run: `sha256:` and the digest of the code, or an id that config.yaml lists. By default all
    functions run."""
    endpoint_setup: str | None = None
    """Shell commands run before the engine starts."""
    endpoint_teardown: str | None = None
    """Shell commands run after the engine has stopped."""
    not_applicable: tuple[str, ...] = ()
    """Keys the template sets that mean nothing here, for a warning."""
    lines: dict[str, int] = {}
    """The line of each key in the rendered text, by its path."""

    @property
    def period_s(self) -> float:
        """The heartbeat period in seconds, no shorter than the minimum."""
        return max(MINIMUM_HEARTBEAT_S, self.heartbeat_period)

    @property
    def idle_soft_s(self) -> float | None:
        """Seconds of idleness after which to end, or None for never."""
        return self.idle_heartbeats_soft * self.period_s or None

    @property
    def idle_hard_s(self) -> float | None:
        """Seconds without movement after which to end even with tasks outstanding, or None for never."""
        return self.idle_heartbeats_hard * self.period_s or None if self.idle_heartbeats_soft else None


_ENGINES: dict[str, type[msgspec.Struct]] = {
    "ProcessPoolEngine": ProcessPoolSettings,
    "ThreadPoolEngine": ThreadPoolSettings,
    "GlobusComputeEngine": GlobusComputeSettings,
    "GlobusMPIEngine": GlobusMPISettings,
}


decode_settings = msgspec.msgpack.Decoder(UepSettings).decode
"""Returns the settings that one process has sent another. As a decoder it also makes convert() below safe in threads:
mep_wire.struct_info says why."""


def settings_from(document: object, lines: Mapping[str, int] | None = None) -> UepSettings:
    """Return the settings in a rendered document. Keys that are null or empty text count as not given.

    `lines` gives the line of each key, for mistakes found later. Raises SettingsInvalid, naming the key's
    path and the accepted values.
    """
    if not isinstance(document, Mapping):
        raise SettingsInvalid("", "the configuration is not a mapping of keys to values")
    if strange := [key for key in document if not isinstance(key, str)]:
        raise SettingsInvalid(str(strange[0]), "a key must be text")
    plain = _without_empty(document)
    for key in _INTERNAL & plain.keys():
        raise SettingsInvalid(key, "unknown key", about_name=True)
    ignored = tuple(sorted(NOT_APPLICABLE & plain.keys()))
    kept = {key: value for key, value in plain.items() if key not in NOT_APPLICABLE}
    _check_engine_type(kept)
    _check_walltime(kept)
    try:
        settings = msgspec.convert({**kept, "not_applicable": ignored, "lines": dict(lines or {})}, UepSettings)
    except msgspec.ValidationError as error:
        raise _explained(str(error), kept) from error
    _check_functions(settings.allowed_functions)
    return settings


_INTERNAL = frozenset({"not_applicable", "lines"})


def located(reason: str, lines: Mapping[str, int]) -> str:
    """Return a reason that begins with a key's path, with the line of that key, or of its parent if it is missing."""
    line = line_of(reason.partition(":")[0], lines)
    return f"line {line} of the rendered text: {reason}" if line else reason


def line_of(path: str, lines: Mapping[str, int]) -> int:
    """Return the line of the key `path`, or of its nearest parent that has one; 0 if none has."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines[path] if path else 0


def _without_empty(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_empty(item) for key, item in value.items() if item not in (None, "")}
    return value


def _check_engine_type(document: Mapping[str, Any]) -> None:
    engine = document.get("engine")
    if isinstance(engine, dict):
        engine.setdefault("type", "GlobusComputeEngine")  # as in older configurations of Globus Compute
    if engine is None:
        raise SettingsInvalid("engine", f"missing; give one of type {', '.join(_ENGINES)}")
    if not isinstance(engine, Mapping):
        raise SettingsInvalid("engine", "is not a mapping with a `type`")
    kind = engine.get("type")
    if not isinstance(kind, str) or kind not in _ENGINES:
        raise SettingsInvalid("engine.type", f"{kind!r} is not one of {', '.join(_ENGINES)}")


def _check_walltime(document: Mapping[str, Any]) -> None:
    """Raises SettingsInvalid for a walltime that YAML 1.1 has read as a number."""
    provider = document["engine"].get("provider")
    if isinstance(provider, Mapping) and isinstance(walltime := provider.get("walltime"), int | float):
        raise SettingsInvalid(
            "engine.provider.walltime",
            f"is the number {walltime}, and must be text such as '10:30:00' (unquoted, YAML may read it as a number)",
        )


def _check_functions(entries: list[str] | None) -> None:
    """Raises SettingsInvalid for an entry that can be no function."""
    if not entries:
        return
    from mep_wire.function_lists import entry_problem  # only such templates pay for it

    if problem := next((problem for entry in entries if (problem := entry_problem(entry))), ""):
        raise SettingsInvalid("allowed_functions", problem)


def _explained(message: str, document: Mapping[str, Any]) -> SettingsInvalid:
    """Turn msgspec's sentence into the key's path, the reason and, for an unknown key, the nearest known one."""
    reason, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".").replace("[...]", "")
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL)
    if unknown:
        key = unknown.group(1)
        reason = unknown_key_reason(key, _known_keys(path, document))
        return SettingsInvalid(_joined(path, key), reason, about_name=True)
    if where.startswith("key` in `$"):
        return SettingsInvalid(where.removeprefix("key` in `$").strip("`.") or "", "a key must be text")
    missing = re.fullmatch(r"Object missing required field `(.*)`", reason)
    if missing:
        return SettingsInvalid(_joined(path, missing.group(1)), "missing")
    return SettingsInvalid(path, reason)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _known_keys(path: str, document: Mapping[str, Any]) -> tuple[str, ...]:
    sections: dict[str, type[msgspec.Struct]] = {
        "": UepSettings,
        "engine": _ENGINES[document["engine"]["type"]],
        "engine.address": AddressSettings,
        "engine.job_status_kwargs": JobStatusSettings,
        "engine.strategy": StrategySettings,
        "engine.manager_selector": ManagerSelectorSettings,
    }
    section = sections.get(path)
    if section is None:
        return ()
    fields = [field for field in section.__struct_fields__ if field not in _INTERNAL]
    return tuple(fields if path != "engine" else ["type", *fields])


def unknown_key_reason(key: str, known: tuple[str, ...]) -> str:
    """Return a sentence about an unknown key that names the nearest known one and all that are accepted."""
    import difflib  # only a refusal needs it

    near = [name for name in known if name.startswith(key)] or difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"unknown key{hint} Accepted: {', '.join(known)}"
