"""The statistics against hand-worked values, known coverage and degenerate cases."""

import math

import numpy as np
import pytest

from iclm.errors import ConfigurationError
from iclm.studies.study.statistics import (
    difference_of_shares,
    holm,
    mean_over_seeds,
    paired_bootstrap,
    variance_of_mean,
)

# -- means over seeds --------------------------------------------------------------------------------------------------


def test_the_interval_of_three_values_is_students():
    # s = 0.1, t at 97.5% with 2 degrees of freedom = 4.30265 (any table): 0.6 ∓ 4.30265 · 0.1 / sqrt(3)
    found = mean_over_seeds([0.5, 0.6, 0.7])
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (found.value, found.n) == (pytest.approx(0.6), 3)
    assert (found.low, found.high) == (pytest.approx(0.6 - half, abs=1e-5), pytest.approx(0.6 + half, abs=1e-5))


def test_one_seed_has_no_interval_and_none_no_mean():
    found = mean_over_seeds([0.7])
    assert (found.value, found.low, found.high, found.n) == (0.7, None, None, 1)
    with pytest.raises(ConfigurationError, match="at least one"):
        mean_over_seeds([])


def test_equal_values_have_an_interval_without_width():
    found = mean_over_seeds([0.25, 0.25, 0.25])
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_a_share_is_cut_at_0_and_1():
    found = mean_over_seeds([0.8, 1.0], bounds=(0.0, 1.0))
    assert found.high == 1.0 and found.low == 0.0


# -- paired comparisons ------------------------------------------------------------------------------------------------


def four(seeds, problems):
    return np.full((seeds, problems), 4)


def test_the_difference_is_that_of_the_accuracies():
    right, reference, sizes = np.array([[4, 2, 1]]), np.array([[3, 2, 0]]), np.array([4, 4, 2])
    assert paired_bootstrap(right, reference, sizes, resamples=200).value == pytest.approx(7 / 10 - 5 / 10)


def test_equal_answers_are_no_difference_at_all():
    right = np.random.default_rng(0).integers(5, size=(5, 30))
    found = paired_bootstrap(right, right, np.full(30, 4), resamples=500)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_all_right_against_all_wrong_is_as_sure_as_the_resamples_allow():
    found = paired_bootstrap(four(5, 40), 0 * four(5, 40), np.full(40, 4), resamples=999)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert found.p == pytest.approx(2 / 1000)


@pytest.mark.parametrize(("problems", "p"), [(1, 1.0), (2, 0.5), (3, 0.25)])
def test_few_problems_cannot_make_sure(problems, p):
    found = paired_bootstrap(four(5, problems), 0 * four(5, problems), np.full(problems, 4), resamples=500)
    assert found.p == p
    assert (found.low, found.high) == ((-1.0, 1.0) if problems == 1 else (0.0, 1.0))


@pytest.mark.parametrize(("differing", "least"), [(1, 1.0), (3, 0.25), (5, 0.0625), (6, 0.03125)])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("seeds", [1, 3])
def test_few_problems_that_differ_are_no_more_evidence_than_a_sign_test_has(seeds, sign, differing, least):
    reference = np.full((seeds, 18), 2)
    right = reference.copy()
    right[0, :differing] += sign
    found = paired_bootstrap(right, reference, np.full(18, 4), resamples=2000)
    assert found.value == pytest.approx(sign * differing / (seeds * 18 * 4)) and least <= found.p <= 1
    assert least < 0.05 or found.low <= 0 <= found.high


def test_the_sign_turns_with_the_sides():
    rng = np.random.default_rng(1)
    right, reference, sizes = rng.integers(2, 5, (4, 50)), rng.integers(1, 5, (4, 50)), np.full(50, 4)
    one, other = paired_bootstrap(right, reference, sizes), paired_bootstrap(reference, right, sizes)
    assert one.value == -other.value and one.p == pytest.approx(other.p, abs=0.02)
    assert (one.low, one.high) == (pytest.approx(-other.high, abs=0.01), pytest.approx(-other.low, abs=0.01))


def test_the_same_answers_give_the_same_figures():
    rng = np.random.default_rng(2)
    sides = rng.integers(5, size=(2, 3, 40))
    assert paired_bootstrap(*sides, np.full(40, 4)) == paired_bootstrap(*sides, np.full(40, 4))


