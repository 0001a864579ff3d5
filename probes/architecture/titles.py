"""A few words for a model, whatever its source. No torch here, but for a Hugging Face folder's and a pasted text's."""

from __future__ import annotations

from pathlib import Path

from probes.architecture.families import family_of
from probes.specs import ModelSpec


def title_of(spec: ModelSpec) -> str:
    """Name a model in a few words; raise ModelError for a family or a text that is not known."""
    if spec.source == "text":
        from probes.architecture.model_text import title_of_text

        return title_of_text(spec.text)
    if spec.source == "hugging_face":
        from probes.hugging_face import title_of_folder

        return title_of_folder(Path(spec.folder))
    if spec.source == "library":
        from probes.library import title_of_library

        return title_of_library(spec)
    if spec.source == "operator":
        module, _, model = spec.name.partition(":")
        return f"{model} of the operator's {module}"
    if spec.source == "trusted":
        return f"the module in the trusted file {Path(spec.folder).name}"
    return family_of(spec.name).name_of(spec.arguments)
