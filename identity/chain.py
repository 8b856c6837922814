"""The chain: mappers in the order of the file, of which the first that answers decides; one local user or none.

Called by the mapper process and `mep map`. Thread-safe: a chain is immutable but for the caches and connection
pools inside its LDAP mappers and the count of running callouts, each behind its own lock. `Chain.map` may block for
as long as a callout's or a directory's timeout, so the mapper runs it in a small pool of threads; a slow callout
then doesn't delay others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from identity import usernames
from identity.allowed_domains import AllowedDomains
from identity.base import Identity, IdentityMapper, LookupOptions, MappingAnswer, Trace, label
from identity.errors import AmbiguousMapping, MappingError, NameRefused, NoMapping, SourceBusy, SourceUnavailable

MAX_FIELD_CHARS = 4096
"""A longer field of an identity counts as absent."""
ANY_DOMAIN = AllowedDomains()
_MAPPED_STATUS = frozenset({"used", "private"})


@dataclass(frozen=True, slots=True)
class LocalUser:
    """The local user that a person means: exactly one."""

    name: str
    identity: Identity
    """The identity that decided."""
    mapper: str
    """Which document and rule decided, for the log."""
    literal: bool = False
    """Whether the mapping file itself spells the name."""


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """One document of the mapping file with the site's settings for its failures and ambiguities."""

    mapper: IdentityMapper
    first_of_several: bool = False
    """`ambiguous: first`: of several users for one person, the one of the first identity is taken."""
    pass_on_error: bool = False
    """`on_error: next`: a mapper that fails counts as one that does not answer."""
    end_user_accounts: tuple[str, ...] = ()
    """`end_user_accounts`: patterns of the accounts that may follow from an end user. Without any, the mapper does not
    learn of the end user."""


@dataclass(slots=True)
class ChainStep:
    """One mapper's result, for `mep map`. `outcome` is answered, nothing, failed, ambiguous, refused or not tried."""

    mapper: str
    outcome: str = "not tried"
    reason: str = ""
    answers: list[MappingAnswer] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Explanation:
    """Every mapper, its answer and the reason; `user` or else `error` is the result."""

    steps: list[ChainStep]
    ignored: list[str] = field(default_factory=list)
    """Identities that do not count, and why."""
    user: LocalUser | None = None
    error: MappingError | None = None


class Chain:
    """The mappers of one mapping file. `files` are the other files it was made of (passwords, CAs)."""

    def __init__(
        self, links: Sequence[ChainEntry], files: Iterable[Path] = (), *, network: bool = False, programs: bool = False,
        doubts: Iterable[str] = (), domains: AllowedDomains = ANY_DOMAIN,
    ) -> None:  # fmt: skip
        self._links, self._domains = tuple(links), domains
        self.doubts = tuple(doubts)
        """What is odd about the file, each with its file and line."""
        self.network, self.programs = network, programs
        """Whether its mappers need the network (a directory or a program does), and whether they run programs."""
        self.files = tuple(files)
        self.descriptions = tuple(f"document {i}: {link.mapper.description}" for i, link in enumerate(self._links))

    def map(
        self, identities: Sequence[Mapping[str, str]], *, bypass_cache: bool = False, certain: bool = False,
        end_user: str = "",
    ) -> LocalUser:  # fmt: skip
        """Return the one local user that `identities` (one person's) mean; its name is checked.

        `bypass_cache` queries directories again. So does `certain`, for re-checks, and then a mapper that fails
        stops the chain whatever its `on_error` says: the answer then holds for a chain in which everything works.
        `end_user` is the person that a gateway names; documents that do not ask for it map as without it.
        Raises NoMapping (NameRefused where a rule applies but its result cannot be a user name), AmbiguousMapping,
        MapperUnavailable (SourceBusy among them); nothing else, whatever the identities hold.
        """
        counted, _ = considered(identities, self._domains)
        person = " ".join(sorted(identity["id"] for identity in counted))
        how = LookupOptions(bypass_cache or certain, background=certain, person=person, end_user=end_user)
        for index, link in enumerate(self._links):
            strict = replace(link, pass_on_error=False) if certain else link
            user = self._ask(index, strict, counted, None, how)
            if user is not None:
                return user
        raise NoMapping(f"{len(self._links)} mappers, {len(counted)} identities that count: none maps")

    def explain(
        self, identities: Sequence[Mapping[str, str]], *, bypass_cache: bool = True, every: bool = False,
        end_user: str = "",
    ) -> Explanation:  # fmt: skip
        """Return the answer that `map` would give, and each mapper's part in it. Raises nothing.

        `every` asks the mappers after the one that decides too; they change nothing about the result.
        """
        counted, ignored = considered(identities, self._domains)
        explanation = Explanation([ChainStep(description) for description in self.descriptions], ignored)
        for index, link in enumerate(self._links):
            user: LocalUser | None = None
            error: MappingError | None = None
            try:
                how = LookupOptions(bypass_cache, end_user=end_user)
                user = self._ask(index, link, counted, explanation.steps[index], how)
            except MappingError as caught:
                error = caught
            if explanation.user is None and explanation.error is None:
                explanation.user, explanation.error = user, error
            if not every and (explanation.user is not None or explanation.error is not None):
                return explanation
        if explanation.user is None and explanation.error is None:
            explanation.error = NoMapping("no rule of the mapping file applies")
        return explanation

    def close(self) -> None:
        """Let go of the mappers' connections; for a chain that a newer one has replaced."""
        for link in self._links:
            link.mapper.close()

    def _ask(
        self, index: int, link: ChainEntry, identities: list[Identity], step: ChainStep | None, how: LookupOptions
    ) -> LocalUser | None:
        trace: Trace | None = step.trace.append if step else None
        note: Callable[[str, str], None] = _noter(step)
        description = self.descriptions[index]
        try:
            how = replace(how, end_user=_end_user(link, how.end_user))
            answers = link.mapper.answers(identities, trace, how) if identities else ()
            if step:
                step.answers.extend(answers)
            user = _decide(answers, link.first_of_several, description)
            if user is not None and how.end_user:
                _check_end_user(link, user, how.end_user)
        except SourceUnavailable as error:
            passed_over = link.pass_on_error and not isinstance(error, SourceBusy)
            note("failed", f"{error}; {'passed over' if passed_over else 'the chain stops'}")
            if passed_over:
                return None
            raise type(error)(f"{description}: {error}") from error
        except AmbiguousMapping as error:
            note("ambiguous", str(error))
            raise AmbiguousMapping(f"{description}: {error}") from error
        except NameRefused as error:
            note("refused", str(error))
            raise NameRefused(f"{description}: {error}") from error
        note("answered" if user else "nothing", user.name if user else "no rule applies")
        return user


