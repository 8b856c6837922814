"""The SQLite schema and its versions. `migrate` brings a database up to the newest; called when a store opens."""

from __future__ import annotations

import sqlite3

from mep_wire.states import TaskState
from relay.store.records import PIECE_USE_BYTES

_END = int(TaskState.SUCCESS)

MIGRATIONS: tuple[str, ...] = (
    f"""
    CREATE TABLE accounts (account_id TEXT PRIMARY KEY, created_at REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE identities (
        identity_id TEXT PRIMARY KEY, account_id TEXT NOT NULL REFERENCES accounts,
        username TEXT NOT NULL UNIQUE COLLATE NOCASE, body BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX identities_account ON identities (account_id);
    CREATE TABLE tokens (
        token_hash BLOB PRIMARY KEY, account_id TEXT NOT NULL, identity_id TEXT NOT NULL, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX tokens_identity ON tokens (identity_id);

    CREATE TABLE endpoints (
        endpoint_id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, link_key BLOB NOT NULL,
        deleted_at REAL NOT NULL DEFAULT 0, body BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX endpoints_link_key ON endpoints (link_key) WHERE deleted_at = 0;
    CREATE INDEX endpoints_owner ON endpoints (owner);
    CREATE TABLE functions (
        function_row INTEGER PRIMARY KEY, function_id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,
        public INTEGER NOT NULL, deleted_at REAL NOT NULL DEFAULT 0, code BLOB NOT NULL, body BLOB NOT NULL
    );
    CREATE TABLE ueps (
        uep_row INTEGER PRIMARY KEY, uep_id TEXT NOT NULL UNIQUE, endpoint_id TEXT NOT NULL, account_id TEXT NOT NULL,
        identity_id TEXT NOT NULL, config BLOB NOT NULL, runtime BLOB NOT NULL,
        link_key BLOB
    );
    CREATE TABLE joins (join_hash BLOB PRIMARY KEY, uep_row INTEGER NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX joins_uep ON joins (uep_row);
    CREATE UNIQUE INDEX ueps_link_key ON ueps (link_key) WHERE link_key IS NOT NULL;
    CREATE INDEX ueps_endpoint ON ueps (endpoint_id);
    CREATE INDEX ueps_account ON ueps (account_id);

    CREATE TABLE task_groups (group_row INTEGER PRIMARY KEY, group_id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL);
    CREATE TABLE tasks (
        row INTEGER PRIMARY KEY, task_id BLOB NOT NULL UNIQUE, group_row INTEGER NOT NULL, uep_row INTEGER NOT NULL,
        function_row INTEGER NOT NULL, state INTEGER NOT NULL, submitted_at REAL NOT NULL,
        started_at REAL NOT NULL DEFAULT 0, ended_at REAL NOT NULL DEFAULT 0, seq INTEGER
    );
    CREATE INDEX tasks_active ON tasks (uep_row, state, row) WHERE state < {_END};
    CREATE INDEX tasks_group ON tasks (group_row, row);
    CREATE TABLE inputs (
        row INTEGER PRIMARY KEY, payload BLOB NOT NULL, resource_spec BLOB NOT NULL, walltime_s REAL NOT NULL
    );
    CREATE TABLE results (
        seq INTEGER PRIMARY KEY, row INTEGER NOT NULL, group_row INTEGER NOT NULL,
        stored_at REAL NOT NULL, code TEXT NOT NULL, text TEXT NOT NULL, payload BLOB NOT NULL,
        correlation_id TEXT NOT NULL
    );
    CREATE INDEX results_group ON results (group_row, seq);
    CREATE TABLE padding (body BLOB);
    """,
    """
    ALTER TABLE ueps ADD COLUMN made_of TEXT NOT NULL DEFAULT '';
    UPDATE ueps SET made_of = account_id;
    """,
    """
    CREATE TABLE task_records (
        endpoint_id TEXT PRIMARY KEY, first_seq INTEGER NOT NULL, next_seq INTEGER NOT NULL, dropped INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE task_events (
        endpoint_id TEXT NOT NULL, seq INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (endpoint_id, seq)
    ) WITHOUT ROWID;
    """,
    f"""
    ALTER TABLE tasks ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN deadline REAL NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE tasks ADD COLUMN cancelling INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE inputs ADD COLUMN max_attempts INTEGER NOT NULL DEFAULT 0;
    DROP INDEX tasks_active;
    CREATE INDEX tasks_active ON tasks (uep_row, state, priority DESC, row) WHERE state < {_END};
    CREATE INDEX tasks_deadline ON tasks (deadline) WHERE deadline > 0 AND state < {_END};
    CREATE INDEX tasks_cancelling ON tasks (uep_row) WHERE cancelling = 1 AND state < {_END};
    """,
    """
    ALTER TABLE ueps ADD COLUMN seen_at REAL NOT NULL DEFAULT 0;
    UPDATE ueps SET seen_at = strftime('%s', 'now');
    """,
    """
    ALTER TABLE task_groups ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE task_groups SET bytes =
        (SELECT coalesce(sum(length(payload)), 0) FROM results r WHERE r.group_row = task_groups.group_row) +
        (SELECT coalesce(sum(length(i.payload)), 0) FROM tasks t JOIN inputs i ON i.row = t.row
         WHERE t.group_row = task_groups.group_row);
    CREATE INDEX task_groups_owner ON task_groups (owner);
    ALTER TABLE functions ADD COLUMN used_at REAL NOT NULL DEFAULT 0;
    UPDATE functions SET used_at = strftime('%s', 'now');
    CREATE INDEX functions_unused ON functions (deleted_at, used_at);
    """,
    """
    ALTER TABLE ueps ADD COLUMN incarnation BLOB NOT NULL DEFAULT x'';
    """,
    f"""
    ALTER TABLE tasks ADD COLUMN doubtful INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX tasks_doubtful ON tasks (uep_row) WHERE doubtful = 1 AND state < {_END};
    """,
    """
    ALTER TABLE tokens ADD COLUMN token_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE tokens ADD COLUMN expires_at REAL NOT NULL DEFAULT 0;
    ALTER TABLE tokens ADD COLUMN used_at REAL NOT NULL DEFAULT 0;
    ALTER TABLE tokens ADD COLUMN grant_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE tokens ADD COLUMN body BLOB NOT NULL DEFAULT x'';
    UPDATE tokens SET token_id = lower(hex(randomblob(16)));
    CREATE INDEX tokens_account ON tokens (account_id, created_at);
    CREATE INDEX tokens_grant ON tokens (grant_id) WHERE grant_id <> '';
    CREATE INDEX tokens_expire ON tokens (expires_at) WHERE expires_at > 0;
    ALTER TABLE functions ADD COLUMN group_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE functions ADD COLUMN ha_endpoint_id TEXT NOT NULL DEFAULT '';
    CREATE TABLE documents (
        kind TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, expires REAL NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITHOUT ROWID;
    CREATE INDEX documents_owner ON documents (owner, kind, id);
    CREATE INDEX documents_expire ON documents (expires) WHERE expires > 0;
    """,
    """
    CREATE TABLE chunks (
        name TEXT PRIMARY KEY, owner TEXT NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL,
        stored INTEGER NOT NULL, touched_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX chunks_owner ON chunks (owner, digest);
    CREATE INDEX chunks_touched ON chunks (touched_at);
    ALTER TABLE inputs ADD COLUMN chunk TEXT NOT NULL DEFAULT '';
    ALTER TABLE inputs ADD COLUMN chunk_size INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE results ADD COLUMN chunk TEXT NOT NULL DEFAULT '';
    ALTER TABLE results ADD COLUMN chunk_size INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX inputs_chunk ON inputs (chunk) WHERE chunk <> '';
    CREATE INDEX results_chunk ON results (chunk) WHERE chunk <> '';
    ALTER TABLE task_groups ADD COLUMN delivered_seq INTEGER NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE tasks ADD COLUMN held INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE dependencies (
        row INTEGER NOT NULL, slot INTEGER NOT NULL, on_row INTEGER NOT NULL, PRIMARY KEY (row, slot)
    ) WITHOUT ROWID;
    CREATE INDEX dependencies_on ON dependencies (on_row);
    """,
    """
    CREATE TABLE chunk_uses (
        chunk TEXT NOT NULL, row INTEGER NOT NULL, in_result INTEGER NOT NULL, PRIMARY KEY (chunk, row, in_result)
    ) WITHOUT ROWID;
    CREATE INDEX chunk_uses_row ON chunk_uses (row);
    """,
    """
    ALTER TABLE functions ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
    UPDATE functions SET bytes = length(code) + length(body) + 1024;
    CREATE INDEX functions_owner ON functions (owner, bytes);
    """,
    f"""
    UPDATE task_groups SET bytes = bytes + {PIECE_USE_BYTES} * (SELECT count(*) FROM tasks t
        JOIN chunk_uses u ON u.row = t.row WHERE t.group_row = task_groups.group_row)
    WHERE EXISTS (SELECT 1 FROM chunk_uses);
    """,  # noqa: S608 - a number of ours
    """
    CREATE TABLE piece_sources (
        uep_row INTEGER NOT NULL, chunk TEXT NOT NULL, PRIMARY KEY (uep_row, chunk)
    ) WITHOUT ROWID;
    CREATE INDEX piece_sources_chunk ON piece_sources (chunk);
    INSERT INTO piece_sources SELECT u.uep_row, c.name FROM chunks c JOIN ueps u ON u.account_id = c.owner
        WHERE c.stored = 1 AND c.touched_at > CAST(strftime('%s', 'now') AS REAL) AND u.link_key IS NOT NULL;
    """,
    """
    ALTER TABLE dependencies RENAME COLUMN row TO set_row;
    ALTER TABLE tasks ADD COLUMN waits_for INTEGER NOT NULL DEFAULT 0;
    UPDATE tasks SET waits_for = row WHERE row IN (SELECT set_row FROM dependencies);
    CREATE INDEX tasks_held ON tasks (waits_for, state) WHERE held = 1;
    CREATE INDEX tasks_waits ON tasks (waits_for, state) WHERE waits_for > 0;
    """,
    """
    CREATE INDEX tokens_id ON tokens (token_id);
    CREATE INDEX ueps_unseen ON ueps (seen_at) WHERE link_key IS NULL;
    CREATE INDEX chunks_size ON chunks (owner, size);
    """,
    f"""
    DROP INDEX tasks_active;
    CREATE INDEX tasks_active ON tasks (uep_row, state, held, priority DESC, row) WHERE state < {_END};
    CREATE INDEX tasks_again ON tasks (uep_row) WHERE attempts > 0 AND state < {_END};
    """,
)
"""One script a version; a database's version is PRAGMA user_version. A released script is never edited."""


class StateTooNew(RuntimeError):
    """The relay's state was written by a newer version of the relay: upgrade this one."""

    @classmethod
    def versions(cls, found: int, known: int) -> StateTooNew:
        """Return the error that names both versions."""
        return cls(f"the state has schema version {found}, this relay knows {known}: install the relay that wrote it")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the database to the newest version, each step in a transaction. Raises StateTooNew."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StateTooNew.versions(version, len(MIGRATIONS))
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
