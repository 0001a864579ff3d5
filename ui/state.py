"""Where the truth is: the workspace, its queue and its uploads. Nothing but ids is kept in a session."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from analyzers import catalogue
from analyzers._base import Result
from probes.specs import fingerprint
from workspace.jobs import Jobs, JobSpec
from workspace.store import DEFAULT_FOLDER, ENVIRONMENT, Store, open_store
from workspace.tick import partial_folder
from workspace.uploads import Uploads


def store() -> Store:
    """Return the workspace that the environment names, opened once."""
    return _workspace().store


def jobs() -> Jobs:
    """Return its queue."""
    return _workspace().jobs


def uploads() -> Uploads:
    """Return what receives its files."""
    return _workspace().uploads


def answer(spec: JobSpec) -> dict[str, Any] | None:
    """Return what a job wrote (result.json), or None when it has not finished."""
    return answer_of(spec.id)


def answer_of(id: str) -> dict[str, Any] | None:
    """Return the result.json of a run, or None."""
    path = store().folder(id) / "result.json"
    try:
        return _json(str(path), path.stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def result_of(id: str, analyzer: str) -> Result | None:
    """Return the finished result of an analysis, or None."""
    folder = store().folder(id)
    try:
        return _result(str(folder), analyzer, (folder / "result.json").stat().st_mtime_ns)
    except FileNotFoundError:
        return None


def partial_of(id: str, analyzer: str) -> Result | None:
    """Return the result so far of an analysis under way, or None."""
    folder = partial_folder(store().folder(id))
    try:
        return catalogue()[analyzer].result.read(folder) if folder else None
    except FileNotFoundError:  # a newer one has taken its place
        return None


def names() -> dict[str, str]:
    """Return the names of the stored files by their sha256."""
    return {each.sha256: each.name for each in store().files()}


def key_for(name: str, value: object) -> str:
    """Return a widget's key that changes with the value it begins with.

    A widget whose value also changes from outside (an upload, another tab) must not be set through its state: what
    the browser still shows would come back as if the user had chosen it.
    """
    return f"{name}-{fingerprint(value)[:10]}"


def heeding(key: str, now: Any, act: Callable[[Any], object]) -> Callable[[], None]:
    """Return the `on_change` of a widget that begins with `now`: it acts on other values only.

    A browser may still tell of a widget that is no longer on the page; Streamlit takes that for a change, though
    nobody chose anything, and the widget then says what it began with.
    """

    def changed() -> None:
        value = st.session_state[key]
        if value != now:
            act(value)

    return changed


@dataclass(frozen=True)
class _Workspace:
    """What there is one of for a workspace in this process: an upload begun with one must be known to all."""

    store: Store
    jobs: Jobs
    uploads: Uploads


_opened: dict[str, _Workspace] = {}
_one_opens = threading.Lock()


def _workspace() -> _Workspace:
    root = str(Path(os.environ.get(ENVIRONMENT) or DEFAULT_FOLDER).resolve())
    with _one_opens:
        if root not in _opened:
            store = open_store(Path(root))
            _opened[root] = _Workspace(store, Jobs(store), Uploads(store))
        return _opened[root]


@lru_cache(maxsize=256)
def _json(path: str, _changed: int) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


@lru_cache(maxsize=16)
def _result(folder: str, analyzer: str, _changed: int) -> Result:
    return catalogue()[analyzer].result.read(Path(folder))
