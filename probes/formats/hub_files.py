"""The small files of a Hugging Face folder as plain data: configuration, tokenizer, history, adapter. No torch here.

What names code, kernels, other files or templates is dropped; everything is bounded, and what stays is written anew.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from probes.errors import RefusedCheckpoint
from probes.formats.contents import printable
from probes.formats.folder_files import Files

_CONFIG_BYTES = 2**20
_TOKENIZER_BYTES = 48 * 2**20
_HISTORY_BYTES = 64 * 2**20
_BRACKETS = 4_000_000
_DEPTH = 64
_DROPPED = re.compile(
    r"^(auto_map|_attn_.*|.*_implementation(_internal)?|use_kernels|kernel_config|.*name_or_path|quantization_config|"
    r"custom_pipelines|custom_generate|chat_template|dtype|torch_dtype|.*_files?|.*_path|trust_remote_code|"
    r"code_revision|use_pretrained_backbone|transformers_version|_commit_hash)$"
)
_OBJECTS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "preprocessor_config.json",
)
_VERBATIM = ("tokenizer.json", "vocab.json")  # their keys are tokens
_TEXTS = ("merges.txt", "vocab.txt")
_METRIC = re.compile(r"^eval_(?!runtime|samples|steps|jit)\w{1,60}$")


def read_json(files: Files, file: str, limit: int) -> dict[str, Any]:
    """Read a file that holds one JSON object; raise RefusedCheckpoint for a link, another size, or anything else."""
    return parse_json(_content(files, file, limit), f"{files.name}/{file}")


def _content(files: Files, file: str, limit: int) -> bytes:
    where = f"{files.name}/{file}"
    if file not in files.sizes:
        raise RefusedCheckpoint(f"{where} is missing, or is a link. Copy the file itself into the folder.")
    if files.sizes[file] > limit:
        raise RefusedCheckpoint(f"{where} has {files.sizes[file]:,} bytes; at most {limit:,} are read.")
    content = files.read(file)
    if content.startswith(b"version https://git-lfs"):
        raise RefusedCheckpoint(f"{where} is a git-lfs pointer, not the file itself: fetch it with `git lfs pull`.")
    return content


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object of bounded size and depth; raise RefusedCheckpoint."""
    if content.count(b"[") + content.count(b"{") > _BRACKETS:
        raise RefusedCheckpoint(f"{where} has more than {_BRACKETS:,} brackets; no such file needs them.")
    try:
        value = json.loads(content, parse_constant=_infinity)
    except (ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))
        raise RefusedCheckpoint(f"{where} is not readable JSON ({reason}). Copy it again.") from None
    if not isinstance(value, dict):
        raise RefusedCheckpoint(f"{where} holds a {type(value).__name__}, not an object. Copy it again.")
    _check_depth(value, where)
    return value


def _infinity(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is no setting")
    return float(text)


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(_DEPTH):
        level = [each for outer in level if isinstance(outer, (dict, list)) for each in _inner(outer)]
        if not level:
            return
    raise RefusedCheckpoint(f"{where} is nested deeper than {_DEPTH}. It is not used.")


def _inner(outer: dict[str, Any] | list[Any]) -> list[Any]:
    inner = outer.values() if isinstance(outer, dict) else outer
    return [each for each in inner if isinstance(each, (dict, list))]


def read_config(files: Files) -> dict[str, Any]:
    """Read config.json, without any key that names code, kernels or other files; {} when there is none.

    Raises RefusedCheckpoint for a link, for what is no JSON, and for quantized weights.
    """
    if "config.json" not in (*files.sizes, *files.links):
        return {}
    config = read_json(files, "config.json", _CONFIG_BYTES)
    if isinstance(config.get("quantization_config"), dict):
        raise RefusedCheckpoint(f"{files.name}: the weights are quantized and have no gradients; bring the originals.")
    cleaned: dict[str, Any] = _cleaned(config)
    return cleaned


def _cleaned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cleaned(each) for key, each in value.items() if not _DROPPED.match(key)}
    return [_cleaned(each) for each in value] if isinstance(value, list) else value


def read_texts(files: Files) -> tuple[dict[str, bytes], list[str]]:
    """Read the tokenizer's files: JSON objects written anew without templates and code, and plain UTF-8 texts.

    Returns them and a doubt for each that was left out: weights can be analysed without.
    """
    found, doubts = {}, []
    for file in (each for each in (*_OBJECTS, *_TEXTS) if each in files.sizes):
        try:
            found[file] = _text(files, file)
        except RefusedCheckpoint as error:
            doubts.append(f"{file} was left out: {error}")
    return found, doubts


def _text(files: Files, file: str) -> bytes:
    if file in _TEXTS:
        return _plain_text(_content(files, file, _TOKENIZER_BYTES), f"{files.name}/{file}")
    value = read_json(files, file, _TOKENIZER_BYTES)
    return as_bytes(value if file in _VERBATIM else _cleaned(value))


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """Write an object as JSON."""
    return json.dumps(value).encode("ascii")


def _plain_text(content: bytes, where: str) -> bytes:
    try:
        clean = "\0" not in content.decode("utf-8")
    except UnicodeDecodeError:
        clean = False
    if not clean:
        raise RefusedCheckpoint(f"{where} is no text in UTF-8. Copy it again, or leave it out.")
    return content


def read_history(files: Files) -> dict[str, Any]:
    """Read what transformers' Trainer left: epoch, step and the last evaluation; {} when it left nothing."""
    if "trainer_state.json" not in files.sizes:
        return {}
    state = read_json(files, "trainer_state.json", _HISTORY_BYTES)
    history = state.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    last: dict[str, Any] = next((row for row in reversed(rows) if "eval_loss" in row), {})
    metrics = {key: value for key, value in last.items() if _METRIC.match(key) and is_number(value)}
    found = {"step": state.get("global_step"), "epoch": state.get("epoch")}
    numbers = {key: int(value) for key, value in found.items() if is_number(value)}
    return {**numbers, **({"metrics": metrics} if metrics else {})}


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether this is a finite number, and no bool."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config.json says of the model: {"hugging_face": …} or {"timm": …}, or nothing."""
    listed, kind = config.get("architectures"), config.get("model_type")
    first = listed[0] if isinstance(listed, list) and listed else ""
    named = {"architecture": first, "model_type": kind}
    texts = {key: printable(each) if isinstance(each, str) else "" for key, each in named.items()}
    if any(texts.values()):
        return {"hugging_face": texts}
    timm = config.get("architecture")
    if isinstance(timm, str) and ("pretrained_cfg" in config or "num_features" in config):
        return {"timm": printable(timm)}
    return {}
