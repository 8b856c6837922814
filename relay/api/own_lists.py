"""Lists over HTTP: a person's own task groups and tasks, and endpoints by a name.

Each answer is bounded, and says where to go on.
"""

from __future__ import annotations

import asyncio
import math

from mep_wire.api import OwnGroup, OwnGroupsAnswer, OwnTaskInfo, OwnTasksAnswer
from mep_wire.errors import BodyInvalid, MepError
from mep_wire.ids import uuid_text
from mep_wire.states import API_STATUS, TaskState
from relay.api import endpoints
from relay.api.context import ApiContext
from relay.api.http import Request
from relay.store.records import Caller, EndpointRecord, GroupRef, OwnTask

MAX_LISTED = 1000
USUAL_LISTED = 100
MOST_COUNTED = 10_000
"""Tasks of a group that are counted; a larger one says so."""
_PAGE = 256
_MOST_LOOKED_AT = 20_000
"""Tasks that one request looks at."""
_NEWEST = (1 << 63) - 1


async def groups(service: ApiContext, request: Request) -> OwnGroupsAnswer:
    """GET /v3/taskgroups: one's own task groups, the newest first."""
    limit = _number(request, "limit", USUAL_LISTED, 1, MAX_LISTED)
    before = _number(request, "before", _NEWEST, 1, _NEWEST)
    page = service.store.groups_of(request.caller.account_id, before, limit)
    found: list[OwnGroup] = []
    for group in page:
        count, first, last = service.store.group_size(group.row, MOST_COUNTED + 1)
        found.append(
            OwnGroup(
                taskgroup_id=group.group_id,
                tasks=min(count, MOST_COUNTED),
                more=count > MOST_COUNTED,
                first_submitted_t=first or None,
                last_submitted_t=last or None,
            )
        )
        await asyncio.sleep(0)  # others have their turn
    return OwnGroupsAnswer(taskgroups=found, before=str(page[-1].row) if len(page) == limit else None)


async def tasks(service: ApiContext, request: Request) -> OwnTasksAnswer:
    """GET /v3/tasks: one's own tasks, those of the newest group first, in each group in order of submission."""
    limit = _number(request, "limit", USUAL_LISTED, 1, MAX_LISTED)
    states, since = _states(request.query.get("state", "")), _since(request.query.get("since", ""))
    before, after = _cursor(request.query.get("after", ""))
    found: list[OwnTaskInfo] = []
    looked_at = 0
    while page := service.store.groups_of(request.caller.account_id, before, 1):
        (group,) = page
        while some := service.store.group_states(group.row, after, _PAGE):
            for one in some:
                looked_at, after = looked_at + 1, one.row
                if one.state in states and one.submitted_at >= since:
                    found.append(_info(one, group))
                if len(found) == limit or looked_at == _MOST_LOOKED_AT:
                    return OwnTasksAnswer(tasks=found, after=f"{group.row}.{after}")
            await asyncio.sleep(0)
        before, after, looked_at = group.row, 0, looked_at + 1
        if looked_at >= _MOST_LOOKED_AT:
            return OwnTasksAnswer(tasks=found, after=f"{before - 1}.0")
        await asyncio.sleep(0)
    return OwnTasksAnswer(tasks=found)


def _info(task: OwnTask, group: GroupRef) -> OwnTaskInfo:
    return OwnTaskInfo(
        task_id=uuid_text(task.task_id),
        taskgroup_id=group.group_id,
        status=API_STATUS[task.state],
        endpoint_id=task.endpoint_id or None,
        function_id=task.function_id or None,
        submitted_t=task.submitted_at,
        ended_t=task.ended_at or None,
    )


async def find_endpoints(service: ApiContext, request: Request) -> list[endpoints.EndpointSummary]:
    """GET /v3/endpoints/find: one's own called NAME, else the endpoint with this alias, else those called OWNER/NAME.

    NAME is the name or the display name. Other people's need their OWNER, and their aliases come after one's own
    names: else anyone could take a name, and with it the tasks that were meant for another endpoint.
    """
    name = request.query.get("name", "")
    if not 0 < len(name) <= 3 * endpoints.MAX_NAME:
        raise BodyInvalid(reason=f"name: 1 to {3 * endpoints.MAX_NAME} characters")
    own = service.store.endpoints(request.caller.account_id)
    found = [one for one in own if name in (one.name, one.display_name)]
    if not found and (named := service.access.named(name)):
        record = endpoints.existing(service, named)
        return [endpoints.summary(service, record)] if _sees(service, record, request.caller) else []
    if not found and "/" in name:
        every = service.store.endpoints()
        found = [one for one in every if _is_called(service, one, name) and _sees(service, one, request.caller)]
    return [endpoints.summary(service, record) for record in found[:MAX_LISTED]]


def _sees(service: ApiContext, record: EndpointRecord, caller: Caller) -> bool:
    try:
        service.access.check_sees(record, caller)
    except MepError:
        return False
    return True


def _is_called(service: ApiContext, record: EndpointRecord, name: str) -> bool:
    """Return whether a name is OWNER/NAME for this endpoint."""
    owner, _, rest = name.partition("/")
    if not rest or rest not in (record.name, record.display_name):
        return False
    people = service.store.identity_set(record.owner)
    return people is not None and owner in {each.username for each in people.identities}


def _number(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise BodyInvalid(reason=f"{name}: expected a number from {least} to {most}")
    return int(text)


def _cursor(text: str) -> tuple[int, int]:
    """Return the row before which groups are looked at, and the row of the task after which to go on."""
    if not text:
        return _NEWEST, 0
    group, _, task = text.partition(".")
    if not all(each.isascii() and each.isdigit() and len(each) < 19 for each in (group, task)):
        raise BodyInvalid(reason="after: expected the value of the answer before")
    return int(group) + 1, int(task)


def _states(text: str) -> frozenset[TaskState]:
    """Return the states that words name: those of the API, `pending` or `ended`; all for an empty text."""
    words = {word: frozenset({state}) for state, word in API_STATUS.items()}
    words["pending"] = frozenset(state for state in TaskState if not state.is_terminal)
    words["ended"] = frozenset(TaskState) - words["pending"]
    asked = [word for word in text.split(",") if word]
    if unknown := [word for word in asked if word not in words]:
        raise BodyInvalid(reason=f"state: {unknown[0][:64]!r} is none of {', '.join(words)}")
    return frozenset().union(*(words[word] for word in asked)) if asked else frozenset(TaskState)


def _since(text: str) -> float:
    try:
        found = float(text or 0)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BodyInvalid(reason="since: expected seconds since the epoch")
    return found
