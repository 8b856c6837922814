"""Tasks over HTTP: submit, ask, cancel."""

from __future__ import annotations

import asyncio
import graphlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from mep_wire.api import (
    BatchStatusAnswer,
    BatchStatusBody,
    CancelAnswer,
    CancelBody,
    SubmitAnswer,
    SubmitBody,
    TaskGroupAnswer,
    TaskStatus,
    opaque_bytes,
    opaque_to_text,
)
from mep_wire.errors import (
    BodyInvalid,
    FunctionNotAllowed,
    MepError,
    PayloadLost,
    PayloadTooLarge,
    TaskGroupNotFound,
    TaskNotFound,
)
from mep_wire.ids import uuid7, uuid_text
from mep_wire.limits import (
    MAX_ATTEMPTS,
    MAX_DEPENDENCIES,
    MAX_PRIORITY,
    MAX_TASKS_PER_SUBMIT,
    MAX_USER_CONFIG_BYTES,
    MIN_PRIORITY,
)
from mep_wire.start_request import END_USER
from mep_wire.states import API_STATUS, TaskState
from mep_wire.user_values import unusable_texts
from relay.api import data, endpoints, functions
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.api.json_values import to_json_value
from relay.dispatch.submissions import Submission
from relay.store.records import Caller, EndpointRecord, FunctionRef, NewTask, TaskBrief, TaskRecord

MAX_WALLTIME_S = 366 * 86400.0
MAX_DEADLINE_S = 10 * 366 * 86400.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024
"""Results in one answer; a larger one comes alone."""
READ_PAGE = 256
"""Tasks looked up before other requests have their turn."""
GROUP_PAGE = 10_000
"""The same for ids alone."""


async def submit(service: ApiContext, request: Request) -> SubmitAnswer:
    """POST /v3/endpoints/ID/submit. The answer is given once every task is on disk."""
    body: SubmitBody = request.body
    endpoint = endpoints.usable(service, request.path[0], request.caller)
    if body.result_serializers:
        raise BodyInvalid(
            reason="result_serializers: the arguments carry them here: set them in MEP's SDK, or leave the field out"
        )
    config = to_json_value(body.user_endpoint_config, "user_endpoint_config", MAX_USER_CONFIG_BYTES)
    runtime = _runtime(body)
    if request.caller.end_user and service.access.of_endpoint(endpoint.endpoint_id).pass_end_users:
        runtime[END_USER] = request.caller.end_user
    await service.checks.check(endpoint.endpoint_id, endpoint.user_config_schema, config)
    tasks, names = _new_tasks(service, request.caller, endpoint, body)
    if body.pieces:
        tasks = await _with_pieces(service, request.caller, tasks, body.pieces)
    group_id = _as_uuid(body.task_group_id, "task_group_id") if body.task_group_id else str(uuid.uuid4())
    submission = Submission(
        caller=request.caller,
        endpoint_id=endpoint.endpoint_id,
        config=config,
        runtime=runtime,
        group_id=group_id,
        tasks=tasks,
    )
    service.tasks.spend(request.caller.account_id, len(tasks))
    worker_python = await service.dispatcher.submit(submission)
    service.audit.note(
        "task.submit",
        request.caller,
        endpoint=endpoint.endpoint_id,
        group=group_id,
        functions=list(names),
        tasks=len(tasks),
    )
    return SubmitAnswer(
        request_id=str(uuid.uuid4()),
        task_group_id=group_id,
        endpoint_id=endpoint.endpoint_id,
        tasks=names,
        worker_python=worker_python,
        holds_tasks=service.dispatcher.holds_tasks(endpoint.endpoint_id, request.caller.account_id),
    )


def _runtime(body: SubmitBody) -> dict[str, Any]:
    """Return the person's description of their SDK, which templates may use. Raises BodyInvalid."""
    runtime = to_json_value(body.user_runtime, "user_runtime", MAX_USER_CONFIG_BYTES)
    for path, problem in unusable_texts(runtime):
        raise BodyInvalid(reason=f"user_runtime: {path}: {problem}")
    if END_USER in runtime:
        raise BodyInvalid(reason=f"user_runtime: {END_USER}: only the relay says so, of a gateway's people")
    return runtime


def _resource_spec(body: SubmitBody) -> bytes:
    value = to_json_value(body.resource_specification, "resource_specification", MAX_USER_CONFIG_BYTES)
    return msgspec.msgpack.encode(value) if value else b""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """The fields that all tasks of a submission share, as in NewTask."""

    resource_spec: bytes
    walltime_s: float
    max_attempts: int
    deadline: float
    priority: int


