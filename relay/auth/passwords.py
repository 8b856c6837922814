"""Login with an account of the relay's host: each check is a short-lived process, and guessing gets slower.

Called by relay.auth.login. The relay itself never loads a PAM module.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections import OrderedDict

from mep_wire.errors import LoginFailed, ProviderUnavailable
from mep_wire.identity import Identity
from relay.auth.claims import Claimed, Subject, identity_id
from relay.auth.settings import PasswordSettings
from relay.rate_limit import RequestSlots
from relay.store.records import Login

DEADLINE_S = 30.0
MAX_AT_ONCE = 4
MAX_WAITING, MAX_WAITING_EACH = 64, 8
"""Most logins that wait for PAM, of all addresses and of one."""
MAX_PASSWORD = 1024
FREE_TRIES = 3
"""Wrong passwords for one account before the next has to wait."""
LONGEST_PAUSE_S = 300.0
REMEMBERED = 10_000
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class Passwords:
    """See the module."""

    def __init__(self, settings: PasswordSettings) -> None:
        self._settings = settings
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._slots = RequestSlots(MAX_WAITING, MAX_WAITING_EACH, "login")
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        """Wrong passwords by account, and until when it waits."""

    async def login(self, user: str, password: str, network: str) -> Claimed:
        """Return who this is; `network` is where they are. Raises LoginFailed, ProviderUnavailable or RelayBusy."""
        name = self._settings.name
        if not _USER.fullmatch(user) or not 0 < len(password) <= MAX_PASSWORD or "\0" in password:
            raise LoginFailed(provider=name, reason="the name or the password is wrong")
        self._check_pause(user)
        with self._slots.one(network):
            async with self._room:
                right = await self._try(user, password)
        if not right:
            raise LoginFailed(provider=name, reason="the name or the password is wrong")
        return self._claimed(user)

    def _check_pause(self, user: str) -> None:
        """Raises LoginFailed while this account waits."""
        wait_s = self._wrong.get(user, (0, 0.0))[1] - time.monotonic()
        if wait_s > 0:
            reason = f"too many wrong passwords; try again in {int(wait_s) + 1} s"
            raise LoginFailed(provider=self._settings.name, reason=reason)

    async def _try(self, user: str, password: str) -> bool:
        """Return whether the password is right. Raises LoginFailed, ProviderUnavailable.

        It counts as wrong until PAM has answered: guesses that come together gain nothing.
        """
        self._check_pause(user)
        self._note_wrong(user, self._tries(user) + 1)
        try:
            right = await self._ask(user, password)
        except BaseException:
            self._note_wrong(user, max(0, self._tries(user) - 1))
            raise
        self._note_wrong(user, 0 if right else self._tries(user))
        return right

    def _tries(self, user: str) -> int:
        return self._wrong.get(user, (0, 0.0))[0]

    def _note_wrong(self, user: str, count: int) -> None:
        if not count:
            self._wrong.pop(user, None)
            return
        pause_s = 0.0 if count < FREE_TRIES else min(2.0 ** (count - FREE_TRIES), LONGEST_PAUSE_S)
        self._wrong[user] = count, time.monotonic() + pause_s
        self._wrong.move_to_end(user)
        if len(self._wrong) > REMEMBERED:
            self._wrong.popitem(last=False)

    def _claimed(self, user: str) -> Claimed:
        settings = self._settings
        username = f"{user}@{settings.domain}"
        identity = Identity(
            id=identity_id(settings.name, user), username=username, email=username, identity_provider=settings.name
        )
        login = Login(provider=settings.name, at=time.time(), amr=("pwd",))
        subject = Subject(provider=settings.name, sub=user, identity=identity)
        return Claimed(subjects=(subject,), login=login, linked=False)

    async def _ask(self, user: str, password: str) -> bool:
        """Return whether PAM takes the password. Raises ProviderUnavailable."""
        settings = self._settings
        asked = {"service": settings.service, "user": user, "password": password, "min_uid": settings.min_uid}
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "relay.auth.pam_check"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            said, _ = await asyncio.wait_for(child.communicate(json.dumps(asked).encode()), DEADLINE_S)
        except TimeoutError as error:
            raise ProviderUnavailable(provider=settings.name, reason=f"no answer in {DEADLINE_S:g} s") from error
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        answer = said.strip()
        if answer not in (b"yes", b"no"):
            raise ProviderUnavailable(
                provider=settings.name,
                reason="it cannot check passwords",
                detail=f"exit {child.returncode}: {answer!r}",
            )
        return answer == b"yes"
