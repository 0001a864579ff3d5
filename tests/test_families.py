"""Families of transformers: their permutations leave the function as it is, are as many as counted, and are undone."""

from __future__ import annotations

import family_nets
import numpy as np
import pytest
import torch
from family_nets import NETS, objective_of
from torch import Tensor, nn

from probes.families import family
from probes.in_float64 import InFloat64
from probes.objective import Objective
from probes.permutations import PermutationSpec, composed, drawn, identity, inverse, permuted
from probes.points import at, point_from, point_of, tensors_of

Count = tuple[int, int]


def count(*outside: int, layers: int = 2, groups: int = 3, queries: int = 1, qk: int = 4, vo: int = 4, mlp: int = 20,
          heads: bool = True) -> Count:  # fmt: skip
    """Permutations and units by hand: those outside the layers, and a layer's heads, their channels, its perceptron."""
    sizes = [mlp, *([groups] if groups > 1 and heads else []), *[vo] * groups]
    sizes += [*([qk] * groups if qk > 1 else []), *([queries] * groups if queries > 1 else [])]
    return len(outside) + layers * len(sizes), sum(outside) + layers * sum(sizes)


def expected() -> dict[str, Count]:
    plain, pooled = count(12), count(12, 12)
    grouped = count(24, groups=2, queries=3, qk=0)
    partial = count(24, qk=4, vo=8)
    return {
        "bert": pooled, "bert lm": plain, "roberta": pooled, "electra": count(8, 12, 12), "electra lm": count(8, 12),
        "albert": count(8, 12, 12, layers=1), "distilbert": pooled, "gpt2": count(12, mlp=48),
        "gpt2 untied": count(12, mlp=48), "small gpt": plain, "small gpt transposed": plain, "llama": grouped,
        "llama tied": grouped, "llama one head": count(24, groups=1, queries=6, qk=0),
        "small llama": count(16, groups=2, queries=2, qk=0), "mistral": grouped, "qwen2": grouped, "qwen3": grouped,
        "gemma2": grouped, "olmo2": grouped, "phi": partial, "phi3": grouped, "starcoder2": grouped,
        "gpt neox": partial, "bloom": count(12, mlp=48, heads=False), "opt": plain, "opt projected": count(12, 8),
        "glm": count(24, groups=2, queries=3, qk=2),
        "gpt neo": count(12, mlp=48), "gpt j": count(24, qk=4, vo=8, mlp=96),
        "modernbert": count(12, 12, qk=0),
        "vit": plain, "deit": plain, "dinov2": count(12, mlp=48), "dinov2 swiglu": count(12, mlp=32), "beit": plain,
        "clip": plain, "timm vit": count(12, mlp=24), "timm vit scaled": count(12, mlp=24),
        "timm vit normed": count(12, mlp=24, qk=0), "torchvision vit": plain, "torchvision vit hidden": count(12, 9),
        "torch encoder": count(12, 9), "torch encoder pre-norm": plain,
    }  # fmt: skip


TITLES = {
    "bert": "BERT", "gpt2": "GPT-2", "small gpt": "GPT-2", "llama": "Llama", "small llama": "Llama", "vit": "ViT",
    "timm vit": "ViT", "torchvision vit": "ViT", "qwen3": "Qwen3", "gpt neox": "GPT-NeoX", "distilbert": "DistilBERT",
    "torch encoder": "TransformerEncoder of torch",
}  # fmt: skip


def outputs(objective: Objective, tensors: dict[str, Tensor]) -> Tensor:
    """All outputs at named tensors, in float64 throughout, by plain functional_call."""
    held = {**objective.constants, **tensors}
    with torch.no_grad(), InFloat64():
        return torch.func.functional_call(objective.module, held, (objective.inputs,))


def off(objective: Objective, spec: PermutationSpec, found: dict[str, np.ndarray]) -> float:
    """How far a permutation moves the outputs, relative to the largest."""
    tensors = tensors_of(objective, point_of(objective))
    one, other = outputs(objective, tensors), outputs(objective, permuted(tensors, spec, found))
    return float((one - other).abs().max() / one.abs().max())


