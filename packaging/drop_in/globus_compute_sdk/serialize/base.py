"""The same names by the module that scripts may import them from."""

from globus_compute_sdk.serialize.concretes import *  # noqa: F403
from globus_compute_sdk.serialize.concretes import __all__ as __all__
