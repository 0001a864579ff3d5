"""Means of networks by hand, which of them a greedy soup takes, and files that the app reads again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from curvature_oracles import batches
from networks import saved
from torch import Tensor, nn

from probes.checkpoint import read_checkpoint
from probes.errors import ModelError
from probes.models import load_model, recognise
from probes.objective import Objective
from probes.paths import read
from probes.points import Point, point_of, tensors_of
from probes.soups import as_safetensors, greedy, uniform

silent = lambda _share, _doing: None


class Votes(nn.Module):
    """Says class 1 where x > threshold: the accuracy of a mean is that of the mean threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.threshold.expand(len(x), 1), x], 1)


def votes(count: int = 100) -> Objective:
    """Examples at 0, 1, ..., 99, of class 1 from 50 on."""
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return Objective.of(Votes(), batches(x, (x[:, 0] >= count / 2).long()), "cross_entropy")


def thresholds(*values: float) -> list[Point]:
    return [Point((torch.tensor([value]),), {}) for value in values]


def test_a_greedy_soup_takes_what_strictly_helps() -> None:
    """Errors alone 5, 8, 29, 3; of the means 52.5, 48.5 (taken), then 51.5 and 39.2 (not): 3, 1, 2, 10."""
    shares: list[float] = []
    found = greedy(votes(), thresholds(44.5, 57.5, 20.5, 52.5), lambda share, _: shares.append(share))
    assert found.order == (3, 0, 1, 2) and found.metric == "accuracy"
    assert found.alone == pytest.approx((0.97, 0.95, 0.92, 0.71))
    assert found.tried == pytest.approx((0.97, 0.99, 0.98, 0.90))
    assert found.chosen == (3, 0)
    assert float(found.point.theta[0]) == 48.5
    assert shares[-1] == 1 and shares == sorted(shares) and len(shares) == 7


def test_a_tie_is_not_taken_and_one_network_is_a_soup() -> None:
    found = greedy(votes(), thresholds(49.2, 49.8, 49.2), silent)
    assert found.chosen == (0,) and found.tried == (1.0, 1.0, 1.0)
    assert greedy(votes(), thresholds(3.0), silent).chosen == (0,)
    broken = greedy(votes(), thresholds(float("nan"), 40.0), silent)
    assert broken.order == (1, 0) and broken.chosen == (1,)


def test_without_an_accuracy_the_loss_must_fall() -> None:
    net = nn.Linear(1, 1, bias=False)
    x = torch.ones(5, 1)
    here = Objective.of(net, batches(x, 2 * x), "mse")
    points = [Point((torch.tensor([[value]]),), {}) for value in (1.0, 2.5, 6.0)]
    found = greedy(here, points, silent)
    assert found.metric == "loss" and found.order == (1, 0, 2) and found.chosen == (1, 0)
    assert found.alone == pytest.approx((0.25, 1.0, 16.0)) and found.tried[1] == pytest.approx(0.25**2)


def test_a_uniform_soup_is_the_mean_of_state_dicts_with_statistics_of_its_own() -> None:
    objectives = []
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
        net[1].running_mean.normal_()
        objectives.append(Objective.of(net, batches(x, torch.arange(9) % 3), "cross_entropy"))
    points = [point_of(each) for each in objectives]
    mean = tensors_of(objectives[0], uniform(points))
    for name, each in mean.items():
        truth = sum(other.module.state_dict()[name] for other in objectives) / 3
        torch.testing.assert_close(each, truth)
    fresh = tensors_of(objectives[0], uniform(points, objectives[0]))
    before = x @ mean["0.weight"].T + mean["0.bias"]
    torch.testing.assert_close(fresh["1.running_mean"], before.mean(0))
    torch.testing.assert_close(fresh["1.running_var"], before.var(0))
    soup = greedy(objectives[0], points, silent, statistics=objectives[0])
    assert soup.tried[len(soup.chosen) - 1] == max(soup.tried) or len(soup.chosen) == 1
    assert read(objectives[0], soup.point).accuracy[0] == pytest.approx(max(soup.tried[0], *soup.tried))
    with pytest.raises(ModelError, match="same tensors"):
        uniform([points[0], Point(points[0].theta[:2], points[0].buffers)])


def metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]


def small() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net.train()(torch.randn(5, 1, 8, 8))
    return net.eval()


@pytest.mark.parametrize("half", [False, True])
def test_a_merged_network_is_accepted_again(half: bool, tmp_path: Path) -> None:
    from probes.specs import ModelSpec

    net = small()
    checkpoint = saved(net.half() if half else net, tmp_path)
    text = "Sequential(Conv2d(1, 4, 3), BatchNorm2d(4), ReLU(), Flatten(), Linear(144, 3))"
    spec = ModelSpec(source="text", text=text)
    module = load_model(spec, checkpoint)
    x = torch.randn(7, 1, 8, 8)
    here = Objective(module, batches(x, torch.arange(7) % 3), "cross_entropy", dtype="float64")
    point = Point(tuple(1.5 * each.detach() for each in here.theta), point_of(here).buffers)
    path = tmp_path / "deep" / "soup.safetensors"
    as_safetensors(here, point, path, how="mean of two", like=checkpoint)
    assert metadata(path)["Theodolite"] == "mean of two"
    again = read_checkpoint(path)
    assert dict(again.tensors) == dict(checkpoint.tensors)
    assert again.tensors["1.num_batches_tracked"].dtype == "int64" and int(again.read("1.num_batches_tracked")) == 1
    other = load_model(spec, again)
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), module.parameters(), strict=True):
            truth = (1.5 * theirs.double()).to(torch.float16 if half else torch.float32).float()
            assert torch.equal(mine, truth)
        assert torch.equal(other[1].running_mean, module[1].running_mean)
    assert sorted(each.name for each in path.parent.iterdir()) == ["soup.safetensors"]
    as_safetensors(here, point_of(here), path, how="again")  # an older file is replaced
    assert read_checkpoint(path).tensors["0.weight"].dtype == "float32"


def test_values_that_half_precision_cannot_hold_stay_in_float32(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    checkpoint = saved(net.half(), tmp_path)
    here = Objective.of(net.float(), batches(torch.randn(3, 2), torch.arange(3) % 2), "cross_entropy")
    point = Point((1e6 * torch.ones(2, 2), torch.ones(2)), {})
    as_safetensors(here, point, tmp_path / "x.safetensors", how="", like=checkpoint)
    written = read_checkpoint(tmp_path / "x.safetensors").tensors
    assert (written["0.weight"].dtype, written["0.bias"].dtype) == ("float32", "float16")


def test_tied_weights_are_written_once_and_accepted_again(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    checkpoint = read_checkpoint(folder)
    spec = recognise(checkpoint).spec
    assert spec is not None
    module = load_model(spec, checkpoint)
    x = torch.randint(11, (4, 8))
    here = Objective(module, batches(x, x), "causal_lm")
    assert len({id(each) for each in module.state_dict(keep_vars=True).values()}) < len(module.state_dict())
    point = Point(tuple(2 * each.detach() for each in here.theta), point_of(here).buffers)
    as_safetensors(here, point, tmp_path / "merged.safetensors", how="twice")
    merged = read_checkpoint(tmp_path / "merged.safetensors")
    other = load_model(spec, merged)
    for (name, mine), theirs in zip(other.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(mine, 2 * theirs), name
    about = metadata(tmp_path / "merged.safetensors")
    twins = {name: kept for name, kept in about.items() if name.endswith("weight")}
    assert len(twins) == 1 and all(
        name not in merged.tensors and kept in merged.tensors for name, kept in twins.items()
    )
