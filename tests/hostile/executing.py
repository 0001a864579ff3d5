"""Pickles that run something when they are opened carelessly: every opcode, every protocol, every container."""

from __future__ import annotations

import gzip
import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from hostile.assemble import (
    CANARY,
    DATA,
    VECTORS,
    WEIGHTS,
    Call,
    Case,
    Entry,
    Exploit,
    Name,
    Raw,
    beside,
    dumped,
    opcodes,
    pack,
    program,
    tensor,
    torch_legacy,
    torch_tar,
    torch_zip,
    zip_records,
)

SYSTEM = Name("os", "system")


def touch(folder: Path) -> str:
    return f"touch '{folder / CANARY}'"


def attack(folder: Path) -> Call:
    return Call(SYSTEM, (touch(folder),))


def cases() -> Iterator[Case]:
    """Yield all of them."""
    yield from _protocols()
    yield from _opcodes()
    yield from _containers()


def _protocols() -> Iterator[Case]:
    writers = {"zip": torch_zip, "legacy": torch_legacy, "plain": lambda path, code: _bytes(path, code)}
    for protocol in range(6):
        for layout, write in writers.items():

            def lay(folder: Path, protocol: int = protocol, write: Any = write, layout: str = layout) -> Path:
                value = {"model": {"w": Exploit(os.system, touch(folder))}}
                path = write(folder / f"system-{layout}-protocol-{protocol}.pt", dumped(value, protocol))
                return Path(path)

            yield Case(f"system-{layout}-protocol-{protocol}", lay, "refused", ("system",), canary=True)


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _opcodes() -> Iterator[Case]:
    """Each way that a pickle has of calling something."""
    text = lambda folder: opcodes(touch(folder))
    by_opcode: dict[str, tuple[Callable[[Path], bytes], str, bool]] = {
        "inst": (lambda folder: b"(" + text(folder) + b"ios\nsystem\n", "system", True),
        "obj": (lambda folder: b"(" + opcodes(SYSTEM) + text(folder) + b"o", "system", True),
        "newobj": (lambda folder: _newobj(Name("subprocess", "Popen"), ("true",)), "Popen", False),
        "newobj-ex": (lambda folder: _newobj_ex(folder), "Popen", False),
        "stack-global": (lambda folder: opcodes(Call(Name("os", "system", True), (touch(folder),))), "system", True),
        "dotted-global": (lambda folder: _dotted(folder), "system", True),
        "memo-global": (lambda folder: _from_memo(folder), "system", True),
        "build-setstate": (_setstate, "system", True),
        "build-slots": (lambda folder: _slots(folder), "", False),
        "ext1": (lambda folder: b"\x82\x01" + opcodes((touch(folder),)) + b"R", "", False),
        "ext2": (lambda folder: b"\x83\x01\x01" + opcodes((touch(folder),)) + b"R", "", False),
        "ext4": (lambda folder: b"\x84\x01\x01\x01\x01" + opcodes((touch(folder),)) + b"R", "", False),
        "persid": (lambda folder: b"Pmodule:os.system\n", "", False),
        "binpersid": (lambda folder: opcodes(("module", SYSTEM, "x.py", "import os")) + b"Q", "", False),
        "text-opcodes": (lambda folder: f"cos\nsystem\n(V{touch(folder)}\ntR".encode(), "system", True),
        "reduce-of-a-result": (lambda folder: opcodes(_found(folder)), "", True),
    }
    for name, (code, word, canary) in by_opcode.items():
        for layout, write in (("zip", torch_zip), ("plain", _bytes)):

            def lay(folder: Path, code: Any = code, write: Any = write, stem: str = f"{name}-{layout}") -> Path:
                value = beside(Raw(code(folder))) if write is torch_zip else {"note": Raw(code(folder))}
                return Path(write(folder / f"opcode-{stem}.pt", program(value, 4)))

            words = (word,) if word else ()
            yield Case(f"opcode-{name}-{layout}", lay, "refused", words, canary)


def _newobj(kind: Name, arguments: tuple[Any, ...]) -> bytes:
    return opcodes(kind) + opcodes(arguments) + b"\x81"