def _end_user(link: ChainEntry, end_user: str) -> str:
    """Return what this mapper is to know of the end user. Raises NameRefused for a name that can't be one."""
    if not end_user or not link.end_user_accounts:
        return ""
    if not _usable(end_user) or not end_user.isprintable():
        raise NameRefused("the name of the gateway's end user is too long or not printable")
    return end_user


def _check_end_user(link: ChainEntry, user: LocalUser, end_user: str) -> None:
    """A gateway names its person freely: that may choose among these accounts and no others. Raises NameRefused."""
    if not any(fnmatchcase(user.name, pattern) for pattern in link.end_user_accounts):
        allowed = ", ".join(link.end_user_accounts)
        raise NameRefused(f"{user.name!r} for the end user {end_user!r} is none of end_user_accounts: {allowed}")


def _noter(step: ChainStep | None) -> Callable[[str, str], None]:
    def note(outcome: str, reason: str) -> None:
        if step:
            step.outcome, step.reason = outcome, reason

    return note


def _decide(answers: Sequence[MappingAnswer], first_of_several: bool, description: str) -> LocalUser | None:
    """Return the user that `answers` agree on, or None where there are none."""
    if not answers:
        return None
    first = answers[0]
    if not first_of_several and len({answer.name for answer in answers}) > 1:
        several = ", ".join(f"{label(answer.identity)} -> {answer.name!r}" for answer in answers[:10])
        raise AmbiguousMapping(f"{first.rule} gives several local users: {several}")
    if (reason := usernames.problem(first.name)) is not None:
        raise NameRefused(f"{first.rule}: {label(first.identity)}: {reason}")
    return LocalUser(first.name, first.identity, f"{description}, {first.rule}", first.literal)


def considered(
    identities: Sequence[Mapping[str, str]], domains: AllowedDomains = ANY_DOMAIN
) -> tuple[list[Identity], list[str]]:
    """Return the identities that count (status used or private, with an id, of `domains`), and lines on the others.

    Fields that are no text, are longer than MAX_FIELD_CHARS or cannot be written as UTF-8 are left out.
    """
    counted: list[Identity] = []
    ignored: list[str] = []
    for identity in identities:
        clean = {key: value for key, value in identity.items() if _usable(key) and _usable(value)}
        if "id" not in clean:
            ignored.append(f"{label(clean)}: it has no id")
        elif clean.get("status") not in _MAPPED_STATUS:
            ignored.append(f"{label(clean)}: its status is {clean.get('status', 'unknown')}, not used or private")
        elif refusal := domains.refusal(clean):
            ignored.append(f"{label(clean)}: {refusal}")
        else:
            counted.append(clean)
    return counted, ignored


def _usable(value: object) -> bool:
    if not isinstance(value, str) or len(value) > MAX_FIELD_CHARS:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
