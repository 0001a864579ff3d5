"""The weights of TorchScript and torch.export programs are read, nothing is run; torch's loaders are the oracle."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import LIMITS, answer, mutants, refusal
from torch import nn

from probes.errors import RefusedCheckpoint
from probes.formats.contents import Contents, Limits
from probes.formats.programs import is_program, read_program

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
DTYPES = (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64,
          torch.uint8, torch.int16)  # fmt: skip
FLAT = torch.arange(12.0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)])
        self.shared = self.layers[0]
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.layers[2].weight
        self.turned = nn.Parameter(torch.randn(6, 4).t())
        self.last = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        self.part = nn.Parameter(FLAT[3:9])
        self.scalar = nn.Parameter(torch.tensor(2.5))
        self.register_parameter("absent", None)
        for dtype in DTYPES:
            self.register_buffer(str(dtype).replace(".", "_"), torch.ones(3).to(dtype))
        self.plain = torch.full((4,), 7.0)
        self.table = [torch.ones(4)]
        self.counts = [1, 2]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.tied(self.shared(x)) * self.scalar + self.plain + self.table[0] + self.counts[0]


def example() -> torch.Tensor:
    return torch.randn(5, 4)


def script(net: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    torch.jit.save(torch.jit.script(net), path)
    return dict(torch.jit.load(path).state_dict())


def trace(net: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    torch.jit.save(torch.jit.trace(net, example()), path, _extra_files={"notes.txt": "hello"})
    return dict(torch.jit.load(path).state_dict())


def export(net: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    torch.export.save(torch.export.export(net, (example(),)), path, extra_files={"notes.txt": "hello"})
    return dict(torch.export.load(path).state_dict)


SAVE: dict[str, Callable[[nn.Module, Path], dict[str, torch.Tensor]]] = {
    "script": script, "trace": trace, "export": export,
}  # fmt: skip


def content(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def check(contents: Contents, expected: dict[str, torch.Tensor]) -> None:
    assert list(contents.value) == list(expected)
    for name, tensor in expected.items():
        found = contents.value[name]
        assert (f"torch.{found.dtype}", found.shape) == (str(tensor.dtype), tuple(tensor.shape))
        assert found.read().tobytes() == content(tensor), name
    contents.verify()


@pytest.mark.parametrize("how", SAVE)
def test_weights_are_those_that_torch_loads(how: str, tmp_path: Path) -> None:
    net = Net().eval()
    expected = SAVE[how](net, tmp_path / "x.pt")
    contents = read_program(tmp_path / "x.pt", "x", LIMITS)
    check(contents, expected)
    check(contents, {name: net.state_dict()[name] for name in contents.value})
    assert set(net.state_dict()) == set(contents.value)
    assert contents.value["layers.2.weight"].place == contents.value["tied.weight"].place
    assert contents.format == ("torch.export program" if how == "export" else "TorchScript program")
    assert "the program" in contents.left[0]


def test_what_is_left_behind_is_said(tmp_path: Path) -> None:
    for how, words in (("script", ("plain", "table")), ("trace", ("notes.txt", "traced", "constants")),
                       ("export", ("notes.txt", "sample inputs", "constants"))):  # fmt: skip
        SAVE[how](Net().eval(), tmp_path / "x.pt")
        left = " ".join(read_program(tmp_path / "x.pt", "x", LIMITS).left)
        assert all(word in left for word in words), left


def test_programs_are_recognised_by_their_records(tmp_path: Path) -> None:
    for how in SAVE:
        SAVE[how](nn.Linear(4, 4), tmp_path / "x.pt")
        assert is_program(zipfile.ZipFile(tmp_path / "x.pt").namelist())
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
    assert not is_program(zipfile.ZipFile(tmp_path / "x.pt").namelist())


def nested(tensors: Any) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def test_programs_of_torch_2_7_and_2_8_are_read(tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    layouts = {
        "2.7": {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": nested(state), "version": b"8.8",
                "serialized_constants.pt": nested({}), "serialized_example_inputs.pt": b""},
        "2.8": {"m/models/model.json": b"{}", "m/data/weights/model.pt": nested(state), "m/archive_format": b"pt2",
                "m/data/constants/model.pt": nested({})},
    }  # fmt: skip
    for records in layouts.values():
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            for name, each in records.items():
                archive.writestr(name, each)
        check(read_program(tmp_path / "x", "x", LIMITS), dict(state))


def test_several_models_in_one_archive_are_kept_apart(tmp_path: Path) -> None:
    from torch.export.pt2_archive._package import package_pt2

    nets = {"one": nn.Linear(4, 2), "two": nn.Linear(4, 3)}
    programs = {name: torch.export.export(net, (example(),)) for name, net in nets.items()}
    package_pt2(tmp_path / "x.pt2", exported_programs=programs)
    value = read_program(tmp_path / "x.pt2", "x", LIMITS).value
    assert {name: each["weight"].shape for name, each in value.items()} == {"one": (2, 4), "two": (3, 4)}
    assert value["two"]["bias"].read().tobytes() == content(nets["two"].bias)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.weight = state[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})


def test_weights_that_only_the_program_can_make_are_refused(tmp_path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.script(nn.Linear(3, 3).eval()))
    quantised_, own = torch.jit.script(quantised()), torch.jit.script(nn.Sequential(Own()))
    for program, words in ((quantised_, "quantized"), (own, "code of its own"), (frozen, "constants")):
        torch.jit.save(program, tmp_path / "x.pt")
        assert words in refusal(read_program, tmp_path / "x.pt")


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Write an archive again with some records changed, or left out where None is returned."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in records.items():
            new = change(name, old)
            if new is not None:
                archive.writestr(name, new)
    return path


class Trap:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


@pytest.mark.parametrize("how", SAVE)
def test_pickles_that_would_run_are_refused_or_never_read(how: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x.pt"
    bomb = pickle.dumps(Trap(canary))
    expected = SAVE[how](nn.Linear(4, 4), path)
    rewritten(path, lambda name, old: bomb if name.endswith((".pkl", "weights/model.pt")) else old)
    if how != "export":
        assert refusal(read_program, path)
    SAVE[how](nn.Linear(4, 4), path)
    rewritten(path, lambda name, old: bomb if name.endswith(("constants.pkl", "inputs.pkl", "model.pt")) else old)
    assert list(read_program(path, "x", LIMITS).value) == list(expected)
    assert not canary.exists()


def changed(field: str, value: Any) -> Callable[[str, bytes], bytes]:
    def change(name: str, old: bytes) -> bytes:
        if not name.endswith("_weights_config.json"):
            return old
        config = json.loads(old)
        about = config["config"]["weight"]
        (about if field in about else about["tensor_meta"])[field] = value
        return json.dumps(config).encode()

    return change


def instead(record: str, new: bytes | None) -> Callable[[str, bytes], bytes | None]:
    return lambda name, old: new if name.endswith(record) else old


HOSTILE: dict[str, tuple[Callable[[str, bytes], bytes | None], str]] = {
    "pickled tensor": (changed("use_pickle", True), "special kind"),
    "sparse": (changed("layout", 1), "special kind"),
    "quantised": (changed("dtype", 16), "special kind"),
    "another path": (changed("path_name", "../../../etc/passwd"), "lacks"),
    "huge shape": (changed("sizes", [{"as_int": 2**40}, {"as_int": 2**40}]), "shape"),
    "huge empty shape": (changed("sizes", [{"as_int": 2**40}, {"as_int": 0}]), "shape"),
    "more than stored": (changed("sizes", [{"as_int": 400}, {"as_int": 4}]), "lie within"),
    "offset outside": (changed("storage_offset", {"as_int": 1000}), "lie within"),
    "negative": (changed("sizes", [{"as_int": -4}, {"as_int": 4}]), "no size|none"),
    "symbolic": (changed("sizes", [{"as_expr": {"expr_str": "s0"}}, {"as_int": 4}]), "as_int"),
    "other dtype": (changed("dtype", 11), "lie within|whole number"),
    "no config": (instead("config.json", None), "no weights"),
    "config no JSON": (instead("config.json", b"{"), "damaged"),
    "config a list": (instead("config.json", b"[]"), "damaged"),
    "deep config": (instead("config.json", b"[" * 10**6), "nested"),
    "double name": (instead("config.json", b'{"config": {"a": 1, "a": 2}}'), "twice"),
    "no record": (instead("weight_0", None), "lacks"),
    "short record": (instead("weight_0", b"123456789"), "whole number|lie within"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_about_exported_weights_are_refused_in_words(case: str, tmp_path: Path) -> None:
    change, words = HOSTILE[case]
    export(nn.Linear(4, 4), tmp_path / "x.pt2")
    rewritten(tmp_path / "x.pt2", change)
    said = refusal(read_program, tmp_path / "x.pt2")
    assert any(word in said for word in words.split("|")), said


def test_modules_within_themselves_and_missing_weights_are_refused(tmp_path: Path) -> None:
    script(nn.Sequential(nn.Linear(4, 4)), tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", lambda name, old: None if name.endswith("data/0") else old)
    assert "is missing" in refusal(read_program, tmp_path / "x.pt")
    script(nn.Linear(4, 4), tmp_path / "x.pt")
    rewritten(tmp_path / "x.pt", lambda name, old: old.replace(b'"weight", ', b'"weight", "more", '))
    assert "more" in refusal(read_program, tmp_path / "x.pt")
    loop = b"\x80\x02c__torch__\nNet\nq\x00)\x81q\x01}(X\x01\x00\x00\x00aq\x02h\x01ub."
    rewritten(tmp_path / "x.pt", lambda name, old: loop if name.endswith("/data.pkl") else old)
    assert "within themselves" in refusal(read_program, tmp_path / "x.pt")


def test_limits_bound_what_is_read(tmp_path: Path) -> None:
    for how in SAVE:
        SAVE[how](nn.Linear(4, 4), tmp_path / "x.pt")
        for bound in (Limits(tensors=1), Limits(index=40), Limits(name=4), Limits(members=3)):
            with pytest.raises(RefusedCheckpoint):
                read_program(tmp_path / "x.pt", "x", bound)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), how=st.sampled_from(sorted(SAVE)))
def test_damaged_files_are_read_rightly_or_refused(
    data: st.DataObject, how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = tmp_path_factory.getbasetemp() / f"{how}.pt"
    if not good.exists():
        torch.manual_seed(0)
        SAVE[how](nn.Linear(4, 4), good)
    path = good.with_name("x.pt")
    path.write_bytes(data.draw(mutants(good.read_bytes())))
    if not answer(read_program, path):
        original = read_program(good, "x", LIMITS).value
        for name, each in read_program(path, "x", LIMITS).value.items():
            assert each.read().tobytes() == original[name].read().tobytes()
