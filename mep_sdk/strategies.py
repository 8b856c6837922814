"""Serialization strategies by the names that Globus Compute gives them: to choose one, and to allow only some.

Serialized data carries MEP's own tags (frames, functions); each name stands for one or more of them.
Which tags a function or an argument list has is read without unpickling or unmarshalling anything, so that a user
endpoint can refuse what its site does not allow before any worker sees it. Called by the SDK and the user endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from mep_sdk import encoding
from mep_sdk.errors import DataCorrupt
from mep_sdk.function_record import SerializedFunction, read_record
from mep_wire import data_frames
from mep_wire.errors import MepError, SerializerNotAllowed

BYTECODE, SOURCE, REFERENCE, CLOUDPICKLED = "bytecode", "source text", "reference", "cloudpickled code"
"""How a function travels: its code object; its source text; as the name of an installed one; by cloudpickle."""
PICKLED, JSON = "pickle", "json"
"""How values travel. A cloudpickle of a value counts as a pickle."""
ONLY_JSON = [JSON]
"""The `result_ways` with which nothing of a result is unpickled."""
_UNKNOWN = "an unknown way"
_CODE = frozenset({BYTECODE, SOURCE, REFERENCE, CLOUDPICKLED})
_DATA = frozenset({PICKLED, JSON})

CODE_STRATEGIES: dict[str, frozenset[str]] = {
    "CombinedCode": _CODE,
    "AllCodeStrategies": _CODE,
    "DillCode": frozenset({BYTECODE, REFERENCE, CLOUDPICKLED}),
    "DillCodeSource": frozenset({SOURCE}),
    "DillCodeTextInspect": frozenset({SOURCE}),
    "PureSourceDill": frozenset({SOURCE}),
    "PureSourceTextInspect": frozenset({SOURCE}),
}
"""Which of our ways a strategy for functions stands for."""
DATA_STRATEGIES: dict[str, frozenset[str]] = {
    "AllDataStrategies": _DATA,
    "DillDataBase64": frozenset({PICKLED}),
    "JSONData": frozenset({JSON}),
}
"""Which of our ways a strategy for arguments and results stands for."""
_PACKAGES = ("globus_compute_sdk.serialize.concretes.", "globus_compute_sdk.serialize.", "mep_sdk.serialize.")
WILDCARDS = {"globus_compute_sdk.*Code": _CODE, "globus_compute_sdk.*Data": _DATA}


class StrategyUnknown(ValueError):
    """A name that is no strategy; the text says which there are."""


Strategylike = Any
"""A strategy by name or import path, its class, or an instance (see strategy_classes)."""


def name_of(strategy: Strategylike) -> str:
    """Return the bare name of a strategy. Raises StrategyUnknown."""
    kind = strategy if isinstance(strategy, type) else type(strategy)
    given = str(strategy) if issubclass(kind, str) and strategy is not kind else kind.__name__
    package = next((each for each in _PACKAGES if given.startswith(each)), "")
    name = given.removeprefix(package)
    if name not in CODE_STRATEGIES and name not in DATA_STRATEGIES:
        known = ", ".join([*CODE_STRATEGIES, *DATA_STRATEGIES])
        raise StrategyUnknown(f"{strategy!r} is not a serialization strategy; there are {known}")
    return name


class Allowed:
    """The strategies that a site allows: `allowed_serializers` of its template."""

    def __init__(self, names: Iterable[str]) -> None:
        """Raises StrategyUnknown, and ValueError unless there is one for functions and one for data."""
        self._names = list(names)
        self._code, self._data = frozenset[str](), frozenset[str]()
        for name in self._names:
            if (ways := WILDCARDS.get(name)) is None:
                bare = name_of(name)
                ways = CODE_STRATEGIES.get(bare) or DATA_STRATEGIES[bare]
            self._code |= ways & _CODE
            self._data |= ways & _DATA
        if not self._code or not self._data:
            raise ValueError(f"needs at least one strategy for functions and one for data, got {self._names}")

    @property
    def only_json(self) -> bool:
        """Whether arguments travel as JSON alone."""
        return self._data == {JSON}

    def function(self, code: bytes) -> bytes:
        """Return the function with only those of its ways that are allowed. Raises SerializerNotAllowed.

        Bytes that are not a function are left for the worker to report.
        """
        try:
            record = read_record(code)
        except MepError:
            return code
        kept = only(record, self._code, self._data)
        if kept is None:
            ways = ways_of(record)
            pickled = " with pickled defaults or globals" if ways & self._code else ""
            raise self._refusal("function", " and ".join(sorted(ways)) + pickled)
        return code if kept == record else encoding.frame(encoding.FUNCTION, msgspec.msgpack.encode(kept))

    def arguments(self, payload: bytes) -> None:
        """Raises SerializerNotAllowed for an argument list that travels in another way."""
        way = data_way(payload)
        if way not in self._data:
            raise self._refusal("argument list", way)

    def _refusal(self, what: str, given: str) -> SerializerNotAllowed:
        accepted = ", ".join(name.rpartition(".")[2] for name in self._names)
        return SerializerNotAllowed(what=what, given=given, accepted=accepted)


def data_way(data: bytes) -> str:
    """Return the way in which arguments or a result travel, by their tag alone."""
    if data[3:4] == encoding.REQUEST:
        data = encoding.inner(data)
    if data[3:4] == encoding.OUTPUT:
        try:
            data = encoding.split_output(data)[2]
        except DataCorrupt:
            return _UNKNOWN
    ways = {encoding.PICKLE: PICKLED, encoding.CLOUDPICKLE: PICKLED, encoding.JSON: JSON, data_frames.DATA: PICKLED}
    return ways.get(data[3:4], _UNKNOWN)


def ways_of(record: SerializedFunction) -> set[str]:
    """Return every way that a function's record offers."""
    ways = {CLOUDPICKLED if each[3:4] == encoding.CLOUDPICKLE else REFERENCE for each in record.pickled}
    return ways | _ways_of_codes(record)


