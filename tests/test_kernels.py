"""Which tensors count as kernels, how fused ones fall apart, what they are called and in which order they come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rotation_oracles import State, dense, held

from analyzers._base import Quiet
from probes import rotation_sums
from probes.checkpoint import Checkpoint, TensorInfo
from probes.errors import DataError
from probes.kernels import is_kernel, kernels
from probes.rotation import measure


def gpt(width: int, heads: int, turned: bool) -> State:
    shape = (width, 3 * width) if turned else (3 * width, width)
    return {"h.0.attn.c_attn.weight": torch.randn(shape), "h.0.mlp.weight": torch.randn(width, width)}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("split", ["matrix", "head"])
def test_fused_kernels_fall_apart_as_the_model_takes_them(turned: bool, split: Any) -> None:
    """nanoGPT's Linear has q, k and v below one another, transformers' Conv1D side by side."""
    heads, states = 4, [gpt(12, 4, turned) for _ in range(3)]
    checkpoints = [held(state, model_args={"n_head": heads}) for state in states]
    found, doubts = kernels(checkpoints, split)
    assert doubts == ()
    measured = measure(checkpoints, found, Quiet()).rotation
    labels = [label for each in found for label in each.labels]
    fused = [state["h.0.attn.c_attn.weight"] for state in states]
    rows = [each.T if turned else each for each in fused]
    for place, matrix in enumerate("qkv"):
        parts = [each[12 * place : 12 * place + 12] for each in rows]
        if split == "matrix":
            turned_by = dense(parts)[0]
            label = f"h.0.attn.c_attn.weight [{matrix}]"
            np.testing.assert_allclose(measured[labels.index(label)], turned_by, atol=1e-13)
            continue
        for head in range(heads):
            turned_by = dense([each[3 * head : 3 * head + 3] for each in parts])[0]
            label = f"h.0.attn.c_attn.weight [{matrix}, head {head}]"
            np.testing.assert_allclose(measured[labels.index(label)], turned_by, atol=1e-13)
    assert len(labels) == (4 if split == "matrix" else 3 * heads + 1)


@pytest.mark.parametrize("split", ["matrix", "head"])
def test_neox_keeps_q_k_and_v_of_a_head_together(split: Any) -> None:
    heads, width, name = 3, 6, "layers.0.attention.query_key_value.weight"
    tensors = [torch.randn(3 * width, width) for _ in range(3)]
    checkpoints = [held({name: each}) for each in tensors]
    found, _ = kernels(checkpoints, split, heads)
    measured = measure(checkpoints, found, Quiet()).rotation
    apart = [each.reshape(heads, 3, width // heads, width) for each in tensors]  # as modeling_gpt_neox has it
    for label, row in zip(found[0].labels, measured, strict=True):
        place = "qkv".index(label.partition("[")[2][0])
        mine = [each[:, place] for each in apart]
        mine = [each[int(label[-2])] for each in mine] if split == "head" else mine
        np.testing.assert_allclose(row, dense(mine)[0], atol=1e-13)


def test_a_wide_kernel_is_split_in_stretches_of_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation_sums, "STRETCH", 100)
    tensors = [torch.randn(16, 48) for _ in range(3)]
    checkpoints = [held({"attn.c_attn.weight": each}) for each in tensors]
    measured = measure(checkpoints, kernels(checkpoints, "matrix")[0], Quiet()).rotation
    for place in range(3):
        np.testing.assert_allclose(
            measured[place], dense([each[:, 16 * place : 16 * place + 16] for each in tensors])[0], atol=1e-13
        )


def test_splitting_by_head_needs_their_number() -> None:
    checkpoints = [held(gpt(12, 4, False))] * 2
    with pytest.raises(
        DataError, match=r"c_attn\.weight .* do not say how many heads there are\. Set the option heads"
    ):
        kernels(checkpoints, "head")
    with pytest.raises(DataError, match=r"its width is 12: 5 heads do not fit"):
        kernels(checkpoints, "head", 5)
    assert len(kernels(checkpoints, "head", 6)[0][0].labels) == 18
    config = held(gpt(12, 4, False))
    config = Checkpoint(**{**config.__dict__, "texts": {"config.json": b'{"num_attention_heads": 2}'}})
    assert len(kernels([config, config], "head")[0][0].labels) == 6


def test_grouped_queries_are_not_split_and_it_is_said() -> None:
    checkpoints = [held({"attn.qkv_proj.weight": torch.randn(20, 12)})] * 2
    found, doubts = kernels(checkpoints, "matrix")
    assert [each.labels for each in found] == [("attn.qkv_proj.weight",)]
    assert doubts == ("Not split, because it is not three matrices of one shape: attn.qkv_proj.weight.",)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "expected"),
    [
        ("fc.weight", (3, 4), "float32", True),
        ("conv.weight", (3, 1, 1, 1), "bfloat16", True),
        ("lstm.weight_ih_l0", (3, 4), "float16", True),
        ("attn.in_proj_weight", (9, 3), "float8_e4m3fn", True),
        ("norm1.linear.weight", (3, 4), "float32", True),
        ("gate.kernel", (3, 4), "float64", True),
        ("h.0.attn.bias", (1, 1, 8, 8), "float32", False),
        ("relative_position_bias_table", (9, 3), "float32", False),
        ("ln_1.weight", (3, 4), "float32", False),
        ("layernorm.weight", (3, 4), "float32", False),
        ("bn2.weight", (3, 4), "float32", False),
        ("bn.running_mean", (3, 4), "float32", False),
        ("conv.weight_g", (3, 1, 1, 1), "float32", False),
        ("layer_scale.gamma", (3, 1, 1), "float32", False),
        ("cls_token", (1, 1, 8), "float32", False),
        ("fc.weight", (3,), "float32", False),
        ("fc.weight", (3, 4), "int8", False),
        ("fc.weight_scale_inv", (3, 4), "float32", False),
        ("fc.weight", (0, 4), "float32", False),
    ],
)
def test_names_and_shapes_tell_kernels(name: str, shape: tuple[int, ...], dtype: str, expected: bool) -> None:
    assert is_kernel(name, TensorInfo(shape, dtype)) is expected


def listed(names: list[str], **facts: Any) -> list[tuple[str, str]]:
    checkpoints = [held({name: torch.ones(3, 4) for name in names}, **facts)] * 2
    return [(each.name, each.kind) for each in kernels(checkpoints)[0]]


def test_embeddings_are_marked_and_tied_tensors_count_once() -> None:
    names = ["transformer.wte.weight", "wpe.weight", "model.embed_tokens.weight", "pos_embed", "lm_head.weight"]
    assert listed(names, tied={"lm_head.weight": "transformer.wte.weight"}) == [
        (each, "embedding") for each in names[:4]
    ]
    assert listed(["embed_out.weight"]) == [("embed_out.weight", "kernel")]


def test_depth_is_the_order_of_the_file_and_numbers_count_as_numbers() -> None:
    given = ["stem.weight", "b.weight", "a.weight"]
    assert [name for name, _ in listed(given)] == given
    alphabetical = ["h.0.weight", "h.1.weight", "h.10.weight", "h.11.weight", "h.2.weight"]
    assert [name for name, _ in listed(alphabetical)] == [f"h.{index}.weight" for index in (0, 1, 2, 10, 11)]


def test_a_head_of_other_classes_is_left_out_and_named() -> None:
    one = held({"a.weight": torch.ones(3, 4), "head.weight": torch.ones(9, 4)}, "start.pt")
    two = held({"a.weight": torch.ones(3, 4), "head.weight": torch.ones(2, 4)}, "tuned.pt")
    found, doubts = kernels([one, two])
    assert [each.name for each in found] == ["a.weight"]
    assert doubts == (
        "Not all checkpoints have the same kernels; left out: head.weight has the shape [9, 4] in start.pt and [2, 4] "
        "in tuned.pt.",
    )
    with pytest.raises(DataError, match=r"no kernel in common: b\.weight is not in start\.pt"):
        kernels([held({"b.weight": torch.ones(3, 4)}), one])
    with pytest.raises(DataError, match="no floating tensor of two dimensions"):
        kernels([held({"b.bias": torch.ones(3)})] * 2)


def test_leave_out_takes_parts_of_names() -> None:
    checkpoints = [held({"a.weight": torch.ones(3, 4), "down.weight": torch.ones(3, 4)})] * 2
    assert [each.name for each in kernels(checkpoints, leave_out="down, shortcut")[0]] == ["a.weight"]