def _options(body: SubmitBody, now: float) -> _Options:
    """Return what all tasks of a submission share. Raises BodyInvalid."""
    walltime, attempts = body.walltime_s or 0.0, body.max_attempts
    if not 0 <= walltime <= MAX_WALLTIME_S:
        raise BodyInvalid(reason=f"walltime_s: expected 0 to {MAX_WALLTIME_S:.0f} seconds")
    if attempts is not None and not 1 <= attempts <= MAX_ATTEMPTS:
        raise BodyInvalid(reason=f"max_attempts: expected 1 to {MAX_ATTEMPTS}")
    if not MIN_PRIORITY <= body.priority <= MAX_PRIORITY:
        raise BodyInvalid(reason=f"priority: expected {MIN_PRIORITY} to {MAX_PRIORITY}")
    return _Options(
        resource_spec=_resource_spec(body),
        walltime_s=walltime,
        max_attempts=attempts or 0,
        deadline=_deadline(body, now),
        priority=body.priority,
    )


def _deadline(body: SubmitBody, now: float) -> float:
    """Return when the tasks of a submission expire, 0 for never. Raises BodyInvalid."""
    if body.deadline_s is not None and not 0 < body.deadline_s <= MAX_DEADLINE_S:
        raise BodyInvalid(reason=f"deadline_s: expected a number of seconds up to {MAX_DEADLINE_S:.0f}")
    if body.deadline is not None and not 0 < body.deadline <= now + MAX_DEADLINE_S:  # past is no mistake: it expires
        raise BodyInvalid(reason=f"deadline: expected seconds since the epoch, which now are {now:.0f} here")
    ends = [body.deadline] if body.deadline is not None else []
    return min([*ends, now + body.deadline_s] if body.deadline_s is not None else ends, default=0.0)


def _new_tasks(
    service: ApiContext, caller: Caller, endpoint: EndpointRecord, body: SubmitBody
) -> tuple[list[NewTask], dict[str, list[str]]]:
    """Return the tasks of a submission and their ids by function. Raises an error if one is invalid."""
    count = sum(map(len, body.tasks.values()))
    if not 0 < count <= service.limits.batch:
        raise BodyInvalid(reason=f"tasks: expected 1 to {service.limits.batch} tasks, got {count}")
    options = _options(body, time.time())
    tasks: list[NewTask] = []
    names: dict[str, list[str]] = {}
    for name, payloads in body.tasks.items():
        function = functions.usable(service, name.lower(), caller)
        service.access.check_assurance(endpoint, function)
        if not functions.listed(service, endpoint.allowed_functions, function):
            raise FunctionNotAllowed(endpoint_id=endpoint.endpoint_id, function_id=function.function_id)
        ids = _task_ids(body.task_ids, name, len(payloads))
        _append(tasks, function, payloads, ids, options, service.limits.payload_bytes)
        names[name] = [uuid_text(task_id) for task_id in ids]
    if body.task_ids and len({task.task_id for task in tasks}) < count:
        raise BodyInvalid(reason="task_ids: the same id twice")
    return _with_dependencies(tasks, body.depends_on) if body.depends_on else tasks, names


def _with_dependencies(tasks: list[NewTask], depends_on: Mapping[str, list[str]]) -> list[NewTask]:
    """Return tasks with the ids of those that they wait for. Raises BodyInvalid."""
    waits: dict[bytes, tuple[bytes, ...]] = {}
    for text, others in depends_on.items():
        if len(others) > MAX_DEPENDENCIES:
            raise BodyInvalid(reason=f"depends_on: a task waits for at most {MAX_DEPENDENCIES} others")
        ids = tuple(_raw_uuid(other, "depends_on") for other in others)
        waits[_raw_uuid(text, "depends_on")] = ids
    if unknown := waits.keys() - {task.task_id for task in tasks}:
        raise BodyInvalid(reason=f"depends_on: {uuid_text(min(unknown))} is not in task_ids")
    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        raise BodyInvalid(reason=f"depends_on: {uuid_text(error.args[1][0])} would wait for itself") from error
    return [msgspec.structs.replace(task, depends_on=waits.get(task.task_id, ())) for task in tasks]


