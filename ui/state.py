"""Where the truth is: the workspace, its queue and its uploads. Nothing but ids is kept in a session."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from analyzers import catalogue
from analyzers._base import Result
from probes.specs import fingerprint
from workspace.jobs import Jobs, JobSpec
from workspace.store import DEFAULT_FOLDER, ENVIRONMENT, Store, open_store
from workspace.uploads import Uploads


def store() -> Store:
    """Return the workspace that the environment names, opened once."""
    return _opened(_root())


def jobs() -> Jobs:
    """Return its queue."""
    return _jobs(_root())


def uploads() -> Uploads:
    """Return what receives its files."""
    return _uploads(_root())


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


def names() -> dict[str, str]:
    """Return the names of the stored files by their sha256."""
    return {each.sha256: each.name for each in store().files()}


def key_for(name: str, value: object) -> str:
    """Return a widget's key that changes with the value it begins with.

    A widget whose value also changes from outside (an upload, another tab) must not be set through its state: what
    the browser still shows would come back as if the user had chosen it.
    """
    return f"{name}-{fingerprint(value)[:10]}"


def _root() -> str:
    return str(Path(os.environ.get(ENVIRONMENT) or DEFAULT_FOLDER).resolve())


@lru_cache(maxsize=4)
def _opened(root: str) -> Store:
    return open_store(Path(root))


@lru_cache(maxsize=4)
def _jobs(root: str) -> Jobs:
    return Jobs(_opened(root))


@lru_cache(maxsize=4)
def _uploads(root: str) -> Uploads:
    return Uploads(_opened(root))


@lru_cache(maxsize=256)
def _json(path: str, _changed: int) -> dict[str, Any]:
    return dict(json.loads(Path(path).read_text()))


@lru_cache(maxsize=16)
def _result(folder: str, analyzer: str, _changed: int) -> Result:
    return catalogue()[analyzer].result.read(Path(folder))
