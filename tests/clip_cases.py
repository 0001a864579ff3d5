"""Tiny CLIP models, their tokenizer and coloured shapes with captions: made here, nothing is downloaded."""

from __future__ import annotations

import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from probes.checkpoint import read_checkpoint
from probes.data import read_batches
from probes.models import recognise
from probes.objective import Objective, build_objective
from probes.specs import DataSpec
from workspace.opened import own_of

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (230, 210, 30)}
SHAPES = ("circle", "square", "triangle", "cross")
TEMPLATE = "a {} {}."
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def tokenizer() -> Tokenizer:
    """A byte-pair tokenizer as CLIP's: ends of words are marked, captions stand between two special tokens.

    The words of the captions are one token each, but for those of six letters or more, which are two.
    """
    letters = [chr(code) for code in range(33, 127)]
    tokens, merges = [START, END, *letters, *(f"{each}{WORD_END}" for each in letters)], []
    for word in sorted({*COLOURS, *SHAPES}):
        whole = word[0]
        for each in [*word[1:-1], f"{word[-1]}{WORD_END}"][: -1 if len(word) > 5 else None]:
            if whole + each not in tokens:
                tokens.append(whole + each)
                merges.append((whole, each))
            whole += each
    made = Tokenizer(models.BPE({each: place for place, each in enumerate(tokens)}, merges, unk_token=END,
                                end_of_word_suffix=WORD_END))  # fmt: skip
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(START, 0), (END, 1)]
    made.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return made


def picture(colour: str, shape: str, rng: np.random.Generator, side: int = 16) -> np.ndarray[Any, Any]:
    """A shape of this colour somewhere on a grey ground, (side, side, 3) uint8."""
    image = Image.new("RGB", (side, side), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(side // 2, side - 4))
    left, top = (int(rng.integers(1, side - size)) for _ in range(2))
    box, middle = (left, top, left + size - 1, top + size - 1), size // 2
    if shape == "circle":
        draw.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        draw.rectangle(box, fill=COLOURS[colour])
    elif shape == "triangle":
        draw.polygon([(left, box[3]), (box[2], box[3]), (left + middle, top)], fill=COLOURS[colour])
    else:
        thick = max(1, size // 6)
        draw.rectangle((left + middle - thick, top, left + middle + thick, box[3]), fill=COLOURS[colour])
        draw.rectangle((left, top + middle - thick, box[2], top + middle + thick), fill=COLOURS[colour])
    return np.asarray(image)


def shapes(count: int, seed: int = 0, side: int = 16) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Pictures and captions, every colour and shape in turn."""
    rng = np.random.default_rng(seed)
    kinds = list(itertools.islice(itertools.cycle(itertools.product(COLOURS, SHAPES)), count))
    return np.stack([picture(*each, rng, side) for each in kinds]), [TEMPLATE.format(*each) for each in kinds]


def model(seed: int = 0, *, vocabulary: int = 256, end: int = 1, width: int = 16, layers: int = 4, **more: Any) -> Any:
    """A tiny CLIPModel of transformers."""
    import transformers

    tower = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
             "num_attention_heads": 2}  # fmt: skip
    text = {**tower, "vocab_size": vocabulary, "max_position_embeddings": 16, "eos_token_id": end, "bos_token_id": 0,
            "pad_token_id": end}  # fmt: skip
    vision = {**tower, "image_size": 16, "patch_size": 4}
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=width, **more)
    made = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for each in made.parameters():
            if each.dim() > 0:
                each += 0.1 * torch.randn_like(each)
    return made


def folder(path: Path, made: Any, side: int = 16) -> Path:
    """Save a model as the hub has it: weights, config, tokenizer, preprocessor."""
    made.save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    settings = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "do_resize": True,
                "do_center_crop": True, "do_normalize": True, "do_rescale": True, "resample": 3,
                "rescale_factor": 1 / 255, "image_mean": MEAN, "image_std": STD}  # fmt: skip
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    return path


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, pictures: np.ndarray[Any, Any], texts: list[str], listed: str = "captions.csv") -> Path:
    """A zip of pictures with a list of captions beside them."""
    rows = [{"file_name": f"images/{row}.png", "caption": text} for row, text in enumerate(texts)]
    lines = ["file_name,caption", *(f'{row["file_name"]},"{row["caption"]}"' for row in rows)]
    text = "\n".join(map(json.dumps, rows)) if listed.endswith(".jsonl") else "\n".join(lines)
    with zipfile.ZipFile(path, "w") as archive:
        for row, each in enumerate(pictures):
            archive.writestr(f"images/{row}.png", png(each))
        archive.writestr(listed, text)
    return path


def objective(home: Path, made: Any, pictures: np.ndarray[Any, Any], texts: list[str], **options: Any) -> Objective:
    """Model and pairs as the app reads them, through files."""
    path = folder(home / "clip", made)
    checkpoint = read_checkpoint(path)
    spec = recognise(checkpoint).spec
    assert spec is not None
    own = own_of(spec, checkpoint)
    data = DataSpec((str(zipped(home / "pairs.zip", pictures, texts)),))
    brought = (own.context, own.tokenizer, own.vocabulary, own.classes, own.preprocessing)
    return build_objective(spec, checkpoint, read_batches(data, {}, *brought), "caption_distance", device="cpu",
                           **options)  # fmt: skip


def train(made: Any, pixels: Tensor, ids: Tensor, groups: Tensor, steps: int, seed: int = 0) -> float:
    """Train by CLIP's own loss on batches of distinct captions; return the last loss. groups: the caption of each."""
    from torch.nn.functional import cross_entropy

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(made.parameters(), 2e-3, weight_decay=0.01)
    rows = [(groups == each).nonzero()[:, 0] for each in groups.unique()]
    made.train()
    for _ in range(steps):
        chosen = torch.stack([each[torch.randint(len(each), (1,), generator=generator)[0]] for each in rows])
        logits = made(input_ids=ids[chosen], pixel_values=pixels[chosen]).logits_per_image
        target = torch.arange(len(chosen))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made.eval()
    return float(loss.detach())
