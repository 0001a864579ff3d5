"""Put arbitrary bytes to the readers of checkpoints: what comes of it is tensors or a refusal, soon, in little memory.

As a program it is a libFuzzer target (atheris) that goes on for as long as it is let:

    python tests/fuzz_readers.py                                  # until something breaks or Ctrl-C
    python tests/fuzz_readers.py -runs=100000 -max_total_time=3600
    python tests/fuzz_readers.py crash-0123abcd                   # the same input again

The first byte of an input chooses what the others are: a whole file, the pickle of a zip, of a legacy file, the header
of a safetensors file, a record of an .npz, an index or a configuration of a folder. Seeds are written afresh into a
folder of their own, which also takes what libFuzzer finds interesting (FUZZ_CORPUS names a lasting one).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SECONDS = 10
MEGABYTES = 1024


class HangError(Exception):
    """A reader took longer than it may."""


@contextlib.contextmanager
def hurried(seconds: int = SECONDS) -> Iterator[None]:
    """Raise HangError when the block takes longer."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise HangError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(path: Path) -> dict[str, bytes] | str:
    """Return the bytes of every tensor of a file, or the sentence of its refusal; whatever else happens is a bug."""
    from probes.checkpoint import inspect
    from probes.errors import RefusedCheckpoint
    from probes.formats.contents import ITEM_BYTES

    try:
        found = inspect(path)
        tensors = {}
        for name, shape, dtype in found:
            stored = found.found.tensors[name]
            raw = stored.read()
            assert len(raw) == stored.numel * ITEM_BYTES[dtype], (name, shape, dtype, len(raw))
            tensors[name] = bytes(raw)
        str(found.message).encode()
        return tensors
    except RefusedCheckpoint as error:
        assert str(error).isprintable(), str(error)
        return str(error)


def _whole(folder: Path, data: bytes) -> Path:
    (folder / "x").write_bytes(data)
    return folder / "x"


def _zip(folder: Path, data: bytes) -> Path:
    from hostile.assemble import torch_zip

    return torch_zip(folder / "x", data)


def _legacy(folder: Path, data: bytes) -> Path:
    from hostile.assemble import torch_legacy

    return torch_legacy(folder / "x", data)


def _safetensors(folder: Path, data: bytes) -> Path:
    from hostile.headers import framed

    return _whole(folder, framed(data))


def _npz(folder: Path, data: bytes) -> Path:
    from hostile.assemble import Entry, pack

    return _whole(folder, pack([Entry("w.npy", data)]))


def _home(folder: Path) -> Path:
    from hostile.folders import sharded

    home = folder / "home"
    home.mkdir(exist_ok=True)
    sharded(home)
    return home


def _index(folder: Path, data: bytes) -> Path:
    (_home(folder) / "model.safetensors.index.json").write_bytes(data)
    return folder / "home"


def _config(folder: Path, data: bytes) -> Path:
    (_home(folder) / "config.json").write_bytes(data)
    return folder / "home"


def _distributed(folder: Path, data: bytes) -> Path:
    home = folder / "dcp"
    home.mkdir(exist_ok=True)
    (home / ".metadata").write_bytes(data)
    (home / "__0_0.distcp").write_bytes(bytes(256))
    return home


KINDS: tuple[Callable[[Path, bytes], Path], ...] = (
    _whole, _zip, _legacy, _safetensors, _npz, _index, _config, _distributed,
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    """Yield an input of each kind from which mutations start."""
    import json

    from hostile import headers
    from hostile.archives import npy
    from hostile.assemble import VECTORS, WEIGHTS, beside, program, torch_legacy, torch_tar, torch_zip
    from hostile.folders import CONFIG, SHAPES, SHARDS

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed"
        good = program({"model": WEIGHTS, "epoch": 3, "args": None})
        whole = [torch_zip(path, good).read_bytes(), torch_legacy(path, good).read_bytes()]
        whole += [torch_tar(path, VECTORS).read_bytes(), headers.gguf(), headers.framed(headers.HEADER)]
    index = json.dumps({"weight_map": dict.fromkeys(SHAPES, SHARDS[0])}).encode()
    header = json.dumps(headers.HEADER).encode()
    yield from (b"\0" + each for each in whole)
    yield from (bytes([kind]) + program(beside(1)) for kind in (1, 2))
    yield from (b"\3" + header, b"\4" + npy(), b"\5" + index, b"\6" + json.dumps(CONFIG).encode(), b"\7" + program({}))


def main(arguments: list[str]) -> None:
    """Fuzz until an input breaks a promise, or for as long as the arguments say."""
    import atheris

    with atheris.instrument_imports(include=["probes"]):
        import probes.checkpoint
        import probes.formats.folders
        import probes.formats.gguf
        import probes.formats.npz
        import probes.formats.statistics  # noqa: F401
    home = Path(tempfile.mkdtemp(prefix="fuzz-"))
    corpus = Path(os.environ.get("FUZZ_CORPUS", home / "corpus"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        if data:
            outcome(KINDS[data[0] % len(KINDS)](home, data[1:]))

    given: list[Any] = [each for each in arguments[1:] if not each.startswith("-")]
    limits = [f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-max_len=8192"]
    atheris.Setup([arguments[0], *limits, *arguments[1:], *([] if given else [str(corpus)])], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
