import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import hsic_test


def draw(n, dims, seed=0, rho=0.0):
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, dims))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def unbiased_by_hand(x, y):
    """The unbiased estimate in its trace form, from kernels computed one pair at a time."""
    n, kernels = len(x), []
    for side in (x, y):
        side = (side - side.mean(0)) / side.std(0)
        squared = np.array([[np.sum((a - b) ** 2) for b in side] for a in side])
        width = np.median([squared[i, j] for i in range(n) for j in range(i)])
        kernel = np.exp(-squared / (2 * width))
        np.fill_diagonal(kernel, 0.0)
        kernels.append(kernel)

    def estimate(a, b):
        product = a @ b
        return np.trace(product) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * product.sum() / (n - 2)

    first, second = kernels
    return estimate(first, second) / math.sqrt(estimate(first, first) * estimate(second, second))


@given(st.integers(0, 10_000), st.integers(6, 15), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_it_is_the_unbiased_estimate_over_that_of_each_side_with_itself(seed, n, dims):
    x, y = draw(n, dims, seed, rho=0.5)
    assert hsic_test(x, y, permutations=1).statistic == pytest.approx(unbiased_by_hand(x, y), abs=1e-9)


@pytest.mark.parametrize("dims", [1, 16, 576])
def test_identical_states_give_one_and_independent_ones_zero_in_any_dimension(dims):
    x, y = draw(100, dims)
    assert hsic_test(x, 3 * x - 7, permutations=19).statistic == pytest.approx(1.0)
    assert hsic_test(x, x, permutations=19).p_value == pytest.approx(1 / 20)
    assert abs(hsic_test(x, y, permutations=1).statistic) < 0.05


def test_it_sees_dependence_without_correlation():
    x = np.random.default_rng(0).standard_normal(200)
    report = hsic_test(x, x**2, permutations=39)
    assert report.p_value == pytest.approx(1 / 40)
    assert report.statistic > 0.1 > report.permuted_mean + 3 * report.permuted_sd


def test_shuffled_kernels_are_the_kernels_of_shuffled_samples():
    x, y = draw(40, 2, rho=0.7)
    report = hsic_test(x, y, permutations=3, seed=5)
    rng = np.random.default_rng(5)
    by_hand = [hsic_test(x, y[rng.permutation(40)], permutations=1).statistic for _ in range(3)]
    assert report.permuted_mean == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert report.permuted_sd == pytest.approx(np.std(by_hand), abs=1e-12)


def test_independent_pairs_are_rejected_about_as_often_as_the_level_says():
    p_values = np.array([hsic_test(*draw(20, 2, seed), permutations=19, seed=seed).p_value for seed in range(400)])
    assert 0.02 < np.mean(p_values <= 0.05) < 0.08
    assert 0.44 < np.mean(p_values <= 0.5) < 0.56


def test_it_is_symmetric_and_deterministic_and_minds_the_pairing_only():
    x, y = draw(50, 3, rho=0.6)
    report, order = hsic_test(x, y, permutations=5, seed=3), np.random.default_rng(0).permutation(50)
    assert report == hsic_test(x, y, permutations=5, seed=3)
    assert hsic_test(y, x, permutations=1).statistic == pytest.approx(report.statistic)
    assert hsic_test(x[order], y[order], permutations=1).statistic == pytest.approx(report.statistic)
    assert json.loads(json.dumps(report.to_dict()))["permutations"] == 5


@pytest.mark.parametrize(
    "x", [np.full((20, 3), 0.1), np.eye(20)[:, 0], 1e300 * np.ones(20)], ids=["constant", "one apart", "huge"]
)
def test_states_that_say_nothing_claim_nothing(x):
    report = hsic_test(x, np.arange(20.0), permutations=9)
    assert (report.statistic, report.permuted_mean, report.permuted_sd, report.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_equal_rows_have_a_bandwidth():
    coin = np.repeat([0.0, 1.0], [90, 10])
    assert hsic_test(coin, coin, permutations=19).statistic == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 2)), {}, "n=3 pairs"),
        (np.zeros((5, 2)), np.zeros((6, 2)), {}, "x has 5 rows and y has 6"),
        (np.zeros(5), np.array([0.0, 1.0, np.nan, 1.0, 2.0]), {}, "y has 1 of 5 values"),
        (np.zeros(5), np.zeros(5), {"permutations": 0}, "permutations=0"),
    ],
)
def test_unusable_input_is_refused_with_what_was_given(x, y, options, message):
    with pytest.raises(ConfigurationError, match=message):
        hsic_test(x, y, **options)
