"""What a reference means, once its files can be read: weights, merged with their base; and what they bring along."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probes.checkpoint import Checkpoint
from probes.specs import ModelSpec
from workspace.references import Reference

if TYPE_CHECKING:
    from probes.dataset.examples import Own

TOKENIZER, CONFIG = "tokenizer.json", "config.json"
_UNNAMED = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named
_MOST_CLASSES = 100_000


def joined(meant: Reference, read: Callable[[str, str], Checkpoint]) -> Checkpoint:
    """Return the weights that are meant; those of an adapter merged with its base.

    read: gives the checkpoint of a file by its sha256 and the name of a set of weights in it. Raises RefusedCheckpoint
    or ModelError.
    """
    own = read(meant.sha256, meant.weights)
    return on_base(joined(meant.base, read), own) if meant.base else own


def on_base(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """Merge an adapter with its base, under the names of the base's model; raise ModelError where they do not fit."""
    from probes.lora import merge

    if "hugging_face" in base.facts:
        from probes.hugging_face import fit_names

        base = fit_names(base, base.path)
    return merge(base, adapter)


def own_of(model: ModelSpec, checkpoint: Checkpoint) -> Own:
    """Return what model and checkpoint know that data may need: context, vocabulary, tokenizer, classes, sizes."""
    from probes.dataset.examples import Own
    from probes.dataset.preprocessing import FILE, preprocessing_of
    from probes.token_tables import context_of, vocabulary_of

    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    beside = [Path(model.folder)] if model.source == "hugging_face" and model.folder else []
    beside += [checkpoint.path.parent] if TOKENIZER in checkpoint.texts else []
    tokenizer = next((home / TOKENIZER for home in beside if (home / TOKENIZER).is_file()), None)
    classes = classes_of(checkpoint.texts.get(CONFIG, b"{}"))
    preprocessing = preprocessing_of(checkpoint.texts.get(FILE, b""))
    return Own(context_of(model, shapes), vocabulary_of(model, shapes), tokenizer, classes, preprocessing)


def classes_of(config: bytes) -> tuple[str, ...]:
    """Return the names of a model's classes in its order, as config.json has them; () where nobody named them."""
    try:
        held: Any = json.loads(config)
    except ValueError:
        return ()
    labels = held.get("id2label") if isinstance(held, dict) else None
    if not isinstance(labels, Mapping) or not 0 < len(labels) <= _MOST_CLASSES:
        return ()
    names = [labels.get(str(index)) for index in range(len(labels))]
    known = [each for each in names if isinstance(each, str) and not _UNNAMED.fullmatch(each)]
    return tuple(known) if len(known) == len(names) else ()
