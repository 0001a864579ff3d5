"""The files of a Hugging Face folder: config.json as plain data, weight files by plain names inside the folder.

A zip of a folder is unpacked first, and of it only the files that are needed.
"""

from __future__ import annotations

import atexit
import json
import math
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from probes.errors import RefusedCheckpoint

_CONFIG_BYTES = 2**20
_INDEX_BYTES = 64 * 2**20
_HISTORY_BYTES = 64 * 2**20
_DEPTH = 64
_SPARE_BYTES = 64 * 2**20
_PIECE = 2**20
_WANTED = re.compile(
    r"^(config\.json|trainer_state\.json|[\w.-]+\.safetensors|pytorch_model[\w.-]*\.bin|[\w.-]+\.index\.json)$"
)
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_DROPPED = re.compile(
    r"^(auto_map|attn_implementation|_attn_.*|_name_or_path|quantization_config|custom_pipelines|dtype|torch_dtype|"
    r".*_file|.*_path|trust_remote_code|use_pretrained_backbone|transformers_version|_commit_hash)$"
)
_METRIC = re.compile(r"^eval_(?!runtime|samples|steps|jit)\w{1,60}$")
_unpacked: dict[tuple[str, int, int], Path] = {}


def folder_of(path: Path) -> Path:
    """Return the folder itself, or the one that a zip of it was unpacked to (once; it goes when the process ends)."""
    if path.is_dir():
        return path
    if not path.is_file():
        raise RefusedCheckpoint(f"{path.name} is neither a folder with config.json nor a zip of one.")
    about = path.stat()
    key = (str(path.resolve()), about.st_size, about.st_mtime_ns)
    if key not in _unpacked:
        home = Path(tempfile.mkdtemp(prefix="theodolite-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        target = home / (path.stem or "folder")  # errors name it
        target.mkdir()
        unpack(path, target)
        _unpacked[key] = target
    return _unpacked[key]


def unpack(path: Path, target: Path) -> None:
    """Unpack config.json and the weights that lie beside it into `target`; raise RefusedCheckpoint for a hostile zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = _wanted(archive, path.name)
            budget = 4 * path.stat().st_size + _SPARE_BYTES
            for info in records:
                budget -= _copy(archive, info, target / PurePosixPath(info.filename).name, budget)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RefusedCheckpoint(f"{path.name} cannot be unpacked ({reason}). Zip the folder again.") from None


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json as data: bounded in size and depth, without any key that names code, files or kernels."""
    config = _json(folder / "config.json", _CONFIG_BYTES)
    if "quantization_config" in config:
        raise RefusedCheckpoint(f"{folder.name}: the weights are quantized and have no gradients; bring the originals.")
    if config.get("use_timm_backbone"):
        raise RefusedCheckpoint(
            f"{folder.name}: it takes its backbone from another library, timm, which is not used here."
        )
    return {key: _cleaned(each, folder, 1) for key, each in config.items() if not _DROPPED.match(key)}


def weight_files(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """List the weight files, and the index (tensor -> file) when they are several; [] when there are none."""
    for single in _SINGLE:
        if (folder / f"{single}.index.json").is_file():
            index = _json(folder / f"{single}.index.json", _INDEX_BYTES).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise RefusedCheckpoint(f"{folder.name}: {single}.index.json has no weight_map.")
            return [_inside(folder, name) for name in sorted(set(map(str, index.values())))], index
        if (folder / single).exists():
            return [_inside(folder, single)], None
    others = sorted(each.name for each in folder.glob("*.safetensors"))
    return ([_inside(folder, others[0])], None) if len(others) == 1 else ([], None)


def read_history(folder: Path) -> dict[str, Any]:
    """Read what transformers' Trainer left: epoch, step and the last evaluation; {} when it left nothing."""
    if not (folder / "trainer_state.json").is_file():
        return {}
    state = _json(folder / "trainer_state.json", _HISTORY_BYTES)
    history = state.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    last: dict[str, Any] = next((row for row in reversed(rows) if "eval_loss" in row), {})
    metrics = {key: value for key, value in last.items() if _METRIC.match(key) and _is_number(value)}
    found = {"step": state.get("global_step"), "epoch": state.get("epoch")}
    numbers = {key: int(value) for key, value in found.items() if _is_number(value)}
    return {**numbers, **({"metrics": metrics} if metrics else {})}


def _is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(value)


def _wanted(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    records = [info for info in archive.infolist() if not info.is_dir()]
    paths = [PurePosixPath(info.filename) for info in records]
    if any(path.is_absolute() or ".." in path.parts or "\\" in str(path) for path in paths):
        raise RefusedCheckpoint(f"{name} has records that would lie outside of its folder. It is not unpacked.")
    if len({str(path).casefold() for path in paths}) != len(paths):
        raise RefusedCheckpoint(f"{name} has the same record twice. Zip the folder again.")
    if any(stat.S_ISLNK(info.external_attr >> 16) or info.flag_bits & 1 for info in records):
        raise RefusedCheckpoint(f"{name} has links or encrypted records. Zip the plain folder again.")
    homes = sorted((path.parent for path in paths if path.name == "config.json"), key=lambda home: len(home.parts))
    if not homes:
        raise RefusedCheckpoint(f"{name} has no config.json.")
    pairs = zip(records, paths, strict=True)
    return [info for info, path in pairs if path.parent == homes[0] and _WANTED.match(path.name)]


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, budget: int) -> int:
    """Copy one record, counting what really comes out of it; return its bytes."""
    total = 0
    with archive.open(info) as source, target.open("xb") as sink:
        while piece := source.read(_PIECE):
            total += len(piece)
            if total > budget:
                raise RefusedCheckpoint(f"{info.filename} unpacks to far more than the zip holds. It is not unpacked.")
            sink.write(piece)
    return total


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    plain = bool(_WANTED.match(name)) and name not in (".", "..") and not name.startswith(".")
    if not plain or path.is_symlink() or path.resolve().parent != folder.resolve():
        raise RefusedCheckpoint(f"{folder.name}: the weights {name[:80]!r} are not a plain file inside the folder.")
    if not path.is_file():
        raise RefusedCheckpoint(f"{folder.name}: the weight file {name[:80]} is missing. Copy the whole folder.")
    return path


def _json(path: Path, limit: int) -> dict[str, Any]:
    where = f"{path.parent.name}/{path.name}"
    if not path.is_file() or path.is_symlink():
        raise RefusedCheckpoint(f"{where} is missing, or is a link.")
    if path.stat().st_size > limit:
        raise RefusedCheckpoint(f"{where} has {path.stat().st_size:,} bytes; at most {limit:,} are read.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RefusedCheckpoint(f"{where} is not readable JSON ({error}).") from None
    if not isinstance(value, dict):
        raise RefusedCheckpoint(f"{where} holds a {type(value).__name__}, not an object.")
    return value


def _cleaned(value: Any, folder: Path, depth: int) -> Any:
    if depth > _DEPTH:
        raise RefusedCheckpoint(f"{folder.name}/config.json is nested deeper than {_DEPTH}.")
    if isinstance(value, dict):
        kept = {key: each for key, each in value.items() if not _DROPPED.match(key)}
        return {key: _cleaned(each, folder, depth + 1) for key, each in kept.items()}
    if isinstance(value, list):
        return [_cleaned(each, folder, depth + 1) for each in value]
    return value
