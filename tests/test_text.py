"""Names from files on the page: whatever a file is called, it comes out as itself and does nothing."""

from __future__ import annotations

import random
import re

import pytest
from markdown_it import MarkdownIt

from ui.text import JOINER, as_list, as_text, duration, number, percent, size, with_error

HOSTILE = (
    "<img src=x onerror=alert(1)>.pt",
    "[click](javascript:alert(1))",
    "![picture](https://evil.example/x.png)",
    "https://evil.example/a www.evil.example someone@evil.example",
    ":red[alarm] :material/delete: :smile: :blue-badge[x] :streamlit:",
    "$\\href{javascript:alert(1)}{x}$ and $$y$$",
    "**bold** __bold__ ~~gone~~ `code` # head",
    "- list\n1. list\n> quote\n---\n| a | b |\n|---|---|",
    "a\u202egnp.exe\0\x07",
    "&lt;script&gt; &amp; &#60;",
    "<!-- --> <- -> <-> -- ---",
    "x" * 5000,
)
# What Streamlit replaces in the text itself, after Markdown has been read.
ICONS = re.compile(r":[\w+-]+:|:material/\w+:")
LINKS = re.compile(r"https?://|www\.|[\w.+-]+@[\w-]+\.\w", re.IGNORECASE)
ARROWS = re.compile(r"->|<-|--")
DIRECTIVES = re.compile(r"(?<!\\):\w+\[")


def texts(markdown: str) -> str:
    """Read with another implementation of CommonMark; fail at anything but text."""
    blocks = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown)
    assert [block.type for block in blocks] == ["paragraph_open", "inline", "paragraph_close"]
    for token in blocks[1].children or ():
        assert token.type in ("text", "text_special"), token
    return "".join(token.content for token in blocks[1].children or ())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_only_text(name: str) -> None:
    markdown = as_text(name)
    shown = texts(f"Reading {markdown}")
    for pattern in (ICONS, LINKS, ARROWS):
        assert not pattern.search(shown), pattern
    assert not DIRECTIVES.search(markdown)
    plain = shown.replace(JOINER, "").removeprefix("Reading ")
    if name.isprintable() and len(name) < 400:
        assert plain == name


def test_any_mixture_of_signs_is_only_text() -> None:
    source = random.Random(0)
    signs = [*"\\`*_{}[]()<>#+-.!|$~:&^=@\"'/ aw1é\n", "www.", "http://", "</", "&amp;", ":red[", "](", "-->"]
    for _ in range(2000):
        name = "a" + "".join(source.choices(signs, k=source.randint(1, 25)))
        shown = texts(as_text(name).strip())
        assert shown.replace(JOINER, "") == name.replace("\n", " ").strip()
        assert not LINKS.search(shown) and not ICONS.search(shown)


def test_a_list_has_one_item_for_each_sentence() -> None:
    blocks = MarkdownIt("commonmark").parse(as_list(["one\n- two", "[three](x)"]))
    assert [block.type for block in blocks].count("list_item_open") == 2


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(1234567), "1 234 567"),
        (number(0.000123456), "0.0001235"),
        (number(None), "–"),
        (number(True), "–"),
        (with_error(1.23456, 0.0123), "1.235 ± 0.012"),
        (with_error(26.5602341, 2.7e-6), "26.560 ± 3e-06"),
        (with_error(0.006156, 0.0039), "0.0062 ± 0.0039"),
        (with_error(-12345.6, 234.5), "-12350 ± 230"),
        (with_error(1.5e9, 2e7), "1.500e+09 ± 2e+07"),
        (with_error(0.0036312, 0.00033), "0.00363 ± 0.00033"),
        (with_error(0.0, 0.5), "0.00 ± 0.50"),
        (with_error(1.5, None), "1.5"),
        (percent(0.9178), "91.78 %"),
        (size(2_147_483_648), "2.1 GB"),
        (duration(3661), "1 h 1 min"),
        (duration(59.6), "1 min 0 s"),
        (duration(None), "–"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written == expected
