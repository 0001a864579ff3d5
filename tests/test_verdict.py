"""The verdict on two solutions, case by case; every expectation is written out here by hand."""

from __future__ import annotations

import math

import pytest

from probes.verdict import Grounds, Stage, Threshold, threshold_of, verdict

NONE, CLEAR, ACROSS = (0.01, 0.005, 0.02), (0.7, 0.6, 0.8), (0.05, 0.03, 0.07)  # of a threshold of 0.05


def grounds(**changed: object) -> Grounds:
    known = {
        "threshold": Threshold(0.05, "2 % of the way"), "definition": "git_rebasin", "matcher": "weight matching",
        "restarts": (5.0, 5.0, 5.25), "agreement": 0.875, "equivalence_error": 3e-16, "examples": 2000,
        "resamples": 1000, "treatment": "No BatchNorm",
    }  # fmt: skip
    return Grounds(**{**known, **changed})


def stages(**given: tuple[float, float, float]) -> list[Stage]:
    return [Stage(name, *each) for name, each in given.items()]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"naive": NONE, "matched": NONE}, "same_basin"),
        ({"naive": CLEAR, "matched": NONE}, "same_after_permutation"),
        ({"naive": CLEAR, "matched": NONE, "repaired": NONE}, "same_after_permutation"),
        ({"naive": CLEAR, "matched": CLEAR, "repaired": NONE}, "same_after_repair"),
        ({"naive": CLEAR, "matched": CLEAR, "repaired": CLEAR, "curve": NONE}, "connected_by_curve"),
        ({"naive": CLEAR, "matched": CLEAR, "repaired": CLEAR, "curve": CLEAR}, "not_connected"),
        ({"naive": CLEAR, "matched": CLEAR}, "not_connected"),
        ({"naive": CLEAR, "matched": CLEAR, "curve": NONE}, "connected_by_curve"),
        ({"naive": NONE, "matched": CLEAR}, "same_basin"),  # a matching that makes it worse takes nothing away
        ({"matched": NONE, "naive": CLEAR}, "same_after_permutation"),  # in any order
    ],
)
def test_the_first_step_of_the_ladder_that_holds_is_the_verdict(given: dict, name: str) -> None:
    found = verdict(stages(**given), grounds())
    assert found.name == name and found.firm
    assert "Undecided" not in found.sentence
    tried = "No curve has been tried."
    assert (tried in found.sentence) == (name == "not_connected" and "curve" not in given)
    assert (tried in found.evidence) == ("curve" not in given)


def test_an_upper_end_at_the_threshold_is_no_barrier_and_just_above_is_open() -> None:
    at, above = (0.03, 0.01, 0.05), (0.03, 0.01, 0.0500001)
    assert verdict(stages(naive=at, matched=at), grounds()).name == "same_basin"
    found = verdict(stages(naive=above, matched=NONE), grounds())
    assert (found.name, found.firm) == ("same_after_permutation", False)


def test_an_interval_across_the_threshold_leaves_it_undecided_between_its_step_and_what_holds() -> None:
    found = verdict(stages(naive=ACROSS, matched=NONE), grounds())
    assert (found.name, found.firm) == ("same_after_permutation", False)
    assert found.sentence.startswith(
        "Undecided between one basin as they are and one basin after a permutation of units: "
    )
    found = verdict(stages(naive=CLEAR, matched=ACROSS, repaired=ACROSS), grounds())
    assert (found.name, found.firm) == ("not_connected", False)
    assert (
        "Undecided between one basin after a permutation of units, one basin after a permutation of units and REPAIR "
        "and not connected by anything that was tried" in found.sentence
    )
    found = verdict(stages(naive=CLEAR, matched=NONE, repaired=ACROSS), grounds())
    assert found.firm  # what comes behind the step that holds does not matter


def test_the_sentence_has_estimates_intervals_threshold_restarts_and_agreement() -> None:
    found = verdict(stages(naive=CLEAR, matched=NONE, repaired=CLEAR), grounds())
    assert found.sentence == (
        "The two lie in one basin after a permutation of units: the barrier is 0.01 on the straight line after "
        "matching (0.005 to 0.02); 0.7 on the straight line between them (0.6 to 0.8); at most 0.05 counts as none. "
        "Permutation by weight matching, the best of 3 restarts: each places at least 87.5 % of the units as the best "
        "does."
    )
    told = "\n".join(found.evidence)
    for words in ("0.7 on that line after REPAIR", "2 % of the way", "Git Re-Basin", "1,000 resamples of 2,000",
                  "between 5 and 5.25", "3e-16", "No BatchNorm"):  # fmt: skip
        assert words in told


def test_one_restart_says_so() -> None:
    assert "tried once" in verdict(stages(naive=CLEAR, matched=NONE), grounds(restarts=(5.0,))).sentence


@pytest.mark.parametrize("lost", [(math.inf, math.nan, math.nan), (math.nan, 0.0, 0.0), (0.1, 0.0, math.inf)])
def test_a_path_on_which_the_loss_overflows_is_no_connection(lost: tuple[float, float, float]) -> None:
    found = verdict(stages(naive=lost, matched=CLEAR), grounds())
    assert found.name == "not_connected" and found.firm


def test_without_both_lines_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="before and after"):
        verdict(stages(naive=NONE), grounds())


def test_the_threshold_is_a_share_of_the_way_to_chance() -> None:
    found = threshold_of([0.0332, 0.0331], math.log(10), 0.02)
    assert found.value == pytest.approx(0.02 * (math.log(10) - 0.03315), rel=1e-12)
    assert not found.doubt and "2 %" in found.words and "2.303" in found.words


@pytest.mark.parametrize(("chance", "words"), [(1.0, "no better than a constant"), (math.nan, "not known")])
def test_without_a_loss_of_chance_above_the_ends_the_threshold_is_doubtful(chance: float, words: str) -> None:
    found = threshold_of([2.0, 3.0], chance, 0.1)
    assert found.value == pytest.approx(0.25)
    assert words in found.doubt
