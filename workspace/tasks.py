"""What the child can be asked to do. Only the child imports this: it imports torch.

A task is given its payload, the store, its own folder and a tick; it writes result.json last, atomically. In payloads
checkpoints are named by references, all other files by their sha256. Of a checkpoint only the admitted copy is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from analyzers import catalogue
from analyzers._base import Tick, write_atomically
from probes.admitted import read_provenance
from probes.checkpoint import Checkpoint
from probes.cross_check import cross_check
from probes.data import Batches, preview, read_batches
from probes.equivalence import check
from probes.errors import DataError, ModelError
from probes.gate import judge
from probes.models import compare, recognise, title_of
from probes.objective import Objective, build_objective
from probes.soups import as_safetensors
from probes.specification_text import as_rows, as_text, from_rows
from probes.specifications import specification
from probes.specs import DataSpec, ModelSpec
from workspace import admission, example
from workspace.answering import answered
from workspace.examination import Tick as Report
from workspace.export import as_filename, image_of
from workspace.folders import zip_of
from workspace.jobs import Jobs
from workspace.opened import joined, own_of
from workspace.references import Reference, reference
from workspace.requests import analysis, figures_of, payload_of, result_of
from workspace.store import Store
from workspace.task import Task
from workspace.uploads import allowed_path

Payload = Mapping[str, Any]
TOKENIZERS = ("auto", "bytes", "characters")


def _inspect(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.05, "opening the file in a process of its own")
    checkpoint = _checkpoint(payload["file"], store, lambda share, doing: tick(0.05 + 0.55 * share, doing))
    tick(0.6, "looking for the architecture")
    about = read_provenance(store.admitted(reference(payload["file"]).sha256))
    more = {"verdict": "warning" if checkpoint.doubts else "ok", "isolation": about["isolation"], "when": about["when"]}
    found = _by_hash(recognise(checkpoint).to_json(), checkpoint, reference(payload["file"]))
    _write(folder, {**checkpoint.describe(), **more, "recognition": found})


def _compare(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.1, "comparing names and shapes")
    spec = _model(payload, store)
    mismatch = compare(spec, _checkpoint(payload["file"], store))
    _write(folder, {"title": title_of(spec), "mismatch": mismatch.to_json(), "exact": not mismatch})


def _preview(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.1, "reading the data")
    spec, names = _data(payload, store)
    model = _model(payload, store) if "model" in payload else ModelSpec("text")
    own = own_of(model, _checkpoint(payload["checkpoint"], store)) if "checkpoint" in payload else None
    _write(folder, preview(spec, names=names, own=own))


def _gate(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.05, "reading checkpoint and data")
    checkpoint = _checkpoint(payload["checkpoint"], store)
    objective = _objective(payload, checkpoint, store)
    evaluation = objective.evaluate(tick)
    _write(folder, judge(evaluation, checkpoint, objective.batches).to_json())


def _analysis(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.0, "reading checkpoint and data")
    analyzer = catalogue()[payload["analyzer"]](**payload["options"])
    checkpoints = tuple(_checkpoint(sha256, store) for sha256 in payload["checkpoints"])
    result = answered(analyzer, checkpoints, lambda first: _objective(payload, first, store), tick)
    for name, figure in result.figures().items():
        write_atomically(folder / "figures" / f"{name}.json", figure.to_json().encode())
    result.save(folder)


def _cross_check(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    asked = payload_of(payload["run"], store)
    objective = _objective(asked, _checkpoint(asked["checkpoints"][0], store), store)
    _write(folder, cross_check(objective, result_of(payload["run"], store).values, tick))


def _render(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.1, "drawing the figure in Chromium")
    figure = figures_of(payload["run"], payload["view"], store)[payload["figure"]]
    name = f"{as_filename(payload['figure'])}.{payload['format']}"
    write_atomically(folder / "export" / name, image_of(figure, payload["format"]))
    _write(folder, {"file": f"export/{name}"})


def _merge(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    asked = payload_of(payload["run"], store)
    tick(0.0, "reading checkpoints and data")
    analyzer = catalogue()[asked["analyzer"]](**asked["options"])
    checkpoints = tuple(_checkpoint(text, store) for text in asked["checkpoints"])
    objective = _objective(asked, checkpoints[0], store)
    result = result_of(payload["run"], store)
    point = analyzer.merged(objective, checkpoints, result, payload["which"], tick)
    name = f"{as_filename(payload['which'])}-{payload['run'][:8]}.safetensors"
    tick(0.95, "writing the file")
    how = f"{analyzer.title}, {payload['which']}, of {', '.join(each.name for each in checkpoints)}"
    as_safetensors(objective, point, folder / "export" / name, how=how, like=checkpoints[0])
    _write(folder, {"file": f"export/{name}", "name": name, "bytes": (folder / "export" / name).stat().st_size})


def _specification(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.1, "reading checkpoint and data")
    objective = _objective(payload, _checkpoint(payload["checkpoint"], store), store)
    tick(0.3, "following the units through the model")
    spec = from_rows(payload["rows"], objective) if "rows" in payload else specification(objective)
    tick(0.6, "checking that permutations leave the function as it is")
    gate = check(objective, spec)
    about = {"source": spec.source, "notes": list(spec.notes), "error": gate.error, "scale": gate.scale}
    _write(folder, {"rows": as_rows(spec), "text": as_text(spec), **about})


def _import(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    tick(0.0, "copying into the workspace")
    path = allowed_path(payload["path"])
    if path.is_dir():
        archive = folder / "state" / "folder.zip"
        archive.parent.mkdir(parents=True, exist_ok=True)
        zip_of(path, archive)
        stored = store.add_file(archive, f"{path.name}.zip", move=True)
    else:
        stored = store.add_file(path, path.name)
    _write(folder, {"sha256": stored.sha256, "name": stored.name, "bytes": stored.bytes})


def _example(payload: Payload, store: Store, folder: Path, tick: Tick) -> None:
    found = example.train(store, folder, tick)
    last = found["checkpoints"][-1]
    model, data = ModelSpec.from_json(found["model"]), DataSpec.from_json(found["data"])
    analyzer = catalogue()["hessian_spectrum"]()
    title = f"{analyzer.title}: {last['name']}"
    run = Jobs(store).enqueue(analysis(analyzer, [last["sha256"]], model, data, found["loss"], title))
    _write(folder, {**found, "run": run.id})


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        "inspect": Task(_inspect),
        "compare": Task(_compare),
        "preview": Task(_preview),
        "gate": Task(_gate),
        "analysis": Task(_analysis),
        "cross_check": Task(_cross_check),
        "render": Task(_render),
        "merge": Task(_merge),
        "specification": Task(_specification),
        "import": Task(_import),
        "example": Task(_example),
    }
)


def _checkpoint(text: str, store: Store, tick: Report = admission.silent) -> Checkpoint:
    return joined(reference(text), lambda sha256, weights: admission.read(store, sha256, weights, tick))


def _by_hash(found: dict[str, Any], checkpoint: Checkpoint, meant: Reference) -> dict[str, Any]:
    """Name a folder that was recognised by its sha256, not by a path of this machine: that of the base, if any."""
    while meant.base:
        meant = meant.base
    if found["spec"] and found["spec"]["folder"] == str(checkpoint.path):
        found["spec"]["folder"] = meant.sha256
    return found


def _model(payload: Payload, store: Store) -> ModelSpec:
    spec = ModelSpec.from_json(payload["model"])
    if spec.source != "hugging_face":
        return spec
    if not _is_sha256(spec.folder):
        raise ModelError("The Hugging Face folder of this model is not in the workspace; choose it again.")
    return replace(spec, folder=str(admission.admit(store, spec.folder)))


def _data(payload: Payload, store: Store, which: str = "data") -> tuple[DataSpec, dict[str, str]]:
    spec = DataSpec.from_json(payload[which])
    if spec.format == "operator":  # the name of a module, no file
        return spec, {}
    if not _is_sha256(spec.tokenizer) and spec.tokenizer not in TOKENIZERS:
        raise DataError(f"There is no tokenizer {spec.tokenizer!r}; choose {', '.join(TOKENIZERS)} or upload one.")
    paths = {sha256: str(store.path_of(sha256)) for sha256 in (*spec.files, spec.tokenizer) if _is_sha256(sha256)}
    names = {path: _name(sha256, store) for sha256, path in paths.items()}
    files = tuple(paths[sha256] for sha256 in spec.files)
    return replace(spec, files=files, tokenizer=paths.get(spec.tokenizer, spec.tokenizer)), names


def _objective(payload: Payload, checkpoint: Checkpoint, store: Store) -> Objective:
    model = _model(payload, store)
    own = own_of(model, checkpoint)

    def batches(which: str) -> Batches:
        spec, names = _data(payload, store, which)
        brought = (own.context, own.tokenizer, own.vocabulary, own.classes, own.preprocessing)
        return read_batches(spec, names, *brought)

    dtype = payload.get("options", {}).get("dtype", "float32")
    objective = build_objective(model, checkpoint, batches("data"), payload["loss"], dtype=dtype)
    return objective.with_test(batches("test")) if "test" in payload else objective


def _name(sha256: str, store: Store) -> str:
    stored = store.file(sha256)
    return stored.name if stored else f"{sha256[:12]}…"


def _is_sha256(text: str) -> bool:
    return bool(re.fullmatch(r"[0-9a-f]{64}", text))


def _write(folder: Path, value: Mapping[str, Any]) -> None:
    write_atomically(folder / "result.json", json.dumps(dict(value), ensure_ascii=False, allow_nan=False).encode())
