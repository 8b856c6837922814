"""What config.yaml says of PAM and hooks, held against the host: used by the resolver."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from mep.boundary.resolved import Hook, Pam
from mep.config.files import check_trusted
from mep.config.options import EndpointOptions, PostStopHookOptions, PreStartHookOptions
from mep.config.paths import EndpointPaths
from mep.errors import ConfigRefused

PAM_LIBRARY = "libpam.so.0"
PAM_DIRECTORIES = ("/etc/pam.d", "/usr/lib/pam.d", "/usr/etc/pam.d")


def checked_pam(where: EndpointPaths, options: EndpointOptions, warnings: list[str], *, multi_user: bool) -> Pam:
    """Return the PAM settings that hold here. Raises ConfigRefused where PAM or the service file is missing."""
    pam, config = options.pam, str(where.config)
    if not pam.enable:
        return Pam(enable=False, service_name=pam.service_name)
    if not multi_user:
        warnings.append(f"{config}: pam.enable: needs root, and this endpoint runs as its owner: PAM is not used")
        return Pam(enable=False, service_name=pam.service_name)
    try:
        ctypes.CDLL(PAM_LIBRARY)
    except OSError as error:
        reason = f"PAM cannot be used: {error}; install it (Debian: libpam0g), or set it to false"
        raise ConfigRefused(config, "pam.enable", reason) from None
    if not any(Path(directory, pam.service_name).is_file() for directory in PAM_DIRECTORIES):
        reason = (
            f"there is no {PAM_DIRECTORIES[0]}/{pam.service_name}, and PAM would use its file `other`: "
            "install etc/pam.d/mep of this project there, or write one (docs/privileges.md)"
        )
        raise ConfigRefused(config, "pam.service_name", reason)
    return Pam(enable=True, service_name=pam.service_name, recheck=pam.recheck)


def checked_hook(where: EndpointPaths, key: str, hook: PreStartHookOptions | PostStopHookOptions) -> Hook:
    """Return the hook. Raises ConfigRefused where others could write to it or to a directory on the way."""
    if hook.path is None:
        return Hook(timeout_s=hook.timeout_s)
    path = Path(hook.path)
    try:
        check_trusted(path, os.geteuid())
    except ConfigRefused as error:
        raise ConfigRefused(str(where.config), f"{key}.path", str(error)) from None
    if not path.is_file() or not os.access(path, os.X_OK):
        raise ConfigRefused(str(where.config), f"{key}.path", f"{path} is not an executable file")
    return Hook(str(path), hook.timeout_s)
