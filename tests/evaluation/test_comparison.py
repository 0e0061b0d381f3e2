"""What two accuracies compared may never say, whatever they are; the paired interval has a file of its own."""

import numpy as np
import pytest

from iclm.evaluation.comparison import difference_interval, paired_difference
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
