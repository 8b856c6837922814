"""Checks the PAM and hook settings of config.yaml against this host. Used by the resolver."""

from __future__ import annotations

import ctypes
import os

from mep.boundary.errors import ConfigRefused
from mep.boundary.file_trust import UntrustedPath
from mep.boundary.pam_service import check_service
from mep.boundary.resolved_config import Hook, Pam
from mep.config.options import EndpointOptions, PostStopHookOptions, PreStartHookOptions
from mep.config.paths import EndpointPaths
from mep.config.template_files import refusal, trust_in

PAM_LIBRARY = "libpam.so.0"


def checked_pam(where: EndpointPaths, options: EndpointOptions, warnings: list[str], *, multi_user: bool) -> Pam:
    """Return the PAM settings that apply here.

    Raises ConfigRefused if PAM is missing, or if the service's file is missing or not trusted.
    """
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
    try:
        check_service(pam.service_name)
    except UntrustedPath as error:
        raise refusal(error.problems, config) from None
    except FileNotFoundError as error:
        remedy = "install etc/pam.d/mep of this project there, or write one (docs/privileges.md)"
        raise ConfigRefused(config, "pam.service_name", f"{error.filename}: {error.strerror}; {remedy}") from None
    except OSError as error:
        raise ConfigRefused(config, "pam.service_name", str(error)) from None
    return Pam(enable=True, service_name=pam.service_name, recheck=pam.recheck)


def checked_hook(where: EndpointPaths, key: str, hook: PreStartHookOptions | PostStopHookOptions) -> Hook:
    """Return the hook. Raises ConfigRefused if it isn't trusted or can't be run."""
    if hook.path is None:
        return Hook(timeout_s=hook.timeout_s)
    try:
        os.close(trust_in(os.geteuid()).open_program(hook.path))
    except OSError as error:
        reason = str(error) if isinstance(error, UntrustedPath) else f"{hook.path}: {error.strerror}"
        raise ConfigRefused(str(where.config), f"{key}.path", reason) from None
    return Hook(hook.path, hook.timeout_s)
