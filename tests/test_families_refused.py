"""Specifications known to be wrong break the function; families that are not supported are refused in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import family_nets
import numpy as np
import pytest
import timm
import torch
import torchvision
import transformers
from curvature_oracles import batches, cnn, mlp
from family_nets import NETS, objective_of
from test_families import off, spec_of
from torch import nn

from probes.equivalence import check
from probes.errors import ModelError
from probes.families import family
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use, drawn, identity

Wrong = Callable[[PermutationSpec], PermutationSpec]


def heads_ignored(spec: PermutationSpec) -> PermutationSpec:
    """Queries and keys share one permutation of all units, values have another: heads are not looked at."""
    kept = [each for each in spec if ".head" not in each.name]
    all_units = np.arange(12)[:, None]
    for layer in range(2):
        own = f"bert.encoder.layer.{layer}.attention"
        names = [[f"{own}.self.{part}.{kind}" for kind in ("weight", "bias")] for part in ("query", "key", "value")]
        matched = [Use(name, 0, all_units) for name in (*names[0], *names[1])]
        passed = [Use(name, 0, all_units) for name in names[2]] + [Use(f"{own}.output.dense.weight", 1, all_units)]
        kept += [Permutation(f"{own}.qk", 12, tuple(matched)), Permutation(f"{own}.vo", 12, tuple(passed))]
    return PermutationSpec(tuple(kept), "by hand")


def free_query_heads(spec: PermutationSpec) -> PermutationSpec:
    """Every query head may take the place of every other, whatever keys and values it shares."""
    kept = [each for each in spec if each.name in ("stream", *(f"model.layers.{n}.mlp" for n in range(2)))]
    blocks = np.arange(24).reshape(6, 4)
    for layer in range(2):
        own = f"model.layers.{layer}.self_attn"
        uses = Use(f"{own}.q_proj.weight", 0, blocks), Use(f"{own}.o_proj.weight", 1, blocks)
        kept.append(Permutation(f"{own}.heads", 6, uses, "heads"))
    return PermutationSpec(tuple(kept), "by hand")


def within_rotary_heads(pairs: bool) -> Wrong:
    """Channels of queries and keys within a head change places, alone or in pairs that turn together."""

    def wrong(spec: PermutationSpec) -> PermutationSpec:
        made = []
        for group in range(2):
            keys = group * 4 + np.arange(4)[:, None]
            queries = np.array([[(group * 3 + head) * 4 + unit for head in range(3)] for unit in range(4)])
            if pairs:  # channel u turns with channel u + 2
                keys, queries = (np.hstack([each[:2], each[2:]]) for each in (keys, queries))
            own = "model.layers.0.self_attn"
            uses = Use(f"{own}.q_proj.weight", 0, queries), Use(f"{own}.k_proj.weight", 0, keys)
            made.append(Permutation(f"{own}.head{group}.qk", len(keys), uses, "within a head"))
        return PermutationSpec((*spec, *made), "by hand")

    return wrong


WRONG = {
    "heads ignored": ("bert", heads_ignored),
    "free query heads": ("llama", free_query_heads),
    "within rotary heads": ("llama", within_rotary_heads(pairs=False)),
    "pairs within rotary heads": ("llama", within_rotary_heads(pairs=True)),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specifications_break_the_function(name: str) -> None:
    net, wrong = WRONG[name]
    objective = objective_of(net)
    spec = wrong(spec_of(objective))
    found = {each.name: np.roll(np.arange(each.size), 1) for each in spec}
    assert off(objective, spec, found) > 1e-3
    added = {each.name for each in spec} - {each.name for each in spec_of(objective)} or {
        each.name for each in spec if each.name.endswith("self_attn.heads")
    }
    assert off(objective, spec, {**found, **{each: identity(spec)[each] for each in added}}) < 1e-10


@pytest.mark.parametrize("name", WRONG)
def test_wrong_specifications_are_refused_by_the_gate_naming_the_layer(name: str) -> None:
    net, wrong = WRONG[name]
    objective = objective_of(net, "float32")
    layer = "bert.encoder.layer" if net == "bert" else "model.layers"
    with pytest.raises(ModelError, match=rf"by hand.* is refused.* the layer `{layer}\.\d\.(self_)?att"):
        check(objective, wrong(spec_of(objective)))


@pytest.mark.parametrize("name", NETS)
def test_the_gate_lets_every_family_pass(name: str) -> None:
    objective = objective_of(name, "float32")
    assert check(objective, spec_of(objective), seeds=(0,)).error < 1e-10


def small(module: nn.Module, *, pictures: bool = True) -> Objective:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32) if pictures else torch.randint(1, 20, (2, 6))
    return Objective(module, batches(x, torch.randint(3, (2,))), "cross_entropy", device="cpu")


def swin() -> Objective:
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
    config = transformers.SwinConfig(image_size=32, num_labels=3, **sizes)
    return small(family_nets._as_logits(transformers.SwinForImageClassification(config)))


def swin_of_torchvision() -> Objective:
    return small(torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=3))


def swin_of_timm() -> Objective:
    sizes = {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    return small(timm.models.swin_transformer.SwinTransformer(num_classes=3, **sizes))


def encoder_of_t5() -> Objective:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 23}
    model = transformers.T5EncoderModel(transformers.T5Config(pad_token_id=0, **sizes))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = model, nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(input_ids=x).last_hidden_state.mean(1))

    return small(Net(), pictures=False)


def mixtral() -> Objective:
    sizes = {key: each for key, each in family_nets._DECODER.items() if key not in ("head_dim", "pad_token_id")}
    config = transformers.MixtralConfig(**{**sizes, "num_local_experts": 2, "num_experts_per_tok": 1})
    module = family_nets._as_logits(transformers.MixtralForCausalLM(config))
    tokens = torch.randint(1, 20, (2, 6))
    return Objective(module, batches(tokens, tokens), "causal_lm", device="cpu")


def decoder_of_torch() -> Objective:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(23, 8), nn.Linear(8, 3)
            self.decoder = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.decoder(self.tokens(x), self.tokens(x)).mean(1))

    return small(Net(), pictures=False)


def decoding_bert() -> Objective:
    more = {**family_nets._ENCODER, "is_decoder": True, "add_cross_attention": True}
    return small(family_nets._hub("bert", "BertForSequenceClassification", **more), pictures=False)


def more_than_a_vit() -> Objective:
    module = family_nets.timm_vit(img_size=32)
    module.prompt = nn.Parameter(torch.zeros(1, 2, 12))
    return small(module)


def weight_normed() -> Objective:
    module = family_nets.timm_vit(img_size=32)
    nn.utils.parametrizations.weight_norm(module.blocks[0].mlp.fc1)
    return small(module)


REFUSED = {
    swin: "Swin", swin_of_torchvision: "Swin", swin_of_timm: "Swin", encoder_of_t5: "T5",
    mixtral: "Mixture of experts", decoder_of_torch: "TransformerDecoder",
    decoding_bert: r"BERT: how units move in the tensor bert\.encoder\.layer\.0\.crossattention.* \(and \d+ more\)",
    more_than_a_vit: "ViT: how units move in the tensor prompt is not known",
    weight_normed: r"ViT: a weight of shape \(24, 12\) is computed from other parameters",
}  # fmt: skip


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_families_without_rules_are_refused_in_words(make: Callable[[], Objective]) -> None:
    with pytest.raises(ModelError, match=REFUSED[make]) as refused:
        family(make())
    assert "Write the specification by hand" in str(refused.value)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_other_networks_are_of_no_family(make: Callable[[], tuple[nn.Module, object]]) -> None:
    module, examples = make()
    assert family(Objective.of(module, examples, "cross_entropy", device="cpu")) is None


def test_a_layer_with_parts_of_its_own_is_of_no_family_by_its_class_alone() -> None:
    class BertLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    objective = Objective.of(BertLayer(), batches(torch.randn(4, 5), torch.randint(3, (4,))), "cross_entropy")
    assert family(objective) is None


def test_heads_of_unknown_number_are_refused() -> None:
    objective = objective_of("timm vit")
    for block in objective.module.blocks:
        del block.attn.num_heads, block.attn.head_dim
    with pytest.raises(ModelError, match="does not tell how many heads"):
        family(objective)


def test_specifications_by_hand_differ_only_where_they_are_wrong() -> None:
    objective = objective_of("bert")
    spec = heads_ignored(spec_of(objective))
    right = replace(
        spec, permutations=tuple(each for each in spec if ".qk" not in each.name and ".vo" not in each.name)
    )
    assert off(objective, right, drawn(right, 0)) < 1e-10
