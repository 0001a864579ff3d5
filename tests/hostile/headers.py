"""safetensors whose header lies, and GGUF files cut short or claiming what they do not hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hostile.assemble import Case, floats

WEIGHT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
BIAS = {"dtype": "F32", "shape": [2], "data_offsets": [24, 32]}
BODY = floats(0.5, -1, 2, 3, -4, 5.5, 0.25, -0.125)
HEADER: Mapping[str, Any] = {"fc.weight": WEIGHT, "fc.bias": BIAS}


def framed(header: bytes | Mapping[str, Any], body: bytes = BODY, length: int | None = None) -> bytes:
    """Write a safetensors file from a header that may be anything."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def with_bias(**lies: Any) -> bytes:
    return framed({"fc.weight": WEIGHT, "fc.bias": {**BIAS, **lies}})


def _many(count: int) -> bytes:
    entry = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return framed(("{" + ",".join(entry % n for n in range(count)) + "}").encode(), b"")


def _deep(text: str, levels: int = 100_000) -> bytes:
    return framed(('{"a":' + text * levels).encode())


SAFETENSORS: dict[str, tuple[Callable[[], bytes], str, tuple[str, ...]]] = {
    "control": (lambda: framed(HEADER), "ok", ()),
    "length-bomb": (lambda: framed(HEADER, length=2**63), "refused", ()),
    "length-all-bits": (lambda: framed(HEADER, length=2**64 - 1), "refused", ()),
    "length-gigabyte": (lambda: framed(HEADER, length=2**30), "refused", ()),
    "length-beyond-file": (lambda: framed(HEADER, length=400), "refused", ()),
    "length-zero": (lambda: framed(HEADER, length=0), "refused", ()),
    "length-short": (lambda: framed(HEADER, length=20), "refused", ()),
    "invalid-utf-8": (lambda: framed(b'{"\xc3\x28": {}}' + b" " * 40), "refused", ()),
    "invalid-json": (lambda: framed(b'{"fc.weight": {"dtype": "F32",' + b" " * 40), "refused", ()),
    "not-an-object": (lambda: framed(b'["F32"]' + b" " * 40), "refused", ()),
    "utf-16": (lambda: framed(json.dumps(HEADER).encode("utf-16-le")), "refused", ()),
    "nan-in-json": (lambda: with_bias(shape=[float("nan")]), "refused", ()),
    "deep-lists": (lambda: _deep("["), "refused", ()),
    "deep-objects": (lambda: _deep('{"a":'), "refused", ()),
    "overlap": (lambda: with_bias(data_offsets=[16, 24]), "refused", ()),
    "same-bytes": (
        lambda: framed({"a": BIAS | {"data_offsets": [0, 8]}, "b": BIAS | {"data_offsets": [0, 8]}}, BODY[:8]),
        "refused",
        (),
    ),
    "hole": (
        lambda: framed({"fc.weight": WEIGHT, "fc.bias": BIAS | {"data_offsets": [28, 36]}}, BODY + b"gap!"),
        "refused",
        (),
    ),
    "hole-at-start": (lambda: framed({"fc.bias": BIAS}), "refused", ()),
    "reversed": (lambda: with_bias(data_offsets=[32, 24]), "refused", ()),
    "negative": (lambda: with_bias(data_offsets=[-8, 0]), "refused", ()),
    "overflow": (lambda: with_bias(data_offsets=[24, 2**64 + 32]), "refused", ()),
    "fraction": (lambda: with_bias(data_offsets=[24.5, 32.5]), "refused", ()),
    "text-offsets": (lambda: with_bias(data_offsets=["24", "32"]), "refused", ()),
    "three-offsets": (lambda: with_bias(data_offsets=[24, 32, 40]), "refused", ()),
    "beyond-file": (lambda: with_bias(shape=[2**40], data_offsets=[24, 24 + 2**42]), "refused", ()),
    "shape-and-size-differ": (lambda: with_bias(shape=[3]), "refused", ()),
    "shape-overflow": (lambda: with_bias(shape=[2**32, 2**32, 2]), "refused", ()),
    "shape-negative": (lambda: with_bias(shape=[-1, -2]), "refused", ()),
    "shape-bool": (lambda: with_bias(shape=[2, True]), "refused", ()),
    "shape-not-a-list": (lambda: with_bias(shape="2"), "refused", ()),
    "zero-times-huge": (
        lambda: framed(
            {"fc.weight": WEIGHT, "e": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [24, 24]}}, BODY[:24]
        ),
        "warning",
        (),
    ),
    "zero-times-beyond": (
        lambda: framed(
            {"fc.weight": WEIGHT, "e": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [24, 24]}},
            BODY[:24],
        ),
        "refused",
        (),
    ),
    "rank-102": (lambda: with_bias(shape=[1] * 101 + [2]), "refused", ()),
    "rank-hundred-thousand": (lambda: with_bias(shape=[1] * 100_000 + [2]), "refused", ()),
    "unknown-dtype": (lambda: with_bias(dtype="F31"), "refused", ("F31",)),
    "hostile-dtype": (lambda: with_bias(dtype="<script>alert(1)</script>"), "refused", ()),
    "dtype-list": (lambda: with_bias(dtype=["F32"]), "refused", ()),
    "missing-dtype": (lambda: framed({"fc.bias": {"shape": [2], "data_offsets": [0, 8]}}, BODY[:8]), "refused", ()),
    "unknown-field": (lambda: with_bias(storage="../../x"), "ok", ()),
    "duplicate-key": (
        lambda: framed(b'{"a":%s,"a":%s}' % ((json.dumps(WEIGHT).encode(), json.dumps(BIAS).encode()))),
        "refused",
        (),
    ),
    "trailing": (lambda: framed(HEADER, BODY + b"trailing"), "refused", ()),
    "truncated": (lambda: framed(HEADER, BODY[:-5]), "refused", ()),
    "header-only": (lambda: framed(HEADER, b""), "refused", ()),
    "cut-in-header": (lambda: framed(HEADER)[:60], "refused", ()),
    "no-tensors": (lambda: framed({}, b""), "refused", ()),
    "metadata-only": (lambda: framed({"__metadata__": {"format": "pt"}}, b""), "refused", ()),
    "metadata-numbers": (lambda: framed({**HEADER, "__metadata__": {"epoch": 3}}), "refused", ()),
    "metadata-list": (lambda: framed({**HEADER, "__metadata__": ["a"]}), "refused", ()),
    "metadata-html": (
        lambda: framed({**HEADER, "__metadata__": {"<img src=x onerror=alert(1)>": "\x1b[2J", "epoch": "<b>7</b>"}}),
        "ok",
        (),
    ),
    "bool-of-two": (
        lambda: framed(
            {"fc.weight": WEIGHT, "mask": {"dtype": "BOOL", "shape": [2], "data_offsets": [24, 26]}},
            BODY[:24] + b"\x02\xff",
        ),
        "ok",
        (),
    ),
    "name-long": (lambda: framed({"w" * 10_000: WEIGHT, "fc.bias": BIAS}), "refused", ()),
    "name-html": (lambda: framed({"<img src=x onerror=alert(1)>": WEIGHT, "[a](javascript:alert(1))": BIAS}), "ok", ()),
    "name-control": (lambda: framed({"w\x1b[2J\x00": WEIGHT, "fc.bias": BIAS}), "refused", ()),
    "name-bidi": (lambda: framed({"w\u202egnp.exe": WEIGHT, "fc.bias": BIAS}), "refused", ()),
    "name-surrogate": (
        lambda: framed(b'{"\\ud800": %s}' % json.dumps(BIAS | {"data_offsets": [0, 8]}).encode(), BODY[:8]),
        "refused",
        (),
    ),
    "list-bomb": (lambda: framed(b'{"a":[' + b"[]," * 6_000_000 + b"[]]}"), "refused", ()),
    "metadata-bomb": (lambda: framed(b'{"__metadata__":{"a":[' + b"{}," * 6_000_000 + b"{}]}}"), "refused", ()),
    "three-hundred-thousand-tensors": (lambda: _many(300_000), "refused", ("tensors",)),
    "endless-number": (
        lambda: framed(b'{"fc.bias": {"dtype": "F32", "shape": [' + b"9" * 200_000 + b"]}}"),
        "refused",
        (),
    ),
}


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content.encode())) + content.encode()


