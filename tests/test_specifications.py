"""Specifications as text and tables: short, read back exactly, and refused in words where they are garbled."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import tracing_nets as nets
from test_tracing import encoder, grouped, mlp, readme_cnn
from torch import nn

from probes.errors import ModelError
from probes.objective import Objective
from probes.permutations import Permutation, PermutationSpec, Use
from probes.positions import WrongPositions, read, written
from probes.specifications import as_rows, as_text, from_rows, from_text, specification
from probes.tracing import traced

grey = torch.rand(6, 1, 6, 6)


def same(one: PermutationSpec, other: PermutationSpec) -> bool:
    """Compare two specifications, positions and all."""

    def flat(spec: PermutationSpec) -> list[object]:
        return [
            (each.name, each.size, each.kind, each.inner, [
                (use.tensor, use.axis, use.index.tolist(), use.counts,
                 None if use.rows is None else (use.rows[0], use.rows[1].tolist()))
                for use in each.uses
            ])
            for each in spec
        ]  # fmt: skip

    return flat(one) == flat(other)


CASES = {
    "MLP": (lambda: mlp(), torch.randn(6, 5)),
    "CNN": (lambda: readme_cnn(), torch.rand(4, 1, 28, 28)),
    "groups": (lambda: grouped(), grey),
    "padded": (lambda: nets.OptionA(), grey),
    "heads": (lambda: nets.Written(), torch.randint(0, 11, (6, 5))),
    "transformer": (lambda: encoder(), torch.rand(4, 3, 8, 8)),
}


@pytest.fixture(scope="module")
def cases() -> dict[str, tuple[Objective, PermutationSpec]]:
    objectives = {name: nets.objective_of(make(), inputs) for name, (make, inputs) in CASES.items()}
    return {name: (each, traced(each)) for name, each in objectives.items()}


@pytest.mark.parametrize("name", CASES)
def test_text_and_rows_are_read_back_exactly(name: str, cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    objective, spec = cases[name]
    back = from_text(as_text(spec), objective)
    assert same(back, spec) and (back.source, back.notes) == ("traced", spec.notes)
    rows = as_rows(spec)
    assert same(from_rows(rows, objective), spec) and from_rows(rows, objective).source == "edited"
    assert all(isinstance(value, str | int | bool) for row in rows for value in row.values())
    assert as_text(from_text(as_text(spec), objective)) == as_text(spec)


def test_a_normal_net_is_a_few_short_lines(cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    _, spec = cases["CNN"]
    assert as_text(spec).splitlines()[1:] == [
        "0  channels  32  0.weight  0  0:32",
        "0  channels  32  0.bias  0  0:32",
        "0  channels  32  3.weight  1  0:32",
        "3  channels  64  3.weight  0  0:64",
        "3  channels  64  3.bias  0  0:64",
        "3  channels  64  7.weight  1  0:1600/25",
    ]
    assert "enter  stream  4  head.weight  1  2:6" in as_text(cases["padded"][1])
    lines = as_text(cases["groups"][1]).splitlines()
    assert '0/1/0  "within a group"  2  2.weight  1  0:2  rows=0:3:6  within=0[1,0]' in lines
    assert "0  groups  3  3.running_mean  0  0:9/3  uncounted" in lines


def test_an_edited_text_says_so_and_a_deleted_permutation_is_gone(
    cases: dict[str, tuple[Objective, PermutationSpec]],
) -> None:
    objective, spec = cases["CNN"]
    kept = [line for line in as_text(spec).splitlines() if not line.startswith("0 ")]
    found = from_text("\n".join(kept), objective)
    assert found.source == "edited" and [each.name for each in found] == ["3"]
    objective, spec = cases["transformer"]
    lines = as_text(spec).splitlines()
    without = from_text("\n".join(line for line in lines if "  heads  " not in line), objective)
    assert {each.kind for each in without} == {"stream", "within a head", "units"}
    assert all(each.inner == () for each in without)


@pytest.mark.parametrize("line", ["x", '"', "0 units 7 0.weight 0 0:7 rows=", "0 units 7 0.weight 0", "a " * 9])
def test_a_garbled_line_is_named_by_its_number(line: str, cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    objective, spec = cases["MLP"]
    with pytest.raises(ModelError, match="Line 3 of the specification"):
        from_text("# mine\n\n" + line + "\n" + as_text(spec), objective)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 units 7 0.weight 0 0:7:0", "holds no position"),
        ("0 units 7 0.weight 0 0:99999999999", "beyond the"),
        ("0 units 7 0.weight 0 1:8", "goes beyond the 7 positions that there are"),
        ("0 units 8 0.weight 0 0:7", "positions for 7 units, but there are 8"),
        ("0 units 7 nothing 0 0:7", "no tensor 'nothing'"),
        ("0 units 7 0.weight 2 0:7", "no axis 2"),
        ("0 units seven 0.weight 0 0:7", "units 'seven'; it must be a whole number"),
        ("0 units 7 0.weight 0 0:7 often", "'often'; after the positions"),
        ("0 units 7 0.weight 0 0:7 rows=0:0:7", "cannot be restricted along axis 0"),
        ("0 units 7 0.weight 0 0:7 within=heads", "write it like heads[3,0]"),
        ('0 units 7 "0.weight 0 0:7', "quote that is not closed"),
        ('0 units 7 "\\q" 0 0:7', "cannot be read"),
        ("0 units 7 0.weight 0 0:3,3", "positions for 4 units"),
        ("0 units 7 0.weight 0 0:7\n0 units 6 2.weight 0 0:6", "but line 1 of the same permutation 7"),
        ("0 units 7 0.weight 0 0:7\n1 units 6 2.weight 0 0:6 within=0[7,0]", "acts within unit 7"),
        ("0 units 7 0.weight 0 0:7\n1 units 6 2.weight 0 0:6 within=0[6,0]", "do not correspond from unit to unit"),
    ],
)
def test_what_is_wrong_with_a_line_is_told(
    line: str, words: str, cases: dict[str, tuple[Objective, PermutationSpec]]
) -> None:
    with pytest.raises(ModelError) as caught:
        from_text(line, cases["MLP"][0])
    assert words in str(caught.value)


def test_rows_of_a_table_are_checked_too(cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    objective, spec = cases["MLP"]
    rows = as_rows(spec)
    for change, words in (
        ({"units": None}, "Row 1 of the specification has units 'None'"), ({"counts": "maybe"}, "counts 'maybe'"),
        ({"permutation": ""}, "names no permutation"), ({"positions": "-3:4"}, "are no positions"),
        ({"axis": True}, "axis 'True'"),
    ):  # fmt: skip
        with pytest.raises(ModelError) as caught:
            from_rows([{**rows[0], **change}, *rows[1:]], objective)
        assert words in str(caught.value)
    texts = [{key: str(value) for key, value in row.items()} for row in rows]  # as a form gives them back
    assert same(from_rows(texts, objective), spec)


def test_noise_never_gets_through_as_anything_else(cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    """Change characters of a text at random: it is read, or refused in words."""
    objective, spec = cases["groups"]
    text, draw = as_text(spec), random.Random(0)
    refused = 0
    for _ in range(300):
        place = draw.randrange(len(text))
        garbled = (
            text[:place]
            + draw.choice(['"', "[", "9", ",", ":", "/", "%", "+", "=", "\\", "\n", "", " "])
            + text[place + 1 :]
        )
        try:
            from_text(garbled, objective)
        except ModelError as error:
            refused += len(str(error)) > 20
    assert refused > 100


def test_names_of_any_kind_survive() -> None:
    names = ["two words", 'quo"te', "back\\slash", "# hash", "a=b", "[0,1]", "\u2028line\x85", "ünï", "uncounted", "\t"]
    module = nn.ModuleDict({name: nn.Linear(3, 3) for name in names})
    chain = nn.Sequential(module)
    chain.forward = lambda x: sum(each(x) for each in module.values())  # type: ignore[method-assign, assignment, return-value]
    objective = nets.objective_of(chain, torch.randn(4, 3))
    every = np.arange(3)[:, None]
    uses = {name: (Use(f"0.{name}.weight", 1, every), Use(f"0.{name}.bias", 0, every)) for name in names}
    inner = tuple(Permutation(name, 3, uses[name], name) for name in names[1:])
    groups = ((names[1], names[2]), (names[3], names[4]), (names[5], names[6]))
    spec = PermutationSpec(
        (Permutation(names[0], 3, uses[names[0]], "two words", groups), *inner), "by hand", ("a\nb",)
    )
    back = from_text(as_text(spec), objective)
    assert same(back, spec) and back.source == "by hand" and back.notes == ("a\nb",)
    assert same(from_rows(as_rows(spec), objective), spec)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (np.arange(512)[:, None], "0:512"),
        (np.arange(1600).reshape(64, 25), "0:1600/25"),
        (np.arange(64).reshape(4, 16).T, "0:64%4"),
        (np.array([[3]]), "3"),
        (np.array([[0], [1], [6], [7]]), "0:2,6:8"),
        (np.arange(0, 20, 4)[:, None], "0:17:4"),
        (np.stack([np.arange(5), np.arange(5) + 10], 1), "0:5+10:15"),
        (np.arange(12)[:, None] * 6 + np.arange(2), "0:68:6/2"),
        (np.array([[2, 3], [0, 1], [8, 9]]), "2:4/2,0:10:8/2"),
        (np.array([[5], [3], [9]]), "5,3:10:6"),
        (np.arange(8).reshape(2, 4)[:, [0, 1, 3]], "0:6:4/2+3:8:4"),
    ],
)  # fmt: skip
def test_positions_are_short(index: np.ndarray, text: str) -> None:
    assert written(index) == text
    assert np.array_equal(read(text), index)


def test_any_positions_are_read_back() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        units, slots = draw.integers(1, 9), draw.integers(1, 6)
        index = draw.permutation(int(units * slots) + int(draw.integers(0, 4)))[: units * slots].reshape(units, slots)
        index = np.sort(index, axis=int(draw.integers(0, 2))) if draw.random() < 0.7 else index
        assert np.array_equal(read(written(index)), index)


@pytest.mark.parametrize(
    "text", ["", "a", "1:", "0:4/3", "0:5%2", "4:4", "0:4+0:3", "0:4,4:8/2", "0:1:2:3", "9" * 30, "1:2/0"]
)
def test_positions_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(WrongPositions):
        read(text)


def test_a_model_without_free_units_is_refused_in_words() -> None:
    objective = nets.objective_of(nn.Sequential(nn.Linear(5, 3)), torch.randn(6, 5))
    with pytest.raises(ModelError, match="No units of this model can change places"):
        specification(objective)


def test_a_model_of_no_family_is_traced(cases: dict[str, tuple[Objective, PermutationSpec]]) -> None:
    objective, spec = cases["MLP"]
    assert same(specification(objective), spec)
