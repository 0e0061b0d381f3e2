"""Continual-learning metrics on matrices worked out by hand."""

import numpy as np
import pytest

from iclm.errors import ConfigurationError
from iclm.studies.continual.metrics import AccuracyMatrix, matrix_of

R = np.array(
    [
        [0.2, 0.3, 0.1],  # before the first task
        [0.8, 0.4, 0.2],
        [0.6, 0.9, 0.3],
        [0.5, 0.7, 1.0],
    ]
)


def test_metrics_of_a_matrix_worked_out_by_hand():
    found = AccuracyMatrix(R).metrics()
    assert found == {
        "average": pytest.approx((0.5 + 0.7 + 1.0) / 3),
        "learned": pytest.approx((0.8 + 0.9 + 1.0) / 3),
        "backward": pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2),
        "forward": pytest.approx(((0.4 - 0.3) + (0.3 - 0.1)) / 2),
        "forgetting": pytest.approx(((0.8 - 0.5) + (0.9 - 0.7)) / 2),
        # means of the rows: .2, 1.4/3, .6, 2.2/3
        "area": pytest.approx(((0.2 + 1.4 / 3) / 2 + (1.4 / 3 + 0.6) / 2 + (0.6 + 2.2 / 3) / 2) / 3),
    }


def test_forgetting_counts_from_the_best_and_not_from_before_a_task_was_learned():
    values = R.copy()
    values[2, 0] = 0.95  # the first task got better before it got worse
    values[1, 1] = 1.0  # the second was better before it was learned: nothing was forgotten then
    found = AccuracyMatrix(values)
    assert found.forgetting == pytest.approx(((0.95 - 0.5) + (0.9 - 0.7)) / 2)
    assert found.backward == pytest.approx(((0.5 - 0.8) + (0.7 - 0.9)) / 2)


def test_one_task_has_no_transfer_and_no_forgetting():
    found = AccuracyMatrix(np.array([[0.25], [0.75]])).metrics()
    assert (found["backward"], found["forward"], found["forgetting"]) == (None, None, None)
    assert (found["average"], found["learned"], found["area"]) == (0.75, 0.75, 0.5)


def test_what_was_not_asked_leaves_its_metrics_out_and_no_others():
    values = R.copy()
    values[0] = np.nan
    found = AccuracyMatrix(values).metrics()
    assert found["forward"] is None and found["area"] is None
    assert found["backward"] == AccuracyMatrix(R).backward and found["average"] == AccuracyMatrix(R).average


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (1, 0), (3,)])
def test_a_matrix_of_another_shape_is_refused(shape):
    with pytest.raises(ConfigurationError, match="T \\+ 1"):
        AccuracyMatrix(np.zeros(shape))


def rows(values, tasks):
    return [
        {"trained_through": i, "tested_on": task, "correct": round(value * 10), "n": 10}
        for i, row in enumerate(values)
        for task, value in zip(tasks, row, strict=True)
    ]


def test_rows_make_the_matrix():
    assert np.array_equal(matrix_of(rows(R, "abc"), ["a", "b", "c"]).values, R)


def test_the_untouched_base_is_the_first_row_where_the_rows_have_none():
    found = matrix_of(rows(R, "abc")[3:], ["a", "b", "c"], {"a": 0.2, "b": 0.3, "c": 0.1})
    assert np.array_equal(found.values, R)


def test_rows_that_contradict_each_other_or_are_of_no_task_are_refused():
    with pytest.raises(ConfigurationError, match="different things"):
        matrix_of([*rows(R, "abc"), {"trained_through": 1, "tested_on": "a", "correct": 1, "n": 10}], ["a", "b", "c"])
    with pytest.raises(ConfigurationError, match="'d'"):
        matrix_of([{"trained_through": 1, "tested_on": "d", "correct": 1, "n": 10}], ["a", "b", "c"])
    with pytest.raises(ConfigurationError, match="after 4 tasks"):
        matrix_of([{"trained_through": 4, "tested_on": "a", "correct": 1, "n": 10}], ["a", "b", "c"])


def test_of_tasks_that_were_not_asked_there_is_no_row_either():
    """A module of the first and the third of four tasks, which does not change once it has learned."""
    values = np.full((5, 4), np.nan)
    values[0], values[1:, 0], values[3:, 2] = 0.1, 0.8, 0.6
    found = AccuracyMatrix(values).asked()
    assert np.array_equal(found.values, [[0.1, 0.1], [0.8, np.nan], [0.8, 0.6]], equal_nan=True)
    assert (found.average, found.learned, found.backward) == (pytest.approx(0.7), pytest.approx(0.7), 0)
    assert np.array_equal(AccuracyMatrix(R).asked().values, R)


def test_a_task_that_is_known_best_at_the_end_was_forgotten_less_than_nothing():
    values = R.copy()
    values[3, 0] = 1.0
    assert AccuracyMatrix(values).forgetting == pytest.approx(((0.8 - 1.0) + (0.9 - 0.7)) / 2)


def test_the_last_row_of_a_module_is_the_one_at_the_end():
    values = np.full((5, 4), np.nan)
    values[0], values[1:, 0], values[3:, 2] = 0.1, 0.8, 0.6
    values[4, 0] = 0.9
    assert AccuracyMatrix(values).asked().average == pytest.approx((0.9 + 0.6) / 2)