def gguf(
    tensors: int = 1, keys: int = 1, version: int = 3, dims: tuple[int, ...] = (3, 2), kind: int = 0, offset: int = 0,
    body: bytes = BODY[:24], more: bytes = b"", name: str = "blk.0.attn_q.weight", count: int | None = None,
) -> bytes:  # fmt: skip
    """Write a GGUF file of one tensor; everything that it claims may be a lie."""
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, keys)
    head += text("general.architecture") + struct.pack("<I", 8) + text("llama") + more
    head += text(name) + struct.pack("<I", len(dims) if count is None else count)
    head += struct.pack(f"<{len(dims)}Q", *dims) + struct.pack("<IQ", kind, offset)
    return head + bytes(-len(head) % 32) + body


def _array(kind: int, count: int) -> bytes:
    return text("x") + struct.pack("<IIQ", 9, kind, count)


GGUF: dict[str, Callable[[], bytes]] = {
    "control": lambda: gguf(),
    "cut-short": lambda: gguf()[:-8],
    "cut-in-header": lambda: gguf()[:50],
    "magic-only": lambda: b"GGUF",
    "version-99": lambda: gguf(version=99),
    "big-endian": lambda: b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + gguf()[24:],
    "tensor-count": lambda: gguf(tensors=2**60),
    "key-count": lambda: gguf(keys=2**60),
    "text-length": lambda: gguf(keys=2, more=struct.pack("<Q", 2**62)),
    "array-length": lambda: gguf(keys=2, more=_array(4, 2**61)),
    "array-of-arrays": lambda: gguf(keys=2, more=_array(9, 1) + struct.pack("<IQ", 9, 1) * 100_000),
    "unknown-value": lambda: gguf(keys=2, more=text("x") + struct.pack("<I", 77)),
    "unknown-quantisation": lambda: gguf(kind=4242),
    "dims-overflow": lambda: gguf(dims=(2**33, 2**33)),
    "dims-terabytes": lambda: gguf(dims=(2**40,)),
    "rank": lambda: gguf(count=2**31),
    "offset": lambda: gguf(offset=2**63),
    "offset-overlap": lambda: gguf(tensors=2),
    "alignment-zero": lambda: gguf(keys=2, more=text("general.alignment") + struct.pack("<II", 4, 0)),
    "name-long": lambda: gguf(name="w" * 10_000),
    "name-control": lambda: gguf(name="w\x1b[2J\x00"),
}


def cases() -> Iterator[Case]:
    """Yield both."""
    for name, (content, verdict, words) in SAFETENSORS.items():
        yield Case(f"safetensors-{name}", _writer(f"safetensors-{name}.safetensors", content), verdict, words)
    for name, content in GGUF.items():
        verdict = "warning" if name == "control" else "refused"
        yield Case(f"gguf-{name}", _writer(f"gguf-{name}.gguf", content), verdict)


def _writer(file: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / file).write_bytes(content())
        return folder / file

    return write
