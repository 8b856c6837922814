"""A batch of tasks to submit together with `Client.batch_run`."""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mep_sdk.argument_checks import FUNCTION_IDS, GROUP_IDS, check_call, check_kind, checked_id
from mep_sdk.compute_serializer import ComputeSerializer
from mep_sdk.encoding import OverLimit
from mep_sdk.serialize import serialize_arguments
from mep_sdk.strategies import Strategylike, name_of, result_ways
from mep_sdk.task_options import Deadline, checked_options
from mep_sdk.version import __version__
from mep_wire import api, limits
from mep_wire.data_frames import MAY_BE_DATA, digests_of, is_data
from mep_wire.errors import PayloadTooLarge
from mep_wire.ids import uuid7
from mep_wire.user_values import check_characters

if TYPE_CHECKING:
    from mep_sdk.data_transfer import DataTransfer

UuidLike = UUID | str
_SURELY_TAKEN_BYTES = 16 * 1024
"""Arguments up to this size are not worth a question about the relay's limit."""


def user_runtime() -> dict[str, str]:
    """Return the data on the person's Python that the site receives and that helps select their user endpoint.

    Holds only facts that matter for running their functions, so that a new patch release starts no second process.
    """
    return {
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "python_implementation": platform.python_implementation(),
        "mep_sdk_version": __version__,
    }


def checked_payload(
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name: str = "the function",
    *,
    as_json: bool = False,
    result_ways: Sequence[str] = (),
    explain: bool = True,
    live_output: bool = False,
    data: Callable[[], DataTransfer] | None = None,
    progress: Any = None,
) -> bytes:
    """Return serialized arguments. `data` gives what sends those to the relay that are too large for a payload: the
    payload refers to them. Raises ArgumentsUnserializable, PayloadTooLarge, and what DataTransfer.payload raises."""
    try:
        payload = serialize_arguments(
            tuple(args),
            kwargs,
            name=name,
            as_json=as_json,
            result_ways=result_ways,
            explain=explain,
            wants_output=True,
            live_output=live_output,
            limit=limits.MAX_PAYLOAD_BYTES if data is not None else 0,
        )
    except OverLimit:
        assert data is not None
        return data().payload(args, kwargs, name, result_ways, progress)
    if len(payload) <= _SURELY_TAKEN_BYTES:
        return payload
    limit = limits.MAX_PAYLOAD_BYTES if data is None else data().payload_limit()
    if len(payload) <= limit:
        return payload
    if data is not None and not as_json:
        return data().payload(args, kwargs, name, result_ways, progress)
    raise PayloadTooLarge(what=f"The argument list of {name}", size=len(payload), limit=limit)


def pieces_of(payloads: Mapping[str, Sequence[bytes]], task_ids: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the pieces that arguments by reference are made of, by task id; both mappings are by function."""
    return {
        task_id: [digest.hex() for digest in digests_of(payload)]
        for key, each in payloads.items()
        for task_id, payload in zip(task_ids[key], each, strict=True)
        if payload[3:4] in MAY_BE_DATA and is_data(payload)
    }


class Batch:
    """Tasks of any functions, for one endpoint and one configuration. Ids are chosen here, so that sending it twice
    runs nothing twice. Thread-safe."""

    def __init__(
        self,
        task_group_id: UuidLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        create_websocket_queue: bool = False,
        *,
        result_serializers: list[Strategylike] | None = None,
        walltime_s: float | None = None,
        max_attempts: int | None = None,
        deadline: Deadline = None,
        deadline_s: float | None = None,
        priority: int = 0,
        serializer: ComputeSerializer | None = None,
        data: Callable[[], DataTransfer] | None = None,
    ) -> None:
        self.task_group_id = checked_id("task_group_id", task_group_id or uuid7(), GROUP_IDS)
        self.serializer, self._data = serializer or ComputeSerializer(), data
        from mep_sdk.json_values import checked_json  # most scripts make no batch

        check_kind("resource_specification", resource_specification, dict, '{"num_nodes": 2}')
        check_kind("user_endpoint_config", user_endpoint_config, dict, '{"partition": "short"}')
        self.resource_specification = checked_json(resource_specification, "resource_specification")
        if isinstance(user_endpoint_config, dict):
            check_characters(user_endpoint_config)
        self.user_endpoint_config = checked_json(user_endpoint_config, "user_endpoint_config")
        self.create_websocket_queue = create_websocket_queue
        self.result_serializers = None if result_serializers is None else [name_of(each) for each in result_serializers]
        self.options = checked_options(walltime_s, max_attempts, deadline, deadline_s, priority)
        self.tasks: dict[str, list[bytes]] = {}
        self.task_ids: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        with self._lock:
            return sum(len(each) for each in self.tasks.values())

    def __repr__(self) -> str:
        return f"Batch<{len(self)} tasks of {len(self.tasks)} functions>"

    def add(
        self, function_id: UuidLike, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> str:
        """Add one call of a registered function; return its task id.

        Raises TypeError and ValueError for wrong arguments, ArgumentsUnserializable, PayloadTooLarge, and
        StrategyUnknown for a name in `result_serializers`.
        """
        key = checked_id("function_id", function_id, FUNCTION_IDS)
        check_call(args, kwargs)
        ways = result_ways(self.result_serializers or ())
        payload = checked_payload(
            args or (),
            kwargs or {},
            as_json=self.serializer.as_json,
            result_ways=ways,
            data=self._data,
        )
        task_id = str(uuid7())
        with self._lock:
            self.tasks.setdefault(key, []).append(payload)
            self.task_ids.setdefault(key, []).append(task_id)
        return task_id

    def prepare(self) -> api.SubmitBody:
        """Return the request body, with the batch's current contents."""
        with self._lock:
            tasks = {key: list(payloads) for key, payloads in self.tasks.items()}
            task_ids = {key: list(ids) for key, ids in self.task_ids.items()}
        return api.SubmitBody(
            tasks=tasks,
            task_ids=task_ids,
            task_group_id=self.task_group_id,
            user_runtime=user_runtime(),
            user_endpoint_config=self.user_endpoint_config,
            resource_specification=self.resource_specification,
            result_serializers=self.result_serializers,
            create_queue=self.create_websocket_queue,
            pieces=pieces_of(tasks, task_ids) or None,
            **self.options._asdict(),
        )
