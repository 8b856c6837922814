"""Every SQL statement of the SQLite store, by name, each with a line on its purpose.

The only things formatted into them are the numbers of states, from the tables of mep_wire.states, and what rows count.
"""
# ruff: noqa: S608 - see above

from __future__ import annotations

from typing import Final

from mep_wire.states import TASK_TRANSITIONS, TaskState
from relay.store.records import CHUNK_ROW_BYTES, PIECE_USE_BYTES


def _may_become(then: TaskState) -> str:
    """SQL list of the states from which a task may go to `then`."""
    return "(" + ",".join(str(int(now)) for now, after in TASK_TRANSITIONS.items() if then in after) + ")"


_QUEUED: Final = int(TaskState.QUEUED)
_DISPATCHED: Final = int(TaskState.DISPATCHED)
_RUNNING: Final = int(TaskState.RUNNING)
_END: Final = int(TaskState.SUCCESS)

# --- people -----------------------------------------------------------------------------------------

ADD_ACCOUNT = "INSERT INTO accounts VALUES (?, ?)"
ADD_IDENTITY = "INSERT INTO identities VALUES (?, ?, ?, ?)"
ADD_TOKEN = (
    "INSERT INTO tokens (token_hash, account_id, identity_id, created_at, token_id, expires_at, grant_id, body) "  # noqa: S105
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
IDENTITY_IDS = "SELECT identity_id FROM identities WHERE account_id = ? ORDER BY identity_id"
SET_IDENTITY = "UPDATE identities SET username = ?, body = ? WHERE identity_id = ?"
IDENTITY = "SELECT account_id, username FROM identities WHERE identity_id = ?"
REMOVE_TOKEN = "DELETE FROM tokens WHERE token_id = ? AND account_id = ?"  # noqa: S105 - SQL
REMOVE_GRANT_TOKENS = "DELETE FROM tokens WHERE grant_id = ? AND grant_id <> ''"
SWEEP_TOKENS = (
    "DELETE FROM tokens WHERE token_hash IN "
    "(SELECT token_hash FROM tokens WHERE expires_at > 0 AND expires_at < ? LIMIT ?)"
)
USE_TOKEN = "UPDATE tokens SET used_at = ? WHERE token_id = ?"  # noqa: S105 - SQL
_TOKEN = "SELECT token_id, account_id, identity_id, created_at, expires_at, used_at, grant_id, body FROM tokens "  # noqa: S105
TOKEN = _TOKEN + "WHERE token_hash = ?"
TOKENS_OF = _TOKEN + "WHERE account_id = ? ORDER BY created_at DESC, token_id LIMIT ?"
REMOVE_TOKENS = "DELETE FROM tokens WHERE identity_id = ?"
# Logins, which could be refreshed into tokens, and those of which the client has not asked for tokens yet.
REMOVE_GRANTS = "DELETE FROM documents WHERE kind IN ('grant', 'code', 'device') AND owner = ?"
# An identity goes to another account, and what its tokens may do with it.
MOVE_IDENTITY = (
    "UPDATE identities SET account_id = ? WHERE identity_id = ?",
    "UPDATE tokens SET account_id = ? WHERE identity_id = ?",
)
REMOVE_ACCOUNT = (
    (
        "DELETE FROM documents WHERE kind IN ('grant', 'code', 'device') "
        "AND owner IN (SELECT identity_id FROM identities WHERE account_id = ?)"
    ),
    "DELETE FROM tokens WHERE account_id = ?",
    "DELETE FROM identities WHERE account_id = ?",
    "DELETE FROM accounts WHERE account_id = ?",
)
# Everything that one person has becomes another's.
MERGE_ACCOUNTS = (
    "UPDATE identities SET account_id = :keep WHERE account_id = :other",
    "UPDATE tokens SET account_id = :keep WHERE account_id = :other",
    "UPDATE endpoints SET owner = :keep WHERE owner = :other",
    "UPDATE functions SET owner = :keep WHERE owner = :other",
    "UPDATE ueps SET account_id = :keep WHERE account_id = :other",
    "UPDATE task_groups SET owner = :keep WHERE owner = :other",
    "UPDATE documents SET owner = :keep WHERE owner = :other",
    """UPDATE chunks SET owner = :keep WHERE owner = :other
    AND digest NOT IN (SELECT digest FROM chunks WHERE owner = :keep)""",
    "DELETE FROM accounts WHERE account_id = :other",
)
IDENTITIES = "SELECT body FROM identities WHERE account_id = ? ORDER BY identity_id"
ACCOUNT_OF = "SELECT account_id, identity_id FROM identities WHERE username = ?"
ACCOUNTS = "SELECT account_id, min(username) AS first FROM identities GROUP BY account_id ORDER BY first"

# --- documents --------------------------------------------------------------------------------------

_DOCUMENT = "SELECT kind, id, body, owner, expires FROM documents "
ADD_DOCUMENT = "INSERT INTO documents (kind, id, owner, expires, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
PUT_DOCUMENT = (
    "INSERT INTO documents (kind, id, owner, expires, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (kind, id) "
    "DO UPDATE SET owner = excluded.owner, expires = excluded.expires, body = excluded.body"
)
DROP_DOCUMENT = "DELETE FROM documents WHERE kind = ? AND id = ?"
DROP_DOCUMENTS = "DELETE FROM documents WHERE kind = ? AND owner = ?"
SWEEP_DOCUMENTS = (
    "DELETE FROM documents WHERE (kind, id) IN "
    "(SELECT kind, id FROM documents WHERE expires > 0 AND expires < ? LIMIT ?)"
)
DOCUMENT = _DOCUMENT + "WHERE kind = ? AND id = ?"
DOCUMENTS = _DOCUMENT + "WHERE kind = ? AND id > ? ORDER BY id LIMIT ?"
DOCUMENTS_OF = _DOCUMENT + "WHERE owner = ? AND kind = ? AND id > ? ORDER BY id LIMIT ?"
COUNT_DOCUMENTS = "SELECT count(*) FROM (SELECT 1 FROM documents WHERE owner = ? AND kind = ? LIMIT ?) s"

# --- endpoints, functions, user endpoints -----------------------------------------------------------

# Add or replace an endpoint; its link key must be its own. Others' are not replaced; deleted ones stay deleted.
PUT_ENDPOINT = (
    "INSERT INTO endpoints (endpoint_id, owner, name, link_key, body) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (endpoint_id) DO UPDATE SET name = excluded.name, link_key = excluded.link_key, "
    "body = excluded.body WHERE endpoints.owner = excluded.owner AND endpoints.deleted_at = 0"
)
DELETE_ENDPOINT = "UPDATE endpoints SET deleted_at = ? WHERE endpoint_id = ? AND deleted_at = 0"
ENDPOINT = "SELECT owner, deleted_at, body FROM endpoints WHERE endpoint_id = ?"
ENDPOINTS = "SELECT owner, deleted_at, body FROM endpoints WHERE deleted_at = 0 ORDER BY name, endpoint_id"
ENDPOINTS_OF = (
    "SELECT owner, deleted_at, body FROM endpoints WHERE deleted_at = 0 AND owner = ? ORDER BY name, endpoint_id"
)

ADD_FUNCTION = (
    "INSERT INTO functions (function_id, owner, public, code, body, used_at, group_id, ha_endpoint_id, bytes) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (function_id) DO NOTHING"
)
CHANGE_FUNCTION = (
    "UPDATE functions SET public = ?, body = ?, group_id = ?, ha_endpoint_id = ?, bytes = length(code) + ? "
    "WHERE function_id = ?"
)
DELETE_FUNCTION = "UPDATE functions SET deleted_at = ? WHERE function_id = ?"
FUNCTION = "SELECT owner, body, code FROM functions WHERE function_id = ? AND deleted_at = 0"
FUNCTION_REF = (
    "SELECT function_row, function_id, owner, public, used_at, group_id, ha_endpoint_id "
    "FROM functions WHERE function_id = ? AND deleted_at = 0"
)
FUNCTION_CODE = "SELECT code FROM functions WHERE function_id = ?"

ADD_UEP = (
    "INSERT INTO ueps (uep_id, endpoint_id, account_id, identity_id, config, runtime, seen_at, made_of) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (uep_id) DO NOTHING"
)
ADD_JOIN = "INSERT INTO joins VALUES (?, ?, ?)"
DROP_JOINS = "DELETE FROM joins WHERE uep_row = ? AND expires < ?"
# Spend a join token, and with it every other one of the same user endpoint.
SPEND_JOIN = "DELETE FROM joins WHERE join_hash = ? AND uep_row = ? AND expires >= ?"
DROP_ALL_JOINS = "DELETE FROM joins WHERE uep_row = ?"
SET_LINK = (
    "UPDATE ueps SET link_key = ?, incarnation = ? WHERE uep_row = ? "
    "AND NOT EXISTS (SELECT 1 FROM ueps other WHERE other.link_key = ? AND other.uep_row <> ?)"
)
CLEAR_LINK = "UPDATE ueps SET link_key = NULL WHERE uep_row = ? AND link_key = ?"
TOUCH_UEP = "UPDATE ueps SET seen_at = ? WHERE uep_row = ?"
_UEP = (
    "SELECT uep_row, uep_id, endpoint_id, account_id, identity_id, config, runtime, link_key, made_of, seen_at, "
    "incarnation FROM ueps "
)
UEP = _UEP + "WHERE uep_id = ?"
UEP_BY_LINK_KEY = _UEP + "WHERE link_key = ?"
ENDPOINT_OF_UEP = "SELECT endpoint_id FROM ueps WHERE uep_row = ?"
# User endpoints that may have a process or that tasks wait for.
UEPS_IN_USE = _UEP + (
    "WHERE (link_key IS NOT NULL OR EXISTS "
    f"(SELECT 1 FROM tasks WHERE tasks.uep_row = ueps.uep_row AND state < {_END}))"
)
UEPS_IN_USE_OF = UEPS_IN_USE + " AND endpoint_id = ?"

# --- tasks: changes ---------------------------------------------------------------------------------

NEXT_ROW = "SELECT coalesce(max(row), 0) + 1 FROM tasks"
NEXT_SEQ = "SELECT coalesce(max(seq), 0) + 1 FROM results"
ADD_GROUP = "INSERT INTO task_groups (group_id, owner) VALUES (?, ?) ON CONFLICT (group_id) DO NOTHING"
ADD_TASK = (
    "INSERT INTO tasks (row, task_id, group_row, uep_row, function_row, state, submitted_at, priority, deadline) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
ADD_INPUT = (
    "INSERT INTO inputs (row, payload, resource_spec, walltime_s, max_attempts, chunk, chunk_size) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
# What a task id stands for already, to tell a repeated submission from a clash.
KNOWN_TASK = "SELECT row, group_row, uep_row, function_row FROM tasks WHERE task_id = ?"
QUEUED_TASKS = (
    "SELECT t.row, t.task_id, f.function_id, i.payload, i.resource_spec, i.walltime_s, "
    "t.attempts + 1, i.max_attempts, t.deadline, t.priority, i.chunk, i.chunk_size "
    "FROM tasks t JOIN inputs i ON i.row = t.row JOIN functions f ON f.function_row = t.function_row "
    f"WHERE t.uep_row = ? AND t.state = {_QUEUED} AND likely(t.state < {_END}) AND t.held = 0 "
    "ORDER BY t.priority DESC, t.row LIMIT ?"
)
MARK_DISPATCHED = (
    f"UPDATE tasks SET state = {_DISPATCHED} WHERE row = ? AND uep_row = ? "
    f"AND state IN {_may_become(TaskState.DISPATCHED)}"
)
MARK_STARTED = (
    f"UPDATE tasks SET state = {_RUNNING}, started_at = ? WHERE row = ? AND uep_row = ? "
    f"AND state IN {_may_become(TaskState.RUNNING)}"
)
REQUEUE = (
    f"UPDATE tasks SET state = {_QUEUED} WHERE row = ? AND uep_row = ? AND state IN {_may_become(TaskState.QUEUED)}"
)
# The index on open tasks is partial: SQLite uses it only if the query contains the index's own condition. Without
# `likely`, SQLite would search the range of that condition, not the requested state.
_OPEN = f"likely(state < {_END})"
REQUEUE_NOT_STARTED = f"UPDATE tasks SET state = {_QUEUED} WHERE uep_row = ? AND state = {_DISPATCHED} AND {_OPEN}"
ACTIVE_ROWS = f"SELECT row, state FROM tasks WHERE uep_row = ? AND state IN ({_DISPATCHED}, {_RUNNING}) AND {_OPEN}"
RUNNING_ROWS = (
    f"SELECT row FROM tasks WHERE uep_row = ? AND state = {_RUNNING} AND held = 0 AND {_OPEN} "
    "ORDER BY priority DESC, row"
)
# Held ones come last: `held` is in the index before the order, so that no search for others reads them.
QUEUED_ROWS = (
    f"SELECT row FROM tasks WHERE uep_row = ? AND state = {_QUEUED} AND {_OPEN} "
    "ORDER BY held, priority DESC, row LIMIT ?"
)
# Asked for each page of tasks that expire: the index on open tasks would do as well, and read every one that waits.
QUEUED_AGAIN = (
    f"SELECT row FROM tasks INDEXED BY tasks_again WHERE uep_row = ? AND attempts > 0 AND state < {_END} "
    f"AND +state = {_QUEUED}"
)
QUEUED_DOUBTFUL = (
    f"SELECT row FROM tasks INDEXED BY tasks_doubtful WHERE uep_row = ? AND doubtful = 1 AND state < {_END} "
    f"AND +state = {_QUEUED}"
)
DOUBT = f"UPDATE tasks SET doubtful = ? WHERE row = ? AND uep_row = ? AND state < {_END}"
# Those of one priority are in the order in which they were submitted.
QUEUED_ROWS_BY_AGE = (
    f"SELECT row, submitted_at FROM tasks WHERE uep_row = ? AND state = {_QUEUED} AND held = ? AND priority = ? "
    f"AND {_OPEN} "
    "ORDER BY row LIMIT ?"
)
OPEN_ATTEMPTS = (
    "SELECT t.row, t.state, t.attempts, coalesce(i.max_attempts, 0), t.cancelling "
    f"FROM tasks t LEFT JOIN inputs i ON i.row = t.row WHERE t.row = ? AND t.uep_row = ? AND t.state < {_END}"
)
COUNT_ATTEMPT = f"UPDATE tasks SET attempts = max(attempts, ?) WHERE row = ? AND uep_row = ? AND state < {_END}"
ASK_CANCEL = f"UPDATE tasks SET cancelling = 1 WHERE row = ? AND uep_row = ? AND state < {_END}"
# Asked whenever tasks wait again: the index on open tasks would do as well, and read every one that waits.
CANCELLING = (
    f"SELECT row, state FROM tasks INDEXED BY tasks_cancelling WHERE uep_row = ? AND cancelling = 1 AND state < {_END}"
)
# The group and id of a task that may still end, and proof that it is this user endpoint's.
OPEN_TASK = f"SELECT group_row, task_id FROM tasks WHERE row = ? AND uep_row = ? AND state < {_END}"
ADD_RESULT = (
    "INSERT INTO results (seq, row, group_row, stored_at, code, text, payload, correlation_id, chunk, chunk_size) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
END_TASK = (
    "UPDATE tasks SET state = ?, seq = ?, started_at = max(started_at, ?), ended_at = ? "
    f"WHERE row = ? AND state < {_END}"
)
# --- tasks that wait for others at the relay ---------------------------------------------------------
#
# Tasks that wait for the same others have these as one set in `dependencies`, which `waits_for` names: ten thousand
# tasks may wait for the same hundred. A task that is held waits still.

TASK_OWNER = (
    "SELECT t.row, g.owner, u.endpoint_id FROM tasks t JOIN task_groups g ON g.group_row = t.group_row "
    "JOIN ueps u ON u.uep_row = t.uep_row WHERE t.task_id = ?"
)
NEXT_SET = "SELECT coalesce(max(set_row), 0) + 1 FROM dependencies"
ADD_DEPENDENCY = "INSERT INTO dependencies (set_row, slot, on_row) VALUES (?, ?, ?)"
HOLD = f"UPDATE tasks SET held = 1, waits_for = ? WHERE row = ? AND state = {_QUEUED} AND waits_for = 0"
RELEASE = "UPDATE tasks SET held = 0 WHERE waits_for = ? AND held = 1"
HELD_BY = f"SELECT row, uep_row FROM tasks WHERE waits_for = ? AND held = 1 AND state = {_QUEUED} ORDER BY row"
IS_AWAITED = (
    "SELECT EXISTS (SELECT 1 FROM dependencies d JOIN tasks t ON t.waits_for = d.set_row "
    f"WHERE d.on_row = ? AND t.held = 1 AND t.state = {_QUEUED})"
)
# Those about which it can be decided: this task has failed, or was the last. The search ends at the first open one.
DECIDED_SETS = (
    "SELECT DISTINCT d.set_row FROM dependencies d LEFT JOIN tasks a ON a.row = d.on_row WHERE d.on_row = ? AND "
    f"(a.state IS NULL OR a.state > {_END} OR a.state = {_END} AND NOT EXISTS (SELECT 1 FROM dependencies e "
    f"JOIN tasks o ON o.row = e.on_row WHERE e.set_row = d.set_row AND o.state < {_END})) ORDER BY d.set_row"
)
DEPENDENCIES = (
    "SELECT o.task_id, o.state, coalesce(r.code, ''), coalesce(r.text, '') FROM tasks t "
    "JOIN dependencies d ON d.set_row = t.waits_for "
    "LEFT JOIN tasks o ON o.row = d.on_row LEFT JOIN results r ON r.seq = o.seq WHERE t.row = ? ORDER BY d.slot"
)
INPUTS = (
    "SELECT r.payload, r.chunk FROM tasks t JOIN dependencies d ON d.set_row = t.waits_for "
    "JOIN tasks o ON o.row = d.on_row JOIN results r ON r.seq = o.seq WHERE t.row = ? ORDER BY d.slot"
)
AWAITED = (
    "SELECT DISTINCT on_row FROM dependencies WHERE set_row IN "
    f"(SELECT waits_for FROM tasks WHERE held = 1 AND state < {_END})"
)
DEPENDENT_ROWS = f"SELECT row, uep_row FROM tasks WHERE waits_for > 0 AND state < {_END}"
DROP_SET = (
    "DELETE FROM dependencies WHERE set_row = ? "
    "AND NOT EXISTS (SELECT 1 FROM tasks WHERE waits_for = ? AND waits_for > 0)"
)
# What the pieces that a result's task needed, or has brought, count: the parenthesis is closed where it is used.
_USES = f"{PIECE_USE_BYTES} * (SELECT count(*) FROM chunk_uses u WHERE u.row = r.row"
# Results are stored in the order of their ends. The newest task and the newest result stay, so that their
# numbers are never given again.
# A page is read from where the last one ended: those that must stay are not looked at again and again. Where EXISTS is
# no condition of the whole query, PostgreSQL may read all of the other table for it, so there is LIMIT 1 in its place.
OLDEST_RESULTS = (
    f"SELECT r.seq, r.row, r.stored_at, r.group_row, length(r.payload) + coalesce(length(i.payload), 0) + {_USES}), "
    "(SELECT waits_for FROM tasks t WHERE t.row = r.row), r.chunk, coalesce(i.chunk, ''), "
    "r.row <> (SELECT max(row) FROM tasks) AND r.seq <> (SELECT max(seq) FROM results) "
    "AND (SELECT 1 FROM dependencies d JOIN tasks w ON w.waits_for = d.set_row "
    f"WHERE d.on_row = r.row AND w.waits_for > 0 AND w.state < {_END} LIMIT 1) IS NULL "
    "FROM results r LEFT JOIN inputs i ON i.row = r.row WHERE r.seq > ? ORDER BY r.seq LIMIT ?"
)
SWEEP = (
    "DELETE FROM inputs WHERE row = ?",
    "DELETE FROM tasks WHERE row = ?",
    "DELETE FROM chunk_uses WHERE row = ?",
)
SWEEP_RESULT = "DELETE FROM results WHERE seq = ?"
ADD_BYTES = "UPDATE task_groups SET bytes = bytes + ? WHERE group_row = ?"
ENDED_INPUTS = (
    f"SELECT r.seq, r.row, r.group_row, coalesce(length(i.payload), 0) + {_USES} AND u.in_result = 0), "
    "coalesce(i.chunk, '') "
    "FROM results r LEFT JOIN inputs i ON i.row = r.row WHERE r.seq > ? ORDER BY r.seq LIMIT ?"
)
DROP_INPUT = "DELETE FROM inputs WHERE row = ?"
STORED_BYTES = (
    "SELECT (SELECT coalesce(sum(bytes), 0) FROM task_groups WHERE owner = ?) + "
    f"(SELECT coalesce(sum(size + {CHUNK_ROW_BYTES}), 0) FROM chunks WHERE owner = ?) + "
    "(SELECT coalesce(sum(bytes), 0) FROM functions WHERE owner = ?)"
)
# The same, of which those may go that their person has been sent.
OLDEST_DELIVERED = OLDEST_RESULTS.replace(
    "FROM results r LEFT",
    "AND r.seq <= (SELECT delivered_seq FROM task_groups g WHERE g.group_row = r.group_row) FROM results r LEFT",
)
NOTE_DELIVERED = "UPDATE task_groups SET delivered_seq = ? WHERE group_row = ? AND delivered_seq < ?"

# --- chunks: payloads that are kept outside of the database -------------------------------------------

# Name a person's chunk with this content, whose bytes may be stored already, and keep it from being collected. Here and
# below, one that is kept for longer already stays for longer: an upload is kept for a day.
CLAIM_CHUNK = (
    "INSERT INTO chunks (name, owner, digest, size, stored, touched_at) VALUES (?, ?, ?, ?, 0, ?) "
    "ON CONFLICT (owner, digest) DO UPDATE SET touched_at = max(chunks.touched_at, excluded.touched_at) "
    "RETURNING name, stored"
)
# A reference to a chunk goes: from now on it is kept for as long as after a claim.
LEAVE_CHUNK = "UPDATE chunks SET touched_at = max(touched_at, ?) WHERE name = ?"
CHUNK_STORED = "UPDATE chunks SET stored = 1 WHERE name = ? AND stored = 0"
OLD_CHUNKS = "SELECT name FROM chunks WHERE touched_at < ? ORDER BY touched_at LIMIT ?"
COLLECT_CHUNK = (
    "DELETE FROM chunks WHERE name = ? "
    "AND NOT EXISTS (SELECT 1 FROM inputs i WHERE i.chunk = chunks.name AND i.chunk <> '') "
    "AND NOT EXISTS (SELECT 1 FROM results r WHERE r.chunk = chunks.name AND r.chunk <> '') "
    "AND NOT EXISTS (SELECT 1 FROM chunk_uses u WHERE u.chunk = chunks.name AND (u.in_result = 1 OR EXISTS "
    "(SELECT 1 FROM inputs i WHERE i.row = u.row)))"
)
# Pieces of data by reference: chunks that tasks name in `chunk_uses`, for their arguments or for their results.
OWN_PIECE = "SELECT name FROM chunks WHERE owner = ? AND digest = ? AND stored = 1"
KEEP_PIECE = (
    "UPDATE chunks SET touched_at = max(touched_at, ?) WHERE owner = ? AND digest = ? AND stored = 1 RETURNING name"
)
# A user endpoint has sent this piece. Its results may refer to it, until it is collected or the user endpoint removed.
ADD_SOURCE = "INSERT INTO piece_sources (uep_row, chunk) VALUES (?, ?) ON CONFLICT DO NOTHING"
FORGET_SOURCES = "DELETE FROM piece_sources WHERE chunk = ?"
DROP_SOURCES = "DELETE FROM piece_sources WHERE uep_row = ?"
# A piece that a task's result may refer to: its user endpoint has sent it, or the task was given it, with its arguments
# or with the results of others. To know the digest of another piece of the same person gives no right to it.
RESULT_PIECE = (
    "SELECT c.name FROM chunks c WHERE c.owner = ? AND c.digest = ? AND c.stored = 1 AND ("
    "EXISTS (SELECT 1 FROM piece_sources s WHERE s.uep_row = ? AND s.chunk = c.name) "
    "OR EXISTS (SELECT 1 FROM chunk_uses u WHERE u.chunk = c.name AND u.row = ? AND u.in_result = 0) "
    "OR EXISTS (SELECT 1 FROM tasks t JOIN dependencies d ON d.set_row = t.waits_for "
    "JOIN chunk_uses u ON u.row = d.on_row AND u.in_result = 1 AND u.chunk = c.name WHERE t.row = ?))"
)
OWNER_OF_TASK = "SELECT g.owner FROM tasks t JOIN task_groups g ON g.group_row = t.group_row WHERE t.row = ?"
USE_CHUNK = "INSERT INTO chunk_uses (chunk, row, in_result) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
HAS_USES = "SELECT EXISTS (SELECT 1 FROM chunk_uses)"
# As LEAVE_CHUNK, for the pieces of a task.
LEAVE_PIECES = (
    "UPDATE chunks SET touched_at = ? WHERE touched_at < ? AND name IN (SELECT chunk FROM chunk_uses WHERE row = ?)"
)
# Once its arguments are gone, that a task needed a piece for them means nothing, and is only in the way of a search.
FORGET_ARGUMENTS = "DELETE FROM chunk_uses WHERE row = ? AND in_result = 0"
FORGET_USES = "DELETE FROM chunk_uses WHERE chunk = ?"
# A user endpoint reads what its own unfinished tasks need, arguments and results of the tasks that they wait for.
PIECE_OF_UEP = (
    "SELECT c.name FROM chunks c WHERE c.owner = ? AND c.digest = ? AND c.stored = 1 AND (EXISTS (SELECT 1 "
    "FROM chunk_uses u JOIN tasks t ON t.row = u.row WHERE u.chunk = c.name AND u.in_result = 0 "
    f"AND t.uep_row = ? AND t.state < {_END}) OR EXISTS (SELECT 1 "
    "FROM chunk_uses u JOIN dependencies d ON d.on_row = u.row JOIN tasks t ON t.waits_for = d.set_row "
    f"WHERE u.chunk = c.name AND u.in_result = 1 AND t.waits_for > 0 AND t.uep_row = ? AND t.state < {_END}))"
)
KNOWN_CHUNK = "SELECT 1 FROM chunks WHERE name = ?"
# Every chunk that a task or a result refers to.
REFERRED_CHUNKS = (
    "SELECT chunk FROM inputs WHERE chunk <> '' UNION SELECT chunk FROM results WHERE chunk <> '' UNION "
    "SELECT chunk FROM chunk_uses u WHERE u.in_result = 1 OR EXISTS (SELECT 1 FROM inputs i WHERE i.row = u.row)"
)

# --- unused for long ----------------------------------------------------------------------------------

# Of all these the newest stays, so that its number is never given again: streams, records and tasks know them by it.
UNSEEN_UEPS = (
    "SELECT uep_row FROM ueps WHERE link_key IS NULL AND seen_at < ? "
    "AND uep_row <> (SELECT max(uep_row) FROM ueps) AND NOT EXISTS "
    f"(SELECT 1 FROM tasks WHERE tasks.uep_row = ueps.uep_row AND state < {_END})"
)
DROP_UEP = "DELETE FROM ueps WHERE uep_row = ?"
GROUPS_AFTER = (
    "SELECT group_row, (SELECT 1 FROM tasks t WHERE t.group_row = g.group_row LIMIT 1) FROM task_groups g "
    "WHERE group_row > ? AND group_row <> (SELECT max(group_row) FROM task_groups) ORDER BY group_row LIMIT ?"
)
DROP_GROUP = "DELETE FROM task_groups WHERE group_row = ?"
USE_FUNCTION = "UPDATE functions SET used_at = ? WHERE function_row = ?"
SWEEP_FUNCTIONS = (
    "UPDATE functions SET deleted_at = ? WHERE function_row IN "
    "(SELECT function_row FROM functions WHERE deleted_at = 0 AND used_at < ? LIMIT ?)"
)
PURGE_FUNCTIONS = (
    "DELETE FROM functions WHERE function_row IN (SELECT function_row FROM functions "
    "WHERE deleted_at > 0 AND deleted_at < ? AND function_row <> (SELECT max(function_row) FROM functions) LIMIT ?)"
)

# --- tasks: questions -------------------------------------------------------------------------------

NEXT_DEADLINE = f"SELECT min(deadline) FROM tasks WHERE deadline > 0 AND state < {_END}"
OVERDUE = (
    "SELECT row, uep_row, state, attempts, doubtful FROM tasks "
    f"WHERE deadline > 0 AND deadline <= ? AND state < {_END} ORDER BY deadline LIMIT ?"
)

HAS_QUEUED = f"SELECT EXISTS (SELECT 1 FROM tasks WHERE uep_row = ? AND state = {_QUEUED} AND {_OPEN} AND held = 0)"
HAS_ACTIVE = (
    f"SELECT EXISTS (SELECT 1 FROM tasks WHERE uep_row = ? AND state IN ({_DISPATCHED}, {_RUNNING}) AND {_OPEN})"
)
# By user endpoint: PostgreSQL would read everybody's where most of them are of one.
OPEN_TASKS = (
    f"SELECT coalesce(sum((SELECT count(*) FROM tasks t WHERE t.uep_row = u.uep_row AND t.state < {_END})), 0) "
    "FROM ueps u WHERE u.account_id = ?"
)
OPEN_BY_STATE = f"SELECT state, count(*) FROM tasks WHERE state < {_END} GROUP BY state"
OPEN_TASKS_AT = f"{OPEN_TASKS} AND u.endpoint_id = ?"
TASK = (
    "SELECT t.row, t.task_id, g.owner, t.uep_row, t.state, t.submitted_at, t.started_at, t.ended_at, "
    "r.code, r.text, r.payload, r.correlation_id, r.chunk "
    "FROM tasks t JOIN task_groups g ON g.group_row = t.group_row LEFT JOIN results r ON r.seq = t.seq "
    "WHERE t.task_id = ?"
)
# For an endpoint's administrator, who gets no result.
TASK_WITHOUT_RESULT = TASK.replace("r.payload", "NULL").replace("r.chunk", "NULL")
# A length is had from a row's head, without the payload's pages.
TASK_BRIEF = (
    "SELECT t.row, t.task_id, g.owner, t.uep_row, t.state, t.submitted_at, t.started_at, t.ended_at, "
    "coalesce(length(r.payload) + length(r.text) + r.chunk_size, 0), t.group_row "
    "FROM tasks t JOIN task_groups g ON g.group_row = t.group_row LEFT JOIN results r ON r.seq = t.seq "
    "WHERE t.task_id = ?"
)
GROUP = "SELECT group_row, group_id, owner FROM task_groups WHERE group_id = ?"
GROUP_TASKS = "SELECT row, task_id FROM tasks WHERE group_row = ? AND row > ? ORDER BY row LIMIT ?"
GROUPS_OF = (
    "SELECT group_row, group_id, owner FROM task_groups WHERE owner = ? AND group_row < ? ORDER BY 1 DESC LIMIT ?"
)
GROUP_SIZE = (
    "SELECT count(*), coalesce(min(submitted_at), 0.0), coalesce(max(submitted_at), 0.0) FROM "
    "(SELECT submitted_at FROM tasks WHERE group_row = ? ORDER BY row LIMIT ?) s"
)
GROUP_STATES = (
    "SELECT t.row, t.task_id, t.state, t.submitted_at, t.ended_at, coalesce(u.endpoint_id, ''), f.function_id FROM "
    "(SELECT * FROM tasks WHERE group_row = ? AND row > ? ORDER BY row LIMIT ?) t "
    "LEFT JOIN ueps u ON u.uep_row = t.uep_row LEFT JOIN functions f ON f.function_row = t.function_row ORDER BY t.row"
)
COMPLETIONS = (
    "SELECT r.seq, t.task_id, t.state, r.code, r.text, r.payload, r.correlation_id, r.chunk, r.chunk_size, t.uep_row "
    "FROM results r JOIN tasks t ON t.row = r.row WHERE r.group_row = ? AND r.seq > ? ORDER BY r.seq LIMIT ?"
)

# --- an administrator's questions, which read every task ------------------------------------------------

LIST_TASKS = (
    "SELECT t.task_id, g.owner, coalesce(u.endpoint_id, ''), t.state, t.submitted_at "
    "FROM tasks t JOIN task_groups g ON g.group_row = t.group_row LEFT JOIN ueps u ON u.uep_row = t.uep_row "
    "WHERE t.state < ? AND (? = '' OR g.owner = ?) AND (? = '' OR u.endpoint_id = ?) ORDER BY t.row DESC LIMIT ?"
)
QUEUES = (
    "SELECT u.uep_id, u.endpoint_id, u.account_id, t.state, count(*), min(t.submitted_at) "
    f"FROM tasks t JOIN ueps u ON u.uep_row = t.uep_row WHERE t.state < {_END} "
    "GROUP BY u.uep_id, u.endpoint_id, u.account_id, t.state"
)
STORAGE = (
    "SELECT owner, sum(bytes), sum(task_group) FROM (SELECT owner, bytes, 1 AS task_group FROM task_groups "
    f"UNION ALL SELECT owner, size + {CHUNK_ROW_BYTES}, 0 FROM chunks "
    "UNION ALL SELECT owner, bytes, 0 FROM functions) s "
    "GROUP BY owner ORDER BY 2 DESC, owner"
)

# --- the write-ahead log ----------------------------------------------------------------------------

# Make the log as long as it gets: a commit that overwrites is 80 microseconds quicker than one that appends.
PAD_LOG = (
    "INSERT INTO padding VALUES (zeroblob(?))",
    "DELETE FROM padding",
    "PRAGMA wal_checkpoint(RESTART)",
)

# --- task events ------------------------------------------------------------------------------------

KEEP_EVENTS = "INSERT INTO task_records VALUES (?, 1, 1, 0) ON CONFLICT (endpoint_id) DO NOTHING"
# The numbers go on where they were if it is switched on again: a reader tells repeated events by them.
STOP_KEEPING_EVENTS = (
    "DELETE FROM task_events WHERE endpoint_id = ?",
    "UPDATE task_records SET first_seq = -1, dropped = 0 WHERE endpoint_id = ?",
)
KEEP_EVENTS_AGAIN = "UPDATE task_records SET first_seq = next_seq WHERE endpoint_id = ? AND first_seq = -1"
EVENTS_KEPT = "SELECT endpoint_id FROM task_records WHERE first_seq >= 0"
EVENT_NUMBERS = "SELECT first_seq, next_seq, dropped FROM task_records WHERE endpoint_id = ? AND first_seq >= 0"
SET_EVENT_NUMBERS = "UPDATE task_records SET first_seq = ?, next_seq = ?, dropped = ? WHERE endpoint_id = ?"
ADD_EVENT = "INSERT INTO task_events VALUES (?, ?, ?)"
DROP_EVENTS = "DELETE FROM task_events WHERE endpoint_id = ? AND seq < ?"
EVENTS = "SELECT seq, body FROM task_events WHERE endpoint_id = ? ORDER BY seq LIMIT ?"
TASK_REF = (
    "SELECT t.row, t.task_id, f.function_id, t.state, t.submitted_at "
    "FROM tasks t JOIN functions f ON f.function_row = t.function_row WHERE t.row = ? AND t.uep_row = ?"
)
QUEUED_REFS = (
    "SELECT t.row, t.task_id, f.function_id, t.state, t.submitted_at "
    "FROM tasks t JOIN functions f ON f.function_row = t.function_row "
    f"WHERE t.uep_row = ? AND t.state = {_QUEUED} AND likely(t.state < {_END}) "
    "ORDER BY t.held, t.priority DESC, t.row LIMIT ?"
)
UEP_KEY = "SELECT endpoint_id, uep_id, account_id, identity_id, incarnation FROM ueps WHERE uep_row = ?"
