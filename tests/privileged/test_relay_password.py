"""Password login with a real account and a real PAM stack, and what becomes of wrong passwords and closed accounts."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.login import LoginClient, people_file
from tests.support.relay import RelayProcess

pytestmark = pytest.mark.root
STACK = "auth required pam_unix.so\naccount required pam_unix.so\n"


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    path = Path("/etc/pam.d") / f"mep-test-{uuid.uuid4().hex[:8]}"
    path.write_text(STACK)
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    name = f"mepw{uuid.uuid4().hex[:8]}"
    subprocess.run(["useradd", "--no-create-home", "--shell", "/bin/bash", name], check=True)
    subprocess.run(["chpasswd"], input=f"{name}:right horse\n", text=True, check=True)
    yield name
    subprocess.run(["userdel", name], check=True)


@pytest.fixture(scope="module")
def relay(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayProcess]:
    directory = tmp_path_factory.mktemp("relay")
    settings = people_file(directory, password={"service": service, "domain": "host.example.edu"})
    with RelayProcess(directory, "--people", str(settings)) as running:
        yield running


def form(client: LoginClient, browser: Browser) -> Page:
    return browser.follow(browser.get(client.address()))


def test_the_password_of_an_account_logs_in(relay: RelayProcess, account: str) -> None:
    client, browser = LoginClient(relay), Browser()
    page = browser.follow(browser.submit(form(client, browser), user=account, password="right horse"))
    answer = client.redeem(client.consented(browser, page)["code"])[1]
    person = relay.request("GET", "/oauth/userinfo", answer["access_token"])[1]
    assert person["preferred_username"] == f"{account}@host.example.edu"
    assert person["identity_provider"] == "host"


@pytest.mark.parametrize(
    ("user", "password"),
    [("", "right horse"), (None, "wrong"), (None, ""), ("root", "right horse"), ("nobody-of-this-name", "x"),
     ("../etc", "x"), (None, "right horse\0")],
)  # fmt: skip
def test_nothing_else_logs_in(relay: RelayProcess, account: str, user: str | None, password: str) -> None:
    client, browser = LoginClient(relay), Browser()
    answer = browser.submit(form(client, browser), user=account if user is None else user, password=password)
    assert answer.status == 403
    assert "the name or the password is wrong" in answer.text or "too many" in answer.text


def test_an_account_that_has_expired_logs_in_no_more(relay: RelayProcess, account: str) -> None:
    subprocess.run(["usermod", "--expiredate", "2001-01-01", account], check=True)
    client, browser = LoginClient(relay), Browser()
    try:
        assert browser.submit(form(client, browser), user=account, password="right horse").status == 403
    finally:
        subprocess.run(["usermod", "--expiredate", "", account], check=True)


def test_guessing_gets_slower(relay: RelayProcess) -> None:
    client, browser = LoginClient(relay), Browser()
    page = form(client, browser)
    texts = [browser.submit(page, user="somebody-else", password=str(number)).text for number in range(5)]
    assert "too many wrong passwords" in texts[-1]


def test_guessing_all_at_once_gets_no_further(relay: RelayProcess) -> None:
    client, browser = LoginClient(relay), Browser()
    page = form(client, browser)

    def guess(number: int) -> str:
        return browser.submit(page, user="somebody-at-once", password=str(number)).text

    with ThreadPoolExecutor(16) as threads:
        texts = list(threads.map(guess, range(16)))
    assert sum("too many wrong passwords" in one for one in texts) >= 7
