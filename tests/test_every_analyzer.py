"""Every analyzer is whole: page, document, options that a form can show, no torch on import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from analyzers import catalogue
from analyzers._base import Analyzer, Result

ROOT = Path(__file__).resolve().parents[1]
ANALYZERS = sorted(catalogue().items())


def test_there_is_an_analyzer() -> None:
    assert "hessian_spectrum" in catalogue()


@pytest.mark.parametrize(("name", "analyzer"), ANALYZERS)
def test_has_a_page_and_a_document(name: str, analyzer: type[Analyzer]) -> None:
    assert (ROOT / "pages" / f"{name}.py").is_file()
    document = (ROOT / "docs" / f"{name}.md").read_text()
    for heading in ("What it shows", "What it costs", "When it misleads", "References"):
        assert f"## {heading}" in document
    for option in analyzer.options():
        assert f"`{option.name}`" in document, f"docs/{name}.md does not explain the option {option.name}"


@pytest.mark.parametrize(("name", "analyzer"), ANALYZERS)
def test_describes_itself_and_its_options(name: str, analyzer: type[Analyzer]) -> None:
    assert analyzer.name == name
    assert analyzer.title
    assert analyzer.question.endswith("?")
    assert issubclass(analyzer.result, Result)
    for option in analyzer.options():
        assert option.label
        assert option.help.endswith(".")
        assert option.check(option.default) == option.default
        if option.minimum is not None:
            with pytest.raises(ValueError, match=option.name):
                option.check(option.minimum - 1)


def test_importing_the_analyzers_imports_no_torch() -> None:
    code = "import sys, analyzers; analyzers.catalogue(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
