"""The example configuration etc/mep-relay.toml: `python -m relay.example FILE` writes it anew.

Every key is commented out with its default, so a relay with this file behaves as one without a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import wrap

import msgspec

from relay.settings import options

_WIDTH = 116
_HEAD = """\
# The configuration of mep-relay. Every key is shown, commented out, with its default. `mep-relay config` checks this
# file and shows every value; a change takes effect when the relay is started again.
"""


def commented_settings() -> str:
    """Return a mep-relay.toml that shows every key and sets none."""
    parts = [_HEAD]
    for one in options():
        default = msgspec.json.encode(one.default).decode()  # TOML writes such values as JSON does
        parts.append("".join(f"# {line}\n" for line in wrap(_text(one.text, one.kind), _WIDTH)))
        parts[-1] += f"#{one.name} = {default}\n"
    return "\n".join(parts)


def _text(text: str, kind: object) -> str:
    return f"{text} One of: {', '.join(kind)}." if isinstance(kind, tuple) else text


def main() -> None:
    """Write the example into the file of the first argument."""
    Path(sys.argv[1]).write_text(commented_settings())


if __name__ == "__main__":
    main()
