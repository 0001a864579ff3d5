"""Pickles that call nothing and still ask for all the memory or all the time, or end in the middle of a sentence."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.assemble import MAGIC, VERSION, WEIGHTS, Call, Case, Name, Raw, beside, opcodes, program, torch_zip

LEVELS = 60
MODULE = Name("torch.nn.modules.container", "Sequential")
HIGH = 2**64  # of the hash of a tuple


def doubled(first: bytes, twice: Callable[[bytes], bytes]) -> bytes:
    """Build a value that holds itself twice, sixty times over: small in memory, endless for whoever walks it."""
    code = first + b"q\x000"
    for level in range(LEVELS):
        code += twice(b"h" + bytes([level])) + b"q" + bytes([level + 1]) + b"0"
    return code[:-1]  # leave the last on the stack


def tuples(first: bytes = b"N") -> bytes:
    return doubled(first, lambda last: last + last + b"\x86")


def lists() -> bytes:
    return doubled(b"]", lambda last: b"](" + last + last + b"e")


def dicts() -> bytes:
    return doubled(b"}", lambda last: b"}(" + opcodes("a") + last + opcodes("b") + last + b"u")


def records() -> bytes:
    return doubled(b"N", lambda last: opcodes(Name("my.module", "Node")) + last + last + b"\x86R")


def module(children: bytes, told: bytes = b"") -> bytes:
    """Write a whole torch module: its children and what its constructor was told are opcodes."""
    state = b"}(" + opcodes("_parameters") + opcodes(dict(WEIGHTS)) + opcodes("_buffers") + b"}"
    return opcodes(MODULE) + b")\x81" + state + opcodes("_modules") + children + told + b"ub"


def modules() -> bytes:
    return doubled(module(b"}"), lambda last: module(b"}(" + opcodes("a") + last + opcodes("b") + last + b"u"))


def module_in_itself(key: str = "a") -> bytes:
    """Let a module be its own child."""
    held = opcodes(MODULE) + b")\x81q\x00}(" + opcodes("_parameters") + opcodes(dict(WEIGHTS)) + opcodes("_buffers")
    return held + b"}" + opcodes("_modules") + b"}(" + opcodes(key) + b"h\x00" + opcodes("b") + b"h\x00uub"


def layer(told: bytes) -> bytes:
    """Write a Linear inside of a Sequential whose in_features is something else."""
    inner = module(b"}", opcodes("in_features") + told + opcodes("out_features") + b"K\x02")
    return module(b"}" + opcodes("0") + inner.replace(opcodes(MODULE), b"ctorch.nn.modules.linear\nLinear\n") + b"s")


def integers(count: int = 40_000) -> bytes:
    """Write keys that all have the same hash."""
    keys = b"".join(b"\x8a\x0c" + ((2**61 - 1) * (n + 2**30)).to_bytes(12, "little") + b"N" for n in range(count))
    return b"}(" + keys + b"u"


def pairs(count: int = 20_000) -> bytes:
    """Write keys that are pairs of small numbers with the same hash: that of a tuple is no secret."""
    high, first, second = 11400714785074694791, 2870177450012600261, 14029467366897019727
    wanted, found, a = 12345, b"", 0
    turn = lambda value, by: (value << by | value >> 64 - by) % HIGH
    while count:
        a += 1
        before = turn((first + a * second) % HIGH, 31) * high % HIGH
        b = (turn(wanted, 33) - before) * pow(second, -1, HIGH) % HIGH
        if b < 2**61 - 1:
            found += opcodes(a) + opcodes(b) + b"\x86N"
            count -= 1
    return b"}(" + found + b"u"


def steps(content: bytes) -> bytes:
    return content * (6_000_000 // len(content))


def nested_often(count: int = 20_000) -> bytes:
    """Hand the same long stream of pickles to torch's reader of nested storages, again and again."""
    version = b"\x80\x02" + b"N0" * 500_000 + opcodes(VERSION) + b"."
    storage = opcodes(("storage", Name("torch", "FloatStorage"), "0", "cpu", 1, None)) + b"Q"
    stream = program(MAGIC) + version + program({}) + program(Raw(storage)) + program(["0"]) + struct.pack("<qf", 1, 1)
    call = opcodes(Name("torch.storage", "_load_from_bytes"))
    return call + b"q\x000" + opcodes(stream) + b"q\x010" + b"h\x00h\x01\x85R0" * count + b"N"