def _newobj_ex(folder: Path) -> bytes:
    return (
        opcodes(Name("subprocess", "Popen")) + opcodes(()) + opcodes({"args": touch(folder), "shell": True}) + b"\x92"
    )


def _dotted(folder: Path) -> bytes:
    return opcodes(Call(Name("pathlib", "os.system", True), (touch(folder),)))


def _from_memo(folder: Path) -> bytes:
    """Put the two words away, throw them off the stack, take them up again."""
    words = opcodes("os") + b"\x940" + opcodes("system") + b"\x940"
    return words + b"h\x00h\x01\x93" + opcodes((touch(folder),)) + b"R"


def _setstate(folder: Path) -> bytes:
    made = opcodes(Name("types", "SimpleNamespace")) + b")R"
    return made + opcodes({"__setstate__": SYSTEM}) + b"b" + opcodes(touch(folder)) + b"b"


def _slots(folder: Path) -> bytes:
    made = opcodes(Name("types", "SimpleNamespace")) + b")R"
    return made + opcodes((None, {"__class__": Name("subprocess", "Popen"), "args": touch(folder)})) + b"b"


def _found(folder: Path) -> Call:
    return Call(
        Call(Name("builtins", "getattr"), (Call(Name("importlib", "import_module"), ("os",)), "system")),
        (touch(folder),),
    )


def _containers() -> Iterator[Case]:
    """The same call in every place that somebody unpickles."""
    layouts: dict[str, tuple[Callable[[Path, str], Path], bool]] = {
        "legacy": (lambda folder, name: torch_legacy(folder / f"{name}.pt", program(beside(attack(folder)))), True),
        "legacy-tar": (lambda folder, name: torch_tar(folder / f"{name}.pt", {**VECTORS, "x": attack(folder)}), True),
        "legacy-magic": (lambda folder, name: _bytes(folder / f"{name}.pt", program(attack(folder)) * 4), True),
        "legacy-keys": (_legacy_keys, True),
        "lightning": (_lightning, True),
        "optimizer": (_optimizer, True),
        "metadata-attribute": (_metadata, True),
        "hooks": (_hooks, False),
        "parameter": (_parameter, True),
        "storage-id": (_storage_id, True),
        "dictionary-key": (lambda folder, name: torch_zip(folder / f"{name}.pt", program({attack(folder): 1})), True),
        "after-stop": (_after_stop, False),
        "duplicate-record": (partial(_twin, twin="archive/data.pkl"), False),
        "case-twin": (partial(_twin, twin="archive/DATA.pkl"), False),
        "hidden-record": (partial(_twin, twin=""), False),
        "constants": (_torchscript, False),
        "torch-export": (_pt2, False),
        "nested-zip": (_nested, False),
        "npz": (_npz, True),
        "npy": (_npy, True),
        "distributed": (_dcp, True),
        "gzip": (_gzip, False),
        "hugging-face-bin": (_bin, True),
        "joblib": (
            lambda folder, name: _bytes(folder / f"{name}.joblib", dumped(Exploit(os.system, touch(folder)), 4)),
            True,
        ),
    }
    for name, (write, canary) in layouts.items():
        yield Case(f"inside-{name}", partial(_named, write, f"inside-{name}"), "refused", (), canary)


def _named(write: Callable[[Path, str], Path], name: str, folder: Path) -> Path:
    return write(folder, name)


def _legacy_keys(folder: Path, name: str) -> Path:
    path = torch_legacy(folder / f"{name}.pt", program({"model": WEIGHTS}))
    content = path.read_bytes()
    keys = program(list(DATA))
    return _bytes(path, content.replace(keys, program([*DATA, attack(folder)])))


def _lightning(folder: Path, name: str) -> Path:
    value = {
        "pytorch-lightning_version": "2.6.0",
        "state_dict": WEIGHTS,
        "hyper_parameters": attack(folder),
        "epoch": 1,
    }
    return torch_zip(folder / f"{name}.ckpt", program(value))


