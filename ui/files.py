"""Stored files as choices, and a path on the server as a way in."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import streamlit as st

from ui.progress import ask
from ui.questions import inspection
from ui.state import answer, key_for, store
from ui.text import as_text, size
from workspace.jobs import JobSpec
from workspace.store import StoredFile
from workspace.uploads import UploadError, allowed_path, allowed_roots

DATA = re.compile(r"(\.(gz|npz|npy|csv|tsv|parquet|jsonl|json|txt|md|text)|idx[123]-ubyte)$", re.IGNORECASE)


def looks_like_data(file: StoredFile) -> bool:
    """Tell whether a file is offered as data rather than as a checkpoint; only a matter of order in the lists."""
    return bool(DATA.search(file.name)) and answer(inspection(file.sha256)) is None


def choose(
    label: str,
    wanted: Callable[[StoredFile], bool],
    chosen: Sequence[str],
    name: str,
    save: Callable[[list[str], list[str]], None],
) -> None:
    """Choose among the stored files; what was chosen already stays in the list whatever it is.

    save: is told what the user added and what was taken off. Not the whole list: while files arrive, a browser tells of
    lists that are no longer on the page.
    """
    files = [each for each in store().files() if wanted(each) or each.sha256 in chosen]
    about = {each.sha256: f"{each.name} · {size(each.bytes)} · {each.sha256[:8]}" for each in files}
    now = [each for each in chosen if each in about]
    key = key_for(name, now)

    def tell() -> None:
        given = list(st.session_state[key])
        save([each for each in given if each not in now], [each for each in now if each not in given])

    st.multiselect(
        label,
        list(about),
        default=now,
        key=key,
        format_func=lambda sha256: about.get(sha256, sha256[:8]),
        on_change=tell,
        placeholder="None yet" if not about else "Choose",
        disabled=not about,
    )


def from_server(key: str, took: Callable[[str], None]) -> None:
    """Take a file by its path below a folder that the operator allows; draws nothing when there is none."""
    if not allowed_roots():
        return
    with st.expander("Take a file from this server", icon=":material/dns:"):
        st.caption("Allowed folders:")
        st.code("\n".join(str(each) for each in allowed_roots()), language=None)
        with st.form(f"{key}-path-form", border=False):
            path = st.text_input("Path", key=f"{key}-path", placeholder="runs/epoch-200.pt")
            if st.form_submit_button("Take"):
                st.session_state[f"{key}-asked"] = path
        if asked := st.session_state.get(f"{key}-asked"):
            _import(str(asked), key, took)


def _import(path: str, key: str, took: Callable[[str], None]) -> None:
    try:
        real = allowed_path(path)
    except UploadError as error:
        st.error(as_text(error))
        return
    stamp = real.stat()
    payload = {"path": str(real), "changed": stamp.st_mtime_ns}
    found = ask(JobSpec("import", payload, f"Taking {real.name}"), key)
    if found:
        del st.session_state[f"{key}-asked"]
        took(found["sha256"])
        st.rerun()
