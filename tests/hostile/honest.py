"""Awkward but honest: what training scripts really leave behind, written by the libraries themselves."""

from __future__ import annotations

import argparse
import datetime
import decimal
import enum
import functools
import pickle
import random
import uuid
import warnings
from collections import ChainMap, Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from hostile.assemble import Case
from torch import nn

Point = namedtuple("Point", "x y")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Flags(enum.Flag):
    A = 1
    B = 2


@dataclass
class Config:
    rate: float = 0.1
    sizes: tuple[int, ...] = (3, 4)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slotted:
    depth: int = 3


class Net(nn.Module):
    """A user's own class, which the reader never imports."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.act = functools.partial(nn.functional.leaky_relu, negative_slope=0.2)
        self.make = functools.partial(nn.GELU, approximate="tanh")
        self.fc = nn.Linear(8, 3)


def halved(epoch: int) -> float:
    return 0.5**epoch


class MyDict(OrderedDict[str, Any]):
    """A subclass, as configuration libraries make."""


def net() -> Net:
    torch.manual_seed(7)
    return Net()


def state() -> dict[str, torch.Tensor]:
    return dict(net().state_dict())


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), 0.001)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def besides(**more: Any) -> dict[str, Any]:
    return {"model": state(), **more}


def schedules() -> list[dict[str, Any]]:
    _, optimizer = trained()
    kinds = torch.optim.lr_scheduler
    made = [
        kinds.MultiStepLR(optimizer, [1, 2]),
        kinds.ReduceLROnPlateau(optimizer),
        kinds.OneCycleLR(optimizer, 0.1, 10),
        kinds.CosineAnnealingWarmRestarts(optimizer, 5),
        kinds.LambdaLR(optimizer, halved),
    ]
    return [each.state_dict() for each in made]


def omega() -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create({"model": {"width": 64, "layers": [1, 2]}, "seed": 3, "name": "${model.width}"})


def recipe() -> dict[str, Any]:
    """Return what torchvision's references save: weights, optimizer, schedule, EMA, scaler and arguments."""
    model, optimizer = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        averaged = torch.optim.swa_utils.AveragedModel(model)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedules()[2],
        "epoch": 12,
        "args": argparse.Namespace(lr=0.1, data_path=Path("/data"), amp=True, device=torch.device("cuda", 0)),
        "model_ema": averaged.state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
    }


def tied() -> dict[str, torch.Tensor]:
    shared = torch.arange(12.0).reshape(4, 3)
    return {"embed.weight": shared, "head.weight": shared}


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "view": base[1:3, ::2],
        "turned": base.t(),
        "row": base[2],
        "last": torch.zeros(0, 3),
    }


def small() -> dict[str, torch.Tensor]:
    return {f"layers.{n}.weight": torch.full((2,), n + 1.0) for n in range(5000)}


def _hooked() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(3))
    parameter.note = "kept by nobody"  # type: ignore[attr-defined]
    return {"w": parameter, "v": torch.ones(2)}