def _ways_of_codes(record: SerializedFunction) -> set[str]:
    if not record.codes:
        return set()
    ways = {BYTECODE} if all(each.code for each in record.codes) else set()
    return ways | ({SOURCE} if all(each.source for each in record.codes) else set())


def only(record: SerializedFunction, ways: frozenset[str], data: frozenset[str] = _DATA) -> SerializedFunction | None:
    """Return the record with only what may travel in these ways; None where nothing is left of it.

    Defaults and globals are values, and pickled: with source text alone they need `data` to allow that.
    """
    if record.codes:
        if record.pickled and CLOUDPICKLED not in ways:
            record = msgspec.structs.replace(record, pickled=())
        has_values = bool(record.values) or any(each.defaults for each in record.codes)
        offered = _ways_of_codes(record) & ways
        if not offered or (has_values and PICKLED not in data and not ways & (_CODE - {SOURCE})):
            return None
        if BYTECODE not in offered:  # "" is no worker's Python: each compiles the source
            codes = tuple(msgspec.structs.replace(each, code=b"") for each in record.codes)
            return msgspec.structs.replace(record, pickled=(), python=record.python + " (source text)", codes=codes)
        if SOURCE not in offered:
            codes = tuple(msgspec.structs.replace(each, source="") for each in record.codes)
            return msgspec.structs.replace(record, codes=codes)
        return record
    kept = tuple(
        each for each in record.pickled if (CLOUDPICKLED if each[3:4] == encoding.CLOUDPICKLE else REFERENCE) in ways
    )
    return msgspec.structs.replace(record, pickled=kept) if kept else None


def result_ways(names: Iterable[Strategylike]) -> list[str]:
    """Return in which ways to try to send a result, in order, for `result_serializers`. Raises StrategyUnknown."""
    found: dict[str, None] = {}
    for name in names:
        bare = name_of(name)
        if bare not in DATA_STRATEGIES:
            raise StrategyUnknown(f"{bare} is for functions, not for results")
        found |= dict.fromkeys(sorted(DATA_STRATEGIES[bare], reverse=True))
    return list(found)
