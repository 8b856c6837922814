"""Every size and time limit that more than one process must agree on, declared once."""

from __future__ import annotations

from typing import Final

MAX_PAYLOAD_BYTES: Final = 10 * 1024 * 1024
"""Largest serialized argument list or result of one task."""
MAX_FUNCTION_BYTES: Final = 10 * 1024 * 1024
"""Largest serialized function."""
DATA_PIECE_BYTES: Final = 4 * 1024 * 1024
"""Largest piece of arguments or of a result that go by reference."""
MAX_PIECES_WANTED: Final = 4
"""Most pieces that a user endpoint may have asked for and not had, and as many on their way from it."""
MAX_PIECES: Final = 65_536
"""Most pieces of one argument list or result: 256 GB."""
MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Largest HTTP request body (a batch of tasks)."""
MAX_LINK_MESSAGE_BYTES: Final = 80 * 1024 * 1024
"""Largest message on the endpoint link (ZMQ_MAXMSGSIZE on both sides)."""
MAX_TASKS_PER_SUBMIT: Final = 10_000
"""Most tasks in one submission."""
MAX_USER_CONFIG_BYTES: Final = 64 * 1024
"""Largest user_endpoint_config, as canonical JSON."""
MAX_START_REQUEST_BYTES: Final = 256 * 1024
"""Largest signed start request."""
MAX_BUNDLE_BYTES: Final = 8 * 1024 * 1024
"""Largest bundle of template directory, schema and environment handed to a user endpoint."""
MAX_IDENTITIES: Final = 64
"""Most linked identities in one identity set."""
MAX_PUBLIC_TEXT: Final = 1024
"""Longest text, in characters, that an endpoint may send a person about a refusal."""
MAX_ATTEMPTS: Final = 100
"""Most attempts that a task may ask for."""
MAX_DEPENDENCIES: Final = 100
"""Most tasks that one task may wait for."""
MAX_HELD_TASKS: Final = 10_000
"""Most tasks of one user endpoint that wait for others at the relay. The SDK holds further ones."""
MAX_INPUT_BYTES: Final = 64 * 1024 * 1024
"""Largest sum of results that one task gets from those that it waits for."""
MIN_PRIORITY: Final = -5
MAX_PRIORITY: Final = 5
"""Priority of a task among those of its person, 0 by default: higher ones first."""
MAX_RECHECKS: Final = 64
"""Most user endpoints that one Recheck may name."""
START_REQUEST_LIFETIME_S: Final = 60
"""How long a signed start request may be acted upon."""
JOIN_LIFETIME_S: Final = 300
"""How long the join token of a signed start may be spent: the process that it starts may take its time to get ready,
and has it from the first of several requests."""
HEARTBEAT_S: Final = 10.0
"""Interval of link heartbeats."""
LINK_DEAD_S: Final = 35.0
"""A peer silent for longer than this is taken for gone."""

ENDPOINT_VARIABLES: Final = ("mapped_identity", "user_runtime", "parent_config")
"""Template variables that the endpoint sets. Each is also an attribute of the variables in ENDPOINT_NAMESPACES."""
ENDPOINT_NAMESPACES: Final = ("_MEP", "_GC")
"""Template variables that hold the endpoint's own. `_GC` is the name in templates of Globus Compute."""
TEMPLATE_GLOBALS: Final = frozenset({"range", "dict", "cycler", "joiner", "namespace"})
"""Functions of Jinja that every template may call, and that a variable of the same name would hide."""
RESERVED_TEMPLATE_VARIABLES: Final = frozenset({*ENDPOINT_VARIABLES, *ENDPOINT_NAMESPACES}) | TEMPLATE_GLOBALS
"""Template variables that a person's user_endpoint_config may not set, because templates trust them."""
