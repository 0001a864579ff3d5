"""CLIP folders and word scores, against transformers itself, a text tower written by hand, and finite differences."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import clip_cases as cases
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from probes.attribution import AttributionError, clip, clip_patches
from probes.checkpoint import read_checkpoint
from probes.clip import ends_of
from probes.data import read_batches
from probes.dataset.examples import Word
from probes.errors import DataError, ModelError, ObjectiveError
from probes.models import load_model, recognise
from probes.objective import Objective, build_objective
from probes.specs import DataSpec

ROWS = 5


@pytest.fixture(scope="module")
def made() -> Any:
    return cases.model()


@pytest.fixture(scope="module")
def objective(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Objective:
    pictures, texts = cases.shapes(ROWS)
    return cases.objective(tmp_path_factory.mktemp("clip"), copy.deepcopy(made), pictures, texts, dtype="float64")


def vectors(objective: Objective) -> Tensor:
    return clip.image_vectors(objective)


def test_a_folder_gives_the_cosines_of_transformers(made: Any, objective: Objective) -> None:
    with torch.no_grad():
        theirs = made.double()(input_ids=objective.targets, pixel_values=objective.inputs.double())
        own = objective.module(objective.inputs.float(), objective.targets)
    scale = made.logit_scale.exp()
    assert torch.allclose(own.double(), (theirs.logits_per_image / scale).diagonal(), atol=1e-6)
    assert objective.example_losses() == pytest.approx(1 - own.double().numpy(), abs=1e-6)
    made.float()


def test_the_loss_of_pairs_does_not_depend_on_the_batch(objective: Objective) -> None:
    whole = objective.gradient()
    objective.micro_batch, before = 2, objective.micro_batch
    parts = objective.gradient()
    objective.micro_batch = before
    assert torch.allclose(whole, parts, atol=1e-12)
    assert whole.abs().max() > 0


def test_single_gradients_are_those_of_autograd_also_by_a_scalar_parameter(objective: Objective) -> None:
    from probes.one_by_one import one_by_one

    found = one_by_one(objective, range(len(objective.theta)), {}, lambda _share, _words: None)
    for row in range(2):
        slopes = torch.autograd.grad(objective.part_loss(objective.theta, slice(row, row + 1)) * ROWS, objective.theta,
                                     allow_unused=True, materialize_grads=True)  # fmt: skip
        assert found.squares[row].numpy() == pytest.approx([float(each.square().sum()) for each in slopes], rel=1e-6)
        assert float(found.losses[row]) == pytest.approx(objective.example_losses()[row])
        dots = [float((slope * each.detach()).sum()) for slope, each in zip(slopes, objective.theta, strict=True)]
        assert found.dots[row].numpy() == pytest.approx(dots, abs=1e-8)
    scalar = objective.names.index("logit_scale")
    assert objective.theta[scalar].ndim == 0 and (found.squares[:, scalar] == 0).all()


def test_other_kinds_of_clip_are_still_refused(made: Any, tmp_path: Path) -> None:
    path = cases.folder(tmp_path / "clip", made)
    config = json.loads((path / "config.json").read_text())
    for change in ({"architectures": ["XCLIPModel"]}, {"architectures": ["CLIPVisionModel"]}):
        (path / "config.json").write_text(json.dumps({**config, **change}))
        assert recognise(read_checkpoint(path)).spec is None


def test_an_image_alone_and_other_losses_are_refused_in_words(objective: Objective) -> None:
    with pytest.raises(ObjectiveError, match="with a caption"):
        objective.module(objective.inputs.float())
    with pytest.raises(ObjectiveError, match="with a caption"):
        Objective(objective.module, objective.batches, "cross_entropy", device="cpu")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3))
    with pytest.raises(ObjectiveError, match="needs a CLIP model"):
        Objective(net, objective.batches, "caption_distance", device="cpu")


def _changed(objective: Objective, **changes: Any) -> Objective:
    from dataclasses import replace

    return Objective(objective.module, replace(objective.batches, **changes), "caption_distance", device="cpu")


def test_pairs_that_do_not_fit_are_refused_in_words(objective: Objective) -> None:
    batches = objective.batches
    with pytest.raises(DataError, match="images of 3 x 16 x 16"):
        _changed(objective, inputs=batches.inputs[:, :, :12])
    with pytest.raises(DataError, match="no captions"):
        _changed(objective, targets=batches.targets[:, 0])
    with pytest.raises(DataError, match="the model knows 0 to 255"):
        _changed(objective, targets=batches.targets + 300)
    with pytest.raises(DataError, match="no end token"):
        _changed(objective, targets=batches.targets[:, :-1])
    with pytest.raises(DataError, match="the model reads 16"):
        _changed(objective, targets=torch.ones(ROWS, 17, dtype=torch.int64))


@pytest.mark.parametrize("end", [1, 2])
def test_the_end_token_is_found_as_the_model_finds_it(end: int) -> None:
    made = cases.model(end=end)
    ids = torch.tensor([[0, 5, 7, 9, 255, 255], [0, 5, 255, 255, 255, 255]] if end == 2 else
                       [[0, 5, 7, 9, 1, 1], [0, 5, 1, 1, 1, 1]])  # fmt: skip
    assert ends_of(made, ids).tolist() == [4, 2]
    with torch.no_grad():
        found = made.text_model(input_ids=ids)
    picked = found.last_hidden_state[torch.arange(2), ends_of(made, ids)]
    assert torch.equal(found.pooler_output, picked)


def by_hand(
    weights: dict[str, Tensor], ids: Tensor, image: Tensor, push: dict[int, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The cosine of one caption (T,) and one unit vector, with `push` added to the attention of some blocks."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def heads(x: Tensor) -> Tensor:
        return x.view(len(ids), 2, -1).transpose(0, 1)

    x = weights["text_model.embeddings.token_embedding.weight"][ids]
    x = x + weights["text_model.embeddings.position_embedding.weight"][: len(ids)]
    maps = []
    for block in range(4):
        at = f"text_model.encoder.layers.{block}"
        y = norm(f"{at}.layer_norm1", x)
        q, k, v = (heads(linear(f"{at}.self_attn.{each}_proj", y)) for each in "qkv")
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        hidden = torch.ones(len(ids), len(ids)).triu(1).bool()
        attention = scores.masked_fill(hidden, -torch.inf).softmax(-1) + push.get(block, 0)
        maps.append(attention)
        mixed = (attention @ v).transpose(0, 1).reshape(len(ids), -1)
        x = x + linear(f"{at}.self_attn.out_proj", mixed)
        y = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        x = x + linear(f"{at}.mlp.fc2", y * torch.sigmoid(1.702 * y))
    last = norm("text_model.final_layer_norm", x)[int((ids == 1).int().argmax())]
    return normalize(last @ weights["text_projection.weight"].T, dim=-1) @ image, maps


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_scores_are_those_of_a_tower_written_by_hand_and_of_finite_differences(
    objective: Objective, blocks: int
) -> None:
    weights = {name: each.double() for name, each in objective.module.state_dict().items()}
    images, ids = vectors(objective), objective.targets
    found = clip.relevance(objective, images, ids, blocks)
    for row in range(2):
        line = ids[row]
        end = int((line == 1).int().argmax())
        zero = {
            block: torch.zeros(2, len(line), len(line), dtype=torch.float64, requires_grad=True) for block in range(4)
        }
        cosine, maps = by_hand(weights, line, images[row], zero)
        assert found.cosines[row] == pytest.approx(float(cosine.detach()), abs=1e-6)
        slopes = torch.autograd.grad(cosine, list(zero.values()))
        total = sum((slope * each).mean(0)[end] for slope, each in zip(slopes[-blocks:], maps[-blocks:], strict=True))
        assert found.tokens[row] == pytest.approx((total / blocks).detach().numpy(), abs=1e-6)
        with torch.no_grad():
            other, step = np.zeros(len(line)), 1e-5
            for block in range(4 - blocks, 4):
                for place in range(end + 1):
                    for head in range(2):
                        push = torch.zeros(2, len(line), len(line), dtype=torch.float64)
                        push[head, end, place] = step
                        ends = [float(by_hand(weights, line, images[row], {block: sign * push})[0]) for sign in (1, -1)]
                        slope = (ends[0] - ends[1]) / (2 * step)
                        other[place] += slope * float(maps[block][head, end, place]) / 2 / blocks
        assert found.tokens[row] == pytest.approx(other, abs=1e-6)


def test_scores_are_those_of_transformers_own_attention(made: Any, objective: Objective) -> None:
    model = copy.deepcopy(made).double()
    model.set_attn_implementation("eager")
    images, ids = vectors(objective), objective.targets
    out = model.text_model(input_ids=ids, output_attentions=True)
    text = normalize(model.text_projection(out.pooler_output), dim=-1)
    chosen = out.attentions[-3:]
    slopes = torch.autograd.grad((text * images).sum(), chosen)
    whole = torch.stack([(a * g).mean(1) for a, g in zip(chosen, slopes, strict=True)]).mean(0)
    expected = whole[torch.arange(ROWS), (ids == 1).int().argmax(1)]
    assert clip.relevance(objective, images, ids).tokens == pytest.approx(expected.detach().numpy(), abs=1e-6)


def test_word_scores_do_not_depend_on_the_batch_or_on_padding(objective: Objective) -> None:
    images, words = vectors(objective), [each.words for each in objective.batches.captions]
    whole = clip.scores(objective, images, objective.targets, words)
    wider = torch.cat([objective.targets, torch.ones(ROWS, 4, dtype=torch.int64)], 1)
    again = clip.scores(objective, images, wider, words)
    alone = clip.scores(objective, images[2:3], objective.targets[2:3], words[2:3])
    assert np.concatenate(whole.words) == pytest.approx(np.concatenate(again.words), abs=1e-9)
    assert whole.words[2] == pytest.approx(alone.words[0], abs=1e-9)
    below = [sum(each for each in row if each < 0) for row in whole.words]
    assert whole.f_clip == pytest.approx(whole.cosines + below)


def test_a_word_has_the_mean_of_its_tokens() -> None:
    words = (Word("a", 1, 2), Word("bee", 2, 4), Word(".", 4, 5))
    found = clip.word_scores(np.array([9.0, 1.0, -2.0, -4.0, -8.0, 9.0]), words)
    assert found.tolist() == [1.0, -3.0, -8.0]
    assert clip.worst(found, words) == 1
    assert clip.worst(found[2:], words[2:]) is None


def test_nothing_of_the_model_is_changed(objective: Objective) -> None:
    module, images = objective.module, vectors(objective)
    before = {name: each.clone() for name, each in module.state_dict().items()}
    kernels = [module.config._attn_implementation, module.text_model.config._attn_implementation]
    with torch.no_grad():
        first = module(objective.inputs.float(), objective.targets)
    clip.relevance(objective, images, objective.targets)
    with pytest.raises(AttributionError, match="4 blocks; 5 were asked for"):
        clip.relevance(objective, images, objective.targets, 5)
    with pytest.raises(RuntimeError):
        clip.relevance(objective, images[:, :3], objective.targets)
    with torch.no_grad():
        assert torch.equal(module(objective.inputs.float(), objective.targets), first)
    assert (
        kernels == [module.config._attn_implementation, module.text_model.config._attn_implementation] == ["sdpa"] * 2
    )
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in module.text_model.embeddings.modules())
    assert all(each.grad is None for each in module.parameters())
    assert not module.training


def test_patches_are_complete_and_know_what_does_not_matter(objective: Objective) -> None:
    found = clip_patches.patches(objective, 1, 1e-4)
    image, ids = objective.inputs[1:2], objective.targets[1:2]
    start = objective.inputs.mean((0, 2, 3))[None, :, None, None].expand_as(image)
    with torch.no_grad():
        module = copy.deepcopy(objective.module).double()
        ends = [float(module(each, ids)) for each in (start, image)]
    assert found.values.shape == (4, 4) and found.error <= 1e-4
    assert (found.baseline, found.cosine) == pytest.approx(tuple(ends), abs=1e-9)
    assert found.values.sum() == pytest.approx(ends[1] - ends[0], rel=1e-4)
    flat = copy.copy(objective)
    flat.inputs = objective.inputs.clone()
    for _ in range(12):  # until the corner has the mean colour of all images, its own pixels among them
        flat.inputs[1, :, :4, :4] = flat.inputs.mean((0, 2, 3))[:, None, None]
    assert abs(clip_patches.patches(flat, 1, 1e-3).values[0, 0]) < 1e-9


def test_a_checkpoint_of_other_sizes_does_not_fit(made: Any, tmp_path: Path) -> None:
    spec = recognise(read_checkpoint(cases.folder(tmp_path / "one", made))).spec
    other = read_checkpoint(cases.folder(tmp_path / "two", cases.model(width=8)))
    assert spec is not None
    with pytest.raises(ModelError):
        load_model(spec, other)
    data = DataSpec((str(cases.zipped(tmp_path / "p.zip", *cases.shapes(3))),))
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        build_objective(spec, other, read_batches(data), "caption_distance")
