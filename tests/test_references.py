"""References go to text and back."""

from __future__ import annotations

import pytest

from workspace.references import Reference, reference

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        (A, Reference(A)),
        (f"{A}:model_ema", Reference(A, "model_ema")),
        (f"{A}+{B}", Reference(A, base=Reference(B))),
        (f"{A}:x.y+{B}:ema", Reference(A, "x.y", Reference(B, "ema"))),
    ],
)
def test_a_reference_is_its_text(text: str, parsed: Reference) -> None:
    assert reference(text) == parsed
    assert str(parsed) == text
