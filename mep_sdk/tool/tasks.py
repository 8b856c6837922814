"""The commands run, tasks, groups, result and cancel."""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any

from mep_sdk.client import Client
from mep_sdk.executor import Executor
from mep_sdk.foreign_code import attempt
from mep_sdk.tool import output
from mep_sdk.tool.logins import client_of
from mep_sdk.tool.values import Misused, config_of, id_of, keyword_of, value_of
from mep_sdk.tool.waiting import follow

_SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SUBMIT_S = 120.0
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def run(options: argparse.Namespace) -> int:
    """Run a function at an endpoint and print its result."""
    function = _function(options.what)
    arguments = [value_of(each) for each in options.arguments]
    keywords = dict(keyword_of(each) for each in options.keyword)
    config = config_of(options.config)
    stream = options.stream and not options.json
    executor = Executor(options.endpoint, client_of(options), user_endpoint_config=config, stream_output=stream)
    try:
        future = executor.submit(function, *arguments, **keywords)
        if not executor.flush(_SUBMIT_S):
            output.note(f"The relay has not taken the task within {_SUBMIT_S:.0f} s.")
            return 1
        if options.no_wait and not future.done():  # one that was refused has ended
            _print_submitted(future.task_id, options)
            return 0
        left_s = options.timeout
        if not options.quiet:
            began = time.monotonic()
            follow(future, options.timeout, always=options.progress)
            left_s = None if left_s is None else max(0.0, began + left_s - time.monotonic())
        return _print_outcome(lambda: future.result(left_s), options, future, executor)
    finally:
        executor.shutdown(wait=False)
        logging.getLogger("mep_sdk").setLevel(logging.ERROR)  # how to get the result later was said here


def _print_submitted(task_id: str, options: argparse.Namespace) -> None:
    if options.json:
        output.as_json({"task_id": task_id})
    else:
        output.say(task_id)


def _print_outcome(ask: Callable[[], Any], options: argparse.Namespace, future: Any, executor: Executor) -> int:
    value, error = attempt(ask)  # a task may raise anything
    executor.finish_printing()
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error, TimeoutError) and not future.done():
        output.note(f"Task {future.task_id} goes on. Later: mep-sdk result {future.task_id}")
        return 2
    if error is not None:
        return _print_failure(error, options)
    _print_value(value, options)
    return 0


def _print_value(value: Any, options: argparse.Namespace) -> None:
    if options.json:
        output.as_json({"result": value})
    else:
        output.say(str(value))


def _print_failure(error: BaseException | None, options: argparse.Namespace) -> int:
    kind, text = type(error).__name__, str(error)
    if options.json:
        output.as_json({"error": kind, "message": text})
    else:
        cause = getattr(error, "__cause__", None)
        output.note(_told(str(cause).strip('\n"') if cause is not None else "", error))
    return 1


def _told(there: str, error: BaseException | None) -> str:
    """Return the traceback from there, where there is one, and the error once, with its notes."""
    lines = traceback.format_exception_only(type(error), error) if error is not None else []
    said = [line.rstrip() for line in lines if not line.startswith("remote traceback: see above")]
    if said and there.endswith(said[0]):
        said = said[1:]
    return "\n".join(each for each in (there, *said) if each)


def tasks(options: argparse.Namespace) -> int:
    """List one's own tasks."""
    found = client_of(options).tasks(options.state, _since(options.since), options.limit)
    if options.json:
        output.as_json(found)
        return 0
    rows = [
        (each["task_id"], each["status"], _when(each["submitted_t"]), each["endpoint_id"], each["taskgroup_id"])
        for each in found
    ]
    output.table(("task", "status", "submitted", "endpoint", "group"), rows)
    return 0


def groups(options: argparse.Namespace) -> int:
    """List one's own task groups."""
    found = client_of(options).task_groups(options.limit)
    if options.json:
        output.as_json(found)
        return 0
    rows = [
        (
            each["taskgroup_id"],
            f"{each['tasks']}{'+' if each['more'] else ''}",
            _when(each["first_submitted_t"]),
            _when(each["last_submitted_t"]),
        )
        for each in found
    ]
    output.table(("group", "tasks", "first", "last"), rows)
    return 0


def result(options: argparse.Namespace) -> int:
    """Print the results of tasks: 0 if all succeeded, 1 if one failed or is unknown, 2 if one has not ended."""
    client = client_of(options)
    ids = _ids(client, options)
    found = client.get_batch_result(ids)
    if options.json:
        output.as_json([_outcome(each, found.get(each)) for each in ids])
    elif len(ids) == 1 and found.get(ids[0], {}).get("pending") is False:
        one = found[ids[0]]
        if "exception" in one:
            return _print_failure(one["exception"], options)
        _print_value(one["result"], options)
    else:
        rows = [tuple(_outcome(each, found.get(each)).values()) for each in ids]
        output.table(("task", "status", "result"), [(*row[:2], _one_line(row[2:])) for row in rows])
    states = [found.get(each) for each in ids]
    if any(each is None or "exception" in each for each in states):
        return 1
    return 2 if any(each is not None and each["pending"] for each in states) else 0


def cancel(options: argparse.Namespace) -> int:
    """Cancel tasks; 1 if one had ended already."""
    client = client_of(options)
    ids = _ids(client, options)
    cancelled = client.cancel_many(ids)
    if options.json:
        output.as_json({each: each in cancelled for each in ids})
    else:
        output.table(("task", "cancelled"), [(each, each in cancelled) for each in ids])
    return 0 if len(cancelled) == len(set(ids)) else 1


def _outcome(task_id: str, told: dict[str, Any] | None) -> dict[str, Any]:
    if told is None:
        return {"task_id": task_id, "status": "unknown"}
    found = {"task_id": task_id, "status": told["status"]}
    if "exception" in told:
        return {**found, "error": f"{type(told['exception']).__name__}: {told['exception']}"}
    if told["pending"]:
        return {**found, "reason": told.get("reason")}
    return {**found, "result": told["result"]}


def _one_line(values: tuple[Any, ...]) -> str:
    return " ".join(str(each) for each in values if each is not None)


def _ids(client: Client, options: argparse.Namespace) -> list[str]:
    found = [id_of(each) for each in options.ids]
    if options.group:
        found += client.get_task_group(id_of(options.group))
    if not found:
        raise Misused(given="no task", expected="ids of tasks, or --group ID")
    return found


def _function(what: str) -> Callable[..., Any]:
    module, colon, name = what.partition(":")
    if not (module and colon and name):
        raise Misused(given=what, expected="MODULE:FUNC, for example math:sqrt")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise Misused(given=what, expected=f"a function that can be imported here ({error})") from error
    if not callable(found):
        raise Misused(given=what, expected="a function")
    return found


def _since(text: str | None) -> float | None:
    """Return a moment: seconds since the epoch."""
    if text is None:
        return None
    if span := _SPAN.fullmatch(text):
        return time.time() - float(span[1]) * _UNIT_S[span[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Misused(given=text, expected="90s, 30m, 2h, 7d, or a date such as 2026-11-30T08:00") from None


def _when(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
