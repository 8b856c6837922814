"""The errors, as MEP raises them."""

from mep_sdk.errors import (
    ComputeError,
    DeserializationError,
    MaxResultSizeExceeded,
    SerdeError,
    SerializationError,
    TaskExecutionFailed,
    TaskPending,
    VersionMismatch,
)

__all__ = (
    "ComputeError",
    "DeserializationError",
    "MaxResultSizeExceeded",
    "SerdeError",
    "SerializationError",
    "TaskExecutionFailed",
    "TaskPending",
    "VersionMismatch",
)
