"""An action provider: a flow runs functions here, through the public interface of Globus Flows' action providers.

An action is a task group. Its document is stored before its tasks. Their ids follow from it: a repeated request
submits what is missing and nothing twice. Arguments and results are JSON. Called by the application.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec

from mep_wire.api import SubmitBody
from mep_wire.errors import ActionNotFinished, ActionNotFound, BodyInvalid, IdConflict, MepError
from mep_wire.ids import canonical_json, uuid_text
from mep_wire.json_frames import json_arguments, json_result
from mep_wire.limits import MAX_TASKS_PER_SUBMIT
from mep_wire.states import API_STATUS, TaskState
from relay.api import tasks
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.api.people_bodies import RunBody
from relay.auth.claims import open_identities
from relay.dispatch.live_state import durable, repeat
from relay.store.base import Store, Tx
from relay.store.records import Caller, Document, TaskBrief, TaskRecord

KIND = "action"
KEPT_S = 366 * 86400.0
"""How long an action is kept that nobody asks about."""
RELEASE_AFTER = "P30D"
"""How long after its end an action is kept, unless its request says otherwise."""
LEAST_RELEASE_S, MOST_RELEASE_S = 60.0, KEPT_S
"""A flow asks for the outcome some seconds after the end."""
SWEEP_EVERY_S = 60.0
SWEEP_PAGE = 16
"""Actions read at once: each may name ten thousand tasks."""
SUBMITTED_S = 3600.0
"""An action that is older has submitted its tasks: those that the store has not were removed after their time."""
MAX_LABEL = 64
MAX_PRINCIPALS = 100
_NAMESPACE = uuid.UUID("6c1f1c0e-6c55-4a58-9c5e-5b0a4cf5f1d5")
_DURATION = re.compile(r"P(?:(\d{1,5})D)?(?:T(?:(\d{1,6})H)?(?:(\d{1,8})M)?(?:(\d{1,9})S)?)?")
_PRINCIPAL = re.compile(r"urn:globus:(auth:identity|groups:id):[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_GROUP = "urn:globus:groups:id:"


class Call(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One call of a function."""

    function: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class ActionInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The input of an action: calls at one endpoint."""

    endpoint: str
    tasks: list[Call]
    user_endpoint_config: dict[str, Any] = {}


class _Action(msgspec.Struct, frozen=True, kw_only=True):
    action_id: str
    digest: bytes
    account_id: str
    identity_id: str
    task_ids: list[bytes]
    label: str
    monitor_by: list[str]
    manage_by: list[str]
    release_after: str
    start_time: float
    deadline: float = 0.0


class ActionStatus(msgspec.Struct, kw_only=True):
    """The state of an action, with the fields of the interface. One that has no value is left out."""

    action_id: str
    status: str
    """ACTIVE, SUCCEEDED or FAILED."""
    creator_id: str
    monitor_by: list[str]
    manage_by: list[str]
    start_time: str
    release_after: str
    display_status: str
    details: dict[str, Any]
    label: str | msgspec.UnsetType = msgspec.UNSET
    completion_time: str | msgspec.UnsetType = msgspec.UNSET


class ProviderDescription(msgspec.Struct, kw_only=True):
    """What the provider says of itself."""

    title: str
    subtitle: str
    description: str
    admin_contact: str
    globus_auth_scope: str
    input_schema: dict[str, Any]
    types: list[str]
    api_version: str
    synchronous: bool
    log_supported: bool
    administered_by: list[str]
    visible_to: list[str]
    runnable_by: list[str]
    keywords: list[str]


_action_decoder = msgspec.msgpack.Decoder(_Action)
_input_decoder = msgspec.json.Decoder(ActionInput)  # built now, for the conversions: see mep_wire.struct_info


def _input_schema() -> dict[str, Any]:
    (schema,), components = msgspec.json.schema_components([ActionInput], ref_template="#/$defs/{name}")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": dict(components), **schema}


INPUT_SCHEMA = _input_schema()


async def introspect(service: ApiContext, request: Request) -> ProviderDescription:
    """GET /automate/compute: what the provider takes."""
    return ProviderDescription(
        title="MEP relay",
        subtitle="Runs registered functions at an endpoint",
        description="Submits the calls of `tasks` and ends when all of them have.",
        admin_contact="the relay's administrator",
        globus_auth_scope="submit",
        input_schema=INPUT_SCHEMA,
        types=["ACTION"],
        api_version="1.0",
        synchronous=False,
        log_supported=False,
        administered_by=[],
        visible_to=["public"],
        runnable_by=["all_authenticated_users"],
        keywords=["compute"],
    )


async def run(service: ApiContext, request: Request) -> ActionStatus:
    """POST /automate/compute/run: begin an action, or find the one of this request_id."""
    body: RunBody = request.body
    _check(body)
    try:
        wanted = msgspec.convert(body.body, ActionInput)
    except msgspec.ValidationError as error:
        raise BodyInvalid(reason=f"body: {error}") from error
    if not 0 < len(wanted.tasks) <= MAX_TASKS_PER_SUBMIT:
        raise BodyInvalid(reason=f"body.tasks: 1 to {MAX_TASKS_PER_SUBMIT} calls")
    action, known = _action(request.caller, body, wanted)
    document = Document(
        kind=KIND,
        id=action.action_id,
        owner=request.caller.account_id,
        expires=action.start_time + KEPT_S,
        body=msgspec.msgpack.encode(action),
    )
    old = service.store.document(KIND, action.action_id)
    anew = old is not None and await _is_due(service.store, _action_decoder.decode(old.body), time.time())
    if not await durable(service.store.submit(partial(_add, document, anew=anew))):
        action = await _found(service, action.action_id)
        if action.digest != known:
            raise IdConflict(id=body.request_id[:64])
    try:
        await _submit(service, request, action, wanted)
    except Exception:
        if not service.store.tasks(action.task_ids[:1]):  # refused: nothing was begun
            await durable(service.store.submit(lambda tx: tx.drop_document(KIND, action.action_id)))
        raise
    service.audit.note("action.run", request.caller, action_id=action.action_id, endpoint=wanted.endpoint)
    return await _status(service, action, request.caller)


def _check(body: RunBody) -> None:
    """Check the parts of a request beside its input. Raises BodyInvalid."""
    if not 0 < len(body.request_id) <= 128:
        raise BodyInvalid(reason="request_id: 1 to 128 characters")
    if len(body.label) > MAX_LABEL or not body.label.isprintable():
        raise BodyInvalid(reason=f"label: at most {MAX_LABEL} printable characters")
    for key in ("monitor_by", "manage_by"):
        principals = getattr(body, key)
        if len(principals) > MAX_PRINCIPALS or not all(map(_PRINCIPAL.fullmatch, principals)):
            raise BodyInvalid(reason=f"{key}: at most {MAX_PRINCIPALS} URNs of identities or groups")
    if body.allowed_clients not in (None, ["public"]):
        raise BodyInvalid(reason="allowed_clients: this provider does not tell clients apart; leave it out")
    if body.release_after is not None and not LEAST_RELEASE_S <= _seconds(body.release_after) <= MOST_RELEASE_S:
        raise BodyInvalid(reason="release_after: a duration as ISO 8601 has it, like P30D or PT1H: PT1M to P366D")


def _seconds(duration: str) -> float:
    """Return the length of a duration of ISO 8601 in seconds, 0 where it is none."""
    found = _DURATION.fullmatch(duration)
    if found is None:
        return 0.0
    return sum(int(count or 0) * unit for count, unit in zip(found.groups(), (86400.0, 3600.0, 60.0, 1.0), strict=True))


def _action(caller: Caller, body: RunBody, wanted: ActionInput) -> tuple[_Action, bytes]:
    """Return the action of a request, as it is if it is new, and the digest that tells it from another."""
    action_id = uuid.uuid5(_NAMESPACE, f"{caller.account_id} {body.request_id}")
    digest = sha256(canonical_json(msgspec.to_builtins(body))).digest()
    return _Action(
        action_id=str(action_id),
        digest=digest,
        account_id=caller.account_id,
        identity_id=caller.identity_id,
        task_ids=[uuid.uuid5(action_id, str(number)).bytes for number in range(len(wanted.tasks))],
        label=body.label,
        monitor_by=body.monitor_by,
        manage_by=body.manage_by,
        release_after=body.release_after or RELEASE_AFTER,
        start_time=time.time(),
        deadline=body.deadline.timestamp() if body.deadline else 0.0,
    ), digest


async def _submit(service: ApiContext, request: Request, action: _Action, wanted: ActionInput) -> None:
    """Submit the action's tasks; those that are there already stay as they are."""
    payloads: dict[str, list[bytes]] = {}
    ids: dict[str, list[str]] = {}
    for call, task_id in zip(wanted.tasks, action.task_ids, strict=True):
        payloads.setdefault(call.function, []).append(json_arguments(call.args, call.kwargs))
        ids.setdefault(call.function, []).append(uuid_text(task_id))
    submission = SubmitBody(
        tasks=payloads,
        task_ids=ids,
        task_group_id=action.action_id,
        user_endpoint_config=wanted.user_endpoint_config,
        deadline=action.deadline or None,
    )
    await tasks.submit(service, Request(request.caller, (wanted.endpoint.lower(),), {}, submission, packed=True))


