"""A concurrent.futures.Executor with its workers on a site's machines."""

from __future__ import annotations

import atexit
import concurrent.futures
import functools
import hashlib
import itertools
import logging
import marshal
import os
import threading
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload
from uuid import UUID

from mep_sdk import argument_checks as checks
from mep_sdk.batch import UuidLike, checked_payload
from mep_sdk.captured import MAX_COMPARED_BYTES, Captured
from mep_sdk.client import Client, doc_of, name_of
from mep_sdk.compute_serializer import ComputeSerializer
from mep_sdk.errors import ArgumentsUnserializable, DependencyFailed
from mep_sdk.foreign_code import failure_text
from mep_sdk.futures import TaskFuture
from mep_sdk.map_chunks import run_chunk
from mep_sdk.serialize import serialize_function
from mep_sdk.strategies import ONLY_JSON, Strategylike, result_ways
from mep_sdk.submitter import Function, Item, Submitter, Target
from mep_sdk.task_options import Deadline, TaskOptions, checked_options
from mep_wire import api, limits
from mep_wire.errors import MepError, NotConfigured, PayloadTooLarge
from mep_wire.ids import canonical_json, uuid7
from mep_wire.user_values import check_characters

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

    from mep_sdk.progress import Progress

log = logging.getLogger("mep_sdk")

_P = ParamSpec("_P")
_T = TypeVar("_T")
_A = TypeVar("_A")

LOST_RELAY_TIMEOUT_S = 300.0
_EXIT_FLUSH_S = 10.0
_EXIT_PRINT_S = 1.0


class _Known:
    """A plain function that was submitted, and what it used of its script then. One that was registered by hand has
    nothing of the kind: it stays as it was."""

    def __init__(
        self, function: Function, captured: Captured | None = None, digest: bytes = b"", *, is_small: bool = False
    ) -> None:
        self.function, self._captured, self._digest = function, captured, digest
        self._compares = is_small and captured is not None and not captured.steady
        self._is_sure = False

    def is_current(self, serialize: Callable[[], bytes]) -> bool:
        """Return whether the function would be serialized as it was."""
        if self._captured is None:
            return True
        if not self._captured.unchanged():
            return False
        if not self._compares or _digest(code := serialize()) == self._digest:
            return True
        if not self._is_sure:  # some values do not give the same bytes twice
            self._is_sure = True
            self._compares = _digest(serialize()) == _digest(code)
        return not self._compares