def spec_of(objective: Objective) -> PermutationSpec:
    spec = family(objective)
    assert spec is not None
    return spec


@pytest.mark.parametrize("name", NETS)
def test_random_permutations_leave_the_function_and_are_as_many_as_counted(name: str) -> None:
    objective = objective_of(name)
    spec = spec_of(objective)
    for seed in range(3):
        assert off(objective, spec, drawn(spec, seed)) < 1e-10
    assert (len(spec.permutations), sum(each.size for each in spec)) == expected()[name]
    tensors = tensors_of(objective, point_of(objective))
    flipped = {each.name: np.roll(np.arange(each.size), 1) for each in spec}
    for each in spec:
        alone = {**identity(spec), each.name: flipped[each.name]}
        moved = permuted(tensors, spec, alone)
        assert {one for one, tensor in moved.items() if not torch.equal(tensor, tensors[one])} <= {
            use.tensor for use in each.uses
        }
        assert any(not torch.equal(moved[use.tensor], tensors[use.tensor]) for use in each.uses)


@pytest.mark.parametrize("name", NETS)
def test_planted_permutations_are_undone_exactly(name: str) -> None:
    objective = objective_of(name)
    spec, tensors = spec_of(objective), tensors_of(objective, point_of(objective))
    planted = drawn(spec, 5)
    moved = permuted(tensors, spec, planted)
    assert any(not torch.equal(moved[one], tensors[one]) for one in tensors)
    back = permuted(moved, spec, inverse(spec, planted))
    both = permuted(tensors, spec, composed(spec, planted, inverse(spec, planted)))
    for one, tensor in tensors.items():
        assert torch.equal(back[one], tensor)
        assert torch.equal(both[one], tensor)
    twice = permuted(permuted(tensors, spec, planted), spec, drawn(spec, 6))
    once = permuted(tensors, spec, composed(spec, planted, drawn(spec, 6)))
    assert all(torch.equal(once[one], twice[one]) for one in tensors)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt neox", "timm vit"])
def test_each_permutation_alone_leaves_the_function(name: str) -> None:
    objective = objective_of(name)
    spec = spec_of(objective)
    for each, pi in drawn(spec, 1).items():
        assert off(objective, spec, {**identity(spec), each: pi}) < 1e-10, each


@pytest.mark.parametrize(("name", "title"), TITLES.items())
def test_the_family_is_named(name: str, title: str) -> None:
    assert spec_of(objective_of(name, "float32")).source == title


def test_every_tensor_of_bert_follows_but_the_bias_of_its_classes() -> None:
    objective = objective_of("bert")
    used = {use.tensor for each in spec_of(objective) for use in each.uses}
    assert set(objective.names) - used == {"classifier.bias"}


def test_tied_weights_follow_once() -> None:
    tied, untied = (spec_of(objective_of(name)) for name in ("gpt2", "gpt2 untied"))
    tables = [(use.tensor, use.axis) for use in tied["stream"].uses if "wte" in use.tensor or "lm_head" in use.tensor]
    assert tables == [("transformer.wte.weight", 1)]
    assert ("lm_head.weight", 1) in [(use.tensor, use.axis) for use in untied["stream"].uses]
    generator = spec_of(objective_of("bert lm"))["stream"]
    assert {"cls.predictions.transform.dense.weight"} <= {use.tensor for use in generator.uses if use.axis == 0}


def test_fused_transposed_weights_have_a_slot_for_each_part() -> None:
    spec = spec_of(objective_of("gpt2"))
    heads = spec["transformer.h.0.heads"]
    (fused,) = [use for use in heads.uses if use.tensor == "transformer.h.0.attn.c_attn.weight"]
    assert (heads.size, fused.axis, fused.index.shape) == (3, 1, (3, 12))
    assert fused.index[1].tolist() == [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31]
    assert heads.inner[2] == ("transformer.h.0.head2.qk", "transformer.h.0.head2.vo")