def _append(
    tasks: list[NewTask],
    function: FunctionRef,
    payloads: Sequence[Any],
    ids: Sequence[bytes],
    options: _Options,
    most_bytes: int,
) -> None:
    for number, (payload, task_id) in enumerate(zip(payloads, ids, strict=True)):
        try:
            data = payload if type(payload) is bytes else opaque_bytes(payload)
        except ValueError as error:
            raise BodyInvalid(reason=f"tasks.{function.function_id}[{number}]: {error}") from error
        if len(data) > most_bytes:
            what = f"tasks.{function.function_id}[{number}]"
            raise PayloadTooLarge(what=what, size=len(data), limit=most_bytes)
        tasks.append(
            NewTask(
                task_id=task_id,
                function=function,
                payload=data,
                resource_spec=options.resource_spec,
                walltime_s=options.walltime_s,
                max_attempts=options.max_attempts,
                deadline=options.deadline,
                priority=options.priority,
            )
        )


async def _with_pieces(
    service: ApiContext, caller: Caller, tasks: list[NewTask], pieces: Mapping[str, list[str]]
) -> list[NewTask]:
    """Return tasks with the names of the chunks that hold their arguments by reference."""
    named = {_raw_uuid(task_id, "pieces"): each for task_id, each in pieces.items()}
    if unknown := named.keys() - {task.task_id for task in tasks}:
        raise BodyInvalid(reason=f"pieces: {len(unknown)} ids of no task in task_ids")
    found = await data.names(service, caller.account_id, {key.hex(): texts for key, texts in named.items()})
    return [
        msgspec.structs.replace(task, pieces=found[key]) if (key := task.task_id.hex()) in found else task
        for task in tasks
    ]


def _task_ids(chosen: Mapping[str, list[str]] | None, name: str, count: int) -> list[bytes]:
    """Return the ids that the client chose for a function's tasks, or new ones."""
    if not chosen:
        return [uuid7().bytes for _ in range(count)]
    ids = chosen.get(name, [])
    if len(ids) != count:
        raise BodyInvalid(reason=f"task_ids.{name[:64]}: expected {count} ids, got {len(ids)}")
    return [_raw_uuid(text, f"task_ids.{name[:64]}") for text in ids]


def _raw_uuid(text: str, name: str) -> bytes:
    try:
        raw = bytes.fromhex(text.replace("-", ""))
    except ValueError as error:
        raise BodyInvalid(reason=f"{name}: not a UUID") from error
    if len(raw) != 16:
        raise BodyInvalid(reason=f"{name}: not a UUID")
    return raw


def _as_uuid(text: str, name: str) -> str:
    return uuid_text(_raw_uuid(text, name))


# --- asking -----------------------------------------------------------------------------------------


def _status(task: TaskRecord, *, packed: bool) -> TaskStatus:
    payload: bytes | str | None = None
    if task.state.is_terminal:
        payload = task.payload if packed else opaque_to_text(task.payload)
    success = task.state is TaskState.SUCCESS
    ended = datetime.fromtimestamp(task.ended_at, UTC).isoformat() if task.ended_at else None
    times = {"submitted_t": task.submitted_at, "started_t": task.started_at or None, "ended_t": task.ended_at or None}
    return TaskStatus(
        task_id=uuid_text(task.task_id),
        status=API_STATUS[task.state],
        result=payload if success else None,
        exception=payload if task.state.is_terminal and not success else None,
        completion_t=ended,
        details=times,
        code=task.code or None,
        reason=task.text or None,
        correlation_id=task.correlation_id or (uuid_text(task.task_id) if task.code else None),
    )


async def look_up(service: ApiContext, request: Request) -> TaskStatus:
    """GET /v2/tasks/ID."""
    try:
        found = service.store.tasks([uuid.UUID(request.path[0]).bytes])
    except ValueError:
        found = []
    if not found or found[0].owner != request.caller.account_id:
        raise TaskNotFound(task_id=request.path[0])
    if found[0].state.is_terminal:
        access = service.access
        access.check_reads(access.endpoint_of_uep(found[0].uep_row), request.caller)
    return _with_wait(service, found[0], _status(await filled(service, found[0]), packed=request.packed))


def _with_wait(service: ApiContext, task: TaskRecord, status: TaskStatus) -> TaskStatus:
    """Add why a task waits, if it does."""
    why = service.dispatcher.why_waiting(task.uep_row, task.state, task.row)
    if why is None:
        return status
    since = min(max(why.since, task.submitted_at), time.time()) if why.since else task.submitted_at
    return msgspec.structs.replace(status, code=why.code, reason=why.text, waiting_since=since)


async def filled(service: ApiContext, task: TaskRecord) -> TaskRecord:
    """Return a task with its result, wherever that is kept. Raises RelayUnavailable."""
    if not task.chunk:
        return task
    try:
        return msgspec.structs.replace(task, payload=await service.dispatcher.payloads.fetch(task.chunk))
    except PayloadLost as error:
        return msgspec.structs.replace(task, state=TaskState.FAILED, code=error.code, text=error.text)