async def _found(service: ApiContext, action_id: str) -> _Action:
    document = service.store.document(KIND, action_id)
    action = _action_decoder.decode(document.body) if document else None
    if document is None or action is None or await _is_due(service.store, action, time.time()):
        raise ActionNotFound(action_id=action_id[:64])
    return msgspec.structs.replace(action, account_id=document.owner)  # two accounts may have become one


async def _is_due(store: Store, action: _Action, now: float) -> bool:
    """Return whether an action ended so long ago that it is released by itself."""
    release_s = min(_seconds(action.release_after), MOST_RELEASE_S)
    if now < action.start_time + release_s:
        return False
    found: list[TaskBrief] = []
    async for page in _pages(store, action):
        if not all(one.state.is_terminal for one in page):
            return False
        found += page
    if not _has_ended(action, found, now):
        return False
    ended_at = max((one.ended_at for one in found), default=0.0)  # by the endpoint's clock, which may be wrong
    return now >= min(now, max(ended_at, action.start_time)) + release_s


async def _pages(store: Store, action: _Action) -> AsyncIterator[list[TaskBrief]]:
    """Yield an action's tasks, a few read at a time: there may be thousands, and others have their turn."""
    for at in range(0, len(action.task_ids), tasks.READ_PAGE):
        yield store.briefs(action.task_ids[at : at + tasks.READ_PAGE])
        await asyncio.sleep(0)


