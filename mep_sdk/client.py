"""The relay's API as method calls. Argument names and orders are those of Globus Compute's Client."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

import msgspec

from mep_sdk import argument_checks as checks
from mep_sdk import data_proxystore
from mep_sdk.batch import Batch, UuidLike
from mep_sdk.compute_serializer import ComputeSerializer
from mep_sdk.errors import EndpointAmbiguous, NotOffered, RelayAnswerInvalid, TaskPending, VersionMismatch
from mep_sdk.foreign_code import attempt
from mep_sdk.http import RETRY_FOR_S, SILENT_S, Retrying, Transport
from mep_sdk.login_settings import client_settings
from mep_sdk.result_decoding import settle, state_of
from mep_sdk.serialize import serialize_function
from mep_sdk.settings import ClientSettings
from mep_sdk.strategies import Strategylike
from mep_sdk.task_options import Deadline
from mep_sdk.version import __version__
from mep_sdk.version_mismatch import warn_of_python
from mep_wire import api, limits
from mep_wire.errors import EndpointNotFound, PayloadTooLarge
from mep_wire.states import TaskState
from mep_wire.waits import Wait, WaitCode

data_proxystore.install()

if TYPE_CHECKING:
    from mep_sdk.data_transfer import DataTransfer

_T = TypeVar("_T")
_STATUS_CHUNK = 1024
_LIST_CHUNK = 1000
_ANSWERS: tuple[Any, ...] = (
    *(Any, dict[str, Any], list[dict[str, Any]], api.FunctionAnswer, api.SubmitAnswer, api.TaskStatus),
    *(api.BatchStatusAnswer, api.TaskGroupAnswer, api.CancelAnswer, api.OwnGroupsAnswer, api.OwnTasksAnswer),
)
_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {kind: msgspec.msgpack.Decoder(kind) for kind in _ANSWERS}


class Client:
    """A person's connection to one relay. Thread-safe; connections are made when they are needed.

    Every method raises mep_wire.errors.MepError or one of its subclasses: what the relay answered, or
    RelayUnreachable after `retry_for_s` seconds of trying.
    """

    def __init__(
        self,
        relay_url: str | None = None,
        token: str | None = None,
        *,
        profile: str | None = None,
        allow_insecure: bool = False,
        retry_for_s: float = RETRY_FOR_S,
        code_serialization_strategy: Strategylike | None = None,
        data_serialization_strategy: Strategylike | None = None,
        do_version_check: bool = False,
        **unrecognized: Any,
    ) -> None:
        """Find relay and token in the arguments, MEP_RELAY_URL and MEP_TOKEN, ~/.mep/client.toml, or a stored login.

        `profile` names a login that `mep-sdk login` made, as MEP_PROFILE does. MEP_CLIENT_ID and MEP_CLIENT_SECRET are
        those of a service, which gets its tokens by itself.

        The two strategies, by name or as in mep_sdk.serialize, say how functions and arguments are serialized where an
        endpoint accepts only some ways, e.g. "JSONData". `do_version_check` calls `version_check`.
        `allow_insecure` permits plain http to a machine other than this one. Other keywords, as older
        scripts pass them, are named in a warning. Raises NotConfigured, ProfileUnknown, InsecureRelay and
        SettingsFileUnsafe.
        """
        for name in unrecognized:
            warnings.warn(f"The {name!r} argument is not recognized and has no effect.", stacklevel=2)
        checks.check_seconds("retry_for_s", retry_for_s, RETRY_FOR_S)
        self.settings: ClientSettings = client_settings(
            relay_url, token, profile=profile, allow_insecure=allow_insecure
        )
        self.transport = Transport(self.settings, retry_for_s=retry_for_s)
        self._named: dict[str, str] = {}
        self._data: DataTransfer | None = None
        self._making_data = threading.Lock()
        self.serializer = ComputeSerializer(code_serialization_strategy, data_serialization_strategy)
        if do_version_check:
            self.version_check()

    def __repr__(self) -> str:
        return f"Client<{self.settings.relay_url}>"

    def close(self) -> None:
        """Close idle connections. The client stays usable."""
        self.transport.close()

    def logout(self) -> None:
        """Forget the token: later calls raise NotConfigured. A login of `mep-sdk login` ends: its file is removed, and
        the relay revokes its tokens. Other variables and files stay as they are."""
        self.transport.log_out()
        self.settings = self.transport.settings

    def version_check(self, endpoint_version: str | None = None) -> None:
        """Raises VersionMismatch where this SDK, or an endpoint of this version, is too old for the relay."""
        told = self._read(self.transport.get("/v2/version?service=all"), dict[str, Any])
        checked = [("mep-sdk", __version__, told.get("min_sdk_version"))]
        if endpoint_version is not None:
            checked.append(("The endpoint", endpoint_version, told.get("min_ep_version")))
        for part, version, least in checked:
            if least and _release(version) < _release(str(least)):
                raise VersionMismatch(part=part, version=version, least=least, url=self.settings.relay_url)

    # --- functions --------------------------------------------------------------------------------------

    def register_function(
        self,
        function: Callable[..., Any],
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        public: bool = False,
        group: UuidLike | None = None,
        ha_endpoint_id: UuidLike | None = None,
        *,
        function_name: str | None = None,
        container_uuid: UuidLike | None = None,
        searchable: bool | None = None,
        **unrecognized: Any,
    ) -> str:
        """Register a function and return its id. Users with permission can call it later by this id.

        `public` lets every user of the relay run it. `description` defaults to the docstring.
        Raises FunctionUnserializable, PayloadTooLarge.
        """
        given = {"searchable": searchable, "ha_endpoint_id": ha_endpoint_id}
        for name in [*unrecognized, *(name for name, value in given.items() if value is not None)]:
            warnings.warn(f"The {name!r} argument is not recognized and has no effect.", stacklevel=2)
        name = function_name or name_of(function)
        return self.register_serialized(
            api.FunctionBody(
                function_name=name,
                function_code=serialize_function(function, self.serializer.code),
                description=description if description is not None else doc_of(function),
                container_uuid=str(container_uuid) if container_uuid else None,
                metadata=metadata,
                public=public,
                group=str(group) if group else None,
            )
        )

    def register_source_code(
        self,
        source: str,
        function_name: str,
        description: str | None = None,
        metadata: dict[str, Any] | None = None,
        public: bool = False,
        group: UuidLike | None = None,
        ha_endpoint_id: UuidLike | None = None,
    ) -> str:
        """Register the function of this name in `source`, a module's text; return its id. A worker runs the text
        once, at the first call. Raises FunctionUnserializable, PayloadTooLarge."""
        from mep_sdk.source_code import serialize_source

        checks.check_kind("source", source, str, '"def f(x): ..."')
        checks.check_kind("function_name", function_name, str, '"f"')
        if ha_endpoint_id is not None:
            warnings.warn("The 'ha_endpoint_id' argument has no effect.", stacklevel=2)
        return self.register_serialized(
            api.FunctionBody(
                function_name=function_name,
                function_code=serialize_source(source, function_name),
                description=description,
                metadata=metadata,
                public=public,
                group=str(group) if group else None,
            )
        )

    def register_serialized(
        self,
        body: api.FunctionBody,
        *,
        retry_for_s: float | None = None,
        silent_s: float = SILENT_S,
        retrying: Retrying | None = None,
    ) -> str:
        """Register a function that is bytes already; return its id. `retrying` is called with each error after which
        it is tried again. Raises PayloadTooLarge."""
        size = len(body.function_code)
        if size > limits.MAX_FUNCTION_BYTES:
            what = f"Function {body.function_name}"
            raise PayloadTooLarge(what=what, size=size, limit=limits.MAX_FUNCTION_BYTES)
        asked = self.transport.post(
            "/v3/functions", body, retry_for_s=retry_for_s, silent_s=silent_s, retrying=retrying
        )
        return self._read(asked, api.FunctionAnswer).function_uuid

    def get_function(self, function_id: UuidLike) -> dict[str, Any]:
        """Return what the relay has on a registered function.

        `sha256` is the digest of `function_code`, computed here, in 64 hexadecimal digits. An endpoint that lists
        `sha256:DIGEST` in its `allowed_functions` runs just that code, whatever its id.
        """
        found = self._get(f"/v2/functions/{function_id}")
        try:
            code = api.opaque_bytes(found.get("function_code"))
        except ValueError as error:
            raise RelayAnswerInvalid(url=self.settings.relay_url, reason=f"function_code: {error}") from error
        return found | {"sha256": sha256(code).hexdigest()}

    def delete_function(self, function_id: UuidLike) -> dict[str, Any]:
        """Remove a registered function."""
        return self._read(self.transport.request("DELETE", f"/v2/functions/{function_id}"), dict[str, Any])

    # --- submitting -------------------------------------------------------------------------------------

    def run(self, *args: Any, endpoint_id: UuidLike, function_id: UuidLike, **kwargs: Any) -> str:
        """Call a registered function on an endpoint; return the task's id at once. All keywords are the function's: a
        task with a deadline or the like goes in a batch."""
        batch = self.create_batch()
        task_id = batch.add(function_id, args, kwargs)
        self.batch_run(endpoint_id, batch)
        return task_id

    def create_batch(
        self,
        task_group_id: UuidLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        create_websocket_queue: bool = False,
        result_serializers: list[Strategylike] | None = None,
        *,
        walltime_s: float | None = None,
        max_attempts: int | None = None,
        deadline: Deadline = None,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> Batch:
        """Return an empty batch; `walltime_s` is how many seconds a worker gives each of its tasks, and the rest is as
        in Executor. Raises ValueError for what cannot be."""
        return Batch(
            task_group_id,
            resource_specification,
            user_endpoint_config,
            create_websocket_queue,
            result_serializers=result_serializers,
            walltime_s=walltime_s,
            max_attempts=max_attempts,
            deadline=deadline,
            deadline_s=deadline_s,
            priority=priority,
            serializer=self.serializer,
            data=lambda: self.data,
        )

    @property
    def data(self) -> DataTransfer:
        """Moves large arguments and results between this script and the relay."""
        if self._data is None:
            from mep_sdk.data_transfer import DataTransfer  # most scripts never need it

            with self._making_data:
                self._data = self._data or DataTransfer(self.transport)
        return self._data

    def load_result(self, payload: bytes) -> Any:
        """Return the value of a result by reference. Raises DataCorrupt, DataUnreadable, DataNotFound."""
        return self.data.load_result(payload)

    def batch_run(self, endpoint_id: UuidLike, batch: Batch) -> dict[str, Any]:
        """Submit a batch. Returns request_id, task_group_id, endpoint_id, and tasks: lists of ids by function id.

        Raises TypeError for what is no batch, and ValueError for an empty one.
        """
        checks.check_kind("batch", batch, Batch, "client.create_batch()")
        if not batch:
            raise ValueError("the batch is empty: add tasks to it first, such as batch.add(function_id, args=[1])")
        return msgspec.to_builtins(self.submit(endpoint_id, batch.prepare()))  # type: ignore[no-any-return]  # a dict

    def submit(
        self,
        endpoint_id: UuidLike,
        body: api.SubmitBody,
        *,
        retry_for_s: float | None = None,
        silent_s: float = SILENT_S,
        retrying: Retrying | None = None,
    ) -> api.SubmitAnswer:
        """Submit tasks as the relay's API has them; return its answer once they are on its disk. `retrying` is called
        with each error after which it is tried again."""
        path = f"/v3/endpoints/{self.endpoint_id_of(endpoint_id)}/submit"
        answer = self.transport.post(path, body, retry_for_s=retry_for_s, silent_s=silent_s, retrying=retrying)
        told = self._read(answer, api.SubmitAnswer)
        warn_of_python(told.endpoint_id, told.worker_python)
        return told

    # --- tasks ------------------------------------------------------------------------------------------

    def get_task(self, task_id: UuidLike) -> dict[str, Any]:
        """Return where a task is: `task_id`, `pending`, `status`, `details`, and the `reason` why it waits where the
        relay knows it. One that has ended also has `completion_t` (seconds since the epoch, as text), and its `result`
        or its `exception` (the exception itself, not raised)."""
        return self._status(self._read(self.transport.get(f"/v2/tasks/{task_id}"), api.TaskStatus))

    def get_result(self, task_id: UuidLike) -> Any:
        """Return a task's value, or raise what it raised. Raises TaskPending while it has not ended."""
        task = self.get_task(task_id)
        if task["pending"]:
            raise TaskPending(task_id=task_id, status=task["status"])
        if "exception" in task:
            raise task["exception"]
        return task["result"]

    def get_batch_result(self, task_id_list: Iterable[UuidLike]) -> dict[str, dict[str, Any]]:
        """Return what `get_task` returns for many tasks at once, by id. Unknown ids are left out."""
        found: dict[str, dict[str, Any]] = {}
        for ids in _chunks(list(dict.fromkeys(_task_ids("task_id_list", task_id_list))), _STATUS_CHUNK):
            asked = ids
            while asked:
                body = self.transport.post("/v2/batch_status", api.BatchStatusBody(task_ids=asked))
                answer = self._read(body, api.BatchStatusAnswer)
                found |= {key: self._status(status) for key, status in answer.results.items()}
                # Results that did not fit in one answer are requested again, as long as each answer brings some.
                asked = answer.withheld if len(answer.withheld) < len(asked) else []
        return found

    def endings(
        self, task_ids: Sequence[str], *, retry_for_s: float | None = None
    ) -> tuple[list[api.StreamedResult], list[str], list[str]]:
        """Return three lists: the ended tasks, in the result stream's form; the ids that are not your tasks; and the
        ids to request again, since their results did not fit in one answer. Pending tasks are in none of these."""
        body = api.BatchStatusBody(task_ids=list(task_ids))
        answer = self._read(
            self.transport.post("/v2/batch_status", body, retry_for_s=retry_for_s), api.BatchStatusAnswer
        )
        states = [(told, state_of(told.status)) for told in answer.results.values()]
        ended = [_as_streamed(told, state) for told, state in states if state is not None and state.is_terminal]
        return ended, answer.missing, answer.withheld

    def statuses(self, task_ids: Sequence[str], *, retry_for_s: float | None = None) -> dict[str, str]:
        """Return the status words of those tasks among these that have not ended, by id."""
        body = api.BatchStatusBody(task_ids=list(task_ids))
        answer = self._read(
            self.transport.post("/v2/batch_status", body, retry_for_s=retry_for_s), api.BatchStatusAnswer
        )
        states = {key: (told.status, state_of(told.status)) for key, told in answer.results.items()}
        return {key: word for key, (word, state) in states.items() if state is None or not state.is_terminal}

    def why_waiting(self, task_id: str, endpoint_id: str = "", *, retry_for_s: float | None = None) -> str:
        """Return why a task waits at this endpoint; empty where the relay does not know, or it waits no longer."""
        return self.wait_of(task_id, endpoint_id, retry_for_s=retry_for_s).text

    def wait_of(self, task_id: str, endpoint_id: str = "", *, retry_for_s: float | None = None) -> Wait:
        """Return code, sentence and beginning of a task's wait; empty where the relay does not know, or it waits no
        longer."""
        body = self.transport.request("GET", f"/v2/tasks/{task_id}", retry_for_s=retry_for_s)
        told = self._read(body, api.TaskStatus)
        if state_of(told.status) not in (TaskState.QUEUED, TaskState.DISPATCHED):
            return Wait("", "")
        if not told.reason and endpoint_id:  # a relay of the version before
            body = self.transport.request("GET", f"/v2/endpoints/{endpoint_id}/status", retry_for_s=retry_for_s)
            if self._read(body, dict[str, Any]).get("status") == "offline":
                return Wait(WaitCode.ENDPOINT_OFFLINE, "The endpoint is offline: its site has no link to the relay.")
        return Wait(told.code or "", told.reason or "", told.waiting_since or 0.0)

    def get_task_group(self, task_group_id: UuidLike) -> list[str]:
        """Return the ids of a group's tasks in order of submission."""
        answer = self._read(self.transport.get(f"/v2/taskgroup/{task_group_id}"), api.TaskGroupAnswer)
        return [task["id"] for task in answer.tasks]

    def cancel(self, task_id: UuidLike) -> bool:
        """Cancel a task, waiting or running; return False where it had ended already."""
        return checks.checked_id("task_id", task_id, checks.TASK_IDS) in self.cancel_many([task_id])

    def cancel_many(
        self, task_ids: Iterable[UuidLike], *, retry_for_s: float | None = None, silent_s: float = SILENT_S
    ) -> set[str]:
        """Cancel tasks, waiting or running; return the ids of those that had not ended already.

        A running one ends as soon as its user endpoint has stopped it.
        """
        cancelled: set[str] = set()
        for ids in _chunks(_task_ids("task_ids", task_ids), _STATUS_CHUNK):
            asked = api.CancelBody(task_ids=ids)
            body = self.transport.post("/v3/tasks/cancel", asked, retry_for_s=retry_for_s, silent_s=silent_s)
            answer = self._read(body, api.CancelAnswer)
            cancelled.update(answer.cancelled, answer.asked)
        return cancelled

    def task_groups(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Return your own task groups, the newest first, at most `limit`: `taskgroup_id`, the number of its `tasks`
        (at least so many with `more`), `first_submitted_t` and `last_submitted_t`, seconds since the epoch."""
        found: list[api.OwnGroup] = []
        before: str | None = ""
        while before is not None and (limit is None or len(found) < limit):
            asked = _query(limit=_page(limit, len(found)), before=before)
            answer = self._read(self.transport.get(f"/v3/taskgroups{asked}"), api.OwnGroupsAnswer)
            found += answer.taskgroups
            before = answer.before
        return [msgspec.to_builtins(each) for each in found]

    def tasks(
        self, state: str | Iterable[str] | None = None, since: datetime | float | None = None, limit: int | None = None
    ) -> list[dict[str, Any]]:
        """Return your own tasks, those of the newest group first, at most `limit`: `task_id`, `taskgroup_id`, `status`,
        `endpoint_id`, `function_id`, `submitted_t` and `ended_t`.

        `state` is a status word, "pending", "ended", or several of these; `since` a time, or seconds since the epoch.
        Raises BodyInvalid for other words.
        """
        words = state if isinstance(state, str) or state is None else ",".join(state)
        moment = since.timestamp() if isinstance(since, datetime) else since
        found: list[api.OwnTaskInfo] = []
        after: str | None = ""
        while after is not None and (limit is None or len(found) < limit):
            asked = _query(state=words, since=moment, limit=_page(limit, len(found)), after=after)
            answer = self._read(self.transport.get(f"/v3/tasks{asked}"), api.OwnTasksAnswer)
            found += answer.tasks
            after = answer.after
        return [msgspec.to_builtins(each) for each in found]

    # --- endpoints --------------------------------------------------------------------------------------

    def get_endpoints(self, role: str | None = None) -> list[dict[str, Any]]:
        """Return your own endpoints; with role="any" also those that are open to all. Raises ValueError for others.

        `get_endpoint_metadata` has what a list leaves out: schema, metadata and allowed functions.
        """
        if role not in (None, "owner", "any"):
            raise ValueError(f'role is "owner" or "any", not {role!r}')
        query = f"?{urlencode({'role': role})}" if role is not None else ""
        return self._read(self.transport.get(f"/v2/endpoints{query}"), list[dict[str, Any]])

    def endpoint_id_of(self, endpoint: UuidLike) -> str:
        """Return the id of an endpoint, given by id, alias or OWNER/NAME, your own also by NAME; NAME is its name or
        display name. The relay is asked once for each. Raises EndpointNotFound, EndpointAmbiguous."""
        text = str(endpoint)
        try:
            return str(UUID(text))
        except ValueError:
            known = self._named.get(text)
        if known is None:
            answer = self.transport.get(f"/v3/endpoints/find{_query(name=text)}")
            found = [str(each.get("uuid")) for each in self._read(answer, list[dict[str, Any]])]
            if not found:
                raise EndpointNotFound(endpoint_id=text[:200])
            if len(found) > 1:
                raise EndpointAmbiguous(count=len(found), name=text[:200], found=", ".join(found[:5]))
            known = self._named[text] = found[0]
        return known

    def get_allowed_functions(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Return `restricted`, whether an endpoint runs only some functions, and `functions`: their ids, or digests of
        their code as sha256:DIGEST."""
        allowed = self.get_endpoint_metadata(endpoint_id).get("allowed_functions")
        return {"restricted": allowed is not None, "functions": allowed or []}

    def get_worker_hardware_details(self, endpoint_id: UuidLike) -> str:
        """Start a task that tells what a worker's machine has; return its id. `get_result` gives the text."""
        from mep_sdk.hardware_report import hardware_report

        return self.run(endpoint_id=endpoint_id, function_id=self.register_function(hardware_report))

    def register_endpoint(
        self,
        name: str,
        endpoint_id: UuidLike | None,
        metadata: dict[str, Any] | None = None,
        multi_user: bool | None = None,
        display_name: str | None = None,
        allowed_functions: list[UuidLike] | None = None,
        auth_policy: UuidLike | None = None,
        subscription_id: UuidLike | None = None,
        public: bool | None = None,
        high_assurance: bool | None = None,
        admins: Sequence[UuidLike] | None = None,
        *,
        link_public_key: bytes = b"",
        unseal_public_key: bytes = b"",
    ) -> dict[str, Any]:
        """Register an endpoint, or with `endpoint_id` change it; return what the relay answers.

        It needs the two public keys of its manager and mapper, which `mep register` at the site makes and sends: use
        that. Raises BodyInvalid without keys.
        """
        body = api.RegisterBody(
            endpoint_name=name,
            display_name=display_name,
            metadata=metadata,
            multi_user=bool(multi_user),
            public=bool(public),
            allowed_functions=None if allowed_functions is None else [str(each) for each in allowed_functions],
            authentication_policy=str(auth_policy) if auth_policy else None,
            subscription_uuid=str(subscription_id) if subscription_id else None,
            high_assurance=bool(high_assurance),
            admins=None if admins is None else [str(each) for each in admins],
            link_public_key=link_public_key,
            unseal_public_key=unseal_public_key,
        )
        method, path = (
            ("PUT", f"/v3/endpoints/{self.endpoint_id_of(endpoint_id)}") if endpoint_id else ("POST", "/v3/endpoints")
        )
        return self._read(self.transport.request(method, path, msgspec.msgpack.encode(body)), dict[str, Any])

    def delete_endpoint(self, endpoint_id: UuidLike) -> dict[str, Any]:
        """Remove an endpoint of yours. Tasks that wait for it fail."""
        return self._read(
            self.transport.request("DELETE", f"/v2/endpoints/{self.endpoint_id_of(endpoint_id)}"), dict[str, Any]
        )

    def stop_endpoint(self, endpoint_id: UuidLike) -> None:
        """Raises NotOffered: a relay cannot stop a process at a site."""
        instead = f"run `mep stop NAME` where endpoint {endpoint_id} runs, or delete_endpoint() to remove it."
        raise NotOffered(what="a way to stop an endpoint through the relay", instead=instead)

    def get_result_amqp_url(self) -> dict[str, str]:
        """Raises NotOffered: results come on the relay's own stream."""
        raise NotOffered(what="message queues for results", instead="use an Executor, or get_batch_result().")

    def get_endpoint_metadata(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return what an endpoint's administrator registered for it."""
        return self._get(f"/v2/endpoints/{self.endpoint_id_of(endpoint_uuid)}")

    def describe(self, endpoint: UuidLike) -> dict[str, Any]:
        """Return an endpoint's registration with its `status`, the `config_keys` that its schema names, an
        `example_config`, and in `worker_pythons` the Pythons of your workers there, as far as the relay knows them.
        Executor.get_worker_packages asks a worker for more."""
        from mep_sdk.endpoint_description import described  # few scripts need it

        endpoint_id = self.endpoint_id_of(endpoint)
        found = described(self.get_endpoint_metadata(endpoint_id), self.get_endpoint_status(endpoint_id))
        return {"uuid": endpoint_id, **found}

    def get_endpoint_status(self, endpoint_uuid: UuidLike) -> dict[str, Any]:
        """Return whether an endpoint is connected, and more about its state."""
        return self._get(f"/v2/endpoints/{self.endpoint_id_of(endpoint_uuid)}/status")

    def get_version(self) -> Any:
        """Return the relay's version."""
        return self._read(self.transport.get("/v2/version"), Any)

    # --- reading answers --------------------------------------------------------------------------------

    def _get(self, path: str) -> dict[str, Any]:
        return self._read(self.transport.get(path), dict[str, Any])

    def _read(self, body: bytes, kind: type[_T]) -> _T:
        try:
            value: _T = _decoders[kind].decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RelayAnswerInvalid(url=self.settings.relay_url, reason=str(error)) from error
        return value

    def _task_failure(self, error: Exception, completion_t: str | None) -> Exception:
        """Return what stands for the exception of a task that failed: itself, and more in the drop-in package."""
        return error

    def _status(self, told: api.TaskStatus) -> dict[str, Any]:
        state = state_of(told.status)
        pending = state is None or not state.is_terminal
        status: dict[str, Any] = {"task_id": told.task_id, "pending": pending, "status": told.status}
        status["details"] = told.details
        if state is None or pending:
            waits = {"code": told.code, "reason": told.reason, "waiting_since": told.waiting_since}
            return status | {key: value for key, value in waits.items() if value}
        value, failure = settle(_as_streamed(told, state), self.load_result)
        status["completion_t"] = ended = _epoch(told.completion_t)
        failure = failure and self._task_failure(failure, ended)
        if failure is None:
            return status | {"result": value}
        said = {"code": told.code, "reason": told.reason, "correlation_id": told.correlation_id}
        return status | said | {"exception": failure}


def _epoch(moment: str | None) -> str | None:
    """Return the relay's time in seconds since the epoch, as text: what Globus Compute's SDK gives."""
    return None if moment is None else str(datetime.fromisoformat(moment).timestamp())


def _as_streamed(told: api.TaskStatus, state: TaskState) -> api.StreamedResult:
    """Return a finished task's status in the form in which the result stream has it."""
    opaque = told.result if state is TaskState.SUCCESS else told.exception
    return api.StreamedResult(
        task_id=told.task_id,
        state=state,
        code=told.code or "",
        text=told.reason or "",
        payload=api.opaque_bytes(opaque) if opaque is not None else b"",
        correlation_id=told.correlation_id or "",
    )


def _query(**values: object) -> str:
    """Return a query of those values that are given; empty without any."""
    given = urlencode({name: value for name, value in values.items() if value not in (None, "")})
    return f"?{given}" if given else ""


def _page(limit: int | None, found: int) -> int:
    """Return how many entries to ask for."""
    return min(_LIST_CHUNK, limit - found) if limit is not None else _LIST_CHUNK


def name_of(function: Callable[..., Any]) -> str:
    """Return the name of a function or other callable."""
    given, _ = attempt(getattr, function, "__name__")  # a __getattr__ may raise anything
    return given if isinstance(given, str) and given else type(function).__name__


def doc_of(function: Callable[..., Any]) -> str | None:
    """Return a function's docstring; other callables have only their class's."""
    return inspect.getdoc(function) if inspect.isroutine(function) else None


def _task_ids(name: str, values: Iterable[UuidLike]) -> list[str]:
    """Return ids of tasks as text. Raises TypeError, ValueError."""
    checks.check_several(name, values, "[future.task_id]")
    return [checks.checked_id(f"each of {name}", each, checks.TASK_IDS) for each in values]


def _release(version: str) -> tuple[int, ...]:
    """Return a version's leading numbers."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def _chunks(items: Sequence[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