async def _own_tasks(
    service: ApiContext, caller: Caller, texts: Sequence[str]
) -> tuple[dict[str, TaskBrief], list[str]]:
    """Return the person's tasks among these ids as they were written, and the ids of no task of theirs."""
    if len(texts) > MAX_TASKS_PER_SUBMIT:
        raise BodyInvalid(reason=f"task_ids: at most {MAX_TASKS_PER_SUBMIT} ids")
    ids = {_raw_uuid(text, "task_ids"): text for text in texts}
    found: dict[str, TaskBrief] = {}
    wanted = list(ids)
    for first in range(0, len(wanted), READ_PAGE):
        page = service.store.briefs(wanted[first : first + READ_PAGE])
        found |= {ids[t.task_id]: t for t in page if t.owner == caller.account_id}
        await asyncio.sleep(0)  # others have their turn
    return found, [text for text in ids.values() if text not in found]


async def batch_status(service: ApiContext, request: Request) -> BatchStatusAnswer:
    """POST /v2/batch_status."""
    body: BatchStatusBody = request.body
    found, missing = await _own_tasks(service, request.caller, body.task_ids)
    results: dict[str, TaskStatus] = {}
    withheld: list[str] = []
    size = 0
    refused = refused_endpoints(service, request.caller, found.values())
    for number, (text, task) in enumerate(found.items(), start=1):
        if task.state.is_terminal and (error := refused.get(service.access.endpoint_of_uep(task.uep_row))):
            told = _status(_as_running(task), packed=request.packed)
            results[text] = msgspec.structs.replace(told, code=error.code, reason=error.text)
            continue
        if size and size + task.size > MAX_ANSWER_BYTES:
            withheld.append(text)
            results[text] = _status(_as_running(task), packed=request.packed)
            continue
        for one in service.store.tasks([task.task_id]):
            size += task.size
            results[text] = _with_wait(service, one, _status(await filled(service, one), packed=request.packed))
        if number % READ_PAGE == 0:
            await asyncio.sleep(0)
    return BatchStatusAnswer(results=results, missing=missing, withheld=withheld)


def refused_endpoints(
    service: ApiContext, caller: Caller, tasks: Iterable[TaskBrief], owner: Caller | None = None
) -> dict[str, MepError]:
    """Return those of the tasks' endpoints that give the person no results any more, each with the reason. `owner`: of
    the tasks, where that is another person, who lets the caller have the results."""
    refused: dict[str, MepError] = {}
    for endpoint_id in {service.access.endpoint_of_uep(task.uep_row) for task in tasks if task.state.is_terminal}:
        try:
            if owner is None:
                service.access.check_reads(endpoint_id, caller)
            else:
                service.access.check_shown(endpoint_id, owner, caller)
        except MepError as error:
            refused[endpoint_id] = error
    return refused


def _as_running(task: TaskBrief) -> TaskRecord:
    return TaskRecord(
        row=task.row,
        task_id=task.task_id,
        owner=task.owner,
        uep_row=task.uep_row,
        state=TaskState.RUNNING,
        submitted_at=task.submitted_at,
        started_at=task.started_at,
        ended_at=0.0,
    )


async def group(service: ApiContext, request: Request) -> TaskGroupAnswer:
    """GET /v2/taskgroup/ID."""
    found = service.store.group(request.path[0])
    if found is None or found.owner != request.caller.account_id:
        raise TaskGroupNotFound(task_group_id=request.path[0])
    tasks: list[dict[str, str]] = []
    after = 0
    while page := service.store.group_tasks(found.row, after, GROUP_PAGE):
        tasks += [{"id": uuid_text(task_id)} for _, task_id in page]
        after = page[-1][0]
        await asyncio.sleep(0)
    return TaskGroupAnswer(taskgroup_id=found.group_id, tasks=tasks)


async def cancel(service: ApiContext, request: Request) -> CancelAnswer:
    """POST /v3/tasks/cancel."""
    body: CancelBody = request.body
    found, missing = await _own_tasks(service, request.caller, body.task_ids)
    open_tasks = {text: task for text, task in found.items() if not task.state.is_terminal}
    asked = await service.dispatcher.cancel(list(open_tasks.values()))
    if open_tasks:
        service.audit.note("task.cancel", request.caller, tasks=list(open_tasks))
    return CancelAnswer(
        cancelled=[text for text, task in open_tasks.items() if task.row not in asked],
        asked=[text for text, task in open_tasks.items() if task.row in asked],
        ended=[text for text, task in found.items() if task.state.is_terminal],
        missing=missing,
    )
