"""What people bring by mistake: the wrong file, half a file, a file whose weights are not what they seem."""

from __future__ import annotations

import gzip
import io
import lzma
import math
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from hostile.archives import changed, good
from hostile.assemble import (
    BIAS,
    DATA,
    VECTORS,
    WEIGHT,
    WEIGHTS,
    Case,
    Entry,
    Storage,
    floats,
    pack,
    program,
    tensor,
    torch_legacy,
    torch_tar,
    torch_zip,
)
from hostile.executing import _bytes as put
from hostile.folders import weights as safetensors

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 437951328\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Access denied</body></html>"


def _proto(*fields: tuple[int, bytes]) -> bytes:
    """Write length-delimited fields of a protocol buffer, as ONNX and TensorFlow use them."""
    return b"".join(bytes([number << 3 | 2, len(content)]) + content for number, content in fields)


def _onnx() -> bytes:
    head = b"\x08\x09" + _proto((2, b"pytorch"), (3, b"2.15.0"))
    return head + _proto((7, _proto((2, b"main_graph"))), (8, b"\x10\x11"))


def _tensorflow(folder: Path) -> Path:
    put(folder / "model.ckpt.index", b"\x00\x00\x01" + bytes(40) + bytes.fromhex("57fb808b247547db"))
    put(folder / "model.ckpt.data-00000-of-00001", DATA["0"])
    return folder / "model.ckpt.index"


def _saved_model(folder: Path) -> Path:
    home = folder / "saved-model"
    (home / "variables").mkdir(parents=True)
    put(home / "saved_model.pb", b"\x08\x01" + _proto((2, b"serve")))
    put(home / "variables" / "variables.index", bytes(48))
    put(home / "variables" / "variables.data-00000-of-00001", DATA["0"])
    return home


def _keras() -> bytes:
    names = {
        "metadata.json": b'{"keras_version": "3.0.0"}',
        "config.json": b'{"class_name": "Sequential"}',
        "model.weights.h5": b"\x89HDF\r\n\x1a\n",
    }
    return pack([Entry(name, content) for name, content in names.items()])


def _flax() -> bytes:
    """Write what flax.serialization.to_bytes does: nested maps, with arrays as extension type 1."""
    array = msgpack.packb(((2,), "float32", DATA["1"]))
    return bytes(msgpack.packb({"params": {"Dense_0": {"bias": msgpack.ExtType(1, array)}}}))


def _pictures() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("notes.txt", "hello")
        archive.writestr("pictures/cat.txt", "meow")
    return out.getvalue()


def _tar_gz() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("model.pt")
        info.size = len(pack(good()))
        archive.addfile(info, io.BytesIO(pack(good())))
    return gzip.compress(out.getvalue(), mtime=0)


def _random() -> bytes:
    return np.random.default_rng(0).bytes(5000)


# name of the file: (content, what the sentence says). They are refused, but those in FINE.
FILES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "lfs-pointer.safetensors": (lambda: LFS.encode(), ("Git LFS", "git lfs pull")),
    "lfs-pointer.bin": (lambda: LFS.encode(), ("Git LFS",)),
    "page.pt": (lambda: PAGE.encode(), ("web page",)),
    "page-in-capitals.pt": (lambda: b"\n\n  <HTML><BODY>404</BODY></HTML>", ("web page",)),
    "xml-error.pt": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ("page",)),
    "json-error.pt": (lambda: b'{"error": "Repository not found"}', ("JSON",)),
    "half.pt": (lambda: pack(good())[:-200], ()),
    "first-bytes.pt": (lambda: pack(good())[:100], ()),
    "half.safetensors": (lambda: safetensors()[:-100], ()),
    "text.pt": (lambda: b"loss 0.5\nloss 0.25\n", ()),
    "script.pt": (lambda: b"import torch\nmodel = torch.nn.Linear(2, 2)\n", ()),
    "empty.pt": (lambda: b"", ("empty",)),
    "zeros.pt": (lambda: bytes(4096), ()),
    "random.pt": (_random, ()),
    "onnx.onnx": (_onnx, ("ONNX",)),
    "keras.h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(88), ("HDF5",)),
    "keras.keras": (_keras, ("Keras",)),
    "flax.msgpack": (_flax, ("Flax",)),
    "graph.pb": (lambda: b"\x08\x01" + _proto((2, b"serving_default")), ("TensorFlow",)),
    "photo.jpg": (lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(64), ("JPEG",)),
    "picture.png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), ("PNG",)),
    "paper.pdf": (lambda: b"%PDF-1.7\n" + bytes(64), ("PDF",)),
    "packed.7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(64), ("7-Zip",)),
    "packed.rar": (lambda: b"Rar!\x1a\x07\x01\0" + bytes(64), ("RAR",)),
    "packed.xz": (lambda: lzma.compress(pack(good())), ("xz",)),
    "packed.tar.gz": (_tar_gz, ()),
    "packed.zst": (lambda: b"\x28\xb5\x2f\xfd" + bytes(64), ("Zstandard",)),
    "pictures.zip": (_pictures, ()),
    "locked.zip": (lambda: pack([Entry("model.pt", pack(good()), flags=1)]), ("encrypted",)),
    "checkpoint-in-zip.zip": (lambda: pack([Entry("model.pt", pack(good()))]), ()),
    "program.exe": (lambda: b"MZ\x90\0" + bytes(200), ()),
    "binary": (lambda: b"\x7fELF\x02\x01\x01" + bytes(200), ()),
    "newer-torch.pt": (lambda: pack(changed("version", data=b"99\n")), ("99", "newer")),
    "video.mp4": (lambda: b"\0\0\0\x20ftypisom" + bytes(64), ()),
}  # fmt: skip
FINE = ("packed.tar.gz", "checkpoint-in-zip.zip")  # the one checkpoint inside is taken