def test_with_one_seed_only_problems_are_resampled():
    rng = np.random.default_rng(3)
    right, reference = rng.integers(5, size=(2, 1, 400))
    found = paired_bootstrap(right, reference, np.full(400, 4))
    assert (found.seeds, found.problems, found.resampled) == (1, 400, "problems")
    half = 1.96 * ((right - reference) / 4).std(ddof=1) / math.sqrt(400)  # the interval of a mean, by hand
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_questions_of_one_problem_are_not_counted_as_independent():
    rng = np.random.default_rng(4)
    alone = rng.integers(0, 2, (1, 100))
    apart = paired_bootstrap(np.repeat(alone, 4, axis=1), np.zeros((1, 400), int), np.ones(400, int))
    together = paired_bootstrap(4 * alone, np.zeros((1, 100), int), np.full(100, 4))
    assert together.value == apart.value
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("seed_sd", "problem_sd"),
    [(0.0, 0.0), (0.1, 0.0), (0.0, 0.25), (0.1, 0.15)],
    ids=["rest", "seeds", "problems", "all"],
)
def test_the_interval_holds_the_truth_at_least_as_often_as_it_says(seed_sd, problem_sd, seeds):
    rng = np.random.default_rng(5)
    problems, inside, falsely, surely = 60, 0, 0, 0
    trials = 300
    for _ in range(trials):
        effect = (
            rng.uniform(-1, 1, (seeds, 1)) * seed_sd * 3**0.5 + rng.uniform(-1, 1, (1, problems)) * problem_sd * 3**0.5
        )
        right = rng.binomial(4, np.clip(0.5 + effect, 0, 1))
        reference = rng.binomial(4, 0.5, size=(seeds, problems))
        found = paired_bootstrap(right, reference, np.full(problems, 4), resamples=400)
        inside += found.low <= 0 <= found.high
        falsely += found.p < 0.05
        surely += found.p < 0.01
    # 300 trials of 0.95 lie above 0.925, and of 0.05 and 0.01 below 0.075 and 0.025, in 97 of 100 cases
    assert inside / trials >= 0.925
    assert falsely / trials <= 0.075
    assert surely / trials <= 0.025


def test_a_difference_that_all_seeds_have_is_found():
    rng = np.random.default_rng(6)
    found = 0
    for _ in range(100):
        right, reference = rng.binomial(4, 0.7, (5, 60)), rng.binomial(4, 0.55, (5, 60))
        found += paired_bootstrap(right, reference, np.full(60, 4), resamples=400).p < 0.05
    assert found >= 95


@pytest.mark.parametrize(
    ("right", "reference", "sizes"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), np.ones(3)),
        (np.ones((2, 3)), np.ones((2, 3)), np.ones(4)),
        (np.ones((0, 3)), np.ones((0, 3)), np.ones(3)),
        (np.ones((1, 2)), np.ones((1, 2)), np.zeros(2)),
    ],
    ids=["sides", "sizes", "no_seed", "no_question"],
)
def test_what_cannot_be_compared_is_refused(right, reference, sizes):
    with pytest.raises(ConfigurationError):
        paired_bootstrap(right, reference, sizes)


def test_the_variance_of_a_two_way_mean_by_hand():
    # x = [[1, 3], [2, 8]]: row means 2, 5, column means 1.5, 5.5, mean 3.5
    # MS_seeds = 2 · (1.5² + 1.5²) / 1 = 9, MS_problems = 2 · (2² + 2²) / 1 = 16, MS_rest = 4 · 1² / 1 = 4
    variance, freedom = variance_of_mean(np.array([[1.0, 3.0], [2.0, 8.0]]))
    assert variance == pytest.approx((9 + 16 - 4) / 4)
    assert freedom == 1  # two seeds; Satterthwaite's would be 21² / (9² + 16² + 4²) = 1.2


def test_the_degrees_of_freedom_are_satterthwaites_where_they_are_fewer():
    values = np.array([[0.0, 4.0], [2.0, 2.0], [0.0, 8.0]])
    by_seed = 2 * values.mean(1).var(ddof=1)
    by_problem = 3 * values.mean(0).var(ddof=1)
    left = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    rest = (left**2).sum() / 2
    by_seed, by_problem = max(by_seed, rest), max(by_problem, rest)
    total = by_seed + by_problem - rest
    wanted = total**2 / (by_seed**2 / 2 + by_problem**2 / 1 + rest**2 / 2)
    assert wanted < 2
    assert variance_of_mean(values) == (pytest.approx(total / 6), pytest.approx(wanted))


def test_of_one_seed_the_variance_is_that_of_a_mean():
    values = np.array([[1.0, 2.0, 4.0, 9.0]])
    assert variance_of_mean(values) == (pytest.approx(values.var(ddof=1) / 4), 3)


