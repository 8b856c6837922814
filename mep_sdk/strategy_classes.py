"""Serialization strategies as classes, with the names and methods of Globus Compute's: for `mep_sdk.serialize`.

A class or an instance says what its name says in strategies.py; ComputeSerializer takes any of the three. `serialize`
and `deserialize` turn values into text and back with MEP's own formats. Loaded when one of the names is asked for.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, ClassVar

from mep_sdk.errors import DataCorrupt
from mep_sdk.function_serializer import load_function, serialize_function
from mep_sdk.serialize import load_result, serialize_result
from mep_wire.str_enum import StrEnum


class AllowlistWildcard(StrEnum):
    """All strategies of one kind, in lists of allowed ones."""

    CODE = "globus_compute_sdk.*Code"
    DATA = "globus_compute_sdk.*Data"


class SerializationStrategy:
    """How functions, or values, become text. Use its subclasses."""

    identifier: ClassVar[str] = ""
    """Begins the text: two characters and a newline."""
    for_code: ClassVar[bool] = False
    """Whether it is for functions."""
    _by_identifier: ClassVar[dict[str, SerializationStrategy]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.identifier:
            SerializationStrategy._by_identifier[cls.identifier] = cls()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @classmethod
    def get_cached_by_id(cls, identifier: str) -> SerializationStrategy | None:
        """Return the strategy of texts that begin with this."""
        return cls._by_identifier.get(identifier)

    @classmethod
    def get_cached_by_class(cls, type_: type[SerializationStrategy]) -> SerializationStrategy:
        """Return the instance of a strategy's class."""
        return cls._by_identifier[type_.identifier]

    def serialize(self, data: Any) -> str:
        """Return a function or a value as text. Raises SerializationError."""
        raw = serialize_function(data, type(self).__name__) if self.for_code else self._value(data)
        return self.identifier + base64.b64encode(raw).decode()

    def _value(self, data: Any) -> bytes:
        return serialize_result(data, ("pickle",))

    def deserialize(self, payload: str) -> Any:
        """Return the function or value that `serialize` made a text of. Raises DeserializationError."""
        try:
            raw = base64.b64decode(self.chomp(payload), validate=True)
        except binascii.Error as error:
            raise DataCorrupt(what="text", reason=str(error)) from error
        return load_function(raw).call if self.for_code else load_result(raw)

    def chomp(self, payload: str) -> str:
        """Return a text without the identifier. Raises DeserializationError for one that begins otherwise."""
        if not payload.startswith(self.identifier):
            raise DataCorrupt(what="text", reason=f"it does not begin with {self.identifier!r}")
        return payload.removeprefix(self.identifier)


class ComboSerializationStrategy(SerializationStrategy):
    """Several strategies in one."""

    strategies: ClassVar[list[type[SerializationStrategy]]] = []


class DillCode(SerializationStrategy):
    """Code objects, cloudpickles, and names of installed functions."""

    identifier, for_code = "01\n", True


class DillCodeTextInspect(SerializationStrategy):
    """Source text alone."""

    identifier, for_code = "03\n", True


class DillCodeSource(SerializationStrategy):
    """Source text alone."""

    identifier, for_code = "04\n", True


class PureSourceDill(SerializationStrategy):
    """Source text alone."""

    identifier, for_code = "sd\n", True


class PureSourceTextInspect(SerializationStrategy):
    """Source text alone."""

    identifier, for_code = "st\n", True


class CombinedCode(SerializationStrategy):
    """Functions in any way: the default."""

    identifier, for_code = "10\n", True


class AllCodeStrategies(ComboSerializationStrategy):
    """Functions in any way."""

    identifier, for_code = "12\n", True
    strategies: ClassVar = [PureSourceTextInspect, PureSourceDill, DillCode]


class DillDataBase64(SerializationStrategy):
    """Pickles."""

    identifier = "00\n"


class JSONData(SerializationStrategy):
    """JSON: tuples come back as lists."""

    identifier = "11\n"

    def _value(self, data: Any) -> bytes:
        return serialize_result(data, ("json",))


class AllDataStrategies(ComboSerializationStrategy):
    """Pickles; JSON where a value does not pickle."""

    identifier = "13\n"
    strategies: ClassVar = [JSONData, DillDataBase64]

    def _value(self, data: Any) -> bytes:
        return serialize_result(data, ("pickle", "json"))


SELECTABLE_STRATEGIES = [
    *(DillDataBase64, JSONData, DillCodeSource, DillCodeTextInspect, DillCode, PureSourceTextInspect, PureSourceDill),
    *(CombinedCode, AllCodeStrategies, AllDataStrategies),
]
DEFAULT_STRATEGY_CODE = SerializationStrategy.get_cached_by_class(CombinedCode)
DEFAULT_STRATEGY_DATA = SerializationStrategy.get_cached_by_class(DillDataBase64)


def strategy_of(payload: str) -> SerializationStrategy:
    """Return the strategy that made a text. Raises DeserializationError."""
    found = SerializationStrategy.get_cached_by_id(payload[:3])
    if found is None:
        raise DataCorrupt(what="text", reason=f"no strategy begins it with {payload[:3]!r}")
    return found


def pack(buffers: list[str]) -> str:
    """Return several texts as one."""
    return "".join(f"{len(each)}\n{each}" for each in buffers)


def unpack(packed: str) -> list[str]:
    """Return the texts in one that `pack` made. Raises DeserializationError."""
    found = []
    while packed:
        length, newline, rest = packed.partition("\n")
        if not (newline and length.isascii() and length.isdigit() and int(length) <= len(rest)):
            raise DataCorrupt(what="packed text", reason="it has no valid length")
        found.append(rest[: int(length)])
        packed = rest[int(length) :]
    return found
