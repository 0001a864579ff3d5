"""Coloured words: escaped, the scale symmetric and without special tokens, the numbers in print."""

from __future__ import annotations

import re

import pytest

from tests.test_text import HOSTILE
from ui.attribution_words import units
from ui.coloured_words import STRONGEST, html_of


def opacities(html: str) -> list[float]:
    return [float(each) for each in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", html)]


def test_the_scale_is_symmetric_and_special_tokens_are_left_out_of_it() -> None:
    html = html_of(["<s>", "good", "bad", "dull"], [-50.0, 2.0, -2.0, 1.0], [True, False, False, False])
    assert opacities(html) == [0.0, STRONGEST, STRONGEST, pytest.approx(STRONGEST / 2, abs=1e-3)]
    assert "178,24,43" in html and "33,102,172" in html
    for number in ("-50", "+2<", "-2<", "+1<"):
        assert number in html


def test_one_scale_can_be_set_for_several_texts() -> None:
    assert opacities(html_of(["a"], [1.0], [False], largest=4.0)) == [pytest.approx(STRONGEST / 4, abs=1e-3)]
    assert opacities(html_of(["a"], [9.0], [False], largest=4.0)) == [STRONGEST]


@pytest.mark.parametrize("text", [*HOSTILE, '"><script>alert(1)</script>', "a' onmouseover='x"])
def test_hostile_tokens_stay_text(text: str) -> None:
    html = html_of([text], [0.5], [False])
    inside = re.sub(r'<div style="[^"]*">|</div>|<span style="[^"]*" title="[^"]*">|</span>|<sub style="[^"]*">|</sub>',
                    "", html)  # fmt: skip
    assert not re.search(r"[<>\"']", inside)


def test_what_would_not_be_seen_is_shown() -> None:
    html = html_of(["\n", "  ", "\x00"], [0.0, 0.0, 0.0], [False] * 3)
    assert "⏎" in html and "␣" in html and "�" in html


def test_words_have_the_sums_of_their_tokens_and_the_text_of_the_tokenizer() -> None:
    words = [{"first": 0, "stop": 1, "text": "[CLS]"}, {"first": 1, "stop": 3, "text": "playing"}]
    case = {"tokens": ["[CLS]", "play", "##ing"], "special": [True, False, False], "words": words}
    whole = units(case, [0.5, 1.0, -0.25], by_word=True)
    assert (whole.texts, whole.values.tolist(), whole.special.tolist(), whole.end) == (
        ["[CLS]", "playing"], [0.5, 0.75], [True, False], 0.75,
    )  # fmt: skip
    assert units(case, [0.5, 1.0, -0.25], by_word=False).texts == case["tokens"]
    assert units({**case, "words": []}, [0.5, 1.0, -0.25], by_word=True).texts == case["tokens"]
