import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from iclm.errors import ConfigurationError, DataError
from iclm.evaluation.metrics import (
    Accuracy,
    design_effect,
    exact_match,
    majority_baseline,
    partial_match,
    wilson_interval,
)


# R. G. Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I,
# method 3 (score interval without continuity correction), 95%.
@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_gives_the_published_values(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


@given(st.data(), st.integers(1, 5000), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_interval_agrees_with_scipy_and_holds_the_rate(data, n, confidence):
    correct = data.draw(st.integers(0, n))
    expected = binomtest(correct, n).proportion_ci(confidence_level=confidence, method="wilson")
    low, high = wilson_interval(correct, n, confidence)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0.0 <= low <= correct / n <= high <= 1.0
    assert low < high


def test_wilson_interval_without_a_trial_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_wilson_interval_narrows_with_more_trials_and_widens_with_confidence():
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (10, 100, 1000))]
    assert widths[0] > widths[1] > widths[2]
    assert wilson_interval(50, 100, 0.99)[0] < wilson_interval(50, 100, 0.95)[0]


@pytest.mark.parametrize("arguments", [(3, 2), (-1, 2), (0, -1), (1, 2, 0.0), (1, 2, 1.0)])
def test_wilson_interval_refuses_impossible_counts(arguments):
    with pytest.raises(ConfigurationError, match=r"correct=|confidence="):
        wilson_interval(*arguments)


def test_accuracy_prints_and_exports_its_interval():
    accuracy = Accuracy(81, 100)
    low, high = wilson_interval(81, 100)
    assert str(accuracy) == "0.810 [0.72, 0.87]"
    assert json.loads(json.dumps(accuracy.to_dict())) == {
        "correct": 81,
        "n": 100,
        "value": 0.81,
        "low": low,
        "high": high,
    }


def test_accuracy_of_no_question_is_none_rather_than_nan():
    empty = Accuracy(0, 0)
    assert empty.value is None
    assert (empty.low, empty.high) == (0.0, 1.0)
    assert str(empty) == "n/a [0.00, 1.00]"
    assert json.dumps(empty.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("correct", "n"), [(2, 1), (-1, 1)])
def test_accuracy_refuses_impossible_counts(correct, n):
    with pytest.raises(ConfigurationError, match="0 <= correct <= n"):
        Accuracy(correct, n)


@pytest.mark.parametrize(
    ("answer", "response", "exact", "partial"),
    [
        ("on", "on", True, True),
        ("On", "oN", True, True),
        ("on", "on ", False, True),
        ("on", "on.", False, True),
        ("on", "the light is on", False, True),
        ("on", "undetermined, only one", False, False),
        ("on", "on_off", False, False),
        ("on", "", False, False),
        ("two words", "these Two Words here", False, True),
        ("1", "11", False, False),
        ("é", "É", True, True),
    ],
)
def test_matching_rules_on_hand_made_answers(answer, response, exact, partial):
    assert exact_match(answer, response) is exact
    assert partial_match(answer, response) is partial


@pytest.mark.parametrize(("answer", "response"), [("a.c", "abc"), ("a|b", "b"), ("x*y", "xxy"), ("a(b)c", "abc")])
def test_partial_match_reads_the_answer_literally(answer, response):
    assert not partial_match(answer, response)
    assert partial_match(answer, f"so {answer}, then")


def test_partial_match_of_an_answer_ending_in_a_full_stop_needs_a_word_after_it():
    assert not partial_match("C.", "C.")
    assert partial_match("C.", "C.x")


def test_partial_match_refuses_an_empty_answer():
    with pytest.raises(DataError, match="empty answer"):
        partial_match("", "anything")


@given(st.text("abcxyz019_ABC", min_size=1), st.text(" .,;!?", max_size=5), st.text(" .,;!?", max_size=5))
def test_partial_match_finds_any_word_among_punctuation_and_no_longer_word(word, before, after):
    assert partial_match(word, before + word.swapcase() + after)
    assert not partial_match(word, f"{before}w{word}w{after}")


def test_majority_baseline_counts_answers_whatever_their_case():
    assert majority_baseline(iter(["a", "b", "A", "c"])) == Accuracy(2, 4)


@given(st.lists(st.sampled_from(["on", "ON", "off", "undetermined"]), min_size=1))
def test_majority_baseline_is_the_best_constant_response(answers):
    best = max(sum(exact_match(answer, constant) for answer in answers) for constant in answers)
    assert majority_baseline(answers) == Accuracy(best, len(answers))


def test_majority_baseline_of_no_answer_is_empty():
    assert majority_baseline([]) == Accuracy(0, 0)


def test_questions_of_one_problem_that_stand_or_fall_together_count_as_one():
    right = [True] * 8 + [False] * 4
    assert design_effect(right, range(12)) == design_effect(right, [None] * 12) == 1.0
    together = [number // 4 for number in range(12)]
    assert design_effect(right, together) == pytest.approx(11 / 2)  # (n - 1) / (G - 1)
    assert design_effect(right, [f"p{number}" for number in together]) == pytest.approx(11 / 2)
    assert design_effect([True, False] * 6, together) == 1.0  # below 1 without the bound: as many right in each problem
    assert design_effect([True] * 12, together) == 4.0  # nothing varies that could tell
    assert design_effect(right, [0] * 12) == 12.0 and design_effect([], []) == 1.0
    found = Accuracy.of(right, together)
    assert (found.correct, found.n, found.value) == (8, 12, 8 / 12)
    assert (found.low, found.high) == pytest.approx(wilson_interval(8 / 5.5, 12 / 5.5))
    assert found.to_dict()["effect"] == pytest.approx(5.5)
    assert "effect" not in Accuracy.of(right, range(12)).to_dict()
    assert (Accuracy.of([True] * 4, [0] * 4).high, Accuracy.of([False] * 4, [0] * 4).low) == (1.0, 0.0)


def test_the_interval_holds_the_truth_as_often_as_it_says_where_questions_come_in_problems():
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(600):
        ease = rng.beta(2.1, 0.9, size=60)  # of each problem
        right = (rng.random((60, 4)) < ease[:, None]).reshape(-1).tolist()
        groups = [number // 4 for number in range(240)]
        for place, found in enumerate((Accuracy.of(right, groups), Accuracy(sum(right), 240))):
            held[place] += found.low <= 0.7 <= found.high
    assert held[0] / 600 > 0.93 and held[1] / 600 < 0.9