def _has_ended(action: _Action, found: list[TaskBrief], now: float) -> bool:
    """Return whether all of an action's tasks have, those included that are kept no longer."""
    if not all(one.state.is_terminal for one in found):
        return False
    return len(found) == len(action.task_ids) or now - action.start_time > SUBMITTED_S


async def sweep_for_ever(store: Store) -> None:
    """Release the actions that are due, now and then."""
    await repeat(lambda: sweep(store, time.time()), SWEEP_EVERY_S, "old actions stay")


async def sweep(store: Store, now: float) -> int:
    """Release the actions that are due; return how many. Raises RelayUnavailable."""
    after, released = "", 0
    while page := store.documents(KIND, after=after, limit=SWEEP_PAGE):
        due = [one for one in page if await _is_due(store, _action_decoder.decode(one.body), now)]
        if due:
            await durable(store.submit(partial(_drop, due)))
        after, released = page[-1].id, released + len(due)
        await asyncio.sleep(0)
    return released


def _add(document: Document, tx: Tx, *, anew: bool) -> bool:
    """Store a new action, `anew` in place of one that is due; return False where there is one already."""
    if anew:
        tx.drop_document(KIND, document.id)
    return tx.add_document(document)


def _drop(due: list[Document], tx: Tx) -> None:
    """Drop actions, but for those that were begun anew since they were read."""
    for one in due:
        known = tx.get_document(KIND, one.id)
        if known is not None and known.body == one.body:
            tx.drop_document(KIND, one.id)


async def _allowed(service: ApiContext, request: Request, *, manage: bool) -> _Action:
    """Return an action that the caller may see, or manage. Raises ActionNotFound."""
    action = await _found(service, request.path[0])
    caller = request.caller
    if action.account_id == caller.account_id or "admin" in caller.scopes:
        return action
    principals = action.manage_by if manage else [*action.monitor_by, *action.manage_by]
    person = service.store.identity_set(caller.account_id)
    mine = {f"urn:globus:auth:identity:{one.id}" for one in open_identities(person)}
    groups = [one.removeprefix(_GROUP).lower() for one in principals if one.startswith(_GROUP)]
    if not mine.isdisjoint(principals) or any(service.access.in_group(caller, one) for one in groups):
        return action
    raise ActionNotFound(action_id=action.action_id)