# name: (what is saved, verdict)
VALUES: dict[str, tuple[Callable[[], Any], str]] = {
    "state-dict": (state, "ok"),
    "ordered": (lambda: net().state_dict(), "ok"),
    "namespace": (lambda: besides(args=argparse.Namespace(lr=0.1, sizes=[1, 2])), "ok"),
    "numpy-scalars": (
        lambda: besides(best_acc=np.float64(0.93), epoch=np.int64(4), flag=np.bool_(True), loss=np.float32(1)),
        "ok",
    ),
    "numpy-arrays": (lambda: besides(curve=np.arange(5.0), names=np.array(["a", "b"])), "ok"),
    "numpy-objects": (lambda: besides(curve=np.array([{"a": 1}, None], dtype=object)), "ok"),
    "numpy-random": (lambda: besides(rng=np.random.RandomState(3).get_state()), "ok"),
    "omegaconf": (lambda: besides(cfg=omega()), "ok"),
    "dataclass": (lambda: besides(config=Config(extra={"a": Point(1, 2)}), slotted=Slotted()), "ok"),
    "enum": (lambda: besides(colour=Colour.RED, level=Level.HIGH, flags=Flags.A | Flags.B), "ok"),
    "pathlib": (lambda: besides(path=Path("/data/x"), pure=PurePosixPath("a")), "ok"),
    "datetime": (
        lambda: besides(when=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), took=datetime.timedelta(hours=1)),
        "ok",
    ),
    "numbers": (
        lambda: besides(
            a=decimal.Decimal("0.1"), b=Fraction(1, 3), c=1 + 2j, d=2**100, e=uuid.UUID(int=5), f=range(3), g=slice(1)
        ),
        "ok",
    ),
    "collections": (
        lambda: besides(
            a=defaultdict(list, x=[1]),
            b=Counter("aab"),
            c=deque([1], 3),
            d={1, 2},
            e=frozenset({3}),
            f=Point(1, 2),
            g=ChainMap({"a": 1}),
        ),
        "ok",
    ),
    "subclass-of-dict": (lambda: MyDict(state()), "ok"),
    "defaultdict-of-weights": (lambda: {"state_dict": defaultdict(None, state())}, "ok"),
    "functions": (
        lambda: besides(
            act=nn.functional.gelu, loss=nn.CrossEntropyLoss, part=functools.partial(nn.GELU, approximate="tanh")
        ),
        "ok",
    ),
    "module-torch": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "ok"),
    "module-own": (net, "ok"),
    "module-beside": (lambda: besides(net=net()), "warning"),
    "transformer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), "ok"),
    "optimizer": (lambda: {"model": trained()[0].state_dict(), "optimizer": trained()[1].state_dict()}, "ok"),
    "schedules": (lambda: besides(schedules=schedules()), "ok"),
    "scaler": (lambda: besides(scaler=torch.amp.GradScaler("cpu").state_dict()), "ok"),
    "random-states": (lambda: besides(rng=torch.get_rng_state(), python_rng=random.Random(3).getstate()), "ok"),
    "recipe": (recipe, "warning"),
    "ema": (lambda: besides(ema_state_dict={name: each * 2 for name, each in state().items()}), "warning"),
    "best-as-tensor": (lambda: besides(best_acc1=torch.tensor(76.5), epoch=torch.tensor([3])), "ok"),
    "tied": (tied, "ok"),
    "views": (views, "warning"),
    "small-tensors": (small, "ok"),
    "hyphens-and-dots": (lambda: {"a-b.c/d e": torch.ones(2), "a.b": torch.ones(2)}, "ok"),
    "unicode": (lambda: {"gewichte.größe": torch.ones(2), "重み": torch.ones(2), "вес": torch.ones(2)}, "ok"),
    "parameters": (
        lambda: {"w": nn.Parameter(torch.ones(3)), "v": nn.Parameter(torch.ones(2), requires_grad=False)},
        "ok",
    ),
    "attribute-on-parameter": (_hooked, "ok"),
    "scalar-and-empty": (
        lambda: {"scale": torch.tensor(2.5), "none": torch.zeros(0, 4), "w": torch.ones(3)},
        "warning",
    ),
    "complex": (lambda: {"w": torch.ones(2, dtype=torch.complex64), "v": torch.ones(2)}, "warning"),
    "bfloat16": (lambda: {name: each.bfloat16() for name, each in state().items()}, "ok"),
    "float8": (lambda: {"w": torch.ones(4).to(torch.float8_e4m3fn), "v": torch.ones(2)}, "warning"),
    "sparse": (lambda: {"w": torch.eye(3).to_sparse(), "v": torch.ones(2)}, "refused"),
    "mixed-half": (lambda: {"w": torch.ones(3).half(), "v": torch.ones(2)}, "warning"),
    "integers": (
        lambda: {"w": torch.ones(3), "q": torch.zeros(4, dtype=torch.uint16), "b": torch.tensor([True])},
        "ok",
    ),
    "nested": (lambda: {"checkpoint": {"generator": {"state_dict": state()}}}, "ok"),
    "gan": (lambda: {"netG": state(), "netD": {"w": torch.ones(3)}}, "warning"),
}


def save(value: Any, path: Path, layout: str) -> Path:
    """Write a value as torch does: "zip", "legacy", or either with pickle protocol 4 or 5; or "pickle"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if layout == "pickle":
            path.write_bytes(pickle.dumps(value, protocol=4))
            return path
        kind, _, protocol = layout.partition("-")
        torch.save(value, path, pickle_protocol=int(protocol or 2), _use_new_zipfile_serialization=kind == "zip")
    return path


def cases() -> Iterator[Case]:
    """Yield each in the zip layout, and the telling ones in the others."""
    for name, (make, verdict) in VALUES.items():
        for layout in (
            ("zip", "legacy", "zip-4") if name in ("recipe", "module-own", "numpy-scalars", "dataclass") else ("zip",)
        ):

            def lay(folder: Path, make: Any = make, layout: str = layout, stem: str = f"{name}-{layout}") -> Path:
                return save(make(), folder / f"honest-{stem}.pt", layout)

            yield Case(f"honest-{name}-{layout}", lay, verdict)
    yield Case("honest-pickled-arrays", lambda folder: _arrays(folder), "ok")
    yield Case(
        "honest-pickled-tensors", lambda folder: save(state(), folder / "honest-pickled-tensors.pkl", "pickle"), "ok"
    )


def _arrays(folder: Path) -> Path:
    arrays = {name: each.numpy() for name, each in state().items()}
    return save(arrays, folder / "honest-pickled-arrays.pkl", "pickle")
