"""The throw-away process in which a file is opened that nobody has vouched for: `python -m workspace.examiner`.

One order comes on standard input, as JSON: what to read and within which bounds. The process confines itself, reads
the file with readers that never execute anything of it, and says on standard output, a JSON object a line: {"share",
"doing"} now and then, at the end {"answer"} or {"refused"}. It imports neither torch nor transformers.
"""

from __future__ import annotations

import errno
import json
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probes import admitted
from probes.checkpoint import FULL_BYTES, Checkpoint, TensorInfo, hash_of
from probes.errors import RefusedCheckpoint
from probes.formats.amounts import check_amount
from probes.formats.contents import Contents, Limits, printable
from probes.formats.files import open_contents
from probes.formats.find import Found, find
from probes.formats.statistics import doubts_of, look
from workspace import process
from workspace.isolation import ALL, Bounds, confine

SECONDS_BETWEEN = 0.2  # at least, between two reports
_TEXTS = ("config.json", "adapter_config.json")  # those by which a model is recognised; cleaned by their reader
_last = 0.0


def main() -> int:
    """Carry out one order."""
    order = json.loads(sys.stdin.buffer.read())
    process.be_expendable()
    path, home = Path(order["path"]), Path(order["home"])
    tempfile.tempdir = str(home)
    peak = _Peak()
    took = confine(Bounds(**order["bounds"]), [path], [home])
    process.die_with_parent(order["parent"])
    try:
        answer = carry_out(order, path, took)
        say({"answer": {**answer, "peak_bytes": peak()}})
    except RefusedCheckpoint as error:
        say({"refused": str(error)})
    except (MemoryError, OSError, RecursionError, Exception) as error:  # noqa: BLE001 (the boundary: a sentence for all)
        say({"refused": sentence(order, error), "trace": "".join(traceback.format_exception(error))[-4000:]})
    return 0


def carry_out(order: Mapping[str, Any], path: Path, took: list[str]) -> dict[str, Any]:
    """Inspect the file, or write it anew into <home>/new; return what was found, or the provenance."""
    limits, name = Limits.from_environment(), order["name"]
    report(0.0, "reading the structure")
    contents = open_contents(path, name, limits)
    missing = [each for each in ALL if each not in took]
    answer = _admit(order, contents, limits, took) if order["admit"] else _inspect(order, contents, limits)
    return {**answer, "isolation": took, "not_isolated": missing}


def _inspect(order: Mapping[str, Any], contents: Contents, limits: Limits) -> dict[str, Any]:
    name = order["name"]
    found = find(contents, name, order["weights"], limits)
    full = contents.bytes <= FULL_BYTES if order["full"] is None else order["full"]
    doubts, sha256 = list(found.doubts), None
    if full:
        check_amount(contents, found, name)
        contents.verify()
        sha256 = hash_of(contents.path)
        doubts += doubts_of(_seen(found))
    described = _as_checkpoint(contents, found, name, doubts).describe()
    checked = "full" if full else "structure"
    config = {file: text.decode("utf-8", "replace") for file, text in contents.texts.items() if file in _TEXTS}
    return {**admitted.plain(described), "sha256": sha256, "checked": checked, "texts": config}


def _seen(found: Found) -> dict[str, Any]:
    seen = {}
    for index, (key, each) in enumerate(found.tensors.items()):
        seen[key] = look(each.read(), each.dtype)
        report((index + 1) / len(found.tensors), f"looking at {printable(key, 60)}")
    return seen


def _as_checkpoint(contents: Contents, found: Found, name: str, doubts: list[str]) -> Checkpoint:
    return Checkpoint(
        path=contents.path,
        name=name,
        sha256="",
        bytes=contents.bytes,
        format=contents.format,
        tensors={key: TensorInfo(each.shape, each.dtype) for key, each in found.tensors.items()},
        facts=found.facts,
        doubts=tuple(doubts),
        stream=lambda: iter(()),
        weights=found.default,
        sets=tuple(found.sets),
        moments=tuple(found.moments),
        left=found.left,
    )


def _admit(order: Mapping[str, Any], contents: Contents, limits: Limits, took: list[str]) -> dict[str, Any]:
    name, expected = order["name"], order["sha256"]
    report(0.01, "checking the checksums")
    contents.verify()
    sha256 = hash_of(contents.path)
    if expected and sha256 != expected:
        raise RefusedCheckpoint(f"{name} is damaged on this disk (its sha256 is {sha256[:12]}…). Upload it again.")
    folder = Path(order["home"]) / "new"
    folder.mkdir()
    bounds = {"bounds": order["bounds"], "limits": vars(limits)}
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {"when": when, "isolation": took, **bounds}
    return admitted.write(
        contents,
        name,
        folder,
        sha256=sha256,
        about=about,
        limits=limits,
        tick=lambda share, doing: report(0.1 + 0.9 * share, doing),
    )


def sentence(order: Mapping[str, Any], error: BaseException) -> str:
    """Say in words what went wrong while reading, whatever it was."""
    name = printable(order["name"], 200)
    if isinstance(error, MemoryError):
        memory = order["bounds"]["memory"] / 2**30
        return (
            f"{name} needs more than the {memory:.1f} GiB of memory that reading it may take (THEODOLITE_MAX_MEMORY)."
        )
    if isinstance(error, RecursionError):
        return f"{name} is nested too deeply to be read. Save a plain state dict."
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk is too full for the copy of {name} that is made of it. Free some space and try again."
    if number == errno.EFBIG:
        return f"{name} unfolds to more bytes than may be written of it. It is not opened."
    if number in (errno.EPERM, errno.EACCES):
        return f"{name} made its reader try what it may not do ({error.__class__.__name__}). It is not opened."
    return f"{name} could not be read, which is a mistake of ours ({type(error).__name__}); report it with the file."


def report(share: float, doing: str) -> None:
    """Say how far it is, if the last report was long enough ago."""
    global _last
    if time.monotonic() - _last >= SECONDS_BETWEEN:
        _last = time.monotonic()
        say({"share": share, "doing": doing})


def say(message: Mapping[str, Any]) -> None:
    """Write one line for whoever gave the order."""
    sys.stdout.write(json.dumps(message, ensure_ascii=True) + "\n")
    sys.stdout.flush()


class _Peak:
    """Tell the most memory that this process has had resident, in bytes; made before it is confined."""

    def __init__(self) -> None:
        status = Path("/proc/self/status")
        # What getrusage says begins with the memory of the process that started this one.
        self._status = status.open("rb") if status.exists() else None

    def __call__(self) -> int:
        if self._status is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._status.seek(0)
        lines = dict(line.split(b":", 1) for line in self._status.read().splitlines() if b":" in line)
        return int(lines[b"VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    sys.exit(main())
