"""`python -m workspace run`: one analysis, here and now, without the queue or a database."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from analyzers import catalogue
from analyzers._base import Analyzer, Quiet, Result, write_atomically
from probes.architecture import naming
from probes.checkpoint import Checkpoint
from probes.data import Batches, read_batches
from probes.errors import DataError, ObjectiveError, ProbeError
from probes.objective import Objective, build_objective
from probes.specs import LOSS_TITLES, DataSpec, LossName, ModelSpec, as_test
from workspace.answering import answered
from workspace.command_copies import Copies
from workspace.command_model import model_of
from workspace.export import as_filename, csv_of, html_of
from workspace.opened import own_of

Say = Callable[[str], None]

OWN = ("result.json", "arrays.npz", "figures", "tables")
SECONDS_BETWEEN_LINES = 2.0
SHOWN = 10


def run(chosen: argparse.Namespace, say: Say, show: Say = print) -> None:
    """Run the analyzer that was chosen and write its result; raise ProbeError for what the user can mend."""
    analyzer = analyzer_of(chosen.analyzer, chosen.set, chosen.micro_batch)
    check_folder(chosen.out)
    check_device(chosen.device)
    with Progress() as progress, Copies(progress) as copies:
        result = _analysed(chosen, analyzer, copies, say)
    write(result, chosen.out)
    for each in result.caveats:
        say(f"Caveat: {each}")
    for line in lines(result.values):
        show(line)
    say(f"Written to {chosen.out}.")


def _analysed(chosen: argparse.Namespace, analyzer: Analyzer, copies: Copies, say: Say) -> Result:
    checkpoints = tuple(copies.read(path, chosen.weights, chosen.base) for path in chosen.checkpoint)

    def objective_at(first: Checkpoint) -> Objective:
        model = model_of(chosen.model, first, say, copies.folder)
        batches = _batches(chosen, model, first, say)
        loss = chosen.loss or loss_of(batches)
        say(f"Loss: {LOSS_TITLES[loss]}{'' if chosen.loss else ' (by the targets)'}.")
        objective = _objective(chosen, analyzer, model, first, batches, loss)
        return objective.with_test(_test_batches(chosen, model, first, say)) if chosen.test_data else objective

    if chosen.test_data and not analyzer.uses_test:
        raise DataError(f"{analyzer.title} looks at no test data. Leave --test-data away.")
    if analyzer.needs_objective and not chosen.data:
        raise DataError(f"{analyzer.title} needs data. Name a file or folder with --data.")
    with Progress() as progress:
        return answered(
            analyzer, checkpoints, objective_at, progress, lambda gate: say(f"Gate: {gate.verdict}. {gate.sentence}")
        )


def lines(values: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield a line for each number and each list of numbers or names; tables lie in files of their own."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from lines(value, f"{within}{name} ")
        elif isinstance(value, int | float) or (isinstance(value, list) and value and not isinstance(value[0], dict)):
            yield f"{within}{name}: {_shown(value)}"


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


def loss_of(batches: Batches) -> LossName:
    """Choose the loss by the targets: captions, next tokens, classes, or values."""
    if batches.captions:
        return "caption_distance"
    if not batches.inputs.is_floating_point() and batches.targets.ndim == 2:
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
    return _read(_data(chosen), model, checkpoint, say, "Data")


def _test_batches(chosen: argparse.Namespace, model: ModelSpec, checkpoint: Checkpoint, say: Say) -> Batches:
    spec = as_test(_data(chosen), tuple(chosen.test_data), chosen.test_split, chosen.test_examples)
    return _read(spec, model, checkpoint, say, "Test data")


def _data(chosen: argparse.Namespace) -> DataSpec:
    return DataSpec(
        files=tuple(chosen.data),
        format="operator" if naming.is_module(chosen.data) else chosen.format,
        mean=_numbers("--mean", chosen.mean),
        std=_numbers("--std", chosen.std),
        examples=chosen.examples,
        shuffle=chosen.shuffle,
        label=chosen.label,
        tokenizer=chosen.tokenizer,
        context=chosen.context,
        split=chosen.split,
        classes=tuple(chosen.classes),
    )


def _read(data: DataSpec, model: ModelSpec, checkpoint: Checkpoint, say: Say, what: str) -> Batches:
    own = own_of(model, checkpoint)
    brought = (own.context, own.tokenizer, own.vocabulary, own.classes, own.preprocessing)
    batches = read_batches(data, {}, *brought)
    total = batches.about["of"]
    order = "" if data.shuffle is None else f", in the order of seed {data.shuffle}"
    say(f"{what}: {len(batches):,} of {total:,} examples of {', '.join(batches.about['source'])}{order}.")
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
