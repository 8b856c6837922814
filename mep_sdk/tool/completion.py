"""Shell completion of `mep-sdk`: the script for a shell, and the words that it asks for.

Names of endpoints come from the last answer, which is kept for a while. Where there is none, the relay is asked and
given less than a second; an answer that comes later is not shown. Nothing here prints an error: a person is typing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mep_sdk.profiles import config_dir, profile_names
from mep_sdk.tool import output
from mep_wire.errors import MepError
from mep_wire.text import printable

SHELLS = ("bash", "zsh", "fish")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,127}")
"""Names that mean nothing to a shell: other people choose some of them."""
WAIT_S = 0.8
"""How long the relay is waited for."""
FRESH_S = 300.0
"""How long its answer is used without another question."""
_SCRIPTS = {
    "bash": """\
_mep_sdk() {
    mapfile -t COMPREPLY < <(MEP_SDK_COMPLETE=1 mep-sdk "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o nosort -F _mep_sdk mep-sdk
""",
    "zsh": """\
#compdef mep-sdk
_mep_sdk() {
    local -a found
    found=("${(@f)$(MEP_SDK_COMPLETE=1 mep-sdk "${(@)words[2,$CURRENT]}" 2>/dev/null)}")
    compadd -a found
}
if [ "$funcstack[1]" = "_mep_sdk" ]; then
    _mep_sdk "$@"
else
    compdef _mep_sdk mep-sdk
fi
""",
    "fish": """\
function __mep_sdk_complete
    set -l words (commandline -opc) (commandline -ct)
    MEP_SDK_COMPLETE=1 mep-sdk $words[2..-1] 2>/dev/null
end
complete -c mep-sdk -f -a '(__mep_sdk_complete)'
""",
}


def completion(options: argparse.Namespace) -> int:
    """Print the script that teaches a shell to complete the command's words."""
    text = script(options.shell)
    if options.json:
        output.as_json({"shell": options.shell, "script": text})
    else:
        sys.stdout.write(text)
    return 0


def script(shell: str) -> str:
    """Return the script for a shell."""
    return _SCRIPTS[shell]


def complete(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    """Print the words that may stand in the place of the last of these."""
    *before, typed = words or [""]
    found = sorted({each for each in candidates(parser, before, typed) if each.startswith(typed)})
    sys.stdout.writelines(printable(each) + "\n" for each in found)
    sys.stdout.flush()
    return 0


def candidates(parser: argparse.ArgumentParser, before: Sequence[str], typed: str) -> Iterator[str]:
    """Yield the words that may follow others."""
    command, rest = _command(parser, before)
    options = {name: action for action in command._actions for name in action.option_strings}  # noqa: SLF001 - argparse tells it nowhere else
    last = options.get(rest[-1]) if rest else None
    if last is not None and last.nargs != 0:
        yield from _values(last)
    elif typed.startswith("-"):
        yield from options
    else:
        for action in command._actions:  # noqa: SLF001 - as above
            if not action.option_strings and _is_next(action, rest, options):
                yield from _values(action)


def _command(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the command that was named, and the words after its name."""
    for action in parser._actions:  # noqa: SLF001 - as above
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            for at, word in enumerate(words):
                if word in action.choices:
                    return action.choices[word], list(words[at + 1 :])
    return parser, list(words)


def _is_next(action: argparse.Action, words: Sequence[str], options: dict[str, argparse.Action]) -> bool:
    """Whether the next word without a hyphen is this argument's: the first is the first one's, and so on."""
    given, skip = 0, False
    for word in words:
        option = options.get(word)
        if skip or option is not None or word.startswith("-"):
            skip = option is not None and option.nargs != 0
        else:
            given += 1
    return isinstance(action, argparse._SubParsersAction) or (given == 0 and action.dest in ("endpoint", "shell"))  # noqa: SLF001 - as above


def _values(action: argparse.Action) -> Iterator[str]:
    if action.choices is not None:
        yield from map(str, action.choices)
    elif action.dest == "endpoint":
        yield from endpoint_names()
    elif action.dest in ("profile", "use"):
        with contextlib.suppress(MepError, OSError):
            yield from profile_names()
    elif action.dest == "state":
        yield from ("pending", "ended", "running", "success", "failed", "cancelled", "expired")


def endpoint_names() -> list[str]:
    """Return the names of endpoints: the last answer, or a new one if it comes in time."""
    path = _kept()
    known = _read(path)
    if known is not None and 0 <= time.time() - known["at"] < FRESH_S:
        return list(known["names"])
    found: list[list[str]] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # whatever it is, there is nobody to tell
            names = _asked_names()
            found.append(names)
            _write(path, names)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    return found[0] if found else list(known["names"]) if known else []


def _asked_names() -> list[str]:
    from mep_sdk.client import Client  # the other words need none

    client = Client()
    names = [each.get(key) for each in client.get_endpoints() for key in ("name", "display_name")]
    names += [each.get(key) for each in client.get_endpoints("any") for key in ("alias", "uuid")]
    return sorted({str(each) for each in names if each and _PLAIN.fullmatch(str(each))})


def _kept() -> Path | None:
    """Return where the last answer of this login's relay is kept."""
    directory = config_dir()
    if directory is None:
        return None
    who = "\0".join(os.environ.get(name, "") for name in ("MEP_RELAY_URL", "MEP_PROFILE", "MEP_TOKEN"))
    import hashlib

    return directory / f"endpoint-names-{hashlib.sha256(who.encode()).hexdigest()[:16]}.json"


def _read(path: Path | None) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes()) if path is not None else None
        whole = isinstance(found, dict) and isinstance(found["at"], int | float) and isinstance(found["names"], list)
    except (OSError, ValueError, KeyError):
        return None
    return found if whole else None


def _write(path: Path | None, names: list[str]) -> None:
    from mep_sdk.private_files import write_private

    if path is not None:
        write_private(path, json.dumps({"at": time.time(), "names": names}).encode())
