"""What two accuracies compared may never say, whatever they are; the paired interval has a file of its own."""

import itertools

import numpy as np
import pytest

from iclm.evaluation.comparison import difference_interval, mcnemar, paired_difference
from iclm.evaluation.metrics import Accuracy


@pytest.mark.parametrize("problems", [2, 3, 5])
def test_no_interval_of_a_difference_leaves_what_a_difference_can_be(problems):
    rng = np.random.default_rng(problems)
    wide = 0
    for _ in range(50):
        first, second = rng.random((2, problems * 4)) < rng.random((2, 1))
        value, low, high = paired_difference(first, second, np.repeat(np.arange(problems), 4).tolist())
        assert -1 <= low <= value <= high <= 1
        wide += low == -1 or high == 1
        sides = (Accuracy(int(side.sum()), len(side)) for side in (first, second))
        assert all(-1 <= bound <= 1 for bound in difference_interval(*sides))
    assert wide or problems > 3, "none was cut: the test says nothing"


def test_questions_that_repeat_a_problem_make_no_change_more_certain():
    rng = np.random.default_rng(0)
    before, now = rng.random(20) < 0.8, rng.random(20) < 0.4
    once = mcnemar(before, now)
    again = mcnemar(np.repeat(before, 4), np.repeat(now, 4), np.repeat(np.arange(20), 4).tolist())
    assert again["p_value"] == pytest.approx(once["p_value"]) and once["p_value"] < 0.2
    assert mcnemar(np.repeat(before, 4), np.repeat(now, 4))["p_value"] < again["p_value"]
    assert (again["lost"], again["gained"]) == (4 * once["lost"], 4 * once["gained"])


def test_the_p_value_of_problems_is_the_share_of_all_signs_that_reach_as_far():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(7), 3)
    before, now = rng.random(21) < 0.7, rng.random(21) < 0.4
    net = np.array([(now[groups == g].astype(int) - before[groups == g]).sum() for g in range(7)])
    sums = [abs(int(np.dot(signs, net))) for signs in itertools.product((-1, 1), repeat=7)]
    wanted = np.mean([total >= abs(int(net.sum())) for total in sums])
    assert mcnemar(before, now, groups.tolist())["p_value"] == pytest.approx(wanted)
