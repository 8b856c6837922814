"""Strategies, and ComputeSerializer."""

from globus_compute_sdk.serialize.concretes import *  # noqa: F403
from globus_compute_sdk.serialize.concretes import __all__ as __all__
