"""Which weights are meant: wrappers, prefixes, moving averages, the moments of optimizers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import refusal
from torch import nn

from probes.checkpoint import read_checkpoint
from probes.errors import RefusedCheckpoint


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_moving_average_can_be_chosen(tmp_path: Path) -> None:
    model, average = net().state_dict(), net().state_dict()
    for key in ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "averaged_model"):
        torch.save({key: average, "model": model}, tmp_path / "x")
        checkpoint = read_checkpoint(tmp_path / "x")
        assert checkpoint.sets == ("model", key)
        assert checkpoint.weights == "model"
        assert any(key in each for each in checkpoint.doubts)
        chosen = read_checkpoint(tmp_path / "x", weights=key)
        assert torch.equal(chosen.load()["0.weight"], average["0.weight"])
    with pytest.raises(RefusedCheckpoint, match="no weights called nothing; it has model"):
        read_checkpoint(tmp_path / "x", weights="nothing")


def test_an_average_among_the_weights_is_parted(tmp_path: Path) -> None:
    model, average = net().state_dict(), net().state_dict()
    flat = {f"model.{key}": each for key, each in model.items()} | {
        f"model_ema.{key}": each for key, each in average.items()
    }
    torch.save({"state_dict": flat, "pytorch-lightning_version": "2.0"}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.sets == ("state_dict", "state_dict.model_ema")
    chosen = read_checkpoint(tmp_path / "x", weights="state_dict.model_ema")
    assert torch.equal(chosen.load()["0.weight"], average["0.weight"])


@pytest.mark.parametrize(
    "route", [("state", "model"), ("checkpoint", "network", "state_dict"), ("callbacks", "ema", "weights")]
)
def test_nested_weights_are_found(route: tuple[str, ...], tmp_path: Path) -> None:
    value: Any = net().state_dict()
    for key in reversed(route):
        value = {key: value, "beside": {"a": 1}}
    torch.save(value, tmp_path / "x")
    assert read_checkpoint(tmp_path / "x").facts["wrapper"] == ".".join(route)


def test_names_inside_of_wrappers_are_cleaned(tmp_path: Path) -> None:
    model = net().state_dict()
    torch.save({f"module.{key.replace('.', '._orig_mod.', 1)}": each for key, each in model.items()}, tmp_path / "x")
    assert list(read_checkpoint(tmp_path / "x").tensors) == list(model)
    torch.save({f"model.{key}": each for key, each in model.items()}, tmp_path / "x")
    assert list(read_checkpoint(tmp_path / "x").tensors) == list(model)


def test_mixed_up_prefixes_are_kept_and_doubted(tmp_path: Path) -> None:
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert list(checkpoint.tensors) == ["module.a", "b", "c"]
    assert any("mixed up" in each for each in checkpoint.doubts)


def test_an_optimizer_alone_is_refused_by_what_it_is(tmp_path: Path) -> None:
    model = net()
    for value in (torch.optim.Adam(model.parameters()).state_dict(), {"optimizer": trained(model)[0].state_dict()}):
        torch.save(value, tmp_path / "x")
        assert "optimizer only" in refusal(tmp_path / "x")


def test_lora_alone_is_doubted(tmp_path: Path) -> None:
    torch.save({"a.lora_A.weight": torch.ones(2, 3), "a.lora_B.weight": torch.ones(3, 2)}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.facts["lora"]
    assert any("need their base" in each for each in checkpoint.doubts)


def trained(
    model: nn.Module, named: bool = False, grouped: bool = False
) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
    parameters: Any = model.named_parameters() if named else model.parameters()
    if grouped:
        pairs = list(model.named_parameters())
        parameters = [
            {"params": [p for n, p in pairs if "bias" in n]},
            {"params": [p for n, p in pairs if "bias" not in n]},
        ]
    optimizer = torch.optim.Adam(parameters, 0.01)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return optimizer, {name: optimizer.state[each] for name, each in model.named_parameters()}


@pytest.mark.parametrize("named", [False, True])
def test_moments_belong_to_their_parameters(named: bool, tmp_path: Path) -> None:
    model = net()
    optimizer, expected = trained(model, named)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.moments == ("exp_avg", "exp_avg_sq")
    for kind in checkpoint.moments:
        found = dict(checkpoint.stream_moments(kind))
        assert set(found) == set(expected)
        assert all(torch.equal(tensor, expected[name][kind]) for name, tensor in found.items())


def test_moments_that_cannot_be_matched_are_not_used(tmp_path: Path) -> None:
    model = net()
    optimizer, _ = trained(copy.deepcopy(model), grouped=True)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x")
    checkpoint = read_checkpoint(tmp_path / "x")
    assert checkpoint.moments == ()
    assert any("could not be matched" in each for each in checkpoint.doubts)
