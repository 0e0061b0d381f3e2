"""The difference of two answers to the same questions, with an interval that knows of pairs and problems."""

import numpy as np
import pytest
from scipy import stats

from iclm.evaluation.comparison import difference_interval, paired_difference
from iclm.evaluation.metrics import Accuracy


def test_with_a_problem_for_each_question_it_is_the_paired_t_interval():
    rng = np.random.default_rng(0)
    first, second = rng.random(50) < 0.7, rng.random(50) < 0.6
    value, low, high = paired_difference(first, second, range(50))
    expected = stats.ttest_rel(first.astype(float), second.astype(float)).confidence_interval(0.95)
    assert (value, low, high) == pytest.approx((np.mean(first) - np.mean(second), expected.low, expected.high))


def test_intervals_of_several_comparisons_hold_together():
    rng = np.random.default_rng(0)
    first, second = rng.random(50) < 0.7, rng.random(50) < 0.6
    found = paired_difference(first, second, range(50), comparisons=3)[1:]
    expected = stats.ttest_rel(first.astype(float), second.astype(float)).confidence_interval(1 - 0.05 / 3)
    assert found == pytest.approx((expected.low, expected.high))


def test_questions_that_repeat_a_problem_tell_nothing_more():
    rng = np.random.default_rng(1)
    first, second = rng.random(30) < 0.8, rng.random(30) < 0.5
    once = paired_difference(first, second, range(30))
    again = paired_difference(np.repeat(first, 4), np.repeat(second, 4), np.repeat(np.arange(30), 4).tolist())
    assert again == pytest.approx(once)


def test_a_pair_that_mostly_agrees_is_told_apart_by_what_differs():
    """178 against 161 of 240, where the 161 are among the 178: the interval of independent samples holds 0."""
    first = np.arange(240) < 178
    second = np.arange(240) < 161
    apart = difference_interval(Accuracy(178, 240), Accuracy(161, 240))
    value, low, high = paired_difference(first, second, range(240))
    assert value == pytest.approx(17 / 240) and apart[1] < 0 < low < value < high < apart[2]


def test_its_intervals_hold_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(2), 0
    for _ in range(400):
        skill = rng.normal(size=40)  # of 40 problems of 5 questions, common to both
        first = rng.random((40, 5)) < 1 / (1 + np.exp(-(skill + 0.8)))[:, None]
        second = rng.random((40, 5)) < 1 / (1 + np.exp(-(skill + 0.3)))[:, None]
        _, low, high = paired_difference(first.ravel(), second.ravel(), np.repeat(np.arange(40), 5).tolist())
        held += low <= 0.0984 <= high  # by two million draws of the skill
    assert 0.92 < held / 400 < 0.98


@pytest.mark.parametrize(("right", "groups"), [(1, list(range(6))), (1, [0] * 6), (0, list(range(6)))])
def test_where_nothing_varies_it_is_not_taken_for_certain(right, groups):
    value, low, high = paired_difference(np.full(6, right), np.zeros(6), groups)
    assert value == right and low < value and high >= value and high - low > 0.3
