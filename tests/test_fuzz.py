"""Whatever bytes a file has, its reader gives tensors or one refusal: no other error, no hang, no execution.

Counts are small here; FUZZ=100 multiplies them for a long run. `fuzz_readers.py` goes on for as long as it is let.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_readers import hurried, outcome
from hostile import folders, headers
from hostile.archives import npy
from hostile.assemble import (
    VECTORS,
    WEIGHTS,
    Call,
    Entry,
    Name,
    Raw,
    beside,
    pack,
    program,
    torch_legacy,
    torch_tar,
    torch_zip,
)
from hostile.strategies import archives, changes, configurations, ggufs, json_values, maps, programs, tables, values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("FUZZ", "1"))
MEGABYTES = 512  # that all these examples may add to the process, at most


def examples(count: int) -> Any:
    checks = list(HealthCheck)
    return settings(
        max_examples=count * TIMES, deadline=None, derandomize=True, database=None, suppress_health_check=checks
    )


@pytest.fixture(scope="module", autouse=True)
def _bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tried(path: Path) -> dict[str, bytes] | str:
    with hurried():
        return outcome(path)


def same_as_torch(path: Path, found: dict[str, bytes]) -> None:
    """Compare the tensors with those that torch reads, where it reads the file at all."""
    try:
        theirs = torch.load(path, weights_only=True)["model"]
    except Exception:  # noqa: BLE001  torch lets some ten types through
        return
    for name, raw in found.items():
        assert raw == theirs[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes(), name


# Pickles


@examples(500)
@given(value=values, other=values)
def test_values_in_pickles(place: Path, value: Any, other: Any) -> None:
    found = tried(torch_zip(place / "x", program({"model": {**WEIGHTS, "more": value}, "note": other})))
    if isinstance(found, dict):
        same_as_torch(place / "x", found)
    tried(put(place / "x", program(value)))


@examples(700)
@given(code=programs, protocol=st.integers(0, 6))
def test_programs_of_pickle_instructions(place: Path, code: bytes, protocol: int) -> None:
    tried(torch_zip(place / "x", program(beside(Raw(code)), protocol)))
    tried(torch_zip(place / "x", b"\x80\x02" + code + b"."))
    tried(torch_legacy(place / "x", program(Raw(code))))
    tried(put(place / "x", b"\x80\x02" + code + b"."))


# Zip archives


@examples(700)
@given(
    entries=archives, comment=st.binary(max_size=30), tail=st.binary(max_size=30), count=st.none() | st.integers(0, 9)
)
def test_layouts_of_zip_archives(
    place: Path, entries: list[Entry], comment: bytes, tail: bytes, count: int | None
) -> None:
    tried(put(place / "x", pack(entries, comment, tail, count)))


# Headers


@examples(700)
@given(header=tables, body=st.binary(max_size=40) | st.just(headers.BODY), length=st.none() | st.integers(0, 2**64 - 1))
def test_headers_of_safetensors(place: Path, header: dict[str, Any], body: bytes, length: int | None) -> None:
    tried(put(place / "x", headers.framed(header, body, length)))


@examples(500)
@given(content=ggufs)
def test_headers_of_gguf(place: Path, content: bytes) -> None:
    tried(put(place / "x", content))


# Folders


@pytest.fixture(scope="module")
def home(place: Path) -> Path:
    (place / "home").mkdir()
    return place / "home"


@examples(300)
@given(
    index=st.fixed_dictionaries({}, optional={"weight_map": maps | json_values, "metadata": json_values}) | json_values
)
def test_indexes_of_folders(home: Path, index: Any) -> None:
    folders.sharded(home)
    put(home / "model.safetensors.index.json", json.dumps(index).encode())
    tried(home)


@examples(300)
@given(config=configurations.map(lambda changes: {**folders.CONFIG, **changes}) | json_values)
def test_configurations_of_folders(home: Path, config: Any) -> None:
    folders.sharded(home)
    put(home / "config.json", json.dumps(config).encode())
    tried(home)


# Mutations of good files


def _seed(write: Callable[[Path, Any], Path], value: Any, folder: Path) -> bytes:
    return write(folder / "seed", value).read_bytes()


CONFIG, HOME = json.dumps(folders.CONFIG).encode(), folders.weights()
SEEDS: dict[str, Callable[[Path], bytes]] = {
    "torch zip": lambda folder: _seed(torch_zip, program(beside({"epoch": 3})), folder),
    "torch legacy": lambda folder: _seed(torch_legacy, program(beside({"epoch": 3})), folder),
    "torch tar": lambda folder: _seed(torch_tar, VECTORS, folder),
    "pickle": lambda folder: program({"w": [1, 2], "a": Call(Name("argparse", "Namespace"), (), {"lr": 0.1})}),
    "safetensors": lambda folder: headers.framed(headers.HEADER),
    "gguf": lambda folder: headers.gguf(),
    "npz": lambda folder: pack([Entry("fc.weight.npy", npy()), Entry("fc.bias.npy", npy("()", "<f8", bytes(8)))]),
    "zip of a folder": lambda folder: pack([Entry("home/config.json", CONFIG), Entry("home/model.safetensors", HOME)]),
}


def mutated(content: bytes, steps: list[tuple[str, int, bytes]]) -> bytes:
    made = bytearray(content)
    for kind, where, piece in steps:
        at = where % max(len(made), 1)
        if kind == "flip" and made:
            made[at] ^= piece[0] or 1
        elif kind == "set":
            made[at : at + len(piece)] = piece
        elif kind == "cut":
            del made[at:]
        elif kind == "copy":
            made[at:at] = made[at : at + 64]
        elif kind == "insert":
            made[at:at] = piece
        else:
            del made[at : at + len(piece)]
    return bytes(made)


@pytest.mark.parametrize("form", SEEDS)
@examples(350)
@given(steps=changes)
def test_mutations_of_good_files(place: Path, form: str, steps: list[tuple[str, int, bytes]]) -> None:
    if not (place / form).exists():
        put(place / form, SEEDS[form](place))
        assert form == "pickle" or isinstance(tried(place / form), dict)
    tried(put(place / "x", mutated((place / form).read_bytes(), steps)))


def test_no_changed_byte_of_a_zip_goes_unnoticed(place: Path) -> None:
    """torch.load checks no checksum: it would give other weights."""
    content = torch_zip(place / "good", program(beside(1))).read_bytes()
    right = tried(place / "good")
    assert isinstance(right, dict)
    for at in range(len(content)):
        for change in (0x01, 0x80, 0xFF):
            broken = bytearray(content)
            broken[at] ^= change
            found = tried(put(place / "x", bytes(broken)))
            assert isinstance(found, str) or found == right, f"byte {at} changed by {change:#x}"


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not made for this machine")
def test_libfuzzer_finds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fuzz_readers.py")), f"-runs={8000 * TIMES}", "-seed=7"]
    small = ["sh", "-c", '"$@"; exit $?', "sh"]  # Linux counts the memory of whoever forks as the peak of the forked
    done = subprocess.run(
        [*small, *command], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
    assert not list(tmp_path.glob("crash-*"))
