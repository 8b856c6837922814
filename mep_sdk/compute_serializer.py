"""ComputeSerializer: how a client or an executor serializes, and the methods of Globus Compute's class of this name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mep_sdk.strategies import CODE_STRATEGIES, DATA_STRATEGIES, PICKLED, WILDCARDS, Strategylike, name_of
from mep_wire.errors import DeserializationError, SerializationError


class ComputeSerializer:
    """Which strategies a client or an executor serializes with; None for what suits each function and value best."""

    def __init__(
        self,
        strategy_code: Strategylike | None = None,
        strategy_data: Strategylike | None = None,
        *,
        allowed_deserializer_types: Iterable[Strategylike] | None = None,
    ) -> None:
        """Take strategies as names, classes or instances. `allowed_deserializer_types` are those that `deserialize`
        accepts, None for all. Raises StrategyUnknown, or ValueError for a strategy of the other kind."""
        self.code = None if strategy_code is None else name_of(strategy_code)
        self.data = None if strategy_data is None else name_of(strategy_data)
        if self.code is not None and self.code not in CODE_STRATEGIES:
            raise ValueError(f"{self.code} is for data, not for functions")
        if self.data is not None and self.data not in DATA_STRATEGIES:
            raise ValueError(f"{self.data} is for functions, not for data")
        self._allowed = None if allowed_deserializer_types is None else _names_in(allowed_deserializer_types)

    def __repr__(self) -> str:
        return f"ComputeSerializer(strategy_code={self.code!r}, strategy_data={self.data!r})"

    @property
    def as_json(self) -> bool:
        """Whether arguments travel as JSON."""
        return self.data is not None and PICKLED not in DATA_STRATEGIES[self.data]

    def serialize(self, data: Any) -> str:
        """Return a function or a value as text. Raises SerializationError."""
        from mep_sdk import strategy_classes

        name = (self.code or "CombinedCode") if callable(data) else (self.data or "DillDataBase64")
        made: str = getattr(strategy_classes, name)().serialize(data)
        return made

    @staticmethod
    def serialize_from_list(data: Any, strategies: Iterable[Strategylike]) -> str:
        """Return a value as text, by the first of these strategies that takes it. Raises SerializationError."""
        from mep_sdk import strategy_classes

        reasons = []
        for each in strategies:
            name = name_of(each)
            try:
                made: str = getattr(strategy_classes, name)().serialize(data)
            except SerializationError as error:
                reasons.append(f"{name}: {error.reason}")
            else:
                return made
        raise SerializationError("; ".join(reasons) or "no strategy was given")

    def deserialize(self, payload: str) -> Any:
        """Return what `serialize` made a text of. Raises DeserializationError."""
        from mep_sdk import strategy_classes

        strategy = strategy_classes.strategy_of(payload)
        self.assert_deserializer_allowed(strategy)
        return strategy.deserialize(payload)

    def assert_deserializer_allowed(self, strategy: Strategylike) -> None:
        """Raises DeserializationError for a strategy that `allowed_deserializer_types` leaves out."""
        name = name_of(strategy)
        if self._allowed is not None and name not in self._allowed:
            raise DeserializationError(f"{name} is not allowed here, only {', '.join(sorted(self._allowed))}")

    @staticmethod
    def pack_buffers(buffers: list[str]) -> str:
        """Return several texts as one."""
        from mep_sdk import strategy_classes

        return strategy_classes.pack(buffers)

    @staticmethod
    def unpack_buffers(packed_buffer: str) -> list[str]:
        """Return the texts that `pack_buffers` put together. Raises DeserializationError."""
        from mep_sdk import strategy_classes

        return strategy_classes.unpack(packed_buffer)

    def unpack_and_deserialize(self, packed_buffer: str) -> list[Any]:
        """Return the three values in a packed text: function, arguments, keywords. Raises DeserializationError."""
        texts = self.unpack_buffers(packed_buffer)
        if len(texts) != 3:
            raise DeserializationError(f"a packed call has 3 parts, and this has {len(texts)}")
        return [self.deserialize(each) for each in texts]

    def check_strategies(self, function: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Return a call's function, args and kwargs as a worker would get them. Raises SerializationError or
        DeserializationError where these strategies don't carry them."""
        texts = [self.serialize(function), *(self._as_data(each) for each in (args, kwargs))]
        return self.unpack_and_deserialize(self.pack_buffers(texts))

    def _as_data(self, value: Any) -> str:
        return self.serialize_from_list(value, [self.data or "DillDataBase64"])


def _names_in(given: Iterable[Strategylike]) -> set[str]:
    found: set[str] = set()
    for each in given:
        if isinstance(each, str) and str(each) in WILDCARDS:
            found |= CODE_STRATEGIES.keys() if str(each).endswith("Code") else DATA_STRATEGIES.keys()
        else:
            found.add(name_of(each))
    return found
