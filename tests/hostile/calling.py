"""Functions that a pickle may name: of the system, of Python, of the libraries that lie beside torch.

Scanners keep lists of forbidden names; most of these have been on none of them.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from hostile.assemble import CANARY, Call, Case, Name, beside, program, torch_zip
from hostile.executing import attack, touch

Arguments = Callable[[Path], tuple[Any, ...]]
RUN: Arguments = lambda folder: (touch(folder),)
LIST: Arguments = lambda folder: (["touch", str(folder / CANARY)],)
FILE: Arguments = lambda folder: (str(folder / CANARY),)
NONE: Arguments = lambda folder: ()


def statement(folder: Path) -> str:
    return f"import os; os.system({touch(folder)!r})"


def script(folder: Path, name: str) -> str:
    """Write a Python file beside the checkpoint, as a zip or folder that was unpacked could."""
    (folder / name).write_text(f"import os\nos.system({touch(folder)!r})\n")
    return str(folder / name)


def nested(folder: Path) -> bytes:
    return program(attack(folder))


def inner(folder: Path) -> bytes:
    content = torch_zip(folder / "inner", program(attack(folder))).read_bytes()
    (folder / "inner").unlink()
    return content


def left(folder: Path, suffix: str = "pkl") -> str:
    """Leave a second pickle on the disk, which the first one opens."""
    (folder / f"second.{suffix}").write_bytes(nested(folder))
    return str(folder / f"second.{suffix}")


def hub(folder: Path) -> tuple[Any, ...]:
    (folder / "repository").mkdir()
    script(folder, "repository/hubconf.py")
    return (str(folder / "repository"), "model")


# what is called: (module, name): the arguments, and whether a careless reader leaves the canary
CALLS: dict[tuple[str, str], tuple[Arguments, bool]] = {
    ("posix", "system"): (RUN, True),
    ("nt", "system"): (RUN, False),
    ("os", "popen"): (RUN, False),
    ("os", "mkdir"): (FILE, True),
    ("os", "execvp"): (lambda folder: ("touch", ["touch", str(folder / CANARY)]), True),
    ("os", "spawnvp"): (lambda folder: (0, "touch", ["touch", str(folder / CANARY)]), True),
    ("subprocess", "call"): (LIST, True),
    ("subprocess", "check_output"): (LIST, True),
    ("subprocess", "getoutput"): (RUN, True),
    ("subprocess", "Popen"): (LIST, False),
    ("commands", "getoutput"): (RUN, True),
    ("pty", "spawn"): (LIST, False),
    ("builtins", "eval"): (lambda folder: (f"__import__('os').system({touch(folder)!r})",), True),
    ("builtins", "exec"): (lambda folder: (statement(folder),), True),
    ("__builtin__", "eval"): (lambda folder: (f"__import__('os').system({touch(folder)!r})",), True),
    ("builtins", "compile"): (lambda folder: (statement(folder), "x", "exec"), False),
    ("builtins", "__import__"): (lambda folder: ("antigravity",), False),
    ("builtins", "getattr"): (lambda folder: (Name("os", "path"), "join"), False),
    ("builtins", "open"): (lambda folder: (str(folder / CANARY), "w"), True),
    ("io", "open"): (lambda folder: (str(folder / CANARY), "w"), True),
    ("builtins", "input"): (NONE, False),
    ("builtins", "breakpoint"): (NONE, False),
    ("timeit", "timeit"): (lambda folder: ("0", statement(folder)), True),
    ("cProfile", "run"): (lambda folder: (statement(folder),), True),
    ("runpy", "run_path"): (lambda folder: (script(folder, "second.py"),), True),
    ("importlib", "import_module"): (lambda folder: ("this",), False),
    ("webbrowser", "open"): (lambda folder: ("http://127.0.0.1:9/",), False),
    ("ctypes", "CDLL"): (lambda folder: (str(folder / "library.so"),), False),
    ("pickle", "loads"): (lambda folder: (nested(folder),), True),
    ("_pickle", "loads"): (lambda folder: (nested(folder),), True),
    ("dill", "loads"): (lambda folder: (nested(folder),), False),
    ("cloudpickle", "loads"): (lambda folder: (nested(folder),), False),
    ("joblib", "load"): (lambda folder: (left(folder),), True),
    ("pandas", "read_pickle"): (lambda folder: (left(folder),), True),
    ("pandas", "eval"): (lambda folder: ("1 + 1",), False),
    ("torch", "load"): (lambda folder: (left(folder),), False),
    ("torch.storage", "_load_from_bytes"): (lambda folder: (inner(folder),), True),
    ("torch.hub", "load"): (hub, False),
    ("torch.hub", "_load_local"): (hub, True),
    ("torch.jit", "load"): (lambda folder: (left(folder),), False),
    ("torch.utils.collect_env", "run"): (RUN, True),
    ("torch.utils.cpp_extension", "load_inline"): (lambda folder: ("x", "int f();"), False),
    ("numpy.testing._private.utils", "runstring"): (lambda folder: (statement(folder), {}), True),
    ("numpy", "load"): (lambda folder: (left(folder), None, True), True),
    ("numpy", "memmap"): (lambda folder: (str(folder / CANARY), "uint8", "w+", 0, (1,)), True),
    ("numpy", "savetxt"): (lambda folder: (str(folder / CANARY), [1.0]), True),
    ("logging", "FileHandler"): (FILE, True),
    ("sqlite3", "connect"): (FILE, True),
    ("zipfile", "ZipFile"): (lambda folder: (str(folder / CANARY), "w"), True),
    ("shutil", "copyfile"): (lambda folder: (script(folder, "second.py"), str(folder / CANARY)), True),
    ("urllib.request", "urlretrieve"): (lambda folder: ("file:///etc/hostname", str(folder / CANARY)), True),
    ("socket", "create_connection"): (lambda folder: (("127.0.0.1", 9), 1.0), False),
    ("http.client", "HTTPSConnection"): (lambda folder: ("127.0.0.1",), False),
    ("sys", "exit"): (NONE, False),
    ("os", "_exit"): (lambda folder: (0,), False),
    ("os", "abort"): (NONE, False),
    ("signal", "raise_signal"): (lambda folder: (9,), False),
    ("time", "sleep"): (lambda folder: (3600,), False),
    ("builtins", "bytearray"): (lambda folder: (2**37,), False),
    ("builtins", "bytes"): (lambda folder: (2**37,), False),
    ("builtins", "pow"): (lambda folder: (10, 10**9), False),
    ("torch", "FloatTensor"): (lambda folder: (64, 64), False),
    ("torch", "FloatStorage"): (lambda folder: (2**40,), False),
    ("torch", "zeros"): (lambda folder: (2**40,), False),
    ("numpy", "zeros"): (lambda folder: (2**40,), False),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Yield a checkpoint with good weights for each function, and chains of harmless ones."""
    for (module, name), (arguments, canary) in CALLS.items():
        stem = f"call-{module}-{name}"
        word = {"bytes": "memory", "_load_from_bytes": "storage"}.get(name, name)
        write = _write(stem, partial(_called, Name(module, name), arguments))
        yield Case(stem, write, "refused", (word,), canary)
    for stem, (chain, word) in _CHAINS.items():
        yield Case(f"chain-{stem}", _write(f"chain-{stem}", chain), "refused", (word,), canary=True)