def _unwrapped(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Return a call of a partial or a bound method as one of the function within: that is registered once."""
    while type(fn) is functools.partial:
        fn, args, kwargs = fn.func, (*fn.args, *args), {**fn.keywords, **kwargs}
    if type(fn) is types.MethodType and isinstance(fn.__func__, types.FunctionType):
        fn, args = fn.__func__, (fn.__self__, *args)
    return fn, args, kwargs


class Executor(concurrent.futures.Executor):
    """Runs functions on an endpoint.

    `submit` returns at once; tasks go out in batches by themselves. Attributes may be set between submits and
    hold for the tasks submitted from then on. A script that ends without `shutdown` (or `with`) still sends
    what it has submitted, for up to ten seconds, and does not wait for results: `reload_tasks` gets them later.
    """

    task_count_submitted = 0
    amqp_port: int | None = None
    """Globus Compute's; without effect, as results come from the relay's own port."""

    def __init__(
        self,
        endpoint_id: UuidLike | None = None,
        client: Client | None = None,
        task_group_id: UuidLike | None = None,
        resource_specification: dict[str, Any] | None = None,
        user_endpoint_config: dict[str, Any] | None = None,
        label: str = "",
        batch_size: int = limits.MAX_TASKS_PER_SUBMIT,
        amqp_port: int | None = None,
        api_burst_limit: int = 4,
        api_burst_window_s: int = 16,
        serializer: ComputeSerializer | None = None,
        result_serializers: Iterable[Strategylike] | None = None,
        *,
        container_id: UuidLike | None = None,
        walltime_s: float | None = None,
        max_attempts: int | None = None,
        deadline: Deadline = None,
        deadline_s: float | None = None,
        priority: int = 0,
        relay_url: str | None = None,
        token: str | None = None,
        profile: str | None = None,
        allow_insecure: bool = False,
        lost_relay_timeout_s: float = LOST_RELAY_TIMEOUT_S,
        progress: Any = False,
        stream_output: bool = False,
        **unrecognized: Any,
    ) -> None:
        """Make an executor for `endpoint_id`; `client` (or `relay_url`, `token`, `profile`) says through which relay.

        `batch_size` is the most tasks in one request; `walltime_s` how long a worker lets a task run.
        `max_attempts`: how often a task may be begun where what runs it dies (worker, node, process); the endpoint
        says, if you do not, and does not run it again unless its administrator chose otherwise. A task that has not
        ended at its `deadline` (a time), or `deadline_s` seconds after it was submitted, ends with TaskExpired.
        `priority`: -5 to 5, higher ones of your own waiting tasks first.
        `lost_relay_timeout_s`: `shutdown(wait=True)` gives up with RelayAnswerMissing once the relay has been
        out of reach for so long. `serializer` says how functions and arguments are serialized, `result_serializers`
        (strategies for data, tried in this order) how results are. `amqp_port` and the two limits of bursts are Globus
        Compute's, and have no effect. `progress` shows a bar of ended tasks: True for tqdm's, or a class like tqdm's.
        `stream_output` prints tasks' output here as it comes. Raises what Client raises, and ValueError.
        """
        _check(unrecognized, client, progress, lost_relay_timeout_s)
        self.amqp_port, self.api_burst_limit, self.api_burst_window_s = amqp_port, api_burst_limit, api_burst_window_s
        self._made_client = client is None
        self.client = self._client_for(client, relay_url, token, profile, allow_insecure=allow_insecure)
        self.endpoint_id, self.container_id, self.task_group_id = endpoint_id, container_id, task_group_id
        self.resource_specification, self.user_endpoint_config = resource_specification, user_endpoint_config
        self.label, self.walltime_s, self.max_attempts = label, walltime_s, max_attempts
        self.deadline, self.deadline_s, self.priority = deadline, deadline_s, priority
        self._options()
        self._by_object: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
        self._by_digest: dict[bytes, Function] = {}
        self.serializer, self.result_serializers = serializer or self.client.serializer, result_serializers
        self._progress, self._bar_of_data, self.stream_output = _progress(progress), progress, stream_output
        self._session = Submitter(self.client, self._task_failure, lost_relay_timeout_s=lost_relay_timeout_s)
        self.batch_size = batch_size
        _remember(self, self._session)
        self._complete = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; warn of one that this class has not, since a misspelt option would change nothing."""
        known = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if not known and "_complete" in self.__dict__:
            import difflib

            options = [each for each in dir(self) if not each.startswith("_") and not callable(getattr(self, each))]
            near = difflib.get_close_matches(name, options, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            warnings.warn(f"Executor has no attribute {name!r}: setting it has no effect.{hint}", stacklevel=2)
        super().__setattr__(name, value)

    def _repr_html_(self) -> str:
        from mep_sdk import html  # only notebooks need it

        counts = self._session.stats()
        shown = [f"{count} {state}" for state, count in counts.items() if count]
        rows = [
            ("endpoint", str(self.endpoint_id or "")),
            ("task group", str(self.task_group_id)),
            ("tasks", ", ".join(shown) or "none"),
            ("elapsed", html.seconds(self._session.elapsed_s())),
        ]
        return html.table(f"Executor {self.label}".rstrip(), rows, extra=html.bar(counts))

    def __repr__(self) -> str:
        label = f"{self.label}; " if self.label else ""
        return f"Executor<{label}endpoint_id={self.endpoint_id}; task_group_id={self.task_group_id}>"

    # --- attributes -------------------------------------------------------------------------------------

    @property
    def endpoint_id(self) -> UUID | None:
        """The endpoint that tasks are sent to."""
        return self._endpoint_id

    @endpoint_id.setter
    def endpoint_id(self, value: UuidLike | None) -> None:
        try:
            self._endpoint_id = _uuid(value)
        except ValueError:
            if not isinstance(value, str) or not value:
                raise
            self._endpoint_id = UUID(self.client.endpoint_id_of(value))  # a name
        self._endpoint_text = str(self._endpoint_id)

    @property
    def container_id(self) -> UUID | None:
        """The container named when functions are registered."""
        return self._container_id

    @container_id.setter
    def container_id(self, value: UuidLike | None) -> None:
        self._container_id = _uuid(value)

    @property
    def task_group_id(self) -> UUID:
        """The group that tasks belong to: with it `reload_tasks` finds them again. Set to None, a new one is made."""
        return self._task_group_id

    @task_group_id.setter
    def task_group_id(self, value: UuidLike | None) -> None:
        self._task_group_id = _uuid(value) or uuid7()
        self._task_group_text = str(self._task_group_id)

    @property
    def user_endpoint_config(self) -> dict[str, Any] | None:
        """Values for the endpoint's template. Each submit takes a copy, so changes hold from the next one on."""
        return self._user_endpoint_config

    @user_endpoint_config.setter
    def user_endpoint_config(self, value: dict[str, Any] | None) -> None:
        _snapshot(value, "user_endpoint_config")
        self._user_endpoint_config = value

    @property
    def resource_specification(self) -> dict[str, Any] | None:
        """What a task needs (`num_nodes`, `ranks_per_node`, ...), where the endpoint's engine asks for it."""
        return self._resource_specification

    @resource_specification.setter
    def resource_specification(self, value: dict[str, Any] | None) -> None:
        _snapshot(value, "resource_specification")
        self._resource_specification = value

    @property
    def serializer(self) -> ComputeSerializer:
        """How functions and arguments are serialized, from the next submit on."""
        return self._serializer

    @serializer.setter
    def serializer(self, value: ComputeSerializer) -> None:
        checks.check_kind("serializer", value, ComputeSerializer, 'ComputeSerializer(strategy_data="JSONData")')
        self._serializer = value
        self._by_object.clear()  # functions are serialized again, and registered again if the bytes differ

    @property
    def result_serializers(self) -> Iterable[Strategylike] | None:
        """In which ways results may be sent, tried in this order; None for what suits each. With JSONData alone,
        nothing of results and exceptions is unpickled here."""
        return self._result_serializers

    @result_serializers.setter
    def result_serializers(self, value: Iterable[Strategylike] | None) -> None:
        checks.check_several("result_serializers", value, '["JSONData"]')
        given = None if value is None else list(value)
        self._result_ways = result_ways(given or ())
        self._result_serializers = given

    @property
    def batch_size(self) -> int:
        """The most tasks that go out in one request."""
        return self._session.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        checks.check_count("batch_size", value, 128)
        self._session.batch_size = max(1, min(value, limits.MAX_TASKS_PER_SUBMIT))

    # --- submitting -------------------------------------------------------------------------------------

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> TaskFuture[_T]:
        """Call `fn(*args, **kwargs)` on the endpoint; return its future, which has a `task_id`.

        A function is registered with the relay when first submitted, and again where the globals, closure or defaults
        that it uses have changed since. Raises FunctionUnserializable, ArgumentsUnserializable, PayloadTooLarge,
        NotConfigured without an endpoint_id, RuntimeError after shutdown, ValueError for an option (`deadline`, ...)
        that cannot be. Everything else arrives in the future.
        """
        if self._serializer.as_json:
            return self._submit(self._function(fn), args, kwargs, name_of(fn))
        function, all_args, all_kwargs = _unwrapped(fn, args, kwargs)
        return self._submit(self._function(function), all_args, all_kwargs, name_of(function))

    def asubmit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> asyncio.Future[_T]:
        """Submit as `submit` does, from a coroutine: `value = await executor.asubmit(fn, 1)`. The task is on its way
        whether or not it is awaited. To cancel the future cancels the task. Raises RuntimeError outside a coroutine.
        """
        from mep_sdk.async_futures import for_asyncio, running_loop  # only coroutines need asyncio

        return for_asyncio(running_loop(), self.submit(fn, *args, **kwargs))

    def submit_to_registered_function(
        self, function_id: UuidLike, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None
    ) -> TaskFuture[Any]:
        """Call a registered function by its id; return the future. Raises as `submit` does."""
        checks.check_call(args, kwargs)
        known = Function(id=checks.checked_id("function_id", function_id, checks.FUNCTION_IDS))
        return self._submit(known, args or (), kwargs or {}, f"function {function_id}")

    def register_function(self, fn: Callable[..., Any], function_id: UuidLike | None = None, **options: Any) -> str:
        """Register `fn` now and return its id; or tell the id under which it is registered already.

        `options` are those of Client.register_function. Raises ValueError for a function that has another id.
        """
        found = self._by_object.get(fn) if isinstance(fn, types.FunctionType) else None
        known = found.function if found is not None else None
        if known is not None and known.id and str(function_id or known.id) != known.id:
            raise ValueError(f"{name_of(fn)} is registered already, as {known.id}")
        if known is None or not known.id:
            given = function_id and checks.checked_id("function_id", function_id, checks.FUNCTION_IDS)
            new_id = given or self.client.register_function(fn, **options)
            known = Function(id=new_id)
            if isinstance(fn, types.FunctionType):
                self._by_object[fn] = _Known(known)
            else:
                self._by_digest[_digest(serialize_function(fn, self._serializer.code))] = known
        return known.id

    def register_source_code(self, source: str, function_name: str, **options: Any) -> str:
        """Register the function of this name in `source`; return its id. `options` are those of
        Client.register_source_code."""
        return self.client.register_source_code(source, function_name, **options)

    def get_worker_hardware_details(self) -> str:
        """Return what a worker's machine has, as text. Waits for the task that tells it."""
        from mep_sdk.hardware_report import hardware_report

        return str(self.submit(hardware_report).result())

    def get_worker_packages(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the `python` of a worker, its `implementation`, `executable` and `system`, and its `packages`: their
        versions by name. Waits for the task that tells it, `timeout_s` seconds at most; raises TimeoutError."""
        from mep_sdk.worker_report import worker_report

        return self.submit(worker_report).result(timeout_s)

    @overload
    def map(
        self, fn: Callable[[_A], _T], iterable: Iterable[_A], /, *, timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]: ...

    @overload
    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]: ...

    def map(
        self, fn: Callable[..., _T], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[_T]:
        """Return an iterator over `fn` of each set of arguments, in order, like the built-in map.

        All calls are submitted at once. With a `chunksize` above 1 so many calls make one task, which saves
        work where calls are short. `timeout` is in seconds from this call; TimeoutError is raised after it.
        Tasks that remain when the iterator is closed are cancelled.
        """
        checks.check_count("chunksize", chunksize, 100)
        checks.check_timeout("timeout", timeout)
        checks.check_iterables(iterables)
        ends = None if timeout is None else time.monotonic() + timeout
        calls = zip(*iterables, strict=False)
        if chunksize == 1:
            return self._results([self.submit(fn, *call) for call in calls], ends)
        code = serialize_function(fn, self._serializer.code)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        results = self._results([self.submit(run_chunk, code, chunk) for chunk in chunks], ends)
        return itertools.chain.from_iterable(results)

    def _results(self, futures: list[TaskFuture[_T]], ends: float | None) -> Iterator[_T]:
        futures.reverse()

        def iterate() -> Iterator[_T]:
            try:
                while futures:
                    value = futures[-1].result(None if ends is None else ends - time.monotonic())
                    futures.pop()
                    yield value
            finally:
                if futures:
                    self._session.cancel_futures(futures)

        return iterate()

    def cancel(self, futures: Iterable[TaskFuture[Any]]) -> int:
        """Cancel those of these tasks that have not ended; return their number. One request for all of them: see
        TaskFuture.cancel. Raises ForkedExecutor in a forked child."""
        self._session.check_process()
        checks.check_several("futures", futures, "[future]")
        asked = list(futures)
        for each in asked:
            checks.check_kind("each of the futures", each, TaskFuture, "executor.submit(f)")
        return self._session.cancel_futures(asked)

    def stats(self) -> dict[str, int]:
        """Return how many of this executor's tasks are `unsent`, `waiting`, `running`, `succeeded`, `failed` and
        `cancelled`. Which of the waiting ones run is what the relay told last. Raises ForkedExecutor in a forked
        child."""
        self._session.look_soon()
        return self._session.stats()

    def reload_tasks(self, task_group_id: UuidLike | None = None) -> list[TaskFuture[Any]]:
        """Return a future for every task of the group, in order of submission, however it was submitted.

        With `task_group_id` the executor takes that group for its own. Raises TaskGroupNotFound, and ForkedExecutor in
        a forked child.
        """
        self._session.check_process()
        if task_group_id is not None:
            self.task_group_id = task_group_id
        group = str(self.task_group_id)
        task_ids = self.client.get_task_group(group)
        return self._session.adopt(group, task_ids, only_json=self._result_ways == ONLY_JSON)

    # --- ending -----------------------------------------------------------------------------------------

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything submitted is on the relay's disk (or refused); return whether it is. From then on this
        process is not needed for the tasks to run.

        This takes at most `timeout_s` seconds. Without a timeout it takes as long as requests arrive, and ends once
        none has arrived for ten seconds. Raises ForkedExecutor in a forked child.
        """
        checks.check_timeout("timeout_s", timeout_s)
        return self._session.flush(timeout_s)

    def finish_printing(self) -> None:
        """With `stream_output`, wait until all that has come of tasks' output is printed."""
        self._session.finish_printing()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop accepting tasks; with `wait`, return when every task has ended.

        `cancel_futures` cancels everything that has not ended, on the endpoint too. Raises RelayAnswerMissing
        where the relay stays out of reach; the futures left then carry the same error.
        """
        self._session.stop(cancel_futures=cancel_futures)
        if self._progress is not None:
            self._progress.finish()
        if wait:
            self._session.wait()
            if self._made_client:
                self.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: types.TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self.shutdown, cancel_futures=isinstance(exc_val, asyncio.CancelledError))

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: types.TracebackType | None
    ) -> bool | None:
        if isinstance(exc_val, KeyboardInterrupt) and (left := self._session.unfinished()):
            log.warning("waiting for tasks still to end: %d; interrupt again to leave them to the relay", left)
        return super().__exit__(exc_type, exc_val, exc_tb)

    def _flush_at_exit(self, timeout_s: float) -> None:
        self._session.finish_printing(min(_EXIT_PRINT_S, timeout_s))
        if not self._session.unfinished():
            return
        sent = self._session.flush(timeout_s)
        left = self._session.unfinished()
        if not sent:
            log.error("exit with tasks that could not be sent to relay %s", self.client.settings.relay_url)
        if left:
            again = f'Executor(task_group_id="{self.task_group_id}").reload_tasks()'
            log.warning("tasks still to end: %d; %s gets their results", left, again)

    # --- within -----------------------------------------------------------------------------------------

    _client_type = Client

    @classmethod
    def _client_for(
        cls,
        client: Client | None,
        relay_url: str | None,
        token: str | None,
        profile: str | None,
        *,
        allow_insecure: bool,
    ) -> Client:
        """Return the client that was given, or a new one. Raises ValueError for both, and what Client raises."""
        if client is None:
            return cls._client_type(relay_url, token, profile=profile, allow_insecure=allow_insecure)
        if any(each is not None for each in (relay_url, token, profile)):
            raise ValueError("pass either client=..., or profile=... or relay_url=... and token=..., not both")
        return client

    @staticmethod
    def _task_failure(error: Exception) -> Exception:
        """Return what stands for the exception of a task that failed: itself, and more in the drop-in package."""
        return error

    def _submit(self, function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], name: str) -> TaskFuture[Any]:
        if self._endpoint_id is None:
            raise NotConfigured(what="endpoint_id", remedy="Pass Executor(endpoint_id=...), or set the attribute.")
        target = Target(
            self._endpoint_text,
            self._task_group_text,
            _snapshot(self._user_endpoint_config, "user_endpoint_config"),
            _snapshot(self._resource_specification, "resource_specification"),
            self._options(),
        )
        ways = self._result_ways
        live, only_json = bool(self.stream_output), ways == ONLY_JSON
        how: dict[str, Any] = {
            "name": name,
            "as_json": self._serializer.as_json,
            "result_ways": ways,
            "live_output": live,
            "data": lambda: self.client.data,
            "progress": self._bar_of_data,
        }
        try:
            payload = checked_payload(args, kwargs, explain=False, **how)
        except ArgumentsUnserializable:
            dump: Callable[..., bytes] = functools.partial(checked_payload, **how)
            from mep_sdk import dependencies  # most scripts have no futures among their arguments

            waits_for = list(dependencies.futures_in([args, kwargs]))
            if not waits_for:
                dump(args, kwargs)  # and say which part it is
                raise
            future = self._session.submit(target, function, None, live=live, only_json=only_json)
            future.waits_for = tuple(waits_for)
            send = functools.partial(self._send_when_ended, future, target, function, dump, args, kwargs, waits_for)
            at_relay = self._by_reference(future, target, function, dump, args, kwargs)
            if at_relay is None:
                _after_all(waits_for, send)
            else:
                at_relay.otherwise = functools.partial(_after_all, waits_for, send)
                self._session.supply(at_relay)
        else:
            future = self._session.submit(target, function, payload, live=live, only_json=only_json)
        future.function_name = name
        self.__dict__["task_count_submitted"] = self.task_count_submitted + 1  # __setattr__ costs as much as the id
        if self._progress is not None:
            self._progress.submitted(future)
        return future

    def _by_reference(
        self,
        future: TaskFuture[Any],
        target: Target,
        function: Function,
        dump: Callable[..., bytes],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Item | None:
        """Return a task that the relay is to send with the results of others; None where it cannot."""
        from mep_sdk import dependencies

        others = list(dict.fromkeys(future.waits_for))
        if self._serializer.as_json or len(others) > limits.MAX_DEPENDENCIES or all(each.done() for each in others):
            return None
        if not all(isinstance(each, TaskFuture) and self._session.can_refer_to(each, target) for each in others):
            return None
        try:
            payload = dump(*dependencies.by_reference([tuple(args), dict(kwargs)], others), explain=False)
        except MepError:
            return None  # and it says so where it fails
        ids = tuple(each.task_id for each in others if isinstance(each, TaskFuture))
        return Item(future, target, function, payload, ids)

    def _send_when_ended(
        self,
        future: TaskFuture[Any],
        target: Target,
        function: Function,
        dump: Callable[..., bytes],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        waited_for: list[concurrent.futures.Future[Any]],
    ) -> None:
        """Queue a task after the futures among its arguments have ended."""
        from mep_sdk import dependencies

        if failed := dependencies.failed_among(waited_for):
            which, error = failed
            reason = f"{getattr(which, 'task_id', 'a future')}: {'cancelled' if error is None else failure_text(error)}"
            self._session.give_up(future, _caused(DependencyFailed(reason=reason), error))
            return
        try:
            values = dependencies.with_values([tuple(args), dict(kwargs)])
            self._session.supply(Item(future, target, function, dump(*values)))
        except MepError as error:  # what the relay would not take
            self._session.give_up(future, error)

    def _options(self) -> TaskOptions:
        return checked_options(self.walltime_s, self.max_attempts, self.deadline, self.deadline_s, self.priority)

    def _function(self, fn: Callable[..., Any]) -> Function:
        # Plain functions are known by identity. Other callables may have changed since last time, and a
        # lambda in a loop is a new one each time: those are known by their bytes.
        plain = isinstance(fn, types.FunctionType)
        found = self._by_object.get(fn) if plain else None
        if found is not None and found.is_current(lambda: serialize_function(fn, self._serializer.code)):
            return found.function
        code = serialize_function(fn, self._serializer.code)
        digest = _digest(code)
        known = self._by_digest.get(digest)
        if known is None:
            known = self._by_digest[digest] = Function(self._function_body(fn, code))
        if isinstance(fn, types.FunctionType):
            self._by_object[fn] = _Known(known, Captured(fn), digest, is_small=len(code) <= MAX_COMPARED_BYTES)
        return known

    def _function_body(self, fn: Callable[..., Any], code: bytes) -> api.FunctionBody:
        if len(code) > limits.MAX_FUNCTION_BYTES:
            what = f"Function {name_of(fn)}"
            raise PayloadTooLarge(what=what, size=len(code), limit=limits.MAX_FUNCTION_BYTES)
        return api.FunctionBody(
            function_name=name_of(fn),
            function_code=code,
            description=doc_of(fn),
            container_uuid=str(self._container_id) if self._container_id else None,
        )


def _check(unrecognized: Iterable[str], client: Any, progress: Any, lost_relay_s: Any) -> None:
    """Check options of an executor, and warn of unknown ones."""
    for name in unrecognized:
        warnings.warn(f"The {name!r} argument is not recognized and has no effect.", stacklevel=3)
    checks.check_kind("client", client, Client, 'Client("https://relay.example.edu", "mep_...")')
    checks.check_seconds("lost_relay_timeout_s", lost_relay_s, LOST_RELAY_TIMEOUT_S)
    if progress and progress is not True and not callable(progress):
        raise TypeError(
            f"progress is True, or a class that is called as tqdm's is, such as tqdm.tqdm, not {progress!r}"
        )


def _progress(wanted: Any) -> Progress | None:
    if not wanted:
        return None
    from mep_sdk.progress import Progress  # only those who want a bar need it

    return Progress(wanted)


def _caused(error: MepError, cause: BaseException | None) -> MepError:
    error.__cause__ = cause
    return error


def _after_all(futures: list[concurrent.futures.Future[Any]], call: Callable[[], None]) -> None:
    """Have `call` called once all of these have ended."""
    left, lock = len(futures), threading.Lock()

    def ended(_: object) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            call()

    for each in futures:
        each.add_done_callback(ended)


def _digest(code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16).digest()


def _uuid(value: UuidLike | None) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    try:
        return UUID(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an id: ids look like 4b116d3c-1703-4f8f-9f6f-39921e5864df") from None


_EXAMPLES = {
    "user_endpoint_config": '{"partition": "short"}',
    "resource_specification": '{"num_nodes": 2, "ranks_per_node": 4}',
}


def _snapshot(value: dict[str, Any] | None, what: str) -> bytes:
    """Return a copy of `value` as JSON; empty for None. Raises TypeError, ValueError and what `_checked` raises."""
    if value is None:
        return b""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is a dict or None, such as {what}={_EXAMPLES[what]}, not {checks.shown(value)}")
    try:
        given = marshal.dumps(value, 2)  # to know it again: most submits have the same
    except ValueError:
        return _checked(value, what)
    known = _snapshots.get(what)
    if known is None or known[0] != given:
        known = _snapshots[what] = (given, _checked(value, what))
    return known[1]


def _checked(value: dict[str, Any], what: str) -> bytes:
    """Raises TypeError, ValueError, PayloadTooLarge, UserConfigInvalid."""
    if what == "user_endpoint_config":
        check_characters(value)
    from mep_sdk.json_values import checked_json  # most executors have no values to check

    text = canonical_json(checked_json(value, what))
    if len(text) > limits.MAX_USER_CONFIG_BYTES:
        raise PayloadTooLarge(what=what, size=len(text), limit=limits.MAX_USER_CONFIG_BYTES)
    return text


_snapshots: dict[str, tuple[bytes, bytes]] = {}
"""The last value of each option, marshalled, and its JSON."""


_executors: weakref.WeakSet[Executor] = weakref.WeakSet()
_executors_lock = threading.RLock()
"""Held wherever `_executors` is changed or copied. One that is collected goes by itself, also while it is held."""


def _remember(executor: Executor, session: Submitter) -> None:
    with _executors_lock:
        _executors.add(executor)
    # An executor without references ends its threads once its tasks have ended.
    weakref.finalize(executor, session.stop, cancel_futures=False).atexit = False


def _forked() -> None:
    global _executors_lock
    _executors_lock = threading.RLock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _at_exit() -> None:
    with _executors_lock:
        executors = list(_executors)
    ends = time.monotonic() + _EXIT_FLUSH_S  # for all of them together
    for executor in executors:
        executor._flush_at_exit(max(0.0, ends - time.monotonic()))  # noqa: SLF001 - the same module
