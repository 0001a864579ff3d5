"""Which files lie beside one another, and which of them may be weights? Names and sizes only; nothing is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits, printable

_DEPTH = 4
_SHOWN = 4
_PLAIN = re.compile(r"^(?!\.)[\w.-]{1,200}$", re.ASCII)
_WEIGHTS = re.compile(
    r"^((?!\.)[\w.=,+ -]+\.(safetensors|pth|ckpt|gguf|distcp|pt)"
    r"|(pytorch_|adapter_|diffusion_pytorch_|open_clip_pytorch_|tf_)?model[\w.-]*\.bin|consolidated[\w.-]*\.bin)$",
    re.ASCII,
)
_OTHERS = re.compile(
    r"^(?!\.)[\w.=,+ -]+\.(bin|npz|h5|hdf5|keras|msgpack|onnx|pt2|pkl|pickle|pdparams|mar|nemo|t7|th)$", re.ASCII
)
_STATE = re.compile(
    r"^(training_args\.bin|(optimizer|optim|scheduler|lr_scheduler|scaler|sampler|dl_state_dict|grad_scaler)[\w.-]*"
    r"|rng_state[\w.-]*|random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl|[\w.-]*optim_states\.pt)$",
    re.ASCII,
)
_SUFFIX = re.compile(r"\.(safetensors|pth|ckpt|bin|pt)(\.|$)")
_SMALL = (
    "config.json", "adapter_config.json", "trainer_state.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "vocab.txt", "preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    """The files beside one another in a folder or an archive.

    name: what the user calls it. sizes: plain files -> their bytes. links: names that lead elsewhere; never followed.
    read: returns the whole of a small file. open: opens one weight file with its own reader. left: what an archive
    holds besides. kind: "folder", "zip", "tar".
    """

    name: str
    sizes: Mapping[str, int]
    read: Callable[[str], bytes]
    open: Callable[[str], Contents]
    links: frozenset[str] = frozenset()
    left: tuple[str, ...] = ()
    kind: str = "folder"
    home: Path | None = field(default=None, compare=False)


def is_state(name: str) -> bool:
    """Say whether a file belongs to the state of a training: optimizer, scheduler, random numbers, arguments."""
    return bool(_STATE.match(name)) and not name.endswith(".distcp")


def is_weights(name: str) -> bool:
    """Say whether a file is named as files of weights are."""
    return name == ".metadata" or (bool(_WEIGHTS.match(name)) and not is_state(name))


def is_wanted(name: str) -> bool:
    """Say whether a member of an archive is worth unpacking."""
    index = name.endswith(".index.json") and bool(_PLAIN.match(name))
    return is_weights(name) or name in _SMALL or index


def is_marker(name: str) -> bool:
    """Say whether a file of this name makes a folder one of a model."""
    return is_weights(name) or _is_config(name) or name.endswith(".index.json")


def is_plain(name: str) -> bool:
    """Say whether an index may point to a file of this name."""
    return bool(_PLAIN.match(name) and _SUFFIX.search(name)) and not is_state(name)


def other_files(names: Iterable[str]) -> list[str]:
    """List files that may hold weights in a form that is not of Hugging Face."""
    return sorted(each for each in names if _OTHERS.match(each) and not is_state(each))


def home_of(paths: Iterable[PurePosixPath], name: str) -> PurePosixPath | None:
    """Return the shallowest folder that holds weights, else the one with config.json; raise when there are several."""
    known = list(paths)
    for wanted in (is_weights, _is_config):
        homes = {path.parent for path in known if wanted(path.name)}
        depth = min((len(home.parts) for home in homes), default=0)
        nearest = sorted((home for home in homes if len(home.parts) == depth), key=str)
        models = [home for home in nearest if not is_state(home.name)] or nearest  # FSDP: optimizer_0 lies beside
        if len(models) > 1:
            raise RefusedCheckpoint(
                f"{name} holds several folders with weights ({listed([str(each) for each in models])}). Choose one."
            )
        if models:
            return models[0]
    return None


def _is_config(name: str) -> bool:
    return name in ("config.json", "adapter_config.json")


def listed(names: list[str], most: int = _SHOWN) -> str:
    """Name the first few, and count the rest."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(each, 60) for each in names[:most]) + more


def find_folder(path: Path, name: str, limits: Limits) -> Path:
    """Return the folder itself, or the only one below it that holds weights; links are not followed."""
    level, seen = [PurePosixPath()], 0
    for _ in range(_DEPTH + 1):
        files: list[PurePosixPath] = []
        below: list[PurePosixPath] = []
        for folder in level:
            entries = _entries(path / folder)
            seen += len(entries)
            if seen > limits.members:
                raise RefusedCheckpoint(f"{name} has more than {limits.members:,} files. Choose the folder inside.")
            for entry in entries:
                (below if entry.is_dir(follow_symlinks=False) else files).append(folder / entry.name)
        home = home_of(files, name)
        if home is not None:
            return path / home
        level = [each for each in below if not each.name.startswith((".", "__"))]
    return path


def _entries(path: Path) -> list[os.DirEntry[str]]:
    with os.scandir(path) as entries:
        return list(entries)


def files_of_folder(path: Path, name: str, opener: Callable[[Path, str], Contents]) -> Files:
    """List a plain folder; links are noted and never followed. opener: opens a weight file under a name."""
    sizes, links = {}, []
    for entry in _entries(path):
        if entry.is_symlink():
            links.append(entry.name)
        elif entry.is_file(follow_symlinks=False):
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return Files(
        name,
        dict(sorted(sizes.items())),
        lambda file: (path / file).read_bytes(),
        lambda file: opener(path / file, f"{name}/{printable(file)}"),
        frozenset(links),
        home=path,
    )