def _called(target: Name, arguments: Arguments, folder: Path) -> Call:
    return Call(target, arguments(folder))


def _write(stem: str, value: Callable[[Path], Any]) -> Callable[[Path], Path]:
    return lambda folder: torch_zip(folder / f"{stem}.pt", program(beside(value(folder))))


def _partial(folder: Path) -> Any:
    return Call(Call(Name("functools", "partial"), (Name("os", "system"), touch(folder))))


def _getter(folder: Path) -> Any:
    return Call(
        Call(Call(Name("operator", "attrgetter"), ("system",)), (Call(Name("builtins", "__import__"), ("os",)),)),
        RUN(folder),
    )


def _method(folder: Path) -> Any:
    return Call(
        Call(Name("operator", "methodcaller"), ("system", touch(folder))),
        (Call(Name("builtins", "__import__"), ("os",)),),
    )


def _map(folder: Path) -> Any:
    return Call(Name("builtins", "list"), (Call(Name("builtins", "map"), (Name("os", "system"), [touch(folder)])),))


def _reduced(folder: Path) -> Any:
    return Call(Name("functools", "reduce"), (Name("subprocess", "call"), [["touch", str(folder / CANARY)], -1]))


def _starmap(folder: Path) -> Any:
    return Call(
        Name("collections", "deque"), (Call(Name("itertools", "starmap"), (Name("os", "system"), [RUN(folder)])),)
    )


def _resolved(folder: Path) -> Any:
    return Call(Call(Name("pkgutil", "resolve_name"), ("os:system",)), RUN(folder))


def _code(folder: Path) -> Any:
    compiled = marshal.dumps(compile(f"__import__('os').system({touch(folder)!r})", "x", "eval"))
    return Call(
        Call(
            Name("types", "FunctionType"),
            (Call(Name("marshal", "loads"), (compiled,)), {"__builtins__": Name("builtins", "__dict__")}),
        )
    )


def _default(folder: Path) -> Any:
    """Let a defaultdict call its factory when a missing key is looked up."""
    factory = Call(Name("functools", "partial"), (Name("os", "system"), touch(folder)))
    return Call(Name("operator", "getitem"), (Call(Name("collections", "defaultdict"), (factory,)), "missing"))


def _dynamic_type(folder: Path) -> Any:
    """Make a class whose __getitem__ is os.system, and index an instance of it."""
    made = Call(Name("builtins", "type"), ("X", (Name("builtins", "str"),), {"__add__": Name("os", "system")}))
    return Call(Name("operator", "methodcaller"), ("__add__", touch(folder))), made


def _class(folder: Path) -> Any:
    maker, kind = _dynamic_type(folder)
    return Call(maker, (kind,))


def _library(folder: Path) -> Any:
    system = Call(Name("builtins", "getattr"), (Call(Name("ctypes", "CDLL"), (None,)), "system"))
    return Call(system, (touch(folder).encode(),))


_CHAINS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "partial": (_partial, "system"),
    "attrgetter": (_getter, ""),
    "methodcaller": (_method, ""),
    "map": (_map, ""),
    "reduce": (_reduced, ""),
    "starmap": (_starmap, ""),
    "resolve-name": (_resolved, "resolve_name"),
    "code-object": (_code, ""),
    "default-factory": (_default, ""),
    "class": (_class, ""),
    "ctypes": (_library, ""),
}
