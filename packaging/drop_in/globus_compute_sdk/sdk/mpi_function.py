"""MPIFunction. Values fill the braces as they are: see shell_function."""

import mep_sdk
from globus_compute_sdk.sdk.shell_function import _Plain

__all__ = ("MPIFunction",)


class MPIFunction(_Plain, mep_sdk.MPIFunction):
    """MEP's MPIFunction, which does not quote."""

    _sent_as = mep_sdk.MPIFunction
