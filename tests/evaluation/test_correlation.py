import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import correlation_report


def draw(n, dims, seed=0, rho=0.0):
    rng = np.random.default_rng(seed)
    x, noise = rng.standard_normal((2, n, dims))
    return x, rho * x + math.sqrt(1 - rho**2) * noise


@given(st.integers(0, 10_000), st.integers(3, 30), st.integers(1, 5))
@settings(deadline=None)
def test_it_is_pearsons_correlation_of_each_dimension(seed, n, dims):
    x, y = draw(n, dims, seed, rho=0.5)
    by_hand = [abs(np.corrcoef(x[:, d], y[:, d])[0, 1]) for d in range(dims)]
    report = correlation_report(x, y, permutations=1)
    assert report.mean == pytest.approx(np.mean(by_hand))
    assert report.maximum == pytest.approx(np.max(by_hand))


def test_scale_sign_and_shift_of_a_dimension_do_not_count():
    x, y = draw(60, 3, rho=0.5)
    moved = correlation_report(x * [1e6, -1.0, 1e-6] + 5.0, y, permutations=1)
    assert moved.mean == pytest.approx(correlation_report(x, y, permutations=1).mean)
    assert correlation_report(x, -x, permutations=19).mean == pytest.approx(1.0)


def test_a_constant_dimension_counts_as_uncorrelated():
    x = draw(50, 1)[0]
    padded = np.concatenate([x, np.full((50, 1), 0.1)], axis=1)
    report = correlation_report(padded, padded, permutations=19)
    assert (report.mean, report.maximum, report.dims) == (pytest.approx(0.5), pytest.approx(1.0), 2)
    nothing = correlation_report(np.ones((50, 2)), padded, permutations=19)
    assert (nothing.mean, nothing.maximum, nothing.permuted_mean, nothing.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_independent_pairs_give_what_shuffled_pairs_give():
    report = correlation_report(*draw(400, 64), permutations=50)
    assert report.permuted_mean == pytest.approx(math.sqrt(2 / math.pi / 400), rel=0.05)
    assert report.mean == pytest.approx(report.permuted_mean, abs=4 * report.permuted_sd)


def test_independent_pairs_are_rejected_about_as_often_as_the_level_says():
    p_values = np.array([correlation_report(*draw(20, 2, s), permutations=19, seed=s).p_value for s in range(600)])
    assert 0.02 < np.mean(p_values <= 0.05) < 0.08


def test_it_is_blind_to_squares_and_to_rotations():
    x = draw(2000, 2)[0]
    assert correlation_report(x, x**2, permutations=1).mean < 0.1
    assert correlation_report(x, x @ np.array([[0.0, 1.0], [-1.0, 0.0]]), permutations=1).mean < 0.1


def test_a_tie_with_the_given_order_counts_against_dependence():
    coin = np.array([0.0, 1.0])  # both orders of two pairs give |r| = 1
    assert correlation_report(coin, coin, permutations=9).p_value == 1.0


def test_the_report_is_deterministic_and_ready_for_json():
    x, y = draw(30, 2, rho=0.3)
    report = correlation_report(x, y, permutations=7, seed=2)
    assert report == correlation_report(x, y, permutations=7, seed=2)
    assert json.loads(json.dumps(report.to_dict()))["n"] == 30


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), {}, "x has 2 dimensions and y has 3"),
        (np.zeros((1, 2)), np.zeros((1, 2)), {}, "n=1 pairs"),
        (np.zeros((5, 2)), np.full((5, 2), np.inf), {}, "y has 10 of 10 values"),
        (np.zeros(5), np.zeros(5), {"permutations": 0}, "permutations=0"),
    ],
)
def test_unusable_input_is_refused_with_what_was_given(x, y, options, message):
    with pytest.raises(ConfigurationError, match=message):
        correlation_report(x, y, **options)
