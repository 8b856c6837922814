"""Strategies, and ComputeSerializer."""

from mep_sdk.compute_serializer import ComputeSerializer
from mep_sdk.strategy_classes import (
    DEFAULT_STRATEGY_CODE,
    DEFAULT_STRATEGY_DATA,
    AllCodeStrategies,
    AllDataStrategies,
    AllowlistWildcard,
    CombinedCode,
    ComboSerializationStrategy,
    DillCode,
    DillCodeSource,
    DillCodeTextInspect,
    DillDataBase64,
    JSONData,
    PureSourceDill,
    PureSourceTextInspect,
    SerializationStrategy,
)

__all__ = (
    "DEFAULT_STRATEGY_CODE",
    "DEFAULT_STRATEGY_DATA",
    "AllCodeStrategies",
    "AllDataStrategies",
    "AllowlistWildcard",
    "CombinedCode",
    "ComboSerializationStrategy",
    "ComputeSerializer",
    "DillCode",
    "DillCodeSource",
    "DillCodeTextInspect",
    "DillDataBase64",
    "JSONData",
    "PureSourceDill",
    "PureSourceTextInspect",
    "SerializationStrategy",
)
