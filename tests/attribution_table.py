"""The table of docs/attribution.md: every method on every kind of model, as the analyzer finds it.

`python tests/attribution_table.py` writes it anew; the test of the same name compares.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [each for each in (str(ROOT), str(ROOT / "tests")) if each not in sys.path]

from attribution_cases import objective_of  # noqa: E402

from analyzers._base import Quiet  # noqa: E402
from analyzers.attribution import Attribution  # noqa: E402

DOCUMENT = ROOT / "docs" / "attribution.md"
BEGIN, END = "<!-- table of methods: begin -->", "<!-- table of methods: end -->"
NETS = {
    "CNN": "cnn", "ResNet-20": "resnet20", "ViT": "vit", "BERT": "bert", "GPT-2": "gpt2", "tabular MLP": "tabular",
}  # fmt: skip
CHECKPOINT = SimpleNamespace(name="net.pt", sha256="0" * 64, facts={})


@cache
def maps_on(net: str) -> tuple[dict[str, Any], ...]:
    """Run every method on one example of a tiny net, with few samples; the maps of the result."""
    asked = Attribution(methods="all", dtype="float64", judge=False, samples=12, iterations=8, areas="0.2")
    return tuple(asked.run(objective_of(NETS[net]), (CHECKPOINT,), Quiet()).values["maps"])


def written() -> str:
    """The table and the reasons below it, as they stand in the document."""
    reasons: list[str] = []
    lines = [f"| method | {' | '.join(NETS)} |", f"|---|{'---|' * len(NETS)}"]
    for number, first in enumerate(maps_on("CNN")):
        cells = [_cell(maps_on(net)[number], reasons) for net in NETS]
        lines.append(f"| {first['title']} (`{first['method']}`) | {' | '.join(cells)} |")
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *told])


def in_document() -> str:
    """The table as it stands in the document."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip()


def _cell(one: dict[str, Any], reasons: list[str]) -> str:
    words = {"ok": "runs", "doubtful": "runs, doubtful", "refused": "no", "invalid": "INVALID"}[one["badge"]]
    if one["badge"] == "ok":
        return words
    said = " ".join(one["reasons"])
    if one["badge"] == "doubtful":
        said = re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "…", said)
    said = re.sub(r"but this model has [^;.]*?(?=;|\.|, where)", "but this model has others", said)
    if said not in reasons:
        reasons.append(said)
    return f"{words} ({reasons.index(said) + 1})"


if __name__ == "__main__":
    head, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{written()}\n{END}{rest.split(END)[1]}")