def nested_deep(levels: int = 3000) -> bytes:
    code = b"N"
    for _ in range(levels):
        content = b"\x80\x02" + code + b"."
        code = opcodes(Name("torch.storage", "_load_from_bytes")) + opcodes(content) + b"\x85R"
        if len(code) > 2_000_000:
            break
    return code


def key(value: bytes) -> bytes:
    return b"}" + value + b"Ns"


# name: opcodes beside good weights. Whatever is not in FINE is refused; nothing may take ten seconds.
ODD: dict[str, Callable[[], bytes]] = {
    "doubled-tuples": tuples,
    "doubled-lists": lists,
    "doubled-dicts": dicts,
    "doubled-records": records,
    "doubled-modules": modules,
    "doubled-key": lambda: key(tuples()),
    "module-in-itself": module_in_itself,
    "module-in-itself-long": lambda: module_in_itself("a" * 60_000),
    "layer-doubled": lambda: layer(tuples()),
    "layer-deep": lambda: layer(b"N" + b"\x85" * 50_000),
    "layer-huge": lambda: layer(opcodes(10**5000)),
    "cycle": lambda: b"]q\x00h\x00a",
    "cyclic-dict": lambda: b"}q\x00" + opcodes("self") + b"h\x00s",
    "cyclic-tuple": lambda: b"]q\x00h\x00\x85q\x01a0h\x01",
    "deep-tuples": lambda: b"N" + b"\x85" * 200_000,
    "deep-lists": lambda: b"](" * 200_000 + b"N" + b"e" * 200_000,
    "deep-marks": lambda: b"(" * 200_000 + b"N" + b"t" * 200_000,
    "deep-dicts": lambda: b"}N" * 200_000 + b"N" + b"s" * 200_000,
    "deep-key": lambda: key(b"N" + b"\x85" * 200_000),
    "same-hash": integers,
    "same-hash-pairs": pairs,
    "six-million-nones": lambda: steps(b"N0"),
    "six-million-sets": lambda: b"(" + steps(b"\x8f") + b"t",
    "six-million-marks": lambda: steps(b"("),
    "six-million-dicts": lambda: b"(" + steps(b"}") + b"t",
    "nested-often": nested_often,
    "nested-deep": nested_deep,
    "long-key": lambda: key(opcodes("a" * 3_000_000)),
    "list-as-key": lambda: key(b"]"),
    "long-number": lambda: b"\x8b" + struct.pack("<i", 2**31 - 1),
    "negative-number": lambda: b"\x8b" + struct.pack("<i", -5),
    "digits": lambda: b"L" + b"9" * 200_000 + b"L\n",
    "no-number": lambda: b"Iseven\n",
    "no-float": lambda: b"Fhalf\n",
    "long-text": lambda: b"X" + struct.pack("<I", 2**32 - 1) + b"abc",
    "very-long-text": lambda: b"\x8d" + struct.pack("<Q", 2**62) + b"abc",
    "very-long-bytes": lambda: b"\x8e" + struct.pack("<Q", 2**63 + 5) + b"abc",
    "very-long-bytearray": lambda: b"\x96" + struct.pack("<Q", 2**40) + b"abc",
    "long-frame": lambda: b"\x95" + struct.pack("<Q", 2**60) + b"N",
    "out-of-band": lambda: b"\x97\x98",
    "broken-unicode": lambda: b"X" + struct.pack("<I", 2) + b"\xc3\x28",
    "broken-string": lambda: b"S'abc\n",
    "high-memo": lambda: b"Nr" + struct.pack("<I", 2**32 - 1),
    "missing-memo": lambda: b"h\x09",
    "negative-memo": lambda: b"Np-1\n",
    "empty-stack": lambda: b"0000000000",
    "no-mark": lambda: b"NNt",
    "odd-pairs": lambda: b"}(NNNu",
    "append-to-number": lambda: b"K\x01K\x02a",
    "fill-a-tuple": lambda: b")K\x01K\x02s",
    "fill-a-tensor": lambda: opcodes(WEIGHTS["fc.bias"]) + b"K\x00K\x02s",
    "unknown-opcode": lambda: b"\xff",
    "call-a-number": lambda: b"K\x01)R",
    "call-with-a-number": lambda: opcodes(Name("collections", "OrderedDict")) + b"K\x01R",
    "build-a-number": lambda: b"K\x01}b",
    "global-without-words": lambda: b"N\x93",
    "global-of-numbers": lambda: b"K\x01K\x02\x93",
    "endless-global": lambda: b"c" + b"a" * 2_000_000 + b"\nb\n",
}
FINE = (
    "doubled-tuples", "doubled-lists", "doubled-dicts", "doubled-records", "cycle", "cyclic-dict", "cyclic-tuple",
    "same-hash-pairs", "doubled-modules", "module-in-itself", "module-in-itself-long", "deep-tuples", "deep-lists",
    "deep-marks", "deep-dicts", "high-memo", "negative-memo", "long-frame",
)  # fmt: skip
# The same under keys that a reader looks into for facts, and numbers that no float holds.
FACTS: dict[str, Callable[[], Any]] = {
    "huge-epoch": lambda: {"epoch": 10**5000, "global_step": -(10**5000)},
    "huge-accuracy": lambda: {"best_acc": 10**5000, "metrics": {"loss": 10**5000}},
    "huge-arguments": lambda: {"model_args": {"n_layer": 10**5000}, "config": {"a": 10**5000}},
    "huge-rate": lambda: {"optimizer": {"state": {}, "param_groups": [{"lr": 10**5000, "params": [10**18]}]}},
    "doubled-arguments": lambda: {
        "model_args": Raw(dicts()),
        "hyper_parameters": Raw(lists()),
        "config": Raw(records()),
    },
    "doubled-metrics": lambda: {"metrics": {"loss": Raw(tuples())}, "epoch": Raw(tuples())},
    "doubled-optimizer": lambda: {"optimizer": {"state": Raw(dicts()), "param_groups": Raw(lists())}},
    "cyclic-arguments": lambda: {"model_args": Raw(b"}q\x00" + opcodes("self") + b"h\x00s")},
    "hostile-facts": lambda: {"epoch": "<script>alert(1)</script>", "metrics": {"<img src=x onerror=alert(1)>": 0.5}},
}


