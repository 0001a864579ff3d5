"""DBOS behind a few words: its database, its settings, and what the app may do with it.

What has to be the same on both sides stands here once: the file and its WAL mode, the name of the workflow, the
pinned application version, the executor's name, and JSON instead of pickle.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from workspace.runs import Row, workflow_id

if TYPE_CHECKING:
    from dbos import DBOSClient

APPLICATION = "theodolite"
VERSION = "1"  # pinned: with the default (a hash of the code) an update would leave every waiting run waiting
EXECUTOR = "worker"  # stable: a worker takes up again what the one before it left
WORKFLOW = "run"
QUEUES = ("device", "bench")
OPEN = ("ENQUEUED", "PENDING", "DELAYED")  # states of a workflow that will still be run


def url(root: Path) -> str:
    """Return the address of the queue's database."""
    return f"sqlite:///{root / 'queue.db'}"


def prepare(root: Path) -> None:
    """Make the queue's database if it is not there, in WAL mode; any process may be the first."""
    from dbos import DBOS

    logging.getLogger("dbos").setLevel(logging.WARNING)
    connection = sqlite3.connect(root / "queue.db", timeout=30)
    try:
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    DBOS.migrate(url(root))


def options(row: Row) -> Mapping[str, Any]:
    """Return where and how a run is queued."""
    return {
        "workflow_name": WORKFLOW,
        "queue_name": row["lane"],
        "workflow_id": workflow_id(row),
        "app_version": VERSION,
        "priority": row["priority"],
    }


@cache
def queue_of(root: Path) -> Queue:
    """Return this process's end of a workspace's queue, always the same one."""
    return Queue(root)


class Queue:
    """The app's end of the queue: connected at the first use, then kept."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = Lock()

    def put(self, row: Row) -> None:
        """Queue the current round of a run; twice is once."""
        self._client.enqueue(options(row), row["id"], row["round"])

    def cancel(self, workflow: str) -> None:
        """Take a workflow out of the queue, or stop it."""
        self._client.cancel_workflow(workflow)

    def states(self, workflows: list[str]) -> dict[str, str]:
        """Return the states of those of these workflows that are known."""
        if not workflows:
            return {}
        found = self._client.list_workflows(workflow_ids=workflows, load_input=False, load_output=False)
        return {each.workflow_id: each.status for each in found}

    @property
    def _client(self) -> DBOSClient:
        with self._lock:
            return self._connected

    @cached_property
    def _connected(self) -> DBOSClient:
        from dbos import DBOSClient, DBOSPortableJSONSerializer

        prepare(self._root)
        return DBOSClient(
            system_database_url=url(self._root),
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            retry_connection_errors=False,  # a page must not hang; the worker mends what did not arrive
        )
