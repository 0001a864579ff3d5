"""How many tokens a model knows, and how many it reads: from its arguments, or from the shapes of its tables."""

from __future__ import annotations

from collections.abc import Mapping

from probes.specs import ModelSpec

CAPTIONS = "text_model."
POSITIONS = ("wpe.weight", "position_embeddings.weight", "position_embedding.weight")
EMBEDDINGS = (
    "wte.weight",
    "embed_tokens.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed_in.weight",
    "token_embedding.weight",
)


def context_of(model: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the longest context of a language model: its argument or the rows of its position table; 0 if unknown.

    shapes: of the checkpoint's tensors.
    """
    return int(model.arguments.get("context", 0)) or _rows_of(POSITIONS, shapes)


def vocabulary_of(model: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many tokens a model knows: its argument or the rows of its table of tokens; 0 if unknown."""
    return int(model.arguments.get("vocabulary", 0)) or _rows_of(EMBEDDINGS, shapes)


def _rows_of(endings: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the rows of the one table with such a name; of a model of images and captions, of that of captions."""
    tables = {name: shape[0] for name, shape in shapes.items() if name.endswith(endings) and len(shape) == 2}
    read = {name: rows for name, rows in tables.items() if name.startswith(CAPTIONS)} or tables
    return next(iter(read.values())) if len(read) == 1 else 0
