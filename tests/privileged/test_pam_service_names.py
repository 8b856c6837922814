"""PAM looks for a service's file under its name in lower case, and uses its file `other` where there is none."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mep.boundary.pam_service import check_service
from mep.config.options import _service_name
from mep.root.pam.libpam import PamFailed, Transaction

DENIES = "account required pam_deny.so\n"


@pytest.fixture
def service() -> Iterator[Path]:
    """The file of a service that denies every account; its name has capital letters."""
    path = Path("/etc/pam.d", f"MepTest{uuid.uuid4().hex[:8]}")
    path.write_text(DENIES)
    path.chmod(0o644)
    yield path
    path.unlink()
    path.with_name(path.name.lower()).unlink(missing_ok=True)


def test_a_file_that_pam_would_not_open_is_no_service(service: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        Transaction(service.name, "root", lambda _text: None).check_account()
    assert refused.value.filename == str(service.with_name(service.name.lower()))
    assert "other" in refused.value.strerror


def test_the_file_that_pam_opens_is_the_one_that_is_checked(service: Path) -> None:
    opened = service.with_name(service.name.lower())
    opened.write_text(DENIES)
    opened.chmod(0o644)
    with pytest.raises(PamFailed):
        Transaction(service.name, "root", lambda _text: None).check_account()
    opened.chmod(0o666)
    with pytest.raises(OSError, match=opened.name):
        check_service(service.name)


def test_the_configuration_refuses_capital_letters() -> None:
    assert "lower case" in _service_name("MepTest")
    assert not _service_name("mep-test_1.x")