def cases() -> Iterator[Case]:
    """Yield each beside good weights in a torch zip; and pickles that are no pickle or never end."""
    for name, code in ODD.items():
        verdict = "ok" if name in FINE else "warning" if "layer" in name else "refused"
        yield Case(f"pickle-{name}", partial(_lay, name, lambda code=code: beside(Raw(code()))), verdict)
    for name, facts in FACTS.items():
        yield Case(f"pickle-{name}", partial(_lay, name, lambda facts=facts: {"model": WEIGHTS, **facts()}), "ok")
    for name, pickled in _broken().items():
        yield Case(f"pickle-{name}", partial(_broken_file, name, pickled), "refused")


def _lay(name: str, value: Callable[[], Any], folder: Path) -> Path:
    return torch_zip(folder / f"pickle-{name}.pt", program(value(), 4))


def _broken_file(name: str, pickled: bytes, folder: Path) -> Path:
    return torch_zip(folder / f"pickle-{name}.pt", pickled)


def _broken() -> dict[str, bytes]:
    good = program(beside(1))
    many: Any = OrderedDict((f"w{n}", WEIGHTS["fc.bias"]) for n in range(3))
    return {
        "empty": b"",
        "no-stop": good[:-1],
        "only-stop": b".",
        "future-protocol": b"\x80\x2a" + good[2:],
        "two-values": b"\x80\x02NN.",
        "random": bytes(range(256)) * 4,
        "in-record": program(Call(Name("my.package", "Trainer"), (1, 2), {"secret": many})) + b"garbage",
    }
