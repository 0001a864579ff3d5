"""`python -m workspace run`: one analysis, here and now, without the queue or a database."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyzers import catalogue
from analyzers._base import Analyzer, Quiet, Result, write_atomically
from probes.architecture import naming
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.data import Batches, context_of, read_batches
from probes.errors import DataError, ModelError, ObjectiveError, ProbeError
from probes.gate import judge
from probes.models import FAMILIES, recognise, title_of
from probes.objective import Objective, build_objective
from probes.specs import LOSS_TITLES, DataSpec, LossName, ModelSpec
from workspace.export import as_filename, csv_of, html_of

Say = Callable[[str], None]

OWN = ("result.json", "arrays.npz", "figures", "tables")
NAME = re.compile(r"(?P<name>[A-Za-z][\w-]*)(:(?P<arguments>[\w=.,-]+))?")
RESNET = re.compile(r"resnet[-_]?(\d+)")
SHORT_NAMES = {"gpt": "small_gpt", "nanogpt": "small_gpt", "resnet": "cifar_resnet"}
SECONDS_BETWEEN_LINES = 2.0
SHOWN = 10


def run(chosen: argparse.Namespace, say: Say) -> None:
    """Run the analyzer that was chosen and write its result; raise ProbeError for what the user can mend."""
    analyzer = analyzer_of(chosen.analyzer, chosen.set, chosen.micro_batch)
    check_folder(chosen.out)
    check_device(chosen.device)
    checkpoints = tuple(read_checkpoint(path) for path in chosen.checkpoint)
    model = model_of(chosen.model, checkpoints[0], say)
    batches = _batches(chosen, model, checkpoints[0], say)
    loss = chosen.loss or loss_of(batches)
    say(f"Loss: {LOSS_TITLES[loss]}{'' if chosen.loss else ' (by the targets)'}.")
    objective = _objective(chosen, analyzer, model, checkpoints[0], batches, loss)
    with Progress() as progress:
        gate = judge(objective.evaluate(progress), checkpoints[0], batches)
    say(f"Gate: {gate.verdict}. {gate.sentence}")
    with Progress() as progress:
        result = analyzer.run(objective, checkpoints, progress)
    result = replace(result, caveats=(*result.caveats, *gate.caveats))
    write(result, chosen.out)
    for each in result.caveats:
        say(f"Caveat: {each}")
    for name, value in result.values.items():
        if isinstance(value, (int, float)) or (isinstance(value, list) and value):
            print(f"{name}: {_shown(value)}")
    say(f"Written to {chosen.out}.")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        more = ", ..." if len(value) > SHOWN else ""
        return ", ".join(_shown(each) for each in value[:SHOWN]) + more
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def analyzer_of(name: str, settings: Sequence[str], micro_batch: int = 0) -> Analyzer:
    """Make an analyzer from its name and from OPTION=VALUE texts; raise ProbeError naming what is allowed.

    micro_batch: for analyzers that have an option of this name, unless it is set.
    """
    known = catalogue()
    if name not in known:
        raise ProbeError(f"There is no analyzer {name!r}; there is {', '.join(known)}.")
    names = [each.name for each in known[name].options()]
    values: dict[str, Any] = {"micro_batch": micro_batch} if micro_batch and "micro_batch" in names else {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not equals or option not in names:
            raise ProbeError(f"--set {setting}: give OPTION=VALUE with an option of {name}: {', '.join(names)}.")
        values[option] = value
    try:
        return known[name](**values)
    except ValueError as error:
        raise ProbeError(f"{error}.") from error


def check_folder(folder: Path) -> None:
    """Refuse to write where something else lies than an earlier run."""
    if folder.exists() and not folder.is_dir():
        raise ProbeError(f"--out {folder} is a file. Name a folder.")
    strangers = sorted(each.name for each in folder.iterdir() if each.name not in OWN) if folder.exists() else []
    if strangers:
        raise ProbeError(f"--out {folder} holds {strangers[0]!r}, which is not of a run. Name a new folder.")


def check_device(device: str) -> None:
    """Refuse a GPU that is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ObjectiveError("--device cuda: torch finds no GPU here. Use --device cpu, or see nvidia-smi.")


def model_of(text: str, checkpoint: Checkpoint, say: Say) -> ModelSpec:
    """Turn NAME, TEXT, FOLDER, or nothing, into a ModelSpec; say what was recognised."""
    by_name = naming.named(text, {name: info.shape for name, info in checkpoint.tensors.items()})
    if by_name is not None:
        return by_name
    if _exists(text):
        return ModelSpec("hugging_face", folder=text) if Path(text).is_dir() else _in_file(Path(text))
    named = NAME.fullmatch(text)
    if text and not named:
        if "(" not in text:
            known = ", ".join(FAMILIES)
            raise ModelError(f"--model {text!r} is no file, folder or name. Give {known}, or Sequential(...).")
        return ModelSpec("text", text=text)
    found = recognise(checkpoint)
    if found.spec is None:
        raise ModelError(f"{checkpoint.name}: {' '.join(found.reasons)} Give it with --model.")
    spec = _named(named, found.spec, checkpoint) if named else found.spec
    say(f"Model: {title_of(spec)}. {' '.join(found.reasons)}")
    return spec


def loss_of(batches: Batches) -> LossName:
    """Choose the loss by the targets: next tokens, classes, or values."""
    if not batches.inputs.is_floating_point():
        return "causal_lm"
    return "mse" if batches.targets.is_floating_point() else "cross_entropy"


