"""Permutation specifications of known families of transformers, recognised by the classes and parts of their layers."""

from __future__ import annotations

from probes.families.bert import BERT, MODERNBERT
from probes.families.gpt2 import GPT2
from probes.families.llama import LLAMA
from probes.families.neox import NEOX, OPT
from probes.families.refused import refuse
from probes.families.torch_transformer import torch_transformer
from probes.families.vit import VIT
from probes.objective import Objective
from probes.permutations import PermutationSpec

FAMILIES = (BERT, MODERNBERT, GPT2, LLAMA, NEOX, OPT, VIT)


def family(objective: Objective) -> PermutationSpec | None:
    """Return the specification of a model of a known family, or None where its layers are of none.

    Raises ModelError, naming the family, where a model of it has a part whose units cannot be followed.
    """
    refuse(objective.module)
    for each in FAMILIES:
        found = each.specification(objective)
        if found is not None:
            return found
    return torch_transformer(objective)