def _optimizer(folder: Path, name: str) -> Path:
    state = {"state": {0: {"exp_avg": attack(folder)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    return torch_zip(folder / f"{name}.pt", program({"model": WEIGHTS, "optimizer": state}))


def _metadata(folder: Path, name: str) -> Path:
    state = Call(Name("collections", "OrderedDict"), (), {"_metadata": attack(folder)})
    return torch_zip(folder / f"{name}.pt", program({"model": state, "ema": WEIGHTS}))


def _hooks(folder: Path, name: str) -> Path:
    """Leave functions in the place of backward hooks: torch calls them in every backward pass."""
    hooked = tensor(WEIGHTS["fc.bias"].arguments[0], (2,), hooks=OrderedDict({0: SYSTEM}))
    return torch_zip(folder / f"{name}.pt", program({"model": {**WEIGHTS, "fc.bias": hooked}}))


def _parameter(folder: Path, name: str) -> Path:
    rebuild = Name("torch._utils", "_rebuild_parameter_with_state")
    evil = Call(rebuild, (WEIGHTS["fc.bias"], True, OrderedDict(), attack(folder)))
    return torch_zip(folder / f"{name}.pt", program({"model": {**WEIGHTS, "fc.bias": evil}}))


def _storage_id(folder: Path, name: str) -> Path:
    evil = Raw(opcodes(("storage", attack(folder), "0", "cpu", 2)) + b"Q")
    return torch_zip(folder / f"{name}.pt", program({"model": {**WEIGHTS, "fc.bias": tensor(evil)}}))


def _after_stop(folder: Path, name: str) -> Path:
    return torch_zip(folder / f"{name}.pt", program(beside(1)) + program(attack(folder)))


def _twin(folder: Path, name: str, twin: str) -> Path:
    records = [Entry(each, content) for each, content in zip_records(program(beside(1))).items()]
    evil = Entry(twin or "archive/data.pkl", program(attack(folder)), hidden=not twin)
    return _bytes(folder / f"{name}.pt", pack([evil, *records]))


def _torchscript(folder: Path, name: str) -> Path:
    more = {"constants.pkl": program((attack(folder),)), "code/__torch__.py": b"class Net(Module):\n  pass\n"}
    return torch_zip(folder / f"{name}.pt", program({"model": WEIGHTS}), **more)


def _pt2(folder: Path, name: str) -> Path:
    weight = {"path_name": "weight_0", "use_pickle": True}
    records = {
        f"{name}/archive_format": b"pt2",
        f"{name}/archive_version": b"0",
        f"{name}/.data/version": b"3",
        f"{name}/models/model.json": b'{"graph_module": {}}',
        f"{name}/data/weights/model_weights_config.json": json.dumps({"config": {"w": weight}}).encode(),
        f"{name}/data/weights/weight_0": program(attack(folder)),
        f"{name}/data/constants/model_constants_config.json": b'{"config": {}}',
    }
    return _bytes(folder / f"{name}.pt2", pack([Entry(each, content) for each, content in records.items()]))


def _nested(folder: Path, name: str) -> Path:
    inner = torch_zip(folder / "inner", program(beside(attack(folder)))).read_bytes()
    (folder / "inner").unlink()
    return torch_zip(folder / f"{name}.pt", inner)


def _objects(folder: Path) -> np.ndarray[Any, Any]:
    return np.array([Exploit(os.system, touch(folder)), 1], dtype=object)


def _npz(folder: Path, name: str) -> Path:
    np.savez(folder / f"{name}.npz", weight=np.ones(3, np.float32), evil=_objects(folder))
    return folder / f"{name}.npz"


def _npy(folder: Path, name: str) -> Path:
    np.save(folder / f"{name}.npy", _objects(folder))
    return folder / f"{name}.npy"


def _dcp(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / ".metadata").write_bytes(program(attack(folder)))
    (folder / name / "__0_0.distcp").write_bytes(DATA["0"])
    return folder / name


def _gzip(folder: Path, name: str) -> Path:
    return _bytes(folder / f"{name}.pt.gz", gzip.compress(program(attack(folder)), mtime=0))


def _bin(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "config.json").write_text('{"model_type": "bert", "hidden_size": 2}')
    torch_zip(folder / name / "pytorch_model.bin", program(WEIGHTS | {"evil": attack(folder)}))
    return folder / name
