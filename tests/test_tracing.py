"""Permutations found by tracing: how many units of which size are free is worked out by hand for every network."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import tracing_nets as nets
from curvature_oracles import batches
from networks import Features
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from transformers import LlamaConfig, LlamaForCausalLM

from probes.equivalence import check
from probes.errors import ModelError
from probes.objective import Objective
from probes.own_loss import OwnLoss
from probes.permutations import PermutationSpec, composed, drawn, inverse, permuted
from probes.points import point_of, tensors_of
from probes.tracing import traced

Sizes = dict[str, list[int]]


def mlp(bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7, bias), nn.ReLU(), nn.Linear(7, 6, bias), nn.ReLU(), nn.Linear(6, 3, bias))


def normed_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.PReLU(7), nn.Linear(7, 6), nn.PReLU(), nn.Linear(6, 3))


def readme_cnn() -> nn.Module:
    parts = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(1600, 10))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 9, 3, groups=3), nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 3, 4),
        nn.Flatten(),
    )  # fmt: skip


def multiplied() -> nn.Module:
    """A depthwise convolution that makes two channels of each."""
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 3, 4), nn.Flatten())


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ReLU(), nn.Conv2d(6, 3, 7), nn.Flatten()
    )


def instance_normed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU(), nn.Conv2d(4, 6, 3),
        nn.InstanceNorm2d(6, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def mobile() -> nn.Module:
    return models.MobileNetV2(3, 0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]])


def dense() -> nn.Module:
    return models.DenseNet(4, (2, 1), 8, num_classes=3, memory_efficient=False)


def encoder() -> nn.Module:
    return models.VisionTransformer(8, 4, 1, 2, 8, 10, num_classes=3)


grey, colour = torch.rand(6, 1, 6, 6), torch.rand(4, 3, 32, 32)
ZOO: list[tuple[str, nn.Module, torch.Tensor, Sizes]] = [
    ("MLP", mlp(), torch.randn(6, 5), {"units": [7, 6]}),
    ("MLP without bias", mlp(bias=False), torch.randn(6, 5), {"units": [7, 6]}),
    ("LayerNorm and PReLU", normed_mlp(), torch.randn(6, 5), {"units": [7, 6]}),
    ("CNN with flatten", readme_cnn(), torch.rand(4, 1, 28, 28), {"channels": [32, 64]}),
    ("VGG with BatchNorm", Features(), torch.rand(4, 3, 32, 32), {"channels": [4, 6], "units": [5]}),
    # a stream for each stage, and the middle of each block
    ("ResNet", ResNet(BasicBlock, [1, 1, 1, 1], 3), colour,
     {"stream": [64, 128, 256, 512], "channels": [64, 128, 256, 512]}),
    # the first block adds to the stem of 8, the third to the second; 48 within each of these; the last
    ("MobileNet", mobile(), colour, {"stream": [8, 8], "channels": [48, 48, 1280]}),
    # three groups of two in and three out
    ("grouped", grouped(), grey, {"groups": [3], "within a group": [2, 3] * 3}),
    ("channel multiplier", multiplied(), grey, {"groups": [4], "within a group": [2] * 4}),
    ("grouped, transposed", transposed(), grey, {"groups": [2], "within a group": [2, 3] * 2}),
    ("ResNeXt", ResNet(Bottleneck, [1, 1, 1, 1], 3, groups=2, width_per_group=4), colour,
     {"channels": [64], "stream": [256, 512, 1024, 2048], "groups": [2] * 4,
      "within a group": [4] * 4 + [8] * 4 + [16] * 4 + [32] * 4}),
    # stem; per dense layer 16 in the bottleneck and 4 new; the transition halves 16 to 8
    ("DenseNet", dense(), colour, {"channels": [8, 16, 4, 16, 4, 8, 16, 4]}),
    # the halves that shuffles mix: all channels of a half share their way through one unit a stage
    ("ShuffleNet", models.ShuffleNetV2([1, 1, 1], [8, 8, 16, 32, 32], num_classes=3), colour,
     {"channels": [8, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32]}),
    ("GroupNorm", nets.GroupNormed(), grey, {"groups": [2], "within a group": [3, 3], "channels": [4]}),
    # the three groups of four lie across two of six: what is in the same of both may be exchanged, no group moves
    ("groups that clash", nets.Clashing(), grey, {"within a group": [2, 2, 2, 4, 2, 2, 4]}),
    ("InstanceNorm", instance_normed(), grey, {"channels": [4, 6]}),
    ("standardised weights", nets.Standardised(), grey, {"channels": [4, 6]}),
    ("weight_norm", nn.Sequential(weight_norm(nn.Linear(5, 7)), nn.ReLU(), nn.Linear(7, 3)), torch.randn(6, 5),
     {"units": [7]}),
    ("U-Net", nets.SkipCat(), grey, {"channels": [4, 6, 5]}),
    ("ConvNeXt", nets.NextBlock(), grey, {"stream": [6], "units": [24]}),
    ("MLP-Mixer", nets.Mixer(), grey, {"stream": [5], "units": [7, 8]}),
    ("tied weights", nets.Tied(), torch.randn(6, 6), {"units": [4, 3]}),
    ("option A", nets.OptionA(), grey, {"stream": [4], "channels": [4, 4, 8]}),
    ("written into zeros", nets.Overwriting(), torch.randn(6, 5), {"units": [4]}),
    # two heads; in each, four for queries with keys and four for values
    ("attention by hand", nets.Written(), torch.randint(0, 11, (6, 5)),
     {"stream": [8], "groups": [2], "within a group": [4] * 4, "units": [6]}),
    ("vision transformer", encoder(), torch.rand(4, 3, 8, 8),
     {"stream": [8], "heads": [2], "within a head": [4] * 4, "units": [10]}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "inputs", "sizes"), [each[1:] for each in ZOO], ids=[each[0] for each in ZOO])
def test_what_is_free_by_hand_and_the_function_stays(module: nn.Module, inputs: torch.Tensor, sizes: Sizes) -> None:
    objective = nets.objective_of(module, inputs)
    spec = traced(objective)
    found: Sizes = {}
    for each in spec:
        found.setdefault(each.kind, []).append(each.size)
    assert {kind: Counter(each) for kind, each in found.items()} == {kind: Counter(v) for kind, v in sizes.items()}
    draws = [drawn(spec, seed) for seed in range(2)]
    for each in [*draws, composed(spec, *draws), inverse(spec, draws[0])]:
        assert nets.change(objective.module, objective, spec, each, inputs) < 1e-10
    assert all(not np.array_equal(pi, np.arange(len(pi))) for pi in draws[0].values() if len(pi) > 8)
    back = permuted(permuted(held := tensors_of(objective, point_of(objective)), spec, draws[0]), spec,
                    inverse(spec, draws[0]))  # fmt: skip
    assert all(torch.equal(back[name], held[name]) for name in held)


def uses(spec: PermutationSpec, name: str) -> dict[tuple[str, int], list[list[int]]]:
    return {(use.tensor, use.axis): use.index.tolist() for use in spec[name].uses}


def test_flatten_gives_each_channel_a_block() -> None:
    spec = traced(nets.objective_of(readme_cnn(), torch.rand(4, 1, 28, 28), 10))
    assert [each.name for each in spec] == ["0", "3"]
    last = uses(spec, "3")
    assert last["7.weight", 1] == np.arange(1600).reshape(64, 25).tolist()
    assert list(last) == [("3.weight", 0), ("3.bias", 0), ("7.weight", 1)]


def test_channels_last_are_dealt_out() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(64, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).relu().permute(0, 2, 3, 1).flatten(1))

    spec = traced(nets.objective_of(Last(), grey))
    assert uses(spec, "conv")["head.weight", 1] == np.arange(64).reshape(16, 4).T.tolist()


def test_running_statistics_follow_without_counting() -> None:
    spec = traced(nets.objective_of(Features(), torch.rand(4, 3, 32, 32)))
    counts = {use.tensor: use.counts for use in spec["features.0"].uses}
    assert counts == {
        "features.0.weight": True, "features.0.bias": True, "features.1.weight": True, "features.1.bias": True,
        "features.4.weight": True, "features.1.running_mean": False, "features.1.running_var": False,
    }  # fmt: skip


def test_padded_channels_are_free_only_among_themselves() -> None:
    spec = traced(nets.objective_of(nets.OptionA(), grey))
    stream = uses(spec, "enter")
    assert stream["first.3.weight", 0] == [[0], [1], [2], [3]]
    assert stream["second.3.weight", 0] == stream["head.weight", 1] == [[2], [3], [4], [5]]
    padded = next(each for each in spec if "head.weight" in {use.tensor for use in each.uses} and each.name != "enter")
    assert {use.tensor: use.index.ravel().tolist() for use in padded.uses} == {
        "second.3.weight": [0, 1, 6, 7], "second.3.bias": [0, 1, 6, 7], "head.weight": [0, 1, 6, 7],
    }  # fmt: skip


def test_tied_weights_are_one_tensor_under_its_first_name() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.token.weight
            self.norm = nn.LayerNorm(4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.token(tokens))).mean(1)

    objective = nets.objective_of(Language(), torch.randint(0, 9, (6, 4)), 9)
    spec = traced(objective)
    assert [(each.kind, each.size) for each in spec] == [("units", 4)]
    assert set(uses(spec, "token")) == {("token.weight", 1), ("norm.weight", 0), ("norm.bias", 0)}


def test_a_table_that_is_no_parameter_keeps_its_units_in_place_and_is_named() -> None:
    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.wide, self.narrow = nn.Embedding(9, 4), nn.Linear(4, 7), nn.Linear(7, 3)
            self.register_buffer("table", torch.randn(5, 4))
            self.register_buffer("mask", torch.ones(5, 5).tril(), persistent=False)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            mixed = self.mask @ (self.token(tokens) + self.table)
            return self.narrow(self.wide(mixed).relu()).mean(1)

    spec = traced(nets.objective_of(Timed(), torch.randint(0, 9, (6, 5))))
    assert [(each.name, each.size) for each in spec] == [("wide", 7)]
    assert len(spec.notes) == 1 and "`table` is a table" in spec.notes[0]


def test_rotary_positions_leave_whole_heads_and_values_free() -> None:
    """Queries and keys keep their order within a head; heads of one key-value group may change places."""
    config = {"hidden_size": 16, "intermediate_size": 10, "num_hidden_layers": 1, "num_attention_heads": 4,
              "vocab_size": 9, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip

    class Language(nn.Module):
        def __init__(self, key_value_heads: int) -> None:
            super().__init__()
            self.body = LlamaForCausalLM(LlamaConfig(**config, num_key_value_heads=key_value_heads))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.body(tokens).logits[:, -1]

    tokens = torch.randint(0, 9, (6, 5))
    for count, expected in ((4, ["heads 4", *["within a head 4"] * 4]), (2, ["heads 2", "heads 2"])):
        objective = nets.objective_of(Language(count), tokens, 9)
        spec = traced(objective)
        assert sorted(f"{each.kind} {each.size}" for each in spec) == sorted(["stream 16", "units 10", *expected])
        assert check(objective, spec).passed


def test_an_unknown_operation_pins_what_enters_it_and_says_so() -> None:
    spec = traced(nets.objective_of(nets.Sorting(), torch.randn(6, 5)))
    assert [(each.name, each.size) for each in spec] == [("second", 7)]
    assert len(spec.notes) == 1 and "fft_rfft" in spec.notes[0] and "stay in their place" in spec.notes[0]


def test_a_path_that_depends_on_the_data_is_followed_as_it_is_taken() -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.other, self.last = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)
            self.more, self.bias = nn.Linear(5, 2), nn.Parameter(torch.randn(6))
            self.end = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            wide = (self.first if float(x.sum()) > -1e9 else self.other)(x).relu_()
            empty = torch.zeros(len(x), 4, dtype=x.dtype)
            empty[:, :2].add_(self.more(x))  # through a view: left in its place
            return self.last(wide.add_(self.bias)) + empty @ self.end

    objective = nets.objective_of(Choosing(), torch.randn(6, 5))
    spec = traced(objective)
    assert [(each.name, each.size) for each in spec] == [("first", 6)]
    assert "depends on the data" in spec.notes[0]
    assert nets.change(objective.module, objective, spec, drawn(spec, 0), torch.randn(6, 5)) < 1e-10


def test_a_model_in_half_precision_is_traced_and_stays_as_it_is() -> None:
    objective = nets.objective_of(mlp().bfloat16(), torch.randn(6, 5))
    before = {name: each.clone() for name, each in objective.module.state_dict().items()}
    assert [each.size for each in traced(objective)] == [7, 6]
    assert all(torch.equal(before[name], each) for name, each in objective.module.state_dict().items())


def test_the_operators_own_loss_is_traced_with_the_model() -> None:
    def function(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return (model[2](model[1](model[0](batch[0]))) - batch[1][:, None]).square().mean()  # not by model(inputs)

    data = batches(torch.randn(6, 5), torch.randn(6))
    module = nets.stirred(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 1)))
    objective = Objective.of(module, data, "operator", own=OwnLoss(function), micro_batch=4)
    spec = traced(objective)
    assert [(each.name, each.size, len(each.uses)) for each in spec] == [("0", 7, 3)]
    assert check(objective, spec).passed
    wrong = PermutationSpec((replace(spec["0"], uses=spec["0"].uses[:2]),), "edited")
    with pytest.raises(ModelError, match=r"layer `2`"):
        check(objective, wrong)


def test_what_cannot_be_run_is_refused_in_words() -> None:
    objective = nets.objective_of(mlp(), torch.randn(6, 5))

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no way through")

    objective.module.forward = broken  # type: ignore[method-assign]
    with pytest.raises(ModelError, match=r"cannot be written down \(no way through\)"):
        traced(objective)