def _adam(steps: int = 3) -> dict[str, Any]:
    moment = lambda shape, storage: {
        "step": float(steps),
        "exp_avg": tensor(storage, shape),
        "exp_avg_sq": tensor(storage, shape),
    }
    state = {0: moment((2, 3), WEIGHT), 1: moment((2,), BIAS)}
    return {"state": state, "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, "params": [0, 1]}]}


def prefixed(prefix: str) -> OrderedDict[str, Any]:
    return OrderedDict((prefix + name, each) for name, each in WEIGHTS.items())


LORA = OrderedDict(
    (f"base_model.model.layers.0.q_proj.lora_{side}.weight", tensor(WEIGHT, shape))
    for side, shape in (("A", (2, 3)), ("B", (3, 2)))
)
NAN, INFINITE = {**DATA, "1": floats(math.nan, 1)}, {**DATA, "0": floats(1, 2, -math.inf, 4, 5, math.inf)}
LAYERS = OrderedDict(
    {**WEIGHTS, "head.weight": tensor(Storage("2", 6), (3, 2)), "head.bias": tensor(Storage("3", 3), (3,))}
)
ZERO = {**DATA, "2": floats(*[0] * 6), "3": floats(0, 0, 0)}
DOUBLE = {"0": struct.pack("<6d", *range(6)), "1": struct.pack("<2d", 1, 2)}
HALF = {"0": np.arange(6, dtype="<f2").tobytes(), "1": np.arange(2, dtype="<f2").tobytes()}


def kind(name: str, device: str = "cpu") -> OrderedDict[str, Any]:
    """Write the weights with storages of another kind, or from another device."""
    weight, bias = Storage("0", 6, name, device), Storage("1", 2, name, device)
    return OrderedDict({"fc.weight": tensor(weight, (2, 3)), "fc.bias": tensor(bias, (2,))})


def _mixed() -> OrderedDict[str, Any]:
    return OrderedDict({"module.fc.weight": WEIGHTS["fc.weight"], "fc.bias": WEIGHTS["fc.bias"]})


# name: (what was saved, its storages, verdict, words)
SAVED: dict[str, tuple[Any, Mapping[str, bytes], str, tuple[str, ...]]] = {
    "not-a-number": (WEIGHTS, NAN, "warning", ("fc.bias",)),
    "infinity": ({"model": WEIGHTS}, INFINITE, "warning", ("fc.weight",)),
    "all-zero-layer": (LAYERS, ZERO, "warning", ("head.weight", "zero")),
    "float64": (kind("DoubleStorage"), DOUBLE, "warning", ("float64",)),
    "half": (kind("HalfStorage"), HALF, "ok", ()),
    "cuda": (kind("FloatStorage", "cuda:3"), DATA, "ok", ()),
    "mps": (kind("FloatStorage", "mps"), DATA, "ok", ()),
    "optimizer-only": (_adam(), DATA, "refused", ("optimizer",)),
    "optimizer-wrapped": ({"optimizer": _adam(), "epoch": 4}, DATA, "refused", ("optimizer",)),
    "lora-only": (LORA, {"0": DATA["0"]}, "warning", ("base",)),
    "mixed-prefixes": (_mixed(), DATA, "warning", ("module.",)),
    "data-parallel": (prefixed("module."), DATA, "ok", ()),
    "compiled": ({"model": prefixed("_orig_mod.")}, DATA, "ok", ()),
    "compiled-and-parallel": ({"model": prefixed("module._orig_mod.")}, DATA, "ok", ()),
    "one-tensor": (WEIGHTS["fc.weight"], {"0": DATA["0"]}, "refused", ("model.state_dict()",)),
    "list-of-tensors": (list(WEIGHTS.values()), DATA, "refused", ("state_dict",)),
    "numbers-only": ({"epoch": 5, "loss": 0.25}, {}, "refused", ("tensors",)),
    "empty-dict": ({}, {}, "refused", ()),
    "none": (None, {}, "refused", ()),
    "text": ("model.pt", {}, "refused", ()),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield all of them; the saved ones in both layouts of torch."""
    for file, (content, words) in FILES.items():
        verdict = "ok" if file in FINE else "refused"
        yield Case(f"clinic-{file}", lambda folder, f=f"clinic-{file}", c=content: put(folder / f, c()), verdict, words)
    yield Case("clinic-torch-0.1", lambda folder: torch_tar(folder / "clinic-torch-0.1.pt", VECTORS), "ok")
    yield Case("clinic-tensorflow", _tensorflow, "refused", ("TensorFlow",))
    yield Case("clinic-saved-model", _saved_model, "refused", ("TensorFlow",))
    for name, (value, data, verdict, words) in SAVED.items():
        for layout, write in (("zip", torch_zip), ("legacy", torch_legacy)):
            if layout == "legacy" and name in ("float64", "half"):
                continue  # the helper counts elements of four bytes

            def lay(
                folder: Path, value: Any = value, data: Any = data, write: Any = write, stem: str = f"{name}-{layout}"
            ) -> Path:
                return Path(write(folder / f"clinic-{stem}.pt", program(value), data))

            yield Case(f"clinic-{name}-{layout}", lay, verdict, words)
