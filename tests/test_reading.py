"""One tensor, or a stretch of one, is read without the others: nothing else of the file is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

from probes import admitted
from probes.admitted import read_admitted, write
from probes.checkpoint import Checkpoint, read_checkpoint
from probes.errors import RefusedCheckpoint
from probes.formats import raw
from probes.formats.contents import Limits
from probes.formats.files import open_contents
from probes.hugging_face import fit_names
from probes.lora import merge


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    return {
        "a.weight": draw(5, 7),
        "half": draw(4, 3).bfloat16(),
        "eighth": draw(4, 3).to(torch.float8_e4m3fn),
        "double": draw(2, 2).double(),
        "turned": draw(6, 3).T,
        "wide": draw(3, 4).to(torch.complex128),
        "count": torch.arange(6),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
    }


def admit(path: Path, folder: Path) -> Path:
    folder.mkdir()
    contents = open_contents(path, path.name)
    write(contents, path.name, folder, sha256="a" * 64, about={}, limits=Limits(), tick=lambda _share, _doing: None)
    return folder


def opened(way: str, state: dict[str, torch.Tensor], tmp_path: Path) -> Checkpoint:
    path = tmp_path / "x.pt"
    if way == "safetensors":
        save_file({key: each.contiguous() for key, each in state.items()}, path)
        return read_checkpoint(path)
    torch.save({"model": state}, path, _use_new_zipfile_serialization=way != "torch legacy")
    return read_admitted(admit(path, tmp_path / "admitted")) if way == "admitted" else read_checkpoint(path)


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    left, right = left.contiguous(), right.contiguous()
    bits = lambda each: each.reshape(-1).view(torch.uint8).tolist()
    return left.dtype is right.dtype and left.shape == right.shape and bits(left) == bits(right)


@pytest.mark.parametrize("way", ["torch zip", "torch legacy", "safetensors", "admitted"])
def test_every_tensor_and_every_stretch_is_what_load_gives(
    way: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    if way == "safetensors":
        state.pop("wide")
    checkpoint = opened(way, state, tmp_path)
    loaded = checkpoint.load()
    assert [name for name in state if not same(checkpoint.read(name), state[name])] == []
    assert [name for name in state if not same(loaded[name], state[name])] == []
    in_a_row = {name for name in state if checkpoint.parts(name) is not None}
    assert {"a.weight", "half", "eighth", "double", "count", "scalar"} <= in_a_row
    for name in in_a_row:
        part, flat = checkpoint.parts(name), state[name].reshape(-1)
        assert part is not None
        cuts = [(first, count) for first in range(len(flat)) for count in range(1, len(flat) - first + 1)]
        assert [cut for cut in cuts if not same(part(*cut), flat[cut[0] : sum(cut)])] == [], name
    with pytest.raises(KeyError):
        checkpoint.read("b.weight")


def test_only_what_is_asked_for_is_read(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    plain = raw.span_of

    def watched(path: Path, name: str, start: int = 0) -> raw.Span:
        span = plain(path, name, start)
        return lambda first, count: (seen.append((start + first, count)), span(first, count))[1]

    save_file({key: each.contiguous() for key, each in state.items() if key != "wide"}, tmp_path / "x.safetensors")
    monkeypatch.setattr("probes.formats.safe.span_of", watched)
    checkpoint = read_checkpoint(tmp_path / "x.safetensors")
    assert seen == []
    checkpoint.read("a.weight")
    assert [count for _, count in seen] == [5 * 7 * 4]
    part = checkpoint.parts("half")
    assert part is not None
    part(3, 2)
    assert [count for _, count in seen] == [5 * 7 * 4, 2 * 2]


def test_without_a_reader_of_its_own_a_checkpoint_is_streamed() -> None:
    pairs = {"a": torch.ones(2), "b": torch.zeros(3)}
    checkpoint = Checkpoint(Path("x"), "x", "", 0, "", dict.fromkeys(pairs), {}, (), stream=lambda: iter(pairs.items()))
    assert checkpoint.read("b") is pairs["b"]
    assert checkpoint.parts("b") is None


def test_the_moments_of_an_admitted_checkpoint_stay_untouched_until_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = nn.Linear(3, 4)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    folder = admit(tmp_path / "x.pt", tmp_path / "admitted")
    hashed: list[str] = []
    plain = admitted.hash_file
    monkeypatch.setattr(admitted, "hash_file", lambda path: (hashed.append(path.name), plain(path))[1])
    checkpoint = read_admitted(folder)
    assert (checkpoint.moments, hashed) == (("exp_avg", "exp_avg_sq"), ["weights.safetensors"])
    assert torch.equal(dict(checkpoint.stream_moments("exp_avg"))["bias"], optimizer.state[module.bias]["exp_avg"])
    assert hashed == ["weights.safetensors", "moments.safetensors"]
    (folder / "moments.safetensors").write_bytes(b"\0" * (folder / "moments.safetensors").stat().st_size)
    with pytest.raises(RefusedCheckpoint, match="damaged"):
        dict(read_admitted(folder).stream_moments("exp_avg"))


def test_a_file_that_became_another_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = opened("torch zip", state, tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    with pytest.raises(RefusedCheckpoint, match="has changed"):
        checkpoint.read("a.weight")
    with pytest.raises(RefusedCheckpoint, match="has changed"):
        checkpoint.parts("a.weight")


@pytest.mark.filterwarnings("ignore")  # peft warns of what it sets right
def test_a_merged_adapter_is_computed_tensor_by_tensor(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    torch.save(net.state_dict(), tmp_path / "base.pt")
    wrapped = get_peft_model(net, LoraConfig(r=2, target_modules=["0"], modules_to_save=["2"]))
    for each in wrapped.parameters():
        each.data = torch.randn_like(each) if each.requires_grad else each.data
    wrapped.save_pretrained(tmp_path / "adapter")
    both = merge(read_checkpoint(tmp_path / "base.pt"), read_checkpoint(tmp_path / "adapter"))
    streamed = dict(both.stream())
    assert [name for name in streamed if not same(both.read(name), streamed[name])] == []
    assert {name for name in streamed if both.parts(name) is not None} == {"0.bias"}


@pytest.mark.filterwarnings("ignore")
def test_a_folder_is_read_by_the_names_of_its_model(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=13, n_positions=8)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    plain = read_checkpoint(tmp_path / "gpt2")
    fitted = fit_names(plain, tmp_path / "gpt2")
    name = "transformer.h.0.attn.c_attn.weight"
    part = fitted.parts(name)
    assert part is not None
    assert same(fitted.read(name), fitted.load()[name])
    assert same(part(24, 24), fitted.load()[name][1])
