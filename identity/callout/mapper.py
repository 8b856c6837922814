"""external_identity_mapping#1.0.0: asks a program of the site which account a person maps to.

It runs as the account of the process that asks, which is the mapper's and must not be root. It gets
`identity_mapping_input#1.0.0` on its standard input, the arguments `-c CONNECTOR -s GATEWAY -a` after its own, and
answers `identity_mapping_output#1.0.0` on its standard output: an object with `DATA_TYPE` and `result`, as Globus
Connect Server's guide has it. An empty `result` list means that no identity maps. Any fault is a failed mapper,
never a match and never "no mapping". Where the document has `end_user_accounts`, a gateway's request has `end_user`,
the name that the gateway gives its person. Faults are a status other than 0, the time limit, too much output, no output
(a script that ended early gives no answer), malformed output, and an id that was not in the request.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from identity.base import Identity, LookupOptions, MappingAnswer, Trace
from identity.callout import process
from identity.concurrency_limits import ConcurrencyLimit, PersonLimit
from identity.document import MappingDocument
from identity.errors import SourceUnavailable
from identity.tracked_files import FileRefused, Files
from mep.boundary.file_trust import Trust, UntrustedPath

DATA_TYPE = "external_identity_mapping#1.0.0"
INPUT_TYPE = "identity_mapping_input#1.0.0"
OUTPUT_TYPE = "identity_mapping_output#1.0.0"
POSIX_CONNECTOR = "145812c8-decc-41f1-83cf-bb2a85a2a70b"
"""The id of the POSIX connector in Globus Connect Server's guide, which existing callouts know."""
NO_GATEWAY = "00000000-0000-0000-0000-000000000000"
_log = logging.getLogger(__name__)


class CalloutMapper:
    """One program. A person beyond the limit waits for at most as long as a run may take."""

    def __init__(self, argv: Sequence[str], timeout_s: float, limit: ConcurrencyLimit, trust: Trust) -> None:
        self._argv = tuple(argv)
        self._timeout_s = timeout_s
        self._limit = limit
        self._trust = trust
        self.description = f"callout {argv[0]}"

    def answers(
        self, identities: Sequence[Identity], trace: Trace | None, how: LookupOptions
    ) -> Sequence[MappingAnswer]:
        """Return the program's answers, in the order of the identities. Raises MapperUnavailable."""
        if os.geteuid() == 0:
            raise SourceUnavailable("a callout must not run as root")
        output = self._run(identities, how)
        _report_stderr(self._argv[0], output.stderr, trace)
        by_id = {_plain_id(identity["id"]): identity for identity in identities}
        found = [MappingAnswer(by_id[key], name, "callout") for key, name in _parse(output.stdout, frozenset(by_id))]
        if trace:
            trace(f"answered {output.stdout[:1000].decode(errors='replace')!r}")
        order = {key: index for index, key in enumerate(by_id)}
        return sorted(found, key=lambda answer: order[_plain_id(answer.identity["id"])])

    def close(self) -> None:
        """Nothing to let go of."""

    def _run(self, identities: Sequence[Identity], how: LookupOptions) -> process.Output:
        value: dict[str, Any] = {"DATA_TYPE": INPUT_TYPE, "identities": [dict(identity) for identity in identities]}
        if how.end_user:
            value["end_user"] = how.end_user
        data = json.dumps(value)
        try:
            program = self._trust.open_program(self._argv[0])  # it may have changed since the load
        except UntrustedPath as error:
            raise SourceUnavailable(str(error)) from None
        except OSError as error:
            raise SourceUnavailable(f"{self._argv[0]}: {error.strerror}") from None
        try:
            with self._limit.hold(self._timeout_s, how):
                return process.run(self._argv, data.encode(), self._timeout_s, program=program)
        except process.CommandFailed as error:
            _report_stderr(self._argv[0], error.stderr, None)
            said = error.stderr[-500:].decode(errors="replace")
            raise SourceUnavailable(
                f"{shlex.join(self._argv)} {error}" + (f"; it said {said!r}" if said else "")
            ) from None
        finally:
            os.close(program)


def _report_stderr(program: str, stderr: bytes, trace: Trace | None) -> None:
    for line in stderr.decode(errors="replace").splitlines()[:50]:
        _log.warning("callout %s: %r", program, line[:500])
        if trace:
            trace(f"wrote to standard error: {line[:500]!r}")


def _parse(data: bytes, asked: frozenset[str]) -> list[tuple[str, str]]:
    """Return (id, user name) as the program gave them. Raises MapperUnavailable."""
    if not data.strip():
        raise SourceUnavailable(f"it wrote nothing: to map nobody it must answer {OUTPUT_TYPE} with an empty result")
    try:
        value = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise SourceUnavailable(f"its output is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SourceUnavailable(f"its output is not {OUTPUT_TYPE}")
    if value.get("DATA_TYPE") != OUTPUT_TYPE:
        raise SourceUnavailable(f"its output is not {OUTPUT_TYPE}: DATA_TYPE is {str(value.get('DATA_TYPE'))[:100]!r}")
    result = value.get("result")
    if not isinstance(result, list):
        raise SourceUnavailable("its output has no result, or one that is not a list")
    return [_parse_entry(entry, asked) for entry in result]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


def _parse_entry(entry: Any, asked: frozenset[str]) -> tuple[str, str]:
    key, name = (entry.get("id"), entry.get("output")) if isinstance(entry, dict) else (None, None)
    if not isinstance(key, str) or not isinstance(name, str):
        raise SourceUnavailable(f"its output has a result that is not an id and an output: {str(entry)[:200]!r}")
    if _plain_id(key) not in asked:
        raise SourceUnavailable(f"it answered for {key[:100]!r}, which it was not asked about")
    return _plain_id(key), name


def _plain_id(key: str) -> str:
    """Return `key` in the form in which ids are compared: a UUID may be written in several."""
    try:
        return str(uuid.UUID(key))
    except ValueError:
        return key.lower()


def from_document(
    document: MappingDocument, connector: str, gateway: str, files: Files, person_limit: PersonLimit
) -> CalloutMapper:
    """Return the mapper for `document`. Raises DocumentInvalid."""
    words = document.take_list("command")
    if any(isinstance(word, bool) or not isinstance(word, str | int | float) for word in words):
        raise document.refuse("command", "not a list of texts and numbers")
    argv = [str(word) for word in words]
    if any("\0" in word for word in argv):
        raise document.refuse("command", "has a NUL character in it")
    argv[0] = _program(document, argv[0], files)
    timeout_s = document.take_number("timeout_s", 5.0, 0.1, 300.0)
    limit = int(document.take_number("max_concurrent", 8, 1, 1000))
    return CalloutMapper(
        [*argv, "-c", connector, "-s", gateway, "-a"], timeout_s, ConcurrencyLimit(limit, person_limit), files.named
    )


def _program(document: MappingDocument, name: str, files: Files) -> str:
    if "/" in name and not name.startswith("/"):
        raise document.refuse("command", f"{name!r} is a relative path: give an absolute one")
    found = shutil.which(name, path=process.PATH)
    if found is None:
        if name.startswith("/"):
            files.note(Path(name))
        raise document.refuse("command", f"there is no program {name!r} that this account may run")
    try:
        files.program(found)
    except FileRefused as error:
        raise document.refuse("command", error) from None
    return found
