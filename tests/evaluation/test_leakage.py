import json
from statistics import NormalDist

import numpy as np
import pytest

from iclm.errors import ConfigurationError
from iclm.evaluation.independence import domain_leakage
from iclm.evaluation.independence.leakage import shuffle_domains
from iclm.evaluation.metrics import wilson_interval


def two_domains(n, shift, dims=4, seed=0):
    domains = np.arange(n) % 2
    states = np.random.default_rng(seed).standard_normal((n, dims))
    states[:, 0] += shift * domains
    return states, domains


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_the_probe_nears_the_accuracy_of_the_best_classifier(shift):
    report = domain_leakage(*two_domains(1000, shift), permutations=19)
    assert report.accuracy == pytest.approx(NormalDist().cdf(shift / 2), abs=0.04)
    assert (report.low, report.high) == wilson_interval(round(1000 * report.accuracy), 1000)
    assert report.permuted_mean == pytest.approx(0.5, abs=0.03)
    assert (report.p_value <= 0.05) == (shift > 0)


def test_states_without_the_domain_give_chance_of_unequal_domains_too():
    states = np.random.default_rng(0).standard_normal((400, 3))
    report = domain_leakage(states, np.repeat(["a", "b"], [320, 80]), permutations=19)
    assert report.chance == 0.8
    assert report.accuracy == pytest.approx(0.8, abs=0.02)
    assert report.p_value > 0.05


def test_many_domains_in_states_of_more_dimensions_than_examples():
    domains = np.arange(60) % 3
    states = np.random.default_rng(0).standard_normal((60, 200)) * 1e-3
    report = domain_leakage(
        states + np.eye(3)[domains] @ np.ones((3, 200)) * [[0.01] * 100 + [-0.01] * 100], domains, permutations=1
    )
    assert report.domains == 3 and report.chance == pytest.approx(1 / 3)
    far = domain_leakage(np.repeat(np.eye(3), 20, axis=0), np.repeat([7, 8, 9], 20), permutations=19)
    assert (far.accuracy, far.high, far.p_value) == (1.0, 1.0, 0.05)


def test_constant_states_give_the_majority():
    report = domain_leakage(np.full((50, 3), 0.1), np.repeat([0, 1], [35, 15]), permutations=9)
    assert (report.accuracy, report.chance, report.permuted_mean, report.p_value) == (0.7, 0.7, 0.7, 1.0)


def grouped(seed, sizes, dims=6):
    """States that are nearly the same within a group and say nothing about its domain: groups take turns in two domains."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return rng.standard_normal((len(sizes), dims))[groups] + 0.1 * rng.standard_normal((len(groups), dims)), groups


def test_groups_stay_together_so_that_a_probe_cannot_learn_them_by_heart():
    states, groups = grouped(0, [10] * 12, dims=30)
    domains = groups % 2
    apart = domain_leakage(states, domains, permutations=1)
    together = domain_leakage(states, domains, groups=groups, permutations=1)
    assert apart.accuracy > 0.95 > 0.8 > together.accuracy
    assert (apart.groups, together.groups, together.n) == (120, 12, 120)


@pytest.mark.parametrize("sizes", [[4] * 24, [6] * 8 + [1] * 24], ids=["equal groups", "large groups in one domain"])
def test_groups_without_leakage_are_rejected_about_as_often_as_the_level_says(sizes):
    found = []
    for seed in range(30):
        states, groups = grouped(seed, sizes)
        domains = (np.array(sizes)[groups] > 1).astype(int) if len(set(sizes)) > 1 else groups % 2
        found.append(domain_leakage(states, domains, groups=groups, folds=3, permutations=9, seed=seed).p_value)
    assert np.mean(np.array(found) <= 0.1) <= 0.3  # expected 3 of 30; more than 9 would happen once in 2,000 times


def test_a_shuffle_moves_whole_groups_within_folds_and_mixes_inside_groups_of_several_domains():
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(30), 3)
    labels = np.where(units < 20, units % 2, np.arange(90) % 3)
    fold = units % 5
    moved = [shuffle_domains(labels, units, fold, rng) for _ in range(20)]
    for shuffled in moved:
        for unit in range(30):
            inside = units == unit
            if unit < 20:
                assert len(set(shuffled[inside])) == 1
            else:
                assert sorted(shuffled[inside]) == sorted(labels[inside])
        for number in range(5):
            assert sorted(shuffled[fold == number]) == sorted(labels[fold == number])
    assert any(not np.array_equal(shuffled[units < 20], labels[units < 20]) for shuffled in moved)
    assert any(not np.array_equal(shuffled[units >= 20], labels[units >= 20]) for shuffled in moved)


def test_a_domain_that_only_a_shuffle_takes_from_the_training_folds_is_no_error():
    states, groups = grouped(0, [5, 5, 20])
    report = domain_leakage(states, [0] * 5 + [1] * 5 + [0] * 10 + [1] * 10, groups=groups, folds=3, permutations=5)
    assert 0.0 <= report.accuracy <= 1.0 and report.permutations == 5


def test_the_report_is_deterministic_free_of_scale_and_ready_for_json():
    states, domains = two_domains(60, 1.0)
    report = domain_leakage(states, domains, permutations=5, seed=3)
    assert report == domain_leakage(states, domains, permutations=5, seed=3)
    assert report == domain_leakage(states * [1e150, 1e-150, 1.0, 3.0], domains, permutations=5, seed=3)
    assert json.loads(json.dumps(report.to_dict()))["folds"] == 5


@pytest.mark.parametrize(
    ("states", "domains", "options", "message"),
    [
        (np.zeros((10, 2)), [0] * 10, {}, "examples of 1 domain"),
        (np.zeros((10, 2)), [0, 1] * 4, {}, "domains of shape .8. for 10 states"),
        (np.zeros((10, 2)), [0] * 7 + [5] * 3, {}, "domain 5 has 3 examples for 5 folds"),
        (np.zeros((10, 2)), [0, 1] * 5, {"groups": [0, 1] * 5}, "domain 0 has all its 5 examples in one group"),
        (np.zeros((10, 2)), [0, 1] * 5, {"groups": [0, 0, 1, 1, 2, 2, 3, 3, 3, 3]}, "4 groups for 5 folds"),
        (np.zeros((10, 2)), [0, 1] * 5, {"groups": [0]}, "groups of shape"),
        (np.full((10, 2), np.nan), [0, 1] * 5, {}, "states has 20 of 20 values"),
        (np.zeros((10, 2)), [0, 1] * 5, {"folds": 1}, "folds=1"),
        (np.zeros((10, 2)), [0, 1] * 5, {"permutations": 0}, "permutations=0"),
    ],
)
def test_unusable_input_is_refused_with_what_was_given(states, domains, options, message):
    with pytest.raises(ConfigurationError, match=message):
        domain_leakage(states, domains, **options)
