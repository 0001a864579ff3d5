"""What lies on the bench: checkpoints, model, data and loss, kept in the store under the id in the URL."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import streamlit as st

from probes.specs import DataSpec, LossName, ModelSpec, as_test
from ui.state import store

_one_writer = threading.Lock()


@dataclass(frozen=True)
class Bench:
    """What is on one bench; files are named by sha256. model None: take the recognised one; loss None: the usual."""

    checkpoints: tuple[str, ...] = ()
    model: ModelSpec | None = None
    data: DataSpec | None = None
    loss: LossName | None = None
    files: tuple[str, ...] = ()  # chosen in the data step, not yet in use
    times: Mapping[str, float] = field(default_factory=dict)  # typed: checkpoint -> epoch or step
    unit: str = "epoch"  # of the typed times, or "step"
    test: DataSpec | None = None  # test data, for analyses that look at them too

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        model = self.model.to_json() if self.model else None
        data = self.data.to_json() if self.data else None
        lists = {"checkpoints": list(self.checkpoints), "files": list(self.files)}
        times = {"times": dict(self.times), "unit": self.unit}
        test = {"test": self.test.to_json()} if self.test else {}
        return {**lists, **times, "model": model, "data": data, "loss": self.loss, **test}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Bench:
        """Undo `to_json`; what is missing is empty."""
        data = DataSpec.from_json(value["data"]) if value.get("data") else None
        return cls(
            checkpoints=tuple(value.get("checkpoints") or ()),
            model=ModelSpec.from_json(value["model"]) if value.get("model") else None,
            data=data,
            loss=value.get("loss"),
            test=DataSpec.from_json(value["test"]) if value.get("test") else None,
            files=tuple(value.get("files") or (data.files if data else ())),
            times=dict(value.get("times") or {}),
            unit=value.get("unit") or "epoch",
        )


def read(id: str) -> Bench:
    """Return what is on a bench; an unknown one is empty."""
    return Bench.from_json(store().bench(id) or {})


def change(id: str, how: Callable[[Bench], Bench]) -> Bench:
    """Change a bench: nothing that another tab or an upload does at the same time is lost."""
    with _one_writer:
        value = how(read(id))
        store().save_bench(id, value.to_json())
    return value


def put(id: str, **values: Any) -> None:
    """Set fields of a bench."""
    change(id, lambda bench: replace(bench, **values))


def take_upload(subject: str, sha256: str) -> None:
    """Lay a file that has just arrived where its uploader stands: with the checkpoints, the data, or the test data."""
    kind, _, id = subject.partition("/")

    def laid(bench: Bench) -> Bench:
        if kind == "test" and bench.data:
            return replace(bench, test=as_test(bench.data, (*(bench.test.files if bench.test else ()), sha256)))
        if kind == "data":
            return replace(bench, files=_with(bench.files, sha256))
        return replace(bench, checkpoints=_with(bench.checkpoints, sha256)) if kind == "checkpoint" else bench

    change(id, laid)


def picked(
    values: Sequence[str], added: Sequence[str], removed: Sequence[str], of: Callable[[str], str] = str
) -> tuple[str, ...]:
    """Return a list with some taken off it and some added, each by `of` it; what else is in it stays."""
    kept = tuple(each for each in values if of(each) not in removed)
    here = set(map(of, kept))
    return (*kept, *(each for each in added if each not in here))


def current_id() -> str:
    """Return the id of this page's bench: from the URL, else the session's, else a new one; the URL then shows it."""
    given = st.query_params.get("bench") or st.session_state.get("bench") or secrets.token_hex(4)
    id = "".join(each for each in given if each.isascii() and (each.isalnum() or each in "-_"))[:64] or "bench"
    st.session_state["bench"] = id
    if st.query_params.get("bench") != id:
        st.query_params["bench"] = id
    return id


def _with(values: tuple[str, ...], value: str) -> tuple[str, ...]:
    return values if value in values else (*values, value)
