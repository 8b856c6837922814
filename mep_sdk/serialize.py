"""Functions, arguments, results and exceptions as bytes, as the SDK sends them and workers return them.

The one module to import from for serialization. The formats are in encoding.py, function_serializer.py and
exception_records.py; the relay never looks inside them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from mep_sdk import encoding
from mep_sdk.errors import ArgumentsUnserializable, DataCorrupt
from mep_sdk.exception_records import ExceptionRecord, load_exception, serialize_exception
from mep_sdk.function_serializer import LoadedFunction, load_function, serialize_function
from mep_sdk.importable import NotSerializable
from mep_wire import data_frames
from mep_wire.errors import ResultUnserializable

__all__ = [
    "ExceptionRecord",
    "LoadedFunction",
    "load_arguments",
    "load_exception",
    "load_function",
    "load_result",
    "result_ways_of",
    "serialize_arguments",
    "serialize_exception",
    "serialize_function",
    "serialize_result",
    "wants_live_output",
    "wants_output",
    "with_inputs",
]


def serialize_arguments(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    name: str = "the function",
    local_by_value: bool = True,
    as_json: bool = False,
    result_ways: Sequence[str] = (),
    explain: bool = True,
    wants_output: bool = False,
    live_output: bool = False,
    limit: int = 0,
) -> bytes:
    """Return the bytes of one call's arguments. Raises ArgumentsUnserializable, and encoding.OverLimit where they are
    more than `limit`, unless that is 0.

    `result_ways`: how the result may be sent, to be tried in this order (see strategies). `explain` looks for the part
    that does not pickle, which takes up to a second. `wants_output`: the caller takes results of `with_output`.
    `live_output`: and what the task prints while it runs.
    """
    try:
        call, tail = (args, dict(kwargs)), encoding.OUTPUT_WANTED if wants_output else b""
        if live_output:
            tail = encoding.LIVE_OUTPUT_WANTED
        if as_json:
            data = encoding.dumps_json(call, tail)
        else:
            data = encoding.dumps(call, local_by_value=local_by_value, tail=tail, limit=limit)
        return encoding.request(list(result_ways), data) if result_ways else data
    except NotSerializable as error:
        way = _fault_in_call(args, kwargs, local_by_value=local_by_value) if explain and not as_json else ""
        raise ArgumentsUnserializable(name=name, reason=f"{error}{way}") from error


def _fault_in_call(args: tuple[Any, ...], kwargs: Mapping[str, Any], *, local_by_value: bool) -> str:
    named = {f"argument {index + 1}": each for index, each in enumerate(args)}
    for name, each in {**named, **{f"argument {key}": value for key, value in kwargs.items()}}.items():
        try:
            encoding.dumps(each, local_by_value=local_by_value)
        except NotSerializable:
            return encoding.way_to_fault(each, name, local_by_value=local_by_value) or f" ({name})"
    return ""


def load_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs). Raises DataCorrupt or DataUnreadable."""
    results, data = encoding.split_inputs(data)
    args, kwargs = _load_arguments(data)
    if not results:
        return args, kwargs
    from mep_sdk.dependencies import with_results  # few tasks have the results of others

    values = [_load_input(encoding.split_output(each)[2]) for each in results]
    filled: tuple[tuple[Any, ...], dict[str, Any]] = with_results((args, kwargs), values)
    return filled


def _load_input(data: bytes) -> Any:
    if data[3:4] == data_frames.DATA:
        from mep_sdk import data_files  # most workers never get any

        return data_files.load_result(data)
    return encoding.loads(data, "result of another task")


def _load_arguments(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if data[3:4] == encoding.REQUEST:
        encoding.unframe(data, "argument list")
        data = encoding.inner(data)
    if data[3:4] == data_frames.DATA:
        from mep_sdk import data_files  # most workers never get any

        return data_files.load_arguments(data)
    value = encoding.loads(data, "argument list")
    if not (isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], tuple | list)):
        raise DataCorrupt(what="argument list", reason="it is not a pair of args and kwargs")
    args, kwargs = value
    return tuple(args), kwargs


def serialize_result(value: object, ways: Sequence[str] = (), limit: int = 0) -> bytes:
    """Return the bytes of a function's value, in the first of these ways that takes it. Raises ResultUnserializable,
    and encoding.OverLimit where a pickle has more than `limit` bytes, unless that is 0."""
    reasons = []
    for way in ways or ("pickle",):
        try:
            if way == "json":
                return encoding.dumps_json(value)
            return encoding.dumps(value, local_by_value=False, limit=limit)
        except NotSerializable as error:
            fault = encoding.way_to_fault(value, "result", local_by_value=False) if way != "json" else ""
            reasons.append(f"{error}{fault}" if len(ways) < 2 else f"{way}: {error}{fault}")
    raise ResultUnserializable(reason="; ".join(reasons))


def result_ways_of(arguments: bytes) -> list[str]:
    """Return how the caller wants the result; empty where they do not say."""
    return encoding.ways_wanted(encoding.split_inputs(arguments)[1])


def wants_output(arguments: bytes) -> bool:
    """Return whether the caller takes what the task prints with its result."""
    return arguments.endswith(encoding.OUTPUT_WANTED)


def wants_live_output(arguments: bytes) -> bool:
    """Return whether the caller takes what the task prints while it runs."""
    return arguments.endswith(encoding.LIVE_OUTPUT_WANTED)


with_inputs = encoding.with_inputs


def load_result(data: bytes) -> Any:
    """Return the value of a task. Raises DataCorrupt or DataUnreadable."""
    return encoding.loads(encoding.split_output(data)[2], "result", "here")


def __getattr__(name: str) -> Any:
    """The classes of strategies, as Globus Compute's package of this name has them: most workers never ask."""
    home = "mep_sdk.compute_serializer" if name == "ComputeSerializer" else "mep_sdk.strategy_classes"
    if name in _STRATEGIES:
        return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_STRATEGIES = frozenset(
    {
        *("AllCodeStrategies", "AllDataStrategies", "AllowlistWildcard", "CombinedCode", "ComboSerializationStrategy"),
        *("ComputeSerializer", "DEFAULT_STRATEGY_CODE", "DEFAULT_STRATEGY_DATA", "DillCode", "DillCodeSource"),
        *("DillCodeTextInspect", "DillDataBase64", "JSONData", "PureSourceDill", "PureSourceTextInspect"),
        "SerializationStrategy",
    }
)
