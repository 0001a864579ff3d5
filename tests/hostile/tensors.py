"""Tensors that reach where they must not: out of their storage, over one another, beyond any memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hostile.assemble import (
    BIAS,
    DATA,
    WEIGHT,
    WEIGHTS,
    Call,
    Case,
    Name,
    Storage,
    floats,
    program,
    tensor,
    torch_legacy,
    torch_zip,
)

HUGE = 2**40
INT64 = 2**63


def with_bias(bias: Any) -> dict[str, Any]:
    return {"model": OrderedDict({**WEIGHTS, "fc.bias": bias})}


def rebuild(name: str, *arguments: Any) -> Call:
    return Call(Name("torch._utils", name), arguments)


INDEX, ENTRIES = Storage("2", 2, "LongStorage"), Storage("1", 2)
SIZE = lambda *shape: Call(Name("torch", "Size"), (list(shape),))
COO = Name("torch", "sparse_coo")


def _sparse(shape: tuple[int, ...], coalesced: bool = False) -> Call:
    indices, values = tensor(INDEX, (1, 2)), tensor(ENTRIES, (2,))
    return rebuild("_rebuild_sparse_tensor", COO, (indices, values, SIZE(*shape), coalesced))


def _rows() -> Call:
    """Write a CSR tensor of two columns whose column indices point far away."""
    row, column = tensor(Storage("3", 2, "LongStorage"), (2,)), tensor(INDEX, (2,))
    data = (row, column, tensor(ENTRIES, (2,)), SIZE(1, 2))
    return rebuild("_rebuild_sparse_tensor", Name("torch", "sparse_csr"), data)


def longs(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


FAR = {"2": longs(2**40, -7), "3": longs(0, 2)}

# name: (the tensor in the place of fc.bias, further storages)
REFUSED: dict[str, tuple[Any, Mapping[str, bytes]]] = {
    "offset-beyond": (tensor(BIAS, (2,), offset=1), {}),
    "offset-negative": (tensor(BIAS, (2,), offset=-1), {}),
    "offset-huge": (tensor(BIAS, (2,), offset=INT64 - 1), {}),
    "offset-overflow": (tensor(BIAS, (2,), offset=2**64 - 1), {}),
    "offset-text": (tensor(BIAS, (2,), offset="0"), {}),
    "offset-float": (tensor(BIAS, (2,), offset=0.5), {}),
    "shape-beyond": (tensor(BIAS, (3,)), {}),
    "shape-negative": (tensor(BIAS, (-2,), (1,)), {}),
    "shape-huge": (tensor(BIAS, (10**18,)), {}),
    "shape-overflow": (tensor(BIAS, (2**32, 2**32), (0, 0)), {}),
    "shape-overflow-to-two": (tensor(BIAS, (2**63 + 1, 2), (2, 1)), {}),
    "shape-empty-times-huge": (tensor(BIAS, (0, 2**62, 2**62), (1, 1, 1)), {}),
    "shape-text": (tensor(BIAS, ("2",), (1,)), {}),
    "shape-bool": (tensor(BIAS, (True, 2), (2, 1)), {}),
    "shape-longer-than-stride": (tensor(BIAS, (1, 2), (1,)), {}),
    "stride-beyond": (tensor(BIAS, (2,), (2,)), {}),
    "stride-negative": (tensor(BIAS, (2,), (-1,)), {}),
    "stride-overflow": (tensor(BIAS, (2,), (INT64 - 1,)), {}),
    "stride-zero-terabytes": (tensor(BIAS, (HUGE,), (0,)), {}),
    "stride-zero-everywhere": (tensor(BIAS, (10**6, 10**6, 10**6), (0, 0, 0)), {}),
    "stride-overlap-terabytes": (tensor(WEIGHT, (2, HUGE), (1, 0)), {}),
    "stride-overlap": (tensor(WEIGHT, (4, 4), (1, 0)), {}),
    "rank-65": (tensor(BIAS, (1,) * 64 + (2,)), {}),
    "rank-thousand": (tensor(BIAS, (1,) * 5000, (1,) * 5000), {}),
    "storage-larger-than-record": (tensor(Storage("1", 3), (3,)), {}),
    "storage-smaller-than-record": (tensor(Storage("1", 1), (1,)), {}),
    "storage-wider": (tensor(Storage("1", 2, "DoubleStorage"), (2,)), {}),
    "storage-huge": (tensor(Storage("1", 10**15), (2,)), {}),
    "storage-negative": (tensor(Storage("1", -2), (2,)), {}),
    "storage-missing": (tensor(Storage("77", 2), (2,)), {}),
    "storage-traversal": (tensor(Storage("../data.pkl", 2), (2,)), {}),
    "storage-of-two-types": (tensor(Storage("0", 6, "IntStorage"), (6,)), {}),
    "storage-of-no-type": (tensor(Storage("1", 2, "Tensor"), (2,)), {}),
    "storage-of-a-function": (tensor(Storage("1", 2, "load"), (2,)), {}),
    "sparse-far-indices": (_sparse((2,)), FAR),
    "sparse-csr-far": (_rows(), FAR),
    "sparse-terabytes": (_sparse((HUGE,)), {"2": longs(0, 1)}),
    "sparse-negative": (_sparse((-2,)), {"2": longs(0, 1)}),
    "quantised-stride": (
        rebuild(
            "_rebuild_qtensor",
            Storage("1", 8, "QInt8Storage"),
            0,
            (8,),
            (1000,),
            (Name("torch", "per_tensor_affine"), 0.1, 0),
            False,
            OrderedDict(),
        ),
        {},
    ),
    "quantised-scale": (
        rebuild(
            "_rebuild_qtensor",
            Storage("1", 8, "QInt8Storage"),
            0,
            (8,),
            (1,),
            (Name("torch", "per_tensor_affine"), "0.1", 0),
            False,
            OrderedDict(),
        ),
        {},
    ),
    "without-arguments": (rebuild("_rebuild_tensor_v2"), {}),
    "too-many-arguments": (rebuild("_rebuild_tensor_v2", *range(20)), {}),
    "wrapper-subclass": (
        rebuild(
            "_rebuild_wrapper_subclass",
            Name("os", "system"),
            Name("torch", "float32"),
            (2,),
            (1,),
            0,
            Name("torch", "strided"),
            "cpu",
            False,
        ),
        {},
    ),
    "typed-by-another": (
        Call(
            Name("torch._tensor", "_rebuild_from_type_v2"),
            (Name("os", "system"), Name("torch", "Tensor"), ("true",), {}),
        ),
        {},
    ),
    "empty-storage": (Call(Name("torch", "UntypedStorage"), (HUGE,)), {}),
}


def _names() -> dict[str, tuple[str, str]]:
    """Return names that break pages, terminals and tables, with their verdicts."""
    return {
        "html": ("<img src=x onerror=alert(1)><script>alert(2)</script>", "ok"),
        "markdown": ("[a](javascript:alert(1)) ![b](http://evil.example/b.png) :red[c] $d$", "ok"),
        "link": ("<a href='http://evil.example/'>more</a>", "ok"),
        "formula": ('=HYPERLINK("http://evil.example")', "ok"),
        "control": ("w\x1b[2J\x07\r\n\x00", "refused"),
        "bidi": ("w\u202egnp.exe\u2066", "refused"),
        "long": ("w" * 10_000, "refused"),
        "empty": ("", "ok"),
        "surrogate": ("w\ud800", "refused"),
    }


def cases() -> Iterator[Case]:
    """Yield bad tensors in both layouts of torch, shared and hostile names."""
    for name, (bias, more) in REFUSED.items():
        for layout, write in (("zip", torch_zip), ("legacy", torch_legacy)):
            if layout == "legacy" and name.startswith(("sparse", "quantised", "storage-key", "typed", "wrapper")):
                continue

            def lay(
                folder: Path, bias: Any = bias, more: Any = more, write: Any = write, stem: str = f"{name}-{layout}"
            ) -> Path:
                return Path(write(folder / f"tensor-{stem}.pt", program(with_bias(bias)), {**DATA, **more}))

            yield Case(f"tensor-{name}-{layout}", lay, "refused")
    for name, (text, verdict) in _names().items():

        def named(folder: Path, text: str = text, name: str = name) -> Path:
            value = OrderedDict({"fc.weight": WEIGHTS["fc.weight"], text: WEIGHTS["fc.bias"]})
            return torch_zip(folder / f"name-{name}.pt", program({"model": value}))

        yield Case(f"name-{name}", named, verdict)
    yield Case("many-views", _many_views, "refused")


def _many_views(folder: Path) -> Path:
    """Show a megabyte thirty thousand times."""
    numel = 2**18
    whole = Storage("0", numel)
    value = OrderedDict((f"w{n}", tensor(whole, (numel - n,), offset=n)) for n in range(30_000))
    return torch_zip(folder / "many-views.pt", program(value), {"0": floats(*([0.5] * numel))})
