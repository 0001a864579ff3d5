"""Rules that no linter knows: what must never stand in the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("pages", "ui", "workspace", "analyzers", "probes", "scripts")
SOURCES = sorted([ROOT / "app.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
FORBIDDEN_CALLS = {"eval", "exec", "extractall", "unsafe_load"}
FORBIDDEN_KEYWORDS = {
    ("weights_only", False),
    ("trust_remote_code", True),
    ("allow_pickle", True),
    ("shell", True),
    ("unsafe_allow_html", True),
}


LOADERS = {"torch.load", "torch.jit.load", "torch.export.load", "pickle.load", "pickle.loads", "joblib.load"}
TRUSTED = ROOT / "probes" / "trusted.py"  # opens, by its own loader, what the operator trusts and nobody uploaded


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_code_from_outside(path: Path) -> None:
    for node in nodes(path):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        builtin = isinstance(node.func, ast.Name) or name in ("extractall", "unsafe_load")
        assert not (builtin and name in FORBIDDEN_CALLS), f"{name} in line {node.lineno}"
        for keyword in node.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
            allowed = path == TRUSTED and keyword.arg == "weights_only"
            told = f"{keyword.arg}={value} in line {node.lineno}"
            assert allowed or (keyword.arg, value) not in FORBIDDEN_KEYWORDS, told


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_loaders_that_run_code_stand_in_one_file_only(path: Path) -> None:
    used = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)} & LOADERS
    assert used == ({"torch.load", "torch.jit.load", "torch.export.load"} if path == TRUSTED else set())


def test_only_what_builds_models_opens_trusted_files() -> None:
    users = [path for path in SOURCES if "load_trusted" in path.read_text() and path != TRUSTED]
    assert [path.name for path in users] == ["building.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, f"{node.name} is longer than 50 lines"


def test_pages_are_short() -> None:
    for page in (ROOT / "pages").glob("*.py"):
        assert len(page.read_text().splitlines()) <= 60, page.name


def test_nothing_is_fetched_from_elsewhere() -> None:
    for path in [*SOURCES, *(ROOT / "assets").rglob("*.js"), *(ROOT / "assets").rglob("*.css")]:
        text = path.read_text()
        for sign in ("cdn.", "googleapis", "unpkg", "from_pretrained("):
            assert sign not in text, f"{path.relative_to(ROOT)} mentions {sign}"