def test_a_side_below_the_rest_counts_as_if_it_explained_nothing():
    # rows and columns have equal means: MS_rest is all, with one degree of freedom each
    variance, freedom = variance_of_mean(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert variance == pytest.approx((4 + 4 - 4) / 4)
    assert freedom == pytest.approx(4**2 / (4**2 + 4**2 + 4**2))


# -- differences of two shares -----------------------------------------------------------------------------------------


def test_the_difference_of_two_shares_by_hand():
    # one seed, four problems with a question each in both: on 3 of 4 and 1 of 4; each adds (1 0 1 0) or (1 -1 0 0) off the mean
    first, second = np.array([[1, 1, 1, 0]]), np.array([[0, 1, 0, 0]])
    sizes = np.ones(4, int)
    found = difference_of_shares(first, second, sizes, sizes)
    # per problem 1 0 1 0: mean 0.5, variance of the mean (4 · 0.25 / 3) / 4 = 1/12, t with 3 degrees of freedom 3.18245
    half = 3.18245 / math.sqrt(12)
    assert (found.value, found.n) == (0.5, 1)
    assert (found.low, found.high) == (pytest.approx(0.5 - half, abs=1e-4), 1.0)


def test_two_shares_of_different_problems_are_compared_over_all_of_them():
    source = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        first_sizes, second_sizes = source.integers(0, 2, 40), source.integers(0, 3, 40)
        problem = source.normal(0, 0.8, 40)
        share = 1 / (1 + np.exp(-(problem[None] + source.normal(0, 0.3, (5, 1)))))
        first, second = source.binomial(first_sizes, share), source.binomial(second_sizes, share)
        found = difference_of_shares(first, second, first_sizes, second_sizes)
        hits += found.low <= 0 <= found.high
    assert hits / 300 >= 0.93, "no difference is found where there is none, at 95%"


def test_a_seed_that_gives_one_answer_to_everything_tells_nothing_apart():
    sizes, others = np.array([1, 0, 2, 0, 1, 0, 0, 1]), np.array([0, 3, 1, 1, 0, 2, 1, 4])
    always = np.array([[1], [0], [1]])
    found = difference_of_shares(always * sizes, always * others, sizes, others)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_seeds_that_count_alike_are_one():
    first, second, sizes = np.array([[1, 0, 1, 1, 0]]), np.array([[0, 0, 1, 0, 0]]), np.ones(5, int)
    one, three = (difference_of_shares(np.repeat(first, n, 0), np.repeat(second, n, 0), sizes, sizes) for n in (1, 3))
    assert (one.low, one.high) == (three.low, three.high) and three.n == 3


def test_shares_that_cannot_be_compared_are_refused():
    counts, sizes = np.zeros((2, 3), int), np.ones(3, int)
    for wrong in (
        (counts, counts[:1], sizes, sizes),
        (counts, counts, sizes[:2], sizes),
        (counts, counts, sizes * 0, sizes),
    ):
        with pytest.raises(ConfigurationError):
            difference_of_shares(*wrong)
    lonely = difference_of_shares(counts[:, :1], counts[:, :1], sizes[:1], sizes[:1])
    assert (lonely.low, lonely.high) == (-1.0, 1.0), "one problem says nothing of others"


# -- many comparisons --------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04, and none below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_one_p_value_and_stays_at_most_1():
    assert holm([0.2]) == [0.2]
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_problems_of_different_sizes_vary_around_their_own_share():
    rng = np.random.default_rng(7)
    sizes = rng.integers(1, 9, 400)
    right = rng.binomial(sizes, 0.8)[None]
    found = paired_bootstrap(right, np.zeros_like(right), sizes)
    half = 1.966 * (right[0] - found.value * sizes).std(ddof=1) / sizes.mean() / np.sqrt(400)  # of a ratio, by hand
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_seeds_that_disagree_widen_the_difference_of_two_shares():
    first, sizes = np.repeat([[1], [0], [1]], 6, axis=1), np.ones(6, int)
    found = difference_of_shares(first, np.zeros_like(first), sizes, sizes)
    # by seed 1 0 1: variance of the mean (1/3) / 3, t with 2 degrees of freedom 4.30265
    assert found.value == pytest.approx(2 / 3)
    assert (found.low, found.high) == (pytest.approx(2 / 3 - 4.30265 / 3, abs=1e-4), 1.0)


def test_resamples_that_are_drawn_again_are_the_same():
    from iclm.studies.study.statistics import _weights

    found = []
    for _ in range(2):
        _weights.cache_clear()  # else the second comparison would be drawn from the first one's memory
        found.append(_weights(40, 50).copy())
    assert (found[0] == found[1]).all()