def write(result: Result, folder: Path) -> None:
    """Write arrays.npz, result.json, figures/*.html, tables/*.csv: the numbers first. What an earlier run left goes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("figures", "tables"):
        shutil.rmtree(folder / name, ignore_errors=True)
    result.save(folder)
    for name, figure in result.figures().items():
        write_atomically(folder / "figures" / f"{as_filename(name)}.html", html_of(figure))
    for name, table in result.tables().items():
        write_atomically(folder / "tables" / f"{as_filename(name)}.csv", csv_of(table))


class Progress(Quiet):
    """Show share, doing and time left on stderr: one line over and over in a terminal, else a line now and then."""

    def __init__(self, terminal: bool | None = None) -> None:
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._started = time.monotonic()
        self._shown = -SECONDS_BETWEEN_LINES
        self._width = 0

    def __call__(self, share: float, doing: str, seconds_left: float | None = None) -> None:
        """Show it, if the last one was long enough ago."""
        now = time.monotonic()
        if now - self._shown < (0.1 if self.terminal else SECONDS_BETWEEN_LINES):
            return
        self._shown = now
        left = seconds_left if seconds_left is not None else self._left(share, now)
        line = f"{100 * share:3.0f} %  {doing}{'' if left is None else f'  ({duration(left)} left)'}"
        if self.terminal:
            print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.terminal and self._width:
            print(f"\r{' ' * self._width}\r", end="", file=sys.stderr, flush=True)

    def _left(self, share: float, now: float) -> float | None:
        return (now - self._started) * (1 - share) / share if 0.02 < share < 1 else None


def duration(seconds: float) -> str:
    """Write a time for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def _batches(chosen: argparse.Namespace, model: ModelSpec, checkpoint: Checkpoint, say: Say) -> Batches:
    data = DataSpec(
        files=tuple(chosen.data),
        format="operator" if naming.is_module(chosen.data) else "auto",
        mean=_numbers("--mean", chosen.mean),
        std=_numbers("--std", chosen.std),
        examples=chosen.examples,
        shuffle=chosen.shuffle,
        label=chosen.label,
        tokenizer=chosen.tokenizer,
        context=chosen.context,
    )
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    batches = read_batches(data, own_context=context_of(model, shapes))
    total = batches.about["of"]
    order = "" if chosen.shuffle is None else f", in the order of seed {chosen.shuffle}"
    say(f"Data: {len(batches):,} of {total:,} examples of {', '.join(batches.about['source'])}{order}.")
    return batches


def _objective(
    chosen: argparse.Namespace,
    analyzer: Analyzer,
    model: ModelSpec,
    checkpoint: Checkpoint,
    batches: Batches,
    loss: LossName,
) -> Objective:
    if chosen.micro_batch < 0:
        raise ObjectiveError(f"--micro-batch {chosen.micro_batch}: give 1 or more, or 0 for the memory to decide.")
    dtype = getattr(analyzer, "dtype", "float32")
    options: dict[str, Any] = {"device": chosen.device, "dtype": dtype, "micro_batch": chosen.micro_batch}
    return build_objective(model, checkpoint, batches, loss, **options)


def _numbers(option: str, texts: Sequence[str]) -> tuple[float, ...]:
    parts = [part for text in texts for part in text.split(",") if part]
    try:
        return tuple(float(part) for part in parts)
    except ValueError:
        raise DataError(f"{option} {' '.join(texts)}: give numbers, one for each channel.") from None


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except (OSError, ValueError):  # a text too long for a name, or with a NUL
        return False


def _in_file(path: Path) -> ModelSpec:
    """Read a file with the text of a model; a zip is that of a Hugging Face folder."""
    with path.open("rb") as file:
        content = file.read(2**20)
    if content.startswith(b"PK"):
        return ModelSpec("hugging_face", folder=str(path))
    try:
        return ModelSpec("text", text=content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ModelError(f"--model {path.name} is no text. Give the text of print(model) or Sequential(...).") from None


def _named(named: re.Match[str], found: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """Take the sizes that the checkpoint shows for the family that the user names, and arguments as told."""
    name, depth = named["name"].lower(), RESNET.fullmatch(named["name"].lower())
    family = "cifar_resnet" if depth else SHORT_NAMES.get(name, name)
    if family not in FAMILIES:
        raise ModelError(f"There is no model {named['name']!r}; the catalogue has {', '.join(FAMILIES)}.")
    fits = found.name == family and (not depth or found.arguments.get("depth") == int(depth[1]))
    if not fits:
        raise ModelError(f"{checkpoint.name} does not fit --model {named['name']}: it is {title_of(found)}.")
    told = _told(named["arguments"] or "", found.arguments)
    return replace(found, arguments={**found.arguments, **told})


def _told(text: str, known: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in known or not isinstance(known[name], (bool, int, str)):
            allowed = ", ".join(key for key, each in known.items() if isinstance(each, (bool, int, str)))
            raise ModelError(f"--model: {part!r} names no argument that can be set so; there are {allowed}.")
        told[name] = _typed(name, value, known[name])
    return told


def _typed(name: str, value: str, like: bool | int | str) -> bool | int | str:
    if isinstance(like, str):
        return value
    words = {"true": True, "false": False} if isinstance(like, bool) else {}
    if value.lower() in words:
        return words[value.lower()]
    if isinstance(like, bool) or not value.isdecimal():
        raise ModelError(f"--model: {name} is {value!r}; give {'true or false' if words else 'a whole number'}.")
    return int(value)
