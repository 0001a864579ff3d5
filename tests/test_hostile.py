"""Every file of the corpus gets its verdict, in words, in little time and memory, and nothing in it runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from corpus import CORPUS, check_words, lay_out, touched, watch
from hostile.assemble import Case

SECONDS = 10
MEGABYTES = 512
SINGING = [case for case in CORPUS if case.canary]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def paths(base: Path) -> dict[str, Path]:
    return lay_out(base)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def answers(paths: dict[str, Path], scratch: Path) -> dict[str, dict[str, Any]]:
    return watch("inspect", paths, scratch)


def test_the_corpus_is_large_and_of_every_kind() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS)
    verdicts = Counter(case.verdict for case in CORPUS)
    assert verdicts["refused"] >= 300 and verdicts["ok"] >= 50 and verdicts["warning"] >= 20
    assert len(SINGING) >= 80


def test_the_canaries_sing_where_files_are_opened_carelessly(tmp_path: Path) -> None:
    """Otherwise their silence would prove nothing."""
    files = lay_out(tmp_path, SINGING)
    watch("careless", files, tmp_path)
    assert [case.name for case in SINGING if not touched(case, tmp_path / "corpus")] == []


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_the_verdict_the_words_and_nothing_else(case: Case, paths: dict[str, Path], base: Path, answers: Any) -> None:
    answer = answers[case.name]
    assert (answer["verdict"], answer["message"]) == (case.verdict, answer["message"])
    check_words(case, paths[case.name], answer["message"])
    assert answer["seen"] == []
    assert answer["seconds"] < SECONDS
    assert answer["megabytes"] < MEGABYTES
    assert not touched(case, base / "corpus")
    if case.verdict != "refused":
        assert answer["tensors"]
        assert len(answer["sha256"]) == 64


def test_nothing_is_left_in_the_folder_for_scratch(answers: Any, scratch: Path) -> None:
    assert answers
    assert list(scratch.iterdir()) == []
