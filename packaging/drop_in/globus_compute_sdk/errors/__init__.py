"""The errors, as MEP raises them."""

from globus_compute_sdk.errors.error_types import *  # noqa: F403
from globus_compute_sdk.errors.error_types import __all__ as __all__