def test_groups_carry_their_query_heads_and_columns() -> None:
    spec = spec_of(objective_of("llama"))
    groups, queries = spec["model.layers.1.heads"], spec["model.layers.1.group1.queries"]
    assert (groups.kind, groups.size, queries.kind, queries.size) == ("key-value heads", 2, "query heads", 3)
    index = {use.tensor.split(".")[-2]: use.index.tolist() for use in groups.uses}
    assert index["q_proj"] == index["o_proj"] == [list(range(12)), list(range(12, 24))]
    assert index["k_proj"] == index["v_proj"] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    inner = {use.tensor.split(".")[-2]: use.index.tolist() for use in spec["model.layers.1.head1.vo"].uses}
    assert inner == {"v_proj": [[4], [5], [6], [7]], "o_proj": [[12 + u, 16 + u, 20 + u] for u in range(4)]}
    assert not [each.name for each in spec if each.name.endswith(".qk")]
    assert any("Rotary" in note for note in spec.notes)


def test_only_channels_that_are_not_turned_move_under_partial_rotation() -> None:
    spec = spec_of(objective_of("gpt neox"))
    (weight, _) = spec["gpt_neox.layers.0.head1.qk"].uses
    assert weight.index.tolist() == [[24 + 4 + u, 24 + 8 + 4 + u] for u in range(4)]


def test_norms_that_heads_share_stay() -> None:
    spec = spec_of(objective_of("qwen3"))
    assert not [use.tensor for each in spec for use in each.uses if "q_norm" in use.tensor or "k_norm" in use.tensor]
    full = [use for use in spec_of(objective_of("olmo2"))["model.layers.0.heads"].uses if "_norm" in use.tensor]
    assert sorted(use.tensor.split(".")[-2] for use in full) == ["k_norm", "q_norm"]


def test_names_are_those_of_a_wrapped_model() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"model": family_nets.perturbed(family_nets.timm_vit())})

        def forward(self, x: Tensor) -> Tensor:
            return self.inner["model"](2 * x)

    plain = objective_of("timm vit")
    objective = Objective.of(Wrapped(), plain.batches, "cross_entropy", dtype="float64", device="cpu")
    spec = spec_of(objective)
    assert off(objective, spec, drawn(spec, 0)) < 1e-10
    assert {use.tensor for each in spec for use in each.uses} < set(objective.names)
    assert len(spec.permutations) == len(spec_of(plain).permutations)


def test_tables_among_the_buffers_follow_without_counting() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("pe", torch.randn(7, 12))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.pe

    class Net(family_nets.EncoderClassifier):
        def __init__(self) -> None:
            super().__init__()
            self.positions, self.table = None, Positions()
            self.unused = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.table(self.tokens(x))).mean(1))

    batches = objective_of("torch encoder").batches
    module = family_nets.perturbed(Net())
    objective = Objective.of(module, batches, "cross_entropy", dtype="float64", device="cpu")
    spec = spec_of(objective)
    assert off(objective, spec, drawn(spec, 0)) < 1e-10
    assert [(use.axis, use.counts) for use in spec["stream"].uses if use.tensor == "table.pe"] == [(1, False)]
    assert any("unused.bias" in note for note in spec.notes)


def test_an_encoder_in_surroundings_that_are_not_known_keeps_its_stream() -> None:
    class Net(family_nets.EncoderClassifier):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.tokens(x) + self.positions).mean(1).cumsum(1))

    batches = objective_of("torch encoder").batches
    objective = Objective.of(family_nets.perturbed(Net()), batches, "cross_entropy", dtype="float64", device="cpu")
    spec = spec_of(objective)
    assert off(objective, spec, drawn(spec, 0)) < 1e-10
    assert (len(spec.permutations), sum(each.size for each in spec)) == count()
    assert any("residual stream" in note for note in spec.notes)


def test_points_stay_whole() -> None:
    objective = objective_of("gpt2")
    spec = spec_of(objective)
    moved = point_from(objective, permuted(tensors_of(objective, point_of(objective)), spec, drawn(spec, 2)))
    np.testing.assert_allclose(at(objective, moved).evaluate().loss, objective.evaluate().loss, rtol=1e-12)
