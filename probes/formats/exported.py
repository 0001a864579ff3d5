"""Read the weights of what torch.export.save wrote (.pt2): the program inside stays shut.

Since torch 2.9 each storage is a record of raw bytes and a JSON file says which tensors look into it; torch 2.8 kept
the state dict as one torch file inside the archive, and earlier ones did so in a zip of another layout.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from probes.errors import RefusedCheckpoint
from probes.formats.contents import ITEM_BYTES, Contents, Limits, Stored, printable
from probes.formats.pickle_values import Storage, tensor_of
from probes.formats.raw import span_of
from probes.formats.torch_zip import read_torch_zip
from probes.formats.zips import Member, check_directory, check_sum, checked_span, open_window, plain_members

FORMAT = "torch.export program"
_OLD = "serialized_exported_program.json"
_CONFIG = re.compile(r"data/weights/(.+)_(?:weights|model_param)_config\.json")
_WHOLE = re.compile(r"data/weights/(.+)\.pt")
_CONSTANTS = re.compile(r"data/constants/(?:tensor|custom_obj|opaque_obj)_\d+")
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_STRIDED = 7
_DAMAGE = (
    zipfile.BadZipFile, NotImplementedError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError,
    OverflowError, struct.error,
)  # fmt: skip


def is_exported(names: Iterable[str]) -> bool:
    """Say whether a zip with these records is a program of torch.export."""
    return any(each == _OLD or each.partition("/")[2] == "archive_format" for each in names)


def read_exported(path: Path, name: str, limits: Limits) -> Contents:
    """Read the parameters and persistent buffers: {tensor: Stored}, or {model: {tensor: Stored}} of several models.

    The graph, constants, sample inputs and extra files are left behind. Raises RefusedCheckpoint for damage, for
    weights that only a pickle can rebuild (tensor subclasses, quantised tensors), and for packages of machine code.
    """
    try:
        size = path.stat().st_size
        with open_window(path) as file, zipfile.ZipFile(file) as archive:
            check_directory(archive, name, limits)
            members = plain_members(archive, file, size, name)
            packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise RefusedCheckpoint(
                f"{name} is a compressed zip, while torch.export.save writes plain ones. Unpack it."
            )
        found = _Archive(path, name, members, limits)
        models = found.models()
    except _DAMAGE as error:
        reason = printable(" ".join(str(error).split())) or type(error).__name__
        raise RefusedCheckpoint(
            f"{name} is a damaged or truncated program of torch.export ({reason}). Copy it again from its source."
        ) from None

    def verify() -> None:
        for each in members.values():
            check_sum(path, each, name)

    value = next(iter(models.values())) if len(models) == 1 else models
    facts = {"program": "torch.export"}
    return Contents(path, FORMAT, size, value, left=_left(members), facts=facts, verify=verify)


@dataclass(frozen=True)
class _Archive:
    """The records of a program's zip."""

    path: Path
    name: str
    members: Mapping[str, Member]
    limits: Limits

    def refuse(self, what: str) -> NoReturn:
        raise RefusedCheckpoint(f"{self.name} {what}")

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the tensors of each model."""
        if _OLD in self.members:
            return {"model": self.state_file("serialized_state_dict.pt")}
        stem = next(each for each in self.members if each.partition("/")[2] == "archive_format").partition("/")[0]
        found: dict[str, dict[str, Any]] = {}
        for record in self.members:
            inside = record.removeprefix(f"{stem}/")
            if match := _CONFIG.fullmatch(inside):
                found[printable(match[1])] = self.listed(record, f"{stem}/data/weights/")
            elif match := _WHOLE.fullmatch(inside):
                found[printable(match[1])] = self.state_file(record)
        if not found:
            held = (
                "only compiled machine code" if any("/aotinductor/" in each for each in self.members) else "no weights"
            )
            self.refuse(f"is a package of torch.export with {held} in it. Bring the state dict of the model.")
        return found

    def state_file(self, record: str) -> dict[str, Any]:
        """Read a state dict that lies in the archive as a torch file of its own."""
        if record not in self.members:
            self.refuse(f"is a program of torch.export without {record}. Export the model again.")
        member = self.members[record]
        check_sum(self.path, member, self.name)
        value = read_torch_zip(self.path, self.name, self.limits, start=member.start, length=member.bytes).value
        if not isinstance(value, dict) or not all(isinstance(each, Stored) for each in value.values()):
            self.refuse(f"is a program of torch.export whose {printable(record)} is no state dict.")
        return value

    def listed(self, record: str, folder: str) -> dict[str, Any]:
        """Return the tensors that a JSON file lists, as views of the records beside it."""
        config = self.json(record)["config"]
        if len(config) > self.limits.tensors:
            self.refuse(f"lists {len(config):,} tensors; at most {self.limits.tensors:,} are read.")
        found = {key: self.tensor(key, about, folder) for key, about in config.items()}
        numel = sum(each.numel for each in found.values())
        if numel > self.limits.parameters:
            self.refuse(f"lists tensors of {numel:,} elements; at most {self.limits.parameters:,} are read.")
        return found

    def json(self, record: str) -> Any:
        member = self.members[record]
        if member.bytes > self.limits.index:
            self.refuse(f"has a list of weights of {member.bytes:,} bytes; at most {self.limits.index:,} are read.")
        check_sum(self.path, member, self.name)
        content = span_of(self.path, self.name, member.start)(0, member.bytes).tobytes()
        try:
            return json.loads(content, object_pairs_hook=_unique)
        except RecursionError:
            self.refuse("has a list of weights that is nested too deeply. Copy it again from its source.")

    def tensor(self, key: str, about: Mapping[str, Any], folder: str) -> Stored:
        shown, meta = printable(key, 80), about["tensor_meta"]
        if len(key) > self.limits.name:
            self.refuse(f"names a tensor with {len(key):,} letters; at most {self.limits.name:,} are read.")
        if about["use_pickle"] or meta["layout"] != _STRIDED or meta["dtype"] not in _DTYPES:
            self.refuse(
                f"holds {shown} as a tensor of a special kind (quantised, sparse, or a subclass), which only its "
                "program can rebuild. Save the plain float weights."
            )
        member = self.members.get(f"{folder}{about['path_name']}")
        if member is None:
            self.refuse(f"lacks the weights of {shown} ({printable(str(about['path_name']), 40)}). Copy it again.")
        dtype = _DTYPES[meta["dtype"]]
        numel, rest = divmod(member.bytes, ITEM_BYTES[dtype])
        if rest:
            self.refuse(f"is damaged: the {member.bytes:,} bytes of {shown} are no whole number of {dtype}.")
        device = printable(str(meta["device"]["type"]), 20)
        storage = Storage(member.name, dtype, numel, device, checked_span(self.path, member, self.name))
        shape, stride = _whole(meta["sizes"]), _whole(meta["strides"])
        if math.prod(each or 1 for each in shape) > self.limits.parameters or len(shape) > self.limits.rank:
            self.refuse(f"is damaged: {shown} claims the shape {printable(str(shape[:20]), 80)}.")
        try:
            return tensor_of(storage, dtype, _whole([meta["storage_offset"]])[0], shape, stride)
        except ValueError as error:
            self.refuse(f"is damaged: {shown} is {printable(str(error))}. Copy it again.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that is listed twice")
    return found


def _whole(values: Iterable[Mapping[str, Any]]) -> tuple[int, ...]:
    found = tuple(each["as_int"] for each in values)
    if not all(type(each) is int and 0 <= each < 2**48 for each in found):
        raise ValueError("a size that is none")
    return found


def _left(members: Mapping[str, Member]) -> tuple[str, ...]:
    names = list(members)
    constants = sum(1 for each in names if _CONSTANTS.search(each))
    extra = [printable(each, 60) for each in names if "/extra/" in each or each.startswith("extra_files/")]
    compiled = any("/data/aotinductor/" in each for each in names)
    told = [
        "the program (its graph is neither read nor run)",
        f"{constants} constants of the program (not part of its state dict)" if constants else "",
        "sample inputs" if any("sample_inputs" in each or "example_inputs" in each for each in names) else "",
        "compiled machine code" if compiled else "",
        f"extra files ({', '.join(extra[:3])})" if extra else "",
    ]
    return tuple(each for each in told if each)