def _outcome(task: TaskRecord) -> dict[str, Any]:
    """Return what one task of an action came to."""
    told: dict[str, Any] = {"task_id": uuid_text(task.task_id), "status": API_STATUS[task.state]}
    if task.state is TaskState.SUCCESS:
        try:
            told["output"] = json_result(task.payload)
        except (ValueError, msgspec.MsgspecError):
            told["output"] = None
    elif task.state.is_terminal:
        told |= {"code": task.code or "TASK_FAILED", "exception": task.text}
    return told


async def _outcomes(service: ApiContext, found: list[TaskBrief], refused: dict[str, MepError]) -> list[dict[str, Any]]:
    """Return what the tasks of an action came to, with outputs as far as one answer holds them and the person may have
    them: `refused` are the endpoints that give them none any more."""
    told: list[dict[str, Any]] = []
    size = 0
    for number, brief in enumerate(found, start=1):
        error = refused.get(service.access.endpoint_of_uep(brief.uep_row)) if refused else None
        if error is not None and brief.state.is_terminal:
            id_, status_ = uuid_text(brief.task_id), API_STATUS[brief.state]
            told.append({"task_id": id_, "status": status_, "withheld": True, "code": error.code})
            continue
        if size and size + brief.size > tasks.MAX_ANSWER_BYTES:
            told.append({"task_id": uuid_text(brief.task_id), "status": API_STATUS[brief.state], "withheld": True})
            continue
        size += brief.size
        told += [_outcome(await tasks.filled(service, one)) for one in service.store.tasks([brief.task_id])]
        if number % tasks.READ_PAGE == 0:
            await asyncio.sleep(0)  # others have their turn
    return told


async def _status(service: ApiContext, action: _Action, caller: Caller) -> ActionStatus:
    found = [one async for page in _pages(service.store, action) for one in page]
    ended = [one for one in found if one.state.is_terminal]
    active = not _has_ended(action, found, time.time())
    gone = 0 if active else len(action.task_ids) - len(found)
    failed = gone or any(one.state is not TaskState.SUCCESS for one in ended)
    state = "ACTIVE" if active else "FAILED" if failed else "SUCCEEDED"
    last = max((one.ended_at for one in ended), default=0.0) or action.start_time
    owner = Caller(account_id=action.account_id, identity_id=action.identity_id)
    others = None if caller.account_id == action.account_id else owner
    refused = {} if others and "admin" in caller.scopes else tasks.refused_endpoints(service, caller, found, others)
    return ActionStatus(
        action_id=action.action_id,
        status=state,
        creator_id=f"urn:globus:auth:identity:{action.identity_id}",
        label=action.label or msgspec.UNSET,
        monitor_by=action.monitor_by,
        manage_by=action.manage_by,
        start_time=datetime.fromtimestamp(action.start_time, UTC).isoformat(),
        completion_time=msgspec.UNSET if active else datetime.fromtimestamp(last, UTC).isoformat(),
        release_after=action.release_after,
        display_status=f"{len(ended)} of {len(action.task_ids)} tasks ended"
        + (f", {gone} are not kept any more" if gone else ""),
        details={"task_group_id": action.action_id, "results": await _outcomes(service, found, refused)},
    )


async def status(service: ApiContext, request: Request) -> ActionStatus:
    """GET /automate/compute/ID/status."""
    return await _status(service, await _allowed(service, request, manage=False), request.caller)


async def cancel(service: ApiContext, request: Request) -> ActionStatus:
    """POST /automate/compute/ID/cancel: an action that has ended stays as it is."""
    action = await _allowed(service, request, manage=True)
    found = [one async for page in _pages(service.store, action) for one in page]
    open_tasks = [one for one in found if not one.state.is_terminal]
    if open_tasks:
        await service.dispatcher.cancel(open_tasks)
        service.audit.note("action.cancel", request.caller, action_id=action.action_id)
    return await _status(service, action, request.caller)


async def release(service: ApiContext, request: Request) -> ActionStatus:
    """POST /automate/compute/ID/release: forget an action that has ended; return its last state."""
    action = await _allowed(service, request, manage=True)
    last = await _status(service, action, request.caller)
    if last.status == "ACTIVE":
        raise ActionNotFinished(action_id=action.action_id)
    await durable(service.store.submit(lambda tx: tx.drop_document(KIND, action.action_id)))
    service.audit.note("action.release", request.caller, action_id=action.action_id)
    return last
